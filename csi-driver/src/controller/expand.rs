//! ControllerExpandVolume: the volume, and the device that shows it. A file system follows: when it
//! is mounted with the device it was told by the daemon already, NodeExpandVolume makes sure.

use super::{Controller, READERS};
use crate::capability::{Access, Capability};
use crate::names;
use crate::refuse;
use crate::size::{Range, signed};
use lockstep_proto::csi;
use tonic::Status;

impl Controller {
    pub(super) async fn expand(
        &self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let range = request.capacity_range.as_ref();
        let range = range.filter(|range| range.required_bytes != 0 || range.limit_bytes != 0);
        let range = Range::new(Some(range.ok_or_else(|| refuse::missing("capacity_range"))?))?;
        let capability = request.volume_capability.as_ref().map(Capability::new).transpose()?;
        // Refused also if nobody can be asked.
        range.choose(0)?;
        let (controller, name) = (self.clone(), id.clone());
        let grown = self.turns.run(&id, async move { controller.grow(&name, range).await });
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: signed(grown.await?),
            node_expansion_required: capability.is_none_or(|c| c.access != Access::Block),
        })
    }

    async fn grow(&self, id: &str, range: Range) -> Result<u64, Status> {
        let volume = self.ready(id).await?;
        if volume.annotations.contains_key(READERS) {
            return Err(Status::failed_precondition(format!(
                "volume {id} is read on several nodes and does not grow; make a larger one from \
                 what it began with"
            )));
        }
        let size_bytes = range.grown(volume.size_bytes)?;
        // Also if it has it: whoever made it larger may have died before its device showed that.
        let note = self.daemons.resize(id, size_bytes).await?;
        if !note.is_empty() {
            tracing::info!(volume = id, note, "larger, but it is not seen everywhere yet");
        }
        Ok(size_bytes)
    }
}
