//! Restarts, and answers that never come.

use super::races::read_number;
use super::{Broken, Checked, Subject, Verdict, holds, same};
use crate::{Expect, Meta, PutError, Revision, list_all};
use bytes::Bytes;

pub(super) async fn restart(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let first = store.put_if("a/kept", Expect::Absent, Bytes::from_static(b"1")).await?;
    let changed = store.put_if("a/changed", Expect::Absent, Bytes::from_static(b"2")).await?;
    let last = store.put_if("a/changed", Expect::Revision(changed), Bytes::from_static(b"3"));
    let last = last.await?;
    let gone = store.put_if("a/gone", Expect::Absent, Bytes::new()).await?;
    store.delete_if("a/gone", gone).await?;
    let before = list_all(&*store, "").await?;
    drop(store);
    if !subject.restart().await.map_err(Broken)? {
        return Ok(Verdict::Skipped);
    }
    let store = subject.store();
    same("all entries", &list_all(&*store, "").await?, &before)?;
    let revision = store.get("a/kept").await?.map(|v| v.revision);
    same("revision", &revision, &Some(first))?;
    store.put_if("a/changed", Expect::Revision(last), Bytes::new()).await?;
    Ok(Verdict::Held)
}

pub(super) async fn restart_revisions(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    // The highest revision belongs to nothing that is left.
    let first = store.put_if("k", Expect::Absent, Bytes::new()).await?;
    let second = store.put_if("k", Expect::Revision(first), Bytes::new()).await?;
    store.delete_if("k", second).await?;
    drop(store);
    if !subject.restart().await.map_err(Broken)? {
        return Ok(Verdict::Skipped);
    }
    let store = subject.store();
    let third = store.put_if("k", Expect::Absent, Bytes::new()).await?;
    holds("a revision was given twice", third > second)?;
    Ok(Verdict::Held)
}

pub(super) async fn unknown_outcome(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let first = store.put_if("k", Expect::Absent, Bytes::from_static(b"old")).await?;
    if !subject.lose_next_outcome(false) {
        return Ok(Verdict::Skipped);
    }
    let put = store.put_if("k", Expect::Revision(first), Bytes::from_static(b"new")).await;
    holds("a lost request is not unknown", matches!(put, Err(PutError::Unknown(_))))?;
    let found = store.get("k").await?.map(|v| (v.value, v.revision));
    same("after a lost request", &found, &Some((Bytes::from_static(b"old"), first)))?;

    subject.lose_next_outcome(true);
    let put = store.put_if("k", Expect::Revision(first), Bytes::from_static(b"new")).await;
    holds("a lost answer is not unknown", matches!(put, Err(PutError::Unknown(_))))?;
    let Some(found) = store.get("k").await? else {
        return Err(Broken("the key is gone".to_owned()));
    };
    same("after a lost answer", &found.value, &Bytes::from_static(b"new"))?;
    holds("the revision did not grow", found.revision > first)?;

    subject.lose_next_outcome(true);
    let deletion = store.delete_if("k", found.revision).await;
    holds("a lost answer is not unknown", matches!(deletion, Err(PutError::Unknown(_))))?;
    same("after a lost answer of a delete", &store.get("k").await?, &None)?;
    Ok(Verdict::Held)
}

/// The loop every caller writes: on an unknown outcome, look for one's own mark.
pub(super) async fn lossy_increments(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    store.put_if("n", Expect::Absent, Bytes::from_static(b"0")).await?;
    for n in 0..30u64 {
        if n % 3 != 2 && !subject.lose_next_outcome(n % 3 == 0) {
            return Ok(Verdict::Skipped);
        }
        let (count, revision) = read_number(&*store, "n").await?;
        same("count so far", &count, &n)?;
        let next = Bytes::from((count + 1).to_string());
        let outcome = store.put_if("n", Expect::Revision(revision), next.clone()).await;
        resolve(&*store, revision, next, outcome).await?;
    }
    same("count", &read_number(&*store, "n").await?.0, &30)?;
    Ok(Verdict::Held)
}

async fn resolve(
    store: &dyn Meta,
    before: Revision,
    next: Bytes,
    outcome: Result<Revision, PutError>,
) -> Result<(), Broken> {
    match outcome {
        Ok(_) => return Ok(()),
        Err(PutError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    // The only caller: an untouched revision means the put was not made, and would now conflict
    // with the one that replaces it.
    let (_, now) = read_number(store, "n").await?;
    if now == before {
        store.put_if("n", Expect::Revision(before), next).await?;
    }
    Ok(())
}
