//! Snapshots are taken, found again, told in pages and removed; volumes begin with them, and grow.

use crate::volumes::{Scene, capability, scene, wanted};
use lockstep_proto::csi;
use lockstep_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use std::collections::BTreeMap;
use tonic::Code;

pub(crate) fn from_snapshot(id: &str) -> Option<csi::VolumeContentSource> {
    let r#type = Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() }));
    Some(csi::VolumeContentSource { r#type })
}

pub(crate) fn from_volume(id: &str) -> Option<csi::VolumeContentSource> {
    let r#type = Some(Type::Volume(VolumeSource { volume_id: id.to_owned() }));
    Some(csi::VolumeContentSource { r#type })
}

pub(crate) fn snapshot(name: &str, volume: &str) -> csi::CreateSnapshotRequest {
    csi::CreateSnapshotRequest {
        name: name.to_owned(),
        source_volume_id: volume.to_owned(),
        ..Default::default()
    }
}

fn sized(bytes: i64) -> Option<csi::CapacityRange> {
    Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 })
}

impl Scene {
    async fn take(&mut self, name: &str, volume: &str) -> csi::Snapshot {
        let taken = self.client.create_snapshot(snapshot(name, volume)).await.unwrap();
        taken.into_inner().snapshot.unwrap()
    }
}

#[tokio::test]
async fn the_same_name_is_the_same_snapshot_also_at_once() {
    let mut scene = scene().await;
    scene.make("v").await;
    scene.make("w").await;
    let long = "S".repeat(128);
    for name in ["snapshot-1", "Daily 1", &long] {
        let calls = (0..4).map(|_| {
            let (mut client, request) = (scene.client.clone(), snapshot(name, "v"));
            tokio::spawn(async move { client.create_snapshot(request).await.unwrap().into_inner() })
        });
        let mut taken = Vec::new();
        for call in calls.collect::<Vec<_>>() {
            taken.push(call.await.unwrap().snapshot.unwrap());
        }
        taken.dedup();
        assert_eq!(taken.len(), 1, "{name}");
        assert_eq!((taken[0].source_volume_id.as_str(), taken[0].size_bytes), ("v", 1 << 30));
        assert!(taken[0].ready_to_use && taken[0].creation_time.is_some());
        let other = scene.client.create_snapshot(snapshot(name, "w")).await.unwrap_err();
        assert_eq!(other.code(), Code::AlreadyExists, "{name}");
    }
    assert_eq!(scene.fake.snapshots.lock().unwrap().len(), 3);
    let metadata = BTreeMap::from([("csi.storage.k8s.io/volumesnapshot/name".into(), "s".into())]);
    let request = csi::CreateSnapshotRequest { parameters: metadata, ..snapshot("k", "v") };
    scene.client.create_snapshot(request).await.unwrap();
}

#[tokio::test]
async fn snapshots_are_told_in_pages_by_volume_and_by_id() {
    let mut scene = scene().await;
    for volume in ["v", "w"] {
        scene.make(volume).await;
        for n in 0..3 {
            scene.take(&format!("{volume}-{n}"), volume).await;
        }
    }
    let mut client = scene.client.clone();
    let mut list = async |request| {
        let page = client.list_snapshots(request).await.unwrap().into_inner();
        let ids = page.entries.into_iter().map(|e| e.snapshot.unwrap().snapshot_id);
        (ids.collect::<Vec<_>>().join(" "), page.next_token)
    };
    type Asked = csi::ListSnapshotsRequest;
    let (first, starting_token) = list(Asked { max_entries: 4, ..Default::default() }).await;
    assert_eq!(first, "v-0 v-1 v-2 w-0");
    let (rest, token) = list(Asked { starting_token, ..Default::default() }).await;
    assert_eq!((rest.as_str(), token.as_str()), ("w-1 w-2", ""));
    let of = |id: &str| Asked { source_volume_id: id.to_owned(), ..Default::default() };
    assert_eq!(list(of("w")).await.0, "w-0 w-1 w-2");
    let this = |id: &str| Asked { snapshot_id: id.to_owned(), ..Default::default() };
    assert_eq!(list(this("v-1")).await.0, "v-1");
    for nothing in [of("none"), this("none"), this("A b"), of("../x")] {
        assert_eq!(list(nothing).await.0, "");
    }
    scene.fake.snapshots.lock().unwrap().get_mut("v-1").unwrap().ready = false;
    assert_eq!(list(this("v-1")).await.0, "", "one that is being taken is none yet");
    let get =
        |id: &str| csi::GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    let found = scene.client.get_snapshot(get("v-0")).await.unwrap().into_inner();
    assert_eq!(found.snapshot.unwrap().snapshot_id, "v-0");
    for id in ["v-1", "none"] {
        let refused = scene.client.get_snapshot(get(id)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{id}");
    }
}

#[tokio::test]
async fn a_volume_begins_with_a_snapshot_or_a_volume_and_says_so() {
    let mut scene = scene().await;
    scene.make("v").await;
    scene.take("s", "v").await;
    for (name, source) in [("a", from_snapshot("s")), ("b", from_volume("v"))] {
        let request =
            csi::CreateVolumeRequest { volume_content_source: source.clone(), ..wanted(name) };
        for _ in 0..2 {
            let made = scene.client.create_volume(request.clone()).await.unwrap().into_inner();
            let made = made.volume.unwrap();
            assert_eq!((made.content_source, made.capacity_bytes), (source.clone(), 1 << 30));
        }
        let bare = scene.client.create_volume(wanted(name)).await.unwrap_err();
        assert_eq!(bare.code(), Code::AlreadyExists, "it begins with nothing");
        let get = csi::ControllerGetVolumeRequest { volume_id: name.to_owned() };
        let told = scene.client.controller_get_volume(get).await.unwrap().into_inner();
        assert_eq!(told.volume.unwrap().content_source, source);
    }
    let other = csi::CreateVolumeRequest { volume_content_source: from_volume("v"), ..wanted("a") };
    let refused = scene.client.create_volume(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("snapshot/s"), "{}", refused.message());

    let larger = csi::CreateVolumeRequest {
        volume_content_source: from_snapshot("s"),
        capacity_range: sized(3 << 30),
        ..wanted("c")
    };
    let made = scene.client.create_volume(larger).await.unwrap().into_inner().volume.unwrap();
    assert_eq!(made.capacity_bytes, 3 << 30);
    // What it began with may be gone when the call is repeated.
    let gone = csi::DeleteSnapshotRequest { snapshot_id: "s".to_owned(), ..Default::default() };
    for _ in 0..2 {
        scene.client.delete_snapshot(gone.clone()).await.unwrap();
    }
    let again =
        csi::CreateVolumeRequest { volume_content_source: from_snapshot("s"), ..wanted("a") };
    scene.client.create_volume(again).await.unwrap();
}

#[tokio::test]
async fn volumes_grow_and_never_shrink() {
    let mut scene = scene().await;
    scene.make("v").await;
    let mut expand = async |required_bytes, limit_bytes, block| {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: "v".to_owned(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes }),
            volume_capability: Some(csi::VolumeCapability {
                access_type: if block {
                    Some(csi::volume_capability::AccessType::Block(Default::default()))
                } else {
                    capability().access_type
                },
                ..capability()
            }),
            ..Default::default()
        };
        let told = scene.client.controller_expand_volume(request).await;
        told.map(|told| told.into_inner()).map_err(|status| status.code())
    };
    let grown = expand(2 << 30, 0, false).await.unwrap();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (2 << 30, true));
    let again = expand(1 << 30, 0, true).await.unwrap();
    assert_eq!((again.capacity_bytes, again.node_expansion_required), (2 << 30, false));
    assert_eq!(expand(1, 1 << 30, false).await, Err(Code::OutOfRange));
    assert_eq!(expand(i64::MAX, 0, false).await, Err(Code::OutOfRange));
    assert_eq!(scene.fake.volumes.lock().unwrap()["v"].size_bytes, 2 << 30);
}
