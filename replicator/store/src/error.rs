//! Why a replica's files can't be opened.

use lockstep_core::id::{Lineage, ReplicaId, VolumeId};
use lockstep_core::limits::MAX_VOLUME_BLOCKS;

use crate::layout::File;
use crate::superblock::CopyFault;

/// Why a replica's files can't be opened. None of them is a reason to delete anything: the replica
/// is left alone, and a copy elsewhere takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A file ends before its content does.
    #[error("file {file} has {have} bytes, expected {need}: it was cut off; rebuild this replica")]
    TooShort {
        /// Which file.
        file: File,
        /// Its size in bytes.
        have: u64,
        /// The size needed.
        need: u64,
    },
    /// Neither place of a superblock holds one.
    #[error("file meta has no superblock: these are not the files of a replica")]
    NotAReplica,
    /// Both copies of the superblock are damaged.
    #[error("both superblocks are damaged (A: {a}; B: {b}); rebuild this replica")]
    SuperblockDamaged {
        /// The copy at offset 0.
        a: CopyFault,
        /// The copy at offset 4096.
        b: CopyFault,
    },
    /// The files were written by a newer release.
    #[error("format version {found} is not understood here (up to {supported}); upgrade this node")]
    FutureVersion {
        /// The version found.
        found: u32,
        /// The newest one understood.
        supported: u32,
    },
    /// The superblock names an impossible size.
    #[error("the superblock says {blocks} blocks, allowed are 1 to {MAX_VOLUME_BLOCKS}")]
    BadSize {
        /// The size found.
        blocks: u64,
    },
    /// The files belong to another volume.
    #[error("these files are of volume {}, not {}; check the pool directory", found.0, expected.0)]
    OtherVolume {
        /// The volume expected.
        expected: VolumeId,
        /// The volume found.
        found: VolumeId,
    },
    /// The files belong to another copy of the volume.
    #[error("these files are replica {}, not {}; check the pool directory", found.0, expected.0)]
    OtherReplica {
        /// The replica expected.
        expected: ReplicaId,
        /// The replica found.
        found: ReplicaId,
    },
    /// The files belong to a history that was given up by a forced recovery.
    #[error("these files are of lineage {}, not {}; rebuild this replica", found.0, expected.0)]
    OtherLineage {
        /// The lineage expected.
        expected: Lineage,
        /// The lineage found.
        found: Lineage,
    },
    /// A record of the activity log is damaged that can't be a write cut short.
    #[error("activity log record {seq} is damaged (slot {slot}): rot, not a crash; rebuild")]
    LogDamaged {
        /// The number of the record that should be there; 0 if the slot should be empty.
        seq: u64,
        /// Its place in the ring.
        slot: u64,
    },
    /// A good record of the activity log names a region beyond the end of the volume.
    #[error("activity log record {seq} names region {region} of {regions}; rebuild this replica")]
    LogRegion {
        /// The number of the record.
        seq: u64,
        /// The region.
        region: u32,
        /// Regions of the volume.
        regions: u32,
    },
}
