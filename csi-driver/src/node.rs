//! The CSI Node service: a volume becomes usable on this node, and then appears where a pod looks.
//!
//! What has to know of devices, file systems and fencing is the daemon's: staging is an Attach,
//! unstaging a Detach. The driver binds what is staged to where it is to be seen. It remembers
//! nothing: what is mounted is what the kernel says, what is attached is what the daemon says.

mod expand;
mod mounts;
mod publish;
mod stage;
mod stats;

use crate::daemon::Daemons;
use crate::refuse::{self, told};
use crate::turns::Turns;
use crate::{names, topology};
use lockstep_proto::csi;
use lockstep_proto::csi::node_server;
use lockstep_proto::csi::node_service_capability::{Rpc, Type, rpc};
use lockstep_proto::v1;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

/// What this node does.
const CAPABILITIES: [rpc::Type; 7] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::GetVolumeHealth,
    rpc::Type::GetStorageHealth,
    rpc::Type::ExpandVolume,
];

/// Answers the Node RPCs. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    id: String,
    max_volumes: i64,
    daemon: Arc<Daemons>,
    turns: Turns,
}

/// A volume's device on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Served {
    /// It is the device of a view; see [`crate::views`].
    is_view: bool,
    /// What the kernel calls it.
    device: PathBuf,
    read_only: bool,
    /// Where the daemon has mounted it.
    mount_dir: PathBuf,
}

impl Node {
    /// `daemon`: the one of this node.
    pub(crate) fn new(id: String, max_volumes: i64, daemon: Arc<Daemons>) -> Self {
        Self { id, max_volumes, daemon, turns: Turns::default() }
    }

    /// The device of a volume, or of its view, if it has one here. Asks only the daemon of this
    /// node, which can tell also while the rest of the cluster is out of reach.
    async fn served(&self, volume: &str) -> Result<Option<Served>, Status> {
        let node = self.daemon.node().await?;
        let view = names::view(volume, &node.name);
        let is_it = |name: &str| name == volume || name == view;
        if node.waiting_devices.iter().any(|waiting| is_it(&waiting.volume_name)) {
            return Err(Status::unavailable(format!(
                "the daemon is about to serve volume {volume} again; try again"
            )));
        }
        let over = |phase: i32| {
            [v1::AttachPhase::Fenced, v1::AttachPhase::Detached].map(i32::from).contains(&phase)
        };
        let served = |primary: v1::LocalPrimary| {
            // A volume is also attached without one, for the moment in which a view is made of it.
            let device = primary.device?;
            Some(Served {
                is_view: primary.volume_name == view,
                device: device.kernel_path.into(),
                read_only: device.read_only,
                mount_dir: device.mount_dir.into(),
            })
        };
        let own = |p: &v1::LocalPrimary| is_it(&p.volume_name) && !over(p.phase);
        Ok(node.primaries.into_iter().filter(own).find_map(served))
    }

    async fn info(&self) -> Result<csi::NodeGetInfoResponse, Status> {
        let node = self.daemon.node().await?;
        if node.name.is_empty() {
            return Err(Status::unavailable("the daemon does not know its name yet; try again"));
        }
        Ok(csi::NodeGetInfoResponse {
            node_id: self.id.clone(),
            max_volumes_per_node: self.max_volumes,
            accessible_topology: Some(topology::of_node(&node.name)),
        })
    }
}

#[async_trait]
impl node_server::Node for Node {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let staged = self.stage(request.into_inner()).await;
        told("NodeStageVolume", staged.map(|()| csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let unstaged = self.unstage(request.into_inner()).await;
        told("NodeUnstageVolume", unstaged.map(|()| csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let published = self.publish(request.into_inner()).await;
        told("NodePublishVolume", published.map(|()| csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let unpublished = self.unpublish(request.into_inner()).await;
        told("NodeUnpublishVolume", unpublished.map(|()| csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        told("NodeGetVolumeStats", self.stats(request.into_inner()).await)
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        told("NodeExpandVolume", self.expand(request.into_inner()).await)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let capability = |what| csi::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(what) })),
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        told("NodeGetInfo", self.info().await)
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        told("NodeGetVolumeHealth", self.volume_health(request.into_inner()).await)
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        told("NodeGetStorageHealth", Ok(self.storage_health().await))
    }
}

/// The capability of a request, which has to have one.
fn capability(
    wanted: Option<&csi::VolumeCapability>,
) -> Result<crate::capability::Capability, Status> {
    crate::capability::Capability::new(wanted.ok_or_else(|| refuse::missing("volume_capability"))?)
}
