//! Detaching in good order (T8): nothing in flight, everything durable, activity logs empty.

use alloc::collections::BTreeSet;

use super::cas::Change;
use super::{Phase, Primary, Purpose};
use crate::guest::GuestError;
use crate::id::ReplicaId;
use crate::message::Request;
use crate::planted::Bug;

/// A detach that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Closing {
    stage: Stage,
    /// Names the stage in the calls made for it; answers to earlier ones say nothing.
    step: u64,
    /// Members whose answer is missing.
    left: BTreeSet<ReplicaId>,
}

/// Where a detach is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Stage {
    /// Requests are being finished.
    #[default]
    Draining,
    /// Members flush.
    Flushing,
    /// Members empty their activity logs.
    Cleaning,
}

impl Primary {
    pub(super) fn on_close(&mut self) {
        self.drop_tasks();
        match self.phase {
            Phase::Active | Phase::Suspended => {
                self.abort_resync();
                self.set_phase(Phase::Draining);
                self.closing = Some(Closing::default());
            }
            // The guest's device lives on through a promotion in place; it is detached after it.
            Phase::Claiming | Phase::Recovering if self.promotion.is_live() => {
                self.closing = Some(Closing::default());
            }
            // Never served anything: there is nothing to finish, and the next claim recovers.
            Phase::Claiming | Phase::Recovering => {
                self.set_phase(Phase::Closed);
                self.stop(GuestError::Closing);
            }
            Phase::Draining | Phase::Closed | Phase::Fenced => {}
        }
    }

    /// A session broke or the members changed: what was flushed has to be worked out anew.
    pub(super) fn close_lost(&mut self) {
        if let Some(closing) = &mut self.closing {
            closing.stage = Stage::Draining;
            closing.step += 1;
        }
    }

    pub(super) fn drive_close(&mut self) {
        if self.phase != Phase::Draining {
            return;
        }
        let Some(closing) = &self.closing else { return };
        let ready = self.cas.is_free() && self.members().iter().all(|rid| self.is_serving(*rid));
        match closing.stage {
            _ if !ready => {}
            Stage::Draining if self.is_quiet() => {
                self.close_step(Stage::Flushing, &Request::Flush);
            }
            Stage::Flushing if closing.left.is_empty() => {
                self.note_watermark();
                if self.has(Bug::CloseUnclean) {
                    return self.propose_close();
                }
                self.close_step(Stage::Cleaning, &Request::Close);
            }
            Stage::Cleaning if closing.left.is_empty() => self.propose_close(),
            Stage::Draining | Stage::Flushing | Stage::Cleaning => {}
        }
    }

    /// Has every member emptied its activity log, in a session that goes on?
    pub(super) fn is_cleaned(&self) -> bool {
        let done = |c: &Closing| c.stage == Stage::Cleaning && c.left.is_empty();
        self.closing.as_ref().is_some_and(done)
    }

    fn propose_close(&mut self) {
        let txn = self.cas.next_txn(self.params.instance);
        if let Some(next) = self.cas.record().map(|r| r.close(txn)) {
            self.propose(Change::Close, next);
        }
    }

    /// Is nothing under way that changes members?
    fn is_quiet(&self) -> bool {
        // A block may be on its way to a member that a resync given up meanwhile found bad there.
        let members = self.members();
        let written = self.calls.values().any(|call| call.mutates && members.contains(&call.rid));
        self.guests.is_empty() && self.ops.len() == 0 && self.mending.is_idle() && !written
    }

    /// Asks every member for the same, as the next step.
    fn close_step(&mut self, stage: Stage, request: &Request) {
        let left: BTreeSet<ReplicaId> = self.members().into_iter().collect();
        let Some(closing) = &mut self.closing else { return };
        *closing = Closing { stage, step: closing.step + 1, left: left.clone() };
        let step = closing.step;
        for rid in left {
            self.call(rid, Purpose::Close(step), false, request.clone());
        }
    }

    pub(super) fn on_close_step(&mut self, rid: ReplicaId, step: u64) {
        if let Some(closing) = self.closing.as_mut().filter(|c| c.step == step) {
            closing.left.remove(&rid);
        }
    }

    /// T8 is in force.
    pub(super) fn on_closed(&mut self) {
        self.set_phase(Phase::Closed);
        self.stop(GuestError::Closing);
    }
}
