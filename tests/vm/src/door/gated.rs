//! A back end with a gate before it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, ZeroMode};
use tokio::sync::watch;

/// A volume in memory whose requests wait while the gate is shut.
pub(super) struct Gated {
    memory: MemoryBackend,
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
    pub(super) fn new(size_bytes: u64) -> Self {
        let (memory, gate) = (MemoryBackend::new(size_bytes), watch::Sender::new(true));
        Self { memory, gate, waiting: AtomicUsize::new(0), discards: AtomicU64::new(0) }
    }

    pub(super) fn shut(&self) {
        self.gate.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.gate.send_replace(true);
    }

    pub(super) fn is_open(&self) -> bool {
        *self.gate.borrow()
    }

    /// Requests before the gate.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(super) fn unflushed(&self) -> usize {
        self.memory.unflushed_blocks()
    }

    pub(super) fn discards(&self) -> u64 {
        self.discards.load(Ordering::SeqCst)
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
        self.memory.info()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        self.pass().await;
        self.memory.read(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
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
