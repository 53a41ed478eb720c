//! A volume is taken from a node that is lost, and kept for whoever wants it.

use lockstep_core::id::InstanceId;
use lockstep_core::limits::SESSION_DEAD_MS;
use lockstep_core::record::PrimaryRef;

use super::*;

const LOST: &str = "n9";

async fn epoch(node: &Node) -> u64 {
    let volume = node.admin.look_at("v").await.unwrap();
    volume.epoch
}

/// Another node claims the volume, and is heard of no more.
async fn lose(node: &Node) {
    let volume = node.admin.inner.catalog.volume("v").await.unwrap().unwrap().value;
    let stored = node.admin.inner.catalog.record(volume.uid).await.unwrap().unwrap();
    let lost =
        PrimaryRef { node: NodeId::new(LOST).unwrap(), instance: InstanceId(Uuid::new_v4()) };
    let claimed = stored.value.claim(lost, Uuid::new_v4());
    node.admin.inner.catalog.put_record(Some(stored.revision), &claimed).await.unwrap();
}

async fn fence(node: &Node, lost: &str, wait_ms: u64) -> Result<v1::FenceVolumeResponse, Status> {
    let (name, lost) = ("v".to_owned(), lost.to_owned());
    let request = v1::FenceVolumeRequest { name, node: lost, wait_ms, ..Default::default() };
    node.admin.fence_volume(request, false).await
}

#[tokio::test]
async fn a_volume_is_taken_from_a_lost_node_once_and_goes_to_whoever_attaches_it() {
    let node = Node::start().await;
    node.create().await.unwrap();
    lose(&node).await;
    let dry_run = v1::FenceVolumeRequest {
        name: "v".to_owned(),
        node: LOST.to_owned(),
        wait_ms: 5000,
        dry_run: true,
        could: false,
    };
    let could = node.admin.fence_volume(dry_run, false).await.unwrap();
    assert_eq!((could.epoch, epoch(&node).await), (1, 1), "nothing is changed yet");
    assert!(node.admin.inner.engine.list_primaries().await.is_empty());
    let told = fence(&node, LOST, 5000).await.unwrap();
    assert_eq!((told.epoch, told.by_node.as_str()), (2, "n1"), "one claim after the lost one's");
    assert!(told.placement_id.starts_with("p-"), "{told:?}");
    let again = fence(&node, LOST, 0).await.unwrap();
    assert_eq!(again, told, "it is not done twice");

    let only_node = Some("n1".to_owned());
    let cleared = v1::DetachRequest { name: "v".to_owned(), force: false, only_node };
    assert!(!node.admin.detach(cleared, false).await.unwrap(), "it was not attached for anybody");
    let uid = node.admin.inner.catalog.volume("v").await.unwrap().unwrap().value.uid;
    assert!(node.admin.is_spare(uid), "it is kept");
    let request = v1::AttachRequest { name: "v".to_owned(), ..Default::default() };
    let attached = node.admin.attach(request).await.unwrap();
    assert_eq!((attached.epoch, epoch(&node).await), (2, 2), "what was taken is used as it is");
    assert!(!node.admin.is_spare(uid), "nobody else may take it now");
    let alive = fence(&node, "n1", 1).await.unwrap_err();
    assert_eq!(alive.code(), Code::FailedPrecondition, "{alive}");
    node.stop().await;
}

/// A daemon that is told to stop leaves its volumes so, also those whose devices wait for the next.
#[tokio::test]
async fn a_volume_that_nobody_serves_is_taken_only_from_a_node_that_was_silent_for_long() {
    let node = Node::start().await;
    node.create().await.unwrap();
    let (name, nowhere) = (NodeId::new(LOST).unwrap(), "127.0.0.1:1".to_owned());
    let lost = NodeObject::new(name, nowhere.clone(), nowhere, Uuid::new_v4());
    node.admin.inner.catalog.put_node(&lost).await.unwrap();
    let early = fence(&node, LOST, 1).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable, "{early}");
    assert_eq!(epoch(&node).await, 0, "nobody has claimed it");
    let begin = std::time::Instant::now();
    let told = fence(&node, LOST, 5000).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(SESSION_DEAD_MS), "it was not waited for");
    assert_eq!((told.epoch, told.by_node.as_str()), (1, "n1"), "a later epoch ends the lost one's");
    node.stop().await;
}

#[tokio::test]
async fn what_nobody_wants_is_closed_again() {
    let node = Node::start().await;
    node.create().await.unwrap();
    lose(&node).await;
    fence(&node, LOST, 5000).await.unwrap();
    let begin = std::time::Instant::now();
    while !node.admin.look_at("v").await.unwrap().clean {
        assert!(begin.elapsed() < LONG, "it stays attached");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let volume = node.admin.look_at("v").await.unwrap();
    assert_eq!((volume.epoch, volume.primary_node), (2, None));
    node.stop().await;
}
