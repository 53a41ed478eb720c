//! A record store in memory: gone when the process is.

use crate::model::Model;
use crate::{Expect, Meta, MetaError, Page, PutError, Revision, Versioned};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The model behind a lock. Never unavailable, never undecided; put a
/// [`Faulty`](crate::faulty::Faulty) before it for that.
#[derive(Debug, Default)]
pub struct Memory {
    model: Mutex<Model>,
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of all that is stored.
    #[must_use]
    pub fn snapshot(&self) -> Model {
        self.model().clone()
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        // No operation of the model panics between two of its changes, so it is whole even then.
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Meta for Memory {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        self.model().get(key)
    }

    async fn put_if(
        &self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        self.model().put_if(key, expected, value)
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError> {
        self.model().delete_if(key, expected)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError> {
        self.model().list(prefix, after, limit)
    }
}
