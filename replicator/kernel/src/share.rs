//! Files that share their blocks until one of them is written (reflink).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;

/// `FICLONE` of `linux/fs.h`: `_IOW(0x94, 9, int)`; since Linux 4.5.
const FICLONE: libc::c_ulong = 0x4004_9409;

/// Makes `to`, an empty file of the same file system, hold what `from` holds now, by sharing its
/// blocks. What the page cache has of `from` is written out before; writes that come meanwhile
/// are in it or not. Takes as long as it takes to copy the map of `from`'s extents.
///
/// # Errors
/// See [`is_unsupported`]; else what the system said.
pub fn clone_whole(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the call takes two descriptors, both open as long as this borrows their files, and
    // touches no memory of this process.
    let done = unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// `FICLONERANGE` of `linux/fs.h`: `_IOW(0x94, 13, struct file_clone_range)`; since Linux 4.5.
const FICLONERANGE: libc::c_ulong = 0x4020_940d;

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// As [`clone_whole`], of a part: `length` bytes at `offset`, both multiples of the file system's
/// blocks, go to the same place in `to`, whatever is there. What is shared already costs little.
///
/// # Errors
/// See [`is_unsupported`]; else what the system said.
pub fn clone_range(from: &File, to: &File, offset: u64, length: u64) -> io::Result<()> {
    let part = CloneRange {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: offset,
        src_length: length,
        dest_offset: offset,
    };
    // SAFETY: both descriptors are open as long as this borrows their files; the kernel reads the
    // structure, which has its layout and lives until the call returns, and writes no memory of
    // this process.
    let done = unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE, &raw const part) };
    Errno::result(done).map(drop).map_err(io::Error::from)
}

/// Does the error say that the file system can't share blocks, or not between these two files?
#[must_use]
pub fn is_unsupported(error: &io::Error) -> bool {
    let codes = [libc::EOPNOTSUPP, libc::ENOTTY, libc::EXDEV, libc::EINVAL, libc::ENOSYS];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    /// Wherever the tests run: either it is shared whole, or it is said that it can't be.
    #[test]
    fn a_file_is_shared_whole_or_it_is_said_that_it_cannot_be() {
        let dir = std::env::temp_dir().join(format!("lockstep-share-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut from = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("from"))
            .unwrap();
        from.write_all(&[7; 8192]).unwrap();
        let to = File::create(dir.join("to")).unwrap();
        match clone_whole(&from, &to) {
            Ok(()) => {
                let mut found = Vec::new();
                File::open(dir.join("to")).unwrap().read_to_end(&mut found).unwrap();
                assert_eq!(found, [7; 8192]);
            }
            Err(error) => assert!(is_unsupported(&error), "{error}"),
        }
        let part = File::create(dir.join("part")).unwrap();
        part.set_len(8192).unwrap();
        match clone_range(&from, &part, 4096, 4096) {
            Ok(()) => {
                let found = std::fs::read(dir.join("part")).unwrap();
                assert_eq!((&found[..4096], &found[4096..]), (&[0; 4096][..], &[7; 4096][..]));
            }
            Err(error) => assert!(is_unsupported(&error), "{error}"),
        }
        assert!(!is_unsupported(&io::Error::from_raw_os_error(libc::EIO)));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
