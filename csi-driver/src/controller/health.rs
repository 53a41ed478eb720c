//! How volumes are, in the words of CSI 1.12 and in those of 1.13.

use super::Controller;
use crate::pages::Page;
use lockstep_proto::csi;
use lockstep_proto::csi::VolumeHealthErrorType;
use lockstep_proto::csi::volume_health::VolumeHealthEntry;
use lockstep_proto::v1;
use tonic::Status;

/// As 1.12 has it.
pub(crate) fn condition(volume: &v1::VolumeStatus) -> csi::VolumeCondition {
    csi::VolumeCondition {
        abnormal: volume.health != i32::from(v1::Health::Healthy),
        message: volume.health_reason.clone(),
    }
}

/// As 1.13 has it.
pub(crate) fn health(volume: &v1::VolumeStatus) -> csi::VolumeHealth {
    let ailment = match v1::Health::try_from(volume.health).unwrap_or_default() {
        v1::Health::Healthy => None,
        v1::Health::Degraded => Some((VolumeHealthErrorType::Degraded, "CopiesMissing")),
        v1::Health::BelowMin => Some((VolumeHealthErrorType::Inaccessible, "TooFewCopies")),
        v1::Health::Unavailable => Some((VolumeHealthErrorType::Inaccessible, "NoCopy")),
        v1::Health::Unspecified => Some((VolumeHealthErrorType::Degraded, "Unknown")),
    };
    let entry = |(status, reason): (VolumeHealthErrorType, &str)| VolumeHealthEntry {
        status: i32::from(status),
        reason: reason.to_owned(),
        message: volume.health_reason.clone(),
    };
    csi::VolumeHealth {
        volume_id: volume.name.clone(),
        health_statuses: ailment.into_iter().map(entry).collect(),
    }
}

impl Controller {
    pub(super) async fn list_health(
        &self,
        request: &csi::ControllerListVolumeHealthRequest,
    ) -> Result<csi::ControllerListVolumeHealthResponse, Status> {
        let page = Page::new(request.max_entries, &request.starting_token)?;
        let volumes = self.all_ready().await?;
        let (volumes, next_token) = page.cut(volumes, |volume| &volume.name);
        let entries = volumes.iter().map(health).collect();
        Ok(csi::ControllerListVolumeHealthResponse { entries, next_token })
    }

    pub(super) async fn get_health(
        &self,
        request: &csi::ControllerGetVolumeHealthRequest,
    ) -> Result<csi::ControllerGetVolumeHealthResponse, Status> {
        let volume = self.ready(&request.volume_id).await?;
        Ok(csi::ControllerGetVolumeHealthResponse { volume_health: Some(health(&volume)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        let healthy = i32::from(v1::Health::Healthy);
        for state in [v1::Health::Healthy, v1::Health::Degraded, v1::Health::Unavailable] {
            let volume = v1::VolumeStatus {
                health: i32::from(state),
                health_reason: "why".to_owned(),
                ..Default::default()
            };
            let (old, new) = (condition(&volume), health(&volume));
            assert_eq!(old.abnormal, volume.health != healthy);
            assert_eq!(old.abnormal, !new.health_statuses.is_empty());
            assert!(new.health_statuses.iter().all(|entry| entry.message == old.message));
        }
    }
}
