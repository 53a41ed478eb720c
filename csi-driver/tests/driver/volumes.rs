//! Volumes are made, found again, told in pages and removed.

use crate::fake::Fake;
use crate::program::{Driver, daemon_socket};
use lockstep_proto::csi;
use lockstep_proto::csi::controller_client::ControllerClient;
use lockstep_proto::csi::node_client::NodeClient;
use lockstep_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use std::collections::BTreeMap;
use tempfile::TempDir;
use tonic::Code;
use tonic::transport::Channel;

pub(crate) fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: 1 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

pub(crate) fn wanted(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.to_owned(),
        volume_capabilities: vec![capability()],
        ..Default::default()
    }
}

pub(crate) struct Scene {
    pub(crate) fake: Fake,
    pub(crate) client: ControllerClient<Channel>,
    driver: Driver,
    _daemon: crate::fake::Daemon,
    _dir: TempDir,
}

pub(crate) async fn scene() -> Scene {
    let dir = TempDir::new().unwrap();
    let fake = Fake::default();
    let daemon = fake.clone().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "--standalone").await;
    let client = ControllerClient::new(driver.channel().await);
    Scene { fake, client, driver, _daemon: daemon, _dir: dir }
}

impl Scene {
    pub(crate) async fn channel(&self) -> Channel {
        self.driver.channel().await
    }

    pub(crate) async fn make(&mut self, name: &str) -> csi::Volume {
        self.client.create_volume(wanted(name)).await.unwrap().into_inner().volume.unwrap()
    }
}

#[tokio::test]
async fn what_is_half_made_is_made_for_those_only_who_want_it_so() {
    let mut scene = scene().await;
    let made = scene.make("v").await;
    let half = |volumes: &mut BTreeMap<String, lockstep_proto::v1::VolumeStatus>| {
        volumes.get_mut("v").unwrap().stage = lockstep_proto::v1::VolumeStage::Creating.into();
    };
    half(&mut scene.fake.volumes.lock().unwrap());
    let required_bytes = made.capacity_bytes + 1;
    let capacity_range = Some(csi::CapacityRange { required_bytes, limit_bytes: 0 });
    let larger = csi::CreateVolumeRequest { capacity_range, ..wanted("v") };
    let refused = scene.client.create_volume(larger).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    half(&mut scene.fake.volumes.lock().unwrap());
    assert_eq!(scene.make("v").await, made);
}

#[tokio::test]
async fn the_same_name_is_the_same_volume_also_at_once() {
    let mut scene = scene().await;
    let calls = (0..8).map(|_| {
        let mut client = scene.client.clone();
        async move { client.create_volume(wanted("Daten 1")).await.unwrap().into_inner().volume }
    });
    let mut ids = Vec::new();
    let calls: Vec<_> = calls.map(tokio::spawn).collect();
    for call in calls {
        ids.push(call.await.unwrap().unwrap().volume_id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(*scene.fake.made.lock().unwrap(), 1, "it was made once");
    assert!(ids[0].starts_with("csi-"), "{ids:?}");

    let other = csi::CreateVolumeRequest {
        parameters: BTreeMap::from([("repl".to_owned(), "1".to_owned())]),
        ..wanted("Daten 1")
    };
    let refused = scene.client.create_volume(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("repl=3"), "{}", refused.message());
}

#[tokio::test]
async fn a_volume_tells_where_and_which_it_is() {
    let mut scene = scene().await;
    let volume = scene.make("pvc-1").await;
    assert_eq!(volume.volume_id, "pvc-1");
    assert_eq!(volume.capacity_bytes, 1 << 30);
    assert_eq!(volume.volume_context["csi.lockstep.dev/uid"], "uid-1");
    let place = &volume.accessible_topology[0].segments;
    assert_eq!(place["lockstep.node-restriction.kubernetes.io/p-1"], "replica");
    assert_eq!(place.len(), 1);
    let mut node = NodeClient::new(scene.channel().await);
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    // The label moves, which what a node tells once does not.
    let own = info.accessible_topology.unwrap().segments;
    assert_eq!(own, BTreeMap::from([("csi.lockstep.dev/node".to_owned(), "n1".to_owned())]));
    assert_eq!(info.node_id, "node-a");
}

#[tokio::test]
async fn pages_hold_all_volumes_once() {
    let mut scene = scene().await;
    for n in 0..5 {
        scene.make(&format!("v{n}")).await;
    }
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let request = csi::ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = scene.client.list_volumes(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        found.extend(page.entries.into_iter().map(|e| e.volume.unwrap().volume_id));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["v0", "v1", "v2", "v3", "v4"]);
}

#[tokio::test]
async fn what_is_removed_is_gone_and_may_be_removed_again() {
    let mut scene = scene().await;
    let volume_id = scene.make("v").await.volume_id;
    for _ in 0..2 {
        let request =
            csi::DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
        scene.client.delete_volume(request).await.unwrap();
    }
    let request = csi::ControllerGetVolumeRequest { volume_id };
    let refused = scene.client.controller_get_volume(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test]
async fn copies_are_changed_and_nothing_else_is() {
    let mut scene = scene().await;
    let volume_id = scene.make("v").await.volume_id;
    let modify = |key: &str, value: &str| csi::ControllerModifyVolumeRequest {
        volume_id: volume_id.clone(),
        mutable_parameters: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..Default::default()
    };
    scene.client.controller_modify_volume(modify("repl", "2")).await.unwrap();
    assert_eq!(scene.fake.volumes.lock().unwrap()["v"].repl, 2);
    scene.client.controller_modify_volume(modify("maxIops", "2k")).await.unwrap();
    assert_eq!(scene.fake.volumes.lock().unwrap()["v"].max_iops, 2000);
    for (key, value) in [("pool", "fast"), ("maxIops", "-1"), ("repl", "0"), ("minInSync", "5")] {
        let refused = scene.client.controller_modify_volume(modify(key, value)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{key}");
    }
    assert_eq!(scene.fake.volumes.lock().unwrap()["v"].repl, 2);
}

#[tokio::test]
async fn capacity_is_that_of_the_place() {
    let mut scene = scene().await;
    let mut capacity = async |repl: &str, key: &str, value: &str| {
        let segments = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let request = csi::GetCapacityRequest {
            parameters: BTreeMap::from([("repl".to_owned(), repl.to_owned())]),
            accessible_topology: Some(csi::Topology { segments }),
            ..Default::default()
        };
        scene.client.get_capacity(request).await.unwrap().into_inner().available_capacity
    };
    assert_eq!(capacity("1", "csi.lockstep.dev/node", "n1").await, 64 << 30);
    assert_eq!(capacity("1", "topology.kubernetes.io/zone", "z1").await, 64 << 30);
    assert_eq!(capacity("1", "csi.lockstep.dev/node", "n2").await, 0);
    assert_eq!(capacity("2", "csi.lockstep.dev/node", "n1").await, 0, "there is one node");
}
