//! Crash images: small workloads are recorded, and every image that a kill or a power cut may leave
//! at any moment of them is opened and checked.
//!
//! All workloads of two operations are tried, and some longer ones. `CRASH_WORKLOADS=n` tries `n`
//! longer ones instead of a few, with more subsets; `CRASH_SEED` chooses which.

mod medium;
mod model;

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::id::{Gen, Tick, Token};
use lockstep_core::message::{BlockDigest, Payload, ResyncBlock, ResyncContent, Wholeness};
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::store::{StoreNote, StoreOp, StoreReply};
use lockstep_store::{File, OpenParams, Opened, Store, Tuning, format};

use self::medium::{Image, Medium};
use self::model::Model;
use crate::disk::Rng;
use crate::twin::{Value, content, value_of};
use crate::world::{identity, params};

/// Three regions.
const BLOCKS: u64 = 600;

/// What a workload is made of: few places, so that operations meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Write {
        start: u64,
        count: u32,
        durable: bool,
    },
    Zero,
    Resync,
    Mark,
    Flush,
    Promise,
    /// Everything is released and cleaned.
    Clean,
    /// Everything is released, and time passes until the cleaner comes by itself.
    Idle,
    Restamp,
}

const OPS: [Op; 11] = [
    Op::Write { start: 0, count: 2, durable: false },
    Op::Write { start: 1, count: 1, durable: true },
    // Over the border of two regions.
    Op::Write { start: 255, count: 2, durable: false },
    Op::Zero,
    Op::Resync,
    Op::Mark,
    Op::Flush,
    Op::Promise,
    Op::Clean,
    Op::Idle,
    Op::Restamp,
];

/// In which order the disk does what it was handed.
#[derive(Clone, Copy, Debug)]
enum Order {
    /// One operation of the store after the other.
    One,
    First,
    Last,
}

enum Asked {
    Mutation { blocks: BlockSet, durable: bool },
    Flush(BTreeMap<u64, Value>),
    Promise,
    Clean,
}

struct Recording {
    store: Store,
    medium: Medium,
    model: Model,
    asked: BTreeMap<Token, Asked>,
    order: Order,
    planted: Planted,
    now: Tick,
    value: Value,
    /// Images of a moment with many doubtful writes.
    random: usize,
    rng: Rng,
    images: u64,
}

fn tuning() -> Tuning {
    Tuning { idle_ms: 50, ahead: 1, ..Tuning::default() }
}

fn open(image: &Image, boot: u8, planted: Planted) -> Result<Opened, String> {
    let (meta, regions) = (image.file(File::Meta, BLOCKS), image.file(File::Regions, BLOCKS));
    let params = OpenParams { tuning: tuning(), planted, ..params(&meta, &regions, boot) };
    Store::open(params).map_err(|error| format!("it does not open: {error}"))
}

impl Recording {
    fn new(order: Order, planted: Planted, random: usize, seed: u64) -> Self {
        let medium = Medium::new(format(identity(), BLOCKS, [0; 16]));
        let opened = open(&medium.visible(), 0, planted).expect("a new replica opens");
        Self {
            store: opened.store,
            medium,
            model: Model::default(),
            asked: BTreeMap::new(),
            order,
            planted,
            now: Tick(0),
            value: 0,
            random,
            rng: Rng(seed),
            images: 0,
        }
    }

    fn play(&mut self, ops: &[Op]) -> Result<(), String> {
        for op in ops {
            self.begin(*op)?;
            if matches!(self.order, Order::One) {
                self.settle()?;
            }
        }
        self.settle()
    }

    fn begin(&mut self, op: Op) -> Result<(), String> {
        let stamp = Gen(self.value + 1);
        match op {
            Op::Write { start, count, durable } => {
                let range = BlockRange::new(start, count);
                self.value += 1;
                let data = content(self.value).repeat(count as usize);
                let payload = Payload::checksummed(Bytes::from(data));
                let op = StoreOp::Write { range, stamp, durable, payload };
                self.mutate(range.into(), Some(self.value), stamp, durable, op)
            }
            Op::Zero => {
                let range = BlockRange::new(0, 3);
                let op = StoreOp::Zero { range, stamp, durable: false, deallocate: true };
                self.mutate(range.into(), Some(0), stamp, false, op)
            }
            Op::Resync => self.resync(stamp),
            Op::Mark => {
                let blocks = BlockSet::from(BlockRange::new(513, 1));
                let op = StoreOp::Mark { blocks: blocks.clone() };
                let asked = Asked::Mutation { blocks, durable: false };
                self.submit(asked, op);
                Ok(())
            }
            Op::Flush => {
                let asked = Asked::Flush(self.model.answered());
                self.submit(asked, StoreOp::Flush);
                Ok(())
            }
            Op::Promise => {
                // A replica makes one after the other.
                self.settle()?;
                let (epoch, lineage) = (self.model.ask_promise(), identity().lineage);
                let op = StoreOp::Promise { epoch, lineage, attach_seq: 1, member_gen: Gen(1) };
                self.submit(Asked::Promise, op);
                Ok(())
            }
            Op::Clean | Op::Idle | Op::Restamp => self.quietly(op),
        }
    }

    /// What is done only when nothing is in flight.
    fn quietly(&mut self, op: Op) -> Result<(), String> {
        self.settle()?;
        if op == Op::Restamp {
            let stamp = Gen(1_000_000);
            for region in self.store.active_regions() {
                let blocks = BlockRange::new(u64::from(region.0) * 256, 2).into();
                self.store.note(self.now, StoreNote::Restamp { blocks, stamp });
            }
            return self.look();
        }
        for blocks in self.model.pins() {
            self.store.note(self.now, StoreNote::Release { blocks });
        }
        self.model.release_all();
        if op == Op::Clean {
            self.submit(Asked::Clean, StoreOp::CleanAll);
            return Ok(());
        }
        self.now = self.now.plus_ms(100);
        self.store.tick(self.now);
        self.settle()
    }

    fn resync(&mut self, stamp: Gen) -> Result<(), String> {
        let kinds =
            [(1, ResyncContent::Data), (2, ResyncContent::Same), (256, ResyncContent::Zero)];
        let of = |(block, content)| ResyncBlock { block, stamp, content };
        let blocks: Vec<ResyncBlock> = kinds.into_iter().map(of).collect();
        let set: BlockSet = kinds.iter().map(|(block, _)| BlockRange::new(*block, 1)).collect();
        self.settle_overlap(&set)?;
        self.value += 1;
        let payload = Payload::checksummed(Bytes::from(content(self.value)));
        let values = [(1, Some(self.value)), (2, None), (256, Some(0))];
        values.into_iter().for_each(|(block, value)| self.model.begin(block, value, stamp));
        let asked = Asked::Mutation { blocks: set, durable: false };
        self.submit(asked, StoreOp::Resync { blocks, payload });
        Ok(())
    }

    fn mutate(
        &mut self,
        blocks: BlockSet,
        value: Option<Value>,
        stamp: Gen,
        durable: bool,
        op: StoreOp,
    ) -> Result<(), String> {
        self.settle_overlap(&blocks)?;
        blocks.blocks().for_each(|block| self.model.begin(block, value, stamp));
        self.submit(Asked::Mutation { blocks, durable }, op);
        Ok(())
    }

    /// Mutations that overlap are never in flight together.
    fn settle_overlap(&mut self, blocks: &BlockSet) -> Result<(), String> {
        let overlaps = |asked: &Asked| match asked {
            Asked::Mutation { blocks: other, .. } => other.blocks().any(|b| blocks.contains(b)),
            Asked::Flush(_) | Asked::Promise | Asked::Clean => false,
        };
        if self.asked.values().any(overlaps) { self.settle() } else { Ok(()) }
    }

    fn submit(&mut self, asked: Asked, op: StoreOp) {
        let token = Token(self.images * 1000 + self.asked.len() as u64);
        self.asked.insert(token, asked);
        self.store.submit(self.now, token, op);
        self.collect();
    }

    fn settle(&mut self) -> Result<(), String> {
        loop {
            self.collect();
            self.look()?;
            let index = match (self.medium.flying(), self.order) {
                (0, _) => return Ok(()),
                (_, Order::One | Order::First) => 0,
                (count, Order::Last) => count - 1,
            };
            let (id, data) = self.medium.run(index);
            // Done, and the store does not know it yet.
            self.look()?;
            self.store.done(self.now, id, Ok(data));
        }
    }

    fn collect(&mut self) {
        loop {
            while let Some(op) = self.store.poll_disk() {
                self.medium.take(op);
            }
            let Some((token, result)) = self.store.poll_done() else { return };
            assert_eq!(result, Ok(StoreReply::Done), "nothing fails on this disk");
            match self.asked.remove(&token).expect("it was asked") {
                Asked::Mutation { blocks, durable } => {
                    blocks.blocks().for_each(|block| self.model.end(block, durable));
                    self.model.pin(blocks);
                }
                Asked::Flush(answered) => self.model.flushed(&answered),
                Asked::Promise => self.model.promise_done(),
                Asked::Clean => {}
            }
        }
    }

    /// Opens what a crash at this moment may leave.
    fn look(&mut self) -> Result<(), String> {
        let (model, planted) = (&self.model, self.planted);
        let mut wrong = Ok(());
        let mut images = 0;
        for power_cut in [false, true] {
            let mut check = |image: &Image| {
                images += 1;
                if wrong.is_ok() {
                    wrong = reopen(image, model, power_cut, planted, images % 16 == 0);
                }
            };
            match power_cut {
                false => self.medium.after_kill(self.random, &mut self.rng, &mut check),
                true => self.medium.after_power_cut(self.random, &mut self.rng, &mut check),
            }
        }
        self.images += images;
        wrong
    }
}

fn reopen(
    image: &Image,
    model: &Model,
    power_cut: bool,
    planted: Planted,
    thoroughly: bool,
) -> Result<(), String> {
    let opened = open(image, u8::from(power_cut), planted)?;
    model.check(image, &opened.recovered, power_cut)?;
    if thoroughly { resolve(image, opened) } else { Ok(()) }
}

/// Whatever is found can be read, resolved and cleaned, and is then clean.
fn resolve(image: &Image, opened: Opened) -> Result<(), String> {
    let mut medium = Medium::of(image.clone());
    let mut store = opened.store;
    let mut ask = |store: &mut Store, op: StoreOp| {
        store.submit(Tick(0), Token(1), op);
        loop {
            while let Some(op) = store.poll_disk() {
                medium.take(op);
            }
            if let Some((_, result)) = store.poll_done() {
                return result;
            }
            let (id, data) = medium.run(0);
            store.done(Tick(0), id, Ok(data));
        }
    };
    for start in [0, 255, 512] {
        let blocks = BlockSet::from(BlockRange::new(start, 3));
        let read = StoreOp::Read { blocks: blocks.clone() };
        ask(&mut store, read).map_err(|e| format!("not readable: {e:?}"))?;
        let digest = StoreOp::Digest { blocks, since: Gen(0) };
        match ask(&mut store, digest) {
            Ok(StoreReply::Digests(digests)) => check_wholeness(image, &digests)?,
            other => return Err(format!("no digests: {other:?}")),
        }
    }
    store.note(Tick(0), StoreNote::RestampUnresolved { stamp: Gen(2_000_000) });
    store.note(Tick(0), StoreNote::Resolve);
    ask(&mut store, StoreOp::CleanAll).map_err(|e| format!("can't be cleaned: {e:?}"))?;
    let again = open(&medium.visible(), 7, Planted::NONE)?;
    let left = again.recovered.unresolved;
    if left.is_empty() { Ok(()) } else { Err(format!("{left:?} stay unresolved")) }
}

/// Of a block that is torn, nobody says that it is whole.
fn check_wholeness(image: &Image, digests: &[BlockDigest]) -> Result<(), String> {
    for digest in digests {
        let torn = value_of(&image.read(File::Data, digest.block * 4096, 4096)).is_err();
        if torn && digest.wholeness != Wholeness::Doubtful {
            return Err(format!("torn block {} is called {:?}", digest.block, digest.wholeness));
        }
    }
    Ok(())
}

/// All workloads of two operations, and some longer ones.
fn workloads(longer: usize, seed: u64) -> Vec<Vec<Op>> {
    let mut all: Vec<Vec<Op>> = Vec::new();
    for first in OPS {
        all.extend(OPS.iter().map(|second| vec![first, *second]));
    }
    let mut rng = Rng(seed);
    let mut pick = || OPS[usize::try_from(rng.below(OPS.len() as u64)).expect("small")];
    for length in (3..7).cycle().take(longer) {
        all.push((0..length).map(|_| pick()).collect());
    }
    all
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn play(ops: &[Op], order: Order, planted: Planted, random: usize) -> (Result<(), String>, u64) {
    let mut recording = Recording::new(order, planted, random, number("CRASH_SEED", 1));
    let result = recording.play(ops);
    (result, recording.images)
}

#[test]
fn every_image_that_a_crash_may_leave_is_good() {
    let longer = usize::try_from(number("CRASH_WORKLOADS", 6)).expect("small");
    let random = if longer > 100 { 200 } else { 32 };
    let mut images = 0;
    for ops in workloads(longer, number("CRASH_SEED", 1)) {
        for order in [Order::One, Order::First, Order::Last] {
            if longer <= 100 && matches!(order, Order::First) {
                continue;
            }
            let (result, count) = play(&ops, order, Planted::NONE, random);
            assert_eq!(result, Ok(()), "{ops:?}, {order:?}, after {images} + {count} images");
            images += count;
        }
    }
    println!("{images} images were opened");
    assert!(images > 15_000, "only {images} images were opened");
}

/// The test above is worth something only if it sees broken rules.
#[test]
fn an_image_that_breaks_a_rule_is_seen() {
    for bug in [Bug::DataBeforeLog, Bug::EarlyClean, Bug::FlushWithoutSync, Bug::VolatilePromise] {
        let breaks = |ops: &Vec<Op>| {
            let run = || play(ops, Order::First, Planted::with(bug), 16).0;
            std::panic::catch_unwind(run).is_ok_and(|result| result.is_err())
        };
        assert!(workloads(60, 5).iter().any(breaks), "{bug:?} leaves good images only");
    }
}
