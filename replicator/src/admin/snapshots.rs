//! Snapshots (D1): taken by the volume's primary, listed, and removed.
//!
//! What is written down comes first: the object of a snapshot is there before any copy of it is
//! made, and a note for each node before a copy is removed or given up. So whatever breaks off, the
//! next call or the nodes themselves finish it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;
use lockstep_core::id::{NodeId, SnapshotId};
use lockstep_core::primary::{self, Task, TaskDone};
use lockstep_proto::v1;
use tonic::{Code, Status};

use super::catalog::{Dropped, SnapshotObject, Stage, Stored, VolumeObject};
use super::moment::Seat;
use super::peers::{DO_LIMIT, at, pass_on, plain, within};
use super::{Admin, names, refuse};

/// How long all of it may take: more than the primary gives up after.
const LIMIT: Duration = Duration::from_secs(120);
/// Attempts at a snapshot that somebody else's change, or a slow disk, broke off.
const ATTEMPTS: u32 = 4;
/// Pause before the next one.
const PAUSE: Duration = Duration::from_millis(250);
/// A copy that was given up may still come: the note for its node is kept for so long.
const LATE_MS: u64 = 300_000;
/// Names of snapshots that are taken for a volume begin so; no caller can choose such a name.
const FOR_VOLUME: &str = ".for-";

/// Whether a snapshot names a node as one that has a copy.
enum Claim {
    Named,
    /// It is still being taken.
    Undecided,
    None,
}

/// Milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The name of the snapshot that a volume is made from, if it is made from a volume.
pub(super) fn taken_for(volume: &str) -> String {
    format!("{FOR_VOLUME}{volume}")
}

/// A snapshot, as told to others.
pub(super) fn shown(object: SnapshotObject) -> v1::Snapshot {
    v1::Snapshot {
        uid: object.uid.to_string(),
        name: object.name,
        volume: object.volume,
        volume_uid: object.volume_uid.to_string(),
        size_bytes: object.size_bytes,
        created_unix_ms: object.created_unix_ms,
        ready: object.stage == Stage::Ready,
        nodes: object.nodes.iter().map(ToString::to_string).collect(),
        pool: object.pool,
        pause_us: object.pause_us,
    }
}

impl Admin {
    /// Takes a snapshot of a volume, or finds that it is there.
    pub(super) async fn create_snapshot(
        &self,
        request: &v1::CreateSnapshotRequest,
        passed_on: bool,
    ) -> Result<v1::Snapshot, Status> {
        let made_for = Some(request.made_for.as_str()).filter(|made_for| !made_for.is_empty());
        let name = match made_for {
            Some(made_for) => taken_for(names::volume_name(made_for)?),
            None => names::volume_name(&request.name)?.to_owned(),
        };
        let (name, volume) = (name.as_str(), names::volume_name(&request.volume)?);
        if let Some(there) = self.finished_snapshot(name, volume).await? {
            return Ok(shown(there));
        }
        let volume = self.ready_volume(volume).await?;
        let seat = self.seat(&volume).await?;
        if let Seat::There(node) = &seat {
            if passed_on {
                return Err(Status::aborted(format!(
                    "volume {} has just moved to {node}; try again",
                    volume.name
                )));
            }
            let object = self.inner.catalog.known_node(node).await?;
            let asked = within(LIMIT, async {
                let mut client = self.inner.peers.client(&object)?;
                Ok(client.create_snapshot(pass_on(request.clone(), LIMIT)).await?.into_inner())
            });
            return asked.await.map_err(|status| at(node, &status));
        }
        self.take_snapshot(name, &volume, made_for).await.map(shown)
    }

    /// The snapshot, if it is there and whole.
    async fn finished_snapshot(
        &self,
        name: &str,
        volume: &str,
    ) -> Result<Option<SnapshotObject>, Status> {
        let Some(found) = self.inner.catalog.snapshot(name).await? else { return Ok(None) };
        let there = found.value;
        let now = self.inner.catalog.volume(volume).await?.map(|stored| stored.value.uid);
        let earlier = now.is_some_and(|uid| uid != there.volume_uid);
        if there.volume != volume || earlier {
            let which = if there.volume == volume { "an earlier volume" } else { "volume" };
            return Err(Status::already_exists(format!(
                "snapshot {name} is there already, of {which} {}; choose another name",
                there.volume
            )));
        }
        match there.stage {
            Stage::Ready => Ok(Some(there)),
            Stage::Creating => Ok(None),
            Stage::Deleting => Err(Status::aborted(format!(
                "snapshot {name} is being deleted; wait until it is gone"
            ))),
        }
    }

    /// Takes a snapshot through the primary here, again if it was broken off by others.
    pub(super) async fn take_snapshot(
        &self,
        name: &str,
        volume: &VolumeObject,
        made_for: Option<&str>,
    ) -> Result<SnapshotObject, Status> {
        let mut attempt = 1;
        loop {
            match self.try_snapshot(name, volume, made_for).await {
                Err(status) if status.code() == Code::Aborted && attempt < ATTEMPTS => {
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
            if let Some(there) = self.finished_snapshot(name, &volume.name).await? {
                return Ok(there);
            }
        }
    }

    async fn try_snapshot(
        &self,
        name: &str,
        volume: &VolumeObject,
        made_for: Option<&str>,
    ) -> Result<SnapshotObject, Status> {
        let record = self.record_of(volume).await?;
        let nodes: Vec<NodeId> = record.replicas.iter().map(|r| r.node.clone()).collect();
        let mut object = SnapshotObject::new(name, volume, nodes);
        (object.made_for, object.created_unix_ms) = (made_for.map(str::to_owned), unix_ms());
        let found = self.inner.catalog.snapshot(name).await?;
        if let Some(left) = &found {
            if left.value.stage != Stage::Creating {
                let why =
                    format!("snapshot {name} was taken or deleted by another call; try again");
                return Err(Status::aborted(why));
            }
            // An attempt that broke off, or is under way elsewhere: its copies are not this one's.
            self.note_dropped(&left.value).await?;
        }
        self.inner.catalog.put_snapshot(found.map(|left| left.revision), &object).await?;
        let seat = self.seat(volume).await?;
        if let Seat::There(node) = &seat {
            return Err(Status::aborted(format!(
                "volume {} has just moved to {node}; try again",
                volume.name
            )));
        }
        let task = Task::Snapshot { id: object.uid };
        let taken = match self.task_here(volume, seat, task).await {
            Ok(TaskDone::Snapshot(taken)) => taken,
            Ok(TaskDone::Resized { .. }) => {
                return Err(Status::internal("another task was answered"));
            }
            Err(status) => {
                self.give_up_snapshot(&object).await;
                return Err(status);
            }
        };
        self.finish_snapshot(volume, object, &taken).await
    }

    /// Writes down that a snapshot is whole.
    pub(super) async fn finish_snapshot(
        &self,
        volume: &VolumeObject,
        begun: SnapshotObject,
        taken: &primary::Snapshot,
    ) -> Result<SnapshotObject, Status> {
        let record = self.record_of(volume).await?;
        let node = |rid| record.replica(rid).map(|r| r.node.clone());
        let nodes: Vec<NodeId> = taken.replicas.iter().filter_map(|rid| node(*rid)).collect();
        let mut done = begun.clone().at(Stage::Ready);
        (done.size_bytes, done.r#gen) = (names::bytes(taken.blocks), taken.r#gen);
        (done.created_unix_ms, done.pause_us) = (unix_ms(), taken.pause_us);
        done.nodes = nodes;
        let found = self.inner.catalog.snapshot(&begun.name).await?;
        let same = found.filter(|f| f.value.uid == begun.uid && f.value.stage == Stage::Creating);
        let put = match same {
            Some(found) => self.inner.catalog.put_snapshot(Some(found.revision), &done).await,
            None => {
                Err(Status::aborted("another call took or deleted it at the same time; try again"))
            }
        };
        if let Err(status) = put {
            // If it was written after all, the notes are found out to be wrong by the nodes.
            self.give_up_snapshot(&begun).await;
            return Err(status);
        }
        tracing::info!(
            snapshot = done.name,
            volume = done.volume,
            pause_us = done.pause_us,
            drain_us = taken.drain_us,
            "a snapshot was taken"
        );
        Ok(done)
    }

    /// Notes for every node that may have a copy of this attempt that it is to remove it.
    async fn note_dropped(&self, object: &SnapshotObject) -> Result<(), Status> {
        for node in object.whereabouts() {
            self.note_dropped_on(object, node).await?;
        }
        Ok(())
    }

    /// Notes for a node that it is to remove what it has of this attempt.
    pub(super) async fn note_dropped_on(
        &self,
        object: &SnapshotObject,
        node: &NodeId,
    ) -> Result<(), Status> {
        let catalog = &self.inner.catalog;
        catalog.put_dropped(node, object.uid, &object.name, unix_ms()).await
    }

    /// An attempt failed: nothing of it is left.
    async fn give_up_snapshot(&self, object: &SnapshotObject) {
        let outcome = async {
            self.note_dropped(object).await?;
            self.forget_snapshot(object, Stage::Creating).await
        };
        if let Err(status) = outcome.await {
            let (snapshot, why) = (&object.name, plain(&status));
            tracing::warn!(snapshot, why, "an attempt at a snapshot is left; delete it");
        }
    }

    /// Forgets a snapshot, unless another call has taken it over meanwhile.
    pub(super) async fn forget_snapshot(
        &self,
        object: &SnapshotObject,
        at: Stage,
    ) -> Result<(), Status> {
        let Some(found) = self.inner.catalog.snapshot(&object.name).await? else { return Ok(()) };
        if found.value.uid != object.uid || found.value.stage != at {
            return Ok(());
        }
        self.inner.catalog.delete_snapshot(&object.name, found.revision).await
    }

    /// Removes a snapshot. Returns whether there was one.
    pub(super) async fn delete_snapshot(&self, name: &str) -> Result<bool, Status> {
        names::volume_name(name)?;
        self.remove_snapshot(name).await
    }

    pub(super) async fn remove_snapshot(&self, name: &str) -> Result<bool, Status> {
        let Some(found) = self.inner.catalog.snapshot(name).await? else { return Ok(false) };
        let object = found.value;
        if object.stage != Stage::Deleting {
            let next = object.clone().at(Stage::Deleting);
            self.inner.catalog.put_snapshot(Some(found.revision), &next).await?;
        }
        self.note_dropped(&object).await?;
        join_all(object.whereabouts().map(|node| self.drop_copy(&object, node))).await;
        self.forget_snapshot(&object, Stage::Deleting).await?;
        tracing::info!(snapshot = name, "deleted");
        Ok(true)
    }

    /// Has a node remove its copy now; if it can't be reached, it does when it is back.
    async fn drop_copy(&self, object: &SnapshotObject, node: &NodeId) {
        let request = v1::DropSnapshotRequest { uid: object.uid.to_string() };
        let dropped = async {
            let note = self.inner.catalog.dropped_note(node, object.uid).await?;
            if *node == self.inner.node {
                self.drop_own_snapshot(&request).await?;
            } else {
                let there = self.inner.catalog.known_node(node).await?;
                within(DO_LIMIT, async {
                    let mut client = self.inner.peers.client(&there)?;
                    client.drop_snapshot(pass_on(request, DO_LIMIT)).await.map(drop)
                })
                .await?;
            }
            // One that is ready is whole: no copy of it comes later, but where one is made anew.
            if object.stage == Stage::Creating || object.making.contains(node) {
                return Ok(());
            }
            match note {
                Some(note) => self.inner.catalog.delete_dropped(node, &note).await,
                None => Ok(()),
            }
        };
        if let Err(status) = dropped.await {
            let (snapshot, why) = (&object.name, plain(&status));
            tracing::warn!(snapshot, %node, why, "a copy of it is not removed yet");
        }
    }

    /// Removes this node's copy of a snapshot.
    pub(super) async fn drop_own_snapshot(
        &self,
        request: &v1::DropSnapshotRequest,
    ) -> Result<bool, Status> {
        let uid = names::snapshot_uid(&request.uid)?;
        self.stop_remake(uid);
        self.inner.engine.drop_snapshot(uid).await.map_err(|e| refuse::engine(&e))
    }

    /// All snapshots, or those of one volume, or one.
    pub(super) async fn list_snapshots(
        &self,
        request: &v1::ListSnapshotsRequest,
    ) -> Result<Vec<v1::Snapshot>, Status> {
        let volume = request.volume.as_str();
        if !volume.is_empty() {
            names::volume_name(volume)?;
        }
        let mut all = match request.name.as_str() {
            "" => self.inner.catalog.snapshots().await?,
            name => {
                let found = self.inner.catalog.snapshot(names::volume_name(name)?).await?;
                found.map(|stored| stored.value).into_iter().collect()
            }
        };
        all.retain(|snapshot| snapshot.made_for.is_none() && snapshot.stage != Stage::Deleting);
        all.retain(|snapshot| volume.is_empty() || snapshot.volume == volume);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all.into_iter().map(shown).collect())
    }

    /// Removes this node's copies of snapshots that are gone or were given up.
    pub(super) async fn remove_dropped(&self) -> Result<(), Status> {
        for note in self.inner.catalog.dropped(&self.inner.node).await? {
            // One that can't be removed now is in the way of no other.
            if let Err(status) = self.remove_dropped_one(&note).await {
                let (snapshot, why) = (&note.value.snapshot_name, plain(&status));
                tracing::warn!(snapshot, why, "cannot remove a copy that is to go");
            }
        }
        Ok(())
    }

    async fn remove_dropped_one(&self, note: &Stored<Dropped>) -> Result<(), Status> {
        let (catalog, own) = (&self.inner.catalog, &self.inner.node);
        let Dropped { uid, snapshot_name, unix_ms: since, .. } = &note.value;
        match self.claim_of(snapshot_name, *uid).await? {
            // It was finished after all.
            Claim::Named => return catalog.delete_dropped(own, note).await,
            // Whoever wrote the note has not taken it over, or given it up, yet.
            Claim::Undecided => return Ok(()),
            Claim::None => {}
        }
        self.stop_remake(*uid);
        let dropped = self.inner.engine.drop_snapshot(*uid).await;
        let existed = dropped.map_err(|e| refuse::engine(&e))?;
        if existed || unix_ms().saturating_sub(*since) > LATE_MS {
            catalog.delete_dropped(own, note).await?;
        }
        Ok(())
    }

    /// Is this node to have a copy of this attempt at a snapshot?
    async fn claim_of(&self, name: &str, uid: SnapshotId) -> Result<Claim, Status> {
        let found = self.inner.catalog.snapshot(name).await?.map(|stored| stored.value);
        let own = &self.inner.node;
        Ok(match found.filter(|found| found.uid == uid) {
            Some(there) if there.stage == Stage::Creating => Claim::Undecided,
            Some(there) if there.stage == Stage::Ready && there.whereabouts().any(|n| n == own) => {
                Claim::Named
            }
            Some(_) | None => Claim::None,
        })
    }

    /// Removes snapshots that were taken for volumes which are made by now, or gone.
    pub(super) async fn remove_used_up(&self) -> Result<(), Status> {
        for snapshot in self.inner.catalog.snapshots().await? {
            let Some(volume) = &snapshot.made_for else { continue };
            let in_use = match self.inner.catalog.volume(volume).await? {
                Some(found) => found.value.stage == Stage::Creating,
                // The volume may be about to be begun.
                None => {
                    let fresh = unix_ms().saturating_sub(snapshot.created_unix_ms) < LATE_MS;
                    fresh && snapshot.stage != Stage::Deleting
                }
            };
            if !in_use {
                self.remove_snapshot(&snapshot.name).await?;
            }
        }
        Ok(())
    }
}
