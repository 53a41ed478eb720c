//! Making data durable: at most one fdatasync of the data runs and one waits.

use alloc::vec::Vec;
use lockstep_core::id::Token;
use lockstep_core::planted::Bug;

use crate::layout::File;
use crate::op::DiskOpKind;
use crate::store::{Purpose, Store};

/// Who waits for data to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flusher {
    /// An operation of the replica, which is done then.
    Token(Token),
    /// The same, and what was lost before is back.
    Complete(Token),
    /// A durable zeroing.
    Job(u64),
    /// The cleaner.
    Cleaner,
}

/// The fdatasync that runs, and the one that waits.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    running: Vec<Flusher>,
    /// Came while one was running: what they wait for may have been written after it started.
    pending: Vec<Flusher>,
}

impl Flushes {
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Token> {
        let mut all = core::mem::take(&mut self.running);
        all.append(&mut self.pending);
        all.into_iter().filter_map(|flusher| match flusher {
            Flusher::Token(token) | Flusher::Complete(token) => Some(token),
            Flusher::Job(_) | Flusher::Cleaner => None,
        })
    }
}

impl Store {
    pub(crate) fn flush(&mut self, token: Token) {
        if self.planted.has(Bug::FlushWithoutSync) {
            self.done_with(token);
            return;
        }
        if self.planted.has(Bug::JoinRunningFlush) && !self.flushes.running.is_empty() {
            self.flushes.running.push(Flusher::Token(token));
            return;
        }
        self.flush_data(Flusher::Token(token));
    }

    /// A flush after which nothing is missing any more of what a lost cache took.
    pub(crate) fn complete(&mut self, token: Token) {
        if self.planted.has(Bug::FlushWithoutSync) {
            return self.completed(token);
        }
        self.flush_data(Flusher::Complete(token));
    }

    /// Remembered before it is answered: the process may end at any time.
    fn completed(&mut self, token: Token) {
        (self.lost_cache, self.marks_left) = (false, 0);
        if core::mem::take(&mut self.superblock.lossy) {
            self.persist_for(token);
        } else {
            self.done_with(token);
        }
    }

    /// Data written up to now will be durable when `flusher` is told.
    pub(crate) fn flush_data(&mut self, flusher: Flusher) {
        self.flushes.pending.push(flusher);
        self.start_flush();
    }

    fn start_flush(&mut self) {
        if self.flushes.running.is_empty() && !self.flushes.pending.is_empty() {
            self.flushes.running = core::mem::take(&mut self.flushes.pending);
            self.issue(Purpose::FlushData, DiskOpKind::Sync { file: File::Data });
        }
    }

    pub(crate) fn on_data_flushed(&mut self) {
        let flushed = core::mem::take(&mut self.flushes.running);
        assert!(!flushed.is_empty(), "nobody waited for this flush");
        self.start_flush();
        for flusher in flushed {
            match flusher {
                Flusher::Token(token) => self.done_with(token),
                Flusher::Complete(token) => self.completed(token),
                Flusher::Job(job) => self.finish_mutation(job),
                Flusher::Cleaner => self.on_clean_flushed(),
            }
        }
    }
}
