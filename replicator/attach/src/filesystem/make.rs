//! Making file systems.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};

use super::alone::alone;
use super::content::size_bytes;
use super::{Content, FileSystem, FileSystemError, content, failed, programs};

/// Smallest device on which `mkfs.xfs` makes a file system, since xfsprogs 6.0.
const XFS_BYTES_MIN: u64 = 300 << 20;

/// Makes a file system on a blank device. One of the same type that is there already is left as it
/// is: then this returns false. If it cannot be finished the device is made blank again.
///
/// # Errors
/// [`FileSystemError::NotBlank`] if anything else is there, [`FileSystemError::Unfinished`] if it
/// cannot be made blank again, and what kept it from being made.
pub fn make(device: &Path, fs: FileSystem) -> Result<bool, FileSystemError> {
    let _alone = alone(device)?;
    match content(device)? {
        Content::Blank => {}
        Content::FileSystem(there) if there == fs.name() => return Ok(false),
        found => return Err(FileSystemError::NotBlank { device: device.to_owned(), found }),
    }
    format(device, fs, false)?;
    Ok(true)
}

/// Makes a file system on a device that was blank before somebody began to make one on it, who may
/// have been killed, or may not be done yet: then this waits for him. Whatever is there goes,
/// unless it is a file system that its checker finds sound: that was finished.
///
/// # Errors
/// As [`make`].
pub fn remake(device: &Path, fs: FileSystem) -> Result<(), FileSystemError> {
    let _alone = alone(device)?;
    match content(device)? {
        Content::Blank => return format(device, fs, false),
        Content::FileSystem(there) if is_sound(device, &there)? => {
            if there == fs.name() {
                return Ok(());
            }
            let found = Content::FileSystem(there);
            return Err(FileSystemError::NotBlank { device: device.to_owned(), found });
        }
        Content::FileSystem(_) | Content::Other(_) => {}
    }
    // Where the kernel cannot do that quickly, what is there is written over.
    if let Err(error) = make_blank(device) {
        tracing::debug!(%error, "it is made over what is there");
    }
    format(device, fs, true)
}

/// Runs the program that makes it; over other content with `over`.
fn format(device: &Path, fs: FileSystem, over: bool) -> Result<(), FileSystemError> {
    let size_bytes = size_bytes(device)?;
    let ended = match fs {
        // 4096 also where it is small. A fresh volume needs no discard, and takes zeroes without
        // storing them: so inode tables are zeroed now, and nothing is left to do for the kernel
        // once it is mounted. Root's share is for systems, not for volumes.
        FileSystem::Ext4 => programs::run(
            &programs::MKFS_EXT4,
            &["-q", "-b", "4096", "-m", "0"],
            &["-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
            device,
        )?,
        FileSystem::Xfs if size_bytes < XFS_BYTES_MIN => {
            return Err(FileSystemError::Unfit(format!(
                "xfs needs at least {} MiB, and {} has {} MiB; \
                 take ext4, or a larger volume",
                XFS_BYTES_MIN >> 20,
                device.display(),
                size_bytes >> 20,
            )));
        }
        FileSystem::Xfs => {
            let more: &[&str] = if over { &["-f"] } else { &[] };
            programs::run(&programs::MKFS_XFS, &["-q", "-K"], more, device)?
        }
    };
    ended.success().map_err(|why| cleared_up(device, why))
}

/// Leaves a device blank on which a file system could not be finished. Returns what is told.
fn cleared_up(device: &Path, why: FileSystemError) -> FileSystemError {
    let blank = content(device).and_then(|found| match found {
        Content::Blank => Ok(()),
        Content::FileSystem(_) | Content::Other(_) => make_blank(device),
    });
    match blank {
        Ok(()) => why,
        Err(removing) => {
            FileSystemError::Unfinished { why: Box::new(why), removing: Box::new(removing) }
        }
    }
}

/// Makes a device all zeroes, if it can do that without being written in full.
fn make_blank(device: &Path) -> Result<(), FileSystemError> {
    let cannot = |error| failed("cannot make blank", device, error);
    let len =
        i64::try_from(size_bytes(device)?).map_err(|error| cannot(io::Error::other(error)))?;
    let mut options = OpenOptions::new();
    // Whoever uses it is not robbed.
    let file = options.write(true).custom_flags(nix::libc::O_EXCL).open(device).map_err(cannot)?;
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, how, 0, len).map_err(|errno| cannot(errno.into()))?;
    file.sync_all().map_err(cannot)
}

/// Whether the checker of a file system has nothing to say against it. What has none here is
/// somebody's, and taken for sound.
fn is_sound(device: &Path, fs: &str) -> Result<bool, FileSystemError> {
    let ended = match fs {
        "ext2" | "ext3" | "ext4" => programs::run(&programs::E2FSCK, &["-f", "-n"], &[], device)?,
        "xfs" => programs::run(&programs::XFS_REPAIR, &["-n"], &[], device)?,
        _ => return Ok(true),
    };
    Ok(ended.code == Some(0))
}
