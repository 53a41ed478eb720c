//! Block devices: made for those who ask, and taken over from the daemon before this one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use lockstep_attach::Backend as _;
use lockstep_attach::device::Choice;
use lockstep_core::id::VolumeId;
use lockstep_core::record::{Claimed, Record};
use lockstep_proto::v1;
use tonic::Status;

use super::attach::Standing;
use super::catalog::{Stage, VolumeObject};
use super::{Admin, names, refuse};
use crate::devices::{DevicesError, Kept, WantedDevice};
use crate::engine::{EngineError, VolumeHandle};

/// Pause before the next attempt to serve a device's volume again.
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// How long a volume is waited for before it is looked at anew.
const SERVED_LIMIT: Duration = Duration::from_secs(5);
/// How long requests under way on devices may take when the daemon stops. What takes longer is
/// done once more by the next daemon.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// How long somebody who wants a device waits for the one that is being taken over.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(5);

/// Why a volume is not served again.
#[derive(Debug)]
pub(super) enum NotServed {
    /// It may be, later.
    Yet(String),
    /// It is not this node's any more.
    Ever(String),
    /// Its device was given up: somebody has detached it.
    GivenUp,
}

impl From<Status> for NotServed {
    fn from(status: Status) -> Self {
        Self::Yet(status.message().to_owned())
    }
}

/// Checks what is asked of a device.
pub(super) fn wanted(
    volume: &VolumeObject,
    request: &v1::DeviceRequest,
) -> Result<WantedDevice, Status> {
    let door = match request.door.as_str() {
        "" => names::door(&volume.door)?,
        door => names::door(door)?,
    };
    let fs = match request.fs.as_str() {
        "" => None,
        "ext4" | "xfs" => Some(request.fs.clone()),
        other => {
            let why = format!("fs = {other:?}: ext4 and xfs are allowed");
            return Err(Status::invalid_argument(why));
        }
    };
    let mount_dir = Some(PathBuf::from(&request.mount_dir)).filter(|d| !d.as_os_str().is_empty());
    let absolute = |dir: &PathBuf| {
        let up = |part| part == std::path::Component::ParentDir;
        dir.is_absolute() && !dir.components().any(up)
    };
    if let Some(dir) = mount_dir.as_ref().filter(|dir| !absolute(dir)) {
        let why = format!("mount_dir = {}: an absolute path without .. is needed", dir.display());
        return Err(Status::invalid_argument(why));
    }
    if mount_dir.is_none() && !request.mount_options.is_empty() {
        return Err(Status::invalid_argument("mount_options without mount_dir: name a directory"));
    }
    Ok(WantedDevice {
        door,
        read_only: request.read_only,
        write_through: names::write_through(&volume.write_cache)?,
        fs,
        any_fs: request.any_fs,
        mount_dir,
        mount_options: request.mount_options.clone(),
        claimed: None,
    })
}

/// The refusal for a device that cannot be had.
pub(super) fn refused(name: &str, error: &DevicesError) -> Status {
    use lockstep_attach::device::DeviceError;
    let why = format!("volume {name}: {error}");
    match error {
        DevicesError::TakingOver | DevicesError::Gone => Status::aborted(why),
        DevicesError::Differs(_)
        | DevicesError::NoDoor { .. }
        | DevicesError::FileSystem(_)
        | DevicesError::Unfinished(_)
        | DevicesError::Door(DeviceError::Busy { .. } | DeviceError::Unavailable { .. }) => {
            Status::failed_precondition(why)
        }
        DevicesError::Files { .. }
        | DevicesError::Door(DeviceError::Refused { .. } | DeviceError::Lost { .. }) => {
            Status::internal(why)
        }
    }
}

/// The record in force, while that is of this very attachment.
async fn record_of_claim(handle: &VolumeHandle) -> Option<Record> {
    let record = handle.status().await?.record?;
    let own = record.primary.as_ref().is_some_and(|p| p.instance == handle.instance());
    own.then_some(record)
}

impl Admin {
    /// Makes the device that is asked for, if one is.
    pub(super) async fn open_device(
        &self,
        volume: &VolumeObject,
        handle: &VolumeHandle,
        wanted: Option<&WantedDevice>,
    ) -> Result<(), Status> {
        let Some(wanted) = wanted else { return Ok(()) };
        let Some(record) = record_of_claim(handle).await else {
            return Err(refused(&volume.name, &DevicesError::Gone));
        };
        let wanted = &WantedDevice { claimed: Some(record.claimed()), ..wanted.clone() };
        let deadline = Instant::now() + TAKE_OVER_LIMIT;
        loop {
            let devices = &self.inner.devices;
            let size_bytes = handle.info().size_bytes;
            match devices.open(&volume.name, handle, size_bytes, wanted).await {
                Ok(_) => return Ok(()),
                Err(DevicesError::TakingOver) if Instant::now() < deadline => {
                    tokio::time::sleep(RESUME_PAUSE).await;
                }
                Err(error) => return Err(refused(&volume.name, &error)),
            }
        }
    }

    /// A volume's device, as told to others.
    pub(super) fn device(&self, volume: VolumeId) -> Option<v1::Device> {
        let kept = self.inner.devices.find(volume)?;
        let shown = |path: PathBuf| path.display().to_string();
        Some(v1::Device {
            path: shown(self.inner.devices.path(&kept)),
            kernel_path: shown(kept.token.device.clone()),
            door: kept.token.kind().to_string(),
            read_only: kept.token.read_only,
            mount_dir: kept.mount.map(|mount| shown(mount.dir)).unwrap_or_default(),
        })
    }

    /// The devices that wait for this daemon or the next to take them over, as told to others.
    pub(super) fn waiting_devices(&self) -> Vec<v1::WaitingDevice> {
        let waiting =
            |kept: Kept| v1::WaitingDevice { uid: kept.volume.to_string(), volume_name: kept.name };
        self.inner.devices.waiting().into_iter().map(waiting).collect()
    }

    /// Whether a volume is to be served here once more, for its device.
    pub(super) fn is_waited_for(&self, volume: VolumeId) -> bool {
        self.inner.devices.left().iter().any(|kept| kept.volume == volume)
    }

    /// The doors of this node, as told to others.
    pub(super) fn own_doors(&self) -> Vec<v1::Door> {
        let chosen = self.inner.devices.chosen(Choice::Auto);
        let door = |probe: &lockstep_attach::device::Probe| v1::Door {
            kind: probe.kind.to_string(),
            usable: probe.usable,
            chosen: chosen == Some(probe.kind),
            reason: probe.why.clone(),
            restartable: probe.restartable,
        };
        self.inner.devices.probes().iter().map(door).collect()
    }

    /// Stops serving all devices, for the next daemon.
    pub(super) async fn release_devices(&self) {
        self.inner.devices.release_all(RELEASE_LIMIT).await;
    }

    /// Sees to it that the keeper is there while there are devices.
    pub(super) async fn mind_keeper(self) {
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => {}
            () = self.inner.devices.mind_keeper() => {}
        }
    }

    /// Takes over all devices that the daemon before this one left, and ends what it left of those
    /// that it was making.
    pub(super) async fn resume_devices(self) {
        self.inner.devices.sweep().await;
        let left = self.inner.devices.left();
        let resumed = left.iter().map(|kept| async {
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => {}
                () = self.resume_device(kept) => {}
            }
        });
        futures::future::join_all(resumed).await;
    }

    pub(super) async fn resume_device(&self, kept: &Kept) {
        let mut told = String::new();
        loop {
            match self.serve_again(kept).await {
                Ok((handle, claimed)) => {
                    let mut kept = kept.clone();
                    kept.claimed = Some(claimed);
                    match self.inner.devices.resume(&kept, &handle).await {
                        Ok(true) => tracing::info!(volume = kept.name, "its device goes on"),
                        Ok(false) => tracing::info!(volume = kept.name, "its device was given up"),
                        Err(error) => {
                            tracing::error!(volume = kept.name, %error, "its device is ended");
                        }
                    }
                    return;
                }
                Err(NotServed::Ever(why)) => {
                    tracing::warn!(volume = kept.name, why, "its device is ended");
                    self.inner.devices.abandon(kept).await;
                    return;
                }
                Err(NotServed::GivenUp) => return,
                Err(NotServed::Yet(why)) => {
                    if why != told {
                        tracing::warn!(volume = kept.name, why, "its device waits");
                        told = why;
                    }
                    tokio::time::sleep(RESUME_PAUSE).await;
                }
            }
        }
    }

    /// Makes this node the primary again of a volume whose device waits, unless another node has
    /// it, or had it since: what is mounted here would go on over blocks that have changed.
    async fn serve_again(&self, kept: &Kept) -> Result<(VolumeHandle, Claimed), NotServed> {
        let found = self.inner.catalog.volume(&kept.name).await?;
        let Some(volume) = found.map(|found| found.value).filter(|v| v.uid == kept.volume) else {
            return Err(NotServed::Ever("the volume is gone".to_owned()));
        };
        if volume.stage == Stage::Deleting {
            // It may stay after all, if somebody else has just attached it.
            return Err(NotServed::Yet("the volume is being deleted".to_owned()));
        }
        let record = self.record_of(&volume).await?;
        if let Some(primary) = record.primary.as_ref().filter(|p| p.node != self.inner.node) {
            return Err(NotServed::Ever(format!("node {} took it over", primary.node)));
        }
        self.refuse_changed(&record, kept)?;
        self.claim_again(&volume, kept).await
    }

    /// Claims a volume for its device that waits.
    pub(super) async fn claim_again(
        &self,
        volume: &VolumeObject,
        kept: &Kept,
    ) -> Result<(VolumeHandle, Claimed), NotServed> {
        // Who detaches the volume gives its device up first and then looks whether it is attached.
        let claimed =
            self.inner.devices.while_left(volume.uid, || self.claim(volume, Standing::Asked));
        let (handle, _) = claimed.ok_or(NotServed::GivenUp)??;
        match handle.served(SERVED_LIMIT).await {
            Ok(()) => {}
            Err(error @ EngineError::Fenced { .. }) => {
                return Err(NotServed::Ever(error.to_string()));
            }
            Err(error) => {
                return Err(NotServed::Yet(refuse::engine(&error).message().to_owned()));
            }
        }
        let Some(record) = record_of_claim(&handle).await else {
            return Err(NotServed::Yet("it was taken over or detached meanwhile".to_owned()));
        };
        // Somebody may have had it since the record was read. Now nobody can, unnoticed.
        if let Err(changed) = self.refuse_changed(&record, kept) {
            self.inner.devices.abandon(kept).await;
            self.let_go(volume, &handle).await;
            return Err(changed);
        }
        Ok((handle, record.claimed()))
    }

    /// Refuses to go on with a device whose volume another node may have written.
    fn refuse_changed(&self, record: &Record, kept: &Kept) -> Result<(), NotServed> {
        if record.is_kept_by(&self.inner.node, kept.claimed) {
            return Ok(());
        }
        let last = record.attach.as_ref().map(|attach| &attach.node);
        Err(NotServed::Ever(match last.filter(|node| **node != self.inner.node) {
            Some(node) => format!("node {node} had it in between"),
            None => "another node had it in between, or it was recovered by force".to_owned(),
        }))
    }

    /// Removes a volume's device, before the volume is detached.
    pub(super) async fn close_device(
        &self,
        volume: &VolumeObject,
        force: bool,
    ) -> Result<(), Status> {
        let closed = self.inner.devices.close(volume.uid, force).await;
        closed.map_err(|error| refused(&volume.name, &error))
    }
}
