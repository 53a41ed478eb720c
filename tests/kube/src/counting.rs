//! Callers that count up in one record, each for itself, whatever becomes of their changes.

use crate::process::wait_a_moment;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use lockstep_meta::{Expect, Meta, PutError, Revision};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinSet;

const KEY: &str = "record/counts";

/// What the callers met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) counted: u64,
    pub(crate) conflicts: u64,
    pub(crate) unavailable: u64,
    pub(crate) unknown: u64,
    /// Of the unknown ones, those that were made.
    pub(crate) made: u64,
    revisions: BTreeSet<Revision>,
}

/// Callers at work.
pub(crate) struct Callers {
    stop: Arc<AtomicBool>,
    counted: Arc<AtomicU64>,
    tasks: JoinSet<anyhow::Result<Seen>>,
    store: Arc<dyn Meta>,
}

type Counts = BTreeMap<String, u64>;

impl Callers {
    pub(crate) async fn start(store: Arc<dyn Meta>, number: usize) -> anyhow::Result<Self> {
        let none: Counts = (0..number).map(|caller| (caller.to_string(), 0)).collect();
        store.put_if(KEY, Expect::Absent, write(&none)?).await?;
        let mut callers =
            Self { stop: Arc::default(), counted: Arc::default(), tasks: JoinSet::new(), store };
        for caller in 0..number {
            let (store, stop) = (Arc::clone(&callers.store), Arc::clone(&callers.stop));
            let counted = Arc::clone(&callers.counted);
            callers.tasks.spawn(async move {
                let mut caller = Caller { name: caller.to_string(), store, seen: Seen::default() };
                while !stop.load(Ordering::SeqCst) {
                    caller.count().await?;
                    counted.fetch_add(1, Ordering::SeqCst);
                }
                Ok(caller.seen)
            });
        }
        Ok(callers)
    }

    /// How many increments were acknowledged, or found to be made, so far.
    pub(crate) fn counted(&self) -> u64 {
        self.counted.load(Ordering::SeqCst)
    }

    /// Ends them, and holds what the record says against what they were told.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Seen::default();
        while let Some(caller) = self.tasks.join_next().await {
            let mut seen = caller??;
            let before = all.revisions.len() + seen.revisions.len();
            all.revisions.append(&mut seen.revisions);
            ensure!(all.revisions.len() == before, "two changes were given one revision");
            all.counted += seen.counted;
            all.conflicts += seen.conflicts;
            all.unavailable += seen.unavailable;
            all.unknown += seen.unknown;
            all.made += seen.made;
        }
        let (counts, _) = read(&*self.store).await?;
        let sum: u64 = counts.values().sum();
        ensure!(sum == all.counted, "{} increments, and the record says {sum}", all.counted);
        Ok(all)
    }
}

struct Caller {
    name: String,
    store: Arc<dyn Meta>,
    seen: Seen,
}

impl Caller {
    /// Counts up by one: as often as it takes until that is known to be made, once.
    async fn count(&mut self) -> anyhow::Result<()> {
        let mut is_undecided = false;
        loop {
            let (mut counts, revision) = match read(&*self.store).await {
                Ok(read) => read,
                Err(error) if error.is::<lockstep_meta::MetaError>() => {
                    self.seen.unavailable += 1;
                    wait_a_moment().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let own = counts.get_mut(&self.name).context("a caller's count is gone")?;
            if is_undecided && *own == self.seen.counted + 1 {
                self.seen.counted += 1;
                self.seen.made += 1;
                return Ok(());
            }
            ensure!(
                *own == self.seen.counted,
                "caller {} was told {} and finds {own}",
                self.name,
                self.seen.counted
            );
            *own += 1;
            match self.store.put_if(KEY, Expect::Revision(revision), write(&counts)?).await {
                Ok(written) => {
                    ensure!(written > revision, "a change has no greater revision");
                    self.seen.revisions.insert(written);
                    self.seen.counted += 1;
                    return Ok(());
                }
                Err(PutError::Conflict { current }) => {
                    ensure!(current > Some(revision), "a conflict names no later revision");
                    self.seen.conflicts += 1;
                }
                Err(PutError::Unknown(_)) => {
                    self.seen.unknown += 1;
                    is_undecided = true;
                }
                Err(PutError::Unavailable(_)) => {
                    self.seen.unavailable += 1;
                    wait_a_moment().await;
                }
                Err(other) => return Err(other.into()),
            }
        }
    }
}

async fn read(store: &dyn Meta) -> anyhow::Result<(Counts, Revision)> {
    let found = store.get(KEY).await?.context("the record is gone")?;
    Ok((serde_json::from_slice(&found.value)?, found.revision))
}

fn write(counts: &Counts) -> anyhow::Result<Bytes> {
    Ok(Bytes::from(serde_json::to_vec(counts)?))
}
