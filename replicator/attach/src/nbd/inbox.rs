//! The receiving half of a connection: few system calls for small messages, no copy for large
//! payloads.

use std::io;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::limits::{DIRECT_BYTES_MIN, INBOX_BYTES};

/// Bytes received and not yet used, in front of a stream.
///
/// Every `async` method here may be dropped between polls without losing a byte, except
/// [`Inbox::exact`] and [`Inbox::read_into`], which hold part of what they have read.
pub(crate) struct Inbox<R> {
    stream: R,
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Inbox<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, data: vec![0; INBOX_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has been received and not consumed.
    pub(crate) fn available(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// Forgets the first `count` available bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        assert!(count <= self.end - self.start, "consumed more than was received");
        self.start += count;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// The next `N` bytes, if they are all here; they are consumed.
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.available().first_chunk::<N>().copied()?;
        self.consume(N);
        Some(bytes)
    }

    /// Receives once. False: the peer has closed its side.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        self.compact();
        let Some(free) = self.data.get_mut(self.end..) else { unreachable!("end is in bounds") };
        assert!(!free.is_empty(), "a full inbox holds a whole message: parse before filling");
        let count = self.stream.read(free).await?;
        self.end += count;
        Ok(count > 0)
    }

    fn compact(&mut self) {
        if self.start > 0 && self.data.len() - self.end < INBOX_BYTES / 2 {
            self.data.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Moves available bytes into `payload` until it holds `len` bytes. True: it does.
    pub(crate) fn move_into(&mut self, payload: &mut BytesMut, len: usize) -> bool {
        assert!(payload.len() <= len);
        let count = (len - payload.len()).min(self.end - self.start);
        payload.extend_from_slice(self.available().get(..count).unwrap_or_default());
        self.consume(count);
        payload.len() == len
    }

    /// Receives once towards a payload of `len` bytes: into it if much is missing, else into the
    /// inbox, so that the messages behind it arrive in the same system call.
    pub(crate) async fn fill_payload(
        &mut self,
        payload: &mut BytesMut,
        len: usize,
    ) -> io::Result<bool> {
        let missing = len - payload.len();
        if missing < DIRECT_BYTES_MIN || self.start < self.end {
            return self.fill().await;
        }
        let count = self.stream.read_buf(&mut payload.limit(missing)).await?;
        Ok(count > 0)
    }

    /// The next `N` bytes, waiting for them.
    pub(crate) async fn exact<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        loop {
            if let Some(bytes) = self.take::<N>() {
                return Ok(bytes);
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Fills `target` with the next bytes, waiting for them.
    pub(crate) async fn read_into(&mut self, target: &mut [u8]) -> io::Result<()> {
        let count = target.len().min(self.end - self.start);
        let (front, rest) = target.split_at_mut(count);
        front.copy_from_slice(self.available().get(..count).unwrap_or_default());
        self.consume(count);
        self.stream.read_exact(rest).await?;
        Ok(())
    }

    /// Reads and forgets until the peer closes.
    pub(crate) async fn discard_to_end(&mut self) -> io::Result<()> {
        loop {
            self.start = 0;
            self.end = 0;
            if !self.fill().await? {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn messages_survive_any_split() {
        let (mut near, far) = tokio::io::duplex(7);
        let sent: Vec<u8> = (0..=255u8).cycle().take(100_000).collect();
        let copy = sent.clone();
        let writer = tokio::spawn(async move { near.write_all(&copy).await });

        let mut inbox = Inbox::new(far);
        let mut got = inbox.exact::<28>().await.unwrap().to_vec();
        let mut payload = BytesMut::with_capacity(50_000);
        while !inbox.move_into(&mut payload, 50_000) {
            assert!(inbox.fill_payload(&mut payload, 50_000).await.unwrap());
        }
        got.extend_from_slice(&payload);
        let mut rest = vec![0; 100_000 - got.len()];
        inbox.read_into(&mut rest).await.unwrap();
        got.extend_from_slice(&rest);

        assert!(got == sent, "bytes were lost, doubled or moved");
        writer.await.unwrap().unwrap();
        assert!(!inbox.fill().await.unwrap(), "the peer has closed");
    }

    #[tokio::test]
    async fn what_is_left_at_the_end_of_the_buffer_is_kept() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let sent: Vec<u8> = (0..=250u8).cycle().take(2 * INBOX_BYTES).collect();
        near.write_all(&sent).await.unwrap();
        let mut inbox = Inbox::new(far);
        assert!(inbox.fill().await.unwrap());
        assert_eq!(inbox.available().len(), INBOX_BYTES, "the buffer is full");
        inbox.consume(INBOX_BYTES - 10);
        assert!(inbox.fill().await.unwrap());
        assert_eq!(inbox.available().len(), INBOX_BYTES, "and full again");
        assert!(inbox.available() == &sent[INBOX_BYTES - 10..2 * INBOX_BYTES - 10]);
    }

    #[tokio::test]
    async fn a_large_payload_is_not_taken_beyond_its_end() {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        near.write_all(&[1; 40_000]).await.unwrap();
        near.write_all(&[2; 10]).await.unwrap();
        let mut inbox = Inbox::new(far);
        let mut payload = BytesMut::with_capacity(40_000);
        while !inbox.move_into(&mut payload, 40_000) {
            assert!(inbox.fill_payload(&mut payload, 40_000).await.unwrap());
        }
        assert!(payload.iter().all(|&byte| byte == 1));
        assert_eq!(inbox.exact::<10>().await.unwrap(), [2; 10]);
    }
}
