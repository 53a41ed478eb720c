//! A daemon of words: it keeps volumes in a table, and has no devices.

use lockstep_proto::v1::control_server::{Control, ControlServer};
use lockstep_proto::v1::{self as lockstep, VolumeStatus};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What is attached: a volume's name, and its device if it has one.
type Attached = (String, Option<lockstep::Device>);

/// Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    pub(crate) not_ready: String,
    pub(crate) volumes: Arc<Mutex<BTreeMap<String, VolumeStatus>>>,
    pub(crate) snapshots: Arc<Mutex<BTreeMap<String, lockstep::Snapshot>>>,
    /// How often a volume was made.
    pub(crate) made: Arc<Mutex<u32>>,
    /// What is attached here.
    pub(crate) attached: Arc<Mutex<Vec<Attached>>>,
    /// Volumes that the daemon is about to serve again, by name.
    pub(crate) waiting: Arc<Mutex<Vec<String>>>,
    /// Labels that were put on nodes, each change in its order.
    pub(crate) labels: Arc<Mutex<Labels>>,
}

/// Labels of nodes.
#[derive(Default)]
pub(crate) struct Labels {
    /// Labels by node and key.
    pub(crate) there: BTreeSet<(String, String)>,
    /// `+node` and `-node`, in their order.
    pub(crate) changes: Vec<String>,
    /// Changes are refused.
    pub(crate) broken: bool,
}

impl Fake {
    /// Serves with threads of its own, so that its connections can be made to die with it.
    pub(crate) fn serve(self, socket: &Path) -> Daemon {
        let runtime = Runtime::new().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(
            Server::builder()
                .add_service(ControlServer::new(self))
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        Daemon(Some(runtime))
    }

    fn info(&self) -> lockstep::Node {
        let pool = lockstep::Pool {
            name: "default".to_owned(),
            free_bytes: 64 << 30,
            room_bytes: 64 << 30,
            ..Default::default()
        };
        let primary = |(name, device): &Attached| {
            let (volume_name, device) = (name.clone(), device.clone());
            lockstep::LocalPrimary { volume_name, device, ..Default::default() }
        };
        let primaries = self.attached.lock().unwrap().iter().map(primary).collect();
        let waits = |name: &String| lockstep::WaitingDevice {
            volume_name: name.clone(),
            ..Default::default()
        };
        lockstep::Node {
            primaries,
            waiting_devices: self.waiting.lock().unwrap().iter().map(waits).collect(),
            name: "n1".to_owned(),
            ready: self.not_ready.is_empty(),
            not_ready_reason: self.not_ready.clone(),
            pools: vec![pool],
            zone: "z1".to_owned(),
            ..Default::default()
        }
    }

    /// Takes a snapshot, or finds it.
    fn take(&self, wanted: lockstep::CreateSnapshotRequest) -> Result<lockstep::Snapshot, Status> {
        let volumes = self.volumes.lock().unwrap();
        let of = volumes.get(&wanted.volume).ok_or_else(|| Status::not_found("no such volume"))?;
        let mut snapshots = self.snapshots.lock().unwrap();
        let taken = lockstep::Snapshot {
            name: wanted.name.clone(),
            volume: wanted.volume,
            size_bytes: of.size_bytes,
            created_unix_ms: 1_700_000_000_123,
            ready: true,
            nodes: vec!["n1".to_owned()],
            ..Default::default()
        };
        let there = snapshots.entry(wanted.name).or_insert_with(|| taken.clone());
        if there.volume == taken.volume {
            Ok(there.clone())
        } else {
            Err(Status::already_exists("it is there, of another volume"))
        }
    }

    fn make(&self, wanted: lockstep::CreateVolumeRequest) -> VolumeStatus {
        *self.made.lock().unwrap() += 1;
        VolumeStatus {
            name: wanted.name,
            uid: format!("uid-{}", *self.made.lock().unwrap()),
            size_bytes: wanted.size_bytes,
            repl: wanted.repl,
            annotations: wanted.annotations,
            replicas: vec![copy("n1")],
            placement_id: "p-1".to_owned(),
            health: i32::from(lockstep::Health::Healthy),
            stage: i32::from(lockstep::VolumeStage::Ready),
            ..Default::default()
        }
    }
}

/// A copy in good order.
pub(crate) fn copy(node: &str) -> lockstep::VolumeReplica {
    lockstep::VolumeReplica {
        node: node.to_owned(),
        state: i32::from(lockstep::ReplicaState::InSync),
        connected: true,
        ..Default::default()
    }
}

/// A daemon that serves; it ends when this is dropped.
pub(crate) struct Daemon(Option<Runtime>);

impl Daemon {
    pub(crate) fn shutdown_timeout(mut self, limit: std::time::Duration) {
        self.0.take().unwrap().shutdown_timeout(limit);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

macro_rules! control {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Control for Fake {
            async fn get_node(
                &self,
                _: Request<lockstep::GetNodeRequest>,
            ) -> Result<Response<lockstep::GetNodeResponse>, Status> {
                Ok(Response::new(lockstep::GetNodeResponse { node: Some(self.info()) }))
            }

            async fn list_nodes(
                &self,
                _: Request<lockstep::ListNodesRequest>,
            ) -> Result<Response<lockstep::ListNodesResponse>, Status> {
                let node = lockstep::NodeStatus {
                    name: "n1".to_owned(),
                    live: true,
                    info: Some(self.info()),
                    zone: "z1".to_owned(),
                    ..Default::default()
                };
                Ok(Response::new(lockstep::ListNodesResponse { nodes: vec![node] }))
            }

            async fn status(
                &self,
                _: Request<lockstep::StatusRequest>,
            ) -> Result<Response<lockstep::StatusResponse>, Status> {
                let volumes = self.volumes.lock().unwrap().values().cloned().collect();
                let node = |name: &str| lockstep::NodeStatus {
                    name: name.to_owned(),
                    info: Some(self.info()),
                    ..Default::default()
                };
                let nodes = ["n1", "n2"].map(node).to_vec();
                let node = "n1".to_owned();
                Ok(Response::new(lockstep::StatusResponse { nodes, volumes, node }))
            }

            async fn label_nodes(
                &self,
                request: Request<lockstep::LabelNodesRequest>,
            ) -> Result<Response<lockstep::LabelNodesResponse>, Status> {
                let changes = request.into_inner().changes;
                let mut labels = self.labels.lock().unwrap();
                if labels.broken && !changes.is_empty() {
                    return Err(Status::unavailable("labels are out of reach"));
                }
                for change in changes {
                    let label = (change.node.clone(), change.key);
                    let (sign, changed) = match change.value {
                        Some(_) => ('+', labels.there.insert(label)),
                        None => ('-', labels.there.remove(&label)),
                    };
                    if changed {
                        labels.changes.push(format!("{sign}{}", change.node));
                    }
                }
                let mut nodes: BTreeMap<String, lockstep::NodeLabels> = BTreeMap::new();
                for (node, key) in &labels.there {
                    let told = nodes.entry(node.clone()).or_default();
                    told.node.clone_from(node);
                    told.labels.insert(key.clone(), "replica".to_owned());
                }
                let nodes = nodes.into_values().collect();
                Ok(Response::new(lockstep::LabelNodesResponse { nodes }))
            }

            async fn create_volume(
                &self,
                request: Request<lockstep::CreateVolumeRequest>,
            ) -> Result<Response<lockstep::CreateVolumeResponse>, Status> {
                let wanted = request.into_inner();
                let mut volumes = self.volumes.lock().unwrap();
                let name = wanted.name.clone();
                let volume = volumes.entry(name).or_insert_with(|| self.make(wanted)).clone();
                Ok(Response::new(lockstep::CreateVolumeResponse { volume: Some(volume) }))
            }

            async fn get_volume(
                &self,
                request: Request<lockstep::GetVolumeRequest>,
            ) -> Result<Response<lockstep::GetVolumeResponse>, Status> {
                let found = self.volumes.lock().unwrap().get(&request.into_inner().name).cloned();
                let volume = Some(found.ok_or_else(|| Status::not_found("no such volume"))?);
                Ok(Response::new(lockstep::GetVolumeResponse { volume }))
            }

            async fn list_volumes(
                &self,
                _: Request<lockstep::ListVolumesRequest>,
            ) -> Result<Response<lockstep::ListVolumesResponse>, Status> {
                let volumes = self.volumes.lock().unwrap().values().cloned().collect();
                Ok(Response::new(lockstep::ListVolumesResponse { volumes }))
            }

            async fn delete_volume(
                &self,
                request: Request<lockstep::DeleteVolumeRequest>,
            ) -> Result<Response<lockstep::DeleteVolumeResponse>, Status> {
                let gone = self.volumes.lock().unwrap().remove(&request.into_inner().name);
                let (existed, pending_nodes) = (gone.is_some(), Vec::new());
                Ok(Response::new(lockstep::DeleteVolumeResponse { existed, pending_nodes }))
            }

            async fn set_volume(
                &self,
                request: Request<lockstep::SetVolumeRequest>,
            ) -> Result<Response<lockstep::SetVolumeResponse>, Status> {
                let wanted = request.into_inner();
                if let Some(volume) = self.volumes.lock().unwrap().get_mut(&wanted.name) {
                    volume.repl = wanted.repl.unwrap_or(volume.repl);
                    volume.max_iops = wanted.max_iops.unwrap_or(volume.max_iops);
                }
                Ok(Response::new(lockstep::SetVolumeResponse::default()))
            }

            async fn attach(
                &self,
                request: Request<lockstep::AttachRequest>,
            ) -> Result<Response<lockstep::AttachResponse>, Status> {
                match self.volumes.lock().unwrap().get(&request.into_inner().name) {
                    None => Err(Status::not_found("no such volume")),
                    Some(_) => Err(Status::failed_precondition("there are no devices here")),
                }
            }

            async fn detach(
                &self,
                request: Request<lockstep::DetachRequest>,
            ) -> Result<Response<lockstep::DetachResponse>, Status> {
                let lockstep::DetachRequest { name, only_node, .. } = request.into_inner();
                assert_eq!(only_node.as_deref(), Some("n1"), "no other node may lose the volume");
                if self.waiting.lock().unwrap().contains(&name) {
                    return Err(Status::aborted("it is about to be served again; try again"));
                }
                let mut attached = self.attached.lock().unwrap();
                let before = attached.len();
                attached.retain(|(there, _)| *there != name);
                let was_attached = attached.len() < before;
                Ok(Response::new(lockstep::DetachResponse { was_attached }))
            }

            async fn resize_volume(
                &self,
                request: Request<lockstep::ResizeVolumeRequest>,
            ) -> Result<Response<lockstep::ResizeVolumeResponse>, Status> {
                let wanted = request.into_inner();
                let mut volumes = self.volumes.lock().unwrap();
                let volume = volumes.get_mut(&wanted.name).unwrap();
                assert!(wanted.size_bytes >= volume.size_bytes, "volumes do not get smaller");
                volume.size_bytes = wanted.size_bytes;
                let (size_bytes, note) = (wanted.size_bytes, String::new());
                Ok(Response::new(lockstep::ResizeVolumeResponse { size_bytes, note }))
            }

            async fn create_snapshot(
                &self,
                request: Request<lockstep::CreateSnapshotRequest>,
            ) -> Result<Response<lockstep::Snapshot>, Status> {
                self.take(request.into_inner()).map(Response::new)
            }

            async fn delete_snapshot(
                &self,
                request: Request<lockstep::DeleteSnapshotRequest>,
            ) -> Result<Response<lockstep::DeleteSnapshotResponse>, Status> {
                let gone = self.snapshots.lock().unwrap().remove(&request.into_inner().name);
                let existed = gone.is_some();
                Ok(Response::new(lockstep::DeleteSnapshotResponse { existed }))
            }

            async fn list_snapshots(
                &self,
                request: Request<lockstep::ListSnapshotsRequest>,
            ) -> Result<Response<lockstep::ListSnapshotsResponse>, Status> {
                let wanted = request.into_inner();
                let is_it = |text: &str, it: &str| text.is_empty() || text == it;
                let all = self.snapshots.lock().unwrap().values().cloned().collect::<Vec<_>>();
                let mut snapshots = all;
                snapshots.retain(|s| is_it(&wanted.volume, &s.volume));
                snapshots.retain(|s| is_it(&wanted.name, &s.name));
                Ok(Response::new(lockstep::ListSnapshotsResponse { snapshots }))
            }

            $(async fn $method(
                &self,
                _: Request<lockstep::$request>,
            ) -> Result<Response<lockstep::$response>, Status> {
                Err(Status::unimplemented("not asked for here"))
            })*
        }
    };
}

control! {
    scrub_volume(ScrubVolumeRequest) -> ScrubVolumeResponse;
    drop_snapshot(DropSnapshotRequest) -> DropSnapshotResponse;
    get_snapshot(GetSnapshotRequest) -> GetSnapshotResponse;
    forget_pool(ForgetPoolRequest) -> ForgetPoolResponse;
    evacuate_node(EvacuateNodeRequest) -> EvacuateNodeResponse;
    cordon_node(CordonNodeRequest) -> CordonNodeResponse;
    remove_node(RemoveNodeRequest) -> RemoveNodeResponse;
    recover_volume(RecoverVolumeRequest) -> RecoverVolumeResponse;
    create_replica(CreateReplicaRequest) -> CreateReplicaResponse;
    delete_replica(DeleteReplicaRequest) -> DeleteReplicaResponse;
    replica_status(ReplicaStatusRequest) -> ReplicaStatusResponse;
    add_replica(AddReplicaRequest) -> AddReplicaResponse;
    explain_volume(ExplainVolumeRequest) -> ExplainVolumeResponse;
    what_if_node_down(WhatIfNodeDownRequest) -> WhatIfNodeDownResponse;
    fence_volume(FenceVolumeRequest) -> FenceVolumeResponse;
}
