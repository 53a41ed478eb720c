//! What is secret is told nobody: not in answers, and not in the log, whatever is refused.

use crate::fake::Fake;
use crate::program::{Driver, daemon_socket};
use crate::snapshots::snapshot;
use crate::volumes::{capability, wanted};
use lockstep_proto::csi;
use lockstep_proto::csi::controller_client::ControllerClient;
use lockstep_proto::csi::node_client::NodeClient;
use lockstep_proto::csi::volume_capability::{AccessType, MountVolume};
use std::collections::BTreeMap;
use std::fmt::Debug;
use tempfile::TempDir;
use tonic::{Response, Status};

const SECRET: &str = "hunter2";

fn secrets() -> BTreeMap<String, String> {
    BTreeMap::from([("passphrase".to_owned(), SECRET.to_owned())])
}

/// Options of mounts may be secrets too.
fn with_options() -> csi::VolumeCapability {
    let mount = MountVolume {
        mount_flags: vec![format!("password={SECRET}"), format!("loop={SECRET}")],
        ..Default::default()
    };
    csi::VolumeCapability { access_type: Some(AccessType::Mount(mount)), ..capability() }
}

/// All that callers were told.
#[derive(Default)]
struct Answers(Vec<String>);

impl Answers {
    fn note<T: Debug>(&mut self, answer: Result<Response<T>, Status>) {
        self.0.push(match answer {
            Ok(answer) => format!("{:?}", answer.into_inner()),
            Err(status) => format!("{status:?}"),
        });
    }
}

/// Calls of the controller with secrets, for a volume that is there and for one that is not.
async fn ask_controller(client: &mut ControllerClient<tonic::transport::Channel>) -> Answers {
    let mut told = Answers::default();
    let volume_capabilities = vec![with_options()];
    for parameters in [BTreeMap::new(), BTreeMap::from([("repl".to_owned(), "no".to_owned())])] {
        let (secrets, volume_capabilities) = (secrets(), volume_capabilities.clone());
        let request =
            csi::CreateVolumeRequest { secrets, volume_capabilities, parameters, ..wanted("v") };
        told.note(client.create_volume(request).await);
    }
    for id in ["v", "none", ""] {
        let volume_id = id.to_owned();
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.clone(),
            secrets: secrets(),
            volume_capabilities: vec![capability()],
            ..Default::default()
        };
        told.note(client.validate_volume_capabilities(request).await);
        let capacity_range = Some(csi::CapacityRange { required_bytes: 1 << 31, limit_bytes: 0 });
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: volume_id.clone(),
            secrets: secrets(),
            capacity_range,
            ..Default::default()
        };
        told.note(client.controller_expand_volume(request).await);
        let request = csi::ControllerModifyVolumeRequest {
            volume_id: volume_id.clone(),
            secrets: secrets(),
            ..Default::default()
        };
        told.note(client.controller_modify_volume(request).await);
        let request = csi::CreateSnapshotRequest { secrets: secrets(), ..snapshot("s", id) };
        told.note(client.create_snapshot(request).await);
        let request = csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), secrets: secrets() };
        told.note(client.delete_snapshot(request).await);
        let request =
            csi::ListSnapshotsRequest { secrets: secrets(), max_entries: -1, ..Default::default() };
        told.note(client.list_snapshots(request).await);
    }
    told
}

/// The same of the node.
async fn ask_node(client: &mut NodeClient<tonic::transport::Channel>, dir: &str) -> Answers {
    let mut told = Answers::default();
    for id in ["v", "none", ""] {
        let request = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: dir.to_owned(),
            volume_capability: Some(with_options()),
            secrets: secrets(),
            ..Default::default()
        };
        told.note(client.node_stage_volume(request).await);
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: dir.to_owned(),
            target_path: format!("{dir}/target"),
            volume_capability: Some(with_options()),
            secrets: secrets(),
            ..Default::default()
        };
        told.note(client.node_publish_volume(request).await);
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: dir.to_owned(),
            volume_capability: Some(with_options()),
            secrets: secrets(),
            ..Default::default()
        };
        told.note(client.node_expand_volume(request).await);
    }
    told
}

#[tokio::test]
async fn secrets_are_told_nobody() {
    let dir = TempDir::new().unwrap();
    let _daemon = Fake::default().serve(&daemon_socket(dir.path()));
    let driver = Driver::start(dir.path(), "--standalone").await;
    let mut controller = ControllerClient::new(driver.channel().await);
    let mut node = NodeClient::new(driver.channel().await);
    let staging = dir.path().join("staging").display().to_string();
    let told = ask_controller(&mut controller).await;
    let of_node = ask_node(&mut node, &staging).await;
    let log = driver.end().await;
    assert!(log.iter().any(|line| line.contains("NodePublishVolume")), "it logs: {log:?}");
    for text in told.0.iter().chain(&of_node.0).chain(&log) {
        assert!(!text.contains(SECRET), "{text}");
    }
}
