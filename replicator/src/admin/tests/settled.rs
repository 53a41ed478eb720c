//! What a node that was away waits for before the next one may go.

use lockstep_core::id::InstanceId;
use lockstep_core::record::{PrimaryRef, ReplicaState};

use super::*;

/// The copy here is out of date, and this node was the last to claim the volume.
async fn leave_behind(node: &Node, primary: &str) {
    leave_volume_behind(node, "v", primary).await;
}

async fn leave_volume_behind(node: &Node, name: &str, primary: &str) {
    let catalog = &node.admin.inner.catalog;
    let volume = catalog.volume(name).await.unwrap().unwrap().value;
    let stored = catalog.record(volume.uid).await.unwrap().unwrap();
    let instance = InstanceId(Uuid::new_v4());
    let primary = PrimaryRef { node: NodeId::new(primary).unwrap(), instance };
    let mut record = stored.value.claim(primary, Uuid::new_v4());
    let mut other = record.replicas[0].clone();
    (other.rid, other.node) = (ReplicaId(Uuid::new_v4()), NodeId::new("n2").unwrap());
    other.state = ReplicaState::InSync;
    record.replicas[0].state = ReplicaState::Out { since: record.r#gen, promised: Epoch(0) };
    record.replicas.truncate(1);
    record.replicas.push(other);
    catalog.put_record(Some(stored.revision), &record).await.unwrap();
}

#[tokio::test]
async fn a_copy_that_nobody_brings_up_to_date_is_not_waited_for() {
    let node = Node::start().await;
    node.create().await.unwrap();
    assert_eq!(node.admin.unsettled().await.unwrap(), Vec::<String>::new());
    leave_behind(&node, "n9").await;
    assert_eq!(node.admin.unsettled().await.unwrap(), ["the copy of v"], "n9 may serve it");
    leave_behind(&node, "n1").await;
    let waits = node.admin.unsettled().await.unwrap();
    assert_eq!(waits, Vec::<String>::new(), "its primary is gone");
    node.stop().await;
}

#[tokio::test]
async fn however_many_copies_are_waited_for_nodes_are_looked_up_once() {
    let dir = TempDir::new().unwrap();
    let node = Node::introduced(dir, Arc::new(Faulty::over_memory()), Uuid::new_v4()).await;
    // But for itself it does nothing that would be counted.
    node.admin.set_ready();
    let names = ["v0", "v1", "v2", "v3", "v4"];
    for name in names {
        let (name, size_bytes) = (name.to_owned(), 1 << 20);
        let request = v1::CreateVolumeRequest { name, size_bytes, repl: 1, ..Default::default() };
        node.admin.create_for(request, &CancellationToken::new()).await.unwrap();
    }
    for name in names {
        leave_volume_behind(&node, name, "n9").await;
    }
    let before = node.meta.reads();
    assert_eq!(node.admin.unsettled().await.unwrap().len(), names.len());
    let reads = node.meta.reads() - before;
    assert!(reads <= names.len() + 2, "{reads} reads of the record store in one look");
    node.stop().await;
}
