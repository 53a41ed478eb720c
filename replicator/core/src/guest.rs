//! What a door asks of a primary.

use alloc::vec::Vec;
use bytes::Bytes;

use crate::message::Payload;
use crate::range::BlockRange;

/// A request of the guest, in whole blocks within the volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GuestOp {
    /// Read.
    Read {
        /// Where.
        range: BlockRange,
    },
    /// Write.
    Write {
        /// Where.
        range: BlockRange,
        /// Durable before the answer?
        fua: bool,
        /// What: a private copy with its checksums, as many blocks as `range`.
        payload: Payload,
    },
    /// Write zeroes, or discard (which reads as zeroes afterwards).
    Zero {
        /// Where.
        range: BlockRange,
        /// Durable before the answer?
        fua: bool,
        /// May the space be given back?
        deallocate: bool,
    },
    /// Make every completed write durable.
    Flush,
}

/// A successful answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GuestReply {
    /// To a read: the pieces, in order.
    Data(Vec<Bytes>),
    /// To everything else.
    Done,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestError {
    /// The volume was taken over elsewhere: EIO, for good.
    Fenced,
    /// The volume is being detached: ESHUTDOWN.
    Closing,
    /// No copy could read it: EIO.
    Io,
    /// Beyond the end of the volume, or too large: EINVAL.
    Invalid,
}
