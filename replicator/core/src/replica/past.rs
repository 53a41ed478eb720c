//! For how long a replica has answered nobody of an older epoch, by its own clock: what leases
//! for reads hang on.

use crate::id::Tick;

/// When epochs were last answered.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) struct Past {
    /// The present one; the first event since the replica was opened, if never.
    answered: Option<Tick>,
    /// The ones before.
    answered_older: Option<Tick>,
}

impl Past {
    /// Time begins with the first event: what was answered before the replica was opened was
    /// answered earlier than that.
    pub(super) fn begin(&mut self, now: Tick) {
        self.answered.get_or_insert(now);
        self.answered_older.get_or_insert(now);
    }

    /// A request of the present epoch is going to be answered.
    pub(super) fn note_answer(&mut self, now: Tick) {
        self.answered = Some(now);
    }

    /// A promise that is about to be answered is durable.
    pub(super) fn on_promised(&mut self, now: Tick, newer: bool) {
        if newer {
            self.answered_older = self.answered;
        }
        self.answered = Some(now);
    }

    /// For how long no older epoch was answered.
    pub(super) fn silent_ms(&self, now: Tick) -> u32 {
        let silent_ms = now.ms_since(self.answered_older.unwrap_or(now));
        u32::try_from(silent_ms).unwrap_or(u32::MAX)
    }
}
