//! One process at a time that makes, mends or mounts a file system on a device.
//!
//! A process that mounts outlives the daemon that had it do so: the next daemon's finds it at work.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};

use super::{FileSystemError, failed};

/// Holds others off, or waits for them; udev keeps away too. Programs that are run meanwhile hold
/// the lock too, also if they outlive this process.
pub(super) fn alone(device: &Path) -> Result<Flock<File>, FileSystemError> {
    let cannot = |error: io::Error| failed("cannot lock", device, error);
    let file = File::open(device).map_err(cannot)?;
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|errno| cannot(errno.into()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| cannot(errno.into()))
}
