//! Letting file systems grow with their devices: only while they are mounted. The kernel does it
//! step by step, and each step is whole after a crash. `resize2fs` on one that is not mounted
//! writes in no such order: cut short, it leaves what `e2fsck -p` does not mend.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use lockstep_kernel::freeze;

use super::content::size_bytes;
use super::{FileSystemError, failed, programs};

/// What a file system may leave of its device: a last group of blocks that is not worth its tables.
const UNUSED_BYTES_MAX: u64 = 8 << 20;
/// Bytes from the start of a device in which the facts below are.
const HEAD_BYTES: usize = 2048;
/// How long a frozen file system is waited for. A process that lets it grow for a daemon that was
/// killed may be at it still, and thaws it in a moment.
const FROZEN_LIMIT: Duration = Duration::from_secs(10);
const FROZEN_PAUSE: Duration = Duration::from_millis(20);
/// `CAP_SYS_RESOURCE` of `linux/capability.h`. `EXT4_IOC_RESIZE_FS` wants it (`ext4_resize_begin`
/// of `fs/ext4/resize.c`); containers, and some machines, withhold it also from root.
const SYS_RESOURCE: u32 = 24;

/// Lets a mounted file system grow to the size of its device. One that was thawed by nobody because
/// this process died over it is to be thawed by [`thaw`].
///
/// # Errors
/// If its type can't do that while it is mounted, or this process may not, or its program fails.
pub fn grow(device: &Path, dir: &Path, fs: &str) -> Result<(), FileSystemError> {
    if fs != "xfs" {
        return grow_as_it_is(device, dir, fs);
    }
    // Linux cannot replay a log in which an XFS has grown twice, older ones not even once: they
    // take what lies beyond the size in the superblock on the disk for damage. So each growth
    // finds an empty log, and leaves one.
    empty_log(device, dir)?;
    grow_as_it_is(device, dir, fs)?;
    empty_log(device, dir)
}

/// Opens the directory where the file system of a device is mounted. What is frozen or thawed
/// through it is that one: it can't be unmounted any more, only taken out of sight.
fn open(device: &Path, dir: &Path) -> Result<File, FileSystemError> {
    let on = File::open(dir).map_err(|error| failed("cannot open", dir, error))?;
    let of = on.metadata().map_err(|error| failed("cannot look at", dir, error))?.dev();
    let number = fs::metadata(device).map_err(|error| failed("cannot look at", device, error))?;
    if number.rdev() != of {
        let (dir, device) = (dir.display(), device.display());
        let what = format!("{dir}: {device} is not mounted there any more");
        return Err(FileSystemError::Unfit(what));
    }
    Ok(on)
}

/// Has a file system write out all that its log holds.
fn empty_log(device: &Path, dir: &Path) -> Result<(), FileSystemError> {
    let on = open(device, dir)?;
    let deadline = Instant::now() + FROZEN_LIMIT;
    loop {
        match freeze::freeze(&on) {
            Ok(()) => return thaw_open(&on, dir),
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                return Err(failed("cannot freeze", dir, error));
            }
            Err(_) if Instant::now() < deadline => thread::sleep(FROZEN_PAUSE),
            Err(_) => {
                let what =
                    "somebody has frozen it, and it cannot grow until it is thawed (fsfreeze -u)";
                return Err(FileSystemError::Unfit(format!("{}: {what}", dir.display())));
            }
        }
    }
}

fn thaw_open(on: &File, dir: &Path) -> Result<(), FileSystemError> {
    match freeze::thaw(on) {
        // Nobody holds it still.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done.map_err(|error| failed("cannot thaw", dir, error)),
    }
}

/// Lets a file system go on that [`grow`] may have left frozen.
///
/// # Errors
/// If the device is not mounted there, or the kernel refuses.
pub fn thaw(device: &Path, dir: &Path) -> Result<(), FileSystemError> {
    thaw_open(&open(device, dir)?, dir)
}

/// As [`grow`], of one that has just been mounted: its log is empty.
pub(super) fn grow_as_it_is(device: &Path, dir: &Path, fs: &str) -> Result<(), FileSystemError> {
    match fs {
        "ext3" | "ext4" => match programs::run(&programs::RESIZE2FS, &[], &[], device)?.success() {
            Err(_) if !may_grow_mounted() => Err(FileSystemError::Unfit(format!(
                "{}: a mounted {fs} is only made larger by who has CAP_SYS_RESOURCE, and this \
                 process has not; give it that, then it grows when it is mounted next",
                device.display()
            ))),
            outcome => outcome,
        },
        "xfs" => programs::run(&programs::XFS_GROWFS, &[], &[], dir)?.success(),
        _ => {
            let what = format!("{}: a mounted {fs} is not made larger here", device.display());
            Err(FileSystemError::Unfit(what))
        }
    }
}

/// Whether this process may let a mounted ext4 grow.
fn may_grow_mounted() -> bool {
    let Ok(status) = fs::read_to_string("/proc/thread-self/status") else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << SYS_RESOURCE) != 0)
}

/// Whether a file system that is not mounted is to grow once it is: what the superblock of a
/// mounted one tells may be older.
///
/// # Errors
/// If the device can't be read.
pub(super) fn is_small(device: &Path, fs: &str) -> Result<bool, FileSystemError> {
    let cannot = |error: io::Error| failed("cannot read", device, error);
    let mut head = [0_u8; HEAD_BYTES];
    let read = File::open(device).and_then(|file| file.read_exact_at(&mut head, 0));
    match read {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(cannot(error)),
    }
    let Some(used) = told_bytes(&head, fs) else { return Ok(false) };
    Ok(size_bytes(device)?.saturating_sub(used) >= UNUSED_BYTES_MAX)
}

/// Little-endian number in a superblock of ext4, which begins at byte 1024.
fn ext4_u32(head: &[u8; HEAD_BYTES], at: usize) -> Option<u64> {
    let bytes = head.get(1024 + at..1024 + at + 4)?;
    Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
}

/// The size of a file system, as its superblock tells it; none if there is no such one.
fn told_bytes(head: &[u8; HEAD_BYTES], fs: &str) -> Option<u64> {
    match fs {
        // `struct ext4_super_block` of `fs/ext4/ext4.h`.
        "ext3" | "ext4" if head.get(1024 + 0x38..1024 + 0x3a)? == [0x53, 0xef] => {
            let is_64bit = ext4_u32(head, 0x60)? & 0x80 != 0;
            let high = if is_64bit { ext4_u32(head, 0x150)? } else { 0 };
            let blocks = high << 32 | ext4_u32(head, 0x4)?;
            let block_bytes = 1024_u64.checked_shl(u32::try_from(ext4_u32(head, 0x18)?).ok()?)?;
            blocks.checked_mul(block_bytes)
        }
        // `struct xfs_dsb` of `fs/xfs/libxfs/xfs_format.h`.
        "xfs" if head.starts_with(b"XFSB") => {
            let block_bytes = u32::from_be_bytes(head.get(4..8)?.try_into().ok()?);
            let blocks = u64::from_be_bytes(head.get(8..16)?.try_into().ok()?);
            blocks.checked_mul(u64::from(block_bytes))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::{FileSystem, make};

    fn image(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn only_the_file_system_of_the_device_is_frozen_or_thawed() {
        let dir = tempfile::tempdir().unwrap();
        for refused in [
            thaw(Path::new("/dev/null"), dir.path()),
            grow(Path::new("/dev/null"), dir.path(), "xfs"),
        ] {
            let said = refused.unwrap_err().to_string();
            assert!(said.contains("is not mounted there any more"), "{said}");
        }
    }

    #[test]
    fn a_superblock_tells_the_size_and_nonsense_tells_none() {
        let mut head = [0_u8; HEAD_BYTES];
        for fs in ["ext4", "xfs", "vfat"] {
            assert_eq!(told_bytes(&head, fs), None, "{fs}");
        }
        head[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
        head[1024 + 4] = 7;
        head[1024 + 0x18] = 2;
        assert_eq!(told_bytes(&head, "ext4"), Some(7 * 4096));
        head[1024 + 0x150] = 1;
        assert_eq!(told_bytes(&head, "ext4"), Some(7 * 4096), "not without the feature");
        head[1024 + 0x60] = 0x80;
        assert_eq!(told_bytes(&head, "ext4"), Some(((1 << 32) + 7) * 4096));
        head[1024 + 0x18] = 255;
        assert_eq!(told_bytes(&head, "ext4"), None);
        head[..4].copy_from_slice(b"XFSB");
        (head[6], head[15]) = (0x10, 3);
        assert_eq!(told_bytes(&head, "xfs"), Some(3 * 4096));
        head[8..16].fill(0xff);
        assert_eq!(told_bytes(&head, "xfs"), None);
    }

    #[test]
    fn a_file_system_that_is_smaller_than_its_device_is_found() {
        for (fs, bytes) in [(FileSystem::Ext4, 64 << 20), (FileSystem::Xfs, 320 << 20)] {
            let image = image(bytes);
            match make(image.path(), fs) {
                Err(FileSystemError::Missing { .. }) => continue,
                made => assert!(made.unwrap()),
            }
            assert!(!is_small(image.path(), fs.name()).unwrap(), "{fs}");
            image.as_file().set_len(bytes + (64 << 20)).unwrap();
            assert!(is_small(image.path(), fs.name()).unwrap(), "{fs}");
        }
    }
}
