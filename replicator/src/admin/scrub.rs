//! Scrubbing a volume: its primary does it, wherever that is.

use lockstep_proto::v1;
use tonic::Status;

use super::peers::{DO_LIMIT, at, pass_on, within};
use super::{Admin, names, refuse};

impl Admin {
    /// Has the volume's primary begin a scrub.
    pub(super) async fn scrub_volume(
        &self,
        request: &v1::ScrubVolumeRequest,
        passed_on: bool,
    ) -> Result<(), Status> {
        let name = names::volume_name(&request.name)?;
        let found = self.inner.catalog.volume(name).await?;
        let volume = found.ok_or_else(|| refuse::no_volume(name))?.value;
        let record = self.inner.catalog.record(volume.uid).await?;
        let Some(primary) = record.and_then(|stored| stored.value.primary) else {
            return Err(Status::failed_precondition(format!(
                "volume {name} is not attached; copies are read and mended while it is: \
                 lockstep attach {name}, then scrub it"
            )));
        };
        if primary.node == self.inner.node {
            if self.inner.engine.scrub(volume.uid) {
                tracing::info!(volume = name, "a scrub was asked for");
                return Ok(());
            }
            return Err(Status::failed_precondition(format!(
                "node {} does not serve volume {name} any more; attach it again: \
                 lockstep attach {name}",
                primary.node
            )));
        }
        if passed_on {
            return Err(Status::aborted(format!(
                "volume {name} has just moved to {}; try again",
                primary.node
            )));
        }
        let node = self.inner.catalog.known_node(&primary.node).await?;
        let asked = within(DO_LIMIT, async {
            let mut client = self.inner.peers.client(&node)?;
            client.scrub_volume(pass_on(request.clone(), DO_LIMIT)).await.map(drop)
        });
        asked.await.map_err(|status| at(&primary.node, &status))
    }
}
