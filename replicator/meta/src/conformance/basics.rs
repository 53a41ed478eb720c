//! One caller, no faults.

use super::{Broken, Checked, Subject, Verdict, holds, same};
use crate::{
    Expect, MAX_VALUE_BYTES, Meta, MetaError, PutError, Revision, Versioned, key, list_all,
};
use bytes::Bytes;

pub(super) async fn absent(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    same("get", &store.get("volumes/a").await?, &None)?;
    same("list", &store.list("", None, 0).await?, &crate::Page::default())?;
    let put = store.put_if("volumes/a", Expect::Revision(Revision(1)), Bytes::new()).await;
    same("put that expects a revision", &put, &Err(PutError::Conflict { current: None }))?;
    let deletion = store.delete_if("volumes/a", Revision(1)).await;
    same("delete", &deletion, &Err(PutError::Conflict { current: None }))?;
    same("get after refused changes", &store.get("volumes/a").await?, &None)?;
    Ok(Verdict::Held)
}

pub(super) async fn create(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let value = Bytes::from_static(b"one");
    let revision = store.put_if("volumes/a", Expect::Absent, value.clone()).await?;
    same("get", &store.get("volumes/a").await?, &Some(Versioned { value, revision }))?;
    let again = store.put_if("volumes/a", Expect::Absent, Bytes::from_static(b"two")).await;
    same("second create", &again, &Err(PutError::Conflict { current: Some(revision) }))?;
    let seen = store.get("volumes/a").await?.map(|v| v.value);
    same("value after it", &seen, &Some(Bytes::from_static(b"one")))?;
    same("another key", &store.get("volumes/ab").await?, &None)?;
    Ok(Verdict::Held)
}

pub(super) async fn compare_and_swap(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let first = store.put_if("k", Expect::Absent, Bytes::from_static(b"1")).await?;
    let second = store.put_if("k", Expect::Revision(first), Bytes::from_static(b"2")).await?;
    holds("a put did not change the revision", second > first)?;
    let stale = store.put_if("k", Expect::Revision(first), Bytes::from_static(b"3")).await;
    same("stale put", &stale, &Err(PutError::Conflict { current: Some(second) }))?;
    let future = Revision(second.0 + 1000);
    let ahead = store.put_if("k", Expect::Revision(future), Bytes::from_static(b"3")).await;
    same("put ahead of time", &ahead, &Err(PutError::Conflict { current: Some(second) }))?;
    let wanted = Versioned { value: Bytes::from_static(b"2"), revision: second };
    same("get", &store.get("k").await?, &Some(wanted))?;
    // The same bytes are a change all the same: somebody may wait to see the revision move.
    let third = store.put_if("k", Expect::Revision(second), Bytes::from_static(b"2")).await?;
    holds("a put of equal bytes kept the revision", third > second)?;
    Ok(Verdict::Held)
}

pub(super) async fn delete(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let first = store.put_if("k", Expect::Absent, Bytes::from_static(b"1")).await?;
    let second = store.put_if("k", Expect::Revision(first), Bytes::from_static(b"2")).await?;
    let other = store.put_if("kk", Expect::Absent, Bytes::new()).await?;
    let stale = store.delete_if("k", first).await;
    same("stale delete", &stale, &Err(PutError::Conflict { current: Some(second) }))?;
    holds("a stale delete deleted", store.get("k").await?.is_some())?;
    store.delete_if("k", second).await?;
    same("get", &store.get("k").await?, &None)?;
    let again = store.delete_if("k", second).await;
    same("second delete", &again, &Err(PutError::Conflict { current: None }))?;
    let left: Vec<_> = list_all(&*store, "").await?.into_iter().map(|e| e.revision).collect();
    same("what is left", &left, &vec![other])?;
    Ok(Verdict::Held)
}

pub(super) async fn revisions_grow(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let mut last = store.put_if("z", Expect::Absent, Bytes::new()).await?;
    for n in 0..5 {
        let revision = store.put_if(&format!("a/{n}"), Expect::Absent, Bytes::new()).await?;
        holds("a create of another key had no greater revision", revision > last)?;
        last = store.put_if(&format!("a/{n}"), Expect::Revision(revision), Bytes::new()).await?;
        holds("a put of the key had no greater revision", last > revision)?;
    }
    Ok(Verdict::Held)
}

pub(super) async fn no_aba(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let revision = store.put_if("k", Expect::Absent, Bytes::from_static(b"v")).await?;
        holds("a revision came back", seen.iter().all(|old| *old < revision))?;
        for old in &seen {
            let put = store.put_if("k", Expect::Revision(*old), Bytes::from_static(b"x")).await;
            let conflict = Err(PutError::Conflict { current: Some(revision) });
            same("put over an earlier life of the key", &put, &conflict)?;
            let deletion = store.delete_if("k", *old).await;
            let conflict = Err(PutError::Conflict { current: Some(revision) });
            same("delete of an earlier life of the key", &deletion, &conflict)?;
        }
        seen.push(revision);
        store.delete_if("k", revision).await?;
    }
    Ok(Verdict::Held)
}

pub(super) async fn value_sizes(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    for size in [0, 1, 4095, 4096, 65_537, MAX_VALUE_BYTES - 1, MAX_VALUE_BYTES] {
        let key = format!("size/{size}");
        let value: Bytes = (0u8..=250).cycle().take(size).collect();
        let revision = store.put_if(&key, Expect::Absent, value.clone()).await?;
        let found = store.get(&key).await?;
        let intact = found.is_some_and(|v| v.value == value && v.revision == revision);
        holds(&format!("a value of {size} bytes did not come back as it was"), intact)?;
    }
    let bytes = MAX_VALUE_BYTES + 1;
    let put = store.put_if("large", Expect::Absent, Bytes::from(vec![0; bytes])).await;
    same("too large a value", &put, &Err(PutError::TooLarge { bytes }))?;
    same("get after it", &store.get("large").await?, &None)?;
    Ok(Verdict::Held)
}

pub(super) async fn bad_keys(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let long = "k".repeat(key::MAX_KEY_BYTES + 1);
    for key in ["", "/a", "a/", "a//b", "a/../b", "a b", "ä", "a\n", long.as_str()] {
        let read = matches!(store.get(key).await, Err(MetaError::BadKey { .. }));
        holds(&format!("get took {key:?}"), read)?;
        let put = store.put_if(key, Expect::Absent, Bytes::new()).await;
        holds(&format!("put took {key:?}"), matches!(put, Err(PutError::BadKey { .. })))?;
        let deletion = store.delete_if(key, Revision(1)).await;
        holds(&format!("delete took {key:?}"), matches!(deletion, Err(PutError::BadKey { .. })))?;
    }
    for (prefix, after) in [("a b", None), ("/", None), ("", Some("")), ("a", Some("a//b"))] {
        let page = store.list(prefix, after, 0).await;
        let refused = matches!(page, Err(MetaError::BadKey { .. }));
        holds(&format!("list took {prefix:?} after {after:?}"), refused)?;
    }
    let longest = "k".repeat(key::MAX_KEY_BYTES);
    store.put_if(&longest, Expect::Absent, Bytes::new()).await?;
    holds("the longest key is not found", store.get(&longest).await?.is_some())?;
    Ok(Verdict::Held)
}

pub(super) async fn list_prefix(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    // Not in order, and with neighbours on both sides of each prefix.
    for key in ["b/2", "a", "b.x", "c/1", "b/10", "b0", "b/1", "B/1", "b"] {
        store.put_if(key, Expect::Absent, Bytes::from(key.to_owned())).await?;
    }
    let expectations: [(&str, Option<&str>, &[&str]); 7] = [
        ("", None, &["B/1", "a", "b", "b.x", "b/1", "b/10", "b/2", "b0", "c/1"]),
        ("b/", None, &["b/1", "b/10", "b/2"]),
        ("b/1", None, &["b/1", "b/10"]),
        ("b/", Some("b/1"), &["b/10", "b/2"]),
        ("b/", Some("a"), &["b/1", "b/10", "b/2"]),
        ("b/", Some("b/2"), &[]),
        ("x", None, &[]),
    ];
    for (prefix, after, wanted) in expectations {
        let page = store.list(prefix, after, 0).await?;
        let keys: Vec<&str> = page.entries.iter().map(|e| e.key.as_str()).collect();
        same(&format!("keys of {prefix:?} after {after:?}"), &keys, &wanted.to_vec())?;
        same("where to read on", &page.next, &None)?;
        let own = page.entries.iter().all(|e| e.value == e.key.as_bytes());
        holds("a listed value is another key's", own)?;
        for entry in &page.entries {
            let alone = store.get(&entry.key).await?.map(|v| v.revision);
            same("revision alone and in the list", &alone, &Some(entry.revision))?;
        }
    }
    Ok(Verdict::Held)
}

pub(super) async fn list_pages(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let keys: Vec<String> = (0..10).map(|n| format!("p/{n}")).collect();
    for key in &keys {
        store.put_if(key, Expect::Absent, Bytes::new()).await?;
    }
    store.put_if("q", Expect::Absent, Bytes::new()).await?;
    for limit in [1, 3, 5, 9, 10, 11] {
        let pages = read_pages(&*store, "p/", limit).await?;
        let all: Vec<&String> = pages.iter().flatten().collect();
        same(&format!("keys in pages of {limit}"), &all, &keys.iter().collect())?;
        let wanted = keys.len().div_ceil(limit);
        same(&format!("number of pages of {limit}"), &pages.len(), &wanted)?;
    }
    // A page goes on after a key that has been deleted meanwhile.
    let page = store.list("p/", None, 4).await?;
    same("where to read on", &page.next, &Some("p/3".to_owned()))?;
    let gone = page.entries.last().map(|e| e.revision).unwrap_or_default();
    store.delete_if("p/3", gone).await?;
    let rest = store.list("p/", page.next.as_deref(), 1).await?;
    let first = rest.entries.first().map(|e| e.key.clone());
    same("first key after a deleted one", &first, &Some("p/4".to_owned()))?;
    Ok(Verdict::Held)
}

async fn read_pages(
    store: &dyn Meta,
    prefix: &str,
    limit: usize,
) -> Result<Vec<Vec<String>>, Broken> {
    let mut pages = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), limit).await?;
        holds("a page is longer than its limit", page.entries.len() <= limit)?;
        pages.push(page.entries.into_iter().map(|e| e.key).collect());
        after = page.next;
        if after.is_none() {
            return Ok(pages);
        }
        holds("a list does not end", pages.len() < 1000)?;
    }
}

pub(super) async fn list_bytes(subject: &mut impl Subject) -> Checked {
    let store = subject.store();
    let value = Bytes::from(vec![7; MAX_VALUE_BYTES]);
    for n in 0..5 {
        store.put_if(&format!("v/{n}"), Expect::Absent, value.clone()).await?;
    }
    let page = store.list("v/", None, 0).await?;
    let size: usize = page.entries.iter().map(|e| e.key.len() + e.value.len()).sum();
    holds("a page has more bytes than it may", size <= crate::MAX_PAGE_BYTES)?;
    holds("a page has no entries though there are some", !page.entries.is_empty())?;
    let all = list_all(&*store, "v/").await?;
    same("number of entries over all pages", &all.len(), &5)?;
    holds("a listed value is not whole", all.iter().all(|e| e.value == value))?;
    Ok(Verdict::Held)
}
