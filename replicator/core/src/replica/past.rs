//! What a replica tells of the time before a promise: which epoch it was bound to (R7), and for
//! how long it has answered nobody of an older one, which is what leases for reads hang on.

use crate::id::{Epoch, Tick};
use crate::message;

/// The epochs before the promised one, by the replica's own clock.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Past {
    /// Promised before the present epoch, or when the replica was opened, whichever is later.
    promised: Epoch,
    /// When the present epoch was last answered; its first event since it was opened, if never.
    answered: Option<Tick>,
    /// The same of the epochs before.
    answered_older: Option<Tick>,
}

impl Past {
    /// Of a replica that was opened with this promise.
    pub(super) fn new(promised: Epoch) -> Self {
        Self { promised, answered: None, answered_older: None }
    }

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

    /// It is a member in `epoch`: a later session in it has no other past.
    pub(super) fn note_member(&mut self, epoch: Epoch) {
        self.promised = self.promised.max(epoch);
    }

    /// A promise that is about to be answered is durable; `before` is the epoch promised until
    /// then.
    pub(super) fn on_promised(&mut self, now: Tick, before: Epoch, epoch: Epoch) {
        if epoch > before {
            self.promised = before;
            self.answered_older = self.answered;
        }
        self.answered = Some(now);
    }

    /// The past as it is told to the primary.
    pub(super) fn told(&self, now: Tick) -> message::Past {
        let silent_ms = now.ms_since(self.answered_older.unwrap_or(now));
        let silent_ms = u32::try_from(silent_ms).unwrap_or(u32::MAX);
        message::Past { promised: self.promised, silent_ms }
    }
}
