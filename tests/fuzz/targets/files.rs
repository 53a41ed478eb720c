//! The files of a replica as the targets begin with them, and how to work with what opens.

use bytes::Bytes;
use lockstep_core::id::{Gen, Lineage, ReplicaId, Tick, Token, VolumeId};
use lockstep_core::message::Payload;
use lockstep_core::planted::Planted;
use lockstep_core::range::BlockRange;
use lockstep_core::store::{StoreError, StoreNote, StoreOp, StoreReply};
use lockstep_store::{File, Identity, OpenError, OpenParams, Opened, Store, Tuning, format};
use uuid::Uuid;

use super::disk::Disk;

/// Three regions, the last cut off.
pub(crate) const BLOCKS: u64 = 600;

pub(crate) fn identity() -> Identity {
    Identity {
        volume: VolumeId(Uuid::from_u128(1)),
        replica: ReplicaId(Uuid::from_u128(2)),
        lineage: Lineage(Uuid::from_u128(3)),
    }
}

/// A disk with the files of an empty replica.
pub(crate) fn formatted() -> Disk {
    Disk::new(BLOCKS, format(identity(), BLOCKS, [0; 16]))
}

/// CRC32C of a block whose own four bytes at `field` count as zero; writes it there.
pub(crate) fn mend(block: &mut [u8], field: usize) {
    block[field..field + 4].fill(0);
    let crc = crc32c::crc32c(block);
    block[field..field + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A good entry of file regions.
pub(crate) fn mend_entry(entry: &mut [u8; 8], region: u32, stamp: u32) {
    let covered = [region.to_le_bytes(), stamp.to_le_bytes()].concat();
    entry[..4].copy_from_slice(&stamp.to_le_bytes());
    entry[4..].copy_from_slice(&crc32c::crc32c(&covered).to_le_bytes());
}

pub(crate) fn open(meta: &[u8], regions: &[u8], boot: u8) -> Result<Opened, OpenError> {
    Store::open(OpenParams {
        meta,
        regions,
        expect: None,
        boot_id: [boot; 16],
        tuning: Tuning { idle_ms: 100, active_max: 4, ..Tuning::default() },
        lost_cache: false,
        planted: Planted::NONE,
    })
}

/// Opens what is on the disk.
pub(crate) fn open_disk(disk: &Disk, boot: u8) -> Result<Opened, OpenError> {
    open(&disk.file(File::Meta), &disk.file(File::Regions), boot)
}

/// Executes what the store asks of the disk until it asks for nothing.
pub(crate) fn settle(store: &mut Store, disk: &mut Disk, now: Tick) {
    for _ in 0..100_000 {
        store.check();
        while let Some(op) = store.poll_disk() {
            disk.take(op);
        }
        if disk.flying.is_empty() {
            return;
        }
        let (id, result) = disk.run(0);
        store.done(now, id, result);
    }
    panic!("the store never stops asking for the disk");
}

/// Gives the store an operation and returns its answer.
///
/// # Panics
/// If it does not answer exactly once.
pub(crate) fn ask(
    store: &mut Store,
    disk: &mut Disk,
    op: StoreOp,
) -> Result<StoreReply, StoreError> {
    store.submit(Tick(0), Token(1), op);
    settle(store, disk, Tick(0));
    let answer = store.poll_done();
    assert_eq!(store.poll_done(), None, "two answers to one operation");
    let (token, result) = answer.expect("an operation is answered");
    assert_eq!(token, Token(1));
    result
}

/// A replica that opens can be worked with: all of it is written, flushed and cleaned.
pub(crate) fn work(opened: Opened, mut disk: Disk) {
    let mut store = opened.store;
    let blocks = opened.recovered.blocks;
    for start in (0..blocks).step_by(256) {
        let count = u32::try_from(blocks - start).unwrap_or(256).min(3);
        let range = BlockRange::new(start, count);
        let data = vec![7; 4096 * count as usize];
        let payload = Payload::checksummed(Bytes::from(data));
        let op = StoreOp::Write { range, stamp: Gen(9), durable: false, payload };
        assert_eq!(ask(&mut store, &mut disk, op), Ok(StoreReply::Done));
        store.note(Tick(0), StoreNote::Release { blocks: range.into() });
    }
    assert_eq!(ask(&mut store, &mut disk, StoreOp::Flush), Ok(StoreReply::Done));
    store.note(Tick(0), StoreNote::Resolve);
    assert_eq!(ask(&mut store, &mut disk, StoreOp::CleanAll), Ok(StoreReply::Done));
    assert_eq!(store.active_regions(), [], "regions stay active");
    let again = open_disk(&disk, 0).expect("what a store wrote can be opened");
    assert_eq!(again.recovered.unresolved, [], "a clean replica is opened unclean");
}
