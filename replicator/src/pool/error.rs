//! Why a pool or a replica directory can't be used, told so that the operator can act.

use std::io;
use std::path::PathBuf;

use lockstep_core::id::{ReplicaId, VolumeId};
use thiserror::Error;

/// Why a pool or a replica directory can't be used.
#[derive(Debug, Error)]
pub enum PoolError {
    /// Another process has the pool.
    #[error(
        "pool directory {dir} is in use by process {pid}; stop that daemon or use another directory"
    )]
    InUse {
        /// The pool.
        dir: PathBuf,
        /// Who has it, as written in its lock file.
        pid: String,
    },
    /// The pool was made for somebody else.
    #[error(
        "pool directory {dir} belongs to {what} {theirs}, this daemon is of {what} {ours}; \
         use the right directory, or empty this one if its data is not needed"
    )]
    Foreign {
        /// The pool.
        dir: PathBuf,
        /// `node`, `cluster` or `pool`.
        what: &'static str,
        /// Whose it is.
        theirs: String,
        /// Who asks.
        ours: String,
    },
    /// The identity file can't be read as one.
    #[error(
        "{file} is not a pool identity: {why}; restore it from a backup or empty the directory"
    )]
    BadIdentity {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The pool was written by a newer version.
    #[error("pool directory {dir} has format {found}, this build knows {known}: upgrade this node")]
    FromTheFuture {
        /// The pool.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// A directory that holds other things was given as a new pool.
    #[error("{dir} is not empty and not a pool (found {found:?}); use an empty directory")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// The file system is mounted read-only or its permissions forbid writing.
    #[error("pool directory {dir} can't be written: {source}; remount it or fix its permissions")]
    ReadOnly {
        /// The pool.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not enough space.
    #[error(
        "pool {pool} has {free_bytes} bytes free that are not promised to copies, {needed_bytes} \
         are needed; free some space, use another pool, or let it promise more than it has \
         (overcommit=PERCENT of --pool)"
    )]
    Full {
        /// Its name.
        pool: String,
        /// Bytes to be had.
        free_bytes: u64,
        /// Bytes asked for.
        needed_bytes: u64,
    },
    /// Two pools of one node have the same name or directory.
    #[error("pool {0:?} is configured twice; give each pool its own name and directory")]
    Twice(String),
    /// A replica's files can't be used; they are left alone.
    #[error("replica of volume {volume} in {dir} is damaged: {why}")]
    Damaged {
        /// The volume.
        volume: VolumeId,
        /// The replica's directory.
        dir: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// Another copy of the same volume is in the way.
    #[error("{dir} already holds replica {existing}")]
    Exists {
        /// The replica's directory.
        dir: PathBuf,
        /// Which copy it is.
        existing: ReplicaId,
    },
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// The verb.
        what: &'static str,
        /// Of which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
