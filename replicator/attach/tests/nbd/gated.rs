//! A volume whose requests wait until a test lets them go.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, ZeroMode};
use tokio::sync::{Semaphore, watch};

/// Writes, and reads beyond the first MiB, wait for [`GatedBackend::release`]; the rest does not.
pub(crate) struct GatedBackend {
    pub(crate) inner: MemoryBackend,
    gate: Semaphore,
    started: watch::Sender<usize>,
    finished: AtomicUsize,
    dropped: AtomicUsize,
}

/// Counts a request that is dropped before it is finished.
struct Ticket<'a> {
    backend: &'a GatedBackend,
    finished: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let counter = if self.finished { &self.backend.finished } else { &self.backend.dropped };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

impl GatedBackend {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self {
            inner: MemoryBackend::new(size_bytes),
            gate: Semaphore::new(0),
            started: watch::Sender::new(0),
            finished: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        }
    }

    /// Lets `count` requests go.
    pub(crate) fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }

    /// Waits until `count` requests have reached the gate.
    pub(crate) async fn started(&self, count: usize) {
        self.started.subscribe().wait_for(|started| *started >= count).await.unwrap();
    }

    pub(crate) fn started_now(&self) -> usize {
        *self.started.borrow()
    }

    pub(crate) fn finished(&self) -> usize {
        self.finished.load(Ordering::SeqCst)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        let mut ticket = Ticket { backend: self, finished: false };
        self.started.send_modify(|started| *started += 1);
        self.gate.acquire().await.unwrap().forget();
        ticket.finished = true;
    }
}

impl Backend for GatedBackend {
    fn info(&self) -> ExportInfo {
        self.inner.info()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        if offset >= 1 << 20 {
            self.pass().await;
        }
        self.inner.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        assert_eq!(data.as_ptr() as usize % 4096, 0, "the payload is not aligned");
        self.pass().await;
        self.inner.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.inner.flush().await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.inner.zero(offset, len, mode).await
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.inner.discard(offset, len, fua).await
    }
}
