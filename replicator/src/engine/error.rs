//! What can go wrong when an engine is asked for something, told so that the caller can act.

use std::io;
use std::net::SocketAddr;

use lockstep_core::id::{NodeId, ReplicaId, SnapshotId, VolumeId};
use thiserror::Error;

use crate::pool::PoolError;

/// Why the engine did not do what it was asked.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The peer port can't be used.
    #[error("cannot listen for peers on {addr}: {source}; is the port in use, the address local?")]
    Listen {
        /// What was asked for.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A pool can't be used.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The node has no pool of this name.
    #[error("no pool {pool:?} on this node; it has: {known}")]
    NoSuchPool {
        /// The name asked for.
        pool: String,
        /// The names there are.
        known: String,
    },
    /// The node holds another copy of the volume, or the same with other properties.
    #[error(
        "this node already holds replica {existing} of volume {volume}, which differs; \
         delete it first if no record names it"
    )]
    ReplicaExists {
        /// The volume.
        volume: VolumeId,
        /// The copy that is there.
        existing: ReplicaId,
    },
    /// The pool has no such snapshot.
    #[error("pool {pool:?} of this node has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The pool.
        pool: String,
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// The size of a new replica is not allowed.
    #[error("a replica of {blocks} blocks: 1 to {max} are allowed")]
    BadSize {
        /// What was asked for.
        blocks: u64,
        /// What is allowed.
        max: u64,
    },
    /// No attachment of the volume here.
    #[error("volume {0} is not attached on this node")]
    NotAttached(VolumeId),
    /// Another primary took over, or the record is gone.
    #[error("volume {volume} was taken over{}; attach it again if that is wanted", by_whom(.by))]
    Fenced {
        /// The volume.
        volume: VolumeId,
        /// Where its primary is now, if known.
        by: Option<NodeId>,
    },
    /// It takes longer than was allowed. The attempt goes on.
    #[error("volume {volume} is not served after {waited_ms} ms: {why}; the attempt goes on")]
    AttachTimeout {
        /// The volume.
        volume: VolumeId,
        /// How long it was waited.
        waited_ms: u64,
        /// What it waits for, in words.
        why: String,
    },
    /// A clean detach takes longer than was allowed. It goes on.
    #[error("volume {volume} is not closed after {waited_ms} ms; it goes on; force to cut it off")]
    DetachTimeout {
        /// The volume.
        volume: VolumeId,
        /// How long it was waited.
        waited_ms: u64,
    },
    /// The engine is stopping.
    #[error("the daemon is stopping")]
    Stopped,
}

fn by_whom(node: &Option<NodeId>) -> String {
    node.as_ref().map_or_else(String::new, |node| format!(" by node {node}"))
}
