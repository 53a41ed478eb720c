//! Blocks that nobody can give while a copy is made: the copy gets a gap there (S9).
//!
//! Else one bad block would keep a volume from ever having a second copy, and a promotion that
//! needs one from opening. A member that was asked and refused has no need of a gap: the block is
//! as bad there.

use alloc::vec;
use alloc::vec::Vec;

use super::copy::Step;
use super::{Effect, Notice, Peer, Phase, Primary};
use crate::gap;
use crate::id::{ReplicaId, Tick};
use crate::limits;
use crate::lock::LockId;
use crate::message::{BlockDigest, Payload, Request, ResyncBlock, ResyncContent};
use crate::planted::Bug;
use crate::range::{BlockRange, BlockSet};

impl Primary {
    /// May a block be taken for lost that these members did not tell of? In a promotion they may
    /// never come; but they are given the time that is given to the last one with all data (P3).
    pub(super) fn is_given_up(&self, silent: usize) -> bool {
        let late =
            self.phase == Phase::Recovering && self.gap_due().is_some_and(|at| at <= self.now);
        silent == 0 || late || self.has(Bug::HastyGap)
    }

    fn gap_due(&self) -> Option<Tick> {
        self.promotion_began().map(|first| first.plus_ms(limits::LOSSY_GRACE_MS))
    }

    /// When windows that wait for members which might have a block wait no longer.
    pub(super) fn awaited_due(&self) -> Option<Tick> {
        let waits = self.copy.as_ref().is_some_and(|job| !job.awaiting().is_empty());
        self.gap_due().filter(|at| waits && *at > self.now)
    }

    /// Somebody may have come who has what a promotion waits for, or the wait is over.
    pub(super) fn retry_heals(&mut self) {
        let waiting = self.copy.as_ref().map(super::CopyJob::awaiting).unwrap_or_default();
        for (lock, block) in waiting {
            self.heal_lost(lock, block);
        }
    }

    /// Nobody has the block who can be waited for.
    pub(super) fn give_up_block(&mut self, lock: LockId, block: u64) -> Option<()> {
        let job = self.copy.as_mut()?;
        let (source, target) = (job.source(), job.target());
        let window = job.window(lock)?;
        let (since, tried) = (window.since(), window.heal.has_tried(target));
        self.counters.unreadable_blocks += 1;
        self.out.push(Effect::Notice(Notice::Unreadable { block }));
        if tried {
            return self.leave_out(lock, block);
        }
        // An older peer would give a gap out as content.
        let session = self.peers.get(&target).and_then(|peer| peer.session());
        if !session.is_some_and(|session| session.pulls) {
            self.hold_resync(self.now.plus_ms(limits::RESYNC_UNREADABLE_MS));
            return None;
        }
        // The target may have it, if it does not lack it.
        let request = Request::Digest { blocks: BlockRange::new(block, 1).into(), since };
        self.copy_call(source, Step::GapDigest(lock, block), false, request);
        Some(())
    }

    /// The source could tell about the block after all: it reads it now, or the target has it.
    pub(super) fn on_gap_digest(
        &mut self,
        lock: LockId,
        block: u64,
        digests: &[BlockDigest],
    ) -> Option<()> {
        if digests.is_empty() { self.leave_out(lock, block) } else { self.probe_source(lock) }
    }

    /// It is lost, and the target lacks it.
    pub(super) fn write_gap(&mut self, lock: LockId, block: u64) -> Option<()> {
        let target = self.copy.as_ref()?.target();
        // The present generation: what comes later to be compared with this copy finds it.
        let stamp = self.cas.record()?.r#gen;
        let blocks = vec![ResyncBlock { block, stamp, content: ResyncContent::Data }];
        let payload = Payload::checksummed(gap::content(self.params.volume));
        self.counters.gaps += 1;
        self.copy_call(
            target,
            Step::GapWrite(lock, block),
            true,
            Request::Resync { blocks, payload },
        );
        Some(())
    }

    /// The window goes on without the block.
    pub(super) fn leave_out(&mut self, lock: LockId, block: u64) -> Option<()> {
        let left = self.copy.as_mut()?.leave_out(lock, block)?;
        if left {
            self.probe_source(lock)
        } else {
            self.finish_window(lock);
            Some(())
        }
    }

    /// Members that have not been asked yet for the block at hand, but for those that were put back
    /// to an older image: they have nothing to tell (R7).
    pub(super) fn untried(&mut self, lock: LockId) -> Option<Vec<ReplicaId>> {
        let mut left = self.members();
        left.retain(|rid| !self.peers.get(rid).is_some_and(Peer::is_put_back));
        let job = self.copy.as_mut()?;
        let source = job.source();
        let heal = &job.window(lock)?.heal;
        left.retain(|rid| *rid != source && !heal.has_tried(*rid));
        Some(left)
    }
}

/// The set without one block.
pub(super) fn without(blocks: &BlockSet, block: u64) -> BlockSet {
    let others = blocks.blocks().filter(|other| *other != block);
    others.map(|other| BlockRange::new(other, 1)).collect()
}
