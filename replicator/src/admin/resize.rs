//! Making a volume larger (T10).

use std::time::Duration;

use lockstep_core::primary::{Task, TaskDone};
use lockstep_proto::v1;
use tonic::Status;

use super::moment::Seat;
use super::peers::{at, pass_on, within};
use super::{Admin, names};

/// How long all of it may take: more than the primary gives up after.
const LIMIT: Duration = Duration::from_secs(60);

impl Admin {
    /// Makes a volume larger. Returns its size, and what does not show that yet.
    pub(super) async fn resize_volume(
        &self,
        request: &v1::ResizeVolumeRequest,
        passed_on: bool,
    ) -> Result<v1::ResizeVolumeResponse, Status> {
        let name = names::volume_name(&request.name)?;
        let size_bytes = names::size(request.size_bytes)?;
        let volume = self.ready_volume(name).await?;
        let seat = self.seat(&volume).await?;
        if let Seat::There(node) = &seat {
            if passed_on {
                return Err(Status::aborted(format!(
                    "volume {name} has just moved to {node}; try again"
                )));
            }
            let object = self.inner.catalog.known_node(node).await?;
            let asked = within(LIMIT, async {
                let mut client = self.inner.peers.client(&object)?;
                Ok(client.resize_volume(pass_on(request.clone(), LIMIT)).await?.into_inner())
            });
            return asked.await.map_err(|status| at(node, &status));
        }
        let record = self.record_of(&volume).await?;
        if names::bytes(record.blocks) != size_bytes {
            let blocks = names::blocks(size_bytes);
            let done = self.task_here(&volume, seat, Task::Resize { blocks }).await?;
            if !matches!(done, TaskDone::Resized { .. }) {
                return Err(Status::internal("another task was answered"));
            }
            tracing::info!(volume = name, size_bytes, "larger from now on");
        }
        // Also if it has the size already, since the device may have been missed; and if it was not
        // attached, since somebody may have opened a device meanwhile.
        let note = self.show_size(volume.uid, size_bytes).await;
        Ok(v1::ResizeVolumeResponse { size_bytes, note: note.unwrap_or_default() })
    }

    /// Has the volume's device, and the file system that was mounted with it, show the new size.
    /// Returns what does not, in words.
    async fn show_size(
        &self,
        volume: lockstep_core::id::VolumeId,
        size_bytes: u64,
    ) -> Option<String> {
        let shown = self.inner.devices.resize(volume, size_bytes).await;
        let note = shown.err().map(|error| error.to_string());
        if let Some(why) = &note {
            tracing::warn!(%volume, why, "a device does not show the volume's new size");
        }
        note
    }
}
