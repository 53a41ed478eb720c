//! The record store: small values under string keys, changed only by compare-and-swap.
//!
//! Everything that must be agreed on between nodes (who is the primary of a volume, which replicas
//! are in sync, which nodes exist) is a record in one of these. It is asked when membership or
//! attachment changes, never per write of a guest.
//!
//! - [`Meta`]: the one trait; its documentation is the contract.
//! - [`memory`]: for tests and for a demo in one process.
//! - [`redb`]: a file on one machine, owned by one daemon.
//! - [`server`] and [`remote`]: the owner serves its store, all other daemons use it over gRPC.
//! - [`kubernetes`]: objects of a Kubernetes cluster (with the feature of that name).
//! - [`faulty`]: a layer over any of them that fails when told to.
//! - [`conformance`]: the contract as checks that run against any of them.
//! - [`model`]: the contract as a pure value; the memory store is a lock around it.

pub mod conformance;
mod error;
pub mod faulty;
pub mod key;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod memory;
pub mod model;
mod owner;
pub mod redb;
pub mod remote;
pub mod server;

pub use error::{MetaError, PutError};

/// How [`Meta`] and [`conformance::Subject`] are implemented.
pub use async_trait::async_trait;

use bytes::Bytes;
use std::fmt;

pub use lockstep_core::id::Revision;

/// Most bytes a value may have.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// Most entries a page has.
pub const MAX_PAGE_ENTRIES: usize = 1000;

/// A page ends before it has more bytes of keys and values than this, unless it is one entry.
pub const MAX_PAGE_BYTES: usize = 2 << 20;

/// A value and the revision of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// What was written.
    pub value: Bytes,
    /// Which change wrote it.
    pub revision: Revision,
}

/// One key of a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The whole key, prefix included.
    pub key: String,
    /// What was written.
    pub value: Bytes,
    /// Which change wrote it.
    pub revision: Revision,
}

/// Some entries in byte order of their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where to read on (`after` of the next call); `None`: nothing was left.
    pub next: Option<String>,
}

impl Page {
    /// Takes rows, in order, until the page is full.
    ///
    /// # Errors
    /// The first error of `rows`.
    pub(crate) fn collect<E>(
        rows: impl Iterator<Item = Result<Entry, E>>,
        limit: usize,
    ) -> Result<Self, E> {
        let limit = if limit == 0 { MAX_PAGE_ENTRIES } else { limit.min(MAX_PAGE_ENTRIES) };
        let mut page = Self::default();
        let mut bytes = 0;
        for row in rows {
            let entry = row?;
            let size = entry.key.len() + entry.value.len();
            let overflows = !page.entries.is_empty() && bytes + size > MAX_PAGE_BYTES;
            if overflows || page.entries.len() == limit {
                page.next = page.entries.last().map(|e| e.key.clone());
                break;
            }
            bytes += size;
            page.entries.push(entry);
        }
        Ok(page)
    }
}

/// The state a key must be in for a put to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key exists and was last written by this change.
    Revision(Revision),
}

impl Expect {
    /// Checks the state a key is in.
    ///
    /// # Errors
    /// [`PutError::Conflict`] if it is another one.
    pub(crate) fn check(self, current: Option<Revision>) -> Result<(), PutError> {
        let expected = match self {
            Self::Absent => None,
            Self::Revision(revision) => Some(revision),
        };
        if expected == current { Ok(()) } else { Err(PutError::Conflict { current }) }
    }
}

/// A record store.
///
/// Keys obey [`key`]; values have at most [`MAX_VALUE_BYTES`]. Every operation is linearizable: it
/// takes effect, all at once, at some moment between its call and its return. The exception is a
/// change that returned [`PutError::Unknown`]: it takes effect at one moment after its call, maybe
/// long after its return, or never.
///
/// A revision grows with every change of any key and is never used twice, not even when a key is
/// deleted and created again. So a put that expects a revision cannot mistake one state for
/// another, and an undecided put that is followed by a successful put of the same key can no
/// longer take effect.
///
/// Dropping the future of a change leaves the change as undecided as [`PutError::Unknown`] does.
#[async_trait]
pub trait Meta: fmt::Debug + Send + Sync + 'static {
    /// The value of a key; `None` if it does not exist.
    ///
    /// # Errors
    /// [`MetaError::BadKey`]; [`MetaError::Unavailable`] if the store could not be asked.
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError>;

    /// Writes a key that is in the expected state. Durable when it returns the new revision.
    ///
    /// # Errors
    /// [`PutError::Conflict`] if the key was in another state; [`PutError::Unknown`] if the outcome
    /// is undecided and must be read back; otherwise nothing was or will be written.
    async fn put_if(&self, key: &str, expected: Expect, value: Bytes)
    -> Result<Revision, PutError>;

    /// Deletes a key that is at the expected revision. Durable when it returns.
    ///
    /// # Errors
    /// As [`Meta::put_if`]; a key that does not exist is a conflict with `current: None`.
    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError>;

    /// The entries whose keys begin with `prefix` and come after `after`, in byte order: at most
    /// `limit` (0 or more than [`MAX_PAGE_ENTRIES`]: that many). One page is one moment of the
    /// store; the next page is a later moment.
    ///
    /// # Errors
    /// [`MetaError::BadKey`]; [`MetaError::Unavailable`] if the store could not be asked.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError>;
}

/// All entries under a prefix, page after page. Entries that change meanwhile may be seen in
/// either state; those that don't change are all there.
///
/// # Errors
/// As [`Meta::list`].
pub async fn list_all(store: &dyn Meta, prefix: &str) -> Result<Vec<Entry>, MetaError> {
    let mut all = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), 0).await?;
        all.extend(page.entries);
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// Refuses a value that no implementation takes.
///
/// # Errors
/// [`PutError::TooLarge`].
pub(crate) fn check_value(value: &[u8]) -> Result<(), PutError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(PutError::TooLarge { bytes: value.len() });
    }
    Ok(())
}
