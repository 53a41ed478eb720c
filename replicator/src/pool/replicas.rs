//! The replica directories of a pool: made whole or not at all, deleted in two steps, found again
//! at start.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lockstep_core::id::VolumeId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fs::{failed, flush_dir};
use super::snapshots::TRIAL;
use super::{Pool, PoolError};

/// Prefix of a directory that is not finished yet.
const UNFINISHED: &str = ".new-";
/// File that tells people what they look at.
const ABOUT: &str = "about.json";

/// When a file takes its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// As it is written.
    Later,
    /// At once, where the file system knows how to.
    IfItCan,
    /// At once, or the file is not made.
    Now,
}

/// A file of a new replica.
#[derive(Clone, Debug)]
pub(crate) struct Initial {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its length in bytes.
    pub(crate) len: u64,
    /// When its space is taken.
    pub(crate) taking: Taking,
    /// A file whose content it begins with, by sharing its blocks.
    pub(crate) source: Option<PathBuf>,
    /// First contents: offset and bytes. The rest is zeroes, or the source's.
    pub(crate) writes: Vec<(u64, Bytes)>,
}

/// A replica directory that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The volume, from the directory's name.
    pub(crate) volume: VolumeId,
    /// The directory.
    pub(crate) dir: PathBuf,
    /// What stands beside its files; nothing of it if that can't be read.
    pub(crate) about: About,
}

/// What stands beside the files of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The volume's name when the replica was made.
    pub(crate) volume_name: String,
    /// All the space of its data is taken, and kept.
    #[serde(default)]
    pub(crate) thick: bool,
}

impl Pool {
    /// Where the replica of a volume is kept.
    pub(crate) fn replica_dir(&self, volume: VolumeId) -> PathBuf {
        self.replicas_dir().join(volume.to_string())
    }

    /// Makes a replica's directory with its files; durable when it returns.
    ///
    /// # Errors
    /// [`PoolError::Full`] if the file system has no space, [`PoolError::Io`].
    pub(crate) fn create(
        &self,
        volume: VolumeId,
        about: About,
        files: &[Initial],
    ) -> Result<Found, PoolError> {
        let parent = self.replicas_dir();
        let unfinished = parent.join(format!("{UNFINISHED}{volume}"));
        let made = self.fill(&unfinished, &about, files);
        if let Err(e) = made {
            // Best effort; the next start removes what is left.
            let _ = fs::remove_dir_all(&unfinished);
            return Err(e);
        }
        let dir = self.replica_dir(volume);
        fs::rename(&unfinished, &dir).map_err(failed("rename", &unfinished))?;
        flush_dir(&parent)?;
        Ok(Found { volume, dir, about })
    }

    fn fill(&self, dir: &Path, about: &About, files: &[Initial]) -> Result<(), PoolError> {
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(failed("remove", dir))?;
        }
        fs::create_dir(dir).map_err(|e| self.space_error(dir, e, 0))?;
        for file in files {
            let path = dir.join(file.name);
            let needed = if file.taking == Taking::Later { 0 } else { file.len };
            make_file(&path, file).map_err(|e| self.space_error(&path, e, needed))?;
        }
        let text = serde_json::to_vec(about).unwrap_or_default();
        super::fs::replace_file(dir, ABOUT, &text)
    }

    /// An error of making something: "no space" is told as such.
    fn space_error(&self, path: &Path, e: std::io::Error, needed_bytes: u64) -> PoolError {
        if e.kind() == std::io::ErrorKind::StorageFull {
            let free_bytes = self.space(0, 0).map_or(0, |s| s.free);
            let pool = self.name().to_owned();
            return PoolError::Full { pool, free_bytes, needed_bytes };
        }
        failed("create", path)(e)
    }

    /// Removes a replica's directory. It is gone for every later start as soon as it is renamed;
    /// its space follows. `false` if there was none.
    ///
    /// # Errors
    /// [`PoolError::Io`].
    pub(crate) fn delete(&self, volume: VolumeId) -> Result<bool, PoolError> {
        self.drop_ahead(volume).map_err(failed("remove", &self.snapshots_dir()))?;
        let dir = self.replica_dir(volume);
        if !dir.exists() {
            return Ok(false);
        }
        let trash = self.trash_dir().join(format!("{volume}-{}", Uuid::new_v4()));
        fs::rename(&dir, &trash).map_err(failed("rename", &dir))?;
        flush_dir(&self.replicas_dir())?;
        flush_dir(&self.trash_dir())?;
        fs::remove_dir_all(&trash).map_err(failed("remove", &trash))?;
        Ok(true)
    }

    /// The replica directories, by volume. Other names are left alone and told to the log.
    ///
    /// # Errors
    /// If the directory can't be listed.
    pub(crate) fn scan(&self) -> Result<Vec<Found>, PoolError> {
        let parent = self.replicas_dir();
        let mut found = Vec::new();
        for entry in fs::read_dir(&parent).map_err(failed("list", &parent))? {
            let dir = entry.map_err(failed("list", &parent))?.path();
            let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            match Uuid::try_parse(name) {
                Ok(uuid) if dir.is_dir() => {
                    let about = read_about(&dir);
                    found.push(Found { volume: VolumeId(uuid), dir, about });
                }
                Ok(_) | Err(_) => {
                    tracing::warn!(path = %dir.display(), "not a replica: left alone");
                }
            }
        }
        found.sort_by_key(|f| f.volume);
        Ok(found)
    }

    /// Removes directories that were never finished, or not deleted to the end.
    pub(super) fn remove_leftovers(&self) -> Result<(), PoolError> {
        let trash = self.trash_dir();
        let parent = self.replicas_dir();
        let snapshots = self.snapshots_dir();
        for dir in [&trash, &parent, &snapshots] {
            for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
                let path = entry.map_err(failed("list", dir))?.path();
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                if name.starts_with(TRIAL) {
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                } else if dir == &trash || name.starts_with(UNFINISHED) {
                    fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// Makes one file of a new replica, durably.
fn make_file(path: &Path, initial: &Initial) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    if let Some(source) = &initial.source {
        lockstep_kernel::share::clone_whole(&File::open(source)?, &file)?;
    }
    file.set_len(initial.len)?;
    preallocate(&file, initial.len, initial.taking)?;
    for (offset, bytes) in &initial.writes {
        file.write_all_at(bytes, *offset)?;
    }
    file.sync_all()
}

/// Takes the space of a file. What it shares with others stays shared.
pub(crate) fn preallocate(file: &File, len: u64, taking: Taking) -> std::io::Result<()> {
    if taking == Taking::Later || len == 0 {
        return Ok(());
    }
    let len = i64::try_from(len).map_err(std::io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        Err(Errno::EOPNOTSUPP) if taking == Taking::IfItCan => Ok(()),
        Err(Errno::EOPNOTSUPP) => Err(std::io::Error::new(
            std::io::ErrorKind::Unsupported,
            "the file system cannot set space aside (fallocate); make the volume without `thick`, \
             or in a pool on XFS, ext4 or btrfs",
        )),
        Err(errno) => Err(errno.into()),
    }
}

fn read_about(dir: &Path) -> About {
    let bytes = fs::read(dir.join(ABOUT)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
