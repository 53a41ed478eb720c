//! A volume that can stand still and grow.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, ZeroMode};
use tokio::sync::watch;

/// A volume in memory whose requests can be held, and whose size can grow up to what it has.
pub(crate) struct Gate {
    pub(crate) memory: MemoryBackend,
    size_bytes: AtomicU64,
    held: watch::Sender<bool>,
    /// Requests that are held.
    pub(crate) waiting: AtomicU64,
}

impl Gate {
    pub(crate) fn new(size_bytes: u64, room_bytes: u64) -> Self {
        Self {
            memory: MemoryBackend::new(room_bytes),
            size_bytes: AtomicU64::new(size_bytes),
            held: watch::Sender::new(false),
            waiting: AtomicU64::new(0),
        }
    }

    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    pub(crate) fn grow(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::SeqCst);
    }

    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Backend for Gate {
    fn info(&self) -> ExportInfo {
        ExportInfo { size_bytes: self.size_bytes.load(Ordering::SeqCst), read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        self.pass().await;
        self.memory.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        assert_eq!(data.as_ptr() as usize % 4096, 0, "payloads are aligned");
        self.pass().await;
        self.memory.write(offset, data, fua).await
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.pass().await;
        self.memory.flush().await
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.pass().await;
        self.memory.zero(offset, len, mode).await
    }

    fn discard(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_ {
        self.memory.discard(offset, len, fua)
    }
}
