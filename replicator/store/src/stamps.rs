//! Stamps and tables: what is known of the blocks of a region.

use lockstep_core::id::{Gen, RegionIndex};
use lockstep_core::range::{BLOCKS_PER_REGION, BlockRange, BlockSet, region_of};

use crate::store::Store;
use crate::tags::{Table, slot};

impl Store {
    /// Is it known, without a look at the disk, that no block of the region was ever written?
    pub(crate) fn is_untouched(&self, region: RegionIndex) -> bool {
        self.regions.max(region) == Gen(0)
            && self.tags.get(region).is_none()
            && !self.is_untrusted(region)
    }

    pub(crate) fn is_untrusted(&self, region: RegionIndex) -> bool {
        self.activity.get(region).is_some_and(|entry| entry.untrusted)
    }

    /// Would damage to the content of this block be noticed now?
    #[must_use]
    pub fn is_guarded(&self, block: u64) -> bool {
        let region = region_of(block);
        let known = self.tags.get(region).is_some_and(|table| table.crc(slot(block)).is_some());
        known || !self.is_untrusted(region)
    }

    /// Would a crash now leave this block without a checksum that is trusted?
    #[must_use]
    pub fn is_in_doubt(&self, block: u64) -> bool {
        self.activity.get(region_of(block)).is_some()
    }

    pub(crate) fn restamp(&mut self, blocks: &BlockSet, stamp: Gen) {
        for part in blocks.ranges().iter().flat_map(|range| by_region(*range)) {
            let region = region_of(part.start);
            self.activate(region, None);
            let table = self.table_to_change(region);
            part.blocks().for_each(|block| table.raise_stamp(slot(block), stamp));
            self.regions.raise(region, stamp);
        }
    }

    pub(crate) fn restamp_unresolved(&mut self, stamp: Gen) {
        for region in self.activity.unresolved() {
            self.activity.update(region, |entry| entry.floor = entry.floor.max(stamp));
            self.regions.raise(region, stamp);
        }
    }

    pub(crate) fn resolve(&mut self) {
        self.activity.resolve(self.now);
        (self.lost_cache, self.marks_left) = (false, 0);
        if core::mem::take(&mut self.superblock.lossy) {
            self.persist_superblock();
        }
    }

    /// The table of an active region that is about to change. Unless the region was never
    /// written, what the disk has of it is read in the background.
    pub(crate) fn table_to_change(&mut self, region: RegionIndex) -> &mut Table {
        if self.tags.get(region).is_none() {
            if self.is_untrusted(region) {
                self.tags.insert(region, Table::blank());
            } else if self.regions.max(region) == Gen(0) {
                self.tags.insert(region, Table::of_zeroes());
            } else {
                self.tags.insert(region, Table::blank());
                self.load_tags(region, None);
            }
        }
        self.activity.update(region, |entry| entry.dirty = true);
        self.tags.get_or_blank(region)
    }
}

/// The range cut at the borders of regions.
pub(crate) fn by_region(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    range.regions().map(move |region| {
        let first = u64::from(region.0) * u64::from(BLOCKS_PER_REGION);
        let start = range.start.max(first);
        let end = range.end().min(first + u64::from(BLOCKS_PER_REGION));
        // Not more than a region has, so it fits.
        BlockRange::new(start, u32::try_from(end - start).unwrap_or(BLOCKS_PER_REGION))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_range_is_cut_at_the_borders_of_regions() {
        let range = BlockRange::new;
        let cut = |r| by_region(r).collect::<Vec<_>>();
        assert_eq!(cut(range(3, 4)), [range(3, 4)]);
        assert_eq!(cut(range(255, 1)), [range(255, 1)]);
        assert_eq!(cut(range(255, 258)), [range(255, 1), range(256, 256), range(512, 1)]);
    }
}
