//! What a node does for itself now and then: it introduces itself, removes replicas that are
//! gone, and reports replicas that nobody knows.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lockstep_core::id::ReplicaId;
use lockstep_proto::v1;
use tonic::Status;

use super::Admin;
use super::catalog::NodeObject;
use super::peers::{ASK_LIMIT, plain, within};
use super::pools::known_pools;
use super::snapshots::unix_ms;
use crate::engine::ReplicaState;

const PAUSE: Duration = Duration::from_secs(2);
/// How long a record may take to name a copy that was made for it.
const LATE_MS: u64 = 300_000;
/// How often, in pauses, unknown replicas are looked for.
const UNKNOWN_EVERY: u32 = 30;

impl Admin {
    /// Introduces this node to the cluster.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if another living daemon has this node's name; DATA_LOSS if a pool is
    /// another one than the node had; else the record store's.
    pub async fn introduce(&self) -> Result<(), Status> {
        let mut own = NodeObject::new(
            self.inner.node.clone(),
            self.inner.addresses.peer.clone(),
            self.inner.addresses.admin.clone(),
            self.inner.process,
        );
        let pools = self.inner.engine.pools().await;
        let there = self.inner.catalog.node(&own.name).await?;
        if let Some(there) = &there
            && there.process != own.process
            && there.admin_address != own.admin_address
        {
            self.refuse_twin(there).await?;
        }
        own.pool_uuids = known_pools(there.as_ref(), &pools)?;
        own.pools = pools.into_iter().map(|pool| pool.name).collect();
        own.zone.clone_from(&self.inner.zone);
        own.labels.clone_from(&self.inner.labels);
        self.inner.catalog.put_node(&own).await?;
        self.inner.introduced.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Has it joined the cluster? Until then nobody knows whether its pools are the right ones.
    pub(super) fn is_introduced(&self) -> bool {
        self.inner.introduced.load(Ordering::SeqCst)
    }

    /// What keeps it from joining, for those who ask.
    pub fn waits_for(&self, why: &str) {
        self.set_not_ready(why);
    }

    /// Fails if the daemon that introduced itself under this node's name is alive.
    async fn refuse_twin(&self, there: &NodeObject) -> Result<(), Status> {
        let answer = within(ASK_LIMIT, async {
            let mut client = self.inner.peers.client(there)?;
            Ok(client.get_node(v1::GetNodeRequest::default()).await?.into_inner().node)
        });
        match answer.await {
            Ok(Some(node)) if node.name == there.name.as_str() => {
                Err(Status::failed_precondition(format!(
                    "another daemon, at {}, is node {} already; give each node its own name",
                    there.admin_address, there.name
                )))
            }
            _ => Ok(()),
        }
    }

    /// Keeps house until the daemon stops.
    pub(super) async fn keep_house(self) {
        let mut unknown = BTreeSet::new();
        let mut told = BTreeSet::new();
        let mut round: u32 = 0;
        loop {
            match self.keep_house_once().await {
                Ok(()) => self.set_ready(),
                Err(status) => self.set_not_ready(&plain(&status)),
            }
            if round.is_multiple_of(UNKNOWN_EVERY) {
                if let Err(status) = self.remove_used_up().await {
                    tracing::debug!(why = plain(&status), "snapshots are looked at later");
                }
                unknown = self.report_unknown(&unknown, &mut told).await;
            }
            round = round.wrapping_add(1);
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    pub(super) async fn keep_house_once(&self) -> Result<(), Status> {
        self.introduce().await?;
        self.remove_dropped().await?;
        for gone in self.inner.catalog.gone(&self.inner.node).await? {
            let record = self.inner.catalog.record(gone.uid).await?.map(|stored| stored.value);
            let mut here = record.iter().flat_map(|r| &r.replicas);
            if here.any(|r| r.rid == gone.rid || r.node == self.inner.node) {
                // It came back into force, since an undecided change was made after all; or
                // another one was made in its place, which only happens once it is removed.
                self.inner.catalog.delete_gone(&self.inner.node, gone.rid).await?;
                continue;
            }
            if record.is_some() && unix_ms().saturating_sub(gone.begun_unix_ms) < LATE_MS {
                // The record may be about to name it.
                continue;
            }
            let request = v1::DeleteReplicaRequest {
                uid: gone.uid.to_string(),
                rid: gone.rid.to_string(),
                force: true,
            };
            match self.delete_own_replica(&request).await {
                Ok(existed) => {
                    if existed {
                        let volume = gone.volume_name;
                        tracing::info!(volume, replica = %gone.rid, "removed a stale copy");
                    }
                    self.inner.catalog.delete_gone(&self.inner.node, gone.rid).await?;
                }
                Err(status) => {
                    let why = status.message();
                    tracing::warn!(why, replica = %gone.rid, "cannot remove a stale copy");
                }
            }
        }
        Ok(())
    }

    /// Logs, once each, replicas that no record names at two looks in a row. Returns those of this
    /// look. They are kept: their record may be restored.
    async fn report_unknown(
        &self,
        before: &BTreeSet<ReplicaId>,
        told: &mut BTreeSet<ReplicaId>,
    ) -> BTreeSet<ReplicaId> {
        let mut unknown = BTreeSet::new();
        for replica in self.inner.engine.list_replicas().await {
            let ReplicaState::Open(open) = &replica.state else { continue };
            let Ok(record) = self.inner.catalog.record(replica.volume).await else { continue };
            if record.is_some_and(|stored| stored.value.replica(open.replica).is_some()) {
                continue;
            }
            unknown.insert(open.replica);
            if before.contains(&open.replica) && told.insert(open.replica) {
                tracing::warn!(
                    volume = replica.volume_name,
                    replica = %open.replica,
                    dir = %replica.dir.display(),
                    "no record names this replica; it is kept, delete it if it is not needed"
                );
            }
        }
        unknown
    }
}
