//! The two tasks of a client: one sends requests, one receives replies.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use super::pending::{Expected, Pending, Waiter};
use crate::backend::Extent;
use crate::nbd::inbox::Inbox;
use crate::nbd::limits::{EXTENTS_MAX, STRING_BYTES_MAX};
use crate::nbd::outbox::Outbox;
use crate::nbd::proto::{
    CHUNK_BYTES, ChunkHeader, RequestHeader, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO,
    STRUCTURED_REPLY_MAGIC, chunk, cmd, errno_from_code,
};

/// Most requests gathered into one write.
const BATCH: usize = 32;

/// What the sending task is given to do.
#[derive(Debug)]
pub(super) enum Frame {
    Request(RequestHeader, Bytes),
    /// Say goodbye, close, and answer when done.
    Goodbye(oneshot::Sender<()>),
}

/// Why receiving ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the server broke the protocol: {0}")]
    Protocol(String),
}

fn broken<T>(why: impl Into<String>) -> Result<T, Ended> {
    Err(Ended::Protocol(why.into()))
}

pub(super) async fn send_all<W: AsyncWrite + Unpin>(
    mut queue: mpsc::UnboundedReceiver<Frame>,
    mut outbox: Outbox<W>,
    pending: Arc<Pending>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let goodbye = queue.recv_many(&mut batch, BATCH).await == 0;
        let mut asked = None;
        for frame in batch.drain(..) {
            match frame {
                Frame::Request(header, data) => {
                    outbox.put(&header.encode());
                    outbox.put_payload(data);
                }
                Frame::Goodbye(done) => asked = Some(done),
            }
        }
        if goodbye || asked.is_some() {
            let header =
                RequestHeader { flags: 0, command: cmd::DISC, cookie: 0, offset: 0, length: 0 };
            outbox.put(&header.encode());
        }
        if let Err(error) = outbox.flush().await {
            pending.close(&format!("cannot send to the server: {error}"));
            return;
        }
        if goodbye || asked.is_some() {
            pending.close("the connection was closed by this client");
            // The goodbye has been sent; a server that closes first is no failure.
            let _ = outbox.shutdown().await;
            return;
        }
    }
}

pub(super) async fn receive_all<R: AsyncRead + Unpin>(mut inbox: Inbox<R>, pending: Arc<Pending>) {
    loop {
        if let Err(ended) = receive(&mut inbox, &pending).await {
            let eof = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
            let why = match &ended {
                Ended::Io(error) if eof(error) => "the server closed the connection".to_owned(),
                _ => ended.to_string(),
            };
            return pending.close(&why);
        }
    }
}

async fn receive<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    pending: &Pending,
) -> Result<(), Ended> {
    match u32::from_be_bytes(inbox.exact().await?) {
        SIMPLE_REPLY_MAGIC => simple(inbox, pending).await,
        STRUCTURED_REPLY_MAGIC => structured(inbox, pending).await,
        magic => broken(format!("a reply starts with {magic:#x}")),
    }
}

async fn simple<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    pending: &Pending,
) -> Result<(), Ended> {
    let error = u32::from_be_bytes(inbox.exact().await?);
    let cookie = u64::from_be_bytes(inbox.exact().await?);
    let mut waiter = taken(pending, cookie)?;
    if error != 0 {
        waiter.error = Some((errno_from_code(error), String::new()));
    } else if let Expected::Data { offset, len } = waiter.expected {
        let received = fill(inbox, &mut waiter, offset, u64::from(len)).await;
        give_back_on_error(pending, cookie, waiter, received)?.finish().map_err(Ended::Protocol)?;
        return Ok(());
    }
    waiter.finish().map_err(Ended::Protocol)
}

fn taken(pending: &Pending, cookie: u64) -> Result<Waiter, Ended> {
    pending.take(cookie).ok_or_else(|| Ended::Protocol(format!("no request has cookie {cookie}")))
}

/// Puts the request back if receiving failed, so that it learns why.
fn give_back_on_error(
    pending: &Pending,
    cookie: u64,
    waiter: Waiter,
    received: Result<(), Ended>,
) -> Result<Waiter, Ended> {
    match received {
        Ok(()) => Ok(waiter),
        Err(ended) => {
            pending.put_back(cookie, waiter);
            Err(ended)
        }
    }
}

async fn fill<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    waiter: &mut Waiter,
    offset: u64,
    len: u64,
) -> Result<(), Ended> {
    let Some(place) = waiter.place(offset, len) else {
        return broken(format!("data at {offset} was not asked for"));
    };
    Ok(inbox.read_into(place).await?)
}

async fn structured<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    pending: &Pending,
) -> Result<(), Ended> {
    let rest = inbox.exact::<{ CHUNK_BYTES - 4 }>().await?;
    let header = ChunkHeader::decode_after_magic(&rest);
    let mut waiter = taken(pending, header.cookie)?;
    let received = content(inbox, &header, &mut waiter).await;
    let waiter = give_back_on_error(pending, header.cookie, waiter, received)?;
    if header.flags & chunk::DONE == 0 {
        pending.put_back(header.cookie, waiter);
        return Ok(());
    }
    waiter.finish().map_err(Ended::Protocol)
}

async fn content<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    header: &ChunkHeader,
    waiter: &mut Waiter,
) -> Result<(), Ended> {
    let length = u64::from(header.length);
    match header.kind {
        chunk::NONE if length == 0 && header.flags & chunk::DONE != 0 => Ok(()),
        chunk::OFFSET_DATA if length > 8 => {
            let offset = u64::from_be_bytes(inbox.exact().await?);
            fill(inbox, waiter, offset, length - 8).await
        }
        chunk::OFFSET_HOLE if length == 12 => {
            let offset = u64::from_be_bytes(inbox.exact().await?);
            let len = u32::from_be_bytes(inbox.exact().await?);
            match waiter.place(offset, u64::from(len)) {
                Some(place) => place.fill(0),
                None => return broken(format!("a hole at {offset} was not asked for")),
            }
            Ok(())
        }
        chunk::BLOCK_STATUS if waiter.expected == Expected::Extents => {
            extents(inbox, header.length, waiter).await
        }
        kind if kind & chunk::ERROR_BIT != 0 => error(inbox, header.length, waiter).await,
        kind => broken(format!("chunk type {kind} of {length} bytes does not belong here")),
    }
}

async fn extents<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    length: u32,
    waiter: &mut Waiter,
) -> Result<(), Ended> {
    let count = length.saturating_sub(4) / 8;
    if count == 0 || length % 8 != 4 || count as usize > 16 * EXTENTS_MAX {
        return broken(format!("a status chunk has {length} bytes"));
    }
    let _context = inbox.exact::<4>().await?;
    for _ in 0..count {
        let len = u32::from_be_bytes(inbox.exact().await?);
        let status = u32::from_be_bytes(inbox.exact().await?);
        waiter.extents.push(Extent {
            len_bytes: u64::from(len),
            hole: status & STATE_HOLE != 0,
            zero: status & STATE_ZERO != 0,
        });
    }
    Ok(())
}

async fn error<R: AsyncRead + Unpin>(
    inbox: &mut Inbox<R>,
    length: u32,
    waiter: &mut Waiter,
) -> Result<(), Ended> {
    if length < 6 || length as usize > STRING_BYTES_MAX + 14 {
        return broken(format!("an error chunk has {length} bytes"));
    }
    let code = u32::from_be_bytes(inbox.exact().await?);
    let text_length = usize::from(u16::from_be_bytes(inbox.exact().await?));
    let mut rest = vec![0; length as usize - 6];
    inbox.read_into(&mut rest).await?;
    let Some(text) = rest.get(..text_length) else {
        return broken("the text of an error is longer than its chunk");
    };
    waiter.error = Some((errno_from_code(code), String::from_utf8_lossy(text).into_owned()));
    Ok(())
}
