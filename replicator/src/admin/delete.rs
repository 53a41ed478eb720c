//! Unmaking a volume and its replicas.

use std::collections::BTreeMap;

use futures::future::join_all;
use lockstep_core::id::{NodeId, ReplicaId};
use lockstep_core::record::Record;
use lockstep_proto::v1;
use tonic::{Code, Status};

use super::Admin;
use super::catalog::{Stage, Stored, VolumeObject};
use super::liveness::{LOOK_LIMIT, Liveness};
use super::peers::{DO_LIMIT, pass_on, plain, within};
use super::snapshots::taken_for;

impl Admin {
    /// Removes a volume with all its data. Returns whether there was one, and which nodes are
    /// still to remove their replicas.
    pub(super) async fn delete(&self, name: &str) -> Result<(bool, Vec<String>), Status> {
        super::names::volume_name(name)?;
        let Some(found) = self.inner.catalog.volume(name).await? else {
            return Ok((false, Vec::new()));
        };
        let volume = found.value;
        let stored = self.inner.catalog.record(volume.uid).await?;
        let record = stored.as_ref().map(|stored| &stored.value);
        if let Some(record) = record {
            match self.liveness(record, LOOK_LIMIT).await? {
                Liveness::None | Liveness::Gone => {}
                Liveness::Live(why) => {
                    return Err(Status::failed_precondition(format!(
                        "volume {name} is attached: {why}; detach it first"
                    )));
                }
                Liveness::Unknown(why) => {
                    return Err(Status::unavailable(format!(
                        "volume {name} may be attached: {why}; bring one of them back, or detach \
                         it by force"
                    )));
                }
            }
        }
        if volume.stage != Stage::Deleting {
            let next = volume.clone().at(Stage::Deleting);
            self.inner.catalog.put_volume(Some(found.revision), &next).await?;
        }
        if let Some(stored) = &stored {
            self.seal(&volume, stored).await?;
        }
        let mut replicas: BTreeMap<ReplicaId, NodeId> = BTreeMap::new();
        replicas.extend(volume.placement.iter().map(|place| (place.rid, place.node.clone())));
        if let Some(record) = record {
            replicas.extend(record.replicas.iter().map(|r| (r.rid, r.node.clone())));
        }
        // Written down first: whatever happens from here on, each node learns what to remove.
        for (rid, node) in &replicas {
            self.inner.catalog.put_gone(node, volume.uid, *rid, name).await?;
        }
        self.inner.catalog.delete_record(volume.uid).await?;
        let removed =
            join_all(replicas.iter().map(|(rid, node)| self.remove_replica(&volume, node, *rid)));
        let mut pending: Vec<String> = removed.await.into_iter().flatten().collect();
        pending.sort();
        if volume.origin.is_some() {
            self.forget_taken_for(name).await;
        }
        self.inner.catalog.delete_volume(name).await?;
        tracing::info!(volume = name, uid = %volume.uid, ?pending, "deleted");
        Ok((true, pending))
    }

    /// Removes the snapshot that a call which was broken off may have taken for a volume once more.
    async fn forget_taken_for(&self, name: &str) {
        if let Err(status) = self.remove_snapshot(&taken_for(name)).await {
            tracing::warn!(volume = name, why = status.message(), "its source is removed later");
        }
    }

    /// Takes the primary that is gone out of the record, so that whoever is about to claim the
    /// volume finds the record changed. If it has changed itself since it was looked at, somebody
    /// has the volume by now, and it stays.
    pub(super) async fn seal(
        &self,
        volume: &VolumeObject,
        stored: &Stored<Record>,
    ) -> Result<(), Status> {
        let Err(status) = self.take_out(stored).await else { return Ok(()) };
        if status.code() != Code::Aborted {
            return Err(status);
        }
        if let Some(found) = self.inner.catalog.volume(&volume.name).await?
            && found.value.uid == volume.uid
        {
            let back = found.value.at(Stage::Ready);
            self.inner.catalog.put_volume(Some(found.revision), &back).await?;
        }
        Err(Status::aborted(format!(
            "volume {} was just attached, or changed; try again",
            volume.name
        )))
    }

    /// Has a node remove a replica that is written down as gone. Returns its name if it could not
    /// be reached; it removes the replica when it is back.
    pub(super) async fn remove_replica(
        &self,
        volume: &VolumeObject,
        node: &NodeId,
        rid: ReplicaId,
    ) -> Option<String> {
        let request = v1::DeleteReplicaRequest {
            uid: volume.uid.to_string(),
            rid: rid.to_string(),
            force: true,
        };
        let removed = async {
            if *node == self.inner.node {
                self.delete_own_replica(&request).await?;
            } else {
                let object = self.inner.catalog.known_node(node).await?;
                within(DO_LIMIT, async {
                    let mut client = self.inner.peers.client(&object)?;
                    client.delete_replica(pass_on(request, DO_LIMIT)).await.map(drop)
                })
                .await?;
            }
            self.inner.catalog.delete_gone(node, rid).await
        };
        match removed.await {
            Ok(()) => None,
            Err(status) => {
                tracing::warn!(%node, replica = %rid, why = plain(&status), "not removed yet");
                Some(node.to_string())
            }
        }
    }
}
