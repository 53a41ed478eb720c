//! NodeExpandVolume: what shows a volume on this node has all of it.

use super::{Node, Served, mounts};
use crate::capability::Capability;
use crate::names;
use crate::refuse;
use crate::size::{Range, signed};
use crate::turns::Held;
use lockstep_proto::csi;
use std::path::{Path, PathBuf};
use tonic::Status;

/// Whether a volume is at a path: published or staged there, or it is the device itself, by which
/// kubelets name what has no file system.
fn is_at(served: &Served, path: &Path) -> Result<bool, Status> {
    if mounts::shows(&served.device, path)? {
        return Ok(true);
    }
    let number = mounts::of_device(path);
    Ok(number.is_some() && number == mounts::of_device(&served.device))
}

impl Node {
    pub(super) async fn expand(
        &self,
        request: csi::NodeExpandVolumeRequest,
    ) -> Result<csi::NodeExpandVolumeResponse, Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        if request.volume_path.is_empty() {
            return Err(refuse::missing("volume_path"));
        }
        let range = Range::new(request.capacity_range.as_ref())?;
        request.volume_capability.as_ref().map(Capability::new).transpose()?;
        let path = PathBuf::from(request.volume_path);
        let (node, name) = (self.clone(), id.clone());
        let work = |held| async move { node.grow(held, &name, path, range).await };
        let grown = self.turns.run_held(&id, work).await?;
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: signed(grown) })
    }

    async fn grow(&self, held: Held, id: &str, path: PathBuf, range: Range) -> Result<u64, Status> {
        let nothing = || {
            let id = names::shown(id);
            Status::not_found(format!("volume {id:?} is not at {}", path.display()))
        };
        let served = self.served(id).await?.ok_or_else(nothing)?;
        if served.is_view {
            let why = format!("volume {id} is read on several nodes and does not grow");
            return Err(Status::failed_precondition(why));
        }
        let dir = path.clone();
        if !held.blocking(move || is_at(&served, &dir)).await? {
            return Err(nothing());
        }
        let volume = self.daemon.volume(id).await?.ok_or_else(|| refuse::no_volume(id))?;
        let size_bytes = volume.size_bytes;
        if !range.holds(size_bytes) {
            return Err(Status::out_of_range(format!(
                "capacity_range: volume {id} has {size_bytes} bytes, and that is not it; call \
                 ControllerExpandVolume first"
            )));
        }
        // The size it has: the daemon sees to it that device and file system show that.
        let note = self.daemon.resize(id, size_bytes).await?;
        if note.is_empty() { Ok(size_bytes) } else { Err(Status::failed_precondition(note)) }
    }
}
