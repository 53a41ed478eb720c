//! ListVolumes and ControllerGetVolume.

use super::{Controller, described, health};
use crate::pages::Page;
use lockstep_proto::csi;
use lockstep_proto::csi::list_volumes_response as list;
use tonic::Status;

impl Controller {
    pub(super) async fn list(
        &self,
        request: &csi::ListVolumesRequest,
    ) -> Result<csi::ListVolumesResponse, Status> {
        let page = Page::new(request.max_entries, &request.starting_token)?;
        let volumes = self.all_ready().await?;
        let (volumes, next_token) = page.cut(volumes, |volume| &volume.name);
        let entry = |volume| list::Entry {
            volume: Some(described(volume)),
            status: Some(list::VolumeStatus {
                published_node_ids: Vec::new(),
                volume_condition: Some(health::condition(volume)),
            }),
        };
        let entries = volumes.iter().map(entry).collect();
        Ok(csi::ListVolumesResponse { entries, next_token })
    }

    pub(super) async fn get(
        &self,
        request: &csi::ControllerGetVolumeRequest,
    ) -> Result<csi::ControllerGetVolumeResponse, Status> {
        let volume = self.ready(&request.volume_id).await?;
        let status = csi::controller_get_volume_response::VolumeStatus {
            published_node_ids: Vec::new(),
            volume_condition: Some(health::condition(&volume)),
        };
        let volume = Some(described(&volume));
        Ok(csi::ControllerGetVolumeResponse { volume, status: Some(status) })
    }
}
