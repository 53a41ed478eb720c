//! How full volumes are, and how they are.

use super::{Node, Served, mounts};
use crate::controller::health;
use crate::names;
use crate::refuse;
use crate::size::signed;
use crate::turns::Held;
use lockstep_proto::csi;
use lockstep_proto::csi::StorageHealthErrorType;
use lockstep_proto::csi::node_get_storage_health_response::StorageBackendHealth;
use lockstep_proto::csi::volume_usage::Unit;
use nix::sys::statvfs::statvfs;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use tonic::Status;

fn usage(unit: Unit, total: u64, free: u64, available: u64) -> csi::VolumeUsage {
    csi::VolumeUsage {
        available: signed(available),
        total: signed(total),
        used: signed(total.saturating_sub(free)),
        unit: i32::from(unit),
    }
}

/// Whose turn it is at a look at a volume, beside what is done with it: no volume is called so. Of
/// looks that wait for a device there is one.
fn turn_of(volume: &str) -> String {
    format!("look {volume}")
}

/// How full the file system at a place is; of a device only its size is known. Nothing if the
/// volume is not there.
fn used(served: &Served, path: &Path) -> Result<Option<Vec<csi::VolumeUsage>>, Status> {
    let unreadable = |error: std::io::Error| {
        Status::internal(format!("cannot look at {}: {error}", path.display()))
    };
    let usage = match mounts::found(&served.device, path)? {
        mounts::Found::It { block: true, .. } => {
            let mut device = File::open(&served.device).map_err(unreadable)?;
            let total = signed(device.seek(SeekFrom::End(0)).map_err(unreadable)?);
            let unit = i32::from(Unit::Bytes);
            vec![csi::VolumeUsage { total, unit, ..Default::default() }]
        }
        mounts::Found::It { .. } => {
            let found = statvfs(path).map_err(|errno| unreadable(errno.into()))?;
            let size = found.fragment_size();
            let bytes = |blocks: u64| blocks.saturating_mul(size);
            vec![
                usage(
                    Unit::Bytes,
                    bytes(found.blocks()),
                    bytes(found.blocks_free()),
                    bytes(found.blocks_available()),
                ),
                usage(Unit::Inodes, found.files(), found.files_free(), found.files_available()),
            ]
        }
        _ => return Ok(None),
    };
    Ok(Some(usage))
}

impl Node {
    pub(super) async fn stats(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let id = names::required("volume_id", &request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(refuse::missing("volume_path"));
        }
        let nothing = || {
            let (id, path) = (names::shown(id), names::shown(&request.volume_path));
            Status::not_found(format!("volume {id:?} is not at {path:?}"))
        };
        // Any other path is one where the volume is not.
        let path = PathBuf::from(&request.volume_path);
        let served = self.served(id).await?.ok_or_else(nothing)?;
        let look = |held: Held| async move { held.blocking(move || used(&served, &path)).await };
        let usage = self.turns.run_held(&turn_of(id), look).await?.ok_or_else(nothing)?;
        Ok(csi::NodeGetVolumeStatsResponse {
            usage,
            volume_condition: Some(self.condition(id).await),
        })
    }

    /// How a volume is that is here. That the cluster cannot tell is not plain health either.
    async fn condition(&self, id: &str) -> csi::VolumeCondition {
        match self.daemon.volume(id).await {
            Ok(Some(volume)) => health::condition(&volume),
            Ok(None) => {
                csi::VolumeCondition { abnormal: true, message: "it was removed".to_owned() }
            }
            Err(status) => {
                let message = format!("how it is cannot be told: {}", status.message());
                csi::VolumeCondition { abnormal: true, message }
            }
        }
    }

    pub(super) async fn volume_health(
        &self,
        request: csi::NodeGetVolumeHealthRequest,
    ) -> Result<csi::NodeGetVolumeHealthResponse, Status> {
        let id = names::required("volume_id", &request.volume_id)?;
        if self.served(id).await?.is_none() {
            let id = names::shown(id);
            return Err(Status::not_found(format!("volume {id:?} is not on this node")));
        }
        let volume = self.daemon.volume(id).await?.ok_or_else(|| refuse::no_volume(id))?;
        Ok(csi::NodeGetVolumeHealthResponse { volume_health: Some(health::health(&volume)) })
    }

    pub(super) async fn storage_health(&self) -> csi::NodeGetStorageHealthResponse {
        let ailment = match self.daemon.node().await {
            Err(status) => Some((
                StorageHealthErrorType::StorageUnreachable,
                "DaemonSilent",
                status.message().to_owned(),
            )),
            Ok(node) if !node.ready => Some((
                StorageHealthErrorType::StorageDegraded,
                "DaemonNotReady",
                node.not_ready_reason,
            )),
            Ok(_) => None,
        };
        let told = |(status, reason, message): (_, &str, _)| StorageBackendHealth {
            status: i32::from(status),
            reason: reason.to_owned(),
            message,
            volume_capability: None,
        };
        csi::NodeGetStorageHealthResponse {
            backend_health: ailment.into_iter().map(told).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_counts_what_is_kept_back() {
        let told = usage(Unit::Bytes, 100, 40, 30);
        assert_eq!((told.total, told.used, told.available), (100, 60, 30));
    }
}
