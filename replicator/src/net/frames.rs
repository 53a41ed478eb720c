//! Frames from a byte stream.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lockstep_core::wire::{Frame, HEADER_BYTES, Prefix, WireError};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::buf::{ALIGN, aligned_space};

/// Bytes read ahead: many small frames in one system call.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// Data of one connection's requests that may be in memory, in blocks. When it is used up, the
/// connection is read no further until some of it was written to a disk.
const INTAKE_BLOCKS: usize = (256 << 20) / ALIGN;

const _: () = assert!(INTAKE_BLOCKS > wire_data_blocks(), "one frame must fit");

const fn wire_data_blocks() -> usize {
    lockstep_core::limits::MAX_DATA_BYTES as usize / ALIGN
}

/// Why no further frame can be had.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    /// The peer closed the stream between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The stream broke, maybe within a frame.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer sent something that is no frame.
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// The reading end of a connection.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    stream: BufReader<R>,
    intake: Arc<Semaphore>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        let stream = BufReader::with_capacity(READ_AHEAD_BYTES, stream);
        Self { stream, intake: Arc::new(Semaphore::new(INTAKE_BLOCKS)) }
    }

    /// The next frame. Takes and gives back the reader, so that the future can be kept while
    /// other things are waited for: it must not be dropped half-way.
    pub(super) async fn next(mut self) -> (Self, Result<Frame, ReadError>) {
        let frame = self.read().await;
        (self, frame)
    }

    async fn read(&mut self) -> Result<Frame, ReadError> {
        let mut header = [0; HEADER_BYTES];
        let first = self.stream.read(&mut header).await?;
        if first == 0 {
            return Err(ReadError::Closed);
        }
        self.stream.read_exact(&mut header[first..]).await?;
        // Limits are checked here, before anything is allocated.
        let prefix = Prefix::parse(&header)?;
        let mut body = BytesMut::zeroed(prefix.body_len());
        self.stream.read_exact(&mut body).await?;
        let data = self.read_data(&prefix).await?;
        Ok(prefix.finish(body.freeze(), data)?)
    }

    /// Reads a frame's data to where it stays: a buffer of its own that suits direct I/O.
    async fn read_data(&mut self, prefix: &Prefix) -> Result<Bytes, ReadError> {
        let len = prefix.data_len();
        if len == 0 {
            return Ok(Bytes::new());
        }
        let blocks = u32::try_from(len / ALIGN).unwrap_or(u32::MAX);
        // Replies are bounded by what this node asked for; holding them up would hold up the
        // heartbeats behind them.
        let permit = if prefix.kind().is_request() {
            Arc::clone(&self.intake).acquire_many_owned(blocks).await.ok()
        } else {
            None
        };
        let mut space = aligned_space(len);
        while space.len() < len {
            let mut rest = (&mut self.stream).take((len - space.len()) as u64);
            if rest.read_buf(&mut space).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        let data = space.freeze();
        Ok(match permit {
            Some(permit) => Bytes::from_owner(Counted { data, _permit: permit }),
            None => data,
        })
    }
}

/// Data that counts against its connection's intake until it is dropped.
struct Counted {
    data: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}
