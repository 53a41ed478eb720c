//! What a copy job has not started: sets of blocks, and regions in runs.

use alloc::collections::VecDeque;

use crate::id::{Gen, RegionIndex};
use crate::limits;
use crate::range::{BlockRange, BlockSet};

/// Sets of blocks come first, in the order in which they were added, then regions, ascending.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Todo {
    sets: VecDeque<(BlockSet, Gen)>,
    /// Neighbouring regions: the first, and how many.
    runs: VecDeque<(RegionIndex, u32)>,
}

impl Todo {
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.runs.is_empty()
    }

    /// May more regions be added?
    pub(super) fn has_room(&self) -> bool {
        self.runs.len() + limits::SCAN_REGIONS as usize <= limits::SCAN_AHEAD_RUNS
    }

    /// Adds blocks of one region with the lowest stamp of interest; 0 is every block.
    pub(super) fn push(&mut self, blocks: BlockSet, since: Gen) {
        self.sets.push_back((blocks, since));
    }

    /// Adds a region after those that were added before.
    pub(super) fn push_region(&mut self, region: RegionIndex) {
        match self.runs.back_mut() {
            Some((first, count))
                if u64::from(first.0) + u64::from(*count) == u64::from(region.0) =>
            {
                *count += 1;
            }
            _ => self.runs.push_back((region, 1)),
        }
    }

    /// What is next; `since` is for regions, of a volume of so many blocks.
    pub(super) fn pop(&mut self, since: Gen, volume: u64) -> Option<(BlockSet, Gen)> {
        if let Some(set) = self.sets.pop_front() {
            return Some(set);
        }
        let (first, count) = self.runs.front_mut()?;
        let region = *first;
        *first = RegionIndex(region.0 + 1);
        *count -= 1;
        if *count == 0 {
            self.runs.pop_front();
        }
        let blocks = BlockRange::of_region(region, volume)?;
        Some((blocks.into(), since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn sets_come_before_regions_and_regions_in_order() {
        let mut todo = Todo::default();
        for region in [0, 1, 3] {
            todo.push_region(RegionIndex(region));
        }
        todo.push(BlockRange::new(7, 2).into(), Gen(0));
        assert_eq!(todo.runs.len(), 2);
        let mut popped = Vec::new();
        while let Some((blocks, since)) = todo.pop(Gen(5), 800) {
            popped.push((blocks.ranges()[0].start, blocks.len(), since.0));
        }
        let expected = [(7, 2, 0), (0, 256, 5), (256, 256, 5), (768, 32, 5)];
        assert_eq!(popped, expected);
        assert!(todo.is_empty());
    }
}
