//! Torn blocks: what a power cut has left half written.
//!
//! A disk that writes less than a block at once may leave a mixture of two writes. It is in a
//! region that was active, whose checksums on disk may be of an older content: so a block that does
//! not match is not known to be torn, but one that does match is known to be whole. If a member
//! that kept its power is the source, whatever a power cut has torn elsewhere is overwritten by it.
//! If nobody did (P4), any member's content is legal. Then the source takes those blocks that may
//! be torn there, and differ, from a member on which they are whole, before it is copied (P5).

use super::copy::Step;
use super::{Notice, Phase, Primary, Purpose};
use crate::id::ReplicaId;
use crate::lock::LockId;
use crate::message::{BlockDigest, Payload, Request, ResyncBlock, ResyncContent, Wholeness};
use crate::planted::Bug;
use crate::primary::Effect;
use crate::range::{BlockRange, BlockSet};

impl Primary {
    /// Blocks of a window that the source has to take from the target.
    pub(super) fn torn_blocks(&mut self, lock: LockId, target: &[BlockDigest]) -> BlockSet {
        if self.phase != Phase::Recovering || self.has(Bug::NoTornHeal) {
            return BlockSet::new();
        }
        let Some(job) = self.copy.as_ref() else { return BlockSet::new() };
        let (from, to) = (job.source(), job.target());
        let lossy = |rid| self.peers.get(&rid).and_then(|p| p.session()).is_some_and(|s| s.lossy);
        // What is no member may lack what was acknowledged.
        if !lossy(from) || !self.members().contains(&to) {
            return BlockSet::new();
        }
        let kept_power = !lossy(to);
        let Some(window) = self.copy.as_mut().and_then(|job| job.window(lock)) else {
            return BlockSet::new();
        };
        if window.heal.torn.is_some() {
            return BlockSet::new();
        }
        let source = window.source.clone();
        let whole = |t: &BlockDigest| kept_power || t.wholeness == Wholeness::Whole;
        let torn = |(s, t): &(&BlockDigest, &BlockDigest)| {
            s.wholeness == Wholeness::Doubtful && s.digest != t.digest && whole(t)
        };
        let pairs = source.iter().zip(target).filter(torn).map(|(s, _)| s.block);
        // Each block once: two members may have it whole, and not the same.
        let new = pairs.filter(|block| !self.is_untorn(*block));
        new.map(|block| BlockRange::new(block, 1)).collect()
    }

    pub(super) fn fetch_torn(&mut self, lock: LockId, blocks: BlockSet) -> Option<()> {
        let job = self.copy.as_mut()?;
        let target = job.target();
        job.window(lock)?.heal.torn = Some(blocks.clone());
        self.copy_call(target, Step::TornRead(lock), false, Request::Read { blocks });
        Some(())
    }

    pub(super) fn on_torn_read(&mut self, lock: LockId, payload: Payload) -> Option<()> {
        let job = self.copy.as_mut()?;
        let source = job.source();
        let window = job.window(lock)?;
        let torn = window.heal.torn.as_ref()?;
        let of = |d: &&BlockDigest| torn.contains(d.block);
        let content = ResyncContent::Data;
        let blocks = window.source.iter().filter(of);
        let blocks = blocks.map(|d| ResyncBlock { block: d.block, stamp: d.stamp, content });
        let blocks: alloc::vec::Vec<ResyncBlock> = blocks.collect();
        if payload.blocks() != blocks.len() {
            return None;
        }
        let request = Request::Resync { blocks, payload };
        self.copy_call(source, Step::TornWrite(lock), true, request);
        Some(())
    }

    /// Durable before it is copied: the source may have been flushed already (P6).
    pub(super) fn on_torn_written(&mut self, lock: LockId) -> Option<()> {
        let source = self.copy.as_ref()?.source();
        self.copy_call(source, Step::TornFlush(lock), false, Request::Flush);
        Some(())
    }

    /// The source has them. Its digests are asked for again, and all others get them from it.
    pub(super) fn on_torn_durable(&mut self, source: ReplicaId, lock: LockId) -> Option<()> {
        let torn = self.copy.as_mut()?.window(lock)?.heal.torn.clone()?;
        for block in torn.blocks() {
            self.promotion_untorn(block);
            self.promotion_healed(block);
        }
        self.counters.torn_blocks += torn.len();
        let blocks = torn.len();
        self.out.push(Effect::Notice(Notice::Torn { replica: source, blocks }));
        self.window_locked(lock);
        Some(())
    }

    /// Is something being written to the source of a copy, since it lacked it?
    pub(super) fn is_source_written(&self) -> bool {
        let writes = |step: &Step| {
            let heals =
                matches!(step, Step::HealWrite(..) | Step::HealCopy(..) | Step::HealFlush(..));
            heals || matches!(step, Step::TornWrite(_) | Step::TornFlush(_))
        };
        self.calls.values().any(|call| matches!(&call.purpose, Purpose::Copy(s) if writes(s)))
    }

    /// The target could not give them after all: what the source has counts.
    pub(super) fn torn_unreadable(&mut self, lock: LockId) -> Option<()> {
        self.copy.as_mut()?.window(lock)?;
        self.window_locked(lock);
        Some(())
    }
}
