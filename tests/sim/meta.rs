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
    /// What it shows since it was put back. Until somebody has noticed, `record` is what was in
    /// force.
    shown: Option<Record>,
    /// An older state of it.
    pub kept: Option<Record>,
    /// The volume was deleted.
    pub is_deleted: bool,
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
        Self {
            record,
            bytes,
            revision: 1,
            shown: None,
            kept: None,
            is_deleted: false,
            down_until: 0,
            slow_until: 0,
            storm_until: 0,
        }
    }

    /// The record in force.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The record that whoever asks gets: an older one, if the store was put back.
    #[must_use]
    pub fn seen(&self) -> &Record {
        self.shown.as_ref().unwrap_or(&self.record)
    }

    /// Was it put back to an older state?
    #[must_use]
    pub fn is_put_back(&self) -> bool {
        self.shown.is_some()
    }

    /// It shows `older` from now on.
    pub fn put_back(&mut self, older: Record) {
        self.shown = Some(older);
        self.changed();
    }

    /// It shows again what was in force.
    pub fn restore(&mut self) {
        self.shown = None;
        self.changed();
    }

    /// An administrator puts a record in force.
    pub fn replace(&mut self, record: Record) {
        (self.record, self.shown) = (record, None);
        self.changed();
    }

    /// What is put in place of something else has a revision of its own.
    fn changed(&mut self) {
        self.revision += 1;
        self.bytes = self.seen().to_bytes();
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
        if self.is_deleted || expected.0 != self.revision {
            return None;
        }
        self.revision += 1;
        self.bytes = record.to_bytes();
        let read = Record::from_bytes(&self.bytes);
        // An invalid record is left to the checkers.
        if record.validate().is_ok() {
            assert_eq!(read.as_ref(), Ok(&record), "a record reads as another one than was put");
        }
        Some(std::mem::replace(self.shown.as_mut().unwrap_or(&mut self.record), record))
    }
}
