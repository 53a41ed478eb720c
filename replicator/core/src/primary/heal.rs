//! Blocks that the source of a copy can't read: they are fetched from another member and rewritten
//! on the source before its window goes on.
//!
//! The window's lock is held, or no guest is served, so what another member holds is what the
//! source should hold. In a promotion that goes for members that are repaired already; of the
//! others any content is as good, since the block is among those that may differ (P5).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::copy::Step;
use super::{Phase, Primary};
use crate::id::ReplicaId;
use crate::lock::LockId;
use crate::message::{Payload, Refusal, Reply, Request, ResyncBlock, ResyncContent};
use crate::planted::Bug;
use crate::range::{BlockRange, BlockSet};

/// What is known of the source's bad blocks in a window.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Heal {
    /// The block to be read next on the source, if it did not say which are bad.
    probe: Option<u64>,
    /// Members that could not give the block at hand.
    tried: BTreeSet<ReplicaId>,
    /// The block rewritten last, and how often.
    last: Option<(u64, u32)>,
    /// The block at hand, if somebody who may have it is waited for.
    awaited: Option<u64>,
    /// Blocks that the source is getting from the target since they may be torn.
    pub(super) torn: Option<BlockSet>,
}

impl Heal {
    /// Could this member not give the block at hand?
    pub(super) fn has_tried(&self, rid: ReplicaId) -> bool {
        self.tried.contains(&rid)
    }

    /// The block at hand, if somebody who may have it is waited for.
    pub(super) fn awaited(&self) -> Option<u64> {
        self.awaited
    }
}

/// How often a block is rewritten that can't be read back.
const REWRITES: u32 = 2;

impl Primary {
    /// The source could not read all of a window. `None` if that can't be mended.
    pub(super) fn heal_source(&mut self, lock: LockId, refusal: Refusal) -> Option<()> {
        match refusal {
            Refusal::Checksum { block } => self.heal_block(lock, block),
            _ => {
                let window = self.copy.as_mut()?.window(lock)?;
                window.heal.probe = window.blocks.blocks().next();
                self.probe_source(lock)
            }
        }
    }

    /// Reads the blocks of the window one by one, then asks for its digests again.
    pub(super) fn probe_source(&mut self, lock: LockId) -> Option<()> {
        let job = self.copy.as_mut()?;
        let source = job.source();
        match job.window(lock)?.heal.probe {
            Some(block) => {
                let blocks = BlockRange::new(block, 1).into();
                self.copy_call(source, Step::Probe(lock), false, Request::Read { blocks });
            }
            None => self.window_locked(lock),
        }
        Some(())
    }

    /// The source has read a block of the window, or could not.
    pub(super) fn on_probed(&mut self, lock: LockId, good: bool) -> Option<()> {
        let window = self.copy.as_mut()?.window(lock)?;
        let block = window.heal.probe?;
        window.heal.probe = window.blocks.blocks().find(|b| *b > block);
        if good { self.probe_source(lock) } else { self.heal_block(lock, block) }
    }

    fn heal_block(&mut self, lock: LockId, block: u64) -> Option<()> {
        let heal = &mut self.copy.as_mut()?.window(lock)?.heal;
        heal.tried.clear();
        let times = heal.last.filter(|(last, _)| *last == block).map_or(0, |(_, n)| n);
        heal.last = Some((block, times + 1));
        if times < REWRITES { self.heal_from_another(lock, block) } else { None }
    }

    fn heal_from_another(&mut self, lock: LockId, block: u64) -> Option<()> {
        let left = self.untried(lock)?;
        let serving = left.iter().filter(|rid| self.is_serving(**rid) && self.may_heal_from(**rid));
        if let Some(rid) = serving.min_by_key(|rid| self.heal_rank(**rid)).copied() {
            self.copy.as_mut()?.window(lock)?.heal.awaited = None;
            let blocks = BlockRange::new(block, 1).into();
            self.copy_call(rid, Step::HealRead(lock, block), false, Request::Read { blocks });
            return Some(());
        }
        let lost = self.is_given_up(left.len());
        let waits = !lost && self.phase == Phase::Recovering;
        self.copy.as_mut()?.window(lock)?.heal.awaited = waits.then_some(block);
        if lost { self.give_up_block(lock, block) } else { waits.then_some(()) }
    }

    /// Another member was asked for a block and could not give it.
    pub(super) fn heal_refused(&mut self, rid: ReplicaId, lock: LockId, block: u64) -> Option<()> {
        self.copy.as_mut()?.window(lock)?.heal.tried.insert(rid);
        self.heal_from_another(lock, block)
    }

    /// The session with the member that was asked for a block is gone, or others may have it.
    pub(super) fn heal_lost(&mut self, lock: LockId, block: u64) {
        let waits = self.copy.as_mut().is_some_and(|job| job.window(lock).is_some());
        if !waits || self.heal_from_another(lock, block).is_some() {
            return;
        }
        if self.is_open() {
            self.abort_resync();
        } else if let Some(source) = self.copy.as_ref().map(super::CopyJob::source) {
            self.fail_peer(source);
        }
    }

    /// Another member gave the block. If no guest is served and that member lost power too, what
    /// it gave may be torn: then it must not pass for what one write wrote, and gives way to what
    /// another member can prove to be whole.
    fn on_heal_read(
        &mut self,
        from: ReplicaId,
        lock: LockId,
        block: u64,
        data: Payload,
    ) -> Option<()> {
        let source = self.copy.as_ref()?.source();
        let lost_power = self.peers.get(&from).and_then(|p| p.session()).is_none_or(|s| s.lossy);
        let trusts = self.has(Bug::HealedAsWhole);
        if self.phase == Phase::Recovering && lost_power && !trusts {
            let stamp = self.cas.record()?.r#gen;
            let entry = ResyncBlock { block, stamp, content: ResyncContent::Data };
            let request = Request::Resync { blocks: Vec::from([entry]), payload: data };
            self.copy_call(source, Step::HealCopy(lock, block), true, request);
        } else {
            self.promotion_untorn(block);
            let range = BlockRange::new(block, 1);
            let request = Request::Write { range, fua: true, payload: data };
            self.copy_call(source, Step::HealWrite(lock, block), true, request);
        }
        Some(())
    }

    /// Durable before it is copied: the source may have been flushed already (P6).
    fn on_heal_copied(&mut self, lock: LockId, block: u64) -> Option<()> {
        let source = self.copy.as_ref()?.source();
        self.copy_call(source, Step::HealFlush(lock, block), false, Request::Flush);
        Some(())
    }

    /// The source has the block again.
    pub(super) fn on_healed(&mut self, rid: ReplicaId, lock: LockId, block: u64) -> Option<()> {
        self.note_mended(rid, block);
        self.promotion_healed(block);
        self.probe_source(lock)
    }

    /// Dispatches the answers of this file's steps.
    pub(super) fn on_heal(&mut self, rid: ReplicaId, step: &Step, reply: Reply) -> Option<()> {
        match (step, reply) {
            (Step::Probe(lock), Reply::Data(_)) => self.on_probed(*lock, true),
            (Step::HealRead(lock, block), Reply::Data(data)) if data.blocks() == 1 => {
                self.on_heal_read(rid, *lock, *block, data)
            }
            (Step::HealCopy(lock, block), Reply::Done) => self.on_heal_copied(*lock, *block),
            (Step::HealWrite(lock, block) | Step::HealFlush(lock, block), Reply::Done) => {
                self.on_healed(rid, *lock, *block)
            }
            _ => None,
        }
    }
}
