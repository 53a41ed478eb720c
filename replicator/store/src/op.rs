//! Disk operations: what a store asks of its driver.

use alloc::vec::Vec;

use bytes::Bytes;
use lockstep_core::id::SnapshotId;
use lockstep_core::range::BlockRange;

use crate::layout::File;
use crate::unwritten::Unwritten;

/// Pairs a disk operation with its result. Never reused by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskOpId(pub u64);

/// A disk operation. Execute those handed out in any order and at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOp {
    /// For [`crate::Store::done`].
    pub id: DiskOpId,
    /// What to do.
    pub kind: DiskOpKind,
}

/// What to do with a file of the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOpKind {
    /// Read exactly `len` bytes at `offset`; holes are zeroes.
    Read {
        /// Which file.
        file: File,
        /// From where; of [`File::Data`] a multiple of 4096.
        offset: u64,
        /// How many bytes; of [`File::Data`] a multiple of 4096.
        len: u32,
    },
    /// Write all of `data` at `offset`.
    Write {
        /// Which file.
        file: File,
        /// Where to; of [`File::Data`] and [`File::Meta`] a multiple of 4096.
        offset: u64,
        /// What; of [`File::Data`] and [`File::Meta`] a multiple of 4096 bytes.
        data: Bytes,
        /// Done only when it is on the medium (`O_DSYNC`)?
        durable: bool,
    },
    /// Make `len` bytes at `offset` read as zeroes. Never durable by itself: the store asks for
    /// [`DiskOpKind::Sync`] where it must be.
    Zero {
        /// Which file.
        file: File,
        /// From where; a multiple of 4096.
        offset: u64,
        /// How many bytes; a multiple of 4096.
        len: u64,
        /// May the space be given back?
        deallocate: bool,
    },
    /// `fdatasync`, started after this was handed out: every write of the file that was done
    /// before is on the medium afterwards.
    Sync {
        /// Which file.
        file: File,
    },
    /// Make every file as long as [`crate::file_bytes`] says for this many blocks, and take the
    /// space of all but [`File::Data`]; durable when done. What is new reads as zeroes. With
    /// [`DiskError::NoSpace`] they may be longer than before, which does no harm.
    Extend {
        /// Size of the volume in blocks, more than it has.
        blocks: u64,
    },
    /// Find out whether snapshots can be taken.
    TrySnapshot,
    /// Make these blocks of a copy of [`File::Data`] what they read as now: of the copy that is
    /// there, or of a new one, all zeroes, that replaces it. Guests write meanwhile.
    CopyAhead {
        /// A new one?
        fresh: bool,
        /// Which blocks.
        ranges: Vec<BlockRange>,
    },
    /// Remove that copy, if there is one.
    DropAhead,
    /// Keep a copy of [`File::Data`] as it reads now under this id. Guests wait for it: none of
    /// it has to be durable.
    Snapshot {
        /// No other snapshot has it.
        id: SnapshotId,
        /// Make it of the copy that was made ahead, which lacks these blocks.
        ahead: Option<Vec<BlockRange>>,
    },
    /// Add copies of [`File::Tags`] and [`File::Regions`] as they read now to it, and then write
    /// the patches of these into the copies.
    KeepTags {
        /// The snapshot that was kept last.
        id: SnapshotId,
        /// What the files lack.
        unwritten: Unwritten,
    },
    /// Make all of it durable, and how many blocks there are. Until then it is no snapshot, and
    /// is not there after a restart.
    SealSnapshot {
        /// The snapshot that was kept last.
        id: SnapshotId,
        /// Size of the volume.
        blocks: u64,
    },
    /// Remove a snapshot, durably, if there is one, or what there is of it.
    DropSnapshot {
        /// Which one.
        id: SnapshotId,
    },
}

/// Why a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The medium failed.
    Io,
    /// No space left.
    NoSpace,
    /// The file system can't share blocks between files.
    NoReflink,
}

impl From<DiskError> for lockstep_core::store::StoreError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Io => Self::Io,
            DiskError::NoSpace => Self::NoSpace,
            DiskError::NoReflink => Self::NoReflink,
        }
    }
}
