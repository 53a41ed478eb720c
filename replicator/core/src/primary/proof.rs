//! A member that was restarted may have forgotten a promise, if its files were put back to an older
//! image while it was down (R7). What an overtaken primary knows of the record does not prove that
//! promise. So before a restarted member is resumed, the record is read: if our claim is in force
//! after the member has promised, nobody newer can have its promise, and whoever claims from now on
//! has to ask it.

use alloc::vec::Vec;

use super::Primary;
use crate::id::ReplicaId;
use crate::message::Promised;
use crate::planted::Bug;

impl Primary {
    /// Is the promise of a member held back until the record was read?
    pub(super) fn holds_back(&mut self, rid: ReplicaId, promised: &Promised) -> bool {
        // One that is unclean goes out, which takes a change of the record.
        let resumes = self.is_open() && self.is_required(rid) && !promised.unclean;
        let known = self.peers.get(&rid).is_some_and(|p| p.knows(promised.incarnation));
        if !resumes || known || self.has(Bug::ResumeUnproven) {
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.hold(promised.clone());
        }
        self.cas_refresh();
        true
    }

    /// The record was read, and nobody else is named in it.
    pub(super) fn admit_proven(&mut self) {
        if self.cas.is_stale() || self.is_over() {
            return;
        }
        let held = |(rid, peer): (&ReplicaId, &mut super::Peer)| Some((*rid, peer.take_held()?));
        let held: Vec<(ReplicaId, Promised)> = self.peers.iter_mut().filter_map(held).collect();
        for (rid, promised) in held {
            self.on_session(rid, promised);
        }
    }
}
