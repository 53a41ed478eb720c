//! Making a replica's files and opening them. Blocks.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use lockstep_core::planted::Planted;
use lockstep_store::{
    File, Identity, OpenError, OpenParams, Opened, Store, Superblock, Tuning, file_bytes, format,
    format_clone,
};
use thiserror::Error;

use super::config::NewReplica;
use crate::disk::{DirectIo, Home, ReplicaFiles};
use crate::pool::{Initial, Pool, PoolError, SNAPSHOT_FILES, Taking};

/// A replica whose files are open.
#[derive(Debug)]
pub(super) struct OpenedFiles {
    pub(super) files: Arc<ReplicaFiles>,
    pub(super) opened: Opened,
}

/// Why a replica can't be opened.
#[derive(Debug, Error)]
pub(super) enum OpeningError {
    /// The files are there, but not usable.
    #[error(transparent)]
    Format(#[from] OpenError),
    /// A file is missing or can't be used.
    #[error(transparent)]
    File(#[from] PoolError),
    /// A file can't be read.
    #[error("cannot read file {file}: {source}; check the disk")]
    Read {
        /// Which file.
        file: File,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The files of a new replica, which begins with those of a snapshot in `pool` if it has a source.
pub(super) fn initial_files(new: &NewReplica, pool: &Pool, boot_id: [u8; 16]) -> Vec<Initial> {
    let identity = identity_of(new);
    let make = if new.source.is_some() { format_clone } else { format };
    let first = make(identity, new.blocks, boot_id);
    let source = |file: File| {
        let id = new.source.filter(|_| SNAPSHOT_FILES.contains(&file))?;
        Some(pool.snapshot_dir(id).join(file.name()))
    };
    File::ALL
        .into_iter()
        .map(|file| Initial {
            name: file.name(),
            len: file_bytes(file, new.blocks),
            taking: match file {
                File::Data if new.thick => Taking::Now,
                File::Data => Taking::Later,
                // Bookkeeping never meets a full disk.
                _ => Taking::IfItCan,
            },
            source: source(file),
            writes: first
                .iter()
                .filter(|(f, _, _)| *f == file)
                .map(|(_, offset, bytes)| (*offset, bytes.clone()))
                .collect(),
        })
        .collect()
}

/// Who a new replica is.
pub(super) fn identity_of(new: &NewReplica) -> Identity {
    Identity { volume: new.volume, replica: new.replica, lineage: new.lineage }
}

/// Opens the files in `dir`, which must be a replica of the volume. With `lost_cache`, a flush of
/// them failed in this process.
///
/// # Errors
/// If they are not, or can't be used.
pub(super) fn open(
    dir: &Path,
    home: &Home,
    direct_io: bool,
    boot_id: [u8; 16],
    lost_cache: bool,
) -> Result<OpenedFiles, OpeningError> {
    let volume = home.volume;
    let files = ReplicaFiles::open(dir, direct_io)?.at_home(home.clone());
    if files.direct() == DirectIo::Refused {
        tracing::warn!(
            dir = %dir.display(),
            "the file system refuses direct I/O: data goes through the page cache"
        );
    }
    let meta = whole(&files, File::Meta)?;
    let superblock = Superblock::read(&meta)?;
    let found = superblock.identity;
    if found.volume != volume {
        let (expected, found) = (volume, found.volume);
        return Err(OpenError::OtherVolume { expected, found }.into());
    }
    if Superblock::good_copies(&meta) < 2 {
        tracing::warn!(%volume, "one copy of the superblock is damaged; the other one is used");
    }
    for file in [File::Data, File::Tags] {
        let have = files.len(file).map_err(|source| OpeningError::Read { file, source })?;
        let need = file_bytes(file, superblock.blocks);
        if have < need {
            return Err(OpenError::TooShort { file, have, need }.into());
        }
    }
    let regions = whole(&files, File::Regions)?;
    home.blocks.store(superblock.blocks, Ordering::Relaxed);
    let opened = Store::open(OpenParams {
        meta: &meta,
        regions: &regions,
        expect: None,
        boot_id,
        lost_cache,
        tuning: Tuning::default(),
        planted: Planted::NONE,
    })?;
    Ok(OpenedFiles { files: Arc::new(files), opened })
}

fn whole(files: &ReplicaFiles, file: File) -> Result<Bytes, OpeningError> {
    let failed = |source| OpeningError::Read { file, source };
    let len = usize::try_from(files.len(file).map_err(failed)?)
        .map_err(|e| failed(std::io::Error::other(e)))?;
    files.read(file, 0, len).map_err(failed)
}

/// Identifies this boot of the machine. Without it, every restart of the process must count as a
/// reset, which a random value does.
pub(super) fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let parsed = text.ok().and_then(|t| uuid::Uuid::try_parse(t.trim()).ok());
    parsed.map_or_else(
        || {
            tracing::warn!("the system does not tell its boot id: a restart counts as a reset");
            uuid::Uuid::new_v4().into_bytes()
        },
        uuid::Uuid::into_bytes,
    )
}
