//! A volume in memory that can stand still and grow.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::MemoryBackend;
use crate::backend::{Backend, Errno, ExportInfo, ReadData, ZeroMode};

/// A volume in memory whose requests wait while its gate is shut.
#[derive(Debug)]
pub struct Gated {
    memory: MemoryBackend,
    size_bytes: AtomicU64,
    gate: watch::Sender<bool>,
    waiting: AtomicUsize,
    discards: AtomicU64,
}

/// Counts one that waits, for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Gated {
    /// A volume whose gate is open.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        Self::with_room(size_bytes, size_bytes)
    }

    /// The same, which can grow up to `room_bytes`.
    #[must_use]
    pub fn with_room(size_bytes: u64, room_bytes: u64) -> Self {
        Self {
            memory: MemoryBackend::new(room_bytes),
            size_bytes: AtomicU64::new(size_bytes),
            gate: watch::Sender::new(true),
            waiting: AtomicUsize::new(0),
            discards: AtomicU64::new(0),
        }
    }

    /// Lets all requests wait.
    pub fn shut(&self) {
        self.gate.send_replace(false);
    }

    /// Lets all requests go.
    pub fn open(&self) {
        self.gate.send_replace(true);
    }

    /// Whether requests go.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self.gate.borrow()
    }

    /// Requests before the gate.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Discards that came so far.
    #[must_use]
    pub fn discards(&self) -> u64 {
        self.discards.load(Ordering::SeqCst)
    }

    /// What is behind the gate.
    #[must_use]
    pub fn memory(&self) -> &MemoryBackend {
        &self.memory
    }

    /// Has another size from now on.
    pub fn grow(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::SeqCst);
    }

    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&self.waiting);
        // The sender is in `self`, so there is always somebody to open it.
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
    }
}

impl Backend for Gated {
    fn info(&self) -> ExportInfo {
        ExportInfo { size_bytes: self.size_bytes.load(Ordering::SeqCst), read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        self.pass().await;
        self.memory.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        assert_eq!(data.as_ptr() as usize % 4096, 0, "doors align what is written");
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

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.discards.fetch_add(1, Ordering::SeqCst);
        self.pass().await;
        self.memory.discard(offset, len, fua).await
    }
}
