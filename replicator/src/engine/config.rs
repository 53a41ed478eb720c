//! What an engine is started with.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use async_trait::async_trait;
use lockstep_core::id::{Lineage, NodeId, ReplicaId, SnapshotId, VolumeId};
use uuid::Uuid;

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The cluster; peers and pools of others are refused.
    pub cluster: Uuid,
    /// The node this process is.
    pub node: NodeId,
    /// Where peers connect to. Port 0 takes a free one; see [`super::Engine::peer_addr`].
    pub listen: SocketAddr,
    /// Where replicas are kept.
    pub pools: Vec<PoolConfig>,
    /// Resyncs that replicas of this node are the target of at a time.
    pub incoming_resyncs: usize,
    /// Bypass the page cache for replica data where the file system can.
    pub direct_io: bool,
    /// Version of the program, for the log.
    pub version: String,
}

/// One pool: a directory that holds replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name; unique on the node.
    pub name: String,
    /// Its directory; made if it does not exist.
    pub dir: PathBuf,
    /// Bytes that replicas may take in all; `None`: what the file system has.
    pub capacity_bytes: Option<u64>,
    /// Bytes to keep free on the file system, whatever the capacity.
    pub reserve_bytes: u64,
    /// Percent of the capacity that replicas may be promised in all; 100: no more than there is.
    pub overcommit_percent: u32,
}

/// Finds the peer address of a node, mostly by asking the record store.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync + 'static {
    /// Where `node` listens for peers. Called before every attempt to connect, so an answer may
    /// come from a cache.
    ///
    /// # Errors
    /// Why it is not known, for the log and the status.
    async fn peer_addr(&self, node: &NodeId) -> Result<SocketAddr, String>;
}

/// A replica to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which copy.
    pub replica: ReplicaId,
    /// Of which history.
    pub lineage: Lineage,
    /// Size in 4 KiB blocks.
    pub blocks: u64,
    /// In which pool of this node.
    pub pool: String,
    /// For people who look into the pool.
    pub volume_name: String,
    /// A snapshot in the same pool whose content it begins with; it may be smaller.
    pub source: Option<SnapshotId>,
    /// Takes the space of its data now, and keeps it.
    pub thick: bool,
}
