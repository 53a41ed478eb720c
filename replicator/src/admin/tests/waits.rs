//! Devices that wait for the next daemon, and who may have their volumes meanwhile.

use lockstep_core::id::{InstanceId, VolumeId};
use lockstep_core::limits::SESSION_DEAD_MS;
use lockstep_core::record::{Claimed, PrimaryRef, Record};
use lockstep_proto::v1::control_server::ControlServer;

use super::devices::NotServed;
use super::*;

const OTHER: &str = "n2";

/// A volume that was served here, and whose device waits for the daemon after this one.
async fn replaced(claimed: impl FnOnce(Claimed) -> Option<Claimed>) -> (Node, VolumeId) {
    let node = Node::start().await;
    let made = node.create().await.unwrap();
    node.attach(false).await.unwrap();
    let uid = names::uid(&made.uid).unwrap();
    let of = claimed(record(&node, uid).await.claimed());
    let cut_off = node.admin.end(LONG).await;
    assert!(cut_off.is_empty(), "{cut_off:?} did not close");
    let Node { admin, meta, dir, cluster } = node;
    drop(admin);
    leave_a_device(&dir, &made.uid);
    note_claim(&dir, uid, of);
    // Its devices are not looked after yet.
    (Node::introduced(dir, meta, cluster).await, uid)
}

fn note_claim(dir: &TempDir, uid: VolumeId, claimed: Option<Claimed>) {
    let path = dir.path().join("run/devices").join(format!("{uid}.json"));
    let mut note: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    if let Some(claimed) = claimed {
        note["claimed"] = serde_json::to_value(claimed).unwrap();
    }
    std::fs::write(path, note.to_string()).unwrap();
}

async fn record(node: &Node, uid: VolumeId) -> Record {
    node.admin.inner.catalog.record(uid).await.unwrap().unwrap().value
}

async fn change(node: &Node, uid: VolumeId, change: impl FnOnce(&Record) -> Record) {
    let catalog = &node.admin.inner.catalog;
    let stored = catalog.record(uid).await.unwrap().unwrap();
    catalog.put_record(Some(stored.revision), &change(&stored.value)).await.unwrap();
}

/// A node has the volume, and closes it in good order.
async fn had_by(node: &Node, uid: VolumeId, name: &str) {
    let primary =
        PrimaryRef { node: NodeId::new(name).unwrap(), instance: InstanceId(Uuid::new_v4()) };
    // No copy has promised anything, so nothing was opened.
    change(node, uid, |record| record.claim(primary, Uuid::new_v4()).close(Uuid::new_v4())).await;
}

/// Whether the volume came to be served for its device. (That is then lost: no kernel has it.)
async fn goes_on(node: &Node, uid: VolumeId) -> bool {
    let left = node.admin.inner.devices.left();
    assert_eq!(left.len(), 1);
    node.admin.resume_device(&left[0]).await;
    assert_eq!(node.admin.inner.devices.left(), [], "it waits no more");
    node.admin.inner.engine.attached(uid).is_some()
}

#[tokio::test]
async fn a_device_whose_volume_nobody_else_had_goes_on() {
    for old in [false, true] {
        let (node, uid) = replaced(|claimed| (!old).then_some(claimed)).await;
        assert_eq!(record(&node, uid).await.primary, None);
        // A former daemon of this node that claimed it, and died before it could note that.
        had_by(&node, uid, "n1").await;
        assert!(goes_on(&node, uid).await, "noted by an older build: {old}");
        node.stop().await;
    }
}

#[tokio::test]
async fn a_device_whose_volume_another_node_had_in_between_is_ended() {
    for old in [false, true] {
        let (node, uid) = replaced(|claimed| (!old).then_some(claimed)).await;
        had_by(&node, uid, OTHER).await;
        let before = record(&node, uid).await;
        assert!(!goes_on(&node, uid).await, "noted by an older build: {old}");
        assert_eq!(record(&node, uid).await, before, "the volume is left alone");
        node.stop().await;
    }
}

#[tokio::test]
async fn a_device_is_ended_also_if_this_node_had_its_volume_after_the_other() {
    let (node, uid) = replaced(Some).await;
    had_by(&node, uid, OTHER).await;
    had_by(&node, uid, "n1").await;
    assert!(!goes_on(&node, uid).await);
    node.stop().await;
}

#[tokio::test]
async fn a_device_is_ended_also_if_another_node_was_quicker_after_all_was_looked_at() {
    let (node, uid) = replaced(Some).await;
    let volume = node.admin.ready_volume("v").await.unwrap();
    let left = node.admin.inner.devices.left();
    had_by(&node, uid, OTHER).await;
    let refused = node.admin.claim_again(&volume, &left[0]).await.unwrap_err();
    assert!(matches!(refused, NotServed::Ever(_)), "{refused:?}");
    assert_eq!(node.admin.inner.devices.left(), []);
    assert!(node.admin.inner.engine.attached(uid).is_none(), "nobody has asked for it");
    let record = record(&node, uid).await;
    assert_eq!((record.epoch, record.clean), (Epoch(3), true), "it was claimed, and closed");
    node.stop().await;
}

async fn attach_for_moment(node: &Node) -> Result<(), Status> {
    let volume = node.admin.ready_volume("v").await.unwrap();
    let handle = node.admin.attach_for_moment(&volume, LONG).await?;
    node.admin.let_go(&volume, &handle).await;
    Ok(())
}

/// A volume that another node had last, whose daemon is to be found at `address`.
async fn last_had_at(node: &Node, address: &str) -> VolumeId {
    let uid = names::uid(&node.create().await.unwrap().uid).unwrap();
    let (name, address) = (NodeId::new(OTHER).unwrap(), address.to_owned());
    let other = NodeObject::new(name, address.clone(), address, Uuid::new_v4());
    node.admin.inner.catalog.put_node(&other).await.unwrap();
    had_by(node, uid, OTHER).await;
    uid
}

#[tokio::test]
async fn nobody_has_a_volume_for_a_moment_while_the_daemon_of_its_last_node_is_away() {
    let node = Node::start().await;
    let uid = last_had_at(&node, "127.0.0.1:1").await;
    let refused = attach_for_moment(&node).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("is being replaced"), "{refused:?}");
    assert_eq!(record(&node, uid).await.epoch, Epoch(1), "nobody has claimed it");

    change(&node, uid, |r| Record { clean: false, ..r.clone() }).await;
    attach_for_moment(&node).await.unwrap();
    assert_eq!(record(&node, uid).await.epoch, Epoch(2), "it was given up by force there");
    node.stop().await;
}

#[tokio::test]
async fn a_last_node_that_is_silent_for_long_is_not_waited_for() {
    let node = Node::start().await;
    // Connections are made, and nothing is answered.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    last_had_at(&node, &mute.local_addr().unwrap().to_string()).await;
    let begin = std::time::Instant::now();
    attach_for_moment(&node).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(SESSION_DEAD_MS), "it was not waited for");
    node.stop().await;
}

/// A daemon of another node of the same cluster, which begins, and has a device to take over.
async fn other_with_a_device(node: &Node, uid: VolumeId) -> (Node, tokio::task::JoinHandle<()>) {
    let dir = TempDir::new().unwrap();
    leave_a_device(&dir, &uid.to_string());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (meta, cluster) = (Arc::clone(&node.meta), node.cluster);
    let other = Node::named(OTHER, address, dir, meta, cluster, &["pool"], None).await;
    let control = ControlServer::new(other.admin.clone());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let served = tonic::transport::Server::builder().add_service(control);
    let server = tokio::spawn(async { served.serve_with_incoming(incoming).await.unwrap() });
    (other, server)
}

#[tokio::test]
async fn nobody_has_a_volume_for_a_moment_while_its_device_waits_elsewhere() {
    let node = Node::start().await;
    let uid = names::uid(&node.create().await.unwrap().uid).unwrap();
    had_by(&node, uid, OTHER).await;
    let (other, server) = other_with_a_device(&node, uid).await;
    let refused = attach_for_moment(&node).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("about to serve volume v again"), "{refused:?}");

    // What this daemon leaves to the next one waits as well.
    other.admin.release_devices().await;
    assert_eq!(other.admin.inner.devices.left(), []);
    let refused = attach_for_moment(&node).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert_eq!(record(&node, uid).await.epoch, Epoch(1), "nobody has claimed it");
    server.abort();
    other.stop().await;
    node.stop().await;
}

#[tokio::test]
async fn a_volume_is_had_for_a_moment_whose_last_node_is_well() {
    let node = Node::start().await;
    let uid = names::uid(&node.create().await.unwrap().uid).unwrap();
    had_by(&node, uid, OTHER).await;
    let (other, server) = other_with_a_device(&node, uid).await;
    other.admin.inner.devices.close(uid, true).await.unwrap();
    attach_for_moment(&node).await.unwrap();
    assert_eq!(record(&node, uid).await.epoch, Epoch(2));
    server.abort();
    other.stop().await;
    node.stop().await;
}

/// This node has the volume for the moment and for its device at once.
#[tokio::test]
async fn a_device_goes_on_whose_volume_this_node_had_for_a_moment() {
    let (node, uid) = replaced(Some).await;
    attach_for_moment(&node).await.unwrap();
    assert!(node.admin.inner.engine.attached(uid).is_some(), "it is for the device, too");
    assert!(goes_on(&node, uid).await);
    node.stop().await;
}
