//! Pools: directories that hold replicas.
//!
//! ```text
//! <pool>/lock            held by the daemon that owns the pool; holds its process id
//! <pool>/pool.json       whose pool it is
//! <pool>/replicas/<volume uid>/{about.json,meta,data,tags,regions}
//! <pool>/snapshots/<id>/ {about.json,data,tags,regions}
//! <pool>/trash/          what is being deleted
//! ```
//! Everything here blocks; callers on async threads hand it to blocking ones.

mod error;
pub(crate) mod fs;
mod identity;
mod kept;
mod remake;
mod replicas;
mod snapshots;
mod space;
#[cfg(test)]
pub(crate) mod tests;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use lockstep_core::id::NodeId;
use uuid::Uuid;

pub use error::PoolError;
pub(crate) use remake::{NewCopy, Part};
pub(crate) use replicas::{About, Found, Initial, Taking, preallocate};
pub(crate) use snapshots::{FILES as SNAPSHOT_FILES, SnapshotAbout};
pub(crate) use space::{Space, bytes_used};

use crate::engine::PoolConfig;
use fs::{failed, is_read_only};
use identity::Identity;

/// Directory of the replicas within a pool.
const REPLICAS: &str = "replicas";
/// Directory of what is being deleted within a pool.
const TRASH: &str = "trash";
/// Names that may be in a directory that becomes a pool.
const TOLERATED: [&str; 2] = ["lost+found", "lock"];

/// A pool that this process owns.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) config: PoolConfig,
    pub(crate) uuid: Uuid,
    /// Keeps other daemons out for as long as it is open.
    lock: Mutex<Option<File>>,
    sharing: snapshots::Sharing,
}

/// The cluster that the pool in a directory was made for; `None`: there is none.
pub(crate) fn cluster_of(dir: &Path) -> Result<Option<Uuid>, PoolError> {
    Ok(Identity::read(dir)?.map(|identity| identity.cluster))
}

impl Pool {
    /// Locks a pool; makes it if the directory is empty or missing.
    ///
    /// # Errors
    /// If another process has it, it belongs to somebody else, or can't be written.
    pub(crate) fn open(
        config: &PoolConfig,
        cluster: Uuid,
        node: &NodeId,
    ) -> Result<Self, PoolError> {
        let dir = &config.dir;
        create_dir(dir, dir)?;
        let found = Identity::read(dir)?;
        if let Some(identity) = &found {
            identity.check(dir, cluster, node, &config.name)?;
        } else {
            refuse_strangers(dir)?;
        }
        let lock = lock(dir)?;
        let identity = match found {
            Some(identity) => identity,
            None => {
                let identity = Identity::new(cluster, node, &config.name);
                identity.write(dir)?;
                identity
            }
        };
        for sub in [REPLICAS, snapshots::SNAPSHOTS, TRASH] {
            create_dir(dir, &dir.join(sub))?;
        }
        let pool = Self {
            config: config.clone(),
            uuid: identity.uuid,
            lock: Mutex::new(Some(lock)),
            sharing: snapshots::Sharing::default(),
        };
        pool.remove_leftovers()?;
        Ok(pool)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Lets other daemons have the pool; nothing may be done with it afterwards.
    pub(crate) fn release(&self) {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Closing alone does not do it while a process that is just being started holds a copy
        // of the descriptor. If it fails, closing has to do.
        let _ = lock.map(|file| file.unlock());
    }

    fn replicas_dir(&self) -> PathBuf {
        self.config.dir.join(REPLICAS)
    }

    fn trash_dir(&self) -> PathBuf {
        self.config.dir.join(TRASH)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.release();
    }
}

/// Makes a directory, durably, if it is missing.
fn create_dir(pool: &Path, dir: &Path) -> Result<(), PoolError> {
    match fs::create_dirs(dir) {
        Err(source) if is_read_only(&source) => {
            Err(PoolError::ReadOnly { dir: pool.to_owned(), source })
        }
        result => result.map_err(failed("create", dir)),
    }
}

/// A directory with other things in it does not become a pool.
fn refuse_strangers(dir: &Path) -> Result<(), PoolError> {
    let entries = std::fs::read_dir(dir).map_err(failed("list", dir))?;
    for entry in entries {
        let name = entry.map_err(failed("list", dir))?.file_name();
        let found = name.to_string_lossy().into_owned();
        let unfinished = found == format!(".{}.new", identity::FILE);
        if !unfinished && !TOLERATED.contains(&found.as_str()) {
            return Err(PoolError::NotEmpty { dir: dir.to_owned(), found });
        }
    }
    Ok(())
}

/// Takes the pool's lock and leaves this process's id in it.
fn lock(dir: &Path) -> Result<File, PoolError> {
    let path = dir.join("lock");
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
    let mut file = match options.open(&path) {
        Err(source) if is_read_only(&source) => {
            return Err(PoolError::ReadOnly { dir: dir.to_owned(), source });
        }
        result => result.map_err(failed("open", &path))?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message: what can't be read is told as unknown.
            let _ = (&file).take(32).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() };
            return Err(PoolError::InUse { dir: dir.to_owned(), pid: pid.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
    }
    let note = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    match note(&mut file) {
        Ok(()) => Ok(file),
        Err(source) if is_read_only(&source) => {
            Err(PoolError::ReadOnly { dir: dir.to_owned(), source })
        }
        // The lock is held; a full disk only costs the next one the process id in its message.
        Err(source) if source.kind() == std::io::ErrorKind::StorageFull => Ok(file),
        Err(source) => Err(failed("write", &path)(source)),
    }
}
