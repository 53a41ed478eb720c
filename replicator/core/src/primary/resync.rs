//! Bringing a copy back into the in-sync set, or filling a new one: rules S1 to S10.

mod entry;
mod race;
mod reach;
mod slot;
mod watch;

use alloc::vec::Vec;

pub(super) use self::reach::Reach;
use self::watch::Speed;
use super::cas::Change;
use super::copy::CopyJob;
use super::{Phase, Primary, Purpose, ResyncProgress};
use crate::alike::Aside;
use crate::id::{ReplicaId, Seq, Tick};
use crate::limits;
use crate::message::Request;
use crate::planted::Bug;
use crate::range::{BlockRange, BlockSet};
use crate::record::ReplicaState;

/// Where the resync under way is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Stage {
    /// None is under way.
    #[default]
    Idle,
    /// Windows are copied; new writes go to the target too (S3, S4).
    Copying(ReplicaId),
    /// Required for acknowledgements; waits for what was sent before that (S6).
    Catching { target: ReplicaId, barrier: Seq },
    /// Being flushed (S5).
    Flushing(ReplicaId),
    /// Flushed; its admission (S7) is proposed or will be.
    Ready(ReplicaId),
}

/// The resync under way, and when the next may start.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Resync {
    stage: Stage,
    not_before: Option<Tick>,
    /// Target and source of an attempt that failed: others are tried first.
    failed: Vec<ReplicaId>,
    /// What the last copy job moved, for the status.
    progress: Aside<ResyncProgress>,
    speed: Aside<Speed>,
    slot: slot::Slot,
    /// How often in a row a target could not keep up.
    lags: u32,
}

impl Primary {
    /// When the next resync may start, or the one under way may or must go on.
    pub(super) fn resync_due(&self) -> Option<Tick> {
        if self.resync.stage != Stage::Idle {
            return self.window_due().into_iter().chain(self.watch_due()).min();
        }
        let at = self.resync.not_before.filter(|at| *at > self.now);
        let at = at.filter(|_| self.next_target().is_some());
        at.into_iter().chain(self.unfit_due()).min()
    }

    /// No resync starts before `at`.
    pub(super) fn hold_resync(&mut self, at: Tick) {
        self.resync.not_before = Some(self.resync.not_before.map_or(at, |known| known.max(at)));
    }

    /// The replica that gets every new write although it is no member (S3).
    pub(super) fn resync_target(&self) -> Option<ReplicaId> {
        match self.resync.stage {
            Stage::Idle => None,
            Stage::Copying(target)
            | Stage::Catching { target, .. }
            | Stage::Flushing(target)
            | Stage::Ready(target) => Some(target),
        }
    }

    /// The target, once it is required for acknowledgements (S6, m16).
    pub(super) fn catching(&self) -> Option<ReplicaId> {
        match self.resync.stage {
            Stage::Idle | Stage::Copying(_) => None,
            Stage::Ready(_) if self.has(Bug::ForgetPendingAdd) && self.cas.proposed().is_some() => {
                None
            }
            Stage::Catching { target, .. } | Stage::Flushing(target) | Stage::Ready(target) => {
                Some(target)
            }
        }
    }

    pub(super) fn resync_progress(&self, rid: &ReplicaId) -> Option<ResyncProgress> {
        let running = self.resync_target() == Some(*rid);
        let now = || self.copy.as_ref().map_or(*self.resync.progress, CopyJob::progress);
        running.then(|| self.resync.speed.show(now()))
    }

    pub(super) fn drive_resync(&mut self) {
        let now = self.now;
        self.resync.not_before.take_if(|at| *at <= now);
        while matches!(self.phase, Phase::Active | Phase::Suspended) {
            self.ask_reach();
            let before = self.resync.stage;
            self.advance_resync();
            if self.resync.stage == before {
                return self.leave_entries();
            }
        }
    }

    fn advance_resync(&mut self) {
        match self.resync.stage {
            Stage::Idle => self.start_resync(),
            Stage::Copying(target) => {
                self.drive_copy();
                if self.copy.as_ref().is_some_and(CopyJob::is_done) {
                    self.begin_catching(target);
                } else if self.has_nearer_target(target) {
                    self.put_off_resync(target);
                } else {
                    self.watch_copy(target);
                }
            }
            Stage::Catching { target, barrier } => {
                let swaps = self.members().iter().any(|rid| self.is_lost(*rid));
                if swaps && self.has(Bug::UnflushedSwap) {
                    self.resync.stage = Stage::Ready(target);
                } else if self.ops.has_acked_before(target, barrier)
                    || self.has(Bug::EarlyTargetFlush)
                {
                    self.flush_target(target);
                }
            }
            Stage::Flushing(_) => {}
            Stage::Ready(target) => self.propose_add(target),
        }
    }

    /// A copy that is not in sync and has a session: those with the least to copy first. None while
    /// no member could be its source: who waits for one must not keep a slot from other volumes.
    fn next_target(&self) -> Option<ReplicaId> {
        let record = self.cas.record()?;
        let required = self.required();
        if !self.members().iter().any(|rid| self.is_serving(*rid)) {
            return None;
        }
        let candidates = record.replicas.iter().filter(|r| {
            !matches!(r.state, ReplicaState::InSync | ReplicaState::Leaving)
                && !required.contains(&r.rid)
                && self.is_serving(r.rid)
                && self.shunned(&r.rid).is_none()
                && self.is_within_reach(r.rid)
        });
        let failed = |rid| self.resync.failed.contains(&rid);
        candidates.max_by_key(|r| (!failed(r.rid), r.state.since(), r.rid)).map(|r| r.rid)
    }

    /// S1 to S3: from scratch, whatever was copied before.
    fn start_resync(&mut self) {
        let early = self.resync.not_before.is_some_and(|at| at > self.now);
        if early || self.copy.is_some() || self.cas.proposed().is_some() {
            return;
        }
        let Some(target) = self.next_target() else { return self.resync.slot.give_back() };
        if !self.resync.slot.is_there() {
            return;
        }
        if self.peers[&target].is_dirty() && !self.has(Bug::DirtyResync) {
            return self.renew_session(target);
        }
        if !self.has_entered(target) {
            return self.ask_to_enter(target);
        }
        if self.is_short(target) {
            return self.lengthen(target);
        }
        let rank = |rid: &ReplicaId| {
            let remote = self.peers[rid].node() != &self.params.node;
            (self.resync.failed.contains(rid), remote)
        };
        let mut sources: Vec<ReplicaId> =
            self.members().into_iter().filter(|rid| self.is_serving(*rid)).collect();
        sources.sort_by_key(rank);
        let Some(source) = sources.first().copied() else { return };
        let Some(session) = self.peers.get(&target).and_then(|p| p.session()).cloned() else {
            return;
        };
        let since = self.cas.record().and_then(|r| r.replica(target)).map(|r| r.state.since());
        let missed = self.missed_beside_stamps(target);
        self.resync.stage = Stage::Copying(target);
        self.resync.progress = Aside::default();
        self.resync.speed = Aside(Speed::begin(self.now));
        self.pace.begin(self.now);
        let since = since.unwrap_or_default();
        self.copy = Some(CopyJob::delta(source, target, since, missed, session.fresh, true));
        if let Some(peer) = self.peers.get_mut(&target) {
            peer.begin_resync();
        }
        self.forget_acks(target);
        if !self.has(Bug::NoResyncReplay) {
            self.send_unacked(target);
        }
        self.drive_copy();
    }

    /// What the target may have lost or have alone: its own log and ring (m12, m14). What the
    /// source has unresolved it lists by itself in its scan, since it installs our generation
    /// first (m19).
    pub(super) fn missed_beside_stamps(&self, target: ReplicaId) -> BlockSet {
        let Some(session) = self.peers.get(&target).and_then(|p| p.session()) else {
            return BlockSet::new();
        };
        let mut missed = BlockSet::new();
        if !self.has(Bug::IgnoreTargetRing) {
            missed.extend(&session.ring);
        }
        if !self.has(Bug::IgnoreTargetLog) {
            let blocks = self.cas.record().map_or(0, |r| r.blocks);
            for region in &session.unresolved {
                if let Some(range) = BlockRange::of_region(*region, blocks) {
                    missed.insert(range);
                }
            }
        }
        missed
    }

    /// S6 before S5's flush: from here on no flush is acknowledged without the target, so its
    /// closing flush, which comes later, covers everything acknowledged before.
    fn begin_catching(&mut self, target: ReplicaId) {
        self.pace.end();
        self.resync.lags = 0;
        if let Some(job) = self.copy.take() {
            *self.resync.progress = job.progress();
            let moved = job.progress().moved_bytes;
            if job.is_fresh() {
                self.counters.rebuild_bytes += moved;
            } else {
                self.counters.resync_bytes += moved;
            }
        }
        self.resync.stage = Stage::Catching { target, barrier: self.next_seq };
    }

    fn flush_target(&mut self, target: ReplicaId) {
        if self.has(Bug::NoTargetFlush) {
            self.resync.stage = Stage::Ready(target);
            return;
        }
        self.resync.stage = Stage::Flushing(target);
        let told = !self.has(Bug::LossyUntilTold);
        let request = if told { Request::Complete } else { Request::Flush };
        self.call(target, Purpose::TargetFlush, false, request);
    }

    pub(super) fn on_target_flushed(&mut self, rid: ReplicaId) {
        if self.resync.stage == Stage::Flushing(rid) {
            self.resync.stage = Stage::Ready(rid);
        }
    }

    /// May it be added (S7)?
    pub(super) fn is_ready(&self, rid: ReplicaId) -> bool {
        self.resync.stage == Stage::Ready(rid)
    }

    /// S7: T6, or T7 if a member has failed that may not leave alone.
    fn propose_add(&mut self, target: ReplicaId) {
        if !self.cas.is_free() {
            return;
        }
        let Some(record) = self.cas.record().cloned() else { return };
        let txn = self.cas.next_txn(self.params.instance);
        let lost = self.members().into_iter().find(|rid| self.is_lost(*rid));
        let next = match lost {
            Some(lost) => record.swap(lost, target, txn),
            None => record.add(target, txn),
        };
        self.propose(Change::Add(target), next);
    }

    /// The target is a member.
    pub(super) fn on_added(&mut self, rid: ReplicaId) {
        if self.resync_target() == Some(rid) {
            self.resync.stage = Stage::Idle;
            self.resync.slot.give_back();
            self.resync.failed.clear();
            self.counters.resyncs_done += 1;
        }
        self.announce_gen();
    }

    /// S2: a session with the target that ends voids the whole resync (m18). Once its admission
    /// is proposed it stays required until that is decided (S7).
    pub(super) fn resync_lost(&mut self, rid: ReplicaId) {
        let as_source = self.copy.as_ref().is_some_and(|job| job.source() == rid);
        let as_target = self.resync_target() == Some(rid);
        let resumes = as_target && self.has(Bug::ResumeResync);
        if as_source || (as_target && !resumes) {
            self.abort_resync();
        }
    }

    /// A member was removed: it can't be the source any more.
    pub(super) fn abort_resync_from(&mut self, rid: ReplicaId) {
        if self.copy.as_ref().is_some_and(|job| job.source() == rid) {
            self.abort_resync();
        }
    }

    /// Ends the resync. What its target reported when its session began is out of date now, so
    /// the next attempt needs a new one, which also waits for what this one has in flight.
    pub(super) fn abort_resync(&mut self) {
        let Some(target) = self.resync_target() else { return };
        self.resync.stage = Stage::Idle;
        self.resync.slot.give_back();
        self.hold_resync(self.now.plus_ms(limits::RESYNC_BACKOFF_MS));
        self.pace.end();
        let source = self.copy.as_ref().map(CopyJob::source);
        self.resync.failed = core::iter::once(target).chain(source).collect();
        self.abort_copy();
        let renews = !self.has(Bug::DirtyResync);
        if renews && self.is_serving(target) && !self.is_required(target) {
            self.renew_session(target);
        }
        self.sweep_ops();
    }
}
