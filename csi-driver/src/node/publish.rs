//! NodePublishVolume and NodeUnpublishVolume: what is staged is bound to where a pod looks for it.

use super::{Node, Served, capability, mounts};
use crate::capability::{Access, Capability};
use crate::names;
use crate::turns::Held;
use lockstep_proto::csi;
use mounts::Found;
use std::path::{Path, PathBuf};
use tonic::Status;

/// A publication, checked.
#[derive(Clone, Debug)]
struct Wanted {
    id: String,
    staging: PathBuf,
    target: PathBuf,
    capability: Capability,
    read_only: bool,
}

impl Wanted {
    fn new(request: &csi::NodePublishVolumeRequest) -> Result<Self, Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let target = names::path("target_path", &request.target_path)?;
        let capability = capability(request.volume_capability.as_ref())?;
        if request.staging_target_path.is_empty() {
            let why = "staging_target_path is missing: call NodeStageVolume first, and tell where";
            return Err(Status::failed_precondition(why));
        }
        let staging = names::path("staging_target_path", &request.staging_target_path)?;
        let read_only = request.readonly || capability.is_seen_read_only();
        Ok(Self { id, staging, target, capability, read_only })
    }

    /// What is bound to the target.
    fn source(&self, served: &Served) -> Result<PathBuf, Status> {
        let unstaged = || {
            let (id, staging) = (&self.id, self.staging.display());
            Status::failed_precondition(format!(
                "volume {id} is not staged at {staging}; call NodeStageVolume first"
            ))
        };
        match self.capability.access {
            Access::Mount { .. } => {
                // A device that has failed may be gone, and a directory of the node be left.
                let device = mounts::of_device(&served.device).ok_or_else(unstaged)?;
                if mounts::at(&self.staging)? != Some(device) {
                    return Err(unstaged());
                }
                Ok(self.staging.clone())
            }
            // Whatever is written under a mounted file system, it takes for damage.
            Access::Block if !served.mount_dir.as_os_str().is_empty() => {
                Err(Status::failed_precondition(format!(
                    "volume {} is staged as a file system, at {}; unstage it first",
                    self.id,
                    served.mount_dir.display()
                )))
            }
            // A device that is writable is so under every name.
            Access::Block if self.read_only && !served.read_only => {
                Err(Status::failed_precondition(format!(
                    "volume {} is staged writable; stage it with SINGLE_NODE_READER_ONLY to \
                     publish the device read-only",
                    self.id
                )))
            }
            Access::Block => Ok(served.device.clone()),
        }
    }

    /// Binds it, unless it is there.
    fn bind(&self, served: &Served) -> Result<(), Status> {
        let source = self.source(served)?;
        let is_block = self.capability.access == Access::Block;
        // Of a device nothing has to be told to be read-only but itself.
        let read_only = self.read_only && !is_block;
        match mounts::found(&served.device, &self.target)? {
            Found::Nothing => {}
            Found::It { block, read_only: there } if block == is_block && there == read_only => {
                return Ok(());
            }
            Found::It { .. } => {
                return Err(Status::already_exists(format!(
                    "volume {} is published at {} already, in another way; unpublish it first",
                    self.id,
                    self.target.display()
                )));
            }
            Found::Other(what) => {
                return Err(Status::failed_precondition(format!(
                    "{} is mounted at {}; unmount that first",
                    what.display(),
                    self.target.display()
                )));
            }
        }
        if self.capability.single
            && let Some(other) = mounts::elsewhere(&served.device, &[&self.staging, &self.target])?
        {
            return Err(Status::failed_precondition(format!(
                "volume {} is published at {} and wanted at one place only",
                self.id,
                other.display()
            )));
        }
        mounts::bind(&source, &self.target, is_block, read_only)?;
        // It may have failed meanwhile: what was bound is then the directory that it was on.
        if !mounts::shows(&served.device, &self.target)? {
            mounts::take_back(&self.target);
            let why = format!("volume {} was just taken from this node; try again", self.id);
            return Err(Status::aborted(why));
        }
        Ok(())
    }
}

impl Node {
    pub(super) async fn publish(
        &self,
        request: csi::NodePublishVolumeRequest,
    ) -> Result<(), Status> {
        let wanted = Wanted::new(&request)?;
        let (node, id) = (self.clone(), wanted.id.clone());
        let work = |held| async move { node.publish_in_turn(held, wanted).await };
        self.turns.run_held(&id, work).await
    }

    async fn publish_in_turn(&self, held: Held, wanted: Wanted) -> Result<(), Status> {
        let Some(served) = self.served(&wanted.id).await? else {
            let id = names::shown(&wanted.id);
            // A volume that nobody knows is another matter than one that is not here.
            return Err(match self.daemon.volume(&wanted.id).await? {
                None => crate::refuse::no_volume(&id),
                Some(_) => Status::failed_precondition(format!(
                    "volume {id} is not staged on this node; call NodeStageVolume first"
                )),
            });
        };
        held.blocking(move || wanted.bind(&served)).await
    }

    pub(super) async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
    ) -> Result<(), Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let target = names::path("target_path", &request.target_path)?;
        let (node, name) = (self.clone(), id.clone());
        let work = |held| async move { node.unpublish_in_turn(held, &name, target).await };
        self.turns.run_held(&id, work).await
    }

    async fn unpublish_in_turn(&self, held: Held, id: &str, target: PathBuf) -> Result<(), Status> {
        // Without the daemon it cannot be told whose mount it is, but it has to go in any case.
        let served = self.served(id).await.ok().flatten();
        held.blocking(move || unbind(served.as_ref(), &target)).await
    }
}

fn unbind(served: Option<&Served>, target: &Path) -> Result<(), Status> {
    if let Some(served) = served
        && served.mount_dir == target
    {
        return Err(Status::invalid_argument(format!(
            "target_path = {}: the volume is staged there, not published",
            target.display()
        )));
    }
    mounts::unbind(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::csi::volume_capability::{
        AccessMode, AccessType, BlockVolume, MountVolume,
    };
    use tonic::Code;

    fn request() -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: "v".to_owned(),
            staging_target_path: "/s".to_owned(),
            target_path: "/t".to_owned(),
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 1 }),
                access_type: Some(AccessType::Block(BlockVolume {})),
            }),
            ..Default::default()
        }
    }

    fn mount(flags: &[&str]) -> csi::NodePublishVolumeRequest {
        let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mount = MountVolume { mount_flags, ..Default::default() };
        csi::NodePublishVolumeRequest {
            volume_capability: Some(csi::VolumeCapability {
                access_mode: Some(AccessMode { mode: 1 }),
                access_type: Some(AccessType::Mount(mount)),
            }),
            ..request()
        }
    }

    fn staged() -> Served {
        let (device, mount_dir) = ("/dev/null".into(), "/s".into());
        Served { is_view: false, device, read_only: false, mount_dir }
    }

    #[test]
    fn what_is_missing_is_told() {
        assert!(Wanted::new(&request()).is_ok());
        for (bad, code) in [
            (csi::NodePublishVolumeRequest { volume_id: String::new(), ..request() }, 3),
            (csi::NodePublishVolumeRequest { target_path: String::new(), ..request() }, 3),
            (csi::NodePublishVolumeRequest { target_path: "/a/../b".into(), ..request() }, 3),
            (csi::NodePublishVolumeRequest { volume_capability: None, ..request() }, 3),
            (csi::NodePublishVolumeRequest { staging_target_path: String::new(), ..request() }, 9),
        ] {
            assert_eq!(Wanted::new(&bad).unwrap_err().code(), Code::from_i32(code), "{bad:?}");
        }
    }

    #[test]
    fn a_writable_device_is_not_published_read_only() {
        let wanted =
            Wanted::new(&csi::NodePublishVolumeRequest { readonly: true, ..request() }).unwrap();
        let served = |read_only| Served { read_only, mount_dir: PathBuf::new(), ..staged() };
        let refused = wanted.source(&served(false)).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(wanted.source(&served(true)).unwrap(), Path::new("/dev/null"));
    }

    #[test]
    fn a_directory_whose_device_is_gone_is_not_the_volume() {
        let served = Served { device: "/no/such".into(), ..staged() };
        let refused = Wanted::new(&mount(&[])).unwrap().source(&served).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }

    #[test]
    fn the_device_under_a_file_system_is_not_given_away() {
        let refused = Wanted::new(&request()).unwrap().source(&staged()).unwrap_err();
        assert!(refused.message().contains("staged as a file system"), "{refused}");
    }

    #[test]
    fn an_option_makes_it_read_only_as_well() {
        assert!(!Wanted::new(&mount(&["noatime"])).unwrap().read_only);
        assert!(Wanted::new(&mount(&["noatime", "ro"])).unwrap().read_only);
        assert!(!Wanted::new(&mount(&["ro,rw"])).unwrap().read_only);
    }

    #[test]
    fn the_staging_path_is_no_target() {
        let refused = unbind(Some(&staged()), Path::new("/s")).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}
