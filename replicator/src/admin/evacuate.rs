//! Nodes that leave: emptied while they run, or forgotten when they are gone.

use std::collections::BTreeSet;

use futures::future::join_all;
use lockstep_core::id::NodeId;
use lockstep_core::record::{Record, ReplicaState};
use lockstep_proto::v1;
use tonic::Status;

use super::catalog::{SnapshotObject, VolumeObject};
use super::peers::ASK_LIMIT;
use super::survey::Survey;
use super::{Admin, names};

impl Admin {
    /// Begins to move all copies away from a node, or stops it; tells what is still there.
    pub(super) async fn evacuate_node(
        &self,
        request: v1::EvacuateNodeRequest,
    ) -> Result<Vec<v1::CopyOnNode>, Status> {
        let node = names::node(&request.node)?;
        self.inner.catalog.known_node(&node).await?;
        if request.undo {
            self.inner.catalog.delete_evacuation(&node).await?;
            tracing::info!(%node, "it is not emptied any more");
        } else {
            self.inner.catalog.put_evacuation(&node).await?;
            tracing::info!(%node, "it is being emptied");
        }
        self.copies_on(&node).await
    }

    /// What is still on a node, with what is being done about it.
    async fn copies_on(&self, node: &NodeId) -> Result<Vec<v1::CopyOnNode>, Status> {
        let survey = self.survey_all().await?;
        let mut copies = Vec::new();
        for volume in self.look_at_all(&survey).await? {
            let attached = volume.primary_node.as_deref() == Some(node.as_str());
            let Some(copy) = volume.replicas.iter().find(|r| r.node == node.as_str()) else {
                continue;
            };
            copies.push(v1::CopyOnNode {
                volume: volume.name.clone(),
                state: copy.state,
                progress: progress(&volume, copy, &survey),
                attached,
                snapshot: String::new(),
            });
        }
        let snapshots = self.inner.catalog.snapshots().await?;
        let there = |s: &&SnapshotObject| s.made_for.is_none() && s.nodes.contains(node);
        copies.extend(snapshots.iter().filter(there).map(kept));
        Ok(copies)
    }

    /// Forgets a node that is gone. Returns whether there was one, and the volumes that had a copy
    /// there.
    pub(super) async fn remove_node(
        &self,
        request: v1::RemoveNodeRequest,
    ) -> Result<(bool, Vec<String>), Status> {
        let name = names::node(&request.node)?;
        let Some(node) = self.inner.catalog.node(&name).await? else {
            return Ok((false, Vec::new()));
        };
        let copies = self.volumes_on(&name).await?;
        if self.ask_one(&node, ASK_LIMIT).await.live {
            let what = match copies.len() {
                0 => format!("stop its daemon, then remove it: node {name} would come back"),
                n => format!("first empty it, it has {n} copies: lockstep node evacuate {name}"),
            };
            return Err(Status::failed_precondition(format!("node {name} is running; {what}")));
        }
        if !request.force {
            self.refuse_last_copies(&name, &copies).await?;
        }
        self.inner.catalog.delete_node(&name).await?;
        self.inner.catalog.delete_evacuation(&name).await?;
        self.inner.catalog.delete_cordon(&name).await?;
        self.inner.catalog.delete_labels(&name).await?;
        let volumes: Vec<String> = copies.into_iter().map(|(volume, _)| volume.name).collect();
        tracing::info!(node = %name, ?volumes, "the node is forgotten");
        Ok((true, volumes))
    }

    /// Volumes with a copy on a node, and their records.
    async fn volumes_on(&self, node: &NodeId) -> Result<Vec<(VolumeObject, Record)>, Status> {
        let objects = self.inner.catalog.volumes().await?;
        let records = join_all(objects.iter().map(|o| self.inner.catalog.record(o.uid))).await;
        let mut found = Vec::new();
        for (object, record) in objects.into_iter().zip(records) {
            if let Some(stored) = record?
                && stored.value.replicas.iter().any(|r| r.node == *node)
            {
                found.push((object, stored.value));
            }
        }
        Ok(found)
    }

    /// Fails if the node holds a copy with all data that no other node that answers has.
    async fn refuse_last_copies(
        &self,
        node: &NodeId,
        copies: &[(VolumeObject, Record)],
    ) -> Result<(), Status> {
        let others = |record: &Record| {
            let in_sync: Vec<NodeId> = record.in_sync().map(|r| r.node.clone()).collect();
            in_sync
        };
        let nodes: BTreeSet<NodeId> = copies.iter().flat_map(|(_, r)| others(r)).collect();
        let survey = self.survey_some(&nodes).await?;
        let live = |name: &NodeId| survey.get(name.as_str()).is_some_and(|status| status.live);
        let last = |(_, record): &&(VolumeObject, Record)| {
            let here = record.in_sync().any(|r| r.node == *node);
            here && !record.in_sync().any(|r| r.node != *node && live(&r.node))
        };
        let last: Vec<&str> = copies.iter().filter(last).map(|(v, _)| v.name.as_str()).collect();
        if last.is_empty() {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "no other node that answers has all data of {}; bring node {node} or another one with \
             a copy back; or remove it by force: its copies are then lost",
            last.join(", ")
        )))
    }
}

/// A copy of a snapshot on a node that is being emptied.
fn kept(snapshot: &SnapshotObject) -> v1::CopyOnNode {
    let progress = match snapshot.making.first() {
        Some(node) => format!("another copy is being made on {node}"),
        None => "another copy will be made first, if there is a node for it".to_owned(),
    };
    v1::CopyOnNode {
        volume: snapshot.volume.clone(),
        state: v1::ReplicaState::InSync.into(),
        progress,
        attached: false,
        snapshot: snapshot.name.clone(),
    }
}

/// What is being done about a copy on a node that is being emptied.
fn progress(volume: &v1::VolumeStatus, copy: &v1::VolumeReplica, survey: &Survey) -> String {
    if copy.state == i32::from(v1::ReplicaState::Leaving) {
        return "it has left and is being removed".to_owned();
    }
    let name = &volume.name;
    if volume.primary_node.is_none() {
        return format!("copies are moved while the volume is attached: lockstep attach {name}");
    }
    let building = volume.replicas.iter().find_map(|r| Some((r, r.resync.as_ref()?)));
    if let Some((target, resync)) = building {
        let percent = match u128::from(resync.total_bytes) {
            0 => 0,
            total => (u128::from(resync.done_bytes) * 100 / total).min(100),
        };
        return format!("another copy is being built on {}, {percent} %", target.node);
    }
    let primary = volume.primary_node.as_deref().and_then(|node| survey.get(node));
    let primaries = primary.and_then(|node| node.info.as_ref()).map(|info| &info.primaries);
    let local = primaries.and_then(|all| all.iter().find(|p| p.uid == volume.uid));
    match local.map(|p| p.copies_reason.as_str()) {
        Some("") | None => "another copy will be built first".to_owned(),
        Some(reason) => reason.to_owned(),
    }
}

/// Which nodes are being emptied, marked in what the nodes said.
pub(super) fn mark(survey: &mut Survey, evacuated: &BTreeSet<NodeId>) {
    for node in evacuated {
        if let Some(status) = survey.get_mut(node.as_str()) {
            status.evacuating = true;
        }
    }
}

/// Whether a record names a copy on one of these nodes that is not on its way out.
pub(super) fn concerns(record: &Record, evacuated: &BTreeSet<NodeId>) -> bool {
    let stays = |state: ReplicaState| state != ReplicaState::Leaving;
    record.replicas.iter().any(|r| stays(r.state) && evacuated.contains(&r.node))
}
