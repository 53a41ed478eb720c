//! What every door asks of a volume.

use std::future::Future;

use bytes::Bytes;

/// Every request that reaches a [`Backend`] starts and ends on a multiple of this many bytes.
pub const BLOCK_BYTES: u32 = 4096;

/// Facts about a volume that a door shows to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes: a multiple of [`BLOCK_BYTES`]. It may grow while the volume is served.
    pub size_bytes: u64,
    /// Whether writes, discards and zeroing are refused with [`Errno::NotPermitted`].
    pub read_only: bool,
}

/// Why a request failed, in the words every door can pass on to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Errno {
    /// `EPERM`: the volume is read-only.
    #[error("operation not permitted")]
    NotPermitted,
    /// `EIO`: the data could not be read or stored.
    #[error("input/output error")]
    Io,
    /// `ENOMEM`: the server is out of memory for this request.
    #[error("cannot allocate memory")]
    NoMemory,
    /// `EINVAL`: the request itself is wrong.
    #[error("invalid argument")]
    Invalid,
    /// `ENOSPC`: no space left, or the range ends beyond the volume.
    #[error("no space left on device")]
    NoSpace,
    /// `EOVERFLOW`: the request is larger than the server handles in one piece.
    #[error("value too large")]
    Overflow,
    /// `ENOTSUP`: it cannot be done, or not as fast as was asked.
    #[error("operation not supported")]
    NotSupported,
    /// `ESHUTDOWN`: the volume is being detached.
    #[error("server is shutting down")]
    Shutdown,
}

/// A piece of what a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// These bytes.
    Data(Bytes),
    /// This many zero bytes that need not be carried.
    Zeroes(u64),
}

impl Segment {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(len) => *len,
        }
    }

    /// Whether the segment covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The answer to a read: consecutive segments that together cover exactly the range asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadData {
    /// The segments, in the order of the volume.
    pub segments: Vec<Segment>,
}

impl ReadData {
    /// Total length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.segments.iter().map(Segment::len).sum()
    }

    /// Whether nothing was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Bytes> for ReadData {
    fn from(data: Bytes) -> Self {
        Self { segments: vec![Segment::Data(data)] }
    }
}

impl From<Vec<Segment>> for ReadData {
    fn from(segments: Vec<Segment>) -> Self {
        Self { segments }
    }
}

/// How a range is to be zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroMode {
    /// The zeroes are durable before the request completes.
    pub fua: bool,
    /// The space stays allocated: no hole may be punched.
    pub no_hole: bool,
    /// Fail with [`Errno::NotSupported`], changing nothing, unless this is faster than writing.
    pub fast: bool,
}

/// A run of blocks of one allocation status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, a multiple of [`BLOCK_BYTES`], not zero.
    pub len_bytes: u64,
    /// Nothing is allocated here.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

/// A volume as a door sees it.
///
/// Requests of one client are issued concurrently and may complete in any order; a client orders
/// them by waiting. The contract, on which the flags shown to clients rest:
///
/// - Offsets and lengths are multiples of [`BLOCK_BYTES`], lengths are not zero, ranges lie within
///   the size that [`Backend::info`] reported just before, and nothing that changes data is called
///   on a read-only volume. The door has checked it all.
/// - [`Backend::flush`] makes durable every write, discard and zeroing that *completed*, on
///   whichever connection, before the flush was called. `fua` means: durable at completion.
/// - **Cancellation.** A future is dropped before it completes only when the export is removed or
///   the server stops; the client is told [`Errno::Shutdown`]. The back end may still perform such
///   a request or not, as for any that failed, but must not begin it later than its own close.
///   When merely a client disappears, its requests are run to completion.
pub trait Backend: Send + Sync + 'static {
    /// Size and mode as they are now. Called for every request: it must be cheap.
    fn info(&self) -> ExportInfo;

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// Whatever the client should see, mostly [`Errno::Io`].
    fn read(
        &self,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<ReadData, Errno>> + Send + '_;

    /// Writes `data` at `offset`. The buffer starts at an address aligned to [`BLOCK_BYTES`].
    ///
    /// # Errors
    /// Whatever the client should see, mostly [`Errno::Io`] or [`Errno::NoSpace`].
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_;

    /// Makes every completed change durable.
    ///
    /// # Errors
    /// [`Errno::Io`] when durability cannot be promised.
    fn flush(&self) -> impl Future<Output = Result<(), Errno>> + Send + '_;

    /// Makes `len` bytes at `offset` read as zeroes.
    ///
    /// # Errors
    /// [`Errno::NotSupported`] if [`ZeroMode::fast`] was asked for and cannot be had.
    fn zero(
        &self,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_;

    /// Tells that the contents of `len` bytes at `offset` are no longer needed.
    ///
    /// # Errors
    /// Whatever the client should see.
    fn discard(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_;

    /// Allocation status from `offset` on: at least one extent, consecutive. The list may end
    /// before `len` bytes are described or reach beyond them. The default knows of no holes.
    ///
    /// # Errors
    /// Whatever the client should see.
    fn block_status(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, Errno>> + Send + '_ {
        let _ = offset;
        std::future::ready(Ok(vec![Extent { len_bytes: len, hole: false, zero: false }]))
    }

    /// Hints that `len` bytes at `offset` will be read soon. The default does nothing.
    ///
    /// # Errors
    /// Whatever the client should see; later requests are not affected.
    fn cache(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), Errno>> + Send + '_ {
        let _ = (offset, len);
        std::future::ready(Ok(()))
    }
}
