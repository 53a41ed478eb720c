//! The CSI Controller service: volumes are made, changed, looked at and removed.
//!
//! All state is the cluster's: the driver itself knows nothing, so any of several can be asked, and
//! one that dies leaves nothing behind. There is no ControllerPublish: a node claims a volume when
//! it stages it, and the epoch keeps an older one from writing.

mod capacity;
mod create;
mod expand;
pub(crate) mod health;
mod list;
mod modify;
mod snapshots;
mod source;

use crate::capability::Capability;
use crate::daemon::Daemons;
use crate::keeper::Keeper;
use crate::parameters::Parameters;
use crate::refuse::{self, told};
use crate::turns::Turns;
use crate::{names, topology, views};
use lockstep_proto::csi::controller_server;
use lockstep_proto::csi::controller_service_capability::{Rpc, Type, rpc};
use lockstep_proto::csi::validate_volume_capabilities_response::Confirmed;
use lockstep_proto::csi::{self, ControllerServiceCapability};
use lockstep_proto::v1;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

/// Annotation: the name a volume was asked for by.
const NAME: &str = "csi.lockstep.dev/name";
/// Annotation: what it was asked to be, to know a repeated request by.
const ASKED: &str = "csi.lockstep.dev/asked";
/// Annotation: what it began with.
const SOURCE: &str = "csi.lockstep.dev/source";
/// Annotation: `preferred` if pods may run where no copy is.
const LOCALITY: &str = "csi.lockstep.dev/locality";
/// Annotation, and key of the volume context: the file system if the pod names none.
pub(crate) const FS: &str = "csi.lockstep.dev/fs";
/// Annotation, and key of the volume context: `many` if readers on several nodes may have it.
pub(crate) const READERS: &str = "csi.lockstep.dev/readers";
/// Key of the volume context: which volume it is, also if its name came back.
pub(crate) const UID: &str = "csi.lockstep.dev/uid";

/// What this controller does.
const CAPABILITIES: [rpc::Type; 14] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::ListVolumes,
    rpc::Type::GetCapacity,
    rpc::Type::GetVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::ModifyVolume,
    rpc::Type::GetVolumeHealth,
    rpc::Type::ListVolumeHealth,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::GetSnapshot,
    rpc::Type::CloneVolume,
    rpc::Type::ExpandVolume,
];

/// Answers the Controller RPCs. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    daemons: Arc<Daemons>,
    keeper: Keeper,
    turns: Turns,
}

/// The nodes that have a copy of a volume.
pub(crate) fn copies(volume: &v1::VolumeStatus) -> Vec<String> {
    let leaving = i32::from(v1::ReplicaState::Leaving);
    let stays = volume.replicas.iter().filter(|replica| replica.state != leaving);
    stays.map(|replica| replica.node.clone()).collect()
}

/// A volume, as told to callers.
fn described(volume: &v1::VolumeStatus) -> csi::Volume {
    let mut context = BTreeMap::from([(UID.to_owned(), volume.uid.clone())]);
    for key in [FS, READERS] {
        if let Some(value) = volume.annotations.get(key) {
            context.insert(key.to_owned(), value.clone());
        }
    }
    let anywhere = volume.annotations.get(LOCALITY).is_some_and(|l| l == "preferred");
    csi::Volume {
        capacity_bytes: crate::size::signed(volume.size_bytes),
        volume_id: volume.name.clone(),
        volume_context: context,
        content_source: volume.annotations.get(SOURCE).and_then(|s| source::Source::told(s)),
        accessible_topology: if anywhere { Vec::new() } else { topology::of_volume(volume) },
    }
}

impl Controller {
    pub(crate) fn new(daemons: Arc<Daemons>, keeper: Keeper) -> Self {
        Self { daemons, keeper, turns: Turns::default() }
    }

    /// The volume of an id, which has to be there and ready.
    async fn ready(&self, id: &str) -> Result<v1::VolumeStatus, Status> {
        let id = names::required("volume_id", id)?;
        let found = self.daemons.volume(id).await?;
        let is_ready = |v: &v1::VolumeStatus| v.stage == i32::from(v1::VolumeStage::Ready);
        found.filter(is_ready).filter(views::is_none).ok_or_else(|| refuse::no_volume(id))
    }

    /// The volumes that callers have made.
    async fn all_ready(&self) -> Result<Vec<v1::VolumeStatus>, Status> {
        let mut volumes = self.daemons.volumes().await?;
        volumes.retain(views::is_none);
        Ok(volumes)
    }

    async fn delete(&self, request: csi::DeleteVolumeRequest) -> Result<(), Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let (daemons, name) = (Arc::clone(&self.daemons), id.clone());
        self.turns.run(&id, async move { views::delete_with(&daemons, &name).await }).await?;
        // It may have been the last one with its label.
        self.keeper.look_soon();
        Ok(())
    }

    async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, Status> {
        names::required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(refuse::missing("volume_capabilities"));
        }
        let volume = self.ready(&request.volume_id).await?;
        let uid = request.volume_context.get(UID);
        let checked = Capability::all(&request.volume_capabilities).and_then(|all| {
            let many = volume.annotations.contains_key(READERS);
            all.iter().try_for_each(|capability| views::fits(capability, many))?;
            Parameters::new(&request.parameters, &request.mutable_parameters)?;
            match uid.filter(|uid| **uid != volume.uid) {
                None => Ok(()),
                Some(uid) => Err(refuse::bad(UID, uid, "the volume is another one by now")),
            }
        });
        if let Err(status) = checked {
            let message = status.message().to_owned();
            return Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message });
        }
        let confirmed = Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        };
        let message = String::new();
        Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message })
    }
}

/// The answer to a call that is not served: its capability is not claimed.
fn unserved<T>(call: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!(
        "{call} is not served; ControllerGetCapabilities tells what is"
    )))
}

#[async_trait]
impl controller_server::Controller for Controller {
    async fn create_volume(
        &self,
        request: Request<csi::CreateVolumeRequest>,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let made = self.create(request.into_inner()).await;
        let volume = made.map(|volume| csi::CreateVolumeResponse { volume: Some(volume) });
        told("CreateVolume", volume)
    }

    async fn delete_volume(
        &self,
        request: Request<csi::DeleteVolumeRequest>,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let deleted = self.delete(request.into_inner()).await;
        told("DeleteVolume", deleted.map(|()| csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        unserved("ControllerPublishVolume")
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        unserved("ControllerUnpublishVolume")
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        told("ValidateVolumeCapabilities", self.validate(request.into_inner()).await)
    }

    async fn list_volumes(
        &self,
        request: Request<csi::ListVolumesRequest>,
    ) -> Result<Response<csi::ListVolumesResponse>, Status> {
        told("ListVolumes", self.list(&request.into_inner()).await)
    }

    async fn get_capacity(
        &self,
        request: Request<csi::GetCapacityRequest>,
    ) -> Result<Response<csi::GetCapacityResponse>, Status> {
        told("GetCapacity", self.capacity(&request.into_inner()).await)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let capability = |what| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(what) })),
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Result<Response<csi::CreateSnapshotResponse>, Status> {
        let taken = self.take_snapshot(request.into_inner()).await;
        let answer = taken.map(|taken| csi::CreateSnapshotResponse { snapshot: Some(taken) });
        told("CreateSnapshot", answer)
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Result<Response<csi::DeleteSnapshotResponse>, Status> {
        let removed = self.remove_snapshot(&request.into_inner().snapshot_id).await;
        told("DeleteSnapshot", removed.map(|()| csi::DeleteSnapshotResponse {}))
    }

    async fn list_snapshots(
        &self,
        request: Request<csi::ListSnapshotsRequest>,
    ) -> Result<Response<csi::ListSnapshotsResponse>, Status> {
        told("ListSnapshots", self.snapshots(&request.into_inner()).await)
    }

    async fn get_snapshot(
        &self,
        request: Request<csi::GetSnapshotRequest>,
    ) -> Result<Response<csi::GetSnapshotResponse>, Status> {
        let found = self.snapshot(&request.into_inner().snapshot_id).await;
        let answer = found.map(|found| csi::GetSnapshotResponse { snapshot: Some(found) });
        told("GetSnapshot", answer)
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Result<Response<csi::ControllerExpandVolumeResponse>, Status> {
        told("ControllerExpandVolume", self.expand(request.into_inner()).await)
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeResponse>, Status> {
        told("ControllerGetVolume", self.get(&request.into_inner()).await)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Result<Response<csi::ControllerModifyVolumeResponse>, Status> {
        let modified = self.modify(request.into_inner()).await;
        told("ControllerModifyVolume", modified.map(|()| csi::ControllerModifyVolumeResponse {}))
    }

    async fn controller_list_volume_health(
        &self,
        request: Request<csi::ControllerListVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerListVolumeHealthResponse>, Status> {
        told("ControllerListVolumeHealth", self.list_health(&request.into_inner()).await)
    }

    async fn controller_get_volume_health(
        &self,
        request: Request<csi::ControllerGetVolumeHealthRequest>,
    ) -> Result<Response<csi::ControllerGetVolumeHealthResponse>, Status> {
        told("ControllerGetVolumeHealth", self.get_health(&request.into_inner()).await)
    }
}
