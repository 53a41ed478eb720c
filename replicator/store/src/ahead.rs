//! Copying ahead: a snapshot's content is copied beside the guest's writes, in pieces, and what
//! is written meanwhile again and again, until little is left for the moment in which all wait.
//!
//! To share a file takes as long as it has extents, and a file that is written at random has one
//! for each block. To share a part once more that has not changed costs next to nothing.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use lockstep_core::id::{RegionIndex, Tick};
use lockstep_core::planted::Bug;
use lockstep_core::range::{BLOCKS_PER_REGION, BlockRange, region_of};

use crate::op::{DiskError, DiskOpKind};
use crate::store::{Purpose, Store};

/// What may be left to copy when guests are to wait, in runs of blocks: about a millisecond.
const FEW: usize = 64;
/// Rounds after which it is left at that: more is written than can be copied.
const ROUNDS: u32 = 8;
/// Runs of blocks that are remembered one by one; beyond, whole regions are.
const RUNS: usize = 1 << 16;
/// Runs that are no further apart are copied as one, with the blocks between them: for each run all
/// writes that are under way are waited for, and to share those blocks once more takes less.
const GAP: u64 = 256;
/// The same while guests wait: then no write is under way.
const GAP_HELD: u64 = 16;
/// Most runs in one piece: guests may be held back when one has just begun.
const PIECE_RUNS: usize = 64;
/// Blocks in one piece: at first, at least and at most. Writes wait while one is copied, so it is
/// made smaller if that takes long.
const PIECE: [u64; 3] = [16 * 256, 256, 1 << 20];
/// Most pieces for all that there is: on a busy disk even the smallest takes long, since it waits
/// for writes under way.
const PIECES: u64 = 1024;
/// Microseconds for a piece beyond which it is made smaller, and below which it is made larger.
const PACE_US: [u64; 2] = [10_000, 3_000];
/// A copy that nobody asks for is removed after so long.
const KEPT_MS: u64 = 90_000;

/// The copy that is made ahead, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    is_there: bool,
    /// Is the driver at it?
    under_way: bool,
    /// Is one to be removed?
    stale: bool,
    /// To be copied in this round.
    left: VecDeque<BlockRange>,
    /// Written since the round began: first block, number.
    written: BTreeMap<u64, u32>,
    rounds: u32,
    /// Blocks in a piece, and the fewest.
    piece: u64,
    least: u64,
    /// Blocks of the volume.
    end: u64,
    asked: Tick,
    expires: Tick,
}

impl Ahead {
    /// The content of these blocks has changed.
    pub(crate) fn note(&mut self, range: BlockRange) {
        if !self.is_there {
            return;
        }
        let few = self.written.len() < RUNS;
        let range = if few { range } else { whole_regions(range, self.end) };
        let count = self.written.entry(range.start).or_default();
        *count = range.count.max(*count);
    }

    /// It is of no use any more.
    pub(crate) fn stop(&mut self) {
        let there = self.is_there || self.stale;
        *self = Self { under_way: self.under_way, stale: there, ..Self::default() };
    }

    /// Is little left, or is it in vain to go on, or not possible?
    pub(crate) fn is_close(&self) -> bool {
        let copied = self.left.is_empty() && !self.under_way;
        !self.is_there || copied && (self.written.len() <= FEW || self.rounds >= ROUNDS)
    }

    /// May files be shared for a snapshot now?
    pub(crate) fn is_still(&self) -> bool {
        !self.under_way
    }

    /// Hands out the copy, with what is still to be copied.
    pub(crate) fn take(&mut self) -> Option<Vec<BlockRange>> {
        let there = self.is_there;
        let mut left: Vec<BlockRange> = core::mem::take(&mut self.left).into();
        left.extend(self.written.iter().map(|(start, count)| BlockRange::new(*start, *count)));
        *self = Self { stale: self.stale, ..Self::default() };
        there.then(|| merged(left, GAP_HELD))
    }

    /// When something is to be done about it, if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        (self.is_there && !self.under_way).then_some(self.expires)
    }

    fn begin_round(&mut self) {
        let written = core::mem::take(&mut self.written);
        let runs = written.into_iter().map(|(start, count)| BlockRange::new(start, count));
        self.left = merged(runs.collect(), GAP).into();
        self.rounds += 1;
    }

    fn next_piece(&mut self) -> Vec<BlockRange> {
        let (mut piece, mut room) = (Vec::new(), self.piece);
        while let Some(range) = self.left.pop_front() {
            let count = u32::try_from(room).unwrap_or(u32::MAX).min(range.count);
            piece.push(BlockRange::new(range.start, count));
            if count < range.count {
                let rest = BlockRange::new(range.start + u64::from(count), range.count - count);
                self.left.push_front(rest);
            }
            room -= u64::from(count);
            if room == 0 || piece.len() == PIECE_RUNS {
                break;
            }
        }
        piece
    }

    /// Adapts the size of a piece to how long the last one took.
    fn note_pace(&mut self, now: Tick) {
        let [_, _, most] = PIECE;
        let [slow, quick] = PACE_US;
        let took = now.0.saturating_sub(self.asked.0);
        if took > slow {
            self.piece = (self.piece / 2).max(self.least);
        } else if took < quick {
            self.piece = (self.piece * 2).min(most);
        }
    }
}

impl Store {
    /// Begins a new copy.
    pub(crate) fn copy_ahead(&mut self) {
        let there = |region: &RegionIndex| {
            self.regions.max(*region).0 > 0 || self.activity.is_active(*region)
        };
        let regions = (0..self.regions.count()).map(RegionIndex).filter(there);
        let ranges = regions.filter_map(|r| BlockRange::of_region(r, self.superblock.blocks));
        let ranges = merged(ranges.collect(), 0);
        let blocks: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        let [first, least, most] = PIECE;
        let least = (blocks / PIECES).clamp(least, most);
        self.ahead = Ahead {
            is_there: true,
            under_way: true,
            left: ranges.into(),
            piece: first.max(least),
            least,
            end: self.superblock.blocks,
            expires: self.now.plus_ms(KEPT_MS),
            ..Ahead::default()
        };
        self.issue(Purpose::Ahead, DiskOpKind::CopyAhead { fresh: true, ranges: Vec::new() });
    }

    /// Keeps the copy up to date, or removes it.
    pub(crate) fn drive_ahead(&mut self) {
        let preparing = self.snapshots.is_preparing();
        if self.ahead.is_there && self.ahead.expires <= self.now && !preparing {
            self.ahead.stop();
        }
        if self.ahead.under_way || self.snapshots.is_taking() {
            return;
        }
        if core::mem::take(&mut self.ahead.stale) {
            self.ahead.under_way = true;
            return self.issue(Purpose::Ahead, DiskOpKind::DropAhead);
        }
        if self.ahead.left.is_empty() && self.ahead.written.len() > FEW {
            self.ahead.begin_round();
        }
        let ranges = self.ahead.next_piece();
        if !ranges.is_empty() {
            (self.ahead.under_way, self.ahead.asked) = (true, self.now);
            self.issue(Purpose::Ahead, DiskOpKind::CopyAhead { fresh: false, ranges });
        }
    }

    pub(crate) fn on_ahead(&mut self, result: Result<(), DiskError>) {
        self.ahead.under_way = false;
        match result {
            Ok(()) => self.ahead.note_pace(self.now),
            // Then all is copied in the moment of the snapshot, or that fails as well.
            Err(_) => self.ahead = Ahead::default(),
        }
    }

    /// The content of these blocks has changed.
    pub(crate) fn note_content(&mut self, range: BlockRange) {
        if !self.planted.has(Bug::StaleAhead) {
            self.ahead.note(range);
        }
    }
}

/// The regions of these blocks, as far as the volume has them.
fn whole_regions(range: BlockRange, end: u64) -> BlockRange {
    let per_region = u64::from(BLOCKS_PER_REGION);
    let (first, last) = (region_of(range.start), region_of(range.end() - 1));
    let start = u64::from(first.0) * per_region;
    let count = ((u64::from(last.0) + 1) * per_region).min(end) - start;
    BlockRange::new(start, u32::try_from(count).unwrap_or(u32::MAX))
}

/// Sorts runs and joins those that overlap, or are at most so many blocks apart.
fn merged(mut runs: Vec<BlockRange>, gap: u64) -> Vec<BlockRange> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut out: Vec<BlockRange> = Vec::new();
    for run in runs {
        if let Some(last) = out.last_mut().filter(|last| run.start <= last.end() + gap) {
            let count = run.end().max(last.end()) - last.start;
            if let Ok(count) = u32::try_from(count) {
                last.count = count;
                continue;
            }
        }
        out.push(run);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn range(start: u64, count: u32) -> BlockRange {
        BlockRange::new(start, count)
    }

    fn ahead(piece: u64, least: u64) -> Ahead {
        Ahead { is_there: true, piece, least, end: 1_000_100, ..Ahead::default() }
    }

    #[test]
    fn runs_are_joined_across_small_gaps_and_never_lost() {
        let runs = || vec![range(300, 1), range(0, 4), range(4, 2), range(5, 9), range(40, 1)];
        assert_eq!(merged(runs(), 0), [range(0, 14), range(40, 1), range(300, 1)]);
        assert_eq!(merged(runs(), 26), [range(0, 41), range(300, 1)]);
        assert_eq!(merged(runs(), 259), [range(0, 301)]);
        let most = u32::MAX;
        assert_eq!(merged(vec![range(0, most), range(9, most)], 0).len(), 2);
    }

    #[test]
    fn too_many_runs_are_remembered_by_region_and_none_beyond_the_end() {
        let mut ahead = ahead(1, 1);
        let (end, runs) = (ahead.end, RUNS as u64);
        for run in 0..runs {
            ahead.note(range(run * 2, 1));
        }
        ahead.note(range(end - 1, 1));
        ahead.note(range(end - 300, 10));
        let left = ahead.take().expect("it is there");
        let last = left.last().expect("something was written");
        assert_eq!(*last, range(end / 256 * 256 - 256, 256 + 164));
        assert_eq!(last.end(), end, "what is not there can't be shared");
    }

    #[test]
    fn a_piece_is_bounded_and_grows_and_shrinks_with_its_pace() {
        let mut ahead = ahead(4096, 1024);
        ahead.left = (0..200).map(|run| range(run * 1000, 2)).collect();
        assert_eq!(ahead.next_piece().len(), PIECE_RUNS);
        ahead.left = [range(0, 10_000)].into();
        assert_eq!(ahead.next_piece(), [range(0, 4096)]);
        assert_eq!(ahead.left, [range(4096, 5904)]);
        for (took_us, piece) in [(1_000, 8192), (5_000, 8192), (50_000, 4096), (11_000, 2048)] {
            ahead.note_pace(Tick(took_us));
            assert_eq!(ahead.piece, piece, "after {took_us} us");
        }
        (0..9).for_each(|_| ahead.note_pace(Tick(50_000)));
        assert_eq!(ahead.piece, 1024, "else it would never end on a busy disk");
    }
}
