//! The dialogue with the record store: one proposal at a time, decided by re-reading when its
//! outcome is unknown. Until it is decided, both versions count as in force (rule m1, m10).

mod withdraw;

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{Effect, MetaOp, MetaResult, Phase, Primary, Stop};
use crate::alike::Aside;
use crate::id::{Epoch, Gen, InstanceId, ReplicaId, Revision, Tick, Token};
use crate::limits;
use crate::planted::Bug;
use crate::record::{PrimaryRef, Record};
use uuid::Uuid;

/// What a proposal is meant to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Change {
    /// T3.
    Claim,
    /// T4.
    Open,
    /// T5.
    Remove(ReplicaId),
    /// T6, or T7 when a failed member leaves in the same step.
    Add(ReplicaId),
    /// T8.
    Close,
    /// T10.
    Expand,
}

/// A record proposed and not decided.
#[derive(Clone, Debug, Hash)]
struct Proposal {
    change: Change,
    record: Record,
    /// May a put of it have been, or still be, applied?
    doubtful: bool,
    /// Whose sessions ended since it was proposed.
    shaken: BTreeSet<ReplicaId>,
    /// What is put instead, so that it can never be applied any more: the record in force.
    instead: Option<Record>,
}

/// What is asked of the store right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asking {
    Get(Token),
    Put(Token),
    /// The same as it is, with nothing but another revision.
    Withdraw(Token),
    /// Ask again at this time.
    Later(Tick),
}

/// The record in force and the dialogue about the next one.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Cas {
    in_force: Option<(Record, Revision)>,
    /// Our claim is in force.
    claimed: bool,
    proposal: Option<Proposal>,
    asking: Option<Asking>,
    /// The record should be read again when there is nothing else to ask.
    stale: bool,
    tokens: Aside<u64>,
    txns: Aside<u128>,
}

impl Cas {
    /// The record in force, as far as known.
    pub(super) fn record(&self) -> Option<&Record> {
        self.in_force.as_ref().map(|(record, _)| record)
    }

    /// The record in force with its revision.
    pub(super) fn in_force(&self) -> Option<(&Record, Revision)> {
        self.in_force.as_ref().map(|(record, revision)| (record, *revision))
    }

    /// The record in force if our claim is.
    pub(super) fn claimed(&self) -> Option<&Record> {
        self.record().filter(|_| self.claimed)
    }

    /// The record that may or may not be in force already.
    pub(super) fn proposed(&self) -> Option<&Record> {
        self.proposal.as_ref().map(|p| &p.record)
    }

    /// What the undecided proposal is meant to do.
    pub(super) fn change(&self) -> Option<&Change> {
        self.proposal.as_ref().map(|p| &p.change)
    }

    /// Was nothing asked yet?
    pub(super) fn is_new(&self) -> bool {
        self.in_force.is_none() && self.asking.is_none()
    }

    /// Can a change be proposed?
    pub(super) fn is_free(&self) -> bool {
        self.proposal.is_none() && self.asking.is_none() && self.claimed
    }

    /// When to ask again.
    pub(super) fn retry_at(&self) -> Option<Tick> {
        match self.asking {
            Some(Asking::Later(at)) => Some(at),
            Some(Asking::Get(_) | Asking::Put(_) | Asking::Withdraw(_)) | None => None,
        }
    }

    /// Is there something to be learned from the record that is not asked for yet?
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// A session ended: a proposal may have rested on it.
    pub(super) fn shake(&mut self, rid: ReplicaId) {
        if let Some(proposal) = &mut self.proposal {
            proposal.shaken.insert(rid);
        }
    }

    pub(super) fn next_token(&mut self) -> Token {
        *self.tokens += 1;
        Token(*self.tokens)
    }

    /// A transaction id: the claim's own random id plus a count.
    pub(super) fn next_txn(&mut self, instance: InstanceId) -> Uuid {
        *self.txns += 1;
        Uuid::from_u128(instance.0.as_u128().wrapping_add(*self.txns))
    }
}

impl Primary {
    /// Reads the record as soon as nothing else is asked.
    pub(super) fn cas_refresh(&mut self) {
        self.cas.stale = true;
    }

    /// Proposes the next record. Nothing else may be undecided.
    pub(super) fn propose(&mut self, change: Change, record: Record) {
        assert!(self.cas.proposal.is_none(), "two changes of the record at once");
        if record.validate().is_err() && !self.has(Bug::RemoveBelowMin) {
            return self.fence(Stop::UsedUp);
        }
        let record = self.spoiled(record);
        let (doubtful, shaken, instead) = (false, BTreeSet::new(), None);
        self.cas.proposal = Some(Proposal { change, record, doubtful, shaken, instead });
        self.put_proposal();
    }

    fn put_proposal(&mut self) {
        let expected = self.cas.in_force.as_ref().map(|(_, revision)| *revision);
        let record = self.cas.proposal.as_ref().map(|p| p.record.clone());
        if let (Some(expected), Some(record)) = (expected, record) {
            let token = self.cas.next_token();
            self.cas.asking = Some(Asking::Put(token));
            self.out.push(Effect::Meta { token, op: MetaOp::PutIf { expected, record } });
        }
    }

    fn get_record(&mut self) {
        let token = self.cas.next_token();
        self.cas.asking = Some(Asking::Get(token));
        (self.cas.stale, self.asked_since) = (false, true);
        self.out.push(Effect::Meta { token, op: MetaOp::Get });
    }

    pub(super) fn drive_cas(&mut self) {
        match self.cas.asking {
            Some(Asking::Later(at)) if at <= self.now => self.get_record(),
            None if self.cas.stale => self.get_record(),
            Some(_) | None => {}
        }
    }

    pub(super) fn on_meta(&mut self, token: Token, result: MetaResult) {
        let asked = self.cas.asking;
        let expected = match asked {
            Some(Asking::Get(t) | Asking::Put(t) | Asking::Withdraw(t)) => t == token,
            Some(Asking::Later(_)) | None => false,
        };
        if !expected {
            return;
        }
        self.cas.asking = None;
        match result {
            MetaResult::Written(revision) if asked == Some(Asking::Withdraw(token)) => {
                self.on_instead(revision);
            }
            MetaResult::Written(revision) => self.on_written(revision),
            MetaResult::Unknown => {
                self.doubt_proposal();
                self.get_record();
            }
            MetaResult::Conflict => self.get_record(),
            MetaResult::Read(Some((record, revision))) => {
                self.on_record(record, revision);
                self.admit_proven();
            }
            // The volume was deleted under us.
            MetaResult::Read(None) => self.fence(Stop::Deleted),
            MetaResult::Unavailable => {
                let at = self.now.plus_ms(limits::CAS_RETRY_MS);
                self.cas.asking = Some(Asking::Later(at));
                self.drop_unwritten();
            }
        }
    }

    fn on_written(&mut self, revision: Revision) {
        if let Some(Proposal { change, record, .. }) = self.cas.proposal.take() {
            self.cas.in_force = Some((record, revision));
            self.on_changed(&change);
        }
    }

    /// The record as it stands decides the proposal, if there is one.
    fn on_record(&mut self, record: Record, revision: Revision) {
        if let Some(stop) = self.put_back_by(&record) {
            return self.fence_put_back(stop, &record, revision);
        }
        let serves = self.cas.in_force.is_some() && self.has(Bug::ServePutBack);
        if record.put_back > Epoch(0) && !serves {
            // An administrator has to decide; a claim would count up to what proves it. Whoever
            // serves by this record has been overtaken by what it forgot.
            let stop = Stop::RecordPutBack { epoch: record.put_back, r#gen: Gen(0) };
            self.cas.in_force = Some((record, revision));
            return self.fence(stop);
        }
        let Some(proposal) = self.cas.proposal.clone() else {
            return self.on_refreshed(record, revision);
        };
        if self.is_applied(&proposal, &record) {
            self.cas.proposal = None;
            self.cas.in_force = Some((record, revision));
            return self.on_changed(&proposal.change);
        }
        if self.has(Bug::OverwriteRecord) && self.cas.claimed {
            self.cas.in_force = self.cas.in_force.take().map(|(known, _)| (known, revision));
            return self.put_proposal();
        }
        if self.is_deposed_by(&record) {
            return self.fence(Stop::TakenOver);
        }
        let same = self.cas.in_force.as_ref().is_some_and(|(_, r)| *r == revision);
        if same && !self.has(Bug::ForgetLateCas) {
            // Not applied so far; it may still be. Putting the same record under the same
            // revision again is harmless either way.
            return match self.is_still_wanted(&proposal.change) {
                true => self.put_proposal(),
                false => self.put_instead(),
            };
        }
        // Somebody else changed the record: ours can never be applied any more.
        self.cas.proposal = None;
        self.cas.in_force = Some((record, revision));
        self.on_abandoned(&proposal.change);
    }

    fn is_applied(&self, proposal: &Proposal, record: &Record) -> bool {
        let ours = record.primary == proposal.record.primary;
        let epoch = record.epoch == proposal.record.epoch;
        match proposal.change {
            Change::Claim => ours && epoch,
            // Only we raise the generation within our epoch.
            Change::Open | Change::Remove(_) | Change::Add(_) | Change::Expand => {
                ours && epoch && record.r#gen >= proposal.record.r#gen
            }
            Change::Close => ours && epoch && record.clean,
        }
    }

    /// Is another claim in force than the one we hold or are after?
    fn is_deposed_by(&self, record: &Record) -> bool {
        let known = self.cas.record().map(|r| r.epoch).unwrap_or_default();
        if !self.cas.claimed {
            return record.epoch != known;
        }
        let me = record.primary.as_ref().is_some_and(|p| p.instance == self.params.instance);
        record.epoch != known || !me
    }

    /// A record read without a proposal: the first one, or one that somebody else changed.
    fn on_refreshed(&mut self, record: Record, revision: Revision) {
        let first = self.cas.in_force.is_none();
        if !first && self.is_deposed_by(&record) {
            return self.fence(Stop::TakenOver);
        }
        self.cas.in_force = Some((record, revision));
        if first {
            self.claim();
        } else if self.cas.claimed {
            self.update_peers();
        }
    }

    /// T3: one more epoch, ours.
    pub(super) fn claim(&mut self) {
        self.note_old_lease();
        let txn = self.cas.next_txn(self.params.instance);
        let node = self.params.node.clone();
        let primary = PrimaryRef { node, instance: self.params.instance };
        let Some(record) = self.cas.record().map(|r| r.claim(primary, txn)) else { return };
        self.propose(Change::Claim, record);
    }

    /// A proposal is in force.
    fn on_changed(&mut self, change: &Change) {
        match change {
            Change::Claim => {
                self.cas.claimed = true;
                self.set_phase(Phase::Recovering);
                self.update_peers();
                self.restart_sessions();
            }
            Change::Open => self.on_opened(),
            Change::Remove(rid) => self.on_removed(*rid),
            Change::Add(rid) => self.on_added(*rid),
            Change::Close => self.on_closed(),
            Change::Expand => self.on_expanded(),
        }
        self.after_change();
    }

    /// A proposal will never be in force; the record in force is newer than the one it built on.
    pub(super) fn on_abandoned(&mut self, change: &Change) {
        match change {
            Change::Claim => {
                if self.cas.claimed {
                    self.update_peers();
                }
                return self.claim();
            }
            Change::Open => self.restart_promotion(),
            Change::Remove(_) | Change::Add(_) | Change::Close | Change::Expand => {}
        }
        self.after_change();
    }

    /// The record in force is another one: whoever is no member in it may come back as a target,
    /// in a session that begins with what it has now.
    pub(super) fn after_change(&mut self) {
        if self.is_over() {
            return;
        }
        self.update_peers();
        let required = self.required();
        let target = self.resync_target();
        let others: Vec<ReplicaId> =
            self.peers.keys().copied().filter(|rid| !required.contains(rid)).collect();
        for rid in others.into_iter().filter(|rid| Some(*rid) != target) {
            let renews = !self.has(Bug::DirtyResync);
            if renews && self.is_open() && self.peers[&rid].is_dirty() {
                self.renew_session(rid);
            }
            self.forget_acks(rid);
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.forgive();
            }
        }
        self.sweep_ops();
    }

    /// The members of every version of the record that may be in force.
    pub(super) fn members_in_force(&self) -> Vec<ReplicaId> {
        let now = self.cas.record().into_iter().flat_map(Record::in_sync);
        let forgets =
            matches!(self.cas.change(), Some(Change::Add(_))) && self.has(Bug::ForgetPendingAdd);
        let next = self.cas.proposed().filter(|_| !forgets);
        let next = next.into_iter().flat_map(Record::in_sync);
        let mut rids: Vec<ReplicaId> = now.chain(next).map(|r| r.rid).collect();
        rids.sort_unstable();
        rids.dedup();
        rids
    }
}
