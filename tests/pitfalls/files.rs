//! What a disk has, and what is believed of it.

use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen, Lineage, ReplicaId, Tick, Token, VolumeId};
use lockstep_core::message::{Payload, ResyncBlock, ResyncContent};
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::store::{Recovered, StoreError, StoreNote, StoreOp, StoreReply};
use lockstep_store::{
    DiskError, DiskOp, DiskOpKind, File, Identity, OpenError, OpenParams, Store, Tuning, format,
};
use uuid::Uuid;

use super::disk::{Disk, Rng};

const BLOCKS: u64 = 1024;

/// A replica's store and its disk. The disk does what it is asked at once, if the test lets it.
pub(crate) struct Replica {
    pub(crate) disk: Disk,
    pub(crate) store: Store,
    planted: Planted,
    stamp: u32,
}

fn identity() -> Identity {
    Identity {
        volume: VolumeId(Uuid::from_u128(1)),
        replica: ReplicaId(Uuid::from_u128(2)),
        lineage: Lineage(Uuid::from_u128(3)),
    }
}

fn open(disk: &Disk, boot: u8, planted: Planted) -> Result<(Store, Recovered), OpenError> {
    let (meta, regions) = (disk.file(File::Meta), disk.file(File::Regions));
    let params = OpenParams {
        meta: &meta,
        regions: &regions,
        expect: Some(identity()),
        boot_id: [boot; 16],
        tuning: Tuning::default(),
        lost_cache: false,
        planted,
    };
    Store::open(params).map(|opened| (opened.store, opened.recovered))
}

impl Replica {
    pub(crate) fn new() -> Self {
        Self::planted(Planted::NONE)
    }

    fn planted(planted: Planted) -> Self {
        let disk = Disk::new(BLOCKS, format(identity(), BLOCKS, [0; 16]));
        let (store, _) = open(&disk, 0, planted).expect("a new replica opens");
        Self { disk, store, planted, stamp: 1 }
    }

    pub(crate) fn write(&self, start: u64, count: u32, byte: u8) -> StoreOp {
        let data = vec![byte; 4096 * count as usize];
        StoreOp::Write {
            range: BlockRange::new(start, count),
            stamp: Gen(self.stamp),
            durable: false,
            payload: Payload::checksummed(Bytes::from(data)),
        }
    }

    pub(crate) fn resync(&self, blocks: &[u64], byte: u8) -> StoreOp {
        let data = vec![byte; 4096 * blocks.len()];
        let of = |block: &u64| ResyncBlock {
            block: *block,
            stamp: Gen(self.stamp),
            content: ResyncContent::Data,
        };
        let payload = Payload::checksummed(Bytes::from(data));
        StoreOp::Resync { blocks: blocks.iter().map(of).collect(), payload }
    }

    /// Hands an operation to the store, and what that asks of the disk to the disk.
    fn submit(&mut self, token: u64, op: StoreOp) -> Vec<DiskOpKind> {
        self.store.submit(Tick(0), Token(token), op);
        self.take()
    }

    fn take(&mut self) -> Vec<DiskOpKind> {
        while let Some(op) = self.store.poll_disk() {
            self.disk.take(op);
        }
        self.disk.flying.iter().map(|(op, _)| op.kind.clone()).collect()
    }

    pub(crate) fn get(&mut self, op: StoreOp) -> Result<StoreReply, StoreError> {
        self.get_with(op, |_| None)
    }

    /// The same on a disk that fails where it is told to.
    pub(crate) fn get_with(
        &mut self,
        op: StoreOp,
        mut fails: impl FnMut(&DiskOpKind) -> Option<DiskError>,
    ) -> Result<StoreReply, StoreError> {
        self.submit(1, op);
        while !self.take().is_empty() {
            let kind = self.disk.flying[0].0.kind.clone();
            let (id, result) = match fails(&kind) {
                None => self.disk.run(0),
                Some(error) => (self.disk.flying.remove(0).0.id, Err(error)),
            };
            self.store.done(Tick(0), id, result);
            self.store.check();
        }
        let (_, result) = self.store.poll_done().expect("an answer");
        result
    }

    fn read(&mut self, start: u64, count: u32) -> Result<Vec<u8>, StoreError> {
        let blocks = BlockSet::from(BlockRange::new(start, count));
        match self.get(StoreOp::Read { blocks })? {
            StoreReply::Data(payload) => Ok(payload.data.chunks(4096).map(|b| b[0]).collect()),
            other => panic!("a read is answered with {other:?}"),
        }
    }

    fn reopen(&mut self, boot: u8) -> Recovered {
        let (store, recovered) = open(&self.disk, boot, self.planted).expect("the files open");
        self.store = store;
        recovered
    }
}

fn is_data(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Write { file: File::Data, .. })
}

fn is_sync(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Sync { .. })
}

/// The activity log could not be written, and the data was written all the same.
#[test]
fn pitfall_10_activity_log_failed_and_data_written_anyway() {
    let writes_data = |planted| {
        let mut replica = Replica::planted(planted);
        let op = replica.write(0, 1, 7);
        let mut wrote = false;
        let result = replica.get_with(op, |kind| {
            wrote |= is_data(kind);
            matches!(kind, DiskOpKind::Write { file: File::Meta, .. }).then_some(DiskError::Io)
        });
        if planted == Planted::NONE {
            assert_eq!(result, Err(StoreError::Io));
            assert_eq!(replica.get(replica.write(9, 1, 7)), Err(StoreError::Faulted));
        }
        assert!(replica.store.status().faulted, "the replica goes on");
        wrote
    };
    assert!(!writes_data(Planted::NONE));
    assert!(writes_data(Planted::with(Bug::DataBeforeLog)), "the test can not fail");
}

/// A block was written twice between two flushes, and after a power cut had the content of one
/// write and the checksum of the other: good data could not be read any more.
#[test]
fn pitfall_20_block_written_twice_between_flushes() {
    for seed in 0..200 {
        let mut replica = Replica::new();
        for byte in [1, 2] {
            assert_eq!(replica.get(replica.write(5, 2, byte)), Ok(StoreReply::Done));
        }
        // A third write is under way, in any part.
        replica.submit(9, replica.write(5, 1, 3));
        replica.disk.power_loss(&mut Rng(seed));
        let recovered = replica.reopen(1);
        assert_eq!(recovered.unresolved.len(), 1, "nobody can know what is in that region");
        assert!(recovered.lossy);
        let found = replica.read(5, 2).expect("it is no error to have lost power");
        assert!(found.iter().all(|byte| *byte <= 3), "{found:?}");
        // Once it is resolved and clean, the tags are right again.
        replica.store.note(Tick(0), StoreNote::RestampUnresolved { stamp: Gen(2) });
        replica.store.note(Tick(0), StoreNote::Resolve);
        assert_eq!(replica.get(StoreOp::CleanAll), Ok(StoreReply::Done));
        assert_eq!(replica.reopen(1).unresolved.len(), 0);
        assert_eq!(replica.read(5, 2), Ok(found));
    }
}

/// A write was acknowledged before it was on the disk, and a single flipped bit decided who led.
#[test]
fn pitfall_31_flush_answered_before_it_is_done() {
    let answered_early = |planted| {
        let mut replica = Replica::planted(planted);
        assert_eq!(replica.get(replica.write(0, 1, 7)), Ok(StoreReply::Done));
        let wanted = replica.submit(2, StoreOp::Flush);
        assert!(wanted.iter().any(is_sync) || planted != Planted::NONE, "{wanted:?}");
        replica.store.poll_done().is_some()
    };
    assert!(!answered_early(Planted::NONE));
    assert!(answered_early(Planted::with(Bug::FlushWithoutSync)), "the test can not fail");

    // No bit of either copy of the superblock can make a promise older, newer, or another one.
    let mut replica = Replica::new();
    let lineage = identity().lineage;
    let promise = StoreOp::Promise { epoch: Epoch(6), attach_seq: 1, member_gen: Gen(1), lineage };
    assert_eq!(replica.get(promise), Ok(StoreReply::Done));
    for at in (0..128).chain(4096..4096 + 128) {
        let mut damaged = replica.disk.clone();
        damaged.flip(File::Meta, at);
        let (_, recovered) = open(&damaged, 0, Planted::NONE).expect("one good copy is enough");
        assert_eq!(recovered.promised, Epoch(6), "byte {at}");
    }
    // And a promise is answered when both copies have it, not before.
    let promised_early = |planted| {
        let mut replica = Replica::planted(planted);
        let lineage = identity().lineage;
        let promise =
            StoreOp::Promise { epoch: Epoch(6), attach_seq: 1, member_gen: Gen(1), lineage };
        replica.submit(1, promise);
        replica.store.poll_done().is_some()
    };
    assert!(!promised_early(Planted::NONE));
    assert!(promised_early(Planted::with(Bug::VolatilePromise)), "the test can not fail");
}

/// A flush failed, was tried again, and the system called it a success: it had thrown the dirty
/// pages away.
#[test]
fn pitfall_32_failed_flush_retried() {
    let mut replica = Replica::new();
    assert_eq!(replica.get(replica.write(0, 1, 7)), Ok(StoreReply::Done));
    let failed = replica.get_with(StoreOp::Flush, |kind| is_sync(kind).then_some(DiskError::Io));
    assert_eq!(failed, Err(StoreError::Io));
    for op in [StoreOp::Flush, StoreOp::CleanAll, replica.write(0, 1, 8)] {
        let mut asked = Vec::new();
        let result = replica.get_with(op, |kind| {
            asked.push(kind.clone());
            None
        });
        assert_eq!(result, Err(StoreError::Faulted));
        assert_eq!(asked, [], "the disk was asked again");
    }
    replica.store.tick(Tick(u64::MAX / 2));
    assert_eq!(replica.take(), [], "nor later");
    // What was not flushed is in doubt when the replica is opened again.
    assert_eq!(replica.reopen(0).unresolved.len(), 1);
}

/// A discard took more than it was asked to.
#[test]
fn pitfall_34_discard_longer_than_asked() {
    for start in (0..BLOCKS).step_by(85) {
        for count in [1, 2, 85, 256] {
            let end = BLOCKS.min(start + count);
            let count = u32::try_from(end - start).expect("small");
            let mut replica = Replica::new();
            for first in (0..BLOCKS).step_by(256) {
                assert_eq!(replica.get(replica.write(first, 256, 7)), Ok(StoreReply::Done));
            }
            let range = BlockRange::new(start, count);
            let op = StoreOp::Zero { range, stamp: Gen(2), durable: true, deallocate: true };
            assert_eq!(replica.get(op), Ok(StoreReply::Done));
            replica.disk.power_loss(&mut Rng(1));
            for block in start.saturating_sub(2)..BLOCKS.min(end + 2) {
                let data = replica.disk.read(File::Data, block * 4096, 4096);
                let inside = range.blocks().contains(&block);
                let zeroes = data.iter().all(|byte| *byte == 0);
                assert!(!inside || zeroes, "block {block} was to be zero, discarding {range:?}");
                let before = inside || zeroes || data.iter().all(|byte| *byte == 7);
                assert!(before, "block {block} was damaged by discarding {range:?}");
            }
            // What is outside was not even asked to change.
            let mut fresh = Replica::new();
            for op in fresh
                .submit(3, StoreOp::Zero { range, stamp: Gen(2), durable: false, deallocate: true })
            {
                assert!(!matches!(op, DiskOpKind::Zero { .. }), "zeroed before it is logged");
            }
            while let Some(index) = (!fresh.disk.flying.is_empty()).then_some(0) {
                let (op, _): &(DiskOp, u64) = &fresh.disk.flying[index];
                if let DiskOpKind::Zero { offset, len, .. } = op.kind {
                    assert_eq!((offset, len), (start * 4096, u64::from(count) * 4096));
                }
                let (id, result) = fresh.disk.run(index);
                fresh.store.done(Tick(0), id, result);
                fresh.take();
            }
        }
    }
}

/// Rot was taken for a write cut short and thrown away, with acknowledged data; or the reverse, and
/// a crash made the store unreadable.
#[test]
fn pitfall_38_rot_taken_for_a_torn_tail() {
    let mut replica = Replica::new();
    for region in 0..4 {
        // Regions far enough apart that each gets a record of its own.
        assert_eq!(replica.get(replica.write(region * 256, 1, 7)), Ok(StoreReply::Done));
    }
    let slot = |seq: u64| 8192 + seq * 8192;
    let found = |disk: &Disk| open(disk, 0, Planted::NONE).map(|(_, r)| r.unresolved.len());
    let all = found(&replica.disk).expect("it opens");
    assert_eq!(all, 4);
    let records =
        (1..5).take_while(|seq| replica.disk.read(File::Meta, slot(*seq), 8) == b"LKSTLOG1");
    let last = records.last().expect("a record");
    assert!(last >= 2, "the writes went into one record");

    // The newest record, cut short after any number of sectors: as if it had not been written.
    let mut torn = replica.disk.clone();
    torn.put(File::Meta, slot(last) + 32, &[0; 8192 - 32]);
    assert!(found(&torn).expect("a crash is no damage") < all);
    // One flipped bit in it: the other copy has it.
    let mut rotten = replica.disk.clone();
    rotten.flip(File::Meta, slot(last) + 70);
    assert_eq!(found(&rotten), Ok(all));
    // An older record that can't be read is rot, and nothing is dropped silently.
    let mut rotten = replica.disk.clone();
    rotten.flip(File::Meta, slot(1) + 70);
    rotten.flip(File::Meta, slot(1) + 4096 + 70);
    assert!(matches!(found(&rotten), Err(OpenError::LogDamaged { seq: 1, .. })));
    // A block that rotted is never given out as if it were good.
    replica.store.note(Tick(0), StoreNote::Release { blocks: BlockRange::new(0, 1).into() });
    assert_eq!(replica.read(0, 1), Ok(vec![7]));
    replica.disk.flip(File::Data, 17);
    assert_eq!(replica.read(0, 1), Err(StoreError::Checksum { block: 0 }));
}
