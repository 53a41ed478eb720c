//! Making the files of a replica, and opening them.

use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen};
use lockstep_core::limits::MAX_VOLUME_BLOCKS;
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::store::Recovered;

use crate::activity::Activity;
use crate::error::OpenError;
use crate::layout::{File, file_bytes, region_count};
use crate::log::Log;
use crate::recover::read_log;
use crate::regions::Regions;
use crate::store::{Parts, Store};
use crate::superblock::{Identity, Superblock};
use crate::tuning::Tuning;

/// What [`Store::open`] needs.
#[derive(Clone, Copy, Debug)]
pub struct OpenParams<'a> {
    /// The whole of [`File::Meta`].
    pub meta: &'a [u8],
    /// The whole of [`File::Regions`].
    pub regions: &'a [u8],
    /// Whose files they must be, if that is known.
    pub expect: Option<Identity>,
    /// Of the boot that this machine is in: tells a restart of the process from a reset.
    pub boot_id: [u8; 16],
    /// Did a flush of these files fail since the machine started, see [`crate::Status`]? Then
    /// what was not flushed may be gone, as after a reset.
    pub lost_cache: bool,
    /// Limits and times.
    pub tuning: Tuning,
    /// A rule to break, for tests.
    pub planted: Planted,
}

/// An opened replica.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The superblock as found.
    pub superblock: Superblock,
    /// Where the replica starts from.
    pub recovered: Recovered,
}

/// What an empty replica consists of: writes to new files of [`file_bytes`] zero bytes each, to be
/// made durable before the replica is used.
///
/// # Panics
/// If `blocks` is not 1 to [`MAX_VOLUME_BLOCKS`].
#[must_use]
pub fn format(identity: Identity, blocks: u64, boot_id: [u8; 16]) -> Vec<(File, u64, Bytes)> {
    superblocks(identity, blocks, boot_id, false)
}

/// The same for one that begins with the data, tags and regions of a snapshot, which may have
/// fewer blocks.
///
/// # Panics
/// As [`format`].
#[must_use]
pub fn format_clone(identity: Identity, blocks: u64, boot_id: [u8; 16]) -> Vec<(File, u64, Bytes)> {
    superblocks(identity, blocks, boot_id, true)
}

fn superblocks(
    identity: Identity,
    blocks: u64,
    boot_id: [u8; 16],
    clone: bool,
) -> Vec<(File, u64, Bytes)> {
    assert!((1..=MAX_VOLUME_BLOCKS).contains(&blocks), "a volume of {blocks} blocks");
    let copy = |seq| {
        let superblock = Superblock {
            identity,
            blocks,
            promised: Epoch(0),
            attach_seq: 0,
            member_gen: Gen(0),
            boot_id,
            lossy: false,
            clone,
            seq,
        };
        (File::Meta, superblock.offset(), superblock.encode())
    };
    Vec::from([copy(0), copy(1)])
}

impl Store {
    /// Opens a replica from the bytes of its files.
    ///
    /// # Errors
    /// See [`OpenError`]. One damaged copy of the superblock is no error: see
    /// [`Superblock::good_copies`].
    pub fn open(params: OpenParams<'_>) -> Result<Opened, OpenError> {
        let found = Superblock::read(params.meta)?;
        params.expect.map_or(Ok(()), |expected| check_identity(expected, found.identity))?;
        let blocks = found.blocks;
        if !(1..=MAX_VOLUME_BLOCKS).contains(&blocks) {
            return Err(OpenError::BadSize { blocks });
        }
        check_length(File::Meta, params.meta, blocks)?;
        check_length(File::Regions, params.regions, blocks)?;
        let count = region_count(blocks);
        let in_log = read_log(params.meta, found.identity.replica, count, params.planted)?;
        let regions = Regions::decode(params.regions, count);

        let tuning = params.tuning.clamped();
        let mut activity = Activity::new(tuning, params.planted.has(Bug::EarlyClean));
        for region in in_log.named.keys() {
            // Tags of a region that was active may be older than its data. Until the replica is
            // told better, its blocks count as of the highest generation known.
            let known = regions.max(*region);
            let known = if known == Gen(u32::MAX) { Gen(0) } else { known };
            activity.add_unresolved(*region, known.max(found.member_gen).max(Gen(1)));
        }
        let unresolved = activity.unresolved();
        let lost_cache = params.lost_cache || found.lossy || found.boot_id != params.boot_id;
        let recovered = Recovered {
            promised: found.promised,
            attach_seq: found.attach_seq,
            member_gen: found.member_gen,
            blocks,
            lossy: !unresolved.is_empty() && lost_cache,
            fresh: unresolved.is_empty() && regions.is_untouched(),
            unresolved,
        };
        // One place that says so may rot before the next promise.
        let says_so = |copy: &Superblock| copy.lossy || copy.boot_id != params.boot_id;
        let unmarked = Superblock::copies(params.meta).filter(says_so).count() < 2;
        let superblock =
            Superblock { boot_id: params.boot_id, lossy: recovered.lossy, ..found.clone() };
        let store = Self::new(Parts {
            superblock,
            unmarked: recovered.lossy && unmarked,
            log: Log::new(found.identity.replica, in_log.seq, in_log.named),
            last_record: in_log.last,
            activity,
            regions,
            tuning,
            planted: params.planted,
        });
        Ok(Opened { store, superblock: found, recovered })
    }
}

fn check_identity(expected: Identity, found: Identity) -> Result<(), OpenError> {
    if expected.volume != found.volume {
        let (expected, found) = (expected.volume, found.volume);
        return Err(OpenError::OtherVolume { expected, found });
    }
    if expected.replica != found.replica {
        let (expected, found) = (expected.replica, found.replica);
        return Err(OpenError::OtherReplica { expected, found });
    }
    if expected.lineage != found.lineage {
        let (expected, found) = (expected.lineage, found.lineage);
        return Err(OpenError::OtherLineage { expected, found });
    }
    Ok(())
}

fn check_length(file: File, bytes: &[u8], blocks: u64) -> Result<(), OpenError> {
    let (have, need) = (bytes.len() as u64, file_bytes(file, blocks));
    if have < need { Err(OpenError::TooShort { file, have, need }) } else { Ok(()) }
}
