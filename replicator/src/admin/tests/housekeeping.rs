//! What a node does for itself, with a pool in which nothing can be removed.

use lockstep_core::id::{Lineage, SnapshotId};

use super::*;
use crate::engine::NewReplica;

fn snapshot(node: &Node, pool: &str, id: SnapshotId) -> std::path::PathBuf {
    node.dir.path().join(pool).join("snapshots").join(id.to_string())
}

/// The disk of a pool refuses to have anything removed.
fn spoil_trash(node: &Node, pool: &str) {
    let trash = node.dir.path().join(pool).join("trash");
    std::fs::remove_dir(&trash).unwrap();
    std::fs::write(trash, "in the way").unwrap();
}

#[tokio::test]
async fn a_copy_that_cannot_be_removed_is_in_the_way_of_nothing_else() {
    let (dir, meta) = (TempDir::new().unwrap(), Arc::new(Faulty::over_memory()));
    let node = Node::with_pools(dir, meta, Uuid::new_v4(), &["pool", "second"]).await;
    spoil_trash(&node, "pool");
    let (stuck, other) = (SnapshotId(Uuid::from_u128(1)), SnapshotId(Uuid::from_u128(2)));
    let (catalog, own) = (&node.admin.inner.catalog, &node.admin.inner.node);
    for (pool, id) in [("pool", stuck), ("second", stuck), ("second", other)] {
        std::fs::create_dir(snapshot(&node, pool, id)).unwrap();
    }
    for id in [stuck, other] {
        catalog.put_dropped(own, id, "s", 0).await.unwrap();
    }
    let new = NewReplica {
        volume: VolumeId(Uuid::from_u128(3)),
        replica: ReplicaId(Uuid::from_u128(4)),
        lineage: Lineage(Uuid::from_u128(5)),
        blocks: 256,
        pool: "second".to_owned(),
        volume_name: "v".to_owned(),
        source: None,
        thick: false,
    };
    let (volume, replica) = (new.volume, new.replica);
    node.admin.inner.engine.create_replica(new).await.unwrap();
    catalog.put_gone(own, volume, replica, "v").await.unwrap();

    node.admin.keep_house_once().await.unwrap();
    assert!(snapshot(&node, "pool", stuck).exists());
    assert!(!snapshot(&node, "second", stuck).exists(), "one pool is not the other");
    assert!(!snapshot(&node, "second", other).exists());
    assert_eq!(node.keys("dropped/").await, [format!("dropped/n1/{stuck}")], "it is tried again");
    assert_eq!(node.replicas().await, 0);
    assert_eq!(node.keys("gone/").await, Vec::<String>::new());
    node.stop().await;
}
