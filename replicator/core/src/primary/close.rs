//! Detaching in good order (T8): nothing in flight, everything durable, activity logs empty.

use alloc::collections::BTreeSet;

use super::cas::Change;
use super::{Phase, Primary, Purpose};
use crate::guest::GuestError;
use crate::id::ReplicaId;
use crate::message::Request;

/// Where a detach is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Closing {
    /// Requests are being finished.
    Draining,
    /// Members that have not flushed yet.
    Flushing(BTreeSet<ReplicaId>),
    /// Members whose activity log is not empty yet.
    Cleaning(BTreeSet<ReplicaId>),
}

impl Primary {
    pub(super) fn on_close(&mut self) {
        match self.phase {
            Phase::Active | Phase::Suspended => {
                self.abort_resync();
                self.set_phase(Phase::Draining);
                self.closing = Some(Closing::Draining);
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
        if self.closing.is_some() {
            self.closing = Some(Closing::Draining);
        }
    }

    pub(super) fn drive_close(&mut self) {
        if self.phase != Phase::Draining {
            return;
        }
        let Some(closing) = self.closing.clone() else { return };
        let ready = self.cas.is_free() && self.members().iter().all(|rid| self.is_serving(*rid));
        match closing {
            _ if !ready => {}
            Closing::Draining if self.guests.is_empty() && self.ops.len() == 0 => {
                self.close_calls(true);
            }
            Closing::Flushing(left) if left.is_empty() => {
                self.note_watermark();
                self.close_calls(false);
            }
            Closing::Cleaning(left) if left.is_empty() => {
                let txn = self.cas.next_txn(self.params.instance);
                if let Some(next) = self.cas.record().map(|r| r.close(txn)) {
                    self.propose(Change::Close, next);
                }
            }
            Closing::Draining | Closing::Flushing(_) | Closing::Cleaning(_) => {}
        }
    }

    /// Flushes every member, then empties every member's log.
    fn close_calls(&mut self, flush: bool) {
        let members: BTreeSet<ReplicaId> = self.members().into_iter().collect();
        self.closing = Some(match flush {
            true => Closing::Flushing(members.clone()),
            false => Closing::Cleaning(members.clone()),
        });
        for rid in members {
            if flush {
                self.call(rid, Purpose::CloseFlush, false, Request::Flush);
            } else {
                self.call(rid, Purpose::CloseLog, false, Request::Close);
            }
        }
    }

    pub(super) fn on_close_step(&mut self, rid: ReplicaId) {
        if let Some(Closing::Flushing(left) | Closing::Cleaning(left)) = &mut self.closing {
            left.remove(&rid);
        }
    }

    /// T8 is in force.
    pub(super) fn on_closed(&mut self) {
        self.set_phase(Phase::Closed);
        self.stop(GuestError::Closing);
    }
}
