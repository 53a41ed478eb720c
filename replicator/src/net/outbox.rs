//! What waits to be written to a connection. Whoever sends also writes, as far as the socket
//! takes it at once: a frame then leaves without a hand-over to another task.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use lockstep_core::wire::{self, Encoded, Frame};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Most bytes that wait. Credits keep every volume far below its part of it; a peer that takes
/// nothing for so long is as good as gone.
const QUEUED_BYTES_MAX: usize = 256 << 20;
/// Most pieces handed to one system call.
const SLICES_MAX: usize = 64;

/// The writing end of a connection.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    /// The version of the format that both ends agreed on; until then only frames of the
    /// handshake are sent, which all versions have alike.
    version: AtomicU16,
    /// Rung when the socket took less than there was.
    blocked: Notify,
    /// Cancelled when the connection is to be closed at once.
    closed: CancellationToken,
}

#[derive(Debug)]
struct Queue {
    /// `None` once nothing more will be written.
    stream: Option<Arc<OwnedWriteHalf>>,
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn new(stream: OwnedWriteHalf, closed: CancellationToken) -> Self {
        let stream = Some(Arc::new(stream));
        let queue = Mutex::new(Queue { stream, pieces: VecDeque::new(), bytes: 0 });
        let version = AtomicU16::new(wire::MAX_VERSION);
        Self { queue, version, blocked: Notify::new(), closed }
    }

    /// Both ends agreed on this version.
    pub(super) fn agree(&self, version: u16) {
        self.version.store(version, Ordering::Relaxed);
    }

    /// What both ends agreed on.
    pub(super) fn version(&self) -> u16 {
        self.version.load(Ordering::Relaxed)
    }

    /// Queues a frame, to leave with the next [`Outbox::flush`]. What can't be sent is dropped:
    /// the connection is gone then.
    pub(super) fn push(&self, frame: &Frame) {
        let Encoded { head, data } = wire::encode_as(frame, self.version.load(Ordering::Relaxed));
        let mut queue = self.lock();
        if queue.stream.is_none() {
            return;
        }
        queue.bytes += head.len() + data.len();
        queue.pieces.push_back(head);
        if !data.is_empty() {
            queue.pieces.push_back(data);
        }
        if queue.bytes > QUEUED_BYTES_MAX {
            tracing::warn!(bytes = queue.bytes, "a peer takes nothing: connection closed");
            queue.end();
            self.closed.cancel();
        }
    }

    /// Writes what the socket takes now; the rest follows by itself.
    pub(super) fn flush(&self) {
        match self.lock().write() {
            Ok(true) => {}
            Ok(false) => self.blocked.notify_one(),
            Err(e) => {
                tracing::debug!(error = %e, "connection can't be written");
                self.closed.cancel();
            }
        }
    }

    /// Closes the connection at once.
    pub(super) fn reset(&self) {
        self.closed.cancel();
    }

    /// Goes on writing whenever the socket has room again. Never returns; to be dropped with the
    /// connection.
    pub(super) async fn keep_writing(&self) {
        loop {
            self.blocked.notified().await;
            self.wait_for_room().await;
            self.flush();
        }
    }

    /// Writes all there is, however long it takes, unless the connection fails.
    pub(super) async fn drain(&self) {
        loop {
            match self.lock().write() {
                Ok(true) | Err(_) => return,
                Ok(false) => {}
            }
            self.wait_for_room().await;
        }
    }

    /// Ends the stream; what waits is dropped.
    pub(super) fn end(&self) {
        self.lock().end();
    }

    async fn wait_for_room(&self) {
        let stream = self.lock().stream.clone();
        if let Some(stream) = stream {
            // The next write tells what is wrong, if something is.
            let _ = stream.writable().await;
        }
    }

    /// No change of the queue can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn end(&mut self) {
        self.stream = None;
        self.pieces.clear();
        self.bytes = 0;
    }

    /// Writes what the socket takes. Was that all?
    fn write(&mut self) -> io::Result<bool> {
        let Some(stream) = self.stream.clone() else { return Ok(true) };
        while !self.pieces.is_empty() {
            let slices: Vec<IoSlice<'_>> =
                self.pieces.iter().take(SLICES_MAX).map(|p| IoSlice::new(p)).collect();
            match stream.try_write_vectored(&slices) {
                Ok(0) => {
                    self.end();
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(written) => self.written(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.end();
                    return Err(e);
                }
            }
        }
        Ok(true)
    }

    /// Forgets what was written.
    fn written(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
    }
}
