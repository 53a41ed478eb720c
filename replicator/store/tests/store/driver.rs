//! A store driven by hand: the test decides which disk operation is done, and how.

use bytes::Bytes;
use lockstep_core::id::{Gen, RegionIndex, Tick, Token};
use lockstep_core::message::Payload;
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::store::{Recovered, StoreError, StoreNote, StoreOp, StoreReply};
use lockstep_store::{
    DiskError, DiskOp, DiskOpKind, File, OpenError, OpenParams, Store, Tuning, format,
};

use crate::disk::Disk;
use crate::twin::content;
use crate::world::{identity, params};

pub(crate) type Answer = (Token, Result<StoreReply, StoreError>);

/// A store on its disk.
pub(crate) struct Driver {
    pub(crate) disk: Disk,
    pub(crate) store: Store,
    pub(crate) recovered: Recovered,
    pub(crate) now: Tick,
}

pub(crate) fn open(disk: &Disk, boot: u8, tuning: Tuning) -> Result<(Store, Recovered), OpenError> {
    open_after(disk, boot, false, tuning)
}

/// With `lost_cache`, the process knows that a flush failed.
fn open_after(
    disk: &Disk,
    boot: u8,
    lost_cache: bool,
    tuning: Tuning,
) -> Result<(Store, Recovered), OpenError> {
    let (meta, regions) = (disk.file(File::Meta), disk.file(File::Regions));
    let params = OpenParams { lost_cache, tuning, ..params(&meta, &regions, boot) };
    Store::open(params).map(|opened| (opened.store, opened.recovered))
}

/// A write of one value to all of a range.
pub(crate) fn write(start: u64, count: u32, stamp: u32, value: u32) -> StoreOp {
    let data = content(value).repeat(usize::try_from(count).expect("small"));
    StoreOp::Write {
        range: BlockRange::new(start, count),
        stamp: Gen(stamp),
        durable: false,
        payload: Payload::checksummed(Bytes::from(data)),
    }
}

pub(crate) fn blocks(start: u64, count: u32) -> BlockSet {
    BlockSet::from(BlockRange::new(start, count))
}

impl Driver {
    pub(crate) fn new(size: u64, tuning: Tuning) -> Self {
        let disk = Disk::new(size, format(identity(), size, [0; 16]));
        let (store, recovered) = open(&disk, 0, tuning).expect("a formatted replica opens");
        Self { disk, store, recovered, now: Tick(0) }
    }

    /// The files are opened again, after a kill (`boot` as before) or a reset.
    pub(crate) fn reopen(&mut self, boot: u8, tuning: Tuning) {
        self.disk.flying.clear();
        (self.store, self.recovered) = open(&self.disk, boot, tuning).expect("files open");
    }

    /// The files are opened again by the same process, after the store latched.
    pub(crate) fn open_again(&mut self, tuning: Tuning) {
        self.disk.flying.clear();
        let lost_cache = self.store.status().lost_cache;
        (self.store, self.recovered) =
            open_after(&self.disk, 0, lost_cache, tuning).expect("files open");
    }

    pub(crate) fn ask(&mut self, token: u64, op: StoreOp) {
        self.store.submit(self.now, Token(token), op);
    }

    pub(crate) fn release(&mut self, start: u64, count: u32) {
        self.store.note(self.now, StoreNote::Release { blocks: blocks(start, count) });
    }

    /// What the store wants of the disk now, in words.
    pub(crate) fn wanted(&mut self) -> Vec<&'static str> {
        self.store.check();
        while let Some(op) = self.store.poll_disk() {
            self.disk.take(op);
        }
        self.disk.flying.iter().map(|(op, _)| in_words(op)).collect()
    }

    fn find(&mut self, name: &str) -> usize {
        let wanted = self.wanted();
        let index = wanted.iter().position(|wanted| *wanted == name);
        assert!(index.is_some(), "{name} is not among {wanted:?}");
        index.unwrap_or_default()
    }

    /// The first wanted operation that is called this is done.
    pub(crate) fn run(&mut self, name: &str) {
        let index = self.find(name);
        let (id, result) = self.disk.run(index);
        self.store.done(self.now, id, result);
    }

    /// The first wanted operation that is called this fails.
    pub(crate) fn fail(&mut self, name: &str, error: DiskError) {
        let index = self.find(name);
        let (op, _) = self.disk.flying.remove(index);
        self.store.done(self.now, op.id, Err(error));
    }

    /// Everything that is wanted is done, until nothing is.
    pub(crate) fn settle(&mut self) {
        while !self.wanted().is_empty() {
            let (id, result) = self.disk.run(0);
            self.store.done(self.now, id, result);
        }
    }

    pub(crate) fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.store.tick(self.now);
    }

    pub(crate) fn answers(&mut self) -> Vec<Answer> {
        std::iter::from_fn(|| self.store.poll_done()).collect()
    }

    /// Asks, does all that is wanted, and takes the one answer.
    pub(crate) fn get(&mut self, op: StoreOp) -> Result<StoreReply, StoreError> {
        self.ask(999, op);
        self.settle();
        let mut answers = self.answers();
        answers.retain(|(token, _)| *token == Token(999));
        assert_eq!(answers.len(), 1, "one answer");
        answers.remove(0).1
    }

    pub(crate) fn active(&self) -> Vec<u32> {
        self.store.active_regions().iter().map(|RegionIndex(r)| *r).collect()
    }
}

pub(crate) fn done(token: u64) -> Answer {
    (Token(token), Ok(StoreReply::Done))
}

fn in_words(op: &DiskOp) -> &'static str {
    match &op.kind {
        DiskOpKind::Extend { .. } => return "extend",
        DiskOpKind::TrySnapshot => return "try snapshot",
        DiskOpKind::Snapshot { .. } => return "snapshot",
        DiskOpKind::CopyAhead { fresh: true, .. } => return "begin ahead",
        DiskOpKind::CopyAhead { fresh: false, .. } => return "copy ahead",
        DiskOpKind::DropAhead => return "drop ahead",
        DiskOpKind::KeepTags { .. } => return "keep tags",
        DiskOpKind::SealSnapshot { .. } => return "seal snapshot",
        DiskOpKind::DropSnapshot { .. } => return "drop snapshot",
        _ => {}
    }
    match (&op.kind, file_of(&op.kind)) {
        (DiskOpKind::Write { offset, durable: true, .. }, File::Meta) if *offset < 8192 => {
            "superblock"
        }
        (DiskOpKind::Write { durable: true, .. }, File::Meta) => "log",
        (DiskOpKind::Write { durable: true, .. }, File::Data) => "durable write",
        (DiskOpKind::Write { .. }, File::Data) => "write",
        (DiskOpKind::Write { .. }, File::Tags) => "write tags",
        (DiskOpKind::Write { .. }, File::Regions) => "write regions",
        (DiskOpKind::Write { .. }, File::Meta) => "meta without O_DSYNC",
        (DiskOpKind::Zero { .. }, _) => "zero",
        (DiskOpKind::Read { .. }, File::Tags) => "read tags",
        (DiskOpKind::Read { .. }, _) => "read",
        (DiskOpKind::Sync { .. }, File::Data) => "flush data",
        (DiskOpKind::Sync { .. }, File::Tags) => "flush tags",
        (DiskOpKind::Sync { .. }, File::Regions) => "flush regions",
        (DiskOpKind::Sync { .. }, File::Meta) => "flush meta",
        (_, _) => "of no file",
    }
}

fn file_of(kind: &DiskOpKind) -> File {
    match kind {
        DiskOpKind::Read { file, .. }
        | DiskOpKind::Write { file, .. }
        | DiskOpKind::Zero { file, .. }
        | DiskOpKind::Sync { file } => *file,
        // Of all of them.
        DiskOpKind::Extend { .. }
        | DiskOpKind::TrySnapshot
        | DiskOpKind::Snapshot { .. }
        | DiskOpKind::CopyAhead { .. }
        | DiskOpKind::DropAhead
        | DiskOpKind::KeepTags { .. }
        | DiskOpKind::SealSnapshot { .. }
        | DiskOpKind::DropSnapshot { .. } => File::Meta,
    }
}
