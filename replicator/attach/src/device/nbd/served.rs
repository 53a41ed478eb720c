//! The volume as the kernel's driver sees it.

use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Errno, ExportInfo, ReadData, ZeroMode};

/// A volume that can be made to fail, and knows what the device was promised to be.
///
/// A request that the volume refuses because it leaves this daemon is not answered: the kernel
/// sends it again to the next daemon, which has the volume then.
pub(super) struct Served<B> {
    backend: Arc<B>,
    read_only: bool,
    write_through: bool,
    failed: CancellationToken,
}

impl<B: Backend> Served<B> {
    pub(super) fn new(backend: Arc<B>, read_only: bool, write_through: bool) -> Self {
        Self { backend, read_only, write_through, failed: CancellationToken::new() }
    }

    /// From now on every request fails, those that are under way too.
    pub(super) fn fail(&self) {
        self.failed.cancel();
    }

    async fn unless_failed<T>(
        &self,
        work: impl Future<Output = Result<T, Errno>> + Send,
    ) -> Result<T, Errno> {
        tokio::select! {
            biased;
            () = self.failed.cancelled() => Err(Errno::Io),
            done = answered(work) => done,
        }
    }
}

async fn answered<T>(work: impl Future<Output = Result<T, Errno>> + Send) -> Result<T, Errno> {
    match work.await {
        Err(Errno::Shutdown) => std::future::pending().await,
        done => done,
    }
}

impl<B: Backend> Backend for Served<B> {
    fn info(&self) -> ExportInfo {
        let info = self.backend.info();
        ExportInfo { read_only: info.read_only || self.read_only, ..info }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        self.unless_failed(self.backend.read(offset, len)).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        let fua = fua || self.write_through;
        self.unless_failed(self.backend.write(offset, data, fua)).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.unless_failed(self.backend.flush()).await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        let mode = ZeroMode { fua: mode.fua || self.write_through, ..mode };
        self.unless_failed(self.backend.zero(offset, len, mode)).await
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let fua = fua || self.write_through;
        self.unless_failed(self.backend.discard(offset, len, fua)).await
    }
}
