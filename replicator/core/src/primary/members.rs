//! Members that fail: removed by T5 before anything is acknowledged without them, or, where too
//! few would be left, awaited in suspension and brought back by a promotion in place.

use alloc::vec::Vec;

use super::cas::Change;
use super::{Phase, Primary};
use crate::id::{ReplicaId, Tick};

impl Primary {
    /// Members of the record in force.
    pub(super) fn members(&self) -> Vec<ReplicaId> {
        self.cas.record().into_iter().flat_map(|r| r.in_sync()).map(|r| r.rid).collect()
    }

    /// When the next lost or silent replica has consequences.
    pub(super) fn member_due(&self) -> Option<Tick> {
        if !self.is_open() {
            return self.silent_due();
        }
        let later = |at: &Tick| *at > self.now;
        let required = self.required();
        let peers = required.iter().filter_map(|rid| self.peers.get(rid));
        let members = peers.filter_map(|p| p.fails_at()).filter(later).min();
        members.into_iter().chain(self.silent_due()).min()
    }

    /// When the next session that owes an answer counts as hung.
    fn silent_due(&self) -> Option<Tick> {
        let up = self.peers.values().filter(|p| p.is_up() && !p.has_failed());
        up.filter_map(|p| p.fails_at()).filter(|at| *at > self.now).min()
    }

    /// Has this replica been lost or silent for too long?
    pub(super) fn is_lost(&self, rid: ReplicaId) -> bool {
        let peer = self.peers.get(&rid);
        peer.is_none_or(|p| p.fails_at().is_some_and(|at| at <= self.now))
    }

    /// Is a member missing beyond its grace?
    pub(super) fn is_suspended(&self) -> bool {
        self.required().iter().any(|rid| self.is_lost(*rid))
    }

    pub(super) fn drive_members(&mut self) {
        self.reset_hung();
        if !self.is_open() || !self.cas.is_free() {
            return;
        }
        let lost: Vec<ReplicaId> =
            self.members().into_iter().filter(|rid| self.is_lost(*rid)).collect();
        let Some(record) = self.cas.record().cloned() else { return };
        let served = self.is_served_without_lost();
        for rid in lost.iter().filter(|_| served) {
            let txn = self.cas.next_txn(self.params.instance);
            let next = record.remove(*rid, txn);
            if let Some(next) = next.or_else(|| self.removed_below_min(&record, *rid, txn)) {
                return self.propose(Change::Remove(*rid), next);
            }
        }
        // A target that is nearly there will take the lost one's place (T7).
        if !lost.is_empty() && self.catching().is_none() && self.can_repromote(&lost) {
            self.repromote();
        }
    }

    /// Whoever stays has to be there: with nobody to serve, nothing is gained by a removal, and
    /// the one that is removed may be the last that ever comes back.
    pub(super) fn is_served_without_lost(&self) -> bool {
        self.members().into_iter().any(|rid| !self.is_lost(rid) && self.is_serving(rid))
    }

    /// A hung disk looks like a dead node: its connection is reset, and it counts as failed.
    fn reset_hung(&mut self) {
        let hung = |rid: &ReplicaId| {
            let peer = self.peers.get(rid);
            peer.is_some_and(|p| p.is_up() && !p.has_failed()) && self.is_lost(*rid)
        };
        let rids: Vec<ReplicaId> = self.peers.keys().copied().filter(hung).collect();
        for rid in rids {
            self.reset_peer(rid);
            self.fail_peer(rid);
        }
    }

    /// Too few members would be left without the lost ones. A promotion in place helps if a lost
    /// one is back (it restarted unclean), or another copy can be brought up.
    fn can_repromote(&self, lost: &[ReplicaId]) -> bool {
        let up = |rid: &ReplicaId| self.peers.get(rid).is_some_and(|p| p.is_up());
        let members = self.members();
        let survivor = members.iter().any(|rid| !lost.contains(rid) && up(rid));
        let back = lost.iter().any(up);
        let spare = self.peers.keys().any(|rid| !members.contains(rid) && up(rid));
        back || (survivor && spare)
    }

    /// T3 again, on the same node, for the same device: what is in flight is done anew after OPEN.
    fn repromote(&mut self) {
        self.abort_resync();
        self.forget_mending();
        self.close_lost();
        self.promotion.begin_live();
        self.set_phase(Phase::Claiming);
        self.claim();
    }

    /// T5 is in force: from now on acknowledgements do without it.
    pub(super) fn on_removed(&mut self, rid: ReplicaId) {
        self.counters.removals += 1;
        if let Some(why) = self.release_reason(rid) {
            self.shun(rid, why);
        }
        self.abort_resync_from(rid);
        self.announce_gen();
        self.close_lost();
    }
}
