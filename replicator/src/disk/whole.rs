//! Operations on all files of a replica at once: growing, and snapshots.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use lockstep_core::id::{SnapshotId, VolumeId};
use lockstep_core::range::BlockRange;
use lockstep_kernel::share;
use lockstep_store::layout::File as Which;
use lockstep_store::{DiskError, DiskOpKind, Unwritten, file_bytes};

use super::files::ReplicaFiles;
use crate::pool::{Pool, SnapshotAbout, Taking, preallocate};

/// Tells whether a pool may promise this many bytes more to its replicas.
pub(crate) type Room = Arc<dyn Fn(u64) -> bool + Send + Sync>;

/// Where a replica's files are, and what they may take.
#[derive(Clone)]
pub(crate) struct Home {
    /// The pool.
    pub(crate) pool: Arc<Pool>,
    /// The volume.
    pub(crate) volume: VolumeId,
    /// Size of the replica in blocks, as others see it.
    pub(crate) blocks: Arc<AtomicU64>,
    /// All the space of its data is taken, and kept.
    pub(crate) thick: bool,
    /// Whether it may grow.
    pub(crate) room: Room,
}

impl fmt::Debug for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Home").field("volume", &self.volume).finish_non_exhaustive()
    }
}

/// Bytes that a replica takes at most.
pub(crate) fn full_bytes(blocks: u64) -> u64 {
    Which::ALL.into_iter().map(|file| file_bytes(file, blocks)).sum()
}

impl ReplicaFiles {
    /// Does one operation on all files; blocks.
    pub(super) fn execute_whole(&self, op: &DiskOpKind) -> Result<(), DiskError> {
        match op {
            DiskOpKind::Extend { blocks } => self.extend(*blocks),
            DiskOpKind::TrySnapshot => self.try_snapshot(),
            DiskOpKind::CopyAhead { fresh, ranges } => self.copy_ahead(*fresh, ranges),
            DiskOpKind::DropAhead => self.drop_ahead(),
            DiskOpKind::Snapshot { id, ahead } => self.snapshot(*id, ahead.as_deref()),
            DiskOpKind::KeepTags { id, unwritten } => self.keep_tags(*id, unwritten),
            DiskOpKind::SealSnapshot { id, blocks } => self.seal_snapshot(*id, *blocks),
            DiskOpKind::DropSnapshot { id } => self.drop_snapshot(*id),
            DiskOpKind::Read { .. }
            | DiskOpKind::Write { .. }
            | DiskOpKind::Zero { .. }
            | DiskOpKind::Sync { .. } => Ok(()),
        }
    }

    fn extend(&self, blocks: u64) -> Result<(), DiskError> {
        let home = self.home()?;
        let known = home.blocks.load(Ordering::Relaxed);
        let growth = full_bytes(blocks).saturating_sub(full_bytes(known));
        if !(home.room)(growth) {
            let (volume, pool) = (home.volume, home.pool.name());
            tracing::warn!(%volume, pool, growth, "no room for a larger replica");
            return Err(DiskError::NoSpace);
        }
        self.lengthen(blocks).map_err(|e| told("grow a replica", &e))?;
        home.blocks.fetch_max(blocks, Ordering::Relaxed);
        Ok(())
    }

    fn lengthen(&self, blocks: u64) -> io::Result<()> {
        for which in Which::ALL {
            let (file, len) = (self.plain(which), file_bytes(which, blocks));
            if file.metadata()?.len() < len {
                file.set_len(len)?;
            }
            let taking = match which {
                Which::Data if self.is_thick() => Taking::Now,
                Which::Data => Taking::Later,
                // Bookkeeping never meets a full disk.
                _ => Taking::IfItCan,
            };
            preallocate(file, len, taking)?;
            file.sync_all()?;
        }
        Ok(())
    }

    fn try_snapshot(&self) -> Result<(), DiskError> {
        match self.home()?.pool.can_share() {
            Ok(true) => Ok(()),
            Ok(false) => Err(DiskError::NoReflink),
            Err(error) => Err(told("find out whether files can share blocks", &error)),
        }
    }

    fn copy_ahead(&self, fresh: bool, ranges: &[BlockRange]) -> Result<(), DiskError> {
        let Home { pool, volume, .. } = self.home()?;
        let since = Instant::now();
        let copied = pool.copy_ahead(*volume, self.plain(Which::Data), fresh, ranges);
        let (took, runs) = (since.elapsed(), ranges.len());
        tracing::trace!(%volume, ?took, fresh, runs, ?copied, "content was copied ahead");
        copied.map_err(|error| {
            tracing::warn!(%volume, %error, "cannot copy ahead: a snapshot will take longer");
            DiskError::Io
        })
    }

    fn drop_ahead(&self) -> Result<(), DiskError> {
        let Home { pool, volume, .. } = self.home()?;
        pool.drop_ahead(*volume).map_err(|error| {
            tracing::warn!(%volume, %error, "cannot remove what was copied ahead");
            DiskError::Io
        })
    }

    fn snapshot(&self, id: SnapshotId, ahead: Option<&[BlockRange]>) -> Result<(), DiskError> {
        let Home { pool, volume, .. } = self.home()?;
        let since = Instant::now();
        let kept = pool.keep_data(id, *volume, self.plain(Which::Data), ahead);
        let kept = kept.map_err(|e| told("take a snapshot", &e));
        let (took, runs) = (since.elapsed(), ahead.map(<[BlockRange]>::len));
        tracing::debug!(snapshot = %id, ?took, ?runs, ?kept, "content was copied");
        kept
    }

    fn keep_tags(&self, id: SnapshotId, unwritten: &Unwritten) -> Result<(), DiskError> {
        let since = Instant::now();
        let files = [Which::Tags, Which::Regions].into_iter().map(|f| (f, self.plain(f)));
        let kept = self.home()?.pool.keep_tags(id, files, unwritten);
        let kept = kept.map_err(|e| told("take a snapshot of tags", &e));
        let (took, regions) = (since.elapsed(), unwritten.regions());
        tracing::debug!(snapshot = %id, ?took, regions, ?kept, "tags were copied");
        kept
    }

    fn seal_snapshot(&self, id: SnapshotId, blocks: u64) -> Result<(), DiskError> {
        let home = self.home()?;
        let since = Instant::now();
        let about = SnapshotAbout { volume: home.volume, blocks, gaps: 0 };
        let sealed = home.pool.seal_snapshot(id, &about);
        let sealed = sealed.map_err(|e| told("make a snapshot durable", &e));
        tracing::debug!(snapshot = %id, took = ?since.elapsed(), ?sealed, "it was made durable");
        sealed
    }

    fn drop_snapshot(&self, id: SnapshotId) -> Result<(), DiskError> {
        let dropped = self.home()?.pool.drop_snapshot(id);
        dropped.map(drop).map_err(|error| {
            tracing::error!(%error, "cannot drop a snapshot");
            DiskError::Io
        })
    }

    fn home(&self) -> Result<&Home, DiskError> {
        self.home.as_ref().ok_or(DiskError::Io)
    }
}

fn told(what: &str, error: &io::Error) -> DiskError {
    if share::is_unsupported(error) {
        return DiskError::NoReflink;
    }
    tracing::error!(%error, "cannot {what}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
        _ => DiskError::Io,
    }
}
