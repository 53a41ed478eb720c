//! How much a pool holds and has left.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::fs::failed;
use super::{Pool, PoolError};

/// Copies of snapshots leave this share of a file system free: a twentieth.
const SPARE_SHARE: u64 = 20;

/// Space of a pool, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// What replicas may take in all.
    pub(crate) capacity: u64,
    /// What they take now.
    pub(crate) used: u64,
    /// What they may still take of the file system.
    pub(crate) free: u64,
    /// Promised to them but not taken yet.
    pub(crate) reserved: u64,
    /// Percent of the capacity that may be taken or promised in all.
    pub(crate) overcommit: u64,
}

impl Space {
    /// What a new replica may be promised.
    ///
    /// A configured capacity is a promise of the operator's: it may exceed what the file system
    /// has now. Without one, no more is promised than there is, unless the pool is set to: copies
    /// take room only when they are written.
    pub(crate) fn room(&self) -> u64 {
        let most = u128::from(self.capacity) * u128::from(self.overcommit) / 100;
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        most.saturating_sub(self.used.saturating_add(self.reserved))
    }
}

impl Pool {
    /// Is so little left that nothing but what was promised to replicas should take more? What
    /// they share with snapshots is reserved for nobody.
    ///
    /// # Errors
    /// If the file system can't be asked.
    pub(crate) fn is_nearly_full(&self) -> Result<bool, PoolError> {
        let dir = &self.config.dir;
        let stat = statvfs(dir.as_path()).map_err(|e| failed("measure", dir)(e.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let left = bytes(stat.blocks_available()).saturating_sub(self.config.reserve_bytes);
        Ok(left < bytes(stat.blocks()) / SPARE_SHARE)
    }

    /// Measures the pool. `promised` is what its replicas may grow to, in all, each by itself no
    /// smaller than what it takes.
    ///
    /// # Errors
    /// If the file system can't be asked.
    pub(crate) fn space(&self, used: u64, promised: u64) -> Result<Space, PoolError> {
        let dir = &self.config.dir;
        let stat = statvfs(dir.as_path()).map_err(|e| failed("measure", dir)(e.into()))?;
        let available = stat.blocks_available().saturating_mul(stat.fragment_size());
        let available = available.saturating_sub(self.config.reserve_bytes);
        let capacity = self.config.capacity_bytes.unwrap_or(available.saturating_add(used));
        Ok(Space {
            capacity,
            used,
            free: available.min(capacity.saturating_sub(used)),
            reserved: promised.saturating_sub(used),
            overcommit: self.config.overcommit_percent.into(),
        })
    }
}

/// What the files of a directory take on disk, in bytes; what can't be read counts as nothing.
pub(crate) fn bytes_used(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().filter_map(|e| e.metadata().ok());
    sizes.filter(std::fs::Metadata::is_file).map(|m| m.blocks() * 512).sum()
}
