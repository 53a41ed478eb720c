//! Another size, larger (T10): every member is extended durably, then the record says so, and only
//! then does the guest see it.

use alloc::vec::Vec;

use super::{Kind, TaskDone, TaskError};
use crate::id::ReplicaId;
use crate::limits;
use crate::message::Request;
use crate::planted::Bug;
use crate::primary::cas::Change;
use crate::primary::{Primary, Purpose};

/// An extension that was asked for. How far it is stands in the sessions, each of which knows the
/// size of its replica.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Resize {
    pub(super) blocks: u64,
}

impl Primary {
    /// The size of a replica with a session, if it told it.
    pub(in crate::primary) fn size_of(&self, rid: ReplicaId) -> Option<u64> {
        self.peers.get(&rid).and_then(|p| p.session()).and_then(|s| s.blocks)
    }

    /// Is this copy known to be shorter than the volume?
    pub(in crate::primary) fn is_short(&self, rid: ReplicaId) -> bool {
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        self.size_of(rid).is_some_and(|blocks| blocks < volume) && !self.has(Bug::AdmitShort)
    }

    /// A copy that is to be brought up has to be as long as the volume first (S1).
    pub(in crate::primary) fn lengthen(&mut self, rid: ReplicaId) {
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        self.ask_to_extend(rid, volume);
    }

    fn ask_to_extend(&mut self, rid: ReplicaId, blocks: u64) {
        if let Some(peer) = self.peers.get_mut(&rid).filter(|peer| peer.extending < blocks) {
            peer.extending = blocks;
            self.ask(rid, Purpose::Extend(blocks), Request::Extend { blocks });
        }
    }

    /// Is another size proposed and not decided?
    pub(super) fn is_expanding(&self) -> bool {
        self.cas.change() == Some(&Change::Expand)
    }

    pub(super) fn drive_resize(&mut self, late: bool) {
        let Some(Kind::Resize(Resize { blocks })) = self.tasks.0.as_ref().map(|t| &t.kind) else {
            return;
        };
        let blocks = *blocks;
        let Some(record) = self.cas.record().cloned() else { return };
        if self.is_expanding() || !self.is_open() {
            return;
        }
        if record.blocks >= blocks {
            return self.end_task(match record.blocks == blocks {
                true => Ok(TaskDone::Resized { blocks }),
                false => Err(TaskError::BadSize),
            });
        }
        if blocks > limits::MAX_VOLUME_BLOCKS {
            return self.end_task(Err(TaskError::BadSize));
        }
        let required = self.required();
        let up: Vec<ReplicaId> =
            required.iter().copied().filter(|rid| self.is_serving(*rid)).collect();
        if let Some(old) = up.iter().find(|rid| !self.is_of_today(**rid)) {
            return self.end_task(Err(TaskError::TooOld(*old)));
        }
        let short = |rid: &ReplicaId| self.size_of(*rid).is_none_or(|size| size < blocks);
        let left: Vec<ReplicaId> = required.iter().copied().filter(short).collect();
        if let Some(rid) = left.first().filter(|_| late) {
            return self.end_task(Err(TaskError::Missing(*rid)));
        }
        // The target, too, so that its resync need not begin anew.
        let target = self.resync_target().filter(|rid| self.is_of_today(*rid));
        for rid in up.into_iter().chain(target) {
            if self.size_of(rid).is_some_and(|size| size < blocks) {
                self.ask_to_extend(rid, blocks);
            }
        }
        let ready = left.is_empty() || self.has(Bug::ExpandUnextended);
        if ready && self.cas.is_free() {
            let txn = self.cas.next_txn(self.params.instance);
            self.propose(Change::Expand, record.expand(blocks, txn));
        }
    }

    /// It is that long, durably.
    pub(in crate::primary) fn on_extended(&mut self, rid: ReplicaId, blocks: u64) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.extended(blocks);
        }
    }

    pub(super) fn on_not_extended(&mut self, rid: ReplicaId, error: TaskError) {
        if !self.is_required(rid) {
            // It is asked again in its next session.
            return self.fail_peer(rid);
        }
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.extending = 0;
        }
        let resizes = matches!(self.tasks.0.as_ref().map(|t| &t.kind), Some(Kind::Resize(_)));
        if resizes && !self.is_expanding() {
            self.end_task(Err(error));
        }
    }

    /// T10 is in force.
    pub(in crate::primary) fn on_expanded(&mut self) {
        if let Some(blocks) = self.cas.record().map(|r| r.blocks)
            && matches!(self.tasks.0.as_ref().map(|t| &t.kind), Some(Kind::Resize(_)))
        {
            self.end_task(Ok(TaskDone::Resized { blocks }));
        }
        // It would be shorter than the volume when it joins.
        let may_stay = |rid| !self.is_short(rid) && self.is_within_reach(rid);
        if !self.resync_target().is_none_or(may_stay) {
            self.abort_resync();
        }
        self.announce_gen();
        self.close_lost();
    }
}
