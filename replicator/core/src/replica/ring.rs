//! The ring: writes that are not known to be committed, by epoch and sequence number.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::id::{Epoch, Seq};
use crate::range::BlockSet;

/// Uncommitted writes. Bounded by the primary's credit plus one commit interval.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Ring {
    entries: BTreeMap<(Epoch, Seq), BlockSet>,
}

impl Ring {
    /// Number of writes.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many blocks its writes have, counted once for each write.
    pub(super) fn blocks_written(&self) -> u64 {
        self.entries.values().map(BlockSet::len).sum()
    }

    /// Every block in it.
    pub(super) fn blocks(&self) -> BlockSet {
        self.entries.values().flat_map(|set| set.ranges().iter().copied()).collect()
    }

    /// Adds a write; returns what the same write had added before (a replay after a reconnect).
    pub(super) fn insert(&mut self, epoch: Epoch, seq: Seq, blocks: BlockSet) -> Option<BlockSet> {
        self.entries.insert((epoch, seq), blocks)
    }

    /// Drops the entries of `epoch` after `from` up to `upto`; returns their blocks, write by
    /// write.
    pub(super) fn commit(&mut self, epoch: Epoch, from: Seq, upto: Seq) -> Vec<BlockSet> {
        self.drop_range((epoch, from), (epoch, upto.next().max(from)))
    }

    /// Drops the entries of every epoch before `epoch`.
    pub(super) fn commit_older(&mut self, epoch: Epoch) -> Vec<BlockSet> {
        self.drop_range((Epoch(0), Seq(0)), (epoch, Seq(0)))
    }

    fn drop_range(&mut self, from: (Epoch, Seq), to: (Epoch, Seq)) -> Vec<BlockSet> {
        let keys: Vec<_> = self.entries.range(from..to).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.entries.remove(key)).collect()
    }

    /// Asserts that no entry is of an epoch after `promised`.
    pub(super) fn check(&self, promised: Epoch) {
        if let Some(((epoch, _), _)) = self.entries.last_key_value() {
            assert!(*epoch <= promised, "a write of an epoch that was never promised");
        }
    }
}
