//! Bind mounts that are read-only from the first moment: `open_tree`, `mount_setattr` and
//! `move_mount` of `linux/mount.h`, since Linux 5.12.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{
    AT_EMPTY_PATH, AT_FDCWD, SYS_mount_setattr, SYS_move_mount, SYS_open_tree, c_int, c_uint,
    syscall,
};

const OPEN_TREE_CLONE: c_uint = 1;
const OPEN_TREE_CLOEXEC: c_uint = 0o2_000_000;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = assert!(size_of::<Attributes>() == 32);

/// A mount that is seen nowhere yet; it ends when this is closed.
struct Unseen(OwnedFd);

impl Unseen {
    fn of(source: &CStr) -> io::Result<Self> {
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC;
        // SAFETY: the kernel reads the path up to its zero byte, and keeps no reference to it.
        let fd = unsafe { syscall(SYS_open_tree, AT_FDCWD, source.as_ptr(), flags) };
        let fd = c_int::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn make_read_only(&self) -> io::Result<()> {
        let wanted = Attributes { set: MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };
        let (fd, none, bytes) = (self.0.as_raw_fd(), c"", size_of::<Attributes>());
        // SAFETY: the path ends with a zero byte and the attributes are as large as is told; both
        // outlive the call, and the kernel keeps no reference to them.
        let done = unsafe {
            syscall(SYS_mount_setattr, fd, none.as_ptr(), AT_EMPTY_PATH, &raw const wanted, bytes)
        };
        Errno::result(done)?;
        Ok(())
    }

    fn show(self, target: &CStr) -> io::Result<()> {
        let (fd, none) = (self.0.as_raw_fd(), c"");
        // SAFETY: both paths end with a zero byte and outlive the call; the kernel keeps no
        // reference to them.
        let done = unsafe {
            syscall(
                SYS_move_mount,
                fd,
                none.as_ptr(),
                AT_FDCWD,
                target.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        Errno::result(done)?;
        Ok(())
    }
}

/// Shows `source` at `target` too, which is there, and lets nobody write there at any moment.
///
/// # Errors
/// What a mount would be refused with; `ENOSYS` before Linux 5.12.
pub fn bind_read_only(source: &Path, target: &Path) -> io::Result<()> {
    let source = CString::new(source.as_os_str().as_bytes())?;
    let target = CString::new(target.as_os_str().as_bytes())?;
    let mount = Unseen::of(&source)?;
    mount.make_read_only()?;
    mount.show(&target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_shown() {
        // Without the right to mount: EPERM.
        let nowhere = Path::new("/no such directory");
        assert!(bind_read_only(nowhere, nowhere).is_err());
        assert!(bind_read_only(Path::new("/"), nowhere).is_err());
        assert!(bind_read_only(Path::new("/a\0b"), Path::new("/")).is_err());
    }
}
