//! A naive replica store: a map of blocks in memory, every operation answered at once.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::gap;
use lockstep_core::id::{Epoch, Gen, Lineage, RegionIndex, SnapshotId};
use lockstep_core::message::{BlockDigest, Digest, Payload, ResyncContent, Wholeness};
use lockstep_core::range::{BlockRange, BlockSet, region_of};
use lockstep_core::store::{Recovered, StoreError, StoreNote, StoreOp, StoreReply};

use crate::stage::VOLUME;

/// What survives a kill of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Twin {
    content: BTreeMap<u64, u8>,
    /// What a loss of power leaves: as it was flushed last.
    durable: BTreeMap<u64, u8>,
    /// Lost what was not flushed, and has not got it back.
    lossy: bool,
    stamps: BTreeMap<u64, Gen>,
    /// What is known of each block's checksum on disk: as it was when its region was cleaned last.
    tagged: BTreeMap<u64, u8>,
    /// Blocks that were written since it was opened, and not got from another copy since.
    settled: BTreeSet<u64>,
    /// Blocks that do not match their checksum until they are written again.
    bad: BTreeSet<u64>,
    /// The activity log, with pins.
    log: BTreeMap<RegionIndex, u32>,
    unresolved: BTreeSet<RegionIndex>,
    promised: Epoch,
    attach_seq: u64,
    member_gen: Gen,
    /// Its history, if it has changed over to another one.
    lineage: Option<Lineage>,
    blocks: u64,
    /// Snapshots.
    kept: BTreeMap<SnapshotId, BTreeMap<u64, u8>>,
    /// The one that was kept last by this process.
    unsealed: Option<SnapshotId>,
    /// What it is asked for as a favour it refuses so.
    pub(crate) refuses: Option<StoreError>,
}

impl Twin {
    pub(crate) fn new(blocks: u64) -> Self {
        Self { blocks, ..Self::default() }
    }

    /// Opens it after a kill: whatever was logged is in doubt.
    pub(crate) fn reopen(&mut self) -> Recovered {
        self.unresolved = self.log.keys().copied().collect();
        self.settled.clear();
        self.log.values_mut().for_each(|pins| *pins = 0);
        self.lossy &= !self.unresolved.is_empty();
        Recovered {
            promised: self.promised,
            attach_seq: self.attach_seq,
            member_gen: self.member_gen,
            blocks: self.blocks,
            unresolved: self.unresolved.iter().copied().collect(),
            lossy: self.lossy,
            fresh: self.stamps.is_empty() && self.log.is_empty(),
        }
    }

    pub(crate) fn lineage(&self) -> Option<Lineage> {
        self.lineage
    }

    pub(crate) fn content(&self) -> &BTreeMap<u64, u8> {
        &self.content
    }

    /// Its machine loses power.
    pub(crate) fn lose_power(&mut self) {
        self.content = self.durable.clone();
        self.lossy = true;
    }

    fn flush(&mut self) {
        self.durable = self.content.clone();
    }

    /// The checksums of regions that are not active are on disk.
    fn tag(&mut self) {
        let active = |block: &u64| self.log.contains_key(&region_of(*block));
        let content = self.content.iter().filter(|(block, _)| !active(block));
        let mut tagged: BTreeMap<u64, u8> = content.map(|(block, byte)| (*block, *byte)).collect();
        tagged.extend(self.tagged.iter().filter(|(block, _)| active(block)));
        self.tagged = tagged;
    }

    /// May a power cut have torn it, as far as its checksum can tell?
    fn is_doubtful(&self, block: u64) -> bool {
        let proven = self.tagged.get(&block) == self.content.get(&block);
        let whole = proven || self.settled.contains(&block);
        self.unresolved.contains(&region_of(block)) && !whole
    }

    /// The disk rots under a block.
    pub(crate) fn rot(&mut self, block: u64) {
        self.bad.insert(block);
    }

    /// Its snapshots.
    pub(crate) fn kept(&self) -> impl Iterator<Item = String> {
        let content = |kept: &BTreeMap<u64, u8>| {
            kept.iter().map(|(b, c)| format!("{b}={}", *c as char)).collect::<Vec<_>>().join(" ")
        };
        self.kept.iter().map(move |(id, kept)| format!("{} {}", id.0.as_u128(), content(kept)))
    }

    pub(crate) fn logged(&self) -> usize {
        self.log.len()
    }

    fn pin(&mut self, blocks: &BlockSet) {
        for region in blocks.regions() {
            *self.log.entry(region).or_default() += 1;
        }
    }

    fn set(&mut self, block: u64, byte: u8, stamp: Gen) {
        if byte == 0 {
            self.content.remove(&block);
        } else {
            self.content.insert(block, byte);
        }
        self.stamps.insert(block, stamp);
        self.bad.remove(&block);
    }

    fn stamp(&self, block: u64) -> Gen {
        self.stamps.get(&block).copied().unwrap_or_default()
    }

    fn of_interest(&self, block: u64, since: Gen) -> bool {
        self.unresolved.contains(&region_of(block)) || self.stamp(block) >= since
    }

    pub(crate) fn run(&mut self, op: StoreOp) -> Result<StoreReply, StoreError> {
        match op {
            StoreOp::Promise { epoch, attach_seq, member_gen, lineage } => {
                (self.promised, self.attach_seq, self.member_gen) = (epoch, attach_seq, member_gen);
                self.lineage = Some(lineage);
            }
            StoreOp::Write { range, stamp, payload, durable } => {
                self.pin(&range.into());
                for (i, block) in range.blocks().enumerate() {
                    self.set(block, payload.data[i * 4096], stamp);
                    self.settled.insert(block);
                    if durable {
                        self.durable.insert(block, payload.data[i * 4096]);
                    }
                }
            }
            StoreOp::Zero { range, stamp, .. } => {
                self.pin(&range.into());
                range.blocks().for_each(|block| self.set(block, 0, stamp));
                self.settled.extend(range.blocks());
            }
            StoreOp::Resync { blocks, payload } => {
                self.pin(&blocks.iter().map(|b| BlockRange::new(b.block, 1)).collect());
                let mut data = payload.data.chunks(4096);
                for b in blocks {
                    self.settled.remove(&b.block);
                    let content = match b.content {
                        ResyncContent::Data => data.next().expect("data for the block"),
                        ResyncContent::Zero => &[0],
                        ResyncContent::Same => {
                            self.stamps.insert(b.block, b.stamp);
                            continue;
                        }
                    };
                    self.set(b.block, content[0], b.stamp);
                    if gap::is_gap(VOLUME, content) {
                        self.bad.insert(b.block);
                    }
                }
            }
            StoreOp::Mark { blocks } => self.pin(&blocks),
            StoreOp::Flush => self.flush(),
            StoreOp::Complete => {
                self.flush();
                self.lossy = false;
            }
            StoreOp::CleanAll => {
                self.flush();
                self.log.retain(|_, pins| *pins > 0);
                self.tag();
            }
            StoreOp::Read { blocks } => return self.read(&blocks),
            StoreOp::Scan { since, .. } => return Ok(self.scan(since)),
            StoreOp::Digest { blocks, since } => return self.digest(&blocks, since),
            favour => return self.favour(&favour),
        }
        Ok(StoreReply::Done)
    }

    /// What it may refuse.
    fn favour(&mut self, op: &StoreOp) -> Result<StoreReply, StoreError> {
        match (self.refuses, op) {
            (_, StoreOp::DropSnapshot { id }) => {
                self.kept.remove(id);
            }
            (Some(error), _) => return Err(error),
            (None, StoreOp::Extend { blocks }) => self.blocks = self.blocks.max(*blocks),
            (None, StoreOp::Snapshot { id }) => {
                self.unsealed = Some(*id);
                self.kept.insert(*id, self.content.clone());
            }
            (None, StoreOp::Seal { id }) => {
                if self.unsealed.take() != Some(*id) {
                    return Err(StoreError::Io);
                }
            }
            (None, _) => self.flush(),
        }
        Ok(StoreReply::Done)
    }

    fn check(&self, mut blocks: impl Iterator<Item = u64>) -> Result<(), StoreError> {
        let bad = blocks.find(|block| self.bad.contains(block));
        bad.map_or(Ok(()), |block| Err(StoreError::Checksum { block }))
    }

    fn read(&self, blocks: &BlockSet) -> Result<StoreReply, StoreError> {
        self.check(blocks.blocks())?;
        let byte = |block| self.content.get(&block).copied().unwrap_or(0);
        let data: Vec<u8> = blocks.blocks().flat_map(|b| [byte(b); 4096]).collect();
        Ok(StoreReply::Data(Payload::checksummed(data.into())))
    }

    fn scan(&self, since: Gen) -> StoreReply {
        let stamped = self.stamps.iter().filter(|(_, s)| **s >= since).map(|(b, _)| region_of(*b));
        let regions: BTreeSet<RegionIndex> =
            stamped.chain(self.unresolved.iter().copied()).collect();
        StoreReply::Regions { regions: regions.into_iter().collect(), next: None }
    }

    fn digest(&self, blocks: &BlockSet, since: Gen) -> Result<StoreReply, StoreError> {
        let wanted = || blocks.blocks().filter(|b| self.of_interest(*b, since));
        self.check(wanted())?;
        let of = |block| {
            let byte = self.content.get(&block).copied().unwrap_or(0);
            let doubtful = self.is_doubtful(block);
            BlockDigest {
                block,
                stamp: self.stamp(block),
                zero: byte == 0,
                digest: Digest([byte; 16]),
                wholeness: if doubtful { Wholeness::Doubtful } else { Wholeness::Whole },
            }
        };
        Ok(StoreReply::Digests(wanted().map(of).collect()))
    }

    pub(crate) fn note(&mut self, note: StoreNote) {
        match note {
            StoreNote::Restamp { blocks, stamp } => {
                blocks.blocks().for_each(|b| {
                    self.stamps.insert(b, stamp);
                });
            }
            StoreNote::RestampUnresolved { stamp } => {
                for region in self.unresolved.clone() {
                    let range = BlockRange::of_region(region, self.blocks).expect("inside");
                    range.blocks().for_each(|b| {
                        self.stamps.insert(b, stamp);
                    });
                }
            }
            StoreNote::Release { blocks } => {
                for region in blocks.regions() {
                    let pins = self.log.get_mut(&region).expect("a pinned region");
                    *pins = pins.checked_sub(1).expect("a pin to release");
                }
            }
            StoreNote::Resolve => {
                self.unresolved.clear();
                self.lossy = false;
            }
        }
    }
}
