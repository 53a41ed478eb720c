//! The gRPC service: one line per call, and a log line for each that changes something.

use async_trait::async_trait;
use lockstep_proto::v1;
use lockstep_proto::v1::control_server::Control;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::peers::was_passed_on;
use super::{Admin, names};

/// Logs a call that failed, where it is answered.
fn told<T>(call: &str, name: &str, outcome: Result<T, Status>) -> Result<Response<T>, Status> {
    if let Err(status) = &outcome {
        tracing::info!(call, name, code = ?status.code(), why = status.message(), "refused");
    }
    outcome.map(Response::new)
}

/// Does all of something also if the caller goes away in its midst: what was attached for it, or
/// begun in the record store, is then not left as it is.
async fn whole<T, F>(admin: &Admin, work: impl FnOnce(Admin) -> F) -> Result<T, Status>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Status>> + Send + 'static,
{
    let work = tokio::spawn(work(admin.clone()));
    work.await.unwrap_or_else(|error| Err(Status::internal(format!("it broke off: {error}"))))
}

#[async_trait]
impl Control for Admin {
    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::GetNodeResponse>, Status> {
        if request.into_inner().brief {
            let node = v1::Node { name: self.inner.node.to_string(), ..Default::default() };
            return Ok(Response::new(v1::GetNodeResponse { node: Some(node) }));
        }
        Ok(Response::new(v1::GetNodeResponse { node: Some(self.own_node().await) }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let request = request.into_inner();
        if request.brief {
            let nodes = self.who_answers(request.wait_ms).await?;
            return Ok(Response::new(v1::ListNodesResponse { nodes }));
        }
        let mut survey = self.survey_all().await?;
        self.mark_labels(&mut survey).await?;
        Ok(Response::new(v1::ListNodesResponse { nodes: survey.into_values().collect() }))
    }

    async fn create_replica(
        &self,
        request: Request<v1::CreateReplicaRequest>,
    ) -> Result<Response<v1::CreateReplicaResponse>, Status> {
        let request = request.into_inner();
        let name = request.volume_name.clone();
        let made = self.create_own_replica(request).await;
        let answer = made.map(|r| v1::CreateReplicaResponse { replica: Some(r) });
        told("create replica", &name, answer)
    }

    async fn delete_replica(
        &self,
        request: Request<v1::DeleteReplicaRequest>,
    ) -> Result<Response<v1::DeleteReplicaResponse>, Status> {
        let request = request.into_inner();
        let deleted = self.delete_own_replica(&request).await;
        let answer = deleted.map(|existed| v1::DeleteReplicaResponse { existed });
        told("delete replica", &request.rid, answer)
    }

    async fn replica_status(
        &self,
        request: Request<v1::ReplicaStatusRequest>,
    ) -> Result<Response<v1::ReplicaStatusResponse>, Status> {
        let uid = names::uid(&request.into_inner().uid)?;
        let replicas = vec![self.own_replica(uid).await?];
        Ok(Response::new(v1::ReplicaStatusResponse { replicas }))
    }

    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        let caller = CancellationToken::new();
        let _gone = caller.clone().drop_guard();
        let work = |admin: Self| async move { admin.create_for(request, &caller).await };
        let made = whole(self, work).await;
        told("create", &name, made.map(|v| v1::CreateVolumeResponse { volume: Some(v) }))
    }

    async fn list_volumes(
        &self,
        _: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let survey = self.survey_all().await?;
        let volumes = self.look_at_all(&survey).await?;
        Ok(Response::new(v1::ListVolumesResponse { volumes }))
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::GetVolumeResponse>, Status> {
        let request = request.into_inner();
        let name = names::volume_name(&request.name)?;
        let volume = Some(self.look_at(name).await?);
        Ok(Response::new(v1::GetVolumeResponse { volume }))
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let own = name.clone();
        let deleted = whole(self, |admin| async move { admin.delete(&own).await }).await;
        let answer = deleted
            .map(|(existed, pending_nodes)| v1::DeleteVolumeResponse { existed, pending_nodes });
        told("delete", &name, answer)
    }

    async fn add_replica(
        &self,
        request: Request<v1::AddReplicaRequest>,
    ) -> Result<Response<v1::AddReplicaResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let name = request.name.clone();
        let answer = async {
            let rid = self.add_replica(request, passed_on).await?.to_string();
            let volume = Some(self.look_at(&name).await?);
            Ok(v1::AddReplicaResponse { rid, volume })
        };
        told("add replica", &name, answer.await)
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let request = request.into_inner();
        let name = request.name.clone();
        told("attach", &name, self.attach(request).await)
    }

    async fn detach(
        &self,
        request: Request<v1::DetachRequest>,
    ) -> Result<Response<v1::DetachResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let name = request.name.clone();
        let detached = self.detach(request, passed_on).await;
        let answer = detached.map(|was_attached| v1::DetachResponse { was_attached });
        told("detach", &name, answer)
    }

    async fn fence_volume(
        &self,
        request: Request<v1::FenceVolumeRequest>,
    ) -> Result<Response<v1::FenceVolumeResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let name = request.name.clone();
        let fenced =
            whole(self, |admin| async move { admin.fence_volume(request, passed_on).await });
        told("fence", &name, fenced.await)
    }

    async fn set_volume(
        &self,
        request: Request<v1::SetVolumeRequest>,
    ) -> Result<Response<v1::SetVolumeResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let name = request.name.clone();
        let answer = async {
            let pending = self.set_volume(request, passed_on).await?;
            let volume = Some(self.look_at(&name).await?);
            Ok(v1::SetVolumeResponse { volume, pending })
        };
        told("set", &name, answer.await)
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::ResizeVolumeResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let name = request.name.clone();
        let resized =
            whole(self, |admin| async move { admin.resize_volume(&request, passed_on).await });
        told("resize", &name, resized.await)
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::Snapshot>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let name = request.name.clone();
        let taken =
            whole(self, |admin| async move { admin.create_snapshot(&request, passed_on).await });
        told("snapshot", &name, taken.await)
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::DeleteSnapshotResponse>, Status> {
        let name = request.into_inner().name;
        let own = name.clone();
        let existed = whole(self, |admin| async move { admin.delete_snapshot(&own).await }).await;
        let answer = existed.map(|existed| v1::DeleteSnapshotResponse { existed });
        told("delete snapshot", &name, answer)
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        let snapshots = self.list_snapshots(&request.into_inner()).await?;
        Ok(Response::new(v1::ListSnapshotsResponse { snapshots }))
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Result<Response<v1::GetSnapshotResponse>, Status> {
        Ok(Response::new(self.look_at_snapshot(&request.into_inner().name).await?))
    }

    async fn drop_snapshot(
        &self,
        request: Request<v1::DropSnapshotRequest>,
    ) -> Result<Response<v1::DropSnapshotResponse>, Status> {
        let request = request.into_inner();
        let existed = self.drop_own_snapshot(&request).await;
        let answer = existed.map(|existed| v1::DropSnapshotResponse { existed });
        told("drop snapshot", &request.uid, answer)
    }

    async fn recover_volume(
        &self,
        request: Request<v1::RecoverVolumeRequest>,
    ) -> Result<Response<v1::RecoverVolumeResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let answer = async {
            let losses = self.recover_volume(&request, passed_on).await?;
            let volume = Some(self.look_at(&request.name).await?);
            Ok(v1::RecoverVolumeResponse { losses, volume })
        };
        told("recover", &request.name, answer.await)
    }

    async fn scrub_volume(
        &self,
        request: Request<v1::ScrubVolumeRequest>,
    ) -> Result<Response<v1::ScrubVolumeResponse>, Status> {
        let passed_on = was_passed_on(&request);
        let request = request.into_inner();
        let answer = async {
            self.scrub_volume(&request, passed_on).await?;
            let volume = Some(self.look_at(&request.name).await?);
            Ok(v1::ScrubVolumeResponse { volume })
        };
        told("scrub", &request.name, answer.await)
    }

    async fn label_nodes(
        &self,
        request: Request<v1::LabelNodesRequest>,
    ) -> Result<Response<v1::LabelNodesResponse>, Status> {
        let request = request.into_inner();
        told("label nodes", "", self.label_nodes(&request).await)
    }

    async fn explain_volume(
        &self,
        request: Request<v1::ExplainVolumeRequest>,
    ) -> Result<Response<v1::ExplainVolumeResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.explain_volume(&request.name).await?))
    }

    async fn what_if_node_down(
        &self,
        request: Request<v1::WhatIfNodeDownRequest>,
    ) -> Result<Response<v1::WhatIfNodeDownResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.what_if_node_down(&request.node).await?))
    }

    async fn forget_pool(
        &self,
        request: Request<v1::ForgetPoolRequest>,
    ) -> Result<Response<v1::ForgetPoolResponse>, Status> {
        let request = request.into_inner();
        let existed = self.forget_pool(&request).await;
        let answer = existed.map(|existed| v1::ForgetPoolResponse { existed });
        told("forget pool", &request.pool, answer)
    }

    async fn evacuate_node(
        &self,
        request: Request<v1::EvacuateNodeRequest>,
    ) -> Result<Response<v1::EvacuateNodeResponse>, Status> {
        let request = request.into_inner();
        let name = request.node.clone();
        let copies = self.evacuate_node(request).await;
        told("evacuate node", &name, copies.map(|copies| v1::EvacuateNodeResponse { copies }))
    }

    async fn cordon_node(
        &self,
        request: Request<v1::CordonNodeRequest>,
    ) -> Result<Response<v1::CordonNodeResponse>, Status> {
        let request = request.into_inner();
        let name = request.node.clone();
        let noted = self.cordon_node(request).await;
        told("cordon node", &name, noted.map(|()| v1::CordonNodeResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let request = request.into_inner();
        let name = request.node.clone();
        let removed = self.remove_node(request).await;
        let answer = removed.map(|(existed, volumes)| v1::RemoveNodeResponse { existed, volumes });
        told("remove node", &name, answer)
    }

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let mut survey = self.survey_all().await?;
        self.mark_labels(&mut survey).await?;
        let volumes = self.look_at_all(&survey).await?;
        let (nodes, node) = (survey.into_values().collect(), self.inner.node.to_string());
        Ok(Response::new(v1::StatusResponse { nodes, volumes, node }))
    }
}
