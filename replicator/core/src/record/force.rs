//! T11: going on from one copy that is chosen by an administrator, when the in-sync set is lost
//! for good, or the record store was put back.

use alloc::boxed::Box;
use alloc::vec;
use uuid::Uuid;

use super::{Forced, RECORD_VERSION, Record, RecordError, ReplicaState};
use crate::id::{Epoch, Gen, Lineage, ReplicaId};

/// What generations are raised by when nobody knows how many the record has forgotten.
const FORGOTTEN_GENS: u32 = 1 << 20;

/// What the chosen copy has seen, which the record may have forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which copy.
    pub replica: ReplicaId,
    /// The history that it belongs to: not that of the record, if the record store was put back to
    /// before an earlier recovery, or if the copy has not promised since.
    pub lineage: Lineage,
    /// The epoch that it promised.
    pub promised: Epoch,
    /// The highest generation that it has seen since it was opened.
    pub r#gen: Gen,
}

impl Record {
    /// T11: a new history that begins with the chosen copy as it is. All others are dropped: none
    /// of them may ever be taken for one of this history. Each write needs this copy alone, until
    /// others are built and the fewest is raised again.
    ///
    /// # Errors
    /// If there is no such copy, or it is empty.
    pub fn force(&self, chosen: Chosen, lineage: Lineage, txn: Uuid) -> Result<Self, RecordError> {
        let found = self.replica(chosen.replica).cloned();
        let mut entry = found.ok_or(RecordError::Invalid("no such replica"))?;
        if entry.state == ReplicaState::New {
            return Err(RecordError::Invalid("the replica was never filled"));
        }
        let lost = self.in_sync().filter(|r| r.rid != entry.rid);
        let forced = Forced {
            parent: chosen.lineage,
            replica: entry.rid,
            since: entry.state.since(),
            lost: lost.map(|r| (r.rid, r.node.clone())).collect(),
            acknowledged: false,
        };
        entry.state = ReplicaState::InSync;
        let forgotten = if self.put_back > Epoch(0) { FORGOTTEN_GENS } else { 0 };
        let r#gen = self.r#gen.max(chosen.r#gen).0.saturating_add(forgotten);
        // Above all that is promised: the next claim is newer than any before. What others say may
        // be out of range, and is refused below.
        let epoch = self.epoch.max(chosen.promised).max(self.put_back);
        let next = Self {
            version: RECORD_VERSION,
            lineage,
            min_in_sync: 1,
            epoch: Epoch(epoch.0.saturating_add(1)),
            r#gen: Gen(r#gen.saturating_add(1)),
            open_epoch: Epoch(0),
            primary: None,
            clean: false,
            replicas: vec![entry],
            put_back: Epoch(0),
            forced: Some(Box::new(forced)),
            txn,
            ..self.clone()
        };
        next.validate()?;
        Ok(next)
    }

    /// The loss that a forced recovery may have meant is known to its owner.
    #[must_use]
    pub fn acknowledge_loss(&self, txn: Uuid) -> Self {
        let mut next = Self { txn, ..self.clone() };
        if let Some(forced) = &mut next.forced {
            forced.acknowledged = true;
        }
        next
    }
}
