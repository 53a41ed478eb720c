//! Devices of volumes that have grown.

use lockstep_attach::device::Device;
use lockstep_attach::filesystem::Options;
use lockstep_core::id::VolumeId;

use super::kept::{Kept, Mounted};
use super::{Devices, DevicesError, on};

/// The daemon before this one may have ended when the volume had grown, and its device had not.
pub(super) async fn catch_up(device: &dyn Device, kept: &mut Kept, size_bytes: u64) {
    if kept.token.size_bytes >= size_bytes {
        return;
    }
    match device.resize(size_bytes).await {
        Ok(()) => kept.token.size_bytes = size_bytes,
        Err(error) => tracing::warn!(volume = kept.name, %error, "a device stays small"),
    }
}

/// Whether what is mounted is to be written to. What is not grows when it is mounted to be.
fn may_grow(kept: &Kept, mounted: &Mounted) -> bool {
    let options = Options::parse(mounted.options.iter().map(String::as_str));
    !kept.token.read_only && !options.is_ok_and(|options| options.is_read_only())
}

impl Devices {
    /// Has the device of a volume, if it has one, show that the volume has grown, and lets the file
    /// system grow that was mounted along with it.
    ///
    /// # Errors
    /// If either does not; says what to do. The volume has its new size all the same.
    pub async fn resize(&self, volume: VolumeId, size_bytes: u64) -> Result<(), DevicesError> {
        let devices = self.clone();
        on(async move { devices.resize_in_turn(volume, size_bytes).await }).await
    }

    async fn resize_in_turn(&self, volume: VolumeId, size_bytes: u64) -> Result<(), DevicesError> {
        let turn = self.turn(volume);
        let _turn = turn.lock().await;
        let (Some(device), Some(mut kept)) = (self.device(volume), self.find(volume)) else {
            return Ok(());
        };
        if kept.token.size_bytes < size_bytes {
            device.resize(size_bytes).await?;
            kept.token.size_bytes = size_bytes;
            self.keep(&kept)?;
        }
        match kept.mount.clone() {
            Some(mounted) if may_grow(&kept, &mounted) => self.grow(kept, &mounted).await,
            _ => Ok(()),
        }
    }

    /// Lets what is mounted grow. It is frozen for moments meanwhile: that is noted, for the case
    /// that whoever does it dies.
    async fn grow(&self, kept: Kept, mounted: &Mounted) -> Result<(), DevicesError> {
        let noted = Kept { growing: true, ..kept };
        self.keep(&noted)?;
        let grown = self.inner.mounter.grow(&noted, mounted).await;
        if matches!(grown, Err(DevicesError::Files { .. })) {
            // The mounter died. One that answers has left nothing frozen, and what somebody else
            // has frozen stays so.
            self.inner.mounter.thaw(&noted, mounted).await?;
        }
        self.keep(&Kept { growing: false, ..noted })?;
        grown
    }

    /// Lets a file system go on over whose growth the daemon before this one died, or its mounter.
    pub(super) async fn thaw_left(&self, kept: &Kept) {
        let Some(mounted) = kept.mount.as_ref().filter(|_| kept.growing) else { return };
        let thawed = async {
            self.inner.mounter.thaw(kept, mounted).await?;
            self.keep(&Kept { growing: false, ..kept.clone() })
        };
        if let Err(error) = thawed.await {
            let dir = mounted.dir.display();
            tracing::warn!(volume = kept.name, %dir, %error, "cannot thaw what may be frozen");
        }
    }
}
