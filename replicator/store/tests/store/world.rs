//! A store, its disk and its twin, driven step by step.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen, Lineage, RegionIndex, ReplicaId, Tick, Token, VolumeId};
use lockstep_core::message::{Digest, Payload, ResyncBlock, ResyncContent};
use lockstep_core::planted::Planted;
use lockstep_core::range::{BlockRange, BlockSet, region_of};
use lockstep_core::store::{Recovered, StoreError, StoreNote, StoreOp, StoreReply};
use lockstep_store::{DiskError, DiskOpKind, File, Identity, OpenParams, Store, Tuning, format};

use crate::disk::{Disk, Rng};
use crate::twin::{Twin, Value, content, range_in, value_of};

/// Two whole regions and a part of a third.
pub(crate) const BLOCKS: u64 = 2 * 256 + 40;

pub(crate) fn identity() -> Identity {
    Identity {
        volume: VolumeId(uuid::Uuid::from_u128(1)),
        replica: ReplicaId(uuid::Uuid::from_u128(2)),
        lineage: Lineage(uuid::Uuid::from_u128(3)),
    }
}

/// Small, so that limits are met.
pub(crate) fn tuning() -> Tuning {
    Tuning {
        active_max: 2,
        clean_above: 1,
        idle_ms: 100,
        clean_batch: 2,
        ahead: 1,
        cached_tables: 1,
        ..Tuning::default()
    }
}

/// Something that happens. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Write {
        start: u64,
        count: u32,
        durable: bool,
    },
    Zero {
        start: u64,
        count: u32,
        durable: bool,
    },
    Resync {
        start: u64,
        count: u32,
        mask: u64,
    },
    Mark {
        start: u64,
        count: u32,
    },
    Flush,
    Read {
        start: u64,
        count: u32,
    },
    Digest {
        start: u64,
        count: u32,
        since: u32,
    },
    Scan {
        since: u32,
    },
    Promise,
    Release {
        which: usize,
    },
    Restamp {
        which: usize,
    },
    CleanAll,
    Wait {
        ms: u64,
    },
    Disk {
        which: usize,
    },
    Settle,
    /// A disk operation fails; if the store latches, its files are opened again.
    Fail {
        which: usize,
        seed: u64,
    },
    Kill {
        seed: u64,
    },
    PowerLoss {
        seed: u64,
    },
    Resolve,
}

/// What was asked and not answered.
#[derive(Debug)]
enum Asked {
    Mutation { blocks: BlockSet, durable: bool },
    Flush(Vec<(u64, u64)>),
    Read { blocks: BlockSet, legal: Vec<BTreeSet<Value>> },
    Digest { blocks: BlockSet, since: Gen, legal: Vec<BTreeSet<Value>>, stamps: Vec<(Gen, bool)> },
    Scan(BTreeSet<RegionIndex>),
    Promise(Epoch),
    CleanAll,
}

impl Asked {
    /// Because something could not be read, which does not latch the store.
    fn may_fail_alone(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::Digest { .. } | Self::CleanAll)
    }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) disk: Disk,
    pub(crate) store: Store,
    pub(crate) twin: Twin,
    now: Tick,
    asked: BTreeMap<Token, Asked>,
    last: u64,
    value: Value,
    r#gen: Gen,
    promised: Epoch,
    asked_promise: Epoch,
    boot: u8,
    unresolved: Vec<RegionIndex>,
    /// Of these, those known to be durably in the log: a record that was found at open may be lost
    /// until the store has written to the log.
    confirmed: Vec<RegionIndex>,
    planted: Planted,
    /// Did anything fail?
    failures: bool,
}

type Outcome = Result<(), String>;

/// How the files of a test are opened, but for what it is about.
pub(crate) fn params<'a>(meta: &'a [u8], regions: &'a [u8], boot: u8) -> OpenParams<'a> {
    OpenParams {
        meta,
        regions,
        expect: Some(identity()),
        boot_id: [boot; 16],
        lost_cache: false,
        tuning: Tuning::default(),
        planted: Planted::NONE,
    }
}

fn open(disk: &Disk, boot: u8, planted: Planted) -> Result<(Store, Recovered), String> {
    let (meta, regions) = (disk.file(File::Meta), disk.file(File::Regions));
    let params = OpenParams { tuning: tuning(), planted, ..params(&meta, &regions, boot) };
    let opened = Store::open(params).map_err(|error| error.to_string())?;
    Ok((opened.store, opened.recovered))
}

impl World {
    pub(crate) fn new(planted: Planted) -> Self {
        let disk = Disk::new(BLOCKS, format(identity(), BLOCKS, [0; 16]));
        let (store, recovered) = open(&disk, 0, planted).expect("a formatted replica opens");
        assert!(recovered.fresh && !recovered.lossy && recovered.unresolved.is_empty());
        Self {
            disk,
            store,
            twin: Twin::new(BLOCKS),
            now: Tick(0),
            asked: BTreeMap::new(),
            last: 0,
            value: 0,
            r#gen: Gen(1),
            promised: Epoch(0),
            asked_promise: Epoch(0),
            boot: 0,
            unresolved: Vec::new(),
            confirmed: Vec::new(),
            planted,
            failures: false,
        }
    }

    pub(crate) fn step(&mut self, step: Step) -> Outcome {
        match step {
            Step::Write { start, count, durable } => self.write(start, count, durable, true),
            Step::Zero { start, count, durable } => self.write(start, count, durable, false),
            Step::Resync { start, count, mask } => self.resync(start, count, mask),
            Step::Mark { start, count } => self.mark(start, count),
            Step::Flush => self.ask(StoreOp::Flush, Asked::Flush(self.twin.flush_begin())),
            Step::Read { start, count } => self.read(start, count),
            Step::Digest { start, count, since } => self.digest(start, count, since),
            Step::Scan { since } => self.scan(since),
            Step::Promise => self.promise(),
            Step::Release { which } => self.release(which),
            Step::Restamp { which } => self.restamp(which),
            Step::CleanAll => self.ask(StoreOp::CleanAll, Asked::CleanAll),
            Step::Wait { ms } => {
                self.now = self.now.plus_ms(ms);
                self.store.tick(self.now);
            }
            Step::Disk { which } => self.run(which),
            Step::Settle => self.settle(),
            Step::Fail { which, seed } => return self.fail(which, seed),
            Step::Kill { seed } => return self.restart(seed, false),
            Step::PowerLoss { seed } => return self.restart(seed, true),
            Step::Resolve => self.resolve(),
        }
        self.collect()
    }

    fn ask(&mut self, op: StoreOp, asked: Asked) {
        self.last += 1;
        self.asked.insert(Token(self.last), asked);
        self.store.submit(self.now, Token(self.last), op);
    }

    fn write(&mut self, start: u64, count: u32, durable: bool, data: bool) {
        let range = range_in(BLOCKS, start, count);
        let blocks = BlockSet::from(range);
        if self.twin.is_flying(&blocks) {
            return;
        }
        let stamp = self.r#gen;
        let mut bytes = Vec::new();
        for block in range.blocks() {
            self.value += u32::from(data);
            let value = if data { self.value } else { 0 };
            bytes.extend(content(value));
            self.begin(block, Some(value), stamp);
        }
        let payload = Payload::checksummed(Bytes::from(bytes));
        let op = if data {
            StoreOp::Write { range, stamp, durable, payload }
        } else {
            StoreOp::Zero { range, stamp, durable, deallocate: true }
        };
        self.ask(op, Asked::Mutation { blocks, durable });
    }

    fn begin(&mut self, block: u64, value: Option<Value>, stamp: Gen) {
        self.twin.begin(block, value, stamp);
        self.disturb(block, value);
    }

    /// What was asked about this block may be answered as of before or as of now.
    fn disturb(&mut self, block: u64, value: Option<Value>) {
        for asked in self.asked.values_mut() {
            if let Asked::Read { blocks, legal } | Asked::Digest { blocks, legal, .. } = asked {
                let at = blocks.blocks().position(|b| b == block);
                at.into_iter().for_each(|at| legal[at].extend(value));
            }
            if let Asked::Digest { blocks, stamps, .. } = asked {
                let at = blocks.blocks().position(|b| b == block);
                at.into_iter().for_each(|at| stamps[at] = (Gen(0), false));
            }
        }
    }

    fn resync(&mut self, start: u64, count: u32, mask: u64) {
        let range = range_in(BLOCKS, start, count.min(16));
        let picked: Vec<u64> = range
            .blocks()
            .zip(0_u32..)
            .filter(|(_, i)| mask >> (3 * i) & 1 == 1)
            .map(|b| b.0)
            .collect();
        let blocks: BlockSet = picked.iter().map(|b| BlockRange::new(*b, 1)).collect();
        if blocks.is_empty() || self.twin.is_flying(&blocks) {
            return;
        }
        let mut data = Vec::new();
        let mut list = Vec::new();
        for block in picked {
            let kind = mask >> (3 * (block - range.start) + 1) & 3;
            let stamp = Gen(u32::try_from(mask % u64::from(self.r#gen.0)).expect("small") + 1);
            let (content_kind, value) = match kind {
                0 => (ResyncContent::Zero, Some(0)),
                1 => (ResyncContent::Same, None),
                _ => {
                    self.value += 1;
                    data.extend(content(self.value));
                    (ResyncContent::Data, Some(self.value))
                }
            };
            list.push(ResyncBlock { block, stamp, content: content_kind });
            self.begin(block, value, stamp);
        }
        let payload = Payload::checksummed(Bytes::from(data));
        let op = StoreOp::Resync { blocks: list, payload };
        self.ask(op, Asked::Mutation { blocks, durable: false });
    }

    fn mark(&mut self, start: u64, count: u32) {
        let blocks = BlockSet::from(range_in(BLOCKS, start, count));
        if self.twin.is_flying(&blocks) {
            return;
        }
        for block in blocks.blocks() {
            let stamp = self.twin.block(block).stamp;
            self.begin(block, None, stamp);
        }
        let op = StoreOp::Mark { blocks: blocks.clone() };
        self.ask(op, Asked::Mutation { blocks, durable: false });
    }

    fn legal(&self, blocks: &BlockSet) -> Vec<BTreeSet<Value>> {
        blocks.blocks().map(|b| self.twin.block(b).visible().into_iter().collect()).collect()
    }

    fn read(&mut self, start: u64, count: u32) {
        // Two ranges, so that answers are put together.
        let first = range_in(BLOCKS, start, count);
        let second = range_in(BLOCKS, start + 200, count);
        let blocks: BlockSet = [first, second].into_iter().collect();
        let legal = self.legal(&blocks);
        self.ask(StoreOp::Read { blocks: blocks.clone() }, Asked::Read { blocks, legal });
    }

    fn digest(&mut self, start: u64, count: u32, since: u32) {
        let blocks = BlockSet::from(range_in(BLOCKS, start, count));
        if self.twin.is_flying(&blocks) {
            return;
        }
        let since = Gen(since % (self.r#gen.0 + 1));
        let legal = self.legal(&blocks);
        let stamp = |b: u64| (self.twin.block(b).stamp, self.twin.block(b).exact);
        let stamps = blocks.blocks().map(stamp).collect();
        let asked = Asked::Digest { blocks: blocks.clone(), since, legal, stamps };
        self.ask(StoreOp::Digest { blocks, since }, asked);
    }

    fn scan(&mut self, since: u32) {
        let since = Gen(since % (self.r#gen.0 + 1));
        let of_interest = |stamp: Gen| stamp >= since.max(Gen(1));
        let stamped = self.twin.stamped().filter(|(_, b)| of_interest(b.stamp));
        let mut regions: BTreeSet<_> = stamped.map(|(block, _)| region_of(block)).collect();
        regions.extend(&self.unresolved);
        let op = StoreOp::Scan { since, from: RegionIndex(0), limit: 100 };
        self.ask(op, Asked::Scan(regions));
    }

    fn promise(&mut self) {
        self.asked_promise = self.asked_promise.next();
        let epoch = self.asked_promise;
        let op = StoreOp::Promise {
            epoch,
            attach_seq: epoch.0,
            member_gen: self.r#gen,
            lineage: identity().lineage,
        };
        self.ask(op, Asked::Promise(epoch));
    }

    fn release(&mut self, which: usize) {
        if !self.twin.pins.is_empty() {
            let blocks = self.twin.pins.swap_remove(which % self.twin.pins.len());
            self.store.note(self.now, StoreNote::Release { blocks });
        }
    }

    /// As when the generation rises: an operation that is answered, or under way.
    fn restamp(&mut self, which: usize) {
        let under_way = self.asked.values().filter_map(|asked| match asked {
            Asked::Mutation { blocks, .. } => Some(blocks),
            _ => None,
        });
        let held: Vec<&BlockSet> = under_way.chain(&self.twin.pins).collect();
        if let Some(blocks) = held.get(which % held.len().max(1)) {
            let blocks = (*blocks).clone();
            self.r#gen = self.r#gen.next();
            self.twin.restamp(&blocks, self.r#gen);
            blocks.blocks().for_each(|block| self.disturb(block, None));
            self.store.note(self.now, StoreNote::Restamp { blocks, stamp: self.r#gen });
        }
    }

    pub(crate) fn resolve(&mut self) {
        self.r#gen = self.r#gen.next();
        self.store.note(self.now, StoreNote::RestampUnresolved { stamp: self.r#gen });
        let confirmed = std::mem::take(&mut self.confirmed);
        for region in std::mem::take(&mut self.unresolved) {
            let range = BlockRange::of_region(region, BLOCKS).expect("inside");
            // A region that was never durably active was not written either: nobody minds if the
            // new stamp is lost with the record.
            if confirmed.contains(&region) {
                self.twin.restamp(&BlockSet::from(range), self.r#gen);
            }
            range.blocks().for_each(|block| self.disturb(block, None));
        }
        self.store.note(self.now, StoreNote::Resolve);
    }

    fn run(&mut self, which: usize) {
        if self.disk.flying.is_empty() {
            return;
        }
        let index = which % self.disk.flying.len();
        let kind = &self.disk.flying[index].0.kind;
        if matches!(kind, DiskOpKind::Write { file: File::Meta, offset: 8192.., .. }) {
            self.confirmed.clone_from(&self.unresolved);
        }
        let (id, result) = self.disk.run(index);
        self.store.done(self.now, id, result);
    }

    fn fail(&mut self, which: usize, seed: u64) -> Outcome {
        if self.disk.flying.is_empty() {
            return Ok(());
        }
        let op = self.disk.fail(which % self.disk.flying.len(), &mut Rng(seed));
        self.failures = true;
        self.store.done(self.now, op.id, Err(DiskError::Io));
        self.collect()?;
        if !self.store.status().faulted {
            return Ok(());
        }
        if !self.asked.is_empty() {
            return Err(format!("not answered by a latched store: {:?}", self.asked));
        }
        self.restart(seed, false)
    }

    /// Until the disk has nothing to do.
    pub(crate) fn settle(&mut self) {
        loop {
            while let Some(op) = self.store.poll_disk() {
                self.disk.take(op);
            }
            if self.disk.flying.is_empty() {
                return;
            }
            self.run(0);
        }
    }

    fn restart(&mut self, seed: u64, power_lost: bool) -> Outcome {
        let mut rng = Rng(seed);
        if power_lost {
            self.disk.power_loss(&mut rng);
            self.boot = self.boot.wrapping_add(1);
        } else {
            self.disk.kill(&mut rng);
        }
        self.asked.clear();
        let (store, recovered) = open(&self.disk, self.boot, self.planted)?;
        self.store = store;
        if recovered.promised < self.promised || recovered.promised > self.asked_promise {
            return Err(format!("promised {}, found {}", self.promised, recovered.promised));
        }
        self.asked_promise = recovered.promised;
        if power_lost && !recovered.unresolved.is_empty() && !recovered.lossy {
            return Err("power was lost with regions active, and it is not lossy".to_owned());
        }
        if recovered.lossy && recovered.unresolved.is_empty() {
            return Err("lossy with an empty log".to_owned());
        }
        let still = self.confirmed.iter().find(|region| !recovered.unresolved.contains(region));
        if let Some(region) = still {
            return Err(format!("region {region} was forgotten unresolved"));
        }
        self.twin.restart(&self.disk, &recovered.unresolved, power_lost)?;
        self.unresolved = recovered.unresolved;
        self.r#gen = self.r#gen.next();
        Ok(())
    }

    /// Takes what the store has to say.
    fn collect(&mut self) -> Outcome {
        while let Some(op) = self.store.poll_disk() {
            self.disk.take(op);
        }
        self.store.check();
        while let Some((token, result)) = self.store.poll_done() {
            let Some(asked) = self.asked.remove(&token) else {
                return Err(format!("{token:?} was answered twice or never asked"));
            };
            self.answered(asked, result)?;
        }
        Ok(())
    }

    fn answered(&mut self, asked: Asked, result: Result<StoreReply, StoreError>) -> Outcome {
        let reply = match result {
            Ok(reply) => reply,
            Err(StoreError::Io | StoreError::Faulted)
                if self.failures && self.store.status().faulted =>
            {
                return Ok(());
            }
            Err(StoreError::Io) if self.failures && asked.may_fail_alone() => return Ok(()),
            Err(error) => return Err(format!("{asked:?} failed: {error:?}")),
        };
        match (asked, reply) {
            (Asked::Mutation { blocks, durable }, StoreReply::Done) => {
                for block in blocks.blocks() {
                    self.twin.end(block, durable);
                }
                self.twin.pins.push(blocks);
            }
            (Asked::Flush(begun), StoreReply::Done) => self.twin.flush_end(&begun),
            (Asked::Promise(epoch), StoreReply::Done) => self.promised = self.promised.max(epoch),
            (Asked::CleanAll, StoreReply::Done) => {}
            (Asked::Read { blocks, legal }, StoreReply::Data(payload)) => {
                check_read(&blocks, &legal, &payload)?;
            }
            (Asked::Digest { blocks, since, legal, stamps }, StoreReply::Digests(found)) => {
                let mut found = found.into_iter().peekable();
                for ((block, legal), (stamp, exact)) in blocks.blocks().zip(legal).zip(stamps) {
                    let Some(digest) = found.next_if(|d| d.block == block) else {
                        let unresolved = self.unresolved.contains(&region_of(block));
                        if stamp >= since || unresolved {
                            return Err(format!("block {block} is missing from a digest"));
                        }
                        continue;
                    };
                    if digest.stamp < stamp || exact && digest.stamp != stamp {
                        return Err(format!("stamp of {digest:?} is not {stamp}"));
                    }
                    let is = |v: &Value| digest_of(*v) == digest.digest && digest.zero == (*v == 0);
                    if !legal.iter().any(is) {
                        return Err(format!("{digest:?} is none of {legal:?}"));
                    }
                }
                if let Some(extra) = found.next() {
                    return Err(format!("{extra:?} was not asked for"));
                }
            }
            (Asked::Scan(expected), StoreReply::Regions { regions, next: None }) => {
                if let Some(missing) = expected.iter().find(|r| !regions.contains(r)) {
                    return Err(format!("region {missing} is missing from a scan"));
                }
            }
            (asked, reply) => return Err(format!("{asked:?} was answered with {reply:?}")),
        }
        Ok(())
    }

    /// Releases everything, cleans, and compares the whole volume.
    pub(crate) fn finish(&mut self) -> Outcome {
        self.step(Step::Settle)?;
        self.step(Step::Resolve)?;
        while !self.twin.pins.is_empty() {
            self.step(Step::Release { which: 0 })?;
        }
        self.step(Step::CleanAll)?;
        self.step(Step::Settle)?;
        if !self.asked.is_empty() {
            return Err(format!("never answered: {:?}", self.asked));
        }
        if self.failures && self.store.status().faulted {
            // A table of tags could not be read.
            return Ok(());
        }
        let active = self.store.active_regions();
        if !active.is_empty() {
            return Err(format!("{active:?} stay active"));
        }
        self.step(Step::Read { start: 0, count: 200 })?;
        self.step(Step::Digest { start: 0, count: 1000, since: 0 })?;
        self.step(Step::Settle)?;
        self.step(Step::PowerLoss { seed: 1 })
    }
}

fn check_read(blocks: &BlockSet, legal: &[BTreeSet<Value>], payload: &Payload) -> Outcome {
    if payload.blocks() as u64 != blocks.len() || !payload.is_intact() {
        return Err("a read's payload is not what was asked for".to_owned());
    }
    for ((block, legal), data) in blocks.blocks().zip(legal).zip(payload.data.chunks(4096)) {
        let value = value_of(data)?;
        if !legal.contains(&value) {
            return Err(format!("read {value} from block {block}, legal are {legal:?}"));
        }
    }
    Ok(())
}

fn digest_of(value: Value) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(&blake3::hash(&content(value)).as_bytes()[..16]);
    Digest(digest)
}
