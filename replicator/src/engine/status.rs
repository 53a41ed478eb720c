//! What an engine tells about itself.

use std::path::PathBuf;

use lockstep_core::id::{InstanceId, Lineage, NodeId, ReplicaId, VolumeId};
use lockstep_core::{primary, replica};
use uuid::Uuid;

/// A pool and its space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Random, given when the pool was made.
    pub uuid: Uuid,
    /// Bytes that replicas may take in all.
    pub capacity_bytes: u64,
    /// Of those, bytes not taken yet and free on the file system.
    pub free_bytes: u64,
    /// Promised to replicas but not taken by them yet.
    pub reserved_bytes: u64,
    /// What new replicas may be promised.
    pub room_bytes: u64,
    /// Replicas in it, damaged ones included.
    pub replicas: usize,
}

/// A replica that this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaInfo {
    /// Of which volume.
    pub volume: VolumeId,
    /// Name the volume had when the replica was made; for people only.
    pub volume_name: String,
    /// In which pool.
    pub pool: String,
    /// Its files.
    pub dir: PathBuf,
    /// What its files take on disk.
    pub bytes_used: u64,
    /// How it is.
    pub state: ReplicaState,
}

/// Whether a replica can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaState {
    /// Its files are open and it answers primaries.
    Open(Box<OpenReplica>),
    /// Its files can't be used; they are left alone. Says why and what to do.
    Damaged(String),
}

/// A replica whose files are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReplica {
    /// Which copy.
    pub replica: ReplicaId,
    /// Of which history.
    pub lineage: Lineage,
    /// Size in 4 KiB blocks.
    pub blocks: u64,
    /// What the replica knows of itself.
    pub core: replica::Status,
    /// Un-flushed writes may be lost: it was not closed and the machine restarted in between.
    pub lossy: bool,
    /// 1 MiB regions in the activity log.
    pub activity_log_regions: usize,
    /// Since the node of the primary that has this replica's promise was last heard, by whatever
    /// frame, heartbeats included; `None`: none since the replica was opened.
    pub primary_heard_ms: Option<u64>,
    /// The node of that primary.
    pub primary_node: Option<NodeId>,
    /// What broke, if it is faulted.
    pub fault: Option<String>,
}

/// A replica that its primary does not reach, or leaves out for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Which one.
    pub replica: ReplicaId,
    /// Since when, in milliseconds.
    pub ms: u64,
    /// Why, if that is known.
    pub reason: String,
    /// It was put back to an older image (R7).
    pub put_back: bool,
}

/// A volume that this node is or was the primary of, until it is detached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryInfo {
    /// Which volume.
    pub volume: VolumeId,
    /// Which claim.
    pub instance: InstanceId,
    /// What the primary knows of itself and its replicas.
    pub core: primary::Status,
    /// Replicas it does not reach.
    pub missing: Vec<Missing>,
    /// What it waits for while it is not active, in words; empty otherwise.
    pub waits_for: String,
}
