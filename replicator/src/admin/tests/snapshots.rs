//! Snapshots that several calls want at the same time. What a call does between two looks at the
//! record store is done here by hand.

use lockstep_core::id::{Gen, SnapshotId};

use super::super::catalog::SnapshotObject;
use super::*;

/// An attempt at a snapshot of a volume, with this node's copy of it whole already.
async fn attempt(node: &Node) -> SnapshotObject {
    node.create().await.unwrap();
    let volume = node.admin.inner.catalog.volume("v").await.unwrap().unwrap().value;
    let object = SnapshotObject::new("s", &volume, vec![node.admin.inner.node.clone()]);
    node.admin.inner.catalog.put_snapshot(None, &object).await.unwrap();
    std::fs::create_dir(copy(node, &object)).unwrap();
    object
}

fn copy(node: &Node, object: &SnapshotObject) -> std::path::PathBuf {
    node.dir.path().join("pool/snapshots").join(object.uid.to_string())
}

async fn note_dropped(node: &Node, object: &SnapshotObject) {
    let (catalog, own) = (&node.admin.inner.catalog, &node.admin.inner.node);
    catalog.put_dropped(own, object.uid, &object.name, 0).await.unwrap();
}

async fn change(node: &Node, to: &SnapshotObject) {
    let catalog = &node.admin.inner.catalog;
    let found = catalog.snapshot(&to.name).await.unwrap().unwrap();
    catalog.put_snapshot(Some(found.revision), to).await.unwrap();
}

/// Another call has written notes that its copies are to go, and did not get to take it over.
#[tokio::test]
async fn an_attempt_that_can_still_be_finished_keeps_its_copies() {
    let node = Node::start().await;
    let object = attempt(&node).await;
    note_dropped(&node, &object).await;
    node.admin.remove_dropped().await.unwrap();
    assert!(copy(&node, &object).exists(), "it may be finished right now");
    assert_eq!(node.keys("dropped/").await.len(), 1, "the note stays until that is decided");

    change(&node, &object.clone().at(Stage::Ready)).await;
    node.admin.remove_dropped().await.unwrap();
    assert!(copy(&node, &object).exists(), "it was finished");
    assert!(node.keys("dropped/").await.is_empty());

    change(&node, &object.clone().at(Stage::Creating)).await;
    note_dropped(&node, &object).await;
    let mut other = object.clone();
    other.uid = SnapshotId(Uuid::new_v4());
    change(&node, &other).await;
    node.admin.remove_dropped().await.unwrap();
    assert!(!copy(&node, &object).exists(), "it was taken over");
    node.stop().await;
}

#[tokio::test]
async fn who_forgets_an_attempt_forgets_no_other_one() {
    let node = Node::start().await;
    let object = attempt(&node).await;
    let mut other = object.clone();
    other.uid = SnapshotId(Uuid::new_v4());
    node.admin.forget_snapshot(&other, Stage::Creating).await.unwrap();
    node.admin.forget_snapshot(&object, Stage::Deleting).await.unwrap();
    assert_eq!(node.keys("snapshot/").await, ["snapshot/s"]);
    node.admin.forget_snapshot(&object, Stage::Creating).await.unwrap();
    assert!(node.keys("snapshot/").await.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn what_is_being_deleted_is_not_finished() {
    let node = Node::start().await;
    let object = attempt(&node).await;
    let volume = node.admin.inner.catalog.volume("v").await.unwrap().unwrap().value;
    change(&node, &object.clone().at(Stage::Deleting)).await;
    let taken = lockstep_core::primary::Snapshot {
        id: object.uid,
        blocks: 256,
        r#gen: Gen(1),
        replicas: Vec::new(),
        pause_us: 1,
        drain_us: 0,
    };
    let refused = node.admin.finish_snapshot(&volume, object.clone(), &taken).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    let found = node.admin.inner.catalog.snapshot("s").await.unwrap().unwrap().value;
    assert_eq!(found.stage, Stage::Deleting, "whoever deletes it has dropped copies");
    assert!(node.admin.remove_snapshot("s").await.unwrap());
    assert!(!copy(&node, &object).exists() && node.keys("snapshot/").await.is_empty());
    node.stop().await;
}
