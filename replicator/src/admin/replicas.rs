//! Copies that come and go while a volume lives (T9).

use lockstep_core::cluster::placement::{Want, choose};
use lockstep_core::id::{NodeId, ReplicaId, VolumeId};
use lockstep_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use super::catalog::{Stage, VolumeObject};
use super::peers::{DO_LIMIT, pass_on, within};
use super::snapshots::unix_ms;
use super::survey::{Survey, candidates, copysets, evacuated};
use super::{Admin, names, recover, refuse};

/// Attempts against others who change the same record.
const ATTEMPTS: usize = 10;

impl Admin {
    /// Adds a copy to a volume. Returns its id.
    pub(super) async fn add_replica(
        &self,
        request: v1::AddReplicaRequest,
        passed_on: bool,
    ) -> Result<ReplicaId, Status> {
        let name = names::volume_name(&request.name)?;
        let found = self.inner.catalog.volume(name).await?;
        let volume = found.ok_or_else(|| refuse::no_volume(name))?.value;
        if volume.stage != Stage::Ready {
            let why =
                format!("volume {name} is being made or deleted; try again when that is done");
            return Err(Status::failed_precondition(why));
        }
        if !passed_on && let Some(rid) = self.add_there(&volume, &request).await? {
            return Ok(rid);
        }
        let node = match request.node.as_deref() {
            None | Some("") => None,
            Some(name) => Some(names::node(name)?),
        };
        self.add_here(&volume, node).await
    }

    /// Lets the node that has the volume attached add the copy, so that its primary knows at once.
    /// `None` if no other node has it, or that one cannot be reached.
    async fn add_there(
        &self,
        volume: &VolumeObject,
        request: &v1::AddReplicaRequest,
    ) -> Result<Option<ReplicaId>, Status> {
        let Some(record) = self.inner.catalog.record(volume.uid).await? else { return Ok(None) };
        let Some(primary) = record.value.primary else { return Ok(None) };
        if primary.node == self.inner.node {
            return Ok(None);
        }
        let Some(node) = self.inner.catalog.node(&primary.node).await? else { return Ok(None) };
        let answer = within(DO_LIMIT, async {
            let mut client = self.inner.peers.client(&node)?;
            Ok(client.add_replica(pass_on(request.clone(), DO_LIMIT)).await?.into_inner())
        });
        match answer.await {
            Ok(answer) => names::rid(&answer.rid).map(Some),
            Err(status) if status.code() == Code::Unavailable => Ok(None),
            Err(status) => Err(super::peers::at(&primary.node, &status)),
        }
    }

    /// Adds a copy to the record, on `node` or on the best one.
    pub(super) async fn add_here(
        &self,
        volume: &VolumeObject,
        node: Option<NodeId>,
    ) -> Result<ReplicaId, Status> {
        let record = self.inner.catalog.record(volume.uid).await?;
        let lost = || Status::failed_precondition(format!("volume {} has no record", volume.name));
        let record = record.ok_or_else(lost)?.value;
        if let Some(there) = record.replicas.iter().find(|r| Some(&r.node) == node.as_ref()) {
            return Ok(there.rid);
        }
        // A copy that this record does not name may be the newest one: nothing takes its place
        // before somebody has decided what is true.
        if let Some(why) = recover::warning(&volume.name, &record).filter(|_| record.put_back.0 > 0)
        {
            return Err(Status::failed_precondition(format!("volume {}: {why}", volume.name)));
        }
        let survey = self.survey_all().await?;
        let mut all = candidates(&survey, &volume.pool, &volume.spread);
        if let Some(node) = &node {
            self.inner.catalog.known_node(node).await?;
            all.retain(|candidate| candidate.node == *node);
        }
        let want = Want {
            bytes: names::bytes(record.blocks),
            copies: 1,
            pool: volume.pool.clone(),
            beside: record.replicas.iter().map(|r| r.node.clone()).collect(),
            exclude: evacuated(&survey),
            ..Want::default()
        };
        let chosen = choose(&want, &all, &copysets(&survey)).map_err(|error| {
            Status::failed_precondition(format!(
                "no node for another copy of volume {}: {error}",
                volume.name
            ))
        })?;
        let no_node = || Status::failed_precondition("there is no node for another copy");
        let node = chosen.into_iter().next().ok_or_else(no_node)?;
        self.clear_leftover(volume, &node, &survey).await?;
        let rid = ReplicaId(Uuid::new_v4());
        let request = v1::CreateReplicaRequest {
            uid: volume.uid.to_string(),
            rid: rid.to_string(),
            lineage: record.lineage.to_string(),
            size_bytes: want.bytes,
            pool: volume.pool.clone(),
            volume_name: volume.name.clone(),
            snapshot_uid: String::new(),
            thick: volume.thick,
        };
        let made = self.make_named(volume, &node, rid, request).await?;
        if made == rid {
            tracing::info!(volume = volume.name, %node, replica = %rid, "a copy was added");
            self.inner.engine.record_changed(volume.uid);
        }
        Ok(made)
    }

    /// Makes a copy and names it in the record. Returns the copy that is on record for the node.
    async fn make_named(
        &self,
        volume: &VolumeObject,
        node: &NodeId,
        rid: ReplicaId,
        request: v1::CreateReplicaRequest,
    ) -> Result<ReplicaId, Status> {
        let catalog = &self.inner.catalog;
        // Written down first: whoever makes it may die before a record names it.
        catalog.put_begun(node, volume.uid, rid, &volume.name, unix_ms()).await?;
        self.create_replica_on(node, request).await?;
        match self.enter(volume, node, rid).await {
            Ok(entered) if entered == rid => {}
            outcome => {
                // Somebody else was first, or it failed: this copy is in no record.
                catalog.put_gone(node, volume.uid, rid, &volume.name).await?;
                self.remove_replica(volume, node, rid).await;
                return outcome;
            }
        }
        if let Err(status) = catalog.delete_gone(node, rid).await {
            // The node finds out by itself.
            tracing::debug!(why = status.message(), "a note of a copy stays for now");
        }
        Ok(rid)
    }

    /// Names a new copy in the record. Returns the copy that is on record for the node.
    async fn enter(
        &self,
        volume: &VolumeObject,
        node: &NodeId,
        rid: ReplicaId,
    ) -> Result<ReplicaId, Status> {
        for _ in 0..ATTEMPTS {
            let Some(record) = self.inner.catalog.record(volume.uid).await? else {
                return Err(Status::failed_precondition("the volume was deleted meanwhile"));
            };
            if let Some(there) = record.value.replicas.iter().find(|r| r.node == *node) {
                return Ok(there.rid);
            }
            let pool = volume.pool.clone();
            let next = record.value.add_new(rid, node.clone(), pool, Uuid::new_v4());
            let next = next.map_err(|e| refuse::record(&e))?;
            match self.inner.catalog.put_record(Some(record.revision), &next).await {
                Ok(()) => return Ok(rid),
                // Changed by others, or undecided: the next look tells.
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::aborted(format!("others keep changing volume {}; try again", volume.name)))
    }

    /// Removes a replica of the volume that a node holds though no record names it: what is left
    /// of an attempt that broke off.
    async fn clear_leftover(
        &self,
        volume: &VolumeObject,
        node: &NodeId,
        survey: &Survey,
    ) -> Result<(), Status> {
        let uid = volume.uid.to_string();
        let info = survey.get(node.as_str()).and_then(|status| status.info.as_ref());
        let left = info.and_then(|info| info.replicas.iter().find(|r| r.uid == uid));
        let Some(rid) = left.and_then(|replica| names::rid(&replica.rid).ok()) else {
            return Ok(());
        };
        let record = self.inner.catalog.record(volume.uid).await?;
        if record.is_some_and(|stored| stored.value.replica(rid).is_some()) {
            return Ok(());
        }
        tracing::info!(volume = volume.name, %node, replica = %rid, "removing a leftover copy");
        self.inner.catalog.put_gone(node, volume.uid, rid, &volume.name).await?;
        self.remove_replica(volume, node, rid).await;
        Ok(())
    }

    /// Forgets a copy that is not in sync, and has its node remove it.
    pub(super) async fn forget(&self, volume: &VolumeObject, rid: ReplicaId) -> Result<(), Status> {
        let Some(record) = self.inner.catalog.record(volume.uid).await? else { return Ok(()) };
        let Some(entry) = record.value.replica(rid).cloned() else { return Ok(()) };
        let next = record.value.forget(rid, Uuid::new_v4()).map_err(|e| refuse::record(&e))?;
        self.inner.catalog.put_record(Some(record.revision), &next).await?;
        tracing::info!(volume = volume.name, node = %entry.node, replica = %rid,
            "one copy too many was forgotten");
        self.inner.engine.record_changed(volume.uid);
        self.inner.catalog.put_gone(&entry.node, volume.uid, rid, &volume.name).await?;
        self.remove_replica(volume, &entry.node, rid).await;
        Ok(())
    }

    /// The volume with this id.
    pub(super) async fn volume_of(&self, uid: VolumeId) -> Result<Option<VolumeObject>, Status> {
        let name = self.attached_name(uid);
        if let Some(name) = name
            && let Some(found) = self.inner.catalog.volume(&name).await?
            && found.value.uid == uid
        {
            return Ok(Some(found.value));
        }
        Ok(self.inner.catalog.volumes().await?.into_iter().find(|volume| volume.uid == uid))
    }
}
