//! The lease for reads (G1): a primary that was cut off must not answer from a copy that its
//! successor has left behind. `docs/adr/0007-read-lease.md`.
//!
//! A read is served while every member of every record version that may be in force has answered
//! a request that was *sent* within the last [`limits::LEASE_MS`]. A new primary, in turn, does
//! not open before a lease that it can't know of has run out.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Phase, Primary, Purpose};
use crate::id::{Epoch, ReplicaId, Tick};
use crate::limits;
use crate::message::{Promised, Request};
use crate::planted::Bug;
use crate::record::Record;

/// The leases that primaries of older epochs may hold, as far as a promotion has to wait for them.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct OldLease {
    /// Is there a primary that opened and did not close?
    possible: bool,
    /// Members that promised our epoch, and when no lease can hang on their earlier answers.
    over: BTreeMap<ReplicaId, Tick>,
}

impl Primary {
    /// May a read be served now? If not, or not for much longer, the members are asked for the
    /// answer that renews the lease.
    pub(super) fn may_read(&mut self) -> bool {
        if self.params.planted.has(Bug::NoReadLease) {
            return true;
        }
        let members = self.members_in_force();
        if members.len() < 2 {
            // Whoever takes over needs the promise of the very member that is going to be asked.
            return true;
        }
        let age = |rid: &ReplicaId| {
            let renewed = self.peers.get(rid).and_then(super::Peer::renewed_at);
            renewed.map(|at| self.now.ms_since(at))
        };
        let ages: Vec<_> = members.into_iter().map(|rid| (rid, age(&rid))).collect();
        for (rid, _) in ages.iter().filter(|(_, age)| age.is_none_or(|a| a >= limits::RENEW_MS)) {
            self.ask_to_renew(*rid);
        }
        ages.iter().all(|(_, age)| age.is_some_and(|a| a < limits::LEASE_MS))
    }

    /// At most one such question is under way to each member.
    fn ask_to_renew(&mut self, rid: ReplicaId) {
        let serving = self.is_serving(rid);
        if let Some(peer) = self.peers.get_mut(&rid).filter(|p| serving && !p.renewing) {
            peer.renewing = true;
            self.call(rid, Purpose::Renew, false, Request::Renew);
        }
    }

    pub(super) fn on_renewed(&mut self, rid: ReplicaId) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.renewing = false;
        }
    }

    /// A claim is about to be made on the record in force: who may still be reading? Not a primary
    /// that opened last and was on this node: it is this one, or it ended before this one began.
    pub(super) fn note_old_lease(&mut self) {
        let node = &self.params.node;
        let here = |r: &Record| {
            r.open_epoch == r.epoch && r.primary.as_ref().is_some_and(|p| p.node == *node)
        };
        let serves = |r: &Record| !r.clean && r.open_epoch > Epoch(0) && !here(r);
        let possible = self.cas.record().is_some_and(serves);
        self.old_lease = OldLease { possible, over: BTreeMap::new() };
    }

    /// A replica promised: from then on it answers nobody older. One that speaks the first
    /// version of the protocol does not say when it last did.
    pub(super) fn note_promise(&mut self, rid: ReplicaId, promised: &Promised) {
        if self.phase != Phase::Recovering {
            return;
        }
        let silent_ms = promised.silent_ms.map_or(0, u64::from);
        let at = self.now.plus_ms(limits::LEASE_WAIT_MS.saturating_sub(silent_ms));
        let over = self.old_lease.over.entry(rid).or_insert(at);
        *over = at.min(*over);
    }

    /// May a primary of an older epoch be answering reads? Not if all members of the record that
    /// was claimed have promised, since none of them would read for it; nor if one of them has
    /// answered nothing older for long enough, since a lease needs the answers of all.
    pub(super) fn is_read_elsewhere(&self) -> bool {
        let over = |rid: &ReplicaId| self.old_lease.over.get(rid);
        let members = self.members();
        let all = members.iter().all(|rid| over(rid).is_some());
        let one = members.iter().filter_map(over).any(|at| *at <= self.now);
        self.old_lease.possible && !all && !one && !self.params.planted.has(Bug::NoLeaseWait)
    }

    /// When the opening need not wait for older leases any more.
    pub(super) fn old_lease_due(&self) -> Option<Tick> {
        if self.phase != Phase::Recovering || !self.is_read_elsewhere() {
            return None;
        }
        let members = self.members();
        members.iter().filter_map(|rid| self.old_lease.over.get(rid)).min().copied()
    }
}
