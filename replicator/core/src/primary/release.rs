//! Letting a healthy member go: one too many, or one whose node is being emptied.
//!
//! It holds all data, un-flushed writes included, and the others may have lost power a moment ago
//! without anybody having noticed. So before it leaves (T5), what it has must be durable on all
//! that stay: from the beginning on every write is made durable before it is acknowledged, and
//! what was written before is flushed. Otherwise an acknowledged write that the leaving member
//! still has could be lost with the others' memory, a breach of G3. And blocks that are known to be
//! bad on one that stays are mended first: the one that leaves may be the last to have them.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::cas::Change;
use super::{Phase, Primary, Purpose, Unfit};
use crate::id::{ReplicaId, Seq};
use crate::message::Request;
use crate::planted::Bug;

/// A member that is to leave.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Release {
    rid: ReplicaId,
    /// Why it leaves although nobody asked for that.
    why: Option<Unfit>,
    stage: Stage,
    /// Names this attempt in the calls made for it; answers to earlier ones say nothing.
    step: u64,
}

/// How far a release is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// What was issued before it began is being done.
    Draining { barrier: Seq },
    /// Those that stay flush it.
    Flushing { stay: BTreeSet<ReplicaId>, left: BTreeSet<ReplicaId> },
    /// T5 is proposed and not decided.
    Proposed,
}

impl Primary {
    /// A member is to leave, now or, if that is not possible now, when it is asked for again.
    pub(super) fn on_release(&mut self, rid: ReplicaId) {
        if self.release.is_none() && self.may_release(rid) {
            self.begin_release(rid, None);
        }
    }

    pub(super) fn begin_release(&mut self, rid: ReplicaId, why: Option<Unfit>) {
        let step = self.next_seq.0;
        let stage = Stage::Draining { barrier: self.next_seq };
        self.release = Some(Release { rid, why, stage, step });
    }

    /// As many members as copies are wanted have to stay, each of them at hand.
    pub(super) fn may_release(&self, rid: ReplicaId) -> bool {
        let under_way = self.release.as_ref().filter(|r| r.rid == rid);
        self.may_leave(rid, under_way.and_then(|r| r.why))
    }

    pub(super) fn may_leave(&self, rid: ReplicaId, why: Option<Unfit>) -> bool {
        let Some(record) = self.cas.record() else { return false };
        let stay = self.staying(rid);
        let at_hand = stay.iter().all(|rid| self.is_serving(*rid) && !self.is_lost(*rid));
        let enough = match why {
            Some(_) => self.enough_without_unfit(),
            None => usize::from(record.repl.max(record.min_in_sync).max(1)),
        };
        self.phase == Phase::Active && record.is_in_sync(rid) && at_hand && stay.len() >= enough
    }

    /// Is this member's leave proposed, although it is healthy?
    pub(super) fn is_releasing(&self, rid: ReplicaId) -> bool {
        self.release.as_ref().is_some_and(|r| r.rid == rid && r.stage == Stage::Proposed)
    }

    /// Why a member leaves whose leave is proposed, if nobody asked for that.
    pub(super) fn release_reason(&self, rid: ReplicaId) -> Option<Unfit> {
        self.release.as_ref().filter(|_| self.is_releasing(rid))?.why
    }

    fn staying(&self, rid: ReplicaId) -> BTreeSet<ReplicaId> {
        self.members().into_iter().filter(|member| *member != rid).collect()
    }

    /// Is everything made durable before it is acknowledged?
    pub(super) fn writes_through(&self) -> bool {
        self.release.is_some() && !self.params.planted.has(Bug::ReleaseUnflushed)
    }

    pub(super) fn drive_release(&mut self) {
        let Some(release) = self.release.clone() else { return };
        let rid = release.rid;
        match release.stage {
            Stage::Proposed => {
                if self.cas.change() != Some(&Change::Remove(rid)) {
                    self.release = None;
                }
            }
            _ if !self.may_release(rid) => self.release = None,
            Stage::Draining { barrier } => {
                let stay = self.staying(rid);
                if stay.iter().all(|rid| self.ops.has_acked_before(*rid, barrier)) {
                    self.flush_staying(stay, release.step);
                }
            }
            Stage::Flushing { stay, left } => {
                if stay != self.staying(rid) {
                    self.begin_release(rid, release.why);
                } else if left.is_empty()
                    && self.cas.is_free()
                    && !self.mending.knows_bad_beside(rid)
                {
                    self.propose_release(rid);
                }
            }
        }
    }

    fn flush_staying(&mut self, stay: BTreeSet<ReplicaId>, step: u64) {
        let unflushed = self.params.planted.has(Bug::ReleaseUnflushed);
        let left = if unflushed { BTreeSet::new() } else { stay.clone() };
        let called: Vec<ReplicaId> = left.iter().copied().collect();
        if let Some(release) = &mut self.release {
            release.stage = Stage::Flushing { stay, left };
        }
        for rid in called {
            self.call(rid, Purpose::ReleaseFlush(step), false, Request::Flush);
        }
    }

    pub(super) fn on_release_flushed(&mut self, rid: ReplicaId, step: u64) {
        if let Some(release) = self.release.as_mut().filter(|r| r.step == step)
            && let Stage::Flushing { left, .. } = &mut release.stage
        {
            left.remove(&rid);
        }
    }

    fn propose_release(&mut self, rid: ReplicaId) {
        let txn = self.cas.next_txn(self.params.instance);
        let why = self.release.as_ref().and_then(|r| r.why);
        let next = self.cas.record().and_then(|record| match why {
            Some(_) => record.remove(rid, txn),
            None => record.release(rid, txn),
        });
        let Some(next) = next else {
            self.release = None;
            return;
        };
        if let Some(release) = &mut self.release {
            release.stage = Stage::Proposed;
        }
        self.propose(Change::Remove(rid), next);
    }

    /// A session broke: what was flushed in it has to be worked out anew, when it is asked for
    /// again. A change that is proposed stays what it is: everything up to it is durable.
    pub(super) fn release_lost(&mut self) {
        if self.release.as_ref().is_some_and(|r| r.stage != Stage::Proposed) {
            self.release = None;
        }
    }
}
