//! The file that is exercised.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lockstep_kernel::map::FileMap;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::libc;

use crate::aligned::{Aligned, BLOCK};

/// How bytes get into a file and out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache.
    Buffered,
    /// Past it, `O_DIRECT`.
    Direct,
    /// By a mapping.
    Mapped,
}

pub(super) struct Subject {
    path: PathBuf,
    buffered: File,
    direct: File,
}

impl Subject {
    pub(super) fn create(path: &Path) -> Result<Self> {
        File::create(path).with_context(|| path.display().to_string())?;
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true);
        let buffered = options.open(path)?;
        let direct = options.custom_flags(libc::O_DIRECT).open(path).context("O_DIRECT")?;
        Ok(Self { path: path.to_owned(), buffered, direct })
    }

    pub(super) fn reopen(&mut self) -> Result<()> {
        *self = Self::open(&self.path)?;
        Ok(())
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.buffered.metadata()?.len())
    }

    /// What stands in this range; less at the end of the file.
    pub(super) fn read(&self, way: Way, offset: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let got = match way {
            Way::Buffered => read_full(&self.buffered, &mut bytes, offset)?,
            Way::Direct => {
                let mut aligned = Aligned::new(len);
                let got = read_full(&self.direct, aligned.bytes(), offset)?;
                bytes.copy_from_slice(aligned.bytes());
                got
            }
            Way::Mapped => {
                FileMap::new(&self.buffered, offset + len)?.read(offset, &mut bytes)?;
                len
            }
        };
        bytes.truncate(got);
        Ok(bytes)
    }

    pub(super) fn read_all(&self) -> Result<Vec<u8>> {
        self.read(Way::Buffered, 0, usize::try_from(self.len()?)?)
    }

    pub(super) fn write(&self, way: Way, offset: usize, data: &[u8]) -> Result<()> {
        match way {
            Way::Buffered => self.buffered.write_all_at(data, offset as u64)?,
            Way::Direct => {
                let mut aligned = Aligned::new(data.len());
                aligned.bytes().copy_from_slice(data);
                self.direct.write_all_at(aligned.bytes(), offset as u64)?;
            }
            Way::Mapped => {
                let end = offset + data.len();
                FileMap::new(&self.buffered, end)?.write(offset, data)?;
            }
        }
        Ok(())
    }

    pub(super) fn truncate(&self, len: usize) -> Result<()> {
        Ok(self.buffered.set_len(len as u64)?)
    }

    pub(super) fn punch(&self, offset: usize, len: usize) -> Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(flags, offset, len)
    }

    pub(super) fn zero(&self, offset: usize, len: usize, grow: bool) -> Result<()> {
        let mut flags = FallocateFlags::FALLOC_FL_ZERO_RANGE;
        if !grow {
            flags |= FallocateFlags::FALLOC_FL_KEEP_SIZE;
        }
        self.allocate(flags, offset, len)
    }

    fn allocate(&self, flags: FallocateFlags, offset: usize, len: usize) -> Result<()> {
        let (offset, len) = (i64::try_from(offset)?, i64::try_from(len)?);
        fallocate(&self.buffered, flags, offset, len).context("fallocate")
    }

    pub(super) fn fsync(&self, data_only: bool) -> Result<()> {
        if data_only {
            self.buffered.sync_data()?
        } else {
            self.buffered.sync_all()?
        }
        Ok(())
    }

    /// Puts everything on the device and out of memory, so that the next read asks the device.
    pub(super) fn forget(&self) -> Result<()> {
        self.buffered.sync_all()?;
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        posix_fadvise(&self.buffered, 0, 0, advice).context("posix_fadvise")
    }
}

fn read_full(file: &File, bytes: &mut [u8], offset: usize) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let got = match file.read_at(rest, (offset + done) as u64) {
            // A direct read that ended within a block has met the end of the file.
            Ok(got) if got % BLOCK != 0 && got < rest.len() => return Ok(done + got),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if got == 0 {
            break;
        }
        done += got;
    }
    Ok(done)
}
