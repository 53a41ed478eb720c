//! Many callers at once.

use super::{Broken, Checked, Subject, Verdict, holds, same};
use crate::{Expect, Meta, PutError, Revision};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::task::JoinSet;

const CALLERS: u64 = 8;
const ROUNDS: u64 = 12;

pub(super) async fn creates(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    for round in 0..ROUNDS {
        let key = format!("race/{round}");
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let (store, key) = (Arc::clone(&store), key.clone());
            callers.spawn(async move {
                let value = Bytes::from(caller.to_string());
                (caller, store.put_if(&key, Expect::Absent, value).await)
            });
        }
        let mut winner: Option<(u64, Revision)> = None;
        let mut beaten_by = BTreeSet::new();
        while let Some(done) = callers.join_next().await {
            match done? {
                (caller, Ok(revision)) => {
                    holds("two creates of one key succeeded", winner.is_none())?;
                    winner = Some((caller, revision));
                }
                (_, Err(PutError::Conflict { current })) => {
                    beaten_by.insert(current);
                }
                (_, Err(error)) => return Err(error.into()),
            }
        }
        let Some((caller, revision)) = winner else {
            return Err(Broken("no create succeeded".to_owned()));
        };
        same("who beat the others", &beaten_by, &BTreeSet::from([Some(revision)]))?;
        let value = store.get(&key).await?.map(|v| v.value);
        same("value", &value, &Some(Bytes::from(caller.to_string())))?;
    }
    Ok(Verdict::Held)
}

pub(super) async fn increments(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    store.put_if("n", Expect::Absent, Bytes::from_static(b"0")).await?;
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let store = Arc::clone(&store);
        callers.spawn(async move {
            let mut revisions = Vec::new();
            for _ in 0..ROUNDS {
                revisions.push(increment(&*store).await?);
            }
            Ok::<_, Broken>(revisions)
        });
    }
    let mut revisions = BTreeSet::new();
    while let Some(done) = callers.join_next().await {
        for revision in done?? {
            holds("two puts got one revision", revisions.insert(revision))?;
        }
    }
    let value = store.get("n").await?.map(|v| v.value);
    same("count", &value, &Some(Bytes::from((CALLERS * ROUNDS).to_string())))?;
    Ok(Verdict::Held)
}

async fn increment(store: &dyn Meta) -> Result<Revision, Broken> {
    loop {
        let (n, revision) = read_number(store, "n").await?;
        let next = Bytes::from((n + 1).to_string());
        match store.put_if("n", Expect::Revision(revision), next).await {
            Ok(written) => return Ok(written),
            Err(PutError::Conflict { current }) => {
                let moved = current.is_some_and(|c| c > revision);
                holds("a conflict names no later revision", moved)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) async fn read_number(store: &dyn Meta, key: &str) -> Result<(u64, Revision), Broken> {
    let Some(found) = store.get(key).await? else {
        return Err(Broken(format!("{key} is gone")));
    };
    let text = std::str::from_utf8(&found.value).map_err(|e| Broken(e.to_string()))?;
    let number = text.parse().map_err(|e| Broken(format!("{key} has {text:?}: {e}")))?;
    Ok((number, found.revision))
}

pub(super) async fn reads(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let first = store.put_if("k", Expect::Absent, Bytes::new()).await?;
    let acknowledged = Arc::new(AtomicU64::new(first.0));
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for reader in 0..3 {
        let (store, acknowledged) = (Arc::clone(&store), Arc::clone(&acknowledged));
        let done = Arc::clone(&done);
        readers.spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let floor = acknowledged.load(Ordering::SeqCst);
                let seen = if reader == 0 {
                    store.list("k", None, 1).await?.entries.first().map(|e| e.revision.0)
                } else {
                    store.get("k").await?.map(|v| v.revision.0)
                };
                let fresh = seen.is_some_and(|s| s >= floor);
                holds(&format!("a read saw {seen:?} after a put had returned {floor}"), fresh)?;
                tokio::task::yield_now().await;
            }
            Ok::<_, Broken>(())
        });
    }
    let mut last = first;
    for _ in 0..CALLERS * ROUNDS {
        last = store.put_if("k", Expect::Revision(last), Bytes::new()).await?;
        acknowledged.store(last.0, Ordering::SeqCst);
    }
    done.store(true, Ordering::SeqCst);
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    Ok(Verdict::Held)
}

/// A put whose caller went away happens whole or not at all, and blocks nobody after it.
pub(super) async fn abandoned(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let (old, new) = (Bytes::from(vec![1; 100_000]), Bytes::from(vec![2; 100_000]));
    for round in 0..ROUNDS {
        let key = format!("k/{round}");
        let first = store.put_if(&key, Expect::Absent, old.clone()).await?;
        let put = {
            let (store, key, new) = (Arc::clone(&store), key.clone(), new.clone());
            tokio::spawn(async move { store.put_if(&key, Expect::Revision(first), new).await })
        };
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        put.abort();
        // Ended or aborted, both are fine here.
        drop(put.await);
        let settled = settle(&*store, &key).await?;
        let value = store.get(&key).await?.map(|v| v.value);
        same("value after it was settled", &value, &Some(Bytes::from_static(b"settled")))?;
        holds("the revision went back", settled > first)?;
    }
    Ok(Verdict::Held)
}

async fn settle(store: &dyn Meta, key: &str) -> Result<Revision, Broken> {
    loop {
        let Some(found) = store.get(key).await? else {
            return Err(Broken("a put deleted its key".to_owned()));
        };
        let whole = found.value.iter().all(|b| *b == 1) || found.value.iter().all(|b| *b == 2);
        holds("half a value was written", whole && found.value.len() == 100_000)?;
        let put =
            store.put_if(key, Expect::Revision(found.revision), Bytes::from_static(b"settled"));
        match put.await {
            Ok(revision) => return Ok(revision),
            Err(PutError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
