//! Ranges and sets of 4 KiB blocks.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use crate::id::RegionIndex;

/// Bytes in a block: the unit of reading, writing, checksums and stamps.
pub const BLOCK_SIZE: u32 = 4096;
/// Blocks in a region (1 MiB): the unit of the activity log.
pub const BLOCKS_PER_REGION: u32 = 256;

/// The region that holds `block`.
///
/// # Panics
/// If the block lies beyond the largest volume ([`crate::limits::MAX_VOLUME_BLOCKS`]).
#[must_use]
pub fn region_of(block: u64) -> RegionIndex {
    let index = u32::try_from(block / u64::from(BLOCKS_PER_REGION));
    assert!(index.is_ok(), "block {block} is beyond the largest volume");
    RegionIndex(index.unwrap_or(u32::MAX))
}

/// A run of blocks; `count` is at least 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub count: u32,
}

impl BlockRange {
    /// `count` blocks from `start`.
    ///
    /// # Panics
    /// If `count` is 0.
    #[must_use]
    pub fn new(start: u64, count: u32) -> Self {
        assert!(count > 0, "an empty range of blocks");
        Self { start, count }
    }

    /// The region as a range, cut off at the end of a volume of `volume_blocks`.
    #[must_use]
    pub fn of_region(region: RegionIndex, volume_blocks: u64) -> Option<Self> {
        let start = u64::from(region.0) * u64::from(BLOCKS_PER_REGION);
        let left = volume_blocks.checked_sub(start).filter(|left| *left > 0)?;
        let count = u32::try_from(left).unwrap_or(u32::MAX).min(BLOCKS_PER_REGION);
        Some(Self { start, count })
    }

    /// First block after the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start + u64::from(self.count)
    }

    /// Length in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * u64::from(BLOCK_SIZE)
    }

    /// Is the block in it?
    #[must_use]
    pub fn contains(self, block: u64) -> bool {
        self.blocks().contains(&block)
    }

    /// Do the two share a block?
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The blocks, one by one.
    #[must_use]
    pub fn blocks(self) -> Range<u64> {
        self.start..self.end()
    }

    /// The regions that the range touches.
    pub fn regions(self) -> impl Iterator<Item = RegionIndex> {
        (region_of(self.start).0..=region_of(self.end() - 1).0).map(RegionIndex)
    }
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.count)
    }
}

/// A set of blocks: sorted ranges that neither overlap nor touch.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct BlockSet {
    ranges: Vec<BlockRange>,
}

impl fmt::Debug for BlockSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.ranges).finish()
    }
}

/// So many ranges are added to a set one by one.
const FEW: usize = 8;

impl BlockSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Is there no block in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of blocks in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|r| u64::from(r.count)).sum()
    }

    /// The ranges, in ascending order.
    #[must_use]
    pub fn ranges(&self) -> &[BlockRange] {
        &self.ranges
    }

    /// Every block, in ascending order.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.ranges.iter().flat_map(|r| r.blocks())
    }

    /// Does the set hold `block`?
    #[must_use]
    pub fn contains(&self, block: u64) -> bool {
        let after = self.ranges.partition_point(|r| r.start <= block);
        after > 0 && block < self.ranges[after - 1].end()
    }

    /// Adds a range.
    pub fn insert(&mut self, range: BlockRange) {
        let first = self.ranges.partition_point(|r| r.end() < range.start);
        let last = self.ranges.partition_point(|r| r.start <= range.end());
        let mut start = range.start;
        let mut end = range.end();
        if first < last {
            start = start.min(self.ranges[first].start);
            end = end.max(self.ranges[last - 1].end());
        }
        let merged = split_counts(start, end);
        self.ranges.splice(first..last, merged);
    }

    /// Adds every block of `other`.
    pub fn extend(&mut self, other: &Self) {
        if other.ranges.len() <= FEW {
            other.ranges.iter().for_each(|range| self.insert(*range));
        } else {
            let all = self.ranges.iter().chain(&other.ranges).copied();
            *self = all.collect();
        }
    }

    /// What of it lies within `range`.
    #[must_use]
    pub fn within(&self, range: BlockRange) -> Self {
        let first = self.ranges.partition_point(|r| r.end() <= range.start);
        let inside = self.ranges.iter().skip(first).take_while(|r| r.start < range.end());
        let cut = |r: &BlockRange| {
            let (start, end) = (r.start.max(range.start), r.end().min(range.end()));
            BlockRange::new(start, u32::try_from(end - start).unwrap_or(r.count))
        };
        Self { ranges: inside.map(cut).collect() }
    }

    /// What of it lies before block `end`.
    #[must_use]
    pub fn before(&self, end: u64) -> Self {
        let cut = |r: &BlockRange| {
            let count = end.saturating_sub(r.start).min(u64::from(r.count));
            u32::try_from(count).ok().filter(|n| *n > 0).map(|n| BlockRange::new(r.start, n))
        };
        Self { ranges: self.ranges.iter().filter_map(cut).collect() }
    }

    /// The whole regions that it touches, in a volume of so many blocks.
    #[must_use]
    pub fn in_whole_regions(&self, volume: u64) -> Self {
        let whole = |region| BlockRange::of_region(region, volume);
        self.regions().into_iter().filter_map(whole).collect()
    }

    /// The regions touched, ascending, each once.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionIndex> {
        let mut out: Vec<RegionIndex> = self.ranges.iter().flat_map(|r| r.regions()).collect();
        out.dedup();
        out
    }
}

/// `start..end` as ranges whose counts fit their type; one range for all but absurd sizes.
fn split_counts(start: u64, end: u64) -> impl Iterator<Item = BlockRange> {
    const STEP: u32 = 1 << 31;
    (0..(end - start).div_ceil(u64::from(STEP))).map(move |i| {
        let at = start + i * u64::from(STEP);
        let count = u32::try_from((end - at).min(u64::from(STEP))).unwrap_or(STEP);
        BlockRange::new(at, count)
    })
}

impl From<BlockRange> for BlockSet {
    fn from(range: BlockRange) -> Self {
        Self { ranges: Vec::from([range]) }
    }
}

impl FromIterator<BlockRange> for BlockSet {
    fn from_iter<I: IntoIterator<Item = BlockRange>>(ranges: I) -> Self {
        // In order, each goes to the end: anywhere else, those behind it would have to move.
        let mut ranges: Vec<BlockRange> = ranges.into_iter().collect();
        ranges.sort_by_key(|r| r.start);
        let mut set = Self::new();
        ranges.into_iter().for_each(|r| set.insert(r));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    proptest! {
        /// The set against a naive twin: one entry per block.
        #[test]
        fn a_block_set_equals_its_naive_twin(
            ranges in proptest::collection::vec((0_u64..64, 1_u32..9), 0..20)
        ) {
            let mut set = BlockSet::new();
            let mut twin = BTreeSet::new();
            for (start, count) in ranges {
                set.insert(BlockRange::new(start, count));
                twin.extend(BlockRange::new(start, count).blocks());
                prop_assert_eq!(set.blocks().collect::<BTreeSet<_>>(), twin.clone());
                prop_assert_eq!(set.len(), twin.len() as u64);
                let shuffled = set.ranges().iter().rev().copied();
                prop_assert_eq!(&shuffled.collect::<BlockSet>(), &set);
                for pair in set.ranges().windows(2) {
                    prop_assert!(pair[0].end() < pair[1].start, "ranges touch: {:?}", set);
                }
                for block in 0..80 {
                    prop_assert_eq!(set.contains(block), twin.contains(&block));
                }
            }
        }
    }

    proptest! {
        /// One set and another, however many ranges they have.
        #[test]
        fn a_set_extended_by_another_has_the_blocks_of_both(
            one in proptest::collection::vec((0_u64..200, 1_u32..4), 0..30),
            other in proptest::collection::vec((0_u64..200, 1_u32..4), 0..30),
        ) {
            let set = |ranges: &[(u64, u32)]| -> BlockSet {
                ranges.iter().map(|(start, count)| BlockRange::new(*start, *count)).collect()
            };
            let mut both = set(&one);
            both.extend(&set(&other));
            let all: Vec<(u64, u32)> = one.into_iter().chain(other).collect();
            prop_assert_eq!(both, set(&all));
        }

        /// What lies within a range, block by block.
        #[test]
        fn a_part_of_a_set_has_its_blocks_within_the_range(
            ranges in proptest::collection::vec((0_u64..64, 1_u32..9), 0..20),
            (start, count) in (0_u64..80, 1_u32..30),
        ) {
            let set: BlockSet =
                ranges.into_iter().map(|(start, count)| BlockRange::new(start, count)).collect();
            let range = BlockRange::new(start, count);
            let part = set.within(range);
            let expected: BlockSet = set
                .blocks()
                .filter(|block| range.contains(*block))
                .map(|block| BlockRange::new(block, 1))
                .collect();
            prop_assert_eq!(part, expected);
        }
    }

    #[test]
    fn whole_regions_end_where_the_volume_does() {
        let set: BlockSet =
            [(3, 1), (255, 2), (700, 1)].map(|(b, n)| BlockRange::new(b, n)).into_iter().collect();
        let whole: BlockSet = [(0, 768)].map(|(b, n)| BlockRange::new(b, n)).into_iter().collect();
        assert_eq!(set.in_whole_regions(1000), whole);
        assert_eq!(set.in_whole_regions(701).ranges().last(), Some(&BlockRange::new(0, 701)));
    }

    #[test]
    fn the_last_region_of_a_volume_is_cut_off() {
        assert_eq!(BlockRange::of_region(RegionIndex(1), 300), Some(BlockRange::new(256, 44)));
        assert_eq!(BlockRange::of_region(RegionIndex(2), 300), None);
    }
}
