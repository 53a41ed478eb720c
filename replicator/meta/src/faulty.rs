//! A layer over any record store that fails when told to.

use crate::{Expect, Meta, MetaError, Page, PutError, Revision, Versioned, memory::Memory};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// What happens to one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// Not made, and the caller is told so.
    Unavailable,
    /// Tried, and the caller is told it is unknown: the answer was lost.
    UnknownApplied,
    /// Not made, and the caller is told it is unknown: the request was lost.
    UnknownNotApplied,
    /// The caller is told it is unknown; tried by [`Faulty::release_delayed`].
    Delayed,
}

/// A store that passes everything on to another one, except what it was told to fail.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Meta>,
    plan: Mutex<Plan>,
    is_held: watch::Sender<bool>,
    reads: AtomicUsize,
}

#[derive(Debug, Default)]
struct Plan {
    cut_off: bool,
    next_writes: VecDeque<WriteFault>,
    delayed: VecDeque<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Put { key: String, expected: Expect, value: Bytes },
    Delete { key: String, expected: Revision },
}

impl Faulty {
    /// A layer over `inner` that fails nothing yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Meta>) -> Self {
        Self {
            inner,
            plan: Mutex::default(),
            is_held: watch::channel(false).0,
            reads: AtomicUsize::new(0),
        }
    }

    /// A layer over a store in memory.
    #[must_use]
    pub fn over_memory() -> Self {
        Self::new(Arc::new(Memory::new()))
    }

    /// From now on every operation is unavailable (`true`) or none is (`false`).
    pub fn cut_off(&self, cut_off: bool) {
        self.plan().cut_off = cut_off;
    }

    /// From now on every read gets no answer (`true`), until it is let go (`false`).
    pub fn hold_reads(&self, is_held: bool) {
        self.is_held.send_replace(is_held);
    }

    /// Fails one coming change; calls add up, and the changes take the faults in order.
    pub fn fail_next_write(&self, fault: WriteFault) {
        self.plan().next_writes.push_back(fault);
    }

    /// How many changes are held back.
    #[must_use]
    pub fn delayed(&self) -> usize {
        self.plan().delayed.len()
    }

    /// Tries the changes that were held back, in their order, as if they arrived only now.
    pub async fn release_delayed(&self) -> Vec<Result<(), PutError>> {
        let delayed = std::mem::take(&mut self.plan().delayed);
        let mut outcomes = Vec::new();
        for change in delayed {
            outcomes.push(self.apply(change).await.map(|_| ()));
        }
        outcomes
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reachable(&self) -> Result<(), MetaError> {
        if self.plan().cut_off {
            return Err(MetaError::Unavailable("cut off on purpose".to_owned()));
        }
        Ok(())
    }

    /// How many reads were begun.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    async fn begin_read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        // The sender is there as long as this is.
        let _ = self.is_held.subscribe().wait_for(|is_held| !is_held).await;
    }

    /// Makes a change. A put answers with its revision, a deletion with the one it deleted.
    async fn apply(&self, change: Change) -> Result<Revision, PutError> {
        match change {
            Change::Put { key, expected, value } => self.inner.put_if(&key, expected, value).await,
            Change::Delete { key, expected } => {
                self.inner.delete_if(&key, expected).await.map(|()| expected)
            }
        }
    }

    async fn change(&self, change: Change) -> Result<Revision, PutError> {
        self.reachable()?;
        let fault = self.plan().next_writes.pop_front();
        let told = |what: &str| PutError::Unknown(format!("{what} on purpose"));
        match fault {
            None => self.apply(change).await,
            Some(WriteFault::Unavailable) => {
                Err(PutError::Unavailable("refused on purpose".to_owned()))
            }
            Some(WriteFault::UnknownApplied) => match self.apply(change).await {
                Ok(_) | Err(PutError::Conflict { .. }) => Err(told("answer lost")),
                Err(other) => Err(other),
            },
            Some(WriteFault::UnknownNotApplied) => Err(told("request lost")),
            Some(WriteFault::Delayed) => {
                self.plan().delayed.push_back(change);
                Err(told("request delayed"))
            }
        }
    }
}

#[async_trait]
impl Meta for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        self.begin_read().await;
        self.reachable()?;
        self.inner.get(key).await
    }

    async fn put_if(
        &self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        self.change(Change::Put { key: key.to_owned(), expected, value }).await
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError> {
        self.change(Change::Delete { key: key.to_owned(), expected }).await.map(|_| ())
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError> {
        self.begin_read().await;
        self.reachable()?;
        self.inner.list(prefix, after, limit).await
    }
}
