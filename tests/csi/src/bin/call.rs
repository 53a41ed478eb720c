//! `lockstep-csi-call`: one CSI call, for tests that are scripts. Prints what was answered, or the
//! code and the message of a refusal.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use lockstep_proto::csi;
use lockstep_proto::csi::controller_client::ControllerClient;
use lockstep_proto::csi::node_client::NodeClient;
use lockstep_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use lockstep_proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use std::collections::BTreeMap;
use std::process::ExitCode;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// One CSI call to a driver.
#[derive(Debug, Parser)]
#[command(name = "lockstep-csi-call", version)]
struct Asked {
    /// The driver's socket, as unix:///path
    #[arg(long)]
    endpoint: String,
    #[command(subcommand)]
    call: Call,
}

/// How a volume is to be used.
#[derive(Clone, Debug, Args)]
struct Use {
    /// The device itself
    #[arg(long, conflicts_with = "fs")]
    block: bool,
    /// Which file system; else the driver chooses
    #[arg(long, default_value = "")]
    fs: String,
    /// Number of the access mode in the specification
    #[arg(long, default_value_t = 1)]
    mode: i32,
}

impl Use {
    fn capability(&self) -> csi::VolumeCapability {
        let access_type = if self.block {
            AccessType::Block(BlockVolume {})
        } else {
            AccessType::Mount(MountVolume { fs_type: self.fs.clone(), ..Default::default() })
        };
        csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: self.mode }),
            access_type: Some(access_type),
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
enum Call {
    /// CreateVolume
    CreateVolume {
        name: String,
        /// Bytes
        #[arg(long, default_value_t = 0)]
        size: i64,
        #[arg(long, conflicts_with = "from_volume")]
        from_snapshot: Option<String>,
        #[arg(long)]
        from_volume: Option<String>,
        /// KEY=VALUE of a storage class
        #[arg(long)]
        parameter: Vec<String>,
        #[command(flatten)]
        usage: Use,
    },
    /// DeleteVolume
    DeleteVolume { id: String },
    /// CreateSnapshot
    CreateSnapshot { name: String, volume: String },
    /// DeleteSnapshot
    DeleteSnapshot { id: String },
    /// ControllerExpandVolume
    Expand {
        id: String,
        /// Bytes
        size: i64,
        #[command(flatten)]
        usage: Use,
    },
    /// NodeStageVolume, with the context that ControllerGetVolume tells
    Stage {
        id: String,
        staging: String,
        #[command(flatten)]
        usage: Use,
    },
    /// NodeUnstageVolume
    Unstage { id: String, staging: String },
    /// NodePublishVolume
    Publish {
        id: String,
        staging: String,
        target: String,
        #[command(flatten)]
        usage: Use,
    },
    /// NodeUnpublishVolume
    Unpublish { id: String, target: String },
    /// NodeExpandVolume
    NodeExpand {
        id: String,
        path: String,
        /// Bytes
        size: i64,
    },
}

/// What answers a call: the drivers under test serve both on one socket.
struct Driver {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

fn at_least(required_bytes: i64) -> Option<csi::CapacityRange> {
    let limit_bytes = 0;
    (required_bytes != 0).then_some(csi::CapacityRange { required_bytes, limit_bytes })
}

fn source(snapshot: Option<String>, volume: Option<String>) -> Option<csi::VolumeContentSource> {
    let snapshot = snapshot.map(|snapshot_id| Type::Snapshot(SnapshotSource { snapshot_id }));
    let volume = volume.map(|volume_id| Type::Volume(VolumeSource { volume_id }));
    let r#type = snapshot.or(volume)?;
    Some(csi::VolumeContentSource { r#type: Some(r#type) })
}

fn parameters(all: &[String]) -> BTreeMap<String, String> {
    let pairs = all.iter().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

impl Driver {
    async fn connect(endpoint: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?;
        let channel = endpoint.connect().await.context("the driver does not answer")?;
        let node = NodeClient::new(channel.clone());
        Ok(Self { controller: ControllerClient::new(channel), node })
    }

    /// Makes a call of the controller's; returns what it prints.
    async fn call(&mut self, call: Call) -> Result<String, Status> {
        let controller = &mut self.controller;
        Ok(match call {
            Call::CreateVolume { name, size, from_snapshot, from_volume, parameter, usage } => {
                let request = csi::CreateVolumeRequest {
                    name,
                    capacity_range: at_least(size),
                    volume_capabilities: vec![usage.capability()],
                    volume_content_source: source(from_snapshot, from_volume),
                    parameters: parameters(&parameter),
                    ..Default::default()
                };
                let made = controller.create_volume(request).await?.into_inner().volume;
                made.map_or(0, |volume| volume.capacity_bytes).to_string()
            }
            Call::DeleteVolume { id: volume_id } => {
                let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
                controller.delete_volume(request).await.map(|_| String::new())?
            }
            Call::CreateSnapshot { name, volume: source_volume_id } => {
                let request =
                    csi::CreateSnapshotRequest { name, source_volume_id, ..Default::default() };
                let taken = controller.create_snapshot(request).await?.into_inner().snapshot;
                taken.map_or(0, |snapshot| snapshot.size_bytes).to_string()
            }
            Call::DeleteSnapshot { id: snapshot_id } => {
                let request = csi::DeleteSnapshotRequest { snapshot_id, ..Default::default() };
                controller.delete_snapshot(request).await.map(|_| String::new())?
            }
            Call::Expand { id: volume_id, size, usage } => {
                let request = csi::ControllerExpandVolumeRequest {
                    volume_id,
                    capacity_range: at_least(size),
                    volume_capability: Some(usage.capability()),
                    ..Default::default()
                };
                let grown = controller.controller_expand_volume(request).await?.into_inner();
                format!("{} {}", grown.capacity_bytes, grown.node_expansion_required)
            }
            other => self.call_node(other).await?,
        })
    }

    /// The same of the node's.
    async fn call_node(&mut self, call: Call) -> Result<String, Status> {
        let node = &mut self.node;
        match call {
            Call::Stage { id, staging: staging_target_path, usage } => {
                let request = csi::ControllerGetVolumeRequest { volume_id: id.clone() };
                let found = self.controller.controller_get_volume(request).await?.into_inner();
                let request = csi::NodeStageVolumeRequest {
                    volume_id: id,
                    staging_target_path,
                    volume_capability: Some(usage.capability()),
                    volume_context: found.volume.map(|v| v.volume_context).unwrap_or_default(),
                    ..Default::default()
                };
                node.node_stage_volume(request).await?;
            }
            Call::Unstage { id: volume_id, staging: staging_target_path } => {
                let request = csi::NodeUnstageVolumeRequest { volume_id, staging_target_path };
                node.node_unstage_volume(request).await?;
            }
            Call::Publish { id, staging: staging_target_path, target, usage } => {
                let request = csi::NodePublishVolumeRequest {
                    volume_id: id,
                    staging_target_path,
                    target_path: target,
                    volume_capability: Some(usage.capability()),
                    ..Default::default()
                };
                node.node_publish_volume(request).await?;
            }
            Call::Unpublish { id: volume_id, target: target_path } => {
                let request = csi::NodeUnpublishVolumeRequest { volume_id, target_path };
                node.node_unpublish_volume(request).await?;
            }
            Call::NodeExpand { id: volume_id, path: volume_path, size } => {
                let request = csi::NodeExpandVolumeRequest {
                    volume_id,
                    volume_path,
                    capacity_range: at_least(size),
                    ..Default::default()
                };
                let grown = node.node_expand_volume(request).await?.into_inner();
                return Ok(grown.capacity_bytes.to_string());
            }
            _ => return Err(Status::internal("it is the controller's call")),
        }
        Ok(String::new())
    }
}

async fn answer(asked: Asked) -> anyhow::Result<Result<String, Status>> {
    Ok(Driver::connect(&asked.endpoint).await?.call(asked.call).await)
}

#[tokio::main]
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "scripts read what this prints")]
async fn main() -> ExitCode {
    match answer(Asked::parse()).await {
        Ok(Ok(told)) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Ok(Err(status)) => {
            eprintln!("{:?}: {}", status.code(), status.message());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
