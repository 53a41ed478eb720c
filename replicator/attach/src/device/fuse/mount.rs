//! Mounting the file system of one file, on a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use crate::device::DeviceError;
use crate::filesystem::mounts;

/// What the file system is called in lists of mounts.
const SOURCE: &str = "lockstep";

/// Its type; the part after the dot is shown, and means nothing to the kernel.
const TYPE: &str = "fuse.lockstep";

/// The place in `run_dir` for the file called `name`, without symbolic links. Makes it.
pub(crate) fn place(run_dir: &Path, name: &str) -> Result<PathBuf, DeviceError> {
    let dir = run_dir.join("fuse");
    let refused = |path: &Path, source| {
        let path = path.display();
        refused(format!("making {path}; see that its file system can be written"), source)
    };
    std::fs::create_dir_all(&dir).map_err(|error| refused(&dir, error))?;
    let dir = dir.canonicalize().map_err(|error| refused(&dir, error))?;
    Ok(dir.join(name))
}

/// A connection to the kernel that nothing is mounted on yet.
pub(crate) fn connect() -> Result<File, DeviceError> {
    // It does not block: one thread that waits, waits for other things too.
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/fuse");
    file.map_err(|error| refused("opening /dev/fuse; load the module fuse".to_owned(), error))
}

/// Mounts at `place`, which is made, and must be no mount yet. Returns the number of the connection
/// in `/sys/fs/fuse/connections`.
pub(crate) fn mount(place: &Path, connection: &File) -> Result<u32, DeviceError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(place).map_err(|error| refused(format!("making {}", place.display()), error))?;
    // Without `allow_other`, nobody but root gets at the file.
    let fd = connection.as_raw_fd();
    let options = format!("fd={fd},rootmode=100600,user_id=0,group_id=0");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some(SOURCE), place, Some(TYPE), flags, Some(options.as_str())).map_err(
        |errno| refused(format!("mounting on {}; that takes root", place.display()), errno.into()),
    )?;
    let not_seen = || {
        force_off(place);
        let what = format!("finding {} among the mounts", place.display());
        refused(what, io::ErrorKind::NotFound.into())
    };
    number(place).ok_or_else(not_seen)
}

fn refused(what: String, source: io::Error) -> DeviceError {
    DeviceError::Refused { what, source }
}

/// The number of the connection of what is mounted at `place`, if it is one of ours.
pub(crate) fn number(place: &Path) -> Option<u32> {
    let mount = mounts().ok()?.into_iter().rfind(|mount| mount.dir == place)?;
    if mount.fs == TYPE { u32::try_from(mount.device.1).ok() } else { None }
}

/// Takes the mount off `place`, if it is this connection's. Those who use the file go on using it.
pub(crate) fn take_off(place: &Path, connection: u32) {
    if number(place) == Some(connection) {
        log("unmounting", place, nix::mount::umount2(place, MntFlags::MNT_DETACH));
        remove(place);
    }
}

/// Takes all mounts of ours off `place`, and fails the requests of those who use the file.
pub(crate) fn force_off(place: &Path) {
    // Several lie on each other after repeated crashes.
    while number(place).is_some() {
        let flags = MntFlags::MNT_FORCE | MntFlags::MNT_DETACH;
        let outcome = nix::mount::umount2(place, flags);
        log("unmounting", place, outcome);
        if outcome.is_err() {
            return;
        }
    }
    remove(place);
}

fn remove(place: &Path) {
    match std::fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, place = %place.display(), "a leftover file cannot be removed");
        }
        _ => {}
    }
}

fn log(what: &str, place: &Path, outcome: Result<(), Errno>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, place = %place.display(), "{what} failed");
    }
}
