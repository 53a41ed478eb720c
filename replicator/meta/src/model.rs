//! The contract of [`Meta`](crate::Meta) as a plain value: no lock, no I/O, no failure.

use crate::{Entry, Expect, MetaError, Page, PutError, Revision, Versioned, check_value, key};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A record store one can clone and compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// Every revision in here is at most `last`, and no two are equal.
    entries: BTreeMap<String, Versioned>,
    /// The revision of the last change, deletions included.
    last: Revision,
}

impl Model {
    /// See [`Meta::get`](crate::Meta::get).
    ///
    /// # Errors
    /// [`MetaError::BadKey`].
    pub fn get(&self, key: &str) -> Result<Option<Versioned>, MetaError> {
        key::check(key)?;
        Ok(self.entries.get(key).cloned())
    }

    /// See [`Meta::put_if`](crate::Meta::put_if).
    ///
    /// # Errors
    /// [`PutError::BadKey`], [`PutError::TooLarge`], [`PutError::Conflict`].
    pub fn put_if(
        &mut self,
        key: &str,
        expected: Expect,
        value: Bytes,
    ) -> Result<Revision, PutError> {
        key::check(key)?;
        check_value(&value)?;
        expected.check(self.revision(key))?;
        let revision = self.advance();
        self.entries.insert(key.to_owned(), Versioned { value, revision });
        Ok(revision)
    }

    /// See [`Meta::delete_if`](crate::Meta::delete_if).
    ///
    /// # Errors
    /// [`PutError::BadKey`], [`PutError::Conflict`].
    pub fn delete_if(&mut self, key: &str, expected: Revision) -> Result<(), PutError> {
        key::check(key)?;
        Expect::Revision(expected).check(self.revision(key))?;
        self.advance();
        self.entries.remove(key);
        Ok(())
    }

    /// See [`Meta::list`](crate::Meta::list).
    ///
    /// # Errors
    /// [`MetaError::BadKey`].
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, MetaError> {
        let start = start_of_list(prefix, after)?;
        let rows = self
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, found)| {
                let Versioned { value, revision } = found.clone();
                Ok(Entry { key: key.clone(), value, revision })
            });
        Page::collect(rows, limit)
    }

    fn revision(&self, key: &str) -> Option<Revision> {
        self.entries.get(key).map(|found| found.revision)
    }

    fn advance(&mut self) -> Revision {
        assert!(self.last.0 < u64::MAX, "the revision space is used up");
        self.last = Revision(self.last.0 + 1);
        self.last
    }
}

/// The first key a list may answer with: not before the prefix, and after `after`.
///
/// # Errors
/// [`MetaError::BadKey`].
pub(crate) fn start_of_list<'a>(
    prefix: &'a str,
    after: Option<&'a str>,
) -> Result<Bound<&'a str>, MetaError> {
    key::check_prefix(prefix)?;
    let Some(after) = after else { return Ok(Bound::Included(prefix)) };
    key::check(after)?;
    if after < prefix { Ok(Bound::Included(prefix)) } else { Ok(Bound::Excluded(after)) }
}
