//! Devices that outlive a daemon: what the one before this one left, and what this one leaves.

use std::sync::Arc;
use std::time::Duration;

use lockstep_attach::Backend as _;
use lockstep_core::id::VolumeId;

use super::resize::catch_up;
use super::{Devices, DevicesError, Kept, lock};
use crate::door::VolumeHandle;

impl Devices {
    /// What the daemon before this one left, and is not taken over yet.
    #[must_use]
    pub fn left(&self) -> Vec<Kept> {
        lock(&self.inner.left).values().cloned().collect()
    }

    /// What waits for a daemon to serve it again: this one, or the next.
    #[must_use]
    pub fn waiting(&self) -> Vec<Kept> {
        let left = lock(&self.inner.left);
        left.values().chain(lock(&self.inner.released).iter()).cloned().collect()
    }

    /// Gets hold of what the daemon before this one left, so that what was under way there waits
    /// for nothing but the volumes. Comes before anything else is done with it.
    pub async fn hold(&self) {
        let holds = self.left().into_iter().filter_map(|kept| {
            let door = self.door(kept.token.kind()).ok()?;
            Some(door.hold(kept.token))
        });
        futures::future::join_all(holds).await;
    }

    /// Does something for the device that the daemon before this one left for a volume, unless it
    /// was given up. Nobody gives it up meanwhile.
    pub fn while_left<T>(&self, volume: VolumeId, work: impl FnOnce() -> T) -> Option<T> {
        let left = lock(&self.inner.left);
        left.contains_key(&volume).then(work)
    }

    /// Takes over the device that the daemon before this one left for a volume, which is served
    /// again, under the claim in `kept`. Returns whether it goes on: somebody may have given it up.
    ///
    /// # Errors
    /// If it cannot be taken over; then it is ended.
    pub async fn resume(&self, kept: &Kept, handle: &VolumeHandle) -> Result<bool, DevicesError> {
        let turn = self.turn(kept.volume);
        let _turn = turn.lock().await;
        if self.while_left(kept.volume, || ()).is_none() {
            return Ok(false);
        }
        let backend = Arc::new(handle.clone());
        let resumed = match self.door(kept.token.kind()) {
            Ok(door) => door.resume(kept.token.clone(), backend).await,
            Err(error) => Err(error),
        };
        let device = match resumed {
            Ok(device) => device,
            Err(error) => {
                self.abandon(kept).await;
                return Err(error.into());
            }
        };
        let mut kept = Kept { token: device.token().clone(), ..kept.clone() };
        catch_up(device.as_ref(), &mut kept, handle.info().size_bytes).await;
        if let Err(error) = self.note(&kept).await {
            tracing::warn!(volume = kept.name, %error, "a device lacks its name or its file");
        }
        self.put(device, &kept);
        let wanted = lock(&self.inner.left).remove(&kept.volume).is_some();
        let goes_on = wanted && !handle.is_over();
        if !goes_on {
            self.fail(kept.volume).await;
        } else {
            self.thaw_left(&kept).await;
        }
        Ok(goes_on)
    }

    /// Ends a device that the daemon before this one left and that cannot be served again.
    pub async fn abandon(&self, kept: &Kept) {
        let left = lock(&self.inner.left).remove(&kept.volume);
        if let Some(kept) = left {
            self.end(&kept).await;
        }
    }

    /// Stops serving all devices, for the next daemon: what is under way gets `limit` to finish,
    /// the rest waits in the kernel.
    pub async fn release_all(&self, limit: Duration) {
        // From now on nobody fails a device because its volume is closed here.
        let open = {
            let mut left = lock(&self.inner.left);
            let open = std::mem::take(&mut *lock(&self.inner.open));
            let both = open.values().map(|open| open.kept.clone()).chain(left.values().cloned());
            lock(&self.inner.released).extend(both);
            left.clear();
            open
        };
        let released = open.values().map(|open| open.device.release());
        if tokio::time::timeout(limit, futures::future::join_all(released)).await.is_err() {
            tracing::info!("requests under way are left to the next daemon");
        }
    }
}
