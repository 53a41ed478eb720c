//! Volumes that several nodes read: each node has a view of its own, of which nobody is told.

use crate::snapshots::{from_snapshot, snapshot};
use crate::volumes::{Scene, capability, scene, wanted};
use lockstep_proto::csi;
use lockstep_proto::csi::node_client::NodeClient;
use lockstep_proto::csi::volume_capability::AccessMode;
use tonic::Code;

fn reading(mode: i32) -> csi::VolumeCapability {
    csi::VolumeCapability { access_mode: Some(AccessMode { mode }), ..capability() }
}

fn for_readers(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        volume_capabilities: vec![reading(3)],
        volume_content_source: from_snapshot("s"),
        ..wanted(name)
    }
}

async fn volume(scene: &mut Scene, request: csi::CreateVolumeRequest) -> csi::Volume {
    scene.client.create_volume(request).await.unwrap().into_inner().volume.unwrap()
}

/// A scene with volume v, its snapshot s, and r for many readers; the context of r.
async fn with_readers() -> (Scene, csi::Volume) {
    let mut scene = scene().await;
    scene.make("v").await;
    scene.client.create_snapshot(snapshot("s", "v")).await.unwrap();
    let made = volume(&mut scene, for_readers("r")).await;
    (scene, made)
}

fn stage(volume: &csi::Volume, mode: i32) -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: "/nowhere/staging".to_owned(),
        volume_capability: Some(reading(mode)),
        volume_context: volume.volume_context.clone(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_node_that_reads_has_a_view_until_it_is_unstaged() {
    let (mut scene, made) = with_readers().await;
    let mut node = NodeClient::new(scene.channel().await);
    for _ in 0..2 {
        // There are no devices in this daemon of words.
        let told = node.node_stage_volume(stage(&made, 3)).await.unwrap_err();
        assert!(told.message().contains("no devices"), "{told}");
        let volumes = scene.fake.volumes.lock().unwrap();
        let view = volumes.values().find(|v| v.annotations.values().any(|of| of == "r")).unwrap();
        assert_eq!((view.repl, volumes.len()), (1, 3), "made once");
    }
    let listed = scene.client.list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
    let ids: Vec<_> =
        listed.into_inner().entries.into_iter().map(|e| e.volume.unwrap().volume_id).collect();
    assert_eq!(ids, ["r", "v"], "nobody is told of it");
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: "r".to_owned(),
        staging_target_path: "/nowhere/staging".to_owned(),
    };
    for _ in 0..2 {
        node.node_unstage_volume(unstage.clone()).await.unwrap();
        assert_eq!(scene.fake.volumes.lock().unwrap().len(), 2, "the view is gone");
    }
}

#[tokio::test]
async fn views_go_with_their_volume_and_belong_to_no_other() {
    let (mut scene, made) = with_readers().await;
    let mut node = NodeClient::new(scene.channel().await);
    node.node_stage_volume(stage(&made, 3)).await.unwrap_err();
    let delete = csi::DeleteVolumeRequest { volume_id: "r".to_owned(), ..Default::default() };
    scene.client.delete_volume(delete).await.unwrap();
    assert_eq!(scene.fake.volumes.lock().unwrap().keys().collect::<Vec<_>>(), ["v"]);
    let again = volume(&mut scene, for_readers("r")).await;
    let old = node.node_stage_volume(stage(&made, 3)).await.unwrap_err();
    assert_eq!(old.code(), Code::NotFound, "it is another volume by now: {old}");
    // A view of the earlier one, which a dead node has left.
    node.node_stage_volume(stage(&again, 3)).await.unwrap_err();
    for view in scene.fake.volumes.lock().unwrap().values_mut() {
        if let Some(of) = view.annotations.get_mut("csi.lockstep.dev/view-of") {
            assert_eq!(of, "r");
            view.annotations.insert("csi.lockstep.dev/uid".to_owned(), "earlier".to_owned());
        }
    }
    let before = *scene.fake.made.lock().unwrap();
    node.node_stage_volume(stage(&again, 3)).await.unwrap_err();
    assert_eq!(*scene.fake.made.lock().unwrap(), before + 1, "it is made anew");
}

#[tokio::test]
async fn what_is_attached_for_a_moment_is_not_taken_for_its_view() {
    let (scene, made) = with_readers().await;
    let mut node = NodeClient::new(scene.channel().await);
    node.node_stage_volume(stage(&made, 3)).await.unwrap_err();
    let is_view = |name: &&String| name.starts_with("csi-");
    let view = scene.fake.volumes.lock().unwrap().keys().find(is_view).unwrap().clone();
    let device =
        lockstep_proto::v1::Device { kernel_path: "/dev/null".to_owned(), ..Default::default() };
    // Another node is making its view: that takes a snapshot of the volume, here as it happens.
    let attached = vec![("r".to_owned(), None), (view.clone(), Some(device))];
    *scene.fake.attached.lock().unwrap() = attached;
    let grow = csi::NodeExpandVolumeRequest {
        volume_id: "r".to_owned(),
        volume_path: "/nowhere/staging".to_owned(),
        ..Default::default()
    };
    let refused = node.node_expand_volume(grow).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "the view is there: {refused}");
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: "r".to_owned(),
        staging_target_path: "/nowhere/staging".to_owned(),
    };
    // Its daemon has just been started, and is to have its device back.
    *scene.fake.waiting.lock().unwrap() = vec![view];
    let refused = node.node_unstage_volume(unstage.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "the view stays: {refused}");
    scene.fake.waiting.lock().unwrap().clear();
    node.node_unstage_volume(unstage).await.unwrap();
    assert_eq!(scene.fake.volumes.lock().unwrap().len(), 2, "the view is gone");
    let attached = scene.fake.attached.lock().unwrap();
    let left: Vec<&str> = attached.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(left, ["r"], "and the other node goes on");
}

#[tokio::test]
async fn it_is_used_as_it_was_made() {
    let (mut scene, made) = with_readers().await;
    let mut node = NodeClient::new(scene.channel().await);
    let writer = node.node_stage_volume(stage(&made, 1)).await.unwrap_err();
    assert_eq!(writer.code(), Code::FailedPrecondition);
    let plain = volume(&mut scene, wanted("v")).await;
    let reader = node.node_stage_volume(stage(&plain, 3)).await.unwrap_err();
    assert_eq!(reader.code(), Code::FailedPrecondition);
    assert_eq!(scene.fake.volumes.lock().unwrap().len(), 2, "nothing was made of these");

    let other =
        csi::CreateVolumeRequest { volume_capabilities: vec![capability()], ..for_readers("r") };
    let refused = scene.client.create_volume(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    for (id, mode, fits) in [("r", 3, true), ("r", 1, false), ("v", 1, true), ("v", 3, false)] {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: id.to_owned(),
            volume_capabilities: vec![reading(mode)],
            ..Default::default()
        };
        let answer = scene.client.validate_volume_capabilities(request).await.unwrap();
        assert_eq!(answer.into_inner().confirmed.is_some(), fits, "{id} {mode}");
    }
    let grow = csi::ControllerExpandVolumeRequest {
        volume_id: "r".to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 2 << 30, limit_bytes: 0 }),
        ..Default::default()
    };
    let refused = scene.client.controller_expand_volume(grow).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let nothing =
        csi::CreateVolumeRequest { volume_content_source: None, ..for_readers("nothing") };
    let refused = scene.client.create_volume(nothing).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
