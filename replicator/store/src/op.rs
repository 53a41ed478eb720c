//! Disk operations: what a store asks of its driver.

use bytes::Bytes;

use crate::layout::File;

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
}

/// Why a disk operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The medium failed.
    Io,
    /// No space left.
    NoSpace,
}

impl From<DiskError> for lockstep_core::store::StoreError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Io => Self::Io,
            DiskError::NoSpace => Self::NoSpace,
        }
    }
}
