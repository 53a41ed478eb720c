//! What the file does: requests to calls on the back end, and their outcomes to answers.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use super::wire::{self, DATA_BYTES_MAX, Request};
use crate::backend::{BLOCK_BYTES, Backend, Errno, ReadData, Segment, ZeroMode};

/// Most slices in one answer; the kernel takes 1024.
const SLICES_MAX: usize = 1000;
/// Zeroes that answers point to.
const ZEROES_BYTES: usize = 64 * 1024;

/// One served file.
pub(crate) struct Service<B> {
    backend: Arc<B>,
    connection: File,
    size_bytes: AtomicU64,
    read_only: bool,
    write_through: bool,
    /// Changes that are done and, unless flushed since, not durable.
    changed: AtomicU64,
    /// How many of them are durable.
    flushed: AtomicU64,
    /// Memory that was written to, for the reason told in `buffer.rs`.
    zeroes: Bytes,
    greeted: AtomicBool,
    left: AtomicBool,
}

/// What comes of a request.
enum Outcome {
    /// Done, and this is told.
    Told(Vec<u8>),
    /// Done, and this was read.
    Read(ReadData),
    /// It failed.
    Failed(i32),
    /// It stays with the kernel, for whoever serves the file next.
    Left,
}

impl<B: Backend> Service<B> {
    pub(crate) fn new(
        backend: Arc<B>,
        connection: File,
        size_bytes: u64,
        read_only: bool,
        write_through: bool,
    ) -> Self {
        let mut zeroes = BytesMut::with_capacity(ZEROES_BYTES);
        zeroes.resize(ZEROES_BYTES, 0);
        Self {
            backend,
            connection,
            size_bytes: AtomicU64::new(size_bytes),
            read_only,
            write_through,
            // What was done before this process began may need a flush.
            changed: AtomicU64::new(1),
            flushed: AtomicU64::new(0),
            zeroes: zeroes.freeze(),
            greeted: AtomicBool::new(false),
            left: AtomicBool::new(false),
        }
    }

    /// The connection to the kernel.
    pub(crate) fn connection(&self) -> &File {
        &self.connection
    }

    /// Whether requests were read that only [`Service::ask_again`] brings back.
    pub(crate) fn has_left_any(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Relaxed)
    }

    /// Shows a new size, and has the kernel ask for it.
    pub(crate) fn show_size(&self, size_bytes: u64) -> io::Result<()> {
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
        (&self.connection).write_all(&wire::invalidate())
    }

    /// Has the kernel send again what was read and not answered; says whether it can.
    pub(crate) fn ask_again(&self) -> io::Result<bool> {
        match (&self.connection).write_all(&wire::resend()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Does a request and answers it. `data` is what a write carries.
    pub(crate) async fn serve(self: Arc<Self>, unique: u64, request: Request, data: Bytes) {
        let outcome = match request {
            Request::Init(init) => self.greet(&init),
            Request::GetAttr => Outcome::Told(wire::attributes(self.size_bytes())),
            Request::Open => Outcome::Told(wire::opened()),
            Request::StatFs => Outcome::Told(wire::statistics(self.size_bytes())),
            Request::Done => Outcome::Told(Vec::new()),
            Request::Silent => Outcome::Left,
            Request::Refused(errno) => Outcome::Failed(errno),
            Request::Read { offset, len } => self.read(offset, len).await.into(),
            Request::Write { offset, len, sync } => {
                let done = self.write(offset, data, sync).await;
                done.map(|()| wire::written(len)).into()
            }
            Request::Zero { offset, len, no_hole } => {
                self.zero(offset, len, no_hole).await.map(|()| Vec::new()).into()
            }
            Request::Fsync => self.flush().await.map(|()| Vec::new()).into(),
        };
        if matches!(outcome, Outcome::Left) && request != Request::Silent {
            self.left.store(true, Ordering::Release);
        }
        if let Err(error) = self.answer(unique, &outcome) {
            // The request or the whole connection is gone, and nobody waits for the answer.
            let gone = matches!(
                error.raw_os_error(),
                Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENOTCONN)
                    | Some(nix::libc::ECONNABORTED | nix::libc::EPERM)
            );
            if !gone {
                tracing::error!(%error, ?request, "the kernel takes no answer; the request fails");
                let failed = Outcome::Failed(nix::libc::EIO);
                let _ = self.answer(unique, &failed);
            }
        }
    }

    fn greet(&self, init: &wire::Init) -> Outcome {
        if self.greeted.swap(true, Ordering::Relaxed) {
            return Outcome::Failed(nix::libc::EPROTO);
        }
        init.answer().map_or_else(Outcome::Failed, Outcome::Told)
    }

    /// The part of a request that lies within the volume.
    fn check(&self, offset: u64, len: u64, changes: bool) -> Result<(), Errno> {
        let info = self.backend.info();
        let block = u64::from(BLOCK_BYTES);
        if changes && (self.read_only || info.read_only) {
            return Err(Errno::NotPermitted);
        }
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) || len == 0 {
            return Err(Errno::Invalid);
        }
        let end = offset.checked_add(len).ok_or(Errno::NoSpace)?;
        let size_bytes = self.size_bytes().min(info.size_bytes);
        if end > size_bytes { Err(Errno::NoSpace) } else { Ok(()) }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        // Whoever reads the file by itself may go beyond its end.
        let rest = self.size_bytes().saturating_sub(offset);
        let len = u64::from(len.min(DATA_BYTES_MAX)).min(rest);
        if len == 0 {
            return Ok(ReadData::default());
        }
        self.check(offset, len, false)?;
        let len = u32::try_from(len).map_err(|_| Errno::Overflow)?;
        let data = self.backend.read(offset, len).await?;
        if data.len() == u64::from(len) { Ok(data) } else { Err(Errno::Io) }
    }

    async fn write(&self, offset: u64, data: Bytes, sync: bool) -> Result<(), Errno> {
        self.check(offset, data.len() as u64, true)?;
        let fua = sync || self.write_through;
        self.backend.write(offset, data, fua).await?;
        self.count(fua);
        Ok(())
    }

    async fn zero(&self, offset: u64, len: u64, no_hole: bool) -> Result<(), Errno> {
        self.check(offset, len, true)?;
        let fua = self.write_through;
        self.backend.zero(offset, len, ZeroMode { fua, no_hole, fast: false }).await?;
        self.count(fua);
        Ok(())
    }

    fn count(&self, durable: bool) {
        if !durable {
            self.changed.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// A loop device turns each FUA write into a write and a flush, and each `fsync` of a journal
    /// into two flushes: one that has nothing to do must cost nothing.
    async fn flush(&self) -> Result<(), Errno> {
        let changed = self.changed.load(Ordering::Acquire);
        if self.flushed.load(Ordering::Acquire) >= changed {
            return Ok(());
        }
        self.backend.flush().await?;
        self.flushed.fetch_max(changed, Ordering::AcqRel);
        Ok(())
    }

    fn answer(&self, unique: u64, outcome: &Outcome) -> io::Result<()> {
        match outcome {
            Outcome::Told(body) => {
                let head = wire::success(unique, body.len());
                self.send(&[IoSlice::new(&head), IoSlice::new(body)])
            }
            Outcome::Read(data) => self.answer_read(unique, data),
            Outcome::Failed(errno) => self.send(&[IoSlice::new(&wire::failure(unique, *errno))]),
            Outcome::Left => Ok(()),
        }
    }

    fn answer_read(&self, unique: u64, data: &ReadData) -> io::Result<()> {
        let len = usize::try_from(data.len()).unwrap_or(usize::MAX);
        let head = wire::success(unique, len);
        let mut slices = vec![IoSlice::new(&head)];
        for segment in &data.segments {
            match segment {
                Segment::Data(data) => slices.push(IoSlice::new(data)),
                Segment::Zeroes(count) => {
                    let mut left = usize::try_from(*count).unwrap_or(usize::MAX);
                    while left > 0 {
                        let part = self.zeroes.get(..left).unwrap_or(&self.zeroes);
                        slices.push(IoSlice::new(part));
                        left -= part.len();
                    }
                }
            }
        }
        if slices.len() <= SLICES_MAX {
            return self.send(&slices);
        }
        let flat: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.send(&[IoSlice::new(&flat)])
    }

    /// The kernel takes an answer whole or not at all.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.connection).write_vectored(slices).map(drop)
    }
}

impl From<Result<Vec<u8>, Errno>> for Outcome {
    fn from(result: Result<Vec<u8>, Errno>) -> Self {
        result.map_or_else(Self::from, Self::Told)
    }
}

impl From<Result<ReadData, Errno>> for Outcome {
    fn from(result: Result<ReadData, Errno>) -> Self {
        result.map_or_else(Self::from, Self::Read)
    }
}

impl From<Errno> for Outcome {
    fn from(errno: Errno) -> Self {
        Self::Failed(match errno {
            Errno::NotPermitted => nix::libc::EPERM,
            Errno::Io => nix::libc::EIO,
            Errno::NoMemory => nix::libc::ENOMEM,
            Errno::Invalid => nix::libc::EINVAL,
            Errno::NoSpace => nix::libc::ENOSPC,
            Errno::Overflow => nix::libc::EOVERFLOW,
            Errno::NotSupported => nix::libc::EOPNOTSUPP,
            // The volume leaves this daemon. Its successor gets the request; if there is none, the
            // device is ended, and all its requests with it.
            Errno::Shutdown => return Self::Left,
        })
    }
}
