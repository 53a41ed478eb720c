//! Block devices as files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `BLKFLSBUF` of `linux/fs.h`.
const BLKFLSBUF: u64 = 0x1261;

/// Opens a block device for oneself, as a mount does; nobody can mount it meanwhile.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] while a file system, another block device or another program
/// holds it in this way.
pub fn open_exclusive(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device)
}

/// Writes out what the page cache has of a block device, then forgets it: what is read through the
/// page cache afterwards is what is on the device. Needs the right to administer the system.
///
/// # Errors
/// If a write failed, and as the kernel says: `ENOTTY` if it is no block device.
pub fn flush_page_cache(device: &File) -> io::Result<()> {
    let unused: nix::libc::c_ulong = 0;
    // SAFETY: this command takes no argument and touches no memory of the process.
    let outcome = unsafe { nix::libc::ioctl(device.as_raw_fd(), BLKFLSBUF as _, unused) };
    nix::errno::Errno::result(outcome)?;
    Ok(())
}
