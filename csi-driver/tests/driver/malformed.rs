//! What no request may be, and the code that the specification asks for.

use crate::fake::Fake;
use crate::program::{Driver, daemon_socket};
use crate::snapshots::{from_snapshot, from_volume, snapshot};
use crate::volumes::{capability, wanted};
use lockstep_proto::csi;
use lockstep_proto::csi::controller_client::ControllerClient;
use lockstep_proto::csi::node_client::NodeClient;
use lockstep_proto::csi::volume_capability::AccessMode;
use std::collections::BTreeMap;
use tempfile::TempDir;
use tonic::Code::{
    self, Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange,
    ResourceExhausted, Unimplemented,
};
use tonic::{Response, Status};

/// Names that no volume has: too long ones and bad bytes are no ids at all.
const NOWHERE: [&str; 5] = ["none", "../../etc/passwd", "/", "A B", "ä"];
fn impossible() -> [String; 4] {
    [String::new(), "x".repeat(129), "a\0b".to_owned(), "a\u{1b}[2J".to_owned()]
}

fn path_traversals() -> [String; 6] {
    let long = format!("/{}", "a/".repeat(2100));
    ["", "relative", "/", "/a/../etc", "/./a", &long].map(str::to_owned)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(what: &str, expected: Code, answer: Result<Response<T>, Status>) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), expected, "{what}: {}", status.message());
    assert!(!status.message().is_empty(), "{what}: a refusal says why");
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn bad_volumes() -> Vec<(&'static str, Code, csi::CreateVolumeRequest)> {
    let request = || wanted("v");
    let range =
        |required_bytes, limit_bytes| Some(csi::CapacityRange { required_bytes, limit_bytes });
    let mode =
        |mode| csi::VolumeCapability { access_mode: Some(AccessMode { mode }), ..capability() };
    let source = csi::VolumeContentSource { r#type: None };
    let place = csi::Topology { segments: one("csi.lockstep.dev/node", "nowhere") };
    let nowhere = csi::TopologyRequirement { requisite: vec![place], preferred: Vec::new() };
    type Wanted = csi::CreateVolumeRequest;
    vec![
        ("no capability", InvalidArgument, Wanted { volume_capabilities: vec![], ..request() }),
        (
            "an empty capability",
            InvalidArgument,
            Wanted { volume_capabilities: vec![csi::VolumeCapability::default()], ..request() },
        ),
        (
            "one good and one bad capability",
            InvalidArgument,
            Wanted { volume_capabilities: vec![capability(), mode(5)], ..request() },
        ),
        (
            "an unknown mode",
            InvalidArgument,
            Wanted { volume_capabilities: vec![mode(77)], ..request() },
        ),
        ("a negative size", InvalidArgument, Wanted { capacity_range: range(-1, 0), ..request() }),
        ("a negative limit", InvalidArgument, Wanted { capacity_range: range(0, -1), ..request() }),
        (
            "a limit below the size",
            OutOfRange,
            Wanted { capacity_range: range(2 << 30, 1 << 30), ..request() },
        ),
        (
            "more than there can be",
            OutOfRange,
            Wanted { capacity_range: range(i64::MAX, 0), ..request() },
        ),
        (
            "less than a file system needs",
            OutOfRange,
            Wanted { capacity_range: range(1, 4096), ..request() },
        ),
        ("a strange key", InvalidArgument, Wanted { parameters: one("replica", "3"), ..request() }),
        ("a bad value", InvalidArgument, Wanted { parameters: one("repl", "many"), ..request() }),
        (
            "a key that does not change",
            InvalidArgument,
            Wanted { mutable_parameters: one("pool", "fast"), ..request() },
        ),
        (
            "an empty source",
            InvalidArgument,
            Wanted { volume_content_source: Some(source), ..request() },
        ),
        (
            "a place that is nowhere",
            ResourceExhausted,
            Wanted { accessibility_requirements: Some(nowhere), ..request() },
        ),
    ]
}

#[tokio::test]
async fn malformed_requests_to_the_controller() {
    let dir = TempDir::new().unwrap();
    let fake = Fake::default();
    let _daemon = fake.clone().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "controller").await;
    let mut client = ControllerClient::new(driver.channel().await);
    for (what, code, request) in bad_volumes() {
        refused(what, code, client.create_volume(request).await);
    }
    for name in impossible() {
        refused("a name", InvalidArgument, client.create_volume(wanted(&name)).await);
    }
    assert!(fake.volumes.lock().unwrap().is_empty(), "nothing was made of all these");

    let validate = |volume_id: &str, volume_capabilities: Vec<csi::VolumeCapability>| {
        csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.to_owned(),
            volume_capabilities,
            ..Default::default()
        }
    };
    let get = |id: &str| csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let health = |id: &str| csi::ControllerGetVolumeHealthRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    };
    let modify = |id: &str| csi::ControllerModifyVolumeRequest {
        volume_id: id.to_owned(),
        mutable_parameters: one("repl", "2"),
        ..Default::default()
    };
    let delete =
        |id: &str| csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
    let nonsense = impossible().map(|id| (InvalidArgument, id));
    let nobody = NOWHERE.map(|id| (NotFound, id.to_owned()));
    for (code, id) in nonsense.iter().chain(&nobody) {
        let asked = client.validate_volume_capabilities(validate(id, vec![capability()])).await;
        refused(&format!("validate {id:?}"), *code, asked);
        refused(&format!("get {id:?}"), *code, client.controller_get_volume(get(id)).await);
        let asked = client.controller_get_volume_health(health(id)).await;
        refused(&format!("health {id:?}"), *code, asked);
        refused(
            &format!("modify {id:?}"),
            *code,
            client.controller_modify_volume(modify(id)).await,
        );
    }
    for (code, id) in &nonsense {
        refused(&format!("delete {id:?}"), *code, client.delete_volume(delete(id)).await);
    }
    for id in NOWHERE {
        client.delete_volume(delete(id)).await.expect("what is not there is deleted");
    }
    let no_capability = client.validate_volume_capabilities(validate("v", vec![])).await;
    refused("validate nothing", InvalidArgument, no_capability);

    for (max_entries, token, code) in
        [(0, "invalid-token", Aborted), (0, "after.1.../..", Aborted), (-1, "", InvalidArgument)]
    {
        let starting_token = token.to_owned();
        let request = csi::ListVolumesRequest { max_entries, starting_token };
        refused(token, code, client.list_volumes(request).await);
    }
}

#[tokio::test]
async fn malformed_requests_for_snapshots_and_room() {
    let dir = TempDir::new().unwrap();
    let fake = Fake::default();
    let _daemon = fake.clone().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "controller").await;
    let mut client = ControllerClient::new(driver.channel().await);
    client.create_volume(wanted("v")).await.unwrap();
    let get =
        |id: &str| csi::GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    let delete =
        |id: &str| csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    let expand = |id: &str, required_bytes, limit_bytes| csi::ControllerExpandVolumeRequest {
        volume_id: id.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes }),
        ..Default::default()
    };
    for bad in impossible() {
        refused("a name", InvalidArgument, client.create_snapshot(snapshot(&bad, "v")).await);
        refused("a source", InvalidArgument, client.create_snapshot(snapshot("s", &bad)).await);
        refused("get", InvalidArgument, client.get_snapshot(get(&bad)).await);
        refused("delete", InvalidArgument, client.delete_snapshot(delete(&bad)).await);
        let grown = client.controller_expand_volume(expand(&bad, 1 << 31, 0)).await;
        refused("expand", InvalidArgument, grown);
        if !bad.is_empty() {
            let request =
                csi::ListSnapshotsRequest { snapshot_id: bad.clone(), ..Default::default() };
            refused("list", InvalidArgument, client.list_snapshots(request).await);
            let request = csi::ListSnapshotsRequest { source_volume_id: bad, ..Default::default() };
            refused("list", InvalidArgument, client.list_snapshots(request).await);
        }
    }
    for id in NOWHERE {
        refused(id, NotFound, client.create_snapshot(snapshot("s", id)).await);
        refused(id, NotFound, client.get_snapshot(get(id)).await);
        refused(id, NotFound, client.controller_expand_volume(expand(id, 1 << 31, 0)).await);
        client.delete_snapshot(delete(id)).await.expect("what is not there is deleted");
    }
    let strange = csi::CreateSnapshotRequest { parameters: one("a", "b"), ..snapshot("s", "v") };
    refused("a strange key", InvalidArgument, client.create_snapshot(strange).await);
    for (required, limit, code) in
        [(0, 0, InvalidArgument), (-1, 0, InvalidArgument), (2 << 30, 1 << 30, OutOfRange)]
    {
        let grown = client.controller_expand_volume(expand("v", required, limit)).await;
        refused("a range", code, grown);
    }
    let none = csi::ControllerExpandVolumeRequest { volume_id: "v".into(), ..Default::default() };
    refused("no range", InvalidArgument, client.controller_expand_volume(none).await);
    let token = csi::ListSnapshotsRequest { starting_token: "x".into(), ..Default::default() };
    refused("a token", Aborted, client.list_snapshots(token).await);
}

#[tokio::test]
async fn bad_sources_of_volumes() {
    let dir = TempDir::new().unwrap();
    let fake = Fake::default();
    let _daemon = fake.clone().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "controller").await;
    let mut client = ControllerClient::new(driver.channel().await);
    client.create_volume(wanted("v")).await.unwrap();
    client.create_snapshot(snapshot("s", "v")).await.unwrap();
    let range = Some(csi::CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 });
    let smaller = csi::CreateVolumeRequest {
        volume_content_source: from_snapshot("s"),
        capacity_range: range,
        ..wanted("w")
    };
    refused("smaller than its source", OutOfRange, client.create_volume(smaller).await);
    for (code, volume_content_source) in [
        (InvalidArgument, from_snapshot("")),
        (InvalidArgument, from_volume("a\0b")),
        (NotFound, from_snapshot("none")),
        (NotFound, from_volume("../etc")),
    ] {
        let what = format!("{volume_content_source:?}");
        let request = csi::CreateVolumeRequest { volume_content_source, ..wanted("w") };
        refused(&what, code, client.create_volume(request).await);
    }
    let place = csi::Topology { segments: one("csi.lockstep.dev/node", "nowhere") };
    let nowhere = csi::CreateVolumeRequest {
        volume_content_source: from_snapshot("s"),
        accessibility_requirements: Some(csi::TopologyRequirement {
            requisite: vec![place],
            preferred: Vec::new(),
        }),
        ..wanted("w")
    };
    refused("nowhere", ResourceExhausted, client.create_volume(nowhere).await);
    assert_eq!(fake.volumes.lock().unwrap().len(), 1, "nothing was made of all these");
}

#[tokio::test]
async fn what_is_not_claimed_is_not_served() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "controller").await;
    let mut client = ControllerClient::new(driver.channel().await);
    let publish =
        client.controller_publish_volume(csi::ControllerPublishVolumeRequest::default()).await;
    refused("publish", Unimplemented, publish);
    let unpublish =
        client.controller_unpublish_volume(csi::ControllerUnpublishVolumeRequest::default()).await;
    refused("unpublish", Unimplemented, unpublish);
    let mut node = NodeClient::new(driver.channel().await);
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await;
    assert_eq!(info.unwrap_err().code(), Unimplemented, "a controller is no node");
}

#[tokio::test]
async fn malformed_requests_to_the_node() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "--standalone").await;
    let mut controller = ControllerClient::new(driver.channel().await);
    controller.create_volume(wanted("v")).await.unwrap();
    let mut client = NodeClient::new(driver.channel().await);
    let path = dir.path().join("there").display().to_string();

    let stage = |id: &str, path: &str| csi::NodeStageVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: path.to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    let publish = |id: &str, path: &str| csi::NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: "/staging".to_owned(),
        target_path: path.to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    let unstage = |id: &str, path: &str| csi::NodeUnstageVolumeRequest {
        volume_id: id.to_owned(),
        staging_target_path: path.to_owned(),
    };
    let unpublish = |id: &str, path: &str| csi::NodeUnpublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: path.to_owned(),
    };
    let stats = |id: &str, path: &str| csi::NodeGetVolumeStatsRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        ..Default::default()
    };
    let ids = impossible().map(|id| (id, path.clone()));
    let paths = path_traversals().map(|path| ("v".to_owned(), path));
    for (id, path) in ids.iter().chain(&paths) {
        let what = format!("{id:?} at {path:.40?}");
        refused(&what, InvalidArgument, client.node_stage_volume(stage(id, path)).await);
        refused(&what, InvalidArgument, client.node_publish_volume(publish(id, path)).await);
        refused(&what, InvalidArgument, client.node_unstage_volume(unstage(id, path)).await);
        refused(&what, InvalidArgument, client.node_unpublish_volume(unpublish(id, path)).await);
    }
    for (id, _) in &ids {
        refused(id, InvalidArgument, client.node_get_volume_stats(stats(id, &path)).await);
    }
    for id in NOWHERE {
        refused(id, NotFound, client.node_stage_volume(stage(id, &path)).await);
        refused(id, NotFound, client.node_publish_volume(publish(id, &path)).await);
        refused(id, NotFound, client.node_get_volume_stats(stats(id, &path)).await);
        // What is not there is unstaged and unpublished already.
        client.node_unstage_volume(unstage(id, &path)).await.unwrap();
        client.node_unpublish_volume(unpublish(id, &path)).await.unwrap();
    }
    refused("no path", InvalidArgument, client.node_get_volume_stats(stats("v", "")).await);
    refused("elsewhere", NotFound, client.node_get_volume_stats(stats("v", "some/path")).await);
    refused("unstaged", FailedPrecondition, client.node_publish_volume(publish("v", &path)).await);
    let bare =
        csi::NodePublishVolumeRequest { staging_target_path: String::new(), ..publish("v", &path) };
    refused("no staging path", FailedPrecondition, client.node_publish_volume(bare).await);
    for (what, bad) in [("none", None), ("an empty one", Some(csi::VolumeCapability::default()))] {
        let staged =
            csi::NodeStageVolumeRequest { volume_capability: bad.clone(), ..stage("v", &path) };
        refused(what, InvalidArgument, client.node_stage_volume(staged).await);
        let published =
            csi::NodePublishVolumeRequest { volume_capability: bad, ..publish("v", &path) };
        refused(what, InvalidArgument, client.node_publish_volume(published).await);
    }
}

#[tokio::test]
async fn malformed_requests_to_grow_on_the_node() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "--standalone").await;
    let mut controller = ControllerClient::new(driver.channel().await);
    controller.create_volume(wanted("v")).await.unwrap();
    let mut client = NodeClient::new(driver.channel().await);
    let expand = |id: &str, path: &str| csi::NodeExpandVolumeRequest {
        volume_id: id.to_owned(),
        volume_path: path.to_owned(),
        ..Default::default()
    };
    let path = dir.path().join("there").display().to_string();
    for id in impossible() {
        refused(&id, InvalidArgument, client.node_expand_volume(expand(&id, &path)).await);
    }
    for id in NOWHERE {
        refused(id, NotFound, client.node_expand_volume(expand(id, &path)).await);
    }
    refused("no path", InvalidArgument, client.node_expand_volume(expand("v", "")).await);
    for path in [path.as_str(), "some/path", "/a/../etc", "/dev/null"] {
        refused(path, NotFound, client.node_expand_volume(expand("v", path)).await);
    }
    let capacity_range = Some(csi::CapacityRange { required_bytes: -1, limit_bytes: 0 });
    let negative = csi::NodeExpandVolumeRequest { capacity_range, ..expand("v", &path) };
    refused("a negative size", InvalidArgument, client.node_expand_volume(negative).await);
}

#[tokio::test]
async fn nothing_but_a_volume_is_unmounted_or_removed() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "node").await;
    let mut client = NodeClient::new(driver.channel().await);
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/file"), "mine").unwrap();
    let data = dir.path().join("data").display().to_string();
    for (path, code) in [("/proc", InvalidArgument), (&data, FailedPrecondition)] {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: "v".to_owned(),
            target_path: path.to_owned(),
        };
        refused(path, code, client.node_unpublish_volume(request).await);
    }
    assert!(std::path::Path::new("/proc/self").exists());
    assert!(dir.path().join("data/file").exists());
}

#[tokio::test]
async fn another_volume_of_the_same_name_is_told() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "controller").await;
    let mut client = ControllerClient::new(driver.channel().await);
    client.create_volume(wanted("v")).await.unwrap();
    let range = Some(csi::CapacityRange { required_bytes: 2 << 30, limit_bytes: 0 });
    let larger = csi::CreateVolumeRequest { capacity_range: range, ..wanted("v") };
    refused("larger", AlreadyExists, client.create_volume(larger).await);
    let request = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: "v".to_owned(),
        volume_context: one("csi.lockstep.dev/uid", "another"),
        volume_capabilities: vec![capability()],
        ..Default::default()
    };
    let answer = client.validate_volume_capabilities(request).await.unwrap().into_inner();
    assert!(answer.confirmed.is_none() && answer.message.contains("another one"), "{answer:?}");
}
