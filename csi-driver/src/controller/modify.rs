//! ControllerModifyVolume: what a VolumeAttributesClass changes.

use super::Controller;
use crate::names;
use crate::parameters::Mutable;
use crate::refuse;
use lockstep_proto::csi;
use lockstep_proto::v1;
use std::sync::Arc;
use tonic::Status;

impl Controller {
    pub(super) async fn modify(
        &self,
        request: csi::ControllerModifyVolumeRequest,
    ) -> Result<(), Status> {
        let id = names::required("volume_id", &request.volume_id)?.to_owned();
        let wanted = Mutable::new(&request.mutable_parameters)?;
        let volume = self.ready(&id).await?;
        if let (None, Some(min)) = (wanted.repl, wanted.min_in_sync)
            && min > volume.repl
        {
            let why = format!("1 to {}, the number of copies, are allowed", volume.repl);
            return Err(refuse::bad("minInSync", &min.to_string(), &why));
        }
        if wanted == Mutable::default() {
            return Ok(());
        }
        let set = v1::SetVolumeRequest {
            name: id.clone(),
            repl: wanted.repl,
            min_in_sync: wanted.min_in_sync,
            max_iops: wanted.max_iops,
            max_bytes_per_s: wanted.max_bytes_per_s,
        };
        let daemons = Arc::clone(&self.daemons);
        self.turns.run(&id, async move { daemons.set(&set).await }).await
    }
}
