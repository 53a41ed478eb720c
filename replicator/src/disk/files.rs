//! The files of one replica, and every operation on them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use bytes::Bytes;
use lockstep_store::layout::File as Which;
use lockstep_store::{DiskError, DiskOpKind};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::{O_DIRECT, O_DSYNC};

use super::threads::Class;
use super::whole::Home;
use crate::buf::{AlignedBuf, is_aligned};
use crate::pool::PoolError;
use crate::pool::fs::failed;

/// Whether data bypasses the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DirectIo {
    /// It does.
    On,
    /// The file system refuses it.
    Refused,
    /// It was not asked for.
    Off,
}

/// One file, opened twice: for writes that may linger in a cache, and for durable ones.
#[derive(Debug)]
struct Pair {
    plain: File,
    durable: File,
}

impl Pair {
    fn open(path: &Path, flags: i32) -> io::Result<Self> {
        let open =
            |flags: i32| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        Ok(Self { plain: open(flags)?, durable: open(flags | O_DSYNC)? })
    }

    fn get(&self, durable: bool) -> &File {
        if durable { &self.durable } else { &self.plain }
    }
}

/// The open files of one replica.
#[derive(Debug)]
pub(crate) struct ReplicaFiles {
    meta: Pair,
    data: Pair,
    tags: Pair,
    regions: Pair,
    direct: DirectIo,
    pub(super) home: Option<Home>,
}

impl ReplicaFiles {
    /// Opens the files in `dir`. Falls back to the page cache for data where the file system
    /// refuses to bypass it.
    ///
    /// # Errors
    /// If a file is missing or can't be opened for writing.
    pub(crate) fn open(dir: &Path, direct: bool) -> Result<Self, PoolError> {
        let open = |which: Which, flags: i32| {
            let path = dir.join(which.name());
            Pair::open(&path, flags).map_err(|e| failed("open", &path)(e))
        };
        let (data, direct) = match direct.then(|| open(Which::Data, O_DIRECT)) {
            Some(Ok(data)) => (data, DirectIo::On),
            Some(Err(PoolError::Io { source, .. }))
                if source.raw_os_error() == Some(nix::libc::EINVAL) =>
            {
                (open(Which::Data, 0)?, DirectIo::Refused)
            }
            Some(Err(e)) => return Err(e),
            None => (open(Which::Data, 0)?, DirectIo::Off),
        };
        Ok(Self {
            meta: open(Which::Meta, 0)?,
            tags: open(Which::Tags, 0)?,
            regions: open(Which::Regions, 0)?,
            data,
            direct,
            home: None,
        })
    }

    /// The same, which can grow and have snapshots.
    pub(crate) fn at_home(mut self, home: Home) -> Self {
        self.home = Some(home);
        self
    }

    /// Whether data bypasses the page cache.
    pub(crate) fn direct(&self) -> DirectIo {
        self.direct
    }

    /// Length of a file in bytes.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn len(&self, which: Which) -> io::Result<u64> {
        Ok(self.pair(which).plain.metadata()?.len())
    }

    /// Does one operation; blocks. Reads answer their bytes, everything else answers none.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] when the file system is full, [`DiskError::Io`] for all else; what
    /// the system said is in the log.
    pub(crate) fn execute(&self, op: &DiskOpKind) -> Result<Bytes, DiskError> {
        let result = match op {
            DiskOpKind::Extend { .. }
            | DiskOpKind::TrySnapshot
            | DiskOpKind::CopyAhead { .. }
            | DiskOpKind::DropAhead
            | DiskOpKind::Snapshot { .. }
            | DiskOpKind::KeepTags { .. }
            | DiskOpKind::SealSnapshot { .. }
            | DiskOpKind::DropSnapshot { .. } => {
                return self.execute_whole(op).map(|()| Bytes::new());
            }
            DiskOpKind::Read { file, offset, len } => self.read(*file, *offset, *len as usize),
            DiskOpKind::Write { file, offset, data, durable } => {
                self.write(*file, *offset, data, *durable).map(|()| Bytes::new())
            }
            DiskOpKind::Zero { file, offset, len, deallocate } => {
                self.zero(*file, *offset, *len, *deallocate).map(|()| Bytes::new())
            }
            DiskOpKind::Sync { file } => self.pair(*file).plain.sync_data().map(|()| Bytes::new()),
        };
        result.map_err(|e| {
            tracing::error!(op = %describe(op), error = %e, "disk operation failed");
            match e.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
                _ => DiskError::Io,
            }
        })
    }

    /// Reads exactly `len` bytes.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn read(&self, which: Which, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buf = AlignedBuf::zeroed(len);
        self.pair(which).plain.read_exact_at(buf.as_mut(), offset)?;
        Ok(buf.freeze())
    }

    fn write(&self, which: Which, offset: u64, data: &Bytes, durable: bool) -> io::Result<()> {
        let file = self.pair(which).get(durable);
        if which == Which::Data && self.direct == DirectIo::On && !is_aligned(data) {
            return file.write_all_at(AlignedBuf::copy_of(data).as_ref(), offset);
        }
        file.write_all_at(data, offset)
    }

    /// Zeroes a range by the cheapest means that the file system has.
    fn zero(&self, which: Which, offset: u64, len: u64, deallocate: bool) -> io::Result<()> {
        let file = &self.pair(which).plain;
        let mode = if deallocate && !self.is_thick() {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        };
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let at = i64::try_from(offset).map_err(io::Error::other)?;
        let length = i64::try_from(len).map_err(io::Error::other)?;
        match fallocate(file, mode, at, length) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP) => write_zeroes(file, offset, len),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether all the space of the data is taken, and kept.
    pub(super) fn is_thick(&self) -> bool {
        self.home.as_ref().is_some_and(|home| home.thick)
    }

    pub(super) fn plain(&self, which: Which) -> &File {
        &self.pair(which).plain
    }

    fn pair(&self, which: Which) -> &Pair {
        match which {
            Which::Meta => &self.meta,
            Which::Data => &self.data,
            Which::Tags => &self.tags,
            Which::Regions => &self.regions,
        }
    }
}

/// For file systems that can't zero a range by themselves.
fn write_zeroes(file: &File, offset: u64, len: u64) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let zeroes = AlignedBuf::zeroed(usize::try_from(CHUNK.min(len)).unwrap_or(usize::MAX));
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(CHUNK);
        let piece_len = usize::try_from(piece).map_err(io::Error::other)?;
        file.write_all_at(&zeroes.as_ref()[..piece_len], offset + done)?;
        done += piece;
    }
    Ok(())
}

/// An operation without its data, for the log.
fn describe(op: &DiskOpKind) -> String {
    match op {
        DiskOpKind::Read { file, offset, len } => format!("read {file} {offset}+{len}"),
        DiskOpKind::Write { file, offset, data, durable } => {
            let durable = if *durable { " durably" } else { "" };
            format!("write {file} {offset}+{}{durable}", data.len())
        }
        DiskOpKind::Zero { file, offset, len, .. } => format!("zero {file} {offset}+{len}"),
        DiskOpKind::Sync { file } => format!("flush {file}"),
        other => format!("{other:?}"),
    }
}

/// What an operation asks of the threads.
pub(crate) fn class_of(op: &DiskOpKind) -> Class {
    match op {
        DiskOpKind::Sync { .. }
        | DiskOpKind::Extend { .. }
        | DiskOpKind::TrySnapshot
        | DiskOpKind::CopyAhead { .. }
        | DiskOpKind::DropAhead
        | DiskOpKind::KeepTags { .. }
        | DiskOpKind::SealSnapshot { .. }
        | DiskOpKind::DropSnapshot { .. } => Class::Flush,
        // Guests wait for a snapshot.
        DiskOpKind::Read { .. }
        | DiskOpKind::Write { .. }
        | DiskOpKind::Zero { .. }
        | DiskOpKind::Snapshot { .. } => Class::Transfer,
    }
}
