//! Why a primary stopped for good, and the record store that was put back to an older state:
//! that is proven, noted in the record if possible, and never "mended" by a machine.

use super::{Effect, MetaOp, Phase, Primary};
use crate::guest::GuestError;
use crate::id::{Epoch, Gen, Revision};
use crate::record::Record;

/// Why a primary was fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// Another claim is in force.
    TakenOver,
    /// The volume was deleted.
    Deleted,
    /// Every copy that answers lost power while the device was in use (G4).
    DataLost,
    /// No generation or epoch is left to count on with: this history of the volume has ended.
    UsedUp,
    /// The record store shows an older state than one that was in force.
    RecordPutBack {
        /// An epoch that was in force.
        epoch: Epoch,
        /// A generation that was in force; 0 if only the epoch proves it.
        r#gen: Gen,
    },
}

impl Primary {
    /// Taken over elsewhere, or unable to go on: every request fails with EIO at once, and nothing
    /// is tried again.
    pub(super) fn fence(&mut self, why: Stop) {
        if self.is_over() {
            return;
        }
        self.stopped = Some(why);
        self.set_phase(Phase::Fenced);
        self.stop(GuestError::Fenced);
    }

    /// A replica promised a newer epoch than ours. A volume in use has been taken over. One that
    /// is being claimed may meet promises that its record knows nothing of: the record that is
    /// read from now on tells which.
    pub(super) fn on_outbid(&mut self, promised: Epoch) {
        if self.is_open() {
            return self.fence(Stop::TakenOver);
        }
        if self.outbid < Some(promised) {
            (self.outbid, self.asked_since) = (Some(promised), false);
        }
        self.cas_refresh();
    }

    /// Does this record, read linearizably just now, come after the one in force, and after every
    /// epoch that was promised? Where not, the record store was put back.
    pub(super) fn put_back_by(&self, record: &Record) -> Option<Stop> {
        let known = self.cas.record().map(|r| (r.epoch, r.r#gen));
        if let Some((epoch, r#gen)) = known.filter(|k| *k > (record.epoch, record.r#gen)) {
            return Some(Stop::RecordPutBack { epoch, r#gen });
        }
        let ours = record.primary.as_ref().is_some_and(|p| p.instance == self.params.instance);
        // Two claims of one epoch were never in force in one history.
        let proves = |epoch: &Epoch| *epoch > record.epoch || (*epoch == record.epoch && ours);
        let epoch = self.outbid.filter(proves).filter(|_| self.asked_since)?;
        Some(Stop::RecordPutBack { epoch, r#gen: Gen(0) })
    }

    /// A member of a generation that the record has not reached yet (`MetadataRollback`).
    pub(super) fn is_ahead_of_record(&mut self, member_gen: Gen) -> bool {
        let Some((record, revision)) = self.cas.in_force() else { return false };
        if member_gen <= record.r#gen {
            return false;
        }
        let stop = Stop::RecordPutBack { epoch: record.epoch, r#gen: member_gen };
        let (record, revision) = (record.clone(), revision);
        self.fence_put_back(stop, &record, revision);
        true
    }

    /// Stops, and leaves a mark in the record so that later claims do not count up until they
    /// pass the promises that prove it. If the mark can't be made, the next claim tries again.
    pub(super) fn fence_put_back(&mut self, why: Stop, record: &Record, revision: Revision) {
        let txn = self.cas.next_txn(self.params.instance);
        let record = record.mark_put_back(why.epoch(), txn);
        let token = self.cas.next_token();
        self.out.push(Effect::Meta { token, op: MetaOp::PutIf { expected: revision, record } });
        self.fence(why);
    }
}

impl Stop {
    /// The epoch that was in force, where that matters.
    fn epoch(self) -> Epoch {
        match self {
            Self::RecordPutBack { epoch, .. } => epoch,
            Self::TakenOver | Self::Deleted | Self::DataLost | Self::UsedUp => Epoch(0),
        }
    }
}
