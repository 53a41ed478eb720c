//! Holding a file system still: what was changed is written out, and nothing changes until it is
//! thawed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

/// `FIFREEZE` and `FITHAW` of `linux/fs.h`.
const FIFREEZE: u64 = 0xC004_5877;
const FITHAW: u64 = 0xC004_5878;

/// Holds the file system still that a file or directory is on. It stays so when this process ends.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] if somebody holds it still already; `EOPNOTSUPP` if it can't be.
pub fn freeze(on: &File) -> io::Result<()> {
    call(on, FIFREEZE)
}

/// Lets it go on.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if nobody holds it still.
pub fn thaw(on: &File) -> io::Result<()> {
    call(on, FITHAW)
}

fn call(on: &File, command: u64) -> io::Result<()> {
    let unused: nix::libc::c_ulong = 0;
    // SAFETY: these commands take no argument and touch no memory of the process.
    let outcome = unsafe { nix::libc::ioctl(on.as_raw_fd(), command as _, unused) };
    Errno::result(outcome)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_held_still_is_refused() {
        // Without the right to administer the system: EPERM.
        let proc = File::open("/proc/self").unwrap();
        assert!(freeze(&proc).is_err());
        assert!(thaw(&proc).is_err());
    }
}
