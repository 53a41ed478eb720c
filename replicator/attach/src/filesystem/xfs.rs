//! The log of XFS, replayed before the mount (decision 15).
//!
//! The kernel does that at a mount, but reads the log in pieces of a few KiB, several for each
//! transaction, one after the other, and past the page cache; and it writes what each changed
//! before it goes on. Each of these takes a request's way through the door, or a round trip to the
//! copies: tens of seconds for a log full of transactions, during which a pod waits. So it is done
//! once through the page cache, which reads ahead and writes together; the mount then finds a clean
//! log.

use std::fs::{File, OpenOptions};
use std::path::Path;

use lockstep_kernel::{block, superblock};

use super::{FileSystemError, failed, programs};
use crate::device::fuse::loopback;

/// How much of what `xfs_logprint` tells is looked at: the state of the log stands at its head.
const TOLD_BYTES_MAX: u64 = 512;

/// Replays the log if there is something in it. Where that cannot be done in this way, it is left
/// to the mount.
///
/// # Errors
/// If the device fails.
pub(super) fn replay(device: &Path) -> Result<(), FileSystemError> {
    let write = OpenOptions::new().read(true).write(true).open(device);
    let file = write.map_err(|e| failed("cannot open", device, e))?;
    // A mount writes past the page cache: what that has may be older.
    block::flush_page_cache(&file).map_err(|e| failed("cannot write out", device, e))?;
    match is_to_be_replayed(device) {
        Ok(false) => return Ok(()),
        Ok(true) => {}
        Err(error) => {
            tracing::debug!(%error, "the log of an XFS is left to the mount");
            return Ok(());
        }
    }
    let replayed = replay_through_page_cache(&file, device);
    // Also if it failed: nothing may be written later, over what the mount writes.
    file.sync_all().map_err(|e| failed("cannot write out", device, e))?;
    if let Err(why) = replayed {
        tracing::debug!(why, "the log of an XFS is left to the mount");
    }
    Ok(())
}

/// Whether the file system was not unmounted.
fn is_to_be_replayed(device: &Path) -> Result<bool, FileSystemError> {
    let told = programs::first_words(&programs::XFS_LOGPRINT, &["-t"], device, TOLD_BYTES_MAX)?;
    Ok(told.contains("state: <DIRTY>"))
}

fn replay_through_page_cache(file: &File, device: &Path) -> Result<(), String> {
    let (_held, path) = loopback::through_page_cache(file, device).map_err(|e| e.to_string())?;
    // Its twin may be mounted here, on a device of the node that had the volume.
    superblock::use_once(c"xfs", &path, &[c"nouuid"]).map_err(|e| e.to_string())
}
