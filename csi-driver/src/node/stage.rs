//! NodeStageVolume and NodeUnstageVolume: the volume is this node's, and then no more.

use super::{Node, capability, mounts};
use crate::capability::{Access, Capability};
use crate::controller::{FS, READERS, UID};
use crate::parameters::Fs;
use crate::turns::Held;
use crate::{names, views};
use lockstep_proto::csi;
use lockstep_proto::v1;
use std::path::{Path, PathBuf};
use tonic::{Code, Status};

/// How long a volume is waited for that another node may still have, or that is being recovered.
/// The orchestrator comes again after that.
const WAIT_MS: u64 = 6000;

/// How a volume is to be made usable.
fn wanted(
    capability: &Capability,
    class_fs: Option<Fs>,
    staging: &Path,
) -> Result<v1::DeviceRequest, Status> {
    match &capability.access {
        Access::Block => {
            Ok(v1::DeviceRequest { read_only: capability.read_only, ..Default::default() })
        }
        Access::Mount { fs, options } => {
            let dir = staging.to_str();
            let dir =
                dir.ok_or_else(|| Status::invalid_argument("staging_target_path: no UTF-8"))?;
            let named = fs.or(class_fs);
            let mut mount_options = options.clone();
            if capability.read_only {
                // Of the mount, not of the device: what was made from a snapshot of a mounted file
                // system has a journal to replay.
                mount_options.push("ro".to_owned());
            }
            Ok(v1::DeviceRequest {
                fs: named.unwrap_or_default().name().to_owned(),
                // What was made from a snapshot may have another one.
                any_fs: named.is_none(),
                mount_dir: dir.to_owned(),
                mount_options,
                ..Default::default()
            })
        }
    }
}

impl Node {
    pub(super) async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Result<(), Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let staging = names::path("staging_target_path", &request.staging_target_path)?;
        let capability = capability(request.volume_capability.as_ref())?;
        let context = |key: &str| request.volume_context.get(key).cloned().unwrap_or_default();
        let class_fs = Fs::named(FS, &context(FS))?;
        if !names::is_volume_name(&id) {
            return Err(crate::refuse::no_volume(&id));
        }
        let many = !context(READERS).is_empty();
        views::fits(&capability, many)?;
        let attach = v1::AttachRequest {
            name: id.clone(),
            wait_ms: WAIT_MS,
            device: Some(wanted(&capability, class_fs, &staging)?),
            uid: context(UID),
            ..Default::default()
        };
        let (node, name) = (self.clone(), id.clone());
        let work = |held: Held| async move {
            node.fits_what_is_staged(&held, &name, capability.access, &staging).await?;
            let attach = if many { node.attach_view(attach).await? } else { attach };
            node.attach(attach, staging).await
        };
        self.turns.run_held(&id, work).await
    }

    /// A device is not used both raw and through a file system. What is here is asked for only as
    /// far as it can be told: whoever attaches waits for the rest.
    async fn fits_what_is_staged(
        &self,
        held: &Held,
        name: &str,
        access: Access,
        staging: &Path,
    ) -> Result<(), Status> {
        let Ok(Some(served)) = self.served(name).await else { return Ok(()) };
        let is_mounted = !served.mount_dir.as_os_str().is_empty();
        match access {
            Access::Block if is_mounted => Err(Status::already_exists(format!(
                "volume {name} is staged as a file system, at {}; unstage it first",
                served.mount_dir.display()
            ))),
            Access::Mount { .. } if !is_mounted => {
                let (device, staging) = (served.device, staging.to_owned());
                let other = move || mounts::elsewhere(&device, &[&staging]);
                let other = held.blocking(other).await?;
                other.map_or(Ok(()), |other| {
                    Err(Status::already_exists(format!(
                        "volume {name} is published as a device, at {}; unpublish and unstage it \
                         first",
                        other.display()
                    )))
                })
            }
            Access::Block | Access::Mount { .. } => Ok(()),
        }
    }

    /// What is attached by who reads on several nodes.
    async fn attach_view(&self, attach: v1::AttachRequest) -> Result<v1::AttachRequest, Status> {
        let here = self.daemon.node().await?.name;
        let view = views::make(&self.daemon, &attach.name, &attach.uid, &here).await?;
        Ok(v1::AttachRequest { name: view.name, uid: view.uid, ..attach })
    }

    async fn attach(&self, attach: v1::AttachRequest, staging: PathBuf) -> Result<(), Status> {
        let refused = match self.daemon.attach(&attach).await {
            Ok(_) => return Ok(()),
            Err(status) => status,
        };
        // The same place and another kind of use: that has a code of its own.
        if refused.code() == Code::FailedPrecondition
            && let Ok(Some(served)) = self.served(&attach.name).await
            && served.mount_dir == staging
        {
            return Err(Status::already_exists(refused.message()));
        }
        Err(refused)
    }

    pub(super) async fn unstage(
        &self,
        request: csi::NodeUnstageVolumeRequest,
    ) -> Result<(), Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let staging = names::path("staging_target_path", &request.staging_target_path)?;
        let (node, name) = (self.clone(), id.clone());
        let work = |held| async move { node.detach(held, name, staging).await };
        self.turns.run_held(&id, work).await
    }

    async fn detach(&self, held: Held, name: String, staging: PathBuf) -> Result<(), Status> {
        if names::is_volume_name(&name) {
            let node = self.daemon.node().await?;
            let view = names::view(&name, &node.name);
            // A volume with a view here is itself attached for a moment at most, for another node.
            let has_view = node.primaries.iter().any(|primary| primary.volume_name == view)
                || node.waiting_devices.iter().any(|waiting| waiting.volume_name == view);
            if has_view || !self.let_go(&name, &node.name).await? {
                self.let_go_view(&name, &node.name).await?;
            }
        }
        // What the daemon has mounted it has unmounted. A mount whose device failed while nobody
        // watched may be left.
        held.blocking(move || mounts::clear(&staging)).await
    }

    /// Detaches a volume from this node. Returns whether it was attached here. Another node may
    /// have taken it meanwhile: it keeps it.
    async fn let_go(&self, name: &str, here: &str) -> Result<bool, Status> {
        let (name, only_node) = (name.to_owned(), Some(here.to_owned()));
        match self.daemon.detach(&v1::DetachRequest { name, force: false, only_node }).await {
            Err(status) if status.code() == Code::NotFound => Ok(false),
            outcome => outcome,
        }
    }

    /// Removes this node's view of a volume, if it has one.
    async fn let_go_view(&self, volume: &str, here: &str) -> Result<(), Status> {
        let view = names::view(volume, here);
        if self.let_go(&view, here).await? {
            return self.daemon.delete(&view).await;
        }
        match self.daemon.delete(&view).await {
            // Most volumes have none, and nothing is served by what is left of one. It goes with
            // the volume at the latest.
            Err(status) if status.code() == Code::Unavailable => {
                tracing::warn!(volume, why = status.message(), "a view of it may be left");
                Ok(())
            }
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_has_a_file_system_and_a_directory_and_a_device_has_neither() {
        let access = Access::Mount { fs: None, options: vec!["noatime".to_owned()] };
        let mount = Capability { access, read_only: true, single: false, several: false };
        let staging = Path::new("/staging");
        let asked = wanted(&mount, Some(Fs::Xfs), staging).unwrap();
        assert_eq!((asked.fs.as_str(), asked.mount_dir.as_str()), ("xfs", "/staging"));
        assert!(!asked.read_only && !asked.any_fs && asked.mount_options == ["noatime", "ro"]);
        let asked = wanted(&mount, None, staging).unwrap();
        assert!(asked.any_fs && asked.fs == "ext4");
        let block = Capability { access: Access::Block, read_only: false, ..mount.clone() };
        let asked = wanted(&block, Some(Fs::Xfs), staging).unwrap();
        assert_eq!(asked, v1::DeviceRequest::default());
    }
}
