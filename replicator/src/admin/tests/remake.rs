//! Copies of snapshots that this node is to make: of what another one has, which is no more than an
//! engine here.

use lockstep_core::id::{Gen, SnapshotId};

use super::*;
use crate::admin::catalog::{NodeObject, SnapshotObject};
use crate::pool::tests::kept;

fn n(i: u8) -> NodeId {
    NodeId::new(&format!("n{i}")).unwrap()
}

/// The other node; it is where `peer` says.
async fn introduce(node: &Node, peer: String) {
    let other = NodeObject::new(n(2), peer, "127.0.0.1:1".to_owned(), Uuid::new_v4());
    node.admin.inner.catalog.put_node(&other).await.unwrap();
}

async fn other(node: &Node) -> Engine {
    let store: Arc<dyn lockstep_meta::Meta> = node.meta.clone();
    let catalog = Catalog::new(Arc::clone(&store));
    let config = EngineConfig {
        cluster: node.cluster,
        node: n(2),
        listen: "127.0.0.1:0".parse().unwrap(),
        pools: vec![PoolConfig {
            name: "default".to_owned(),
            dir: node.dir.path().join("other"),
            capacity_bytes: None,
            overcommit_percent: 100,
            reserve_bytes: 0,
        }],
        incoming_resyncs: 2,
        direct_io: true,
        version: "test".to_owned(),
    };
    Engine::start(config, store, Arc::new(CatalogResolver::new(catalog))).await.unwrap()
}

/// A snapshot of the volume that node 2 has, and node 1 is to make.
async fn ordered(node: &Node, id: SnapshotId) -> SnapshotObject {
    node.create().await.unwrap();
    let volume = node.admin.inner.catalog.volume("v").await.unwrap().unwrap().value;
    let mut object = SnapshotObject::new("s", &volume, vec![n(2)]).at(Stage::Ready);
    object.uid = id;
    (object.size_bytes, object.r#gen, object.making) = (kept::BLOCKS * 4096, Gen(9), vec![n(1)]);
    node.admin.inner.catalog.put_snapshot(None, &object).await.unwrap();
    object
}

async fn found(node: &Node) -> Option<SnapshotObject> {
    node.admin.inner.catalog.snapshot("s").await.unwrap().map(|stored| stored.value)
}

fn kept_in(node: &Node, pool: &str) -> Vec<String> {
    let entries = std::fs::read_dir(node.dir.path().join(pool).join("snapshots")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn wait_until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

#[tokio::test]
async fn d4_an_order_in_the_record_store_is_carried_out_and_the_copy_named() {
    let node = Node::start().await;
    let engine = other(&node).await;
    introduce(&node, engine.peer_addr().to_string()).await;
    let volume = node.create().await.unwrap().uid.parse().unwrap();
    let id = SnapshotId(Uuid::new_v4());
    kept::keep(&node.dir.path().join("other"), id, VolumeId(volume));
    ordered(&node, id).await;
    // The other one says nothing: it is forgotten since the volume wants one copy.
    wait_until("only this node has it", async || {
        found(&node).await.is_some_and(|s| s.nodes == [n(1)] && s.making.is_empty())
    })
    .await;
    assert_eq!(kept_in(&node, "pool"), [id.to_string()]);
    assert_eq!(node.keys("dropped/n2/").await.len(), 1, "it is told so when it is back");
    let shown = node.admin.look_at_snapshot("s").await.unwrap();
    assert_eq!((shown.wanted, shown.lost_blocks, shown.copies.len()), (1, 0, 1));
    assert_eq!(shown.copies[0].state(), v1::SnapshotCopyState::Present);
    engine.shutdown(LONG).await;
    node.stop().await;
}

#[tokio::test]
async fn d4_deleting_the_snapshot_ends_the_attempt_and_nothing_is_left() {
    let node = Node::start().await;
    // Nobody listens there.
    introduce(&node, "127.0.0.1:1".to_owned()).await;
    let object = ordered(&node, SnapshotId(Uuid::new_v4())).await;
    let unfinished = format!(".new-{}", object.uid);
    wait_until("it is begun", async || kept_in(&node, "pool").contains(&unfinished)).await;
    let shown = node.admin.look_at_snapshot("s").await.unwrap();
    let making = shown.copies.iter().find(|copy| copy.node == "n1").unwrap();
    assert_eq!(making.state(), v1::SnapshotCopyState::Making);
    assert!(node.admin.delete_snapshot("s").await.unwrap());
    wait_until("nothing is left of it", async || kept_in(&node, "pool").is_empty()).await;
    assert_eq!(found(&node).await, None);
    assert_eq!(node.keys("dropped/n1/").await.len(), 1, "a copy may still come");
    node.stop().await;
}

#[tokio::test]
async fn d4_a_daemon_that_stops_ends_its_attempts_and_the_next_takes_them_up() {
    let node = Node::start().await;
    introduce(&node, "127.0.0.1:1".to_owned()).await;
    let object = ordered(&node, SnapshotId(Uuid::new_v4())).await;
    let unfinished = format!(".new-{}", object.uid);
    wait_until("it is begun", async || kept_in(&node, "pool").contains(&unfinished)).await;
    let node = node.restart(|_| {}).await;
    wait_until("it is begun anew", async || kept_in(&node, "pool").contains(&unfinished)).await;
    assert_eq!(found(&node).await, Some(object));
    node.stop().await;
}
