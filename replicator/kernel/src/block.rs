//! Block devices as files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens a block device for oneself, as a mount does; nobody can mount it meanwhile.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] while a file system, another block device or another program
/// holds it in this way.
pub fn open_exclusive(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device)
}
