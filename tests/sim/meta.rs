//! The record store: one record behind compare-and-swap, linearizable. It keeps bytes.

use lockstep_core::id::Revision;
use lockstep_core::record::Record;

/// The record with its revision.
#[derive(Clone, Debug)]
pub struct Meta {
    /// What `bytes` says.
    record: Record,
    bytes: Vec<u8>,
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
        let bytes = record.to_bytes();
        Self { record, bytes, revision: 1, down_until: 0, slow_until: 0, storm_until: 0 }
    }

    /// The record in force.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The record as it is stored.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// Puts `record` if the revision is still `expected`; answers the one that it replaced.
    ///
    /// # Panics
    /// If the record can't be stored, or reads as another one than was put.
    pub fn put_if(&mut self, expected: Revision, record: Record) -> Option<Record> {
        if expected.0 != self.revision {
            return None;
        }
        self.revision += 1;
        self.bytes = record.to_bytes();
        let read = Record::from_bytes(&self.bytes);
        // An invalid record is left to the checkers.
        if record.validate().is_ok() {
            assert_eq!(read.as_ref(), Ok(&record), "a record reads as another one than was put");
        }
        Some(std::mem::replace(&mut self.record, record))
    }
}
