//! A process that keeps open files while the daemon is replaced.
//!
//! What a FUSE connection was asked lives as long as the connection is open in some process. A
//! daemon that dies closes its files; so the keeper holds the connections too, each under a name,
//! and the next daemon fetches them. It does nothing else, so that it never needs to be replaced
//! itself: it is small, its memory is locked, it reads no configuration.
//!
//! It listens on `<run_dir>/keeper.sock`, to root only. One connection is one request: a line of
//! JSON, with a file attached where one is kept; the answer is a line of JSON, with the file
//! attached where one was fetched. Who wants to know when the keeper ends keeps a connection: it
//! ends without another line if the keeper was killed. A keeper is started by whoever first needs
//! it, detached, or by a service manager; it ends when it has nothing to keep for a while, or on
//! `SIGTERM`, which is a shutdown of the node.

mod client;
mod command;
mod server;
mod wire;

pub use client::{End, KeeperClient, Kept};
pub use command::command;
pub use server::run;

use std::path::{Path, PathBuf};

/// Why a file could not be kept or fetched.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// No keeper answers, and none could be started.
    #[error("no keeper answers at {socket}, and starting one failed: {why}")]
    Absent {
        /// Where it should be.
        socket: PathBuf,
        /// What was tried.
        why: String,
    },
    /// The conversation broke off.
    #[error("the keeper at {socket}: {source}")]
    Io {
        /// Where it is.
        socket: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The keeper would not.
    #[error("the keeper refused: {0}")]
    Refused(String),
}

/// Where the keeper of a run directory listens.
fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("keeper.sock")
}
