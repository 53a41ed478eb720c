//! Taking back a proposal whose reason is gone (T5): while the record store is away, the member
//! that was to be removed may come back, or the one that was to stay may be lost. A change that
//! comes true only then would name a copy that nobody can reach, and leave out the one that is
//! there.
//!
//! What surely was not written is dropped at once, and decided anew. What may have been written,
//! or may still be, counts until it is known; a put of the record as it is, under the same
//! revision, makes sure that it is not.

use super::{Asking, Change, Proposal};
use crate::id::{ReplicaId, Revision};
use crate::planted::Bug;
use crate::primary::{Effect, MetaOp, Primary};

impl Primary {
    /// Nobody says whether the last put was or will be applied.
    pub(super) fn doubt_proposal(&mut self) {
        if let Some(proposal) = &mut self.cas.proposal {
            proposal.doubtful = true;
        }
    }

    /// The store could not be asked. A proposal that no put of can ever be applied is dropped:
    /// whether it is still wanted is decided when the record can be read again. A claim rests on
    /// nothing that could change.
    pub(super) fn drop_unwritten(&mut self) {
        let idle = |p: &&Proposal| !p.doubtful && p.change != Change::Claim;
        // What is acknowledged too early has to rest on a proposal for a while to be seen.
        let keeps = self.has(Bug::KeepProposal) || self.has(Bug::AckBeforeRemoval);
        if self.cas.proposal.as_ref().filter(idle).is_none() || keeps {
            return;
        }
        let Some(proposal) = self.cas.proposal.take() else { return };
        if proposal.change == Change::Open {
            // What ended meanwhile could not be heeded: the opening might have been in force.
            proposal.shaken.into_iter().for_each(|rid| self.promotion_lost(rid));
        }
        self.after_change();
    }

    /// Would it be proposed again now?
    pub(super) fn is_still_wanted(&self, change: &Change) -> bool {
        let wanted = match change {
            // What a member was extended to it stays.
            Change::Claim | Change::Expand => true,
            Change::Open => self.proposed_members().any(|rid| self.is_serving(rid)),
            Change::Remove(rid) if self.is_releasing(*rid) => self.may_release(*rid),
            Change::Remove(rid) => self.is_lost(*rid) && self.is_served_without_lost(),
            Change::Add(rid) => {
                let leaves = self.members().into_iter();
                let mut leaves = leaves.filter(|m| !self.proposed_members().any(|p| p == *m));
                self.is_ready(*rid) && leaves.all(|rid| self.is_lost(rid))
            }
            Change::Close => self.is_cleaned(),
        };
        wanted || self.has(Bug::KeepProposal)
    }

    fn proposed_members(&self) -> impl Iterator<Item = ReplicaId> {
        self.cas.proposed().into_iter().flat_map(|r| r.in_sync()).map(|r| r.rid)
    }

    /// Puts the record in force again instead of a proposal that may still be applied.
    pub(super) fn put_instead(&mut self) {
        let txn = self.cas.next_txn(self.params.instance);
        let Some((record, expected)) = self.cas.in_force.clone() else { return };
        let record = crate::record::Record { txn, ..record };
        if let Some(proposal) = &mut self.cas.proposal {
            proposal.instead = Some(record.clone());
        }
        let token = self.cas.next_token();
        self.cas.asking = Some(Asking::Withdraw(token));
        self.out.push(Effect::Meta { token, op: MetaOp::PutIf { expected, record } });
    }

    /// The proposal can't be applied any more.
    pub(super) fn on_instead(&mut self, revision: Revision) {
        if let Some(Proposal { change, instead: Some(record), .. }) = self.cas.proposal.take() {
            self.cas.in_force = Some((record, revision));
            self.on_abandoned(&change);
        }
    }
}
