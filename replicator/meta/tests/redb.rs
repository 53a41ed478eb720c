//! The record store in a file: locks, kills, damage, and the model beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

use bytes::Bytes;
use lockstep_meta::model::Model;
use lockstep_meta::redb::{OpenError, Redb};
use lockstep_meta::{Expect, Meta, PutError, Revision};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Set in a child process of these tests: the file it is to write to.
const CHILD_FILE: &str = "LOCKSTEP_META_TEST_CHILD";

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("records")
}

/// Does nothing unless a test below starts it in a process of its own; then it counts, tells every
/// acknowledged count, and never ends.
#[tokio::test]
async fn child_that_counts() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let store = Redb::open(PathBuf::from(path)).unwrap();
    let (mut count, mut expected) = match store.get("count").await.unwrap() {
        None => (0, Expect::Absent),
        Some(found) => (number(&found.value), Expect::Revision(found.revision)),
    };
    loop {
        count += 1;
        let revision = store.put_if("count", expected, Bytes::from(count.to_string())).await;
        expected = Expect::Revision(revision.unwrap());
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nacknowledged {count}").unwrap();
        out.flush().unwrap();
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

fn start_child(path: &Path) -> (Child, impl Iterator<Item = u64> + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_counts", "--nocapture"])
        .env(CHILD_FILE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let counts = lines.map_while(Result::ok).filter_map(|line| {
        line.strip_prefix("acknowledged ").map(|n| n.trim().parse::<u64>().unwrap())
    });
    (child, counts)
}

#[test]
fn an_acknowledged_change_survives_kills() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = 0;
    for round in 1..=5 {
        let (mut child, mut counts) = start_child(&file(&dir));
        // A different moment of the commit each time.
        for _ in 0..round * 7 {
            acknowledged = counts.next().expect("the child ended by itself");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = counts.last().unwrap_or(acknowledged);

        let store = Redb::open(file(&dir)).unwrap();
        let found = Runtime::new().unwrap().block_on(store.get("count")).unwrap();
        let count = number(&found.expect("the key is gone").value);
        let range = acknowledged..=acknowledged + 1;
        assert!(range.contains(&count), "acknowledged {acknowledged}, found {count}");
        acknowledged = count;
    }
}

#[test]
fn a_file_in_use_is_refused_with_the_name_of_its_owner() {
    let dir = TempDir::new().unwrap();
    let (mut child, mut counts) = start_child(&file(&dir));
    counts.next().expect("the child ended by itself");
    let refused = Redb::open(file(&dir)).unwrap_err();
    let pid = child.id();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused:?}");
    let message = refused.to_string();
    assert!(message.contains(&format!("process {pid} ")), "{message}");
    assert!(message.contains("stop that one first"), "{message}");
    Redb::open(file(&dir)).unwrap();
}

#[test]
fn a_second_open_in_the_same_process_is_refused_too() {
    let dir = TempDir::new().unwrap();
    let first = Redb::open(file(&dir)).unwrap();
    assert!(matches!(Redb::open(file(&dir)), Err(OpenError::InUse { .. })));
    drop(first);
    Redb::open(file(&dir)).unwrap();
}

#[test]
fn what_is_not_a_record_store_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    std::fs::write(file(&dir), "not a database, but somebody's letters").unwrap();
    let refused = Redb::open(file(&dir)).unwrap_err();
    assert!(matches!(refused, OpenError::File { .. }), "{refused:?}");
    let left = std::fs::read_to_string(file(&dir)).unwrap();
    assert_eq!(left, "not a database, but somebody's letters");
    assert!(matches!(Redb::open("/nonexistent/records"), Err(OpenError::File { .. })));
}

#[test]
fn another_format_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(Redb::open(file(&dir)).unwrap());
    let counters = redb::TableDefinition::<&str, u64>::new("counters");
    let database = redb::Database::open(file(&dir)).unwrap();
    let change = database.begin_write().unwrap();
    change.open_table(counters).unwrap().insert("format", 2).unwrap();
    change.commit().unwrap();
    drop(database);
    let refused = Redb::open(file(&dir)).unwrap_err();
    assert!(matches!(refused, OpenError::Format { found: 2, .. }), "{refused:?}");
}

#[derive(Clone, Debug)]
enum Op {
    Create(usize, u8),
    /// A revision so many changes behind the last one.
    Put(usize, u64, u8),
    Delete(usize, u64),
    List(usize, usize),
    Reopen,
}

const KEYS: [&str; 5] = ["a", "a/1", "a/2", "b", "a.b"];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..KEYS.len();
    let op = prop_oneof![
        4 => (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Create(k, v)),
        6 => (key.clone(), 0..4u64, any::<u8>()).prop_map(|(k, r, v)| Op::Put(k, r, v)),
        3 => (key.clone(), 0..4u64).prop_map(|(k, r)| Op::Delete(k, r)),
        3 => (key, 0..4usize).prop_map(|(k, limit)| Op::List(k, limit)),
        1 => Just(Op::Reopen),
    ];
    proptest::collection::vec(op, 1..40)
}

/// Runs one operation on both and compares the answers.
async fn agree(store: &Redb, model: &mut Model, last: &mut u64, op: &Op) {
    let behind = |by: &u64| Revision(last.saturating_sub(*by));
    let value = |v: &u8| Bytes::copy_from_slice(&[*v]);
    let changed = match op {
        Op::Create(k, v) => {
            let got = store.put_if(KEYS[*k], Expect::Absent, value(v)).await;
            assert_eq!(got, model.put_if(KEYS[*k], Expect::Absent, value(v)));
            got.is_ok()
        }
        Op::Put(k, by, v) => {
            let expected = Expect::Revision(behind(by));
            let got = store.put_if(KEYS[*k], expected, value(v)).await;
            assert_eq!(got, model.put_if(KEYS[*k], expected, value(v)));
            got.is_ok()
        }
        Op::Delete(k, by) => {
            let got = store.delete_if(KEYS[*k], behind(by)).await;
            assert_eq!(got, model.delete_if(KEYS[*k], behind(by)));
            got.is_ok()
        }
        Op::List(k, limit) => {
            let got = store.list("a", Some(KEYS[*k]), *limit).await.unwrap();
            assert_eq!(got, model.list("a", Some(KEYS[*k]), *limit).unwrap());
            false
        }
        Op::Reopen => false,
    };
    *last += u64::from(changed);
    for key in KEYS {
        assert_eq!(store.get(key).await, model.get(key), "{key} after {op:?}");
    }
}

#[test]
fn it_answers_as_the_model_does() {
    let runtime = Runtime::new().unwrap();
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let outcome = runner.run(&ops(), |ops| {
        let dir = TempDir::new().unwrap();
        let (mut model, mut last) = (Model::default(), 0);
        let mut store = Redb::open(file(&dir)).unwrap();
        for op in ops {
            if matches!(op, Op::Reopen) {
                drop(store);
                store = Redb::open(file(&dir)).unwrap();
            }
            runtime.block_on(agree(&store, &mut model, &mut last, &op));
        }
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn a_refused_change_uses_no_revision() {
    let dir = TempDir::new().unwrap();
    let store = Redb::open(file(&dir)).unwrap();
    let first = store.put_if("k", Expect::Absent, Bytes::new()).await.unwrap();
    for _ in 0..3 {
        let refused = store.put_if("k", Expect::Absent, Bytes::new()).await;
        assert_eq!(refused, Err(PutError::Conflict { current: Some(first) }));
    }
    let second = store.put_if("k", Expect::Revision(first), Bytes::new()).await.unwrap();
    assert_eq!(second.0, first.0 + 1);
}
