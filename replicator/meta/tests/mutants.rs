//! The conformance suite finds stores that break the contract, and names the rule they break.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

use async_trait::async_trait;
use bytes::Bytes;
use lockstep_meta::conformance::{Subject, suite};
use lockstep_meta::memory::Memory;
use lockstep_meta::{Expect, Meta, MetaError, Page, PutError, Revision, Versioned};
use std::sync::{Arc, Mutex};

/// One way to be wrong.
#[derive(Clone, Copy, Debug)]
enum Bug {
    IgnoresExpectation,
    ChecksThenPuts,
    ReadsStale,
    RevisionPerKey,
    DeletesAnything,
    ListLeavesPrefix,
    ListForgetsNext,
    TakesAnyKey,
    CutsLargeValues,
}

#[derive(Debug)]
struct Mutant {
    bug: Bug,
    inner: Memory,
    /// What the last read of a key saw.
    cached: Mutex<Option<(String, Versioned)>>,
}

impl Mutant {
    fn shown(&self, versioned: Versioned) -> Versioned {
        match self.bug {
            // Every key counts its own changes: they are told apart by the value alone here.
            Bug::RevisionPerKey => Versioned { revision: Revision(1), ..versioned },
            _ => versioned,
        }
    }

    fn stale(&self, key: &str) -> Option<Versioned> {
        let cached = self.cached.lock().unwrap();
        cached.as_ref().filter(|(k, _)| k == key).map(|(_, v)| v.clone())
    }
}

#[async_trait]
impl Meta for Mutant {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        if matches!(self.bug, Bug::ReadsStale)
            && let Some(stale) = self.stale(key)
        {
            return Ok(Some(stale));
        }
        if matches!(self.bug, Bug::TakesAnyKey) && key.contains(' ') {
            return Ok(None);
        }
        let found = self.inner.get(key).await?.map(|v| self.shown(v));
        *self.cached.lock().unwrap() = found.clone().map(|v| (key.to_owned(), v));
        Ok(found)
    }

    async fn put_if(
        &self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        let current = self.inner.get(key).await?.map(|v| v.revision);
        let blind = current.map_or(Expect::Absent, Expect::Revision);
        match self.bug {
            Bug::IgnoresExpectation => self.inner.put_if(key, blind, value).await,
            Bug::ChecksThenPuts => {
                let wanted = expected == blind;
                tokio::task::yield_now().await;
                if !wanted {
                    return Err(PutError::Conflict { current });
                }
                let now = self.inner.get(key).await?.map(|v| v.revision);
                let now = now.map_or(Expect::Absent, Expect::Revision);
                self.inner.put_if(key, now, value).await
            }
            Bug::RevisionPerKey => {
                let fits = (expected == Expect::Absent) == current.is_none();
                let expected = if fits { blind } else { expected };
                self.inner.put_if(key, expected, value).await.map(|_| Revision(1))
            }
            Bug::CutsLargeValues if value.len() > 65_536 && value.len() < 1 << 20 => {
                self.inner.put_if(key, expected, value.slice(..65_536)).await
            }
            _ => self.inner.put_if(key, expected, value).await,
        }
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<(), PutError> {
        let current = self.inner.get(key).await?.map(|v| v.revision);
        match (self.bug, current) {
            (Bug::DeletesAnything, Some(current)) => self.inner.delete_if(key, current).await,
            _ => self.inner.delete_if(key, expected).await,
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, MetaError> {
        let mut page = match (self.bug, prefix) {
            (Bug::ListLeavesPrefix, p) if p.len() > 1 && p.ends_with('/') => {
                self.inner.list(p.trim_end_matches('/'), after, limit).await?
            }
            _ => self.inner.list(prefix, after, limit).await?,
        };
        if matches!(self.bug, Bug::ListForgetsNext) {
            page.next = None;
        }
        Ok(page)
    }
}

struct Examined(Arc<Mutant>);

impl Subject for Examined {
    fn store(&self) -> Arc<dyn Meta> {
        Arc::clone(&self.0) as Arc<dyn Meta>
    }
}

#[tokio::test]
async fn each_mutant_is_found_by_the_check_made_for_it() {
    let expectations = [
        (Bug::IgnoresExpectation, "a key that was never written is absent"),
        (Bug::ChecksThenPuts, "racing creates have one winner"),
        (Bug::ReadsStale, "delete"),
        (Bug::RevisionPerKey, "compare-and-swap"),
        (Bug::DeletesAnything, "delete"),
        (Bug::ListLeavesPrefix, "a list is ordered and ends where its prefix does"),
        (Bug::ListForgetsNext, "a list in pages"),
        (Bug::TakesAnyKey, "bad keys"),
        (Bug::CutsLargeValues, "values of all sizes"),
    ];
    for (bug, check) in expectations {
        let make = async || {
            let (inner, cached) = (Memory::new(), Mutex::default());
            Examined(Arc::new(Mutant { bug, inner, cached }))
        };
        let failure = suite(make).await.expect_err("a mutant passed");
        assert_eq!(failure.check, check, "{bug:?}: {failure}");
    }
}
