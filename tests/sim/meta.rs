//! The record store: one record behind compare-and-swap, linearizable, with its whole history.

use lockstep_core::id::Revision;
use lockstep_core::record::Record;

/// The record with its revision.
#[derive(Clone, Debug)]
pub struct Meta {
    record: Record,
    revision: u64,
    /// It can't be reached before then.
    pub down_until: u64,
    /// It answers slowly before then.
    pub slow_until: u64,
    /// Somebody else is always first before then.
    pub storm_until: u64,
}

impl Meta {
    /// A store that holds `record`.
    #[must_use]
    pub fn new(record: Record) -> Self {
        Self { record, revision: 1, down_until: 0, slow_until: 0, storm_until: 0 }
    }

    /// The record in force.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// Puts `record` if the revision is still `expected`; answers the one that it replaced.
    pub fn put_if(&mut self, expected: Revision, record: Record) -> Option<Record> {
        if expected.0 != self.revision {
            return None;
        }
        self.revision += 1;
        Some(std::mem::replace(&mut self.record, record))
    }
}
