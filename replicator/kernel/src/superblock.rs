//! File systems without a place: `fsopen` and `fsconfig` of `linux/mount.h`, since Linux 5.2.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use nix::errno::Errno;
use nix::libc::{SYS_fsconfig, SYS_fsopen, c_int, syscall};

const FSOPEN_CLOEXEC: c_int = 1;

/// What `fsconfig` is told.
#[derive(Clone, Copy, Debug)]
enum Setting<'a> {
    Flag(&'a CStr),
    Text(&'a CStr, &'a CStr),
    Create,
}

/// A file system that is being put together, and later is there; it ends when this is closed.
struct Context(OwnedFd);

impl Context {
    fn open(fs: &CStr) -> io::Result<Self> {
        // SAFETY: the kernel reads the name up to its zero byte, and keeps no reference to it.
        let fd = unsafe { syscall(SYS_fsopen, fs.as_ptr(), FSOPEN_CLOEXEC) };
        let fd = c_int::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn set(&self, setting: Setting<'_>) -> io::Result<()> {
        // FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE.
        let (command, key, value): (c_int, _, _) = match setting {
            Setting::Flag(name) => (0, name.as_ptr(), ptr::null()),
            Setting::Text(name, text) => (1, name.as_ptr(), text.as_ptr()),
            Setting::Create => (6, ptr::null(), ptr::null()),
        };
        let fd: c_int = self.0.as_raw_fd();
        let unused: c_int = 0;
        // SAFETY: both addresses are null, as the command wants them, or of texts that end with a
        // zero byte and outlive the call; the kernel keeps no reference to them.
        Errno::result(unsafe { syscall(SYS_fsconfig, fd, command, key, value, unused) })?;
        Ok(())
    }
}

/// Begins to use the file system of type `fs` on `device`, as a mount with `flags` would, and ends
/// that again, as unmounting does. It is seen nowhere. What this leaves is a file system whose
/// journal has been replayed, and which is clean.
///
/// # Errors
/// What a mount would be refused with; `ENOSYS` before Linux 5.2.
pub fn use_once(fs: &CStr, device: &Path, flags: &[&CStr]) -> io::Result<()> {
    let source = CString::new(device.as_os_str().as_bytes())?;
    let context = Context::open(fs)?;
    context.set(Setting::Text(c"source", &source))?;
    for flag in flags {
        context.set(Setting::Flag(flag))?;
    }
    context.set(Setting::Create)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_none_is_refused() {
        // Without the right to mount: EPERM. With it: a file system that is unknown, and one that
        // cannot be on this device.
        for fs in [c"no such", c"ext4"] {
            assert!(use_once(fs, Path::new("/dev/null"), &[]).is_err());
        }
        assert!(use_once(c"ext4", Path::new("/dev/nu\0ll"), &[]).is_err());
    }
}
