//! What a device is dressed with: a file system, and its mount.

use super::{Devices, DevicesError, Kept, Mounted, WantedDevice};

impl Devices {
    /// Makes and mounts the file system that is wanted, if it is not there yet.
    pub(super) async fn dress(
        &self,
        kept: Kept,
        wanted: &WantedDevice,
    ) -> Result<Kept, DevicesError> {
        if wanted.fs.is_none() && wanted.mount_dir.is_none() {
            // Whoever gets it like this may write to it what he likes.
            return self.settle_making(kept);
        }
        if let (Some(mounted), Some(_)) = (&kept.mount, &wanted.mount_dir) {
            // It may have been unmounted by hand, or not have come so far.
            self.inner.mounter.mount(&kept, mounted).await?;
            return Ok(kept);
        }
        let prepared = self.inner.mounter.prepare(&kept, wanted).await?;
        let kept = match &wanted.fs {
            Some(fs) if prepared.to_make => {
                self.make_fs(kept, fs, prepared.mounted.as_ref()).await?
            }
            _ => kept,
        };
        let Some(mounted) = prepared.mounted else { return Ok(kept) };
        let dressed = Kept { mount: Some(mounted.clone()), ..kept.clone() };
        self.keep(&dressed)?;
        match self.inner.mounter.mount(&dressed, &mounted).await {
            Ok(()) => Ok(dressed),
            Err(error) => {
                self.inner.mounter.unmount(&dressed, &mounted).await?;
                self.keep(&kept)?;
                Err(error)
            }
        }
    }

    /// Makes a file system. That it was begun is noted until it is finished, so that the next
    /// daemon knows: what there is of it is nobody's, and may be made anew.
    async fn make_fs(
        &self,
        kept: Kept,
        fs: &str,
        mounted: Option<&Mounted>,
    ) -> Result<Kept, DevicesError> {
        self.keep(&Kept { making: true, ..kept.clone() })?;
        let error = match self.inner.mounter.make(&kept, fs).await {
            Ok(()) => return self.settle_making(Kept { making: true, ..kept }),
            Err(error) => error,
        };
        if matches!(error, DevicesError::FileSystem(_)) {
            self.settle_making(Kept { making: true, ..kept.clone() })?;
        }
        if let Some(mounted) = mounted {
            // For its directory, if that was made.
            self.inner.mounter.unmount(&kept, mounted).await?;
        }
        Err(error)
    }

    /// Notes that no file system is being made.
    fn settle_making(&self, kept: Kept) -> Result<Kept, DevicesError> {
        if !kept.making {
            return Ok(kept);
        }
        let settled = Kept { making: false, ..kept };
        self.keep(&settled)?;
        Ok(settled)
    }
}
