//! What a replica's blocks may hold, kept naively: one entry per block.

use std::collections::BTreeMap;

use lockstep_core::id::{Gen, RegionIndex};
use lockstep_core::range::{BlockRange, BlockSet, region_of};
use lockstep_store::File;

use crate::disk::Disk;

/// Content of a block: the number of the write that made it, 0 for zeroes.
pub(crate) type Value = u32;

pub(crate) fn content(value: Value) -> Vec<u8> {
    value.to_le_bytes().repeat(1024)
}

pub(crate) fn value_of(block: &[u8]) -> Result<Value, String> {
    let value = Value::from_le_bytes([block[0], block[1], block[2], block[3]]);
    if block == content(value) { Ok(value) } else { Err("a torn block".to_owned()) }
}

/// One block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Answered contents: the durable one, then what was answered later.
    pub(crate) values: Vec<Value>,
    /// How many contents came before the first of these.
    pub(crate) before: u64,
    /// A mutation under way.
    pub(crate) flying: Option<(Value, Gen)>,
    pub(crate) stamp: Gen,
    /// Is the store's stamp the same, and not just as high?
    pub(crate) exact: bool,
}

impl Default for Block {
    fn default() -> Self {
        Self { values: vec![0], before: 0, flying: None, stamp: Gen(0), exact: true }
    }
}

impl Block {
    pub(crate) fn last(&self) -> Value {
        *self.values.last().expect("never empty")
    }

    /// What a read may see now.
    pub(crate) fn visible(&self) -> Vec<Value> {
        std::iter::once(self.last()).chain(self.flying.map(|(value, _)| value)).collect()
    }

    /// The content numbered `upto` is durable.
    fn durable(&mut self, upto: u64) {
        while self.before < upto && self.values.len() > 1 {
            self.values.remove(0);
            self.before += 1;
        }
    }

    fn newest(&self) -> u64 {
        self.before + self.values.len() as u64 - 1
    }
}

/// A replica.
#[derive(Clone, Debug)]
pub(crate) struct Twin {
    pub(crate) size: u64,
    blocks: BTreeMap<u64, Block>,
    /// Answered and not released.
    pub(crate) pins: Vec<BlockSet>,
}

impl Twin {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, blocks: BTreeMap::new(), pins: Vec::new() }
    }

    pub(crate) fn block(&self, block: u64) -> Block {
        self.blocks.get(&block).cloned().unwrap_or_default()
    }

    pub(crate) fn is_flying(&self, blocks: &BlockSet) -> bool {
        blocks.blocks().any(|block| self.block(block).flying.is_some())
    }

    /// A mutation of one block begins. `None` keeps the content.
    pub(crate) fn begin(&mut self, block: u64, value: Option<Value>, stamp: Gen) {
        let entry = self.blocks.entry(block).or_default();
        entry.flying = Some((value.unwrap_or(entry.last()), stamp));
    }

    /// It is answered.
    pub(crate) fn end(&mut self, block: u64, durable: bool) {
        let entry = self.blocks.entry(block).or_default();
        let (value, stamp) = entry.flying.take().expect("a mutation under way");
        entry.stamp = stamp;
        if value != entry.last() {
            entry.values.push(value);
        }
        if durable {
            entry.durable(entry.newest());
        }
    }

    pub(crate) fn restamp(&mut self, blocks: &BlockSet, stamp: Gen) {
        for block in blocks.blocks() {
            let entry = self.blocks.entry(block).or_default();
            // Of an operation that is under way, nothing may be left after a crash.
            match &mut entry.flying {
                Some((_, flying)) => *flying = stamp.max(*flying),
                None => entry.stamp = stamp.max(entry.stamp),
            }
        }
    }

    /// A flush begins: the newest content of each block.
    pub(crate) fn flush_begin(&self) -> Vec<(u64, u64)> {
        let several = |b: &&Block| b.values.len() > 1;
        let newest = |(block, entry): (&u64, &Block)| (*block, entry.newest());
        self.blocks.iter().filter(|(_, b)| several(b)).map(newest).collect()
    }

    /// It is answered.
    pub(crate) fn flush_end(&mut self, begun: &[(u64, u64)]) {
        for (block, newest) in begun {
            self.blocks.entry(*block).or_default().durable(*newest);
        }
    }

    /// Blocks that were ever looked at.
    pub(crate) fn stamped(&self) -> impl Iterator<Item = (u64, &Block)> {
        self.blocks.iter().map(|(block, entry)| (*block, entry))
    }

    /// The replica was restarted and found these regions active: is that, and what the disk
    /// has, legal? Goes on with what the disk has.
    pub(crate) fn restart(
        &mut self,
        disk: &Disk,
        unresolved: &[RegionIndex],
        power_lost: bool,
    ) -> Result<(), String> {
        for set in std::mem::take(&mut self.pins) {
            for region in set.regions() {
                if !unresolved.contains(&region) {
                    return Err(format!("m3: pinned region {region} is not in the log"));
                }
            }
        }
        for block in 0..self.size {
            let found = value_of(&disk.read(File::Data, block * 4096, 4096))?;
            let active = unresolved.contains(&region_of(block));
            if !active {
                self.check_inactive(disk, block, found)?;
            }
            let entry = self.blocks.entry(block).or_default();
            let mut legal = entry.visible();
            if power_lost {
                legal.extend(&entry.values);
            }
            if !legal.contains(&found) {
                return Err(format!("block {block} is {found}, legal are {legal:?}"));
            }
            if power_lost || !active {
                entry.values = vec![found];
                entry.before += 1000;
            } else if found != entry.last() {
                entry.values.push(found);
            }
            entry.flying = None;
            if active {
                // Of interest to everybody, whatever the stamp, until it is resolved.
                (entry.stamp, entry.exact) = (Gen(0), false);
            }
        }
        Ok(())
    }

    /// Outside the activity log everything is durable and the tags are right.
    fn check_inactive(&self, disk: &Disk, block: u64, found: Value) -> Result<(), String> {
        let entry = self.block(block);
        if found != entry.last() {
            let last = entry.last();
            return Err(format!("block {block} is {found}, not {last}, outside the log"));
        }
        let tag = disk.read(File::Tags, block * 8, 8);
        let number =
            |at: usize| u32::from_le_bytes([tag[at], tag[at + 1], tag[at + 2], tag[at + 3]]);
        let (crc, stamp) = (number(0), Gen(number(4)));
        let never_written = tag.iter().all(|byte| *byte == 0);
        if !(never_written && found == 0) && crc != crc32c::crc32c(&content(found)) {
            return Err(format!("the tag of block {block} does not match outside the log"));
        }
        if stamp < entry.stamp || entry.exact && stamp != entry.stamp {
            return Err(format!("block {block} has stamp {stamp}, not {}", entry.stamp));
        }
        Ok(())
    }
}

pub(crate) fn range_in(size: u64, start: u64, count: u32) -> BlockRange {
    let start = start % size;
    BlockRange::new(start, u32::try_from((size - start).min(u64::from(count))).expect("small"))
}
