//! What the kernel and a FUSE server say to each other, as far as one file needs it: bytes to
//! requests, and answers to bytes. The layouts are those of `linux/fuse.h`; numbers are in the
//! byte order of the machine.
#![expect(clippy::host_endian_bytes, reason = "the kernel of the same machine is on the other end")]

/// `struct fuse_in_header`.
pub(crate) const HEADER_BYTES: usize = 40;
/// A header and `struct fuse_write_in`: what precedes the data of a write. No other request that
/// is understood here is longer where it matters.
pub(crate) const HEAD_BYTES: usize = HEADER_BYTES + 40;
/// `struct fuse_out_header`.
pub(crate) const REPLY_BYTES: usize = 16;
/// Longest data of a read or write: as much as the kernel allows without a change of its limits
/// (`fs.fuse.max_pages_limit`, 256 pages).
pub(crate) const DATA_BYTES_MAX: u32 = 1 << 20;

/// The one file.
pub(crate) const ROOT: u64 = 1;
/// How long attributes are good for, in seconds: for good. Asking again could block, when nobody
/// serves the file; a new size is told by [`invalidate`].
const FOREVER: u64 = 10 * 365 * 24 * 3600;
/// Requests that the kernel hands out before it waits for answers; its default is 12.
const BACKGROUND_MAX: u16 = 512;
/// `S_IFREG | 0600`.
const MODE: u32 = 0o100_600;
const BLOCK: u32 = 4096;

/// `FUSE_*` operations.
mod op {
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
}

/// Flags of INIT: bits 0 to 31 are `flags`, the others `flags2`.
mod init {
    pub(super) const ASYNC_READ: u64 = 1;
    pub(super) const BIG_WRITES: u64 = 1 << 5;
    /// Requests of one direct read or write run at once (7.22).
    pub(super) const ASYNC_DIO: u64 = 1 << 15;
    /// Requests of more than 32 pages (7.28).
    pub(super) const MAX_PAGES: u64 = 1 << 22;
    /// There is a `flags2` (7.36).
    pub(super) const EXT: u64 = 1 << 30;
    /// What was under way can be asked for again (7.40, Linux 6.9).
    pub(super) const HAS_RESEND: u64 = 1 << 39;
    pub(super) const NEEDED: u64 = ASYNC_DIO | MAX_PAGES;
    pub(super) const WANTED: u64 = NEEDED | ASYNC_READ | BIG_WRITES | EXT | HAS_RESEND;
}

/// Flags of the answer to OPEN.
mod open {
    /// Past the page cache.
    pub(super) const DIRECT_IO: u32 = 1;
    /// No FLUSH when it is closed (7.35).
    pub(super) const NOFLUSH: u32 = 1 << 5;
    /// Writes do not exclude each other (7.38).
    pub(super) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `enum fuse_notify_code`.
mod notify {
    pub(super) const INVAL_INODE: i32 = 2;
    pub(super) const RESEND: i32 = 7;
}

/// `linux/falloc.h`.
mod falloc {
    pub(super) const KEEP_SIZE: u32 = 1;
    pub(super) const PUNCH_HOLE: u32 = 2;
    pub(super) const ZERO_RANGE: u32 = 16;
}

/// A request, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The first one: what the kernel can do.
    Init(Init),
    /// Attributes are asked for.
    GetAttr,
    /// The file is opened.
    Open,
    /// Read `len` bytes at `offset`.
    Read { offset: u64, len: u32 },
    /// Write `len` bytes, which follow the head, at `offset`; durably if `sync`.
    Write { offset: u64, len: u32, sync: bool },
    /// Make `len` bytes at `offset` zero, and free their space unless `no_hole`.
    Zero { offset: u64, len: u64, no_hole: bool },
    /// Make what was written durable.
    Fsync,
    /// Size and block size are asked for.
    StatFs,
    /// Nothing to do but say so.
    Done,
    /// Nothing to do, and nothing to say.
    Silent,
    /// Answered with this error number.
    Refused(i32),
}

/// What the kernel told at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Init {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u64,
}

/// Bytes that are no request; nothing can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel sent {len} bytes that are no FUSE request; this is a bug, report it")]
pub(crate) struct Malformed {
    len: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let raw = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*raw))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let raw = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*raw))
}

/// Reads a request of `len` bytes that begins with `head`: all of it, or its first
/// [`HEAD_BYTES`]. Returns the number to answer to, too.
pub(crate) fn parse(head: &[u8], len: usize) -> Result<(u64, Request), Malformed> {
    let malformed = Malformed { len };
    let told = u32_at(head, 0).ok_or(malformed)?;
    let opcode = u32_at(head, 4).ok_or(malformed)?;
    let unique = u64_at(head, 8).ok_or(malformed)?;
    let arguments = head.get(HEADER_BYTES..).ok_or(malformed)?;
    let whole = usize::try_from(told).is_ok_and(|told| told == len);
    let request = if whole { understand(opcode, arguments, len) } else { None };
    Ok((unique, request.unwrap_or(Request::Refused(nix::libc::EINVAL))))
}

/// `None`: it is too short, or says something impossible.
fn understand(opcode: u32, arguments: &[u8], len: usize) -> Option<Request> {
    Some(match opcode {
        op::INIT => {
            let flags = u64::from(u32_at(arguments, 12)?);
            // Before version 7.36 nothing follows.
            let more = if flags & init::EXT == 0 { 0 } else { u32_at(arguments, 16)? };
            Request::Init(Init {
                major: u32_at(arguments, 0)?,
                minor: u32_at(arguments, 4)?,
                max_readahead: u32_at(arguments, 8)?,
                flags: flags | u64::from(more) << 32,
            })
        }
        op::GETATTR => Request::GetAttr,
        op::OPEN => Request::Open,
        op::READ => Request::Read { offset: u64_at(arguments, 8)?, len: u32_at(arguments, 16)? },
        op::WRITE => write(arguments, len)?,
        op::FALLOCATE => fallocate(arguments)?,
        op::FSYNC => Request::Fsync,
        op::STATFS => Request::StatFs,
        op::RELEASE | op::FLUSH | op::DESTROY => Request::Done,
        op::FORGET | op::BATCH_FORGET => Request::Silent,
        op::SETATTR => Request::Refused(nix::libc::EPERM),
        // INTERRUPT is among these: requests cannot be interrupted.
        _ => Request::Refused(nix::libc::ENOSYS),
    })
}

fn write(arguments: &[u8], whole: usize) -> Option<Request> {
    let len = u32_at(arguments, 16)?;
    let flags = u32_at(arguments, 32)?;
    let payload = whole.checked_sub(HEAD_BYTES)?;
    if usize::try_from(len).ok()? != payload || len > DATA_BYTES_MAX {
        return None;
    }
    let sync = flags & u32::try_from(nix::libc::O_DSYNC).unwrap_or(0) != 0;
    Some(Request::Write { offset: u64_at(arguments, 8)?, len, sync })
}

fn fallocate(arguments: &[u8]) -> Option<Request> {
    let (offset, len) = (u64_at(arguments, 8)?, u64_at(arguments, 16)?);
    let mode = u32_at(arguments, 24)?;
    Some(match mode & !falloc::KEEP_SIZE {
        // Both a discard and zeroing that may free space come as this. Zeroes suit both.
        falloc::PUNCH_HOLE => Request::Zero { offset, len, no_hole: false },
        falloc::ZERO_RANGE => Request::Zero { offset, len, no_hole: true },
        _ => Request::Refused(nix::libc::EOPNOTSUPP),
    })
}

/// Bytes in the making.
#[derive(Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn zeroes(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

/// The head of an answer that `len` more bytes follow.
pub(crate) fn success(unique: u64, len: usize) -> [u8; REPLY_BYTES] {
    head(REPLY_BYTES + len, 0, unique)
}

/// A whole answer: the request failed with this error number.
pub(crate) fn failure(unique: u64, errno: i32) -> [u8; REPLY_BYTES] {
    head(REPLY_BYTES, -errno, unique)
}

fn head(len: usize, error: i32, unique: u64) -> [u8; REPLY_BYTES] {
    let mut bytes = [0; REPLY_BYTES];
    let (first, rest) = bytes.split_at_mut(4);
    let (second, third) = rest.split_at_mut(4);
    first.copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    second.copy_from_slice(&error.to_ne_bytes());
    third.copy_from_slice(&unique.to_ne_bytes());
    bytes
}

impl Init {
    /// What is answered: `struct fuse_init_out`; an error number if the kernel is too old.
    pub(crate) fn answer(&self) -> Result<Vec<u8>, i32> {
        if self.major != 7 || self.flags & init::NEEDED != init::NEEDED {
            return Err(nix::libc::EPROTO);
        }
        let flags = self.flags & init::WANTED;
        let [low, high] = [flags & u64::from(u32::MAX), flags >> 32];
        let low = u32::try_from(low).unwrap_or(0);
        let high = u32::try_from(high).unwrap_or(0);
        let pages = u16::try_from(DATA_BYTES_MAX / BLOCK).unwrap_or(u16::MAX);
        let bytes = Bytes::default()
            .u32(7)
            .u32(self.minor.min(40))
            .u32(self.max_readahead)
            .u32(low)
            .u16(BACKGROUND_MAX)
            .u16(BACKGROUND_MAX / 4 * 3)
            .u32(DATA_BYTES_MAX)
            .u32(1)
            .u16(pages)
            .u16(0)
            .u32(high)
            .zeroes(28);
        Ok(bytes.0)
    }
}

/// The answer to GETATTR: `struct fuse_attr_out`.
pub(crate) fn attributes(size_bytes: u64) -> Vec<u8> {
    let times = 3 * 8 + 3 * 4;
    let bytes = Bytes::default().u64(FOREVER).u32(0).u32(0);
    let bytes = bytes.u64(ROOT).u64(size_bytes).u64(size_bytes / 512).zeroes(times);
    // Owner, group and device number are 0.
    bytes.u32(MODE).u32(1).zeroes(12).u32(BLOCK).u32(0).0
}

/// The answer to OPEN: `struct fuse_open_out`.
pub(crate) fn opened() -> Vec<u8> {
    let flags = open::DIRECT_IO | open::NOFLUSH | open::PARALLEL_DIRECT_WRITES;
    Bytes::default().u64(0).u32(flags).u32(0).0
}

/// The answer to WRITE: `struct fuse_write_out`.
pub(crate) fn written(len: u32) -> Vec<u8> {
    Bytes::default().u32(len).u32(0).0
}

/// The answer to STATFS: `struct fuse_statfs_out`. Its block size is the granularity of discards
/// that the loop device shows.
pub(crate) fn statistics(size_bytes: u64) -> Vec<u8> {
    let blocks = Bytes::default().u64(size_bytes / u64::from(BLOCK));
    blocks.zeroes(4 * 8).u32(BLOCK).u32(255).u32(BLOCK).zeroes(28).0
}

/// Asks for all requests once more that were read and not answered.
pub(crate) fn resend() -> [u8; REPLY_BYTES] {
    head(REPLY_BYTES, notify::RESEND, 0)
}

/// Tells that the attributes have changed: `struct fuse_notify_inval_inode_out`.
pub(crate) fn invalidate() -> Vec<u8> {
    let mut bytes = head(REPLY_BYTES + 24, notify::INVAL_INODE, 0).to_vec();
    // A negative offset: attributes only, no data.
    bytes.extend(Bytes::default().u64(ROOT).u64(u64::MAX).u64(0).0);
    bytes
}

#[cfg(test)]
mod tests;
