//! What calls leave that were broken off.

use super::super::catalog::{Origin, SnapshotObject, VolumeObject};
use super::super::snapshots::{taken_for, unix_ms};
use super::*;
use lockstep_core::id::{Gen, Lineage, SnapshotId, VolumeId};
use lockstep_core::record::{NewVolume, Record};

/// A snapshot that somebody took for volume `v` just now, and told nobody of.
async fn taken(node: &Node, of: &VolumeObject) {
    let nodes = vec![node.admin.inner.node.clone()];
    let mut snapshot = SnapshotObject::new(&taken_for("v"), of, nodes).at(Stage::Ready);
    snapshot.made_for = Some("v".to_owned());
    snapshot.created_unix_ms = unix_ms();
    node.admin.inner.catalog.put_snapshot(None, &snapshot).await.unwrap();
}

#[tokio::test]
async fn what_was_taken_for_a_volume_stays_until_the_volume_is_made() {
    let node = Node::start().await;
    node.create().await.unwrap();
    let catalog = &node.admin.inner.catalog;
    let made = catalog.volume("v").await.unwrap().unwrap();
    let is_there = async || catalog.snapshot(&taken_for("v")).await.unwrap().is_some();

    taken(&node, &made.value).await;
    node.admin.remove_used_up().await.unwrap();
    assert!(!is_there().await, "the volume has all it needs");

    let creating = made.value.clone().at(Stage::Creating);
    catalog.put_volume(Some(made.revision), &creating).await.unwrap();
    taken(&node, &creating).await;
    node.admin.remove_used_up().await.unwrap();
    assert!(is_there().await, "the volume is still being made");

    catalog.delete_volume("v").await.unwrap();
    node.admin.remove_used_up().await.unwrap();
    assert!(is_there().await, "the volume may be about to be begun");
    node.stop().await;
}

#[tokio::test]
async fn what_was_taken_for_a_volume_once_more_goes_with_it() {
    let node = Node::start().await;
    node.create().await.unwrap();
    let catalog = &node.admin.inner.catalog;
    let made = catalog.volume("v").await.unwrap().unwrap();
    let origin =
        Origin { name: "w".to_owned(), snapshot: SnapshotId(Uuid::new_v4()), r#gen: Gen(1) };
    let mut begun = made.value;
    begun.origin = Some(origin);
    catalog.put_volume(Some(made.revision), &begun).await.unwrap();
    taken(&node, &begun).await;
    node.admin.delete("v").await.unwrap();
    assert!(catalog.snapshot(&taken_for("v")).await.unwrap().is_none());
    node.stop().await;
}

/// A record that names one copy, on another node.
fn record_of(uid: VolumeId) -> Record {
    let elsewhere = (ReplicaId(Uuid::new_v4()), NodeId::new("n2").unwrap(), "default".to_owned());
    let new = NewVolume {
        uid,
        lineage: Lineage(Uuid::new_v4()),
        blocks: 256,
        repl: 1,
        min_in_sync: 1,
        replicas: vec![elsewhere],
    };
    Record::create(new, Uuid::new_v4()).unwrap()
}

#[tokio::test]
async fn a_copy_that_no_record_came_to_name_goes() {
    let node = Node::start().await;
    let (catalog, own) = (&node.admin.inner.catalog, &node.admin.inner.node);
    let (uid, rid) = (VolumeId(Uuid::new_v4()), ReplicaId(Uuid::new_v4()));
    let make = async |begun_unix_ms| {
        catalog.put_begun(own, uid, rid, "w", begun_unix_ms).await.unwrap();
        let request = v1::CreateReplicaRequest {
            uid: uid.to_string(),
            rid: rid.to_string(),
            lineage: Uuid::new_v4().to_string(),
            size_bytes: 1 << 20,
            pool: "default".to_owned(),
            volume_name: "w".to_owned(),
            ..Default::default()
        };
        node.admin.create_own_replica(request).await.unwrap();
    };
    catalog.put_record(None, &record_of(uid)).await.unwrap();
    make(unix_ms()).await;
    node.admin.keep_house_once().await.unwrap();
    assert_eq!(node.replicas().await, 1, "the record may be about to name it");

    catalog.delete_record(uid).await.unwrap();
    node.admin.keep_house_once().await.unwrap();
    assert_eq!(node.replicas().await, 0, "the volume is gone");
    assert_eq!(node.keys("gone/").await, Vec::<String>::new());

    catalog.put_record(None, &record_of(uid)).await.unwrap();
    make(1).await;
    node.admin.keep_house_once().await.unwrap();
    assert_eq!(node.replicas().await, 0, "whoever made it is gone");
    node.stop().await;
}

#[tokio::test]
async fn a_call_whose_caller_is_gone_brings_no_volume_back() {
    let node = Node::start().await;
    let gone = CancellationToken::new();
    gone.cancel();
    let request = || v1::CreateVolumeRequest {
        name: "v".to_owned(),
        size_bytes: 1 << 20,
        repl: 1,
        ..Default::default()
    };
    let late = node.admin.create_for(request(), &gone).await.unwrap_err();
    assert_eq!(late.code(), Code::Cancelled, "{late:?}");
    assert_eq!(node.keys("volume/").await, Vec::<String>::new());
    let made = node.create().await.unwrap();
    let again = node.admin.create_for(request(), &gone).await.unwrap();
    assert_eq!(again.uid, made.uid, "what is there is found");
    node.stop().await;
}

#[tokio::test]
async fn a_volume_that_nobody_can_reach_is_not_attached() {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    let uid = names::uid(&made.uid).unwrap();
    let in_the_way = node.dir.path().join("nbd/v.sock");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let refused = node.attach(false).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    assert!(refused.message().contains("v.sock"), "{refused:?}");
    assert!(node.admin.inner.engine.attached(uid).is_none(), "nobody would detach it");
    let record = node.admin.inner.catalog.record(uid).await.unwrap().unwrap();
    assert_eq!(record.value.primary, None);
    std::fs::remove_dir(&in_the_way).unwrap();
    node.attach(false).await.unwrap();
    assert!(node.detach().await.unwrap());
    node.stop().await;
}
