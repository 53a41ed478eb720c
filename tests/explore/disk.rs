//! A replica's files, reduced to one block: what the real store keeps of it, what survives a kill
//! and what a power cut may leave. Operations are done at once.

use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen, RegionIndex};
use lockstep_core::message::{BlockDigest, Digest, Payload, ResyncBlock, ResyncContent, Wholeness};
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::store::{Recovered, StoreNote, StoreOp, StoreReply};

/// Content of the block: 0 is zeroes, n the n-th write.
pub(crate) type Value = u8;

/// One more than the highest value.
pub(crate) const VALUES: usize = 8;
const BLOCK: usize = 4096;

static PAGES: [[u8; BLOCK]; VALUES] = pages();

const fn pages() -> [[u8; BLOCK]; VALUES] {
    let mut pages = [[0; BLOCK]; VALUES];
    let mut value = 0;
    while value < VALUES {
        #[expect(clippy::cast_possible_truncation, reason = "there are few values")]
        let byte = value as u8;
        pages[value] = [byte; BLOCK];
        value += 1;
    }
    pages
}

/// A block with this content.
pub(crate) fn payload(value: Value) -> Payload {
    Payload::checksummed(Bytes::from_static(&PAGES[usize::from(value)]))
}

/// The files of one copy of a volume of one block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Disk {
    /// What is read now.
    pub(crate) content: Value,
    /// Written and not flushed since, as bits: a power cut may leave any of them.
    unflushed: u8,
    /// What a power cut leaves at the least.
    pub(crate) durable: Value,
    /// Stamp in the tags, in memory; 0 if never written.
    tag: Gen,
    /// Stamp in the tags, on disk: as it was when the log was last cleaned.
    durable_tag: Gen,
    /// Lowest stamp of a region that was found in the log.
    floor: Gen,
    /// Is the region in the activity log?
    pub(crate) logged: bool,
    pins: u32,
    pub(crate) unresolved: bool,
    lossy: bool,
    promised: Epoch,
    attach_seq: u64,
    member_gen: Gen,
    planted: Planted,
}

impl Disk {
    pub(crate) fn new(planted: Planted) -> Self {
        Self {
            content: 0,
            unflushed: 0,
            durable: 0,
            tag: Gen(0),
            durable_tag: Gen(0),
            floor: Gen(0),
            logged: false,
            pins: 0,
            unresolved: false,
            lossy: false,
            promised: Epoch(0),
            attach_seq: 0,
            member_gen: Gen(0),
            planted,
        }
    }

    /// What the store would report after being opened again; memory is gone.
    pub(crate) fn reopen(&mut self) -> Recovered {
        self.pins = 0;
        self.unresolved = self.logged;
        self.lossy &= self.logged;
        self.tag = self.durable_tag;
        self.floor = Gen(0);
        if self.logged {
            // As the real store counts blocks whose tags are not trusted.
            self.floor = self.durable_tag.max(self.member_gen).max(Gen(1));
            self.tag = Gen(0);
        }
        Recovered {
            promised: self.promised,
            attach_seq: self.attach_seq,
            member_gen: self.member_gen,
            blocks: 1,
            unresolved: if self.unresolved { vec![RegionIndex(0)] } else { Vec::new() },
            lossy: self.lossy,
            fresh: !self.logged && self.durable_tag == Gen(0),
        }
    }

    /// What a power cut may leave, each once.
    pub(crate) fn outcomes(&self) -> Vec<Value> {
        let may = self.unflushed | 1 << self.durable;
        (0u8..8).filter(|value| may >> value & 1 == 1).collect()
    }

    /// No power cut will come any more: what it would leave tells nothing apart.
    pub(crate) fn forget_outcomes(&mut self) {
        self.unflushed = 0;
    }

    /// Is there anything that [`Self::forget_outcomes`] would forget?
    pub(crate) fn has_outcomes(&self) -> bool {
        self.unflushed != 0
    }

    /// A power cut that leaves `value`.
    pub(crate) fn lose_power(&mut self, value: Value) {
        self.content = value;
        self.flushed();
        self.lossy = true;
    }

    /// Stamp that counts.
    pub(crate) fn stamp(&self) -> Gen {
        self.tag.max(self.floor)
    }

    /// May the cleaner take the region out of the log?
    pub(crate) fn can_clean(&self) -> bool {
        let pinned = self.pins > 0 && !self.planted.has(Bug::EarlyClean);
        self.logged && !pinned && !self.unresolved
    }

    /// Data and tags become durable, then the region leaves the log.
    pub(crate) fn clean(&mut self) {
        self.flushed();
        self.tag = self.stamp();
        self.floor = Gen(0);
        self.durable_tag = self.tag;
        self.logged = false;
        self.lossy = false;
    }

    fn flushed(&mut self) {
        self.durable = self.content;
        self.unflushed = 0;
    }

    fn set(&mut self, value: Value, stamp: Gen, durable: bool) {
        self.content = value;
        self.tag = stamp;
        // What is durable is an outcome anyway.
        self.unflushed |= 1 << value & !(1 << self.durable);
        if durable {
            self.flushed();
        }
    }

    fn pin(&mut self) {
        self.logged = true;
        self.pins += 1;
    }

    pub(crate) fn run(&mut self, op: StoreOp) -> StoreReply {
        match op {
            // A history that changes over (T11) is not explored.
            StoreOp::Promise { epoch, attach_seq, member_gen, .. } => {
                if !self.planted.has(Bug::VolatilePromise) {
                    (self.promised, self.attach_seq) = (epoch, attach_seq);
                }
                self.member_gen = member_gen;
            }
            StoreOp::Write { stamp, durable, payload, .. } => {
                self.pin();
                self.set(payload.data[0], stamp, durable);
            }
            StoreOp::Zero { stamp, durable, .. } => {
                self.pin();
                self.set(0, stamp, durable);
            }
            StoreOp::Resync { blocks, payload } => {
                self.pin();
                blocks.iter().for_each(|b| self.adopt(b, &payload));
            }
            StoreOp::Mark { .. } => self.pin(),
            StoreOp::Flush => {
                if !self.planted.has(Bug::FlushWithoutSync) {
                    self.flushed();
                }
            }
            StoreOp::Complete => {
                self.flushed();
                self.lossy = false;
            }
            StoreOp::CleanAll => {
                if self.can_clean() {
                    self.clean();
                }
            }
            StoreOp::Read { .. } => return StoreReply::Data(payload(self.content)),
            StoreOp::Scan { since, .. } => {
                let regions = if self.is_of_interest(since.max(Gen(1))) {
                    vec![RegionIndex(0)]
                } else {
                    Vec::new()
                };
                return StoreReply::Regions { regions, next: None };
            }
            StoreOp::Digest { since, .. } => return self.digest(since),
            // Other sizes and snapshots are not explored: nobody asks for them.
            StoreOp::Extend { .. }
            | StoreOp::Prepare
            | StoreOp::Snapshot { .. }
            | StoreOp::Seal { .. }
            | StoreOp::DropSnapshot { .. } => {}
        }
        StoreReply::Done
    }

    fn adopt(&mut self, block: &ResyncBlock, payload: &Payload) {
        match block.content {
            ResyncContent::Data => self.set(payload.data[0], block.stamp, false),
            ResyncContent::Zero => self.set(0, block.stamp, false),
            ResyncContent::Same => self.tag = block.stamp,
        }
    }

    fn is_of_interest(&self, since: Gen) -> bool {
        self.unresolved || self.stamp() >= since
    }

    fn digest(&self, since: Gen) -> StoreReply {
        let of = BlockDigest {
            block: 0,
            stamp: self.stamp(),
            zero: self.content == 0,
            digest: Digest([self.content; 16]),
            wholeness: if self.unresolved { Wholeness::Doubtful } else { Wholeness::Whole },
        };
        StoreReply::Digests(if self.is_of_interest(since) { vec![of] } else { Vec::new() })
    }

    pub(crate) fn note(&mut self, note: &StoreNote) {
        match note {
            StoreNote::Restamp { stamp, .. } => self.tag = self.tag.max(*stamp),
            StoreNote::RestampUnresolved { stamp } => {
                if self.unresolved {
                    self.floor = self.floor.max(*stamp);
                }
            }
            StoreNote::Release { .. } => {
                assert!(self.pins > 0, "a release without a pin");
                self.pins -= 1;
            }
            StoreNote::Resolve => (self.unresolved, self.lossy) = (false, false),
        }
    }
}
