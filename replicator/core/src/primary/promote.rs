//! Promotion, rules P2 to P7: from promises to one content that every member has durably.
//!
//! Each step is worked out anew from what is known (`drive_promotion`), so that a session that
//! breaks at any point needs no undoing: what it contributed and did not flush is void (P4, m20).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::cas::Change;
use super::copy::CopyJob;
use super::lease::OldLease;
use super::{Phase, Primary, Purpose, Stop};
use crate::id::{ReplicaId, Tick};
use crate::limits;
use crate::message::{Promised, Request};
use crate::planted::Bug;
use crate::range::{BlockRange, BlockSet};
use crate::record::ReplicaState;

/// How far one replica is in a promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Source only: what will be repaired is being logged there (P5).
    Marking,
    /// Target: its copy job runs or waits for its turn.
    Copying,
    /// Content is settled, not yet durable.
    Settled,
    /// Being flushed (P6).
    Flushing,
    /// Durable: fit to be a member.
    Durable,
}

/// A promotion under way.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Promotion {
    /// When the first member of the old in-sync set answered (P3).
    first_answer: Option<Tick>,
    /// How often it was put off because we stood still.
    excused: u8,
    /// The source, once chosen (P4).
    source: Option<ReplicaId>,
    /// Source and targets.
    stages: BTreeMap<ReplicaId, Stage>,
    /// Members that need more repair than is done before opening.
    left_out: BTreeSet<ReplicaId>,
    /// Blocks that the source got from another member.
    healed: BlockSet,
    /// Of these, what is not torn.
    untorn: BlockSet,
    /// The device was served by this very primary before (G4).
    live: bool,
}

impl Promotion {
    /// A promotion in place: the guest's device lives on.
    pub(super) fn begin_live(&mut self) {
        *self = Self { live: true, ..Self::default() };
    }

    /// Is the guest's device in use meanwhile?
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// We stood still for `ms`: members may have answered meanwhile (P3).
    pub(super) fn excuse(&mut self, ms: u64) {
        if self.excused < limits::STANDSTILLS_EXCUSED {
            self.excused += 1;
            self.first_answer = self.first_answer.map(|at| at.plus_ms(ms));
        }
    }

    fn restart(&mut self) {
        self.source = None;
        self.stages.clear();
        self.left_out.clear();
        (self.healed, self.untorn) = (BlockSet::new(), BlockSet::new());
    }
}

impl Primary {
    pub(super) fn promotion_due(&self) -> Option<Tick> {
        if self.phase != Phase::Recovering || self.promotion.source.is_some() {
            return self.awaited_due();
        }
        let first = self.promotion.first_answer?;
        let waits = [limits::CONNECT_WAIT_MS, limits::PROMISE_WAIT_MS, limits::LOSSY_GRACE_MS];
        waits.iter().map(|ms| first.plus_ms(*ms)).find(|at| *at > self.now)
    }

    /// When the first member answered.
    pub(super) fn promotion_began(&self) -> Option<Tick> {
        self.promotion.first_answer
    }

    /// A replica promised this epoch.
    pub(super) fn promotion_promised(&mut self) {
        let answered = self.members().iter().any(|rid| self.session_of(*rid).is_some());
        if answered {
            self.promotion.first_answer.get_or_insert(self.now);
        }
    }

    /// A session broke: what was not flushed on it is void; without its source all is (P4, m20).
    pub(super) fn promotion_lost(&mut self, rid: ReplicaId) {
        if self.phase != Phase::Recovering || self.cas.change() == Some(&Change::Open) {
            return;
        }
        if self.promotion.source == Some(rid) {
            self.restart_promotion();
        } else if self.has(Bug::KeepVoidRepair)
            && let Some(stage) = self.promotion.stages.get_mut(&rid)
            && matches!(stage, Stage::Settled | Stage::Flushing | Stage::Durable)
        {
            *stage = Stage::Durable;
        } else {
            self.promotion.stages.remove(&rid);
            if self.copy.as_ref().is_some_and(|job| job.target() == rid) {
                self.abort_repair();
            }
        }
    }

    /// A target is gone. If the source is being written just then, its content is not settled any
    /// more, nor that of members which are repaired already: the new promise tells what it wrote.
    fn abort_repair(&mut self) {
        if self.is_source_written() {
            self.restart_promotion();
        } else {
            self.abort_copy();
        }
    }

    /// Begins again with the choice of a source.
    pub(super) fn restart_promotion(&mut self) {
        self.abort_copy();
        self.promotion.restart();
        if self.has(Bug::StalePromise) {
            return;
        }
        // What the old attempt wrote has to be finished, and to be seen in the new promise.
        let dirty = |(_, peer): &(&ReplicaId, &super::Peer)| peer.is_dirty();
        let rids: Vec<ReplicaId> = self.peers.iter().filter(dirty).map(|(rid, _)| *rid).collect();
        for rid in rids {
            self.renew_session(rid);
        }
    }

    fn session_of(&self, rid: ReplicaId) -> Option<&Promised> {
        self.peers.get(&rid).and_then(|p| p.session())
    }

    pub(super) fn drive_promotion(&mut self) {
        if self.phase != Phase::Recovering || !self.cas.is_free() || self.outbid.is_some() {
            return;
        }
        if self.promotion.source.is_none() {
            self.choose_source();
        }
        if self.promotion.source.is_some() {
            self.admit_members();
            self.retry_heals();
            self.run_copies();
            self.flush_settled();
            self.bring_up_spares();
            self.try_open();
        }
    }

    /// P3 and P4.
    fn choose_source(&mut self) {
        let members = self.members();
        let outside = self.has(Bug::SourceFromOutside);
        let eligible = |rid: &ReplicaId| outside || members.contains(rid);
        let mut up: Vec<(ReplicaId, &Promised)> = Vec::new();
        for (rid, peer) in self.peers.iter().filter(|(rid, _)| eligible(rid)) {
            up.extend(peer.session().map(|s| (*rid, s)));
        }
        if up.is_empty() {
            // Whoever had answered is gone: the next answer starts the waiting anew.
            self.promotion.first_answer = None;
        }
        let Some(first) = self.promotion.first_answer else { return };
        // One that was put back to an older image has nothing to wait for (R7).
        let gone = |rid: &ReplicaId| self.peers[rid].is_put_back();
        let silent: Vec<&ReplicaId> =
            members.iter().filter(|rid| !gone(rid) && !up.iter().any(|(u, _)| u == *rid)).collect();
        let all_lossy = up.iter().all(|(_, s)| s.lossy);
        let waited = self.now.ms_since(first);
        let wait = match all_lossy {
            true => limits::LOSSY_GRACE_MS,
            false if silent.iter().any(|rid| self.peers[*rid].is_connected()) => {
                limits::PROMISE_WAIT_MS
            }
            false => limits::CONNECT_WAIT_MS,
        };
        if !silent.is_empty() && waited < wait {
            return;
        }
        if all_lossy && self.promotion.live && !self.has(Bug::LiveLossy) {
            // G4: acknowledged data may be gone under a mounted device: better an error.
            return self.fence(Stop::DataLost);
        }
        let local = |rid: ReplicaId| self.peers[&rid].node() == &self.params.node;
        let lossy = self.has(Bug::LossySource);
        let rank = |(rid, s): &(ReplicaId, &Promised)| {
            let inside = members.contains(rid) == outside;
            (inside, s.unclean != lossy, s.lossy != lossy, !local(*rid), *rid)
        };
        self.promotion.source = up.iter().min_by_key(|c| rank(c)).map(|(rid, _)| *rid);
    }

    /// P5: every other member that answered joins with what it needs repaired.
    fn admit_members(&mut self) {
        let Some(source) = self.promotion.source else { return };
        let known =
            |p: &super::Promotion, rid| p.stages.contains_key(&rid) || p.left_out.contains(&rid);
        let fresh: Vec<ReplicaId> = self
            .members()
            .into_iter()
            .filter(|rid| *rid != source && self.is_serving(*rid) && !known(&self.promotion, *rid))
            .collect();
        let first = !self.promotion.stages.contains_key(&source);
        if !first && !fresh.is_empty() {
            self.drop_spare();
            if self.promotion.source.is_none() {
                return;
            }
        }
        let mut marks = BlockSet::new();
        for rid in fresh {
            let repair = self.repair_set(source, rid);
            if repair.len() > limits::MAX_REPAIR_BLOCKS && self.enough_without(rid) {
                self.promotion.left_out.insert(rid);
                continue;
            }
            let stage = if repair.is_empty() { Stage::Settled } else { Stage::Copying };
            self.promotion.stages.insert(rid, stage);
            marks.extend(&repair);
        }
        if first || !marks.is_empty() {
            self.mark_source(source, marks);
        }
    }

    /// A member is back while another copy is being brought up in its place: the member needs less.
    fn drop_spare(&mut self) {
        let members = self.members();
        let target = self.copy.as_ref().map(CopyJob::target);
        if let Some(spare) = target.filter(|rid| !members.contains(rid)) {
            if self.is_source_written() {
                return self.restart_promotion();
            }
            self.abort_copy();
            self.promotion.stages.remove(&spare);
            self.renew_session(spare);
        }
    }

    /// P5: what may differ between source and target.
    fn repair_set(&self, source: ReplicaId, target: ReplicaId) -> BlockSet {
        let (Some(s), Some(t)) = (self.session_of(source), self.session_of(target)) else {
            return BlockSet::new();
        };
        if self.has(Bug::NoRepair) {
            return BlockSet::new();
        }
        let mut repair = self.promotion.healed.clone();
        if !self.has(Bug::RepairIgnoresRing) {
            repair.extend(&s.ring);
            repair.extend(&t.ring);
        }
        if self.has(Bug::RepairIgnoresLog) {
            return repair;
        }
        let blocks = self.cas.record().map_or(0, |r| r.blocks);
        for region in s.unresolved.iter().chain(&t.unresolved) {
            if let Some(range) = BlockRange::of_region(*region, blocks) {
                repair.insert(range);
            }
        }
        repair
    }

    /// Would the volume have its minimum of members without `rid`?
    fn enough_without(&self, rid: ReplicaId) -> bool {
        let min = self.cas.record().map_or(1, |r| usize::from(r.min_in_sync));
        let others = self.members().into_iter().filter(|m| *m != rid && self.is_serving(*m));
        let small = others.filter(|m| !self.promotion.left_out.contains(m));
        small.count() >= min
    }

    /// Logs on the source what will be copied from it: the resolution must stick on both sides.
    fn mark_source(&mut self, source: ReplicaId, marks: BlockSet) {
        if marks.is_empty() {
            self.promotion.stages.entry(source).or_insert(Stage::Settled);
            return;
        }
        self.promotion.stages.insert(source, Stage::Marking);
        // As many as fit into a frame.
        for part in marks.ranges().chunks(limits::RING_RANGES) {
            let blocks = part.iter().copied().collect();
            self.call(source, Purpose::Mark, true, Request::Mark { blocks });
        }
    }

    pub(super) fn on_marked(&mut self, rid: ReplicaId) {
        let more = self.waits_for(rid, |purpose| matches!(purpose, Purpose::Mark));
        let stage = self.promotion.stages.get_mut(&rid).filter(|s| **s == Stage::Marking);
        if let Some(stage) = stage.filter(|_| !more) {
            *stage = Stage::Settled;
        }
    }

    /// Is another answer of this kind still to come? What was asked for later is not in those that
    /// come before it, nor do answers come in the order in which they were asked for.
    fn waits_for(&self, rid: ReplicaId, kind: fn(&Purpose) -> bool) -> bool {
        self.calls.values().any(|call| call.rid == rid && kind(&call.purpose))
    }

    /// One copy at a time, once the source has logged what is copied.
    fn run_copies(&mut self) {
        let Some(source) = self.promotion.source else { return };
        if self.promotion.stages.get(&source) == Some(&Stage::Marking) {
            return;
        }
        match &mut self.copy {
            Some(job) if job.is_done() => {
                let target = job.target();
                self.counters.repair_bytes += job.progress().moved_bytes;
                self.copy = None;
                self.promotion.stages.insert(target, Stage::Settled);
            }
            Some(_) => {}
            None => {
                let next = self.promotion.stages.iter().find(|(_, s)| **s == Stage::Copying);
                if let Some(target) = next.map(|(rid, _)| *rid) {
                    let explicit = self.repair_set(source, target);
                    self.copy = Some(CopyJob::repair(source, target, explicit));
                }
            }
        }
        self.drive_copy();
    }

    /// Whom to ask first for a block that the source lacks: who is repaired already, as what they
    /// hold is settled; then who lost least.
    pub(super) fn heal_rank(&self, rid: ReplicaId) -> (bool, bool, bool, ReplicaId) {
        let stage = self.promotion.stages.get(&rid);
        let settled = matches!(stage, Some(Stage::Settled | Stage::Flushing | Stage::Durable));
        let session = self.session_of(rid);
        let lost = |of: fn(&Promised) -> bool| session.is_none_or(of);
        (!settled, lost(|s| s.lossy), lost(|s| s.unclean), rid)
    }

    /// Who lost un-flushed data may lack what the source held: it is asked only when nobody else
    /// can be expected, as for the choice of a source (P3).
    pub(super) fn may_heal_from(&self, rid: ReplicaId) -> bool {
        if self.phase != Phase::Recovering || self.session_of(rid).is_some_and(|s| !s.lossy) {
            return true;
        }
        let waited = self.promotion.first_answer.map_or(0, |first| self.now.ms_since(first));
        // One that was put back to an older image has nothing to wait for (R7).
        let there =
            |rid: &ReplicaId| self.session_of(*rid).is_some() || self.peers[rid].is_put_back();
        let all_up = self.members().iter().all(there);
        all_up || waited >= limits::LOSSY_GRACE_MS
    }

    /// Has the source got this block from a member that has it whole?
    pub(super) fn is_untorn(&self, block: u64) -> bool {
        self.promotion.untorn.contains(block)
    }

    /// The source gets this block from a member that has it whole, or kept its power.
    pub(super) fn promotion_untorn(&mut self, block: u64) {
        if self.phase == Phase::Recovering {
            self.promotion.untorn.insert(BlockRange::new(block, 1));
        }
    }

    /// A block of the source has got the content that another member gave, which need not be what
    /// the source held. All others get it from the source, whether or not it may differ there.
    pub(super) fn promotion_healed(&mut self, block: u64) {
        if self.phase != Phase::Recovering {
            return;
        }
        self.promotion.healed.insert(BlockRange::new(block, 1));
        let copying = self.copy.as_ref().map(CopyJob::target);
        for (rid, stage) in &mut self.promotion.stages {
            if Some(*rid) != self.promotion.source && Some(*rid) != copying {
                *stage = Stage::Copying;
            }
        }
    }

    /// P6: source and repaired members become durable before anything is exposed (m4).
    fn flush_settled(&mut self) {
        let settled = |(_, stage): &(&ReplicaId, &Stage)| **stage == Stage::Settled;
        let rids: Vec<ReplicaId> =
            self.promotion.stages.iter().filter(settled).map(|(rid, _)| *rid).collect();
        for rid in rids {
            if self.has(Bug::NoPromotionFlush) {
                self.promotion.stages.insert(rid, Stage::Durable);
            } else {
                self.promotion.stages.insert(rid, Stage::Flushing);
                self.call(rid, Purpose::PromotionFlush, false, Request::Flush);
            }
        }
    }

    pub(super) fn on_promotion_flushed(&mut self, rid: ReplicaId) {
        // It may have been given more since the first of two flushes was sent.
        let more = self.waits_for(rid, |purpose| matches!(purpose, Purpose::PromotionFlush));
        let stage = self.promotion.stages.get_mut(&rid).filter(|s| **s == Stage::Flushing);
        if let Some(stage) = stage.filter(|_| !more) {
            *stage = Stage::Durable;
        }
    }

    /// P7: too few members answered; other copies are brought up from the flushed source.
    fn bring_up_spares(&mut self) {
        let Some(source) = self.promotion.source else { return };
        let settled = self.promotion.stages.values().all(|s| *s == Stage::Durable);
        if !settled || self.copy.is_some() || self.has_enough() {
            return;
        }
        self.ask_reach();
        let is_spare = |rid: &ReplicaId| {
            !self.promotion.stages.contains_key(rid)
                && self.is_serving(*rid)
                && (self.is_required(*rid) || self.is_within_reach(*rid))
        };
        let Some(target) = self.peers.keys().copied().find(is_spare) else { return };
        let Some(session) = self.session_of(target).cloned() else { return };
        if self.is_short(target) {
            return self.lengthen(target);
        }
        let record = self.cas.record();
        let state = record.and_then(|r| r.replica(target)).map(|r| r.state);
        self.promotion.left_out.remove(&target);
        self.promotion.stages.insert(target, Stage::Copying);
        match state {
            // A member that was left out: its repair is large, and like any other (P5).
            Some(ReplicaState::InSync) | None => {
                self.mark_source(source, self.repair_set(source, target));
                self.run_copies();
            }
            Some(state) => {
                let missed = self.missed_beside_stamps(target);
                let since = state.since();
                self.copy = Some(if self.has(Bug::PartialSpare) {
                    CopyJob::repair(source, target, missed)
                } else {
                    CopyJob::delta(source, target, since, missed, session.fresh, false)
                });
                self.drive_copy();
            }
        }
    }

    fn has_enough(&self) -> bool {
        let Some(record) = self.cas.record() else { return false };
        let durable = self.promotion.stages.values().filter(|s| **s == Stage::Durable).count();
        durable >= usize::from(record.min_in_sync)
    }

    /// T4, when nothing is left to settle.
    fn try_open(&mut self) {
        let settled = self.promotion.stages.values().all(|s| *s == Stage::Durable);
        if !settled || self.copy.is_some() || !self.has_enough() || self.is_read_elsewhere() {
            return;
        }
        let members: Vec<ReplicaId> = self.promotion.stages.keys().copied().collect();
        let txn = self.cas.next_txn(self.params.instance);
        if let Some(next) = self.cas.record().map(|r| r.open(&members, txn)) {
            self.propose(Change::Open, next);
            if self.has(Bug::ServeBeforeOpen) {
                self.set_phase(Phase::Active);
            }
        }
    }

    /// P7: the first messages carry the new generation, so that members restamp what was
    /// repaired before they forget it; then the guest is served.
    pub(super) fn on_opened(&mut self) {
        if self.outbid.is_some() {
            // The record is being read again, to learn by whom.
            return;
        }
        (self.promotion, self.old_lease) = (Promotion::default(), OldLease::default());
        // A detach that was asked for before a promotion in place goes on after it.
        self.set_phase(if self.closing.is_some() { Phase::Draining } else { Phase::Active });
        self.announce_gen();
        self.reissue_all();
    }
}
