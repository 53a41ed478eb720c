//! Tags: checksum and stamp of each block, in tables of one region.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::block::{self, ZERO_CRC};
use lockstep_core::id::{Gen, RegionIndex};
use lockstep_core::range::BLOCKS_PER_REGION;

use crate::codec::{index, put, u32_at};
use crate::layout::{TABLE_BYTES, TAG_BYTES};

const SLOTS: usize = BLOCKS_PER_REGION as usize;

/// A block's place in the table of its region.
pub(crate) fn slot(block: u64) -> usize {
    index(block % u64::from(BLOCKS_PER_REGION))
}

/// One bit per block of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bits([u64; SLOTS / 64]);

impl Bits {
    const ALL: Self = Self([u64::MAX; SLOTS / 64]);

    fn get(self, slot: usize) -> bool {
        self.0[slot / 64] & (1 << (slot % 64)) != 0
    }

    fn set(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tag {
    crc: u32,
    stamp: Gen,
}

/// The tags of one region, as far as they are known.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Shared with what a snapshot keeps of them, until they change.
    tags: Arc<Vec<Tag>>,
    /// Whose stamp is known.
    stamped: Bits,
    /// Whose checksum is known.
    checked: Bits,
    /// Written since the files were opened, not only copied or found equal.
    settled: Bits,
    /// Was the disk's copy merged in, or is there nothing to merge?
    loaded: bool,
    /// Operations that need the table to stay.
    pub(crate) readers: u32,
    /// Used since the eviction hand last passed.
    recent: bool,
    /// Number of the last mutation of the region, see [`TagCache::next_change`].
    pub(crate) changed: u64,
}

impl Table {
    /// Nothing is known yet.
    pub(crate) fn blank() -> Self {
        Self {
            tags: Arc::new(vec![Tag::default(); SLOTS]),
            stamped: Bits::default(),
            checked: Bits::default(),
            settled: Bits::default(),
            loaded: false,
            readers: 0,
            recent: true,
            changed: 0,
        }
    }

    /// Of a region none of whose blocks was ever written.
    pub(crate) fn of_zeroes() -> Self {
        let mut table = Self::blank();
        table.merge(&[0; TABLE_BYTES as usize]);
        table
    }

    /// Is every tag known, as far as the disk knows it?
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// The stamp, if it is known.
    pub(crate) fn stamp(&self, slot: usize) -> Option<Gen> {
        self.stamped.get(slot).then(|| self.tags[slot].stamp)
    }

    /// The checksum, if it is known.
    pub(crate) fn crc(&self, slot: usize) -> Option<u32> {
        self.checked.get(slot).then(|| self.tags[slot].crc)
    }

    pub(crate) fn set_stamp(&mut self, slot: usize, stamp: Gen) {
        Arc::make_mut(&mut self.tags)[slot].stamp = stamp;
        self.stamped.set(slot);
    }

    pub(crate) fn raise_stamp(&mut self, slot: usize, stamp: Gen) {
        let known = self.stamp(slot).unwrap_or_default();
        self.set_stamp(slot, stamp.max(known));
    }

    pub(crate) fn set_crc(&mut self, slot: usize, crc: u32) {
        Arc::make_mut(&mut self.tags)[slot].crc = crc;
        self.checked.set(slot);
    }

    /// The block's content is that of one write, whatever a power cut did before.
    pub(crate) fn settle(&mut self, slot: usize) {
        self.settled.set(slot);
    }

    pub(crate) fn is_settled(&self, slot: usize) -> bool {
        self.settled.get(slot)
    }

    /// Takes from the disk's copy what is not known better.
    pub(crate) fn merge(&mut self, disk: &[u8]) {
        let tags = Arc::make_mut(&mut self.tags);
        for (slot, bytes) in disk.chunks_exact(TAG_BYTES as usize).take(SLOTS).enumerate() {
            let (crc, stamp) = (u32_at(bytes, 0), Gen(u32_at(bytes, 4)));
            let never_written = crc == 0 && stamp == Gen(0);
            if !self.checked.get(slot) {
                tags[slot].crc = if never_written { ZERO_CRC } else { crc };
            }
            if !self.stamped.get(slot) {
                tags[slot].stamp = stamp;
            }
        }
        self.checked = Bits::ALL;
        self.stamped = Bits::ALL;
        self.loaded = true;
    }

    /// Completes the table of a region whose tags on disk can't be trusted: no stamp is below
    /// `floor`, and unknown checksums are those of `data`.
    pub(crate) fn rebuild(&mut self, floor: Gen, data: &[u8]) {
        for (slot, content) in data.chunks_exact(4096).take(SLOTS).enumerate() {
            self.raise_stamp(slot, floor);
            if !self.checked.get(slot) {
                self.set_crc(slot, block::crc(content));
            }
        }
        // Slots beyond the end of the volume stay as never written.
        self.merge(&[0; TABLE_BYTES as usize]);
    }

    /// The highest stamp.
    pub(crate) fn max_stamp(&self) -> Gen {
        newest(&self.tags)
    }

    /// The bytes on disk.
    pub(crate) fn encode(&self) -> Bytes {
        assert!(self.loaded, "a table with unknown tags can't be written");
        encoded(&self.tags)
    }

    /// Is each tag known whole, or not at all?
    pub(crate) fn is_whole(&self) -> bool {
        self.stamped == self.checked
    }

    /// The tags that are known, as they are now.
    pub(crate) fn known(&self) -> Known {
        assert!(self.is_whole(), "half of a tag can't be written");
        Known { tags: Arc::clone(&self.tags), which: self.stamped, loaded: self.loaded }
    }
}

/// Tags of one region that were known at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    tags: Arc<Vec<Tag>>,
    which: Bits,
    loaded: bool,
}

impl Known {
    /// No block of the region has a higher stamp, if none of those that are not known has one
    /// above `others`.
    pub(crate) fn max_stamp(&self, others: Gen) -> Gen {
        let known = newest(&self.tags);
        if self.loaded { known } else { known.max(others) }
    }

    /// Where in the table, and their bytes on disk.
    pub(crate) fn runs(&self) -> Vec<(u64, Bytes)> {
        let mut runs = Vec::new();
        let mut next = 0;
        while let Some(first) = (next..SLOTS).find(|slot| self.which.get(*slot)) {
            next = (first..SLOTS).find(|slot| !self.which.get(*slot)).unwrap_or(SLOTS);
            let offset = first as u64 * u64::from(TAG_BYTES);
            runs.push((offset, encoded(&self.tags[first..next])));
        }
        runs
    }
}

fn newest(tags: &[Tag]) -> Gen {
    tags.iter().map(|tag| tag.stamp).max().unwrap_or_default()
}

/// The bytes on disk of tags that follow one another.
fn encoded(tags: &[Tag]) -> Bytes {
    let mut out = vec![0; tags.len() * TAG_BYTES as usize];
    for (slot, tag) in tags.iter().enumerate() {
        if *tag != (Tag { crc: ZERO_CRC, stamp: Gen(0) }) {
            put(&mut out, slot * TAG_BYTES as usize, &tag.crc.to_le_bytes());
            put(&mut out, slot * TAG_BYTES as usize + 4, &tag.stamp.0.to_le_bytes());
        }
    }
    Bytes::from(out)
}

/// The tables in memory. Those of active regions and those in use stay; of the others a bounded
/// number does.
#[derive(Debug)]
pub(crate) struct TagCache {
    tables: BTreeMap<RegionIndex, Table>,
    /// Where the search for a table to drop goes on (second chance).
    hand: RegionIndex,
    changes: u64,
}

/// Tables looked at when one is to be dropped, so that the search is bounded.
const HAND_STEPS: usize = 64;

impl TagCache {
    pub(crate) fn new() -> Self {
        Self { tables: BTreeMap::new(), hand: RegionIndex(0), changes: 0 }
    }

    pub(crate) fn get(&self, region: RegionIndex) -> Option<&Table> {
        self.tables.get(&region)
    }

    pub(crate) fn get_mut(&mut self, region: RegionIndex) -> Option<&mut Table> {
        let table = self.tables.get_mut(&region)?;
        table.recent = true;
        Some(table)
    }

    /// The table, which is blank if it was not in memory.
    pub(crate) fn get_or_blank(&mut self, region: RegionIndex) -> &mut Table {
        let table = self.tables.entry(region).or_insert_with(Table::blank);
        table.recent = true;
        table
    }

    pub(crate) fn insert(&mut self, region: RegionIndex, table: Table) {
        let before = self.tables.insert(region, table);
        assert!(before.is_none(), "tags of region {region} were already in memory");
    }

    /// Counts mutations: a read that began before one may see either content.
    pub(crate) fn next_change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Drops tables until at most `keep` are left, as far as `may_drop` lets and a bounded
    /// search finds.
    pub(crate) fn shrink(&mut self, keep: usize, may_drop: impl Fn(RegionIndex) -> bool) {
        for _ in 0..HAND_STEPS {
            if self.tables.len() <= keep {
                return;
            }
            let mut from_hand = self.tables.range_mut(self.hand..);
            let Some((&region, table)) = from_hand.next() else {
                self.hand = RegionIndex(0);
                continue;
            };
            self.hand = RegionIndex(region.0 + 1);
            let idle = table.readers == 0 && may_drop(region);
            if idle && !core::mem::take(&mut table.recent) {
                self.tables.remove(&region);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_overwritten_by_the_disk() {
        let mut disk = Table::of_zeroes();
        (0..4).for_each(|slot| {
            disk.set_stamp(slot, Gen(3));
            disk.set_crc(slot, 33);
        });
        let mut table = Table::blank();
        table.set_stamp(1, Gen(5));
        table.set_stamp(2, Gen(5));
        table.set_crc(2, 55);
        assert_eq!((table.stamp(0), table.crc(1)), (None, None));
        table.merge(&disk.encode());
        let seen = [0, 1, 2, 9].map(|slot| (table.stamp(slot), table.crc(slot)));
        let pair = |stamp, crc| (Some(Gen(stamp)), Some(crc));
        assert_eq!(seen, [pair(3, 33), pair(5, 33), pair(5, 55), pair(0, ZERO_CRC)]);
        assert_eq!(table.max_stamp(), Gen(5));
    }

    #[test]
    fn an_untouched_table_is_all_zero_on_disk() {
        assert!(Table::of_zeroes().encode().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_rebuilt_table_has_the_checksums_of_the_data_and_no_stamp_below_the_floor() {
        let mut table = Table::blank();
        table.set_stamp(0, Gen(2));
        table.set_stamp(1, Gen(9));
        table.set_crc(1, 77);
        table.rebuild(Gen(4), &[1; 3 * 4096]);
        let ones = crc32c::crc32c(&[1; 4096]);
        assert_eq!((table.stamp(0), table.crc(0)), (Some(Gen(4)), Some(ones)));
        assert_eq!((table.stamp(1), table.crc(1)), (Some(Gen(9)), Some(77)));
        assert_eq!((table.stamp(2), table.crc(2)), (Some(Gen(4)), Some(ones)));
        assert_eq!((table.stamp(3), table.crc(3)), (Some(Gen(0)), Some(ZERO_CRC)));
    }

    #[test]
    fn the_cache_keeps_what_it_must_and_is_bounded() {
        let mut cache = TagCache::new();
        (0..10).for_each(|r| cache.insert(RegionIndex(r), Table::of_zeroes()));
        if let Some(table) = cache.get_mut(RegionIndex(7)) {
            table.readers = 1;
        }
        cache.shrink(2, |region| region != RegionIndex(3));
        let left: Vec<u32> = cache.tables.keys().map(|r| r.0).collect();
        assert_eq!(left, [3, 7]);
    }
}
