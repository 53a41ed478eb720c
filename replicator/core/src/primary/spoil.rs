//! Planted bugs that spoil a record before it is proposed.

use uuid::Uuid;

use super::Primary;
use crate::id::ReplicaId;
use crate::planted::Bug;
use crate::record::{Record, ReplicaState};

impl Primary {
    /// What is proposed instead of `next`: itself, unless a rule is to be broken.
    pub(super) fn spoiled(&self, mut next: Record) -> Record {
        let (high, raise) = (self.has(Bug::SinceTooHigh), self.has(Bug::RaiseSince));
        let Some(now) = self.cas.record().filter(|_| high || raise) else { return next };
        for replica in &mut next.replicas {
            let ReplicaState::Out { since, .. } = &mut replica.state else { continue };
            let newly_out = now.is_in_sync(replica.rid);
            if newly_out && high {
                *since = since.next();
            } else if !newly_out && raise {
                *since = next.r#gen;
            }
        }
        next
    }

    /// T5 without a look at the minimum, if that is the rule to break.
    pub(super) fn removed_below_min(
        &self,
        record: &Record,
        rid: ReplicaId,
        txn: Uuid,
    ) -> Option<Record> {
        let weak = Record { min_in_sync: 1, ..record.clone() };
        let next = weak.remove(rid, txn).filter(|_| self.has(Bug::RemoveBelowMin))?;
        Some(Record { min_in_sync: record.min_in_sync, ..next })
    }
}
