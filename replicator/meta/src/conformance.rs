//! The contract of [`Meta`] as checks, to be run against any implementation.
//!
//! ```text
//! let report = conformance::suite(async || MySubject::new().await).await?;
//! assert_eq!(report.skipped, [] as [&str; 0]);
//! ```

mod basics;
mod faults;
mod races;

use crate::{Meta, MetaError, PutError};
use async_trait::async_trait;
use std::sync::Arc;
use thiserror::Error;

/// An implementation under examination, with a store of its own that is empty at first.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The store.
    fn store(&self) -> Arc<dyn Meta>;

    /// Ends the program that keeps the store and starts it anew on the same data, as far as the
    /// implementation can. `false`: this one does not outlive its program.
    ///
    /// # Errors
    /// Why it did not start again.
    async fn restart(&mut self) -> Result<bool, String> {
        Ok(false)
    }

    /// Arranges that the outcome of the next change stays unknown to its caller, and whether it is
    /// made. `false`: this one cannot be told to.
    fn lose_next_outcome(&self, _is_made: bool) -> bool {
        false
    }
}

/// What was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Checks that held.
    pub held: Vec<&'static str>,
    /// Checks the subject offers no means for.
    pub skipped: Vec<&'static str>,
}

/// A rule of the contract that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{check}: {what}")]
pub struct Failure {
    /// Which check found it.
    pub check: &'static str,
    /// What was seen, and what should have been.
    pub what: String,
}

/// Runs every check, each against a subject of its own.
///
/// # Errors
/// The first [`Failure`].
pub async fn suite<S: Subject>(make: impl AsyncFn() -> S) -> Result<Report, Failure> {
    let mut run = Run { make, report: Report::default() };
    run.check("a key that was never written is absent", basics::absent).await?;
    run.check("create happens once", basics::create).await?;
    run.check("compare-and-swap", basics::compare_and_swap).await?;
    run.check("delete", basics::delete).await?;
    run.check("revisions grow over all keys", basics::revisions_grow).await?;
    run.check("a revision does not come back with its key", basics::no_aba).await?;
    run.check("values of all sizes", basics::value_sizes).await?;
    run.check("bad keys", basics::bad_keys).await?;
    run.check("a list is ordered and ends where its prefix does", basics::list_prefix).await?;
    run.check("a list in pages", basics::list_pages).await?;
    run.check("large values end a page", basics::list_bytes).await?;
    run.check("racing creates have one winner", races::creates).await?;
    run.check("racing increments all count", races::increments).await?;
    run.check("reads never go back", races::reads).await?;
    run.check("an abandoned change is whole", races::abandoned).await?;
    run.check("data outlives a restart", faults::restart).await?;
    run.check("revisions outlive a restart", faults::restart_revisions).await?;
    run.check("an unknown outcome can be read back", faults::unknown_outcome).await?;
    run.check("increments under lost answers all count", faults::lossy_increments).await?;
    Ok(run.report)
}

struct Run<F> {
    make: F,
    report: Report,
}

impl<F> Run<F> {
    async fn check<S>(
        &mut self,
        name: &'static str,
        body: impl AsyncFnOnce(&mut S) -> Checked,
    ) -> Result<(), Failure>
    where
        S: Subject,
        F: AsyncFn() -> S,
    {
        let mut subject = (self.make)().await;
        match body(&mut subject).await {
            Ok(Verdict::Held) => self.report.held.push(name),
            Ok(Verdict::Skipped) => self.report.skipped.push(name),
            Err(Broken(what)) => return Err(Failure { check: name, what }),
        }
        Ok(())
    }
}

/// How a check ended.
enum Verdict {
    Held,
    Skipped,
}

/// What was seen instead of what the contract says.
#[derive(Debug)]
struct Broken(String);

type Checked = Result<Verdict, Broken>;

impl From<MetaError> for Broken {
    fn from(error: MetaError) -> Self {
        Self(format!("a read failed: {error}"))
    }
}

impl From<PutError> for Broken {
    fn from(error: PutError) -> Self {
        Self(format!("a change failed: {error}"))
    }
}

impl From<tokio::task::JoinError> for Broken {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(format!("a task of the check failed: {error}"))
    }
}

/// Holds `seen` against what the contract says.
fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, wanted: &T) -> Result<(), Broken> {
    if seen == wanted {
        return Ok(());
    }
    Err(Broken(format!("{what}: got {seen:?}, wanted {wanted:?}")))
}

/// Holds a fact against the contract.
fn holds(what: &str, fact: bool) -> Result<(), Broken> {
    if fact { Ok(()) } else { Err(Broken(what.to_owned())) }
}
