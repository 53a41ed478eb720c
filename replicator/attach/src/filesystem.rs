//! File systems on block devices of the node: made, checked, mounted and unmounted.
//!
//! Nothing is ever made over anything: a device gets a file system only if [`content()`] finds it
//! blank. All calls here block, some for as long as the device does: call them where that may be.
//! A device that fails ends them with an error.

mod alone;
mod content;
mod grow;
mod make;
mod mount;
mod options;
mod programs;
mod table;
mod users;
mod xfs;

use std::fmt;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use content::{Content, content};
pub use grow::{grow, thaw};
pub use lockstep_kernel::bindmount::bind_read_only;
pub use make::{make, remake};
pub use mount::{Mount, detach, mount, mounted_at, settle, unmount};
pub use options::Options;
pub use table::{MountPoint, mounts};
pub use users::{User, users};

/// `e2fsck`: all is well, or was mended.
const E2FSCK_FINE: [i32; 4] = [0, 1, 2, 3];

/// Types of file systems that are made here. Others are mounted if they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    /// ext4, by `mkfs.ext4`.
    Ext4,
    /// XFS, by `mkfs.xfs`; at least 300 MiB.
    Xfs,
}

impl FileSystem {
    /// Its name, as typed, shown, and known to kernels and `blkid`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileSystem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Ext4, Self::Xfs];
        let found = all.into_iter().find(|fs| fs.name() == text);
        found.ok_or_else(|| format!("{text:?}: ext4 and xfs are allowed"))
    }
}

/// Why a file system could not be made, checked, mounted or unmounted; says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileSystemError {
    /// A program is needed that is not installed.
    #[error("{program} is needed and was not found; install the package {package}")]
    Missing {
        /// Which.
        program: &'static str,
        /// The Debian package it is in.
        package: &'static str,
    },
    /// A program failed.
    #[error("{program} {device} ended with {status}: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// On what.
        device: PathBuf,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// The kernel said no.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried, and what to do.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is something on the device.
    #[error(
        "{device} is not blank: {found} is on it; nothing was written. \
         If that may go (it may be what is left of a file system whose making was cut short), \
         attach the volume with a device only, and make that blank, as with blkdiscard -z"
    )]
    NotBlank {
        /// Which.
        device: PathBuf,
        /// What.
        found: Content,
    },
    /// A file system was begun, is not finished, and what was written of it is still there.
    #[error("{why}; what was written until then could not be removed again: {removing}")]
    Unfinished {
        /// Why it is not finished.
        why: Box<FileSystemError>,
        /// Why it is still there.
        removing: Box<FileSystemError>,
    },
    /// Nothing that could be mounted is on the device.
    #[error("{device} has no file system to mount: {found} is on it; say which to make")]
    Nothing {
        /// Which.
        device: PathBuf,
        /// What is there.
        found: Content,
    },
    /// The file system is damaged beyond what is mended without being asked.
    #[error(
        "the {fs} on {device} is damaged: {said}; \
         look at it with {program} while the volume is attached without a mount"
    )]
    Damaged {
        /// Which.
        device: PathBuf,
        /// Its type.
        fs: String,
        /// What was said of it.
        said: String,
        /// What mends it.
        program: &'static str,
    },
    /// It cannot be made or mounted as asked.
    #[error("{0}")]
    Unfit(String),
    /// Somebody uses it.
    #[error("{what} is in use: {by}; end that first, or force it")]
    Busy {
        /// A device or directory.
        what: PathBuf,
        /// By whom.
        by: String,
    },
}

/// A call on a file that failed.
fn failed(what: impl fmt::Display, path: &Path, source: io::Error) -> FileSystemError {
    FileSystemError::Kernel { what: format!("{what} {}", path.display()), source }
}

/// Brings a file system that was not unmounted cleanly into order, as far as that needs no
/// decision: the journal of ext2 to ext4 is replayed and small damage mended, and the log of XFS is
/// replayed. Any other type is left to its mount. The device must be writable and not mounted.
///
/// # Errors
/// [`FileSystemError::Damaged`] if somebody has to look at it.
pub fn repair(device: &Path, fs: &str) -> Result<(), FileSystemError> {
    match fs {
        "xfs" => return xfs::replay(device),
        "ext2" | "ext3" | "ext4" => {}
        _ => return Ok(()),
    }
    let ended = programs::run(&programs::E2FSCK, &["-p"], &[], device)?;
    match ended.code {
        Some(code) if E2FSCK_FINE.contains(&code) => Ok(()),
        // 4: left as it was. The others tell that it could not even be looked at.
        Some(code) if code & 4 != 0 => Err(FileSystemError::Damaged {
            device: device.to_owned(),
            fs: fs.to_owned(),
            said: ended.said,
            program: "e2fsck",
        }),
        _ => ended.success(),
    }
}

/// Writes out what the kernel holds of a device that nobody uses: no write to it comes afterwards.
///
/// # Errors
/// [`FileSystemError::Busy`] if somebody else has it to himself, such as a file system.
fn write_out(device: &Path) -> Result<(), FileSystemError> {
    let mut exclusive = std::fs::OpenOptions::new();
    exclusive.read(true).custom_flags(nix::libc::O_EXCL);
    match exclusive.open(device) {
        Ok(file) => file.sync_all().map_err(|e| failed("cannot write out", device, e)),
        Err(e) if e.kind() == io::ErrorKind::ResourceBusy => {
            let by = users::words(&users(device));
            Err(FileSystemError::Busy { what: device.to_owned(), by })
        }
        Err(e) => Err(failed("cannot open", device, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_shown() {
        for name in ["ext4", "xfs"] {
            assert_eq!(name.parse::<FileSystem>().unwrap().to_string(), name);
        }
        assert!("btrfs".parse::<FileSystem>().unwrap_err().contains("ext4"));
    }
}
