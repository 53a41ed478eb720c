//! The sending half of a connection: replies gathered into few vectored writes.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::limits::SLICES_MAX;

/// Room taken for headers at a time; one allocation then serves many replies.
const HEAD_BYTES: usize = 8 * 1024;

static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Bytes to be sent, in order: headers are copied together, payloads are not copied.
pub(crate) struct Outbox<W> {
    stream: W,
    queue: VecDeque<Bytes>,
    head: BytesMut,
    queued_bytes: u64,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(crate) fn new(stream: W) -> Self {
        Self { stream, queue: VecDeque::new(), head: BytesMut::new(), queued_bytes: 0 }
    }

    /// Bytes not yet accepted by the socket.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued_bytes == 0
    }

    /// Queues a copy of `header`.
    pub(crate) fn put(&mut self, header: &[u8]) {
        if self.head.capacity() - self.head.len() < header.len() {
            self.seal();
            self.head.reserve(HEAD_BYTES.max(header.len()));
        }
        self.head.extend_from_slice(header);
        self.queued_bytes += header.len() as u64;
    }

    /// Queues `payload` without copying it.
    pub(crate) fn put_payload(&mut self, payload: Bytes) {
        if payload.is_empty() {
            return;
        }
        self.seal();
        self.queued_bytes += payload.len() as u64;
        self.queue.push_back(payload);
    }

    /// Queues `len` zero bytes, which take no memory.
    pub(crate) fn put_zeroes(&mut self, mut len: u64) {
        while len > 0 {
            let count = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROES.len());
            let (zeroes, _) = ZEROES.split_at(count);
            self.put_payload(Bytes::from_static(zeroes));
            len -= count as u64;
        }
    }

    fn seal(&mut self) {
        if !self.head.is_empty() {
            self.queue.push_back(self.head.split().freeze());
        }
    }

    /// Sends everything. Dropping the future between polls loses and repeats nothing.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.seal();
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let slices = slices.get(..count).unwrap_or_default();
            let sent = self.stream.write_vectored(slices).await?;
            if sent == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(sent);
        }
        self.stream.flush().await
    }

    fn advance(&mut self, mut sent: usize) {
        self.queued_bytes -= sent as u64;
        while let Some(front) = self.queue.front_mut() {
            if sent < front.len() {
                front.advance(sent);
                return;
            }
            sent -= front.len();
            self.queue.pop_front();
        }
        assert!(sent == 0, "the socket took more than was offered");
    }

    /// Tells the peer that nothing more will come.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn order_is_kept_whatever_the_socket_takes_at_once() {
        let (near, mut far) = tokio::io::duplex(5);
        let mut outbox = Outbox::new(near);
        let mut expected = Vec::new();
        for round in 0..100u8 {
            outbox.put(&[round; 16]);
            expected.extend_from_slice(&[round; 16]);
            if round % 3 == 0 {
                outbox.put_payload(Bytes::from(vec![!round; 100]));
                expected.extend_from_slice(&[!round; 100]);
            }
            if round % 10 == 0 {
                outbox.put_zeroes(70_000);
                expected.extend_from_slice(&vec![0; 70_000]);
            }
        }
        assert_eq!(outbox.queued_bytes(), expected.len() as u64);
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.map(|_| got)
        });
        outbox.flush().await.unwrap();
        assert!(outbox.is_empty());
        drop(outbox);
        assert!(reader.await.unwrap().unwrap() == expected, "the stream was altered");
    }
}
