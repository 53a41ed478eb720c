//! An attached volume as doors see it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, ZeroMode};
use lockstep_core::id::{InstanceId, VolumeId};
use lockstep_core::primary::Phase;
use tokio::sync::watch;

use crate::engine::EngineError;

/// An attached volume: what a door serves, and what its owner watches. Clones are the same
/// attachment. When the attachment ends, requests fail; they never hang for ever.
#[derive(Clone, Debug)]
pub struct VolumeHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    volume: VolumeId,
    instance: InstanceId,
    phase: watch::Receiver<Phase>,
}

impl VolumeHandle {
    /// Which volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.shared.volume
    }

    /// Which claim.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.shared.instance
    }

    /// The phase, now and as it changes. [`Phase::Closed`] and [`Phase::Fenced`] are final: then
    /// the owner takes the doors down.
    #[must_use]
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.shared.phase.clone()
    }

    /// Waits until the volume is served (active or suspended).
    ///
    /// # Errors
    /// [`EngineError::Fenced`] if it was taken over meanwhile, [`EngineError::AttachTimeout`]
    /// after `limit`; the attempt goes on then.
    pub async fn served(&self, limit: Duration) -> Result<(), EngineError> {
        let _ = limit;
        std::future::ready(Err(EngineError::Stopped)).await
    }
}

impl Backend for VolumeHandle {
    fn info(&self) -> ExportInfo {
        ExportInfo { size_bytes: 0, read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        let _ = (offset, len);
        std::future::ready(Err(Errno::Io)).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        let _ = (offset, data, fua);
        std::future::ready(Err(Errno::Io)).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        std::future::ready(Err(Errno::Io)).await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        let _ = (offset, len, mode);
        std::future::ready(Err(Errno::Io)).await
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let _ = (offset, len, fua);
        std::future::ready(Err(Errno::Io)).await
    }
}
