//! Snapshots in a pool: files that share their blocks with those of the replica they were taken of.
//!
//! ```text
//! <pool>/snapshots/<snapshot id>/{about.json,data,tags,regions}
//! ```
//! A snapshot is there whole or not at all: it gets its name when all of it is durable.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};

use lockstep_core::id::{SnapshotId, VolumeId};
use lockstep_core::range::{BLOCK_SIZE, BlockRange};
use lockstep_kernel::share;
use lockstep_store::layout::File as Which;
use lockstep_store::{Patch, Unwritten};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fs::{failed, flush_dir, replace_file};
use super::{Pool, PoolError};

/// Directory of the snapshots within a pool.
pub(super) const SNAPSHOTS: &str = "snapshots";
/// Prefix of what is not finished yet.
pub(super) const UNFINISHED: &str = ".new-";
/// Prefix of files that are made to find out what the file system can do.
pub(super) const TRIAL: &str = ".try-";
/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;
/// What a snapshot says of itself.
const ABOUT: &str = "about.json";
/// The files of a replica that a snapshot has.
pub(crate) const FILES: [Which; 3] = [Which::Data, Which::Tags, Which::Regions];

/// A snapshot in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotAbout {
    /// Of which volume.
    pub(crate) volume: VolumeId,
    /// Size in blocks; the files may be longer. More than the snapshot counts, if this copy's
    /// replica had grown and its volume had not.
    pub(crate) blocks: u64,
    /// Blocks that no node could give when this copy was made anew.
    #[serde(default)]
    pub(crate) gaps: u64,
}

/// Can files of the pool share blocks? It is found out once.
#[derive(Debug, Default)]
pub(super) struct Sharing(AtomicU8);

const YES: u8 = 1;
const NO: u8 = 2;

impl Pool {
    /// Directory of its snapshots.
    pub(crate) fn snapshots_dir(&self) -> PathBuf {
        self.config.dir.join(SNAPSHOTS)
    }

    /// Can files of this pool share blocks?
    ///
    /// # Errors
    /// If that can't be tried.
    pub(crate) fn can_share(&self) -> std::io::Result<bool> {
        match self.sharing.0.load(Ordering::Relaxed) {
            YES => return Ok(true),
            NO => return Ok(false),
            _ => {}
        }
        let dir = self.snapshots_dir();
        let name = |n: u8| dir.join(format!("{TRIAL}{}-{n}", Uuid::new_v4()));
        let (from, to) = (name(0), name(1));
        let tried = try_sharing(&from, &to);
        for path in [&from, &to] {
            // The next start removes what is left.
            let _ = fs::remove_file(path);
        }
        let can = match tried {
            Ok(()) => true,
            Err(error) if share::is_unsupported(&error) => false,
            Err(error) => return Err(error),
        };
        self.sharing.0.store(if can { YES } else { NO }, Ordering::Relaxed);
        Ok(can)
    }

    /// Copies these blocks of a volume's data ahead: to the copy that is there, or to a new one.
    ///
    /// # Errors
    /// What the system said. Then there is no copy.
    pub(crate) fn copy_ahead(
        &self,
        volume: VolumeId,
        data: &File,
        fresh: bool,
        ranges: &[BlockRange],
    ) -> std::io::Result<()> {
        let copied = (|| {
            if fresh {
                self.drop_ahead(volume)?;
                fs::create_dir(self.ahead_dir(volume))?;
                let copy = File::create_new(self.ahead_dir(volume).join(Which::Data.name()))?;
                copy.set_len(data.metadata()?.len())?;
            }
            share_ranges(&self.ahead_dir(volume), data, ranges)
        })();
        if copied.is_err() {
            // Best effort; the next start removes what is left.
            let _ = self.drop_ahead(volume);
        }
        copied
    }

    /// Removes what was copied ahead of a volume, if there is any.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn drop_ahead(&self, volume: VolumeId) -> std::io::Result<()> {
        match fs::remove_dir_all(self.ahead_dir(volume)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Begins a snapshot with what this file has now: of the copy that was made ahead, which
    /// lacks some blocks, or of nothing. None of it is durable, and there is no snapshot before it
    /// is sealed.
    ///
    /// # Errors
    /// What the system said; [`share::is_unsupported`] tells whether blocks can't be shared.
    pub(crate) fn keep_data(
        &self,
        id: SnapshotId,
        volume: VolumeId,
        data: &File,
        ahead: Option<&[BlockRange]>,
    ) -> std::io::Result<()> {
        let dir = self.unfinished_dir(id);
        if self.snapshot_dir(id).exists() || dir.exists() {
            return Err(std::io::ErrorKind::AlreadyExists.into());
        }
        let kept = match ahead {
            Some(ranges) => fs::rename(self.ahead_dir(volume), &dir)
                .and_then(|()| share_ranges(&dir, data, ranges)),
            None => fs::create_dir(&dir).and_then(|()| keep(&dir, Which::Data, data).map(drop)),
        };
        self.unless_failed(id, kept)
    }

    /// Adds these files as they are now, with what they lack written into the copies.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn keep_tags<'a>(
        &self,
        id: SnapshotId,
        files: impl Iterator<Item = (Which, &'a File)>,
        unwritten: &Unwritten,
    ) -> std::io::Result<()> {
        let dir = self.unfinished_dir(id);
        let kept = files.into_iter().try_for_each(|(which, file)| {
            let copy = keep(&dir, which, file)?;
            patch_all(&copy, unwritten.patches().filter(|patch| patch.file == which))
        });
        self.unless_failed(id, kept)
    }

    /// Makes a snapshot durable, and gives it its name.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn seal_snapshot(
        &self,
        id: SnapshotId,
        about: &SnapshotAbout,
    ) -> std::io::Result<()> {
        let dir = self.unfinished_dir(id);
        let sealed = seal(&dir, about).and_then(|()| {
            fs::rename(&dir, self.snapshot_dir(id))?;
            File::open(self.snapshots_dir())?.sync_all()
        });
        self.unless_failed(id, sealed)
    }

    fn unless_failed(&self, id: SnapshotId, done: std::io::Result<()>) -> std::io::Result<()> {
        if done.is_err() {
            // Best effort; the next start removes what is left.
            let _ = fs::remove_dir_all(self.unfinished_dir(id));
        }
        done
    }

    /// Where content of a volume is copied ahead.
    fn ahead_dir(&self, volume: VolumeId) -> PathBuf {
        self.snapshots_dir().join(format!("{UNFINISHED}{volume}"))
    }

    /// Where a snapshot is made.
    pub(super) fn unfinished_dir(&self, id: SnapshotId) -> PathBuf {
        self.snapshots_dir().join(format!("{UNFINISHED}{id}"))
    }

    /// Where a snapshot is kept.
    pub(crate) fn snapshot_dir(&self, id: SnapshotId) -> PathBuf {
        self.snapshots_dir().join(id.to_string())
    }

    /// What a snapshot says of itself; `None` if there is none.
    pub(crate) fn snapshot(&self, id: SnapshotId) -> Option<SnapshotAbout> {
        let text = fs::read(self.snapshot_dir(id).join(ABOUT)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Removes a snapshot; it is gone for every later start as soon as it is renamed. `false` if
    /// there was none.
    ///
    /// # Errors
    /// [`PoolError::Io`].
    pub(crate) fn drop_snapshot(&self, id: SnapshotId) -> Result<bool, PoolError> {
        let unfinished = self.unfinished_dir(id);
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(failed("remove", &unfinished))?;
        }
        let dir = self.snapshot_dir(id);
        if !dir.exists() {
            return Ok(false);
        }
        let trash = self.trash_dir().join(format!("{id}-{}", Uuid::new_v4()));
        fs::rename(&dir, &trash).map_err(failed("rename", &dir))?;
        flush_dir(&self.snapshots_dir())?;
        flush_dir(&self.trash_dir())?;
        fs::remove_dir_all(&trash).map_err(failed("remove", &trash))?;
        Ok(true)
    }
}

fn try_sharing(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::write(from, [1; 4096])?;
    share::clone_whole(&File::open(from)?, &File::create(to)?)
}

/// Makes a copy that shares the file's blocks.
fn keep(dir: &Path, which: Which, file: &File) -> std::io::Result<File> {
    let mut options = File::options();
    let copy = options.read(true).write(true).create_new(true).open(dir.join(which.name()))?;
    share::clone_whole(file, &copy)?;
    Ok(copy)
}

/// Writes what is less than a page here and there. Pages are read in large pieces before, since
/// each would be read by itself else.
fn patch_all(copy: &File, patches: impl Iterator<Item = Patch>) -> std::io::Result<()> {
    let (mut read, piece) = (vec![0; READ_BYTES], READ_BYTES as u64);
    let mut known_to = 0;
    for patch in patches {
        let end = patch.offset + patch.data.len() as u64;
        if end > known_to {
            let from = patch.offset.max(known_to) / piece * piece;
            copy.read_at(&mut read, from)?;
            known_to = from + piece;
        }
        copy.write_all_at(&patch.data, patch.offset)?;
    }
    Ok(())
}

/// Makes these blocks of the copy in `dir` share those of the data.
fn share_ranges(dir: &Path, data: &File, ranges: &[BlockRange]) -> std::io::Result<()> {
    let copy = File::options().write(true).open(dir.join(Which::Data.name()))?;
    let block = u64::from(BLOCK_SIZE);
    let mut ranges = ranges.iter();
    ranges.try_for_each(|range| share::clone_range(data, &copy, range.start * block, range.bytes()))
}

fn seal(dir: &Path, about: &SnapshotAbout) -> std::io::Result<()> {
    for which in FILES {
        File::options().write(true).open(dir.join(which.name()))?.sync_all()?;
    }
    let text = serde_json::to_vec(about)?;
    replace_file(dir, ABOUT, &text).map_err(std::io::Error::other)
}
