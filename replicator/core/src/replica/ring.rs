//! The ring: writes that are not known to be committed, by epoch and sequence number.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::id::{Epoch, RegionIndex, Seq};
use crate::limits;
use crate::range::{BlockRange, BlockSet};

/// Uncommitted writes. Those of the present session are bounded by the primary's credit plus one
/// commit interval. What ended sessions left, which a target that never becomes a member keeps, is
/// bounded by the blocks that it has written.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Ring {
    entries: BTreeMap<(Epoch, Seq), BlockSet>,
    /// By epoch; of those before the present one, all in one.
    left: BTreeMap<Epoch, Left>,
}

/// What writes of ended sessions have in common from now on.
#[derive(Clone, Debug, Default, Hash)]
struct Left {
    /// The last of these writes: they are committed together.
    last: Seq,
    /// Each region of them is pinned once.
    blocks: BlockSet,
}

impl Ring {
    /// Number of writes; those that ended sessions left count as one.
    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.left.len()
    }

    fn sets(&self) -> impl Iterator<Item = &BlockSet> {
        self.left.values().map(|left| &left.blocks).chain(self.entries.values())
    }

    /// How many blocks its writes have, counted once for each write.
    pub(super) fn blocks_written(&self) -> u64 {
        self.sets().map(BlockSet::len).sum()
    }

    /// Every block in it.
    pub(super) fn blocks(&self) -> BlockSet {
        self.sets().flat_map(|set| set.ranges().iter().copied()).collect()
    }

    /// Every block in it, and others beside them if there are too many to be told one by one: who
    /// asks repairs or compares more than it has to.
    pub(super) fn to_tell(&self, volume: u64) -> BlockSet {
        let blocks = self.blocks();
        if blocks.ranges().len() <= limits::RING_RANGES {
            return blocks;
        }
        blocks.in_whole_regions(volume)
    }

    /// Adds a write; returns what the same write had added before (a replay after a reconnect).
    pub(super) fn insert(&mut self, epoch: Epoch, seq: Seq, blocks: BlockSet) -> Option<BlockSet> {
        self.entries.insert((epoch, seq), blocks)
    }

    /// Joins what sessions that are over have left, before the first write of one in `epoch`.
    /// Returns blocks of which one pin is too many now.
    pub(super) fn join_left(&mut self, epoch: Epoch) -> Vec<BlockSet> {
        let before = core::mem::take(&mut self.left);
        let before = before.into_iter().map(|(e, left)| ((e, left.last), left.blocks));
        let writes = before.chain(core::mem::take(&mut self.entries));
        let mut pinned: BTreeMap<Epoch, BTreeSet<RegionIndex>> = BTreeMap::new();
        let mut twice = Vec::new();
        for ((written, seq), blocks) in writes {
            let older = Epoch(epoch.0.saturating_sub(1));
            let key = if written < epoch { older } else { written };
            let left = self.left.entry(key).or_default();
            let pinned = pinned.entry(key).or_default();
            let again = |region: &RegionIndex| !pinned.insert(*region);
            let again: Vec<RegionIndex> = blocks.regions().into_iter().filter(again).collect();
            let part = |region| BlockRange::of_region(region, limits::MAX_VOLUME_BLOCKS);
            let parts = again.into_iter().filter_map(part).map(|part| blocks.within(part));
            let parts: BlockSet = parts.flat_map(|part| part.ranges().to_vec()).collect();
            twice.extend(Some(parts).filter(|parts| !parts.is_empty()));
            left.last = left.last.max(seq);
            left.blocks.extend(&blocks);
        }
        twice
    }

    /// Drops the entries of `epoch` after `from` up to `upto`; returns their blocks, write by
    /// write.
    pub(super) fn commit(&mut self, epoch: Epoch, from: Seq, upto: Seq) -> Vec<BlockSet> {
        let all = from == Seq(0) && self.left.get(&epoch).is_some_and(|left| left.last <= upto);
        let left = if all { self.left.remove(&epoch) } else { None };
        let range = (epoch, from)..(epoch, upto.next().max(from));
        let keys: Vec<_> = self.entries.range(range).map(|(key, _)| *key).collect();
        let entries = keys.iter().filter_map(|key| self.entries.remove(key));
        left.map(|left| left.blocks).into_iter().chain(entries).collect()
    }

    /// Drops the entries of every epoch before `epoch`.
    pub(super) fn commit_older(&mut self, epoch: Epoch) -> Vec<BlockSet> {
        let entries = self.entries.split_off(&(epoch, Seq(0)));
        let left = self.left.split_off(&epoch);
        let entries = core::mem::replace(&mut self.entries, entries);
        let left = core::mem::replace(&mut self.left, left);
        left.into_values().map(|left| left.blocks).chain(entries.into_values()).collect()
    }

    /// Asserts that no entry is of an epoch after `promised`.
    pub(super) fn check(&self, promised: Epoch) {
        let last = self.entries.last_key_value().map(|((epoch, _), _)| *epoch);
        let left = self.left.last_key_value().map(|(epoch, _)| *epoch);
        if let Some(epoch) = last.max(left) {
            assert!(epoch <= promised, "a write of an epoch that was never promised");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Header, Message, Promised, Reply};
    use crate::wire::{Frame, encode};
    use alloc::boxed::Box;

    fn promised(ring: BlockSet, unresolved: Vec<RegionIndex>) -> Frame {
        let promised = Promised {
            incarnation: crate::id::Incarnation(1),
            unclean: true,
            lossy: true,
            fresh: false,
            member_gen: crate::id::Gen(1),
            ring,
            unresolved,
            credit_ops: 1,
            credit_bytes: 1,
            silent_ms: Some(1),
            pulls: true,
            blocks: Some(1),
        };
        let volume = crate::id::VolumeId(uuid::Uuid::from_u128(1));
        let (epoch, seq) = (Epoch(1), Seq(1));
        let header = Header { volume, epoch, r#gen: crate::id::Gen(1), seq, commit: Seq(0) };
        Frame::Reply(Message { header, body: Reply::Promised(Box::new(promised)) })
    }

    /// As many regions as an activity log holds, apart from each other, with scattered blocks.
    #[test]
    fn what_it_holds_fits_into_a_frame_however_scattered_it_is() {
        let regions: Vec<RegionIndex> = (0..60_000).map(|i| RegionIndex(2 * i)).collect();
        let mut ring = Ring::default();
        for (seq, at) in (1..).zip([3_u64, 90, 170]) {
            let block = |r: &RegionIndex| BlockRange::new(u64::from(r.0) * 256 + at, 1);
            ring.insert(Epoch(1), Seq(seq), regions.iter().map(block).collect());
        }
        assert_eq!(ring.blocks().ranges().len(), 180_000, "more than a frame can tell");
        let told = ring.to_tell(limits::MAX_VOLUME_BLOCKS);
        assert!(ring.blocks().blocks().all(|block| told.contains(block)));
        assert!(!encode(&promised(told, regions)).is_empty());
        ring.commit(Epoch(1), Seq(0), Seq(2));
        ring.insert(Epoch(1), Seq(9), BlockRange::new(0, 1).into());
        let few = Ring { left: ring.left, entries: ring.entries.split_off(&(Epoch(1), Seq(9))) };
        assert_eq!(few.to_tell(limits::MAX_VOLUME_BLOCKS), BlockRange::new(0, 1).into());
    }

    #[test]
    fn what_older_epochs_left_goes_with_membership_alone() {
        let mut ring = Ring::default();
        for (epoch, seq) in [(1, 5), (2, 7), (3, 9)] {
            ring.insert(Epoch(epoch), Seq(seq), BlockRange::new(epoch, 1).into());
        }
        let twice = ring.join_left(Epoch(3));
        assert_eq!(twice, [BlockRange::new(2, 1).into()], "both of the older are in one region");
        assert_eq!(ring.len(), 2);
        assert!(ring.commit(Epoch(3), Seq(10), Seq(20)).is_empty(), "it may be void");
        assert!(ring.commit(Epoch(3), Seq(0), Seq(8)).is_empty(), "its last write is not in it");
        assert_eq!(ring.commit(Epoch(3), Seq(0), Seq(9)), [BlockRange::new(3, 1).into()]);
        assert_eq!(ring.commit_older(Epoch(3)), [BlockRange::new(1, 2).into()]);
        assert_eq!(ring.len(), 0);
    }
}
