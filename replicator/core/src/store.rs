//! What a replica asks of its store: the boundary between decisions (here) and disk planning
//! (crate `lockstep-store`).
//!
//! The driver hands notes and operations to the store in the order in which they were emitted.
//! Every operation is answered exactly once; notes take effect at once and are not answered.
//! The replica never has two overlapping mutations in flight.

use alloc::vec::Vec;

use crate::id::{Epoch, Gen, Lineage, RegionIndex, SnapshotId};
use crate::message::{BlockDigest, Payload, ResyncBlock};
use crate::range::{BlockRange, BlockSet};

/// An operation with an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoreOp {
    /// Persist a promise; answered when durable.
    Promise {
        /// The epoch promised.
        epoch: Epoch,
        /// Highest attachment number seen.
        attach_seq: u64,
        /// Highest generation seen as a member.
        member_gen: Gen,
        /// The history it belongs to from now on (T11).
        lineage: Lineage,
    },
    /// Read blocks in order. Blocks in unresolved regions have no checksum to check; their
    /// checksum is computed from what was read.
    Read {
        /// What to read.
        blocks: BlockSet,
    },
    /// Write blocks: activity-log bits durable first, then data, then tags in memory (m21).
    /// Pins the regions touched until a matching [`StoreNote::Release`].
    Write {
        /// Where.
        range: BlockRange,
        /// Stamp for every block.
        stamp: Gen,
        /// Answer only when the data is durable?
        durable: bool,
        /// What.
        payload: Payload,
    },
    /// As `Write`, with zeroes.
    Zero {
        /// Where.
        range: BlockRange,
        /// Stamp for every block.
        stamp: Gen,
        /// Answer only when durable?
        durable: bool,
        /// May the space be given back?
        deallocate: bool,
    },
    /// As `Write`, block by block with the source's stamps. Pins every listed block.
    Resync {
        /// The blocks; see [`ResyncBlock`].
        blocks: Vec<ResyncBlock>,
        /// Data of those with content `Data`.
        payload: Payload,
    },
    /// Activity-log bits durable, nothing written. Pins.
    Mark {
        /// Which blocks.
        blocks: BlockSet,
    },
    /// fdatasync of the data, started after this was submitted.
    Flush,
    /// As `Flush`; then, durably too, nothing is missing any more that was lost before: the next
    /// opening is not [`Recovered::lossy`] for that. What is unresolved stays so.
    Complete,
    /// Regions with `max_stamp >= since`, or unresolved, from `from` on.
    Scan {
        /// Lowest stamp of interest; 0 means 1 (never-written regions are of no interest).
        since: Gen,
        /// First region.
        from: RegionIndex,
        /// Most regions in the answer.
        limit: u32,
    },
    /// Stamp and digest of each block whose stamp is `>= since`, or that lies in an unresolved
    /// region. `since` 0 means every block, written or not.
    Digest {
        /// Among these.
        blocks: BlockSet,
        /// Lowest stamp of interest.
        since: Gen,
    },
    /// Flush data and tags and empty the activity log; every region must be unpinned and resolved.
    CleanAll,
    /// Grow to this many blocks, durably; what is new is zeroes. [`StoreError::NoSpace`] changes
    /// nothing and is no fault, nor is it with the next four.
    Extend {
        /// Size in blocks; less than it has changes nothing.
        blocks: u64,
    },
    /// Data, tags and region entries durable for every region, without clearing it; those that are
    /// written meanwhile are left out. [`StoreError::NoReflink`] if no snapshots can be taken.
    Prepare,
    /// Keep a copy of all content and tags under this id. Answered as soon as blocks may be
    /// written again; it is made durable then.
    Snapshot {
        /// Its id, which no other copy has.
        id: SnapshotId,
    },
    /// Answered when that copy, the last one that was kept, is durable. [`StoreError::Io`] if
    /// there is none, or it failed.
    Seal {
        /// Its id.
        id: SnapshotId,
    },
    /// Remove that copy; done, too, if there is none.
    DropSnapshot {
        /// Its id.
        id: SnapshotId,
    },
}

/// A remark without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreNote {
    /// Raise the stamp of these blocks to `stamp` (rule R4). Their regions are pinned.
    Restamp {
        /// Which blocks.
        blocks: BlockSet,
        /// The new stamp.
        stamp: Gen,
    },
    /// Raise the stamp of every block of every unresolved region to `stamp` (rule R4, m13).
    RestampUnresolved {
        /// The new stamp.
        stamp: Gen,
    },
    /// Unpin: one earlier pin per region of `blocks`, exactly as it was pinned by one operation.
    Release {
        /// The blocks of that operation.
        blocks: BlockSet,
    },
    /// The unresolved regions are resolved: their content is the truth.
    Resolve,
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoreReply {
    /// It is done.
    Done,
    /// To `Read`.
    Data(Payload),
    /// To `Scan`.
    Regions {
        /// Regions of interest, ascending.
        regions: Vec<RegionIndex>,
        /// Where to go on.
        next: Option<RegionIndex>,
    },
    /// To `Digest`, ascending.
    Digests(Vec<BlockDigest>),
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreError {
    /// The medium failed. After a failed write or flush the store is latched: everything later
    /// fails with [`StoreError::Faulted`] until it is opened again.
    Io,
    /// No space left in the pool.
    NoSpace,
    /// A block's content does not match its tag.
    Checksum {
        /// Which block.
        block: u64,
    },
    /// The store failed before.
    Faulted,
    /// The file system can't share blocks between files.
    NoReflink,
}

/// What a store knows after it was opened; where a replica starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Epoch promised.
    pub promised: Epoch,
    /// Highest attachment number seen.
    pub attach_seq: u64,
    /// Highest generation seen as a member.
    pub member_gen: Gen,
    /// Size of the volume in blocks.
    pub blocks: u64,
    /// The activity log as found: regions that were active when the store was last closed or lost.
    pub unresolved: Vec<RegionIndex>,
    /// `unresolved` is not empty and the machine was restarted since.
    pub lossy: bool,
    /// Nothing was ever written.
    pub fresh: bool,
}
