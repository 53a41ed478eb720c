//! A small NBD client: many requests in flight over one connection, clear words when it breaks.

mod handshake;
mod pending;
mod wire;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::handshake::Handshake;
use self::pending::{Expected, Payload, Pending, Waiter};
use self::wire::{Frame, receive_all, send_all};
use super::inbox::Inbox;
use super::limits::PAYLOAD_BYTES_MAX;
use super::listen::tune_tcp;
use super::outbox::Outbox;
use super::proto::{RequestHeader, cmd, flag, tx};
use super::uri::{Address, NbdUri};
use crate::backend::{Errno, Extent, ZeroMode};

/// What can go wrong for a client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the address.
    #[error("cannot connect to {uri}: {source}")]
    Connect {
        /// Where to.
        uri: NbdUri,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The server does not serve this export to this client.
    #[error("the server refused {what}: {why}")]
    Refused {
        /// What was asked for.
        what: String,
        /// The server's words, or our own if it gave none.
        why: String,
    },
    /// The other side breaks the protocol or is no NBD server.
    #[error("the server does not follow the NBD protocol: {0}")]
    Protocol(String),
    /// The connection is gone. Requests that were in flight may have been done or not.
    #[error("disconnected: {0}")]
    Disconnected(String),
    /// The server failed this request.
    #[error("the server failed the request: {errno}{text}")]
    Failed {
        /// The error.
        errno: Errno,
        /// The server's explanation, with a leading space and in brackets; empty if none.
        text: String,
    },
    /// The request cannot be sent over this connection.
    #[error("the request is not possible: {0}")]
    Unsupported(&'static str),
}

impl ClientError {
    /// The server's error for this one request, if that is what it is.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Failed { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Ask for structured replies, and with them for allocation status.
    pub structured: bool,
    /// Most requests in flight; more wait in the client.
    pub depth: usize,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { structured: true, depth: 128 }
    }
}

/// What the server told about the export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportFacts {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Transmission flags, of [`proto::tx`](super::proto::tx).
    pub flags: u16,
    /// The server's name for the export, if it told one.
    pub name: Option<String>,
    /// Description, if there is one.
    pub description: Option<String>,
    /// Minimum, preferred and maximum block size in bytes, if the server told them.
    pub block_sizes: Option<[u32; 3]>,
    /// Replies are structured.
    pub structured: bool,
    /// [`Client::block_status`] works.
    pub base_allocation: bool,
}

/// One line of a server's list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedExport {
    /// Name.
    pub name: String,
    /// Description; may be empty.
    pub description: String,
}

/// A connection to an export. Clones share it; when the last one is dropped it is closed.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    facts: ExportFacts,
    frames: mpsc::UnboundedSender<Frame>,
    pending: Arc<Pending>,
    depth: u32,
    slots: Arc<Semaphore>,
    next_cookie: AtomicU64,
}

impl Client {
    /// Connects with the default options.
    ///
    /// # Errors
    /// [`ClientError`] if nobody answers, or not as an NBD server that serves this export.
    pub async fn connect(uri: &NbdUri) -> Result<Self, ClientError> {
        Self::connect_with(uri, ConnectOptions::default()).await
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ClientError`] if nobody answers, or not as an NBD server that serves this export.
    pub async fn connect_with(uri: &NbdUri, options: ConnectOptions) -> Result<Self, ClientError> {
        let (inbox, outbox) = open(uri).await?;
        Self::agree(inbox, outbox, &uri.export, options).await
    }

    /// Agrees with a server on `export` over a connection made elsewhere.
    ///
    /// # Errors
    /// [`ClientError`] if nobody answers, or not as an NBD server that serves this export.
    pub async fn over<R, W>(
        reader: R,
        writer: W,
        export: &str,
        options: ConnectOptions,
    ) -> Result<Self, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (reader, writer): (Reader, Writer) = (Box::new(reader), Box::new(writer));
        Self::agree(Inbox::new(reader), Outbox::new(writer), export, options).await
    }

    async fn agree(
        inbox: Inbox<Reader>,
        outbox: Outbox<Writer>,
        export: &str,
        options: ConnectOptions,
    ) -> Result<Self, ClientError> {
        let mut handshake = Handshake::begin(inbox, outbox).await?;
        let facts = handshake.go(export, options.structured).await?;
        let Handshake { inbox, outbox, .. } = handshake;

        let depth = u32::try_from(options.depth.max(1)).unwrap_or(u32::MAX).min(1 << 16);
        let pending = Arc::new(Pending::default());
        let (frames, queue) = mpsc::unbounded_channel();
        tokio::spawn(send_all(queue, outbox, Arc::clone(&pending)));
        tokio::spawn(receive_all(inbox, Arc::clone(&pending)));
        let shared = Shared {
            facts,
            frames,
            pending,
            depth,
            slots: Arc::new(Semaphore::new(depth as usize)),
            next_cookie: AtomicU64::new(1),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Lists the exports of the server that `uri` leads to; its export name does not matter.
    ///
    /// # Errors
    /// [`ClientError`] if nobody answers or the server does not tell.
    pub async fn list(uri: &NbdUri) -> Result<Vec<ListedExport>, ClientError> {
        let (inbox, outbox) = open(uri).await?;
        let mut handshake = Handshake::begin(inbox, outbox).await?;
        let exports = handshake.list().await?;
        handshake.abort().await?;
        Ok(exports)
    }

    /// What the server told about the export.
    #[must_use]
    pub fn facts(&self) -> &ExportFacts {
        &self.shared.facts
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shared.facts.size_bytes
    }

    /// Reads `len` bytes, at most 32 MiB.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, [`ClientError::Disconnected`].
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ClientError> {
        self.read_flagged(offset, len, 0).await
    }

    /// Reads, asking for the data in one piece.
    ///
    /// # Errors
    /// As [`Client::read`], and if structured replies were not negotiated.
    pub async fn read_whole(&self, offset: u64, len: u32) -> Result<Bytes, ClientError> {
        self.needs(tx::SEND_DF, "the server cannot be asked for unfragmented replies")?;
        self.read_flagged(offset, len, flag::DF).await
    }

    async fn read_flagged(&self, offset: u64, len: u32, flags: u16) -> Result<Bytes, ClientError> {
        if len > PAYLOAD_BYTES_MAX {
            return Err(ClientError::Unsupported("reads are limited to 32 MiB"));
        }
        let expected = Expected::Data { offset, len };
        match self.call(cmd::READ, flags, offset, len, Bytes::new(), expected).await? {
            Payload::Data(data) => Ok(data.freeze()),
            Payload::None | Payload::Extents(_) => unreachable!("a read is answered with data"),
        }
    }

    /// Writes `data`, at most 32 MiB; durable on return if `fua`.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, [`ClientError::Disconnected`].
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ClientError> {
        let length = u32::try_from(data.len()).ok().filter(|len| *len <= PAYLOAD_BYTES_MAX);
        let length = length.ok_or(ClientError::Unsupported("writes are limited to 32 MiB"))?;
        self.plain(cmd::WRITE, fua_flag(fua), offset, length, data).await
    }

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, [`ClientError::Disconnected`].
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.needs(tx::SEND_FLUSH, "the server does not offer FLUSH")?;
        self.plain(cmd::FLUSH, 0, 0, 0, Bytes::new()).await
    }

    /// Discards a range.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, [`ClientError::Disconnected`].
    pub async fn trim(&self, offset: u64, len: u32, fua: bool) -> Result<(), ClientError> {
        self.needs(tx::SEND_TRIM, "the server does not offer TRIM")?;
        self.plain(cmd::TRIM, fua_flag(fua), offset, len, Bytes::new()).await
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, with [`Errno::NotSupported`] if it was to be fast
    /// and is not; [`ClientError::Disconnected`].
    pub async fn zero(&self, offset: u64, len: u32, mode: ZeroMode) -> Result<(), ClientError> {
        self.needs(tx::SEND_WRITE_ZEROES, "the server does not offer WRITE_ZEROES")?;
        let mut flags = fua_flag(mode.fua);
        if mode.no_hole {
            flags |= flag::NO_HOLE;
        }
        if mode.fast {
            self.needs(tx::SEND_FAST_ZERO, "the server does not offer FAST_ZERO")?;
            flags |= flag::FAST_ZERO;
        }
        self.plain(cmd::WRITE_ZEROES, flags, offset, len, Bytes::new()).await
    }

    /// Hints that a range will be read.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, [`ClientError::Disconnected`].
    pub async fn cache(&self, offset: u64, len: u32) -> Result<(), ClientError> {
        self.needs(tx::SEND_CACHE, "the server does not offer CACHE")?;
        self.plain(cmd::CACHE, 0, offset, len, Bytes::new()).await
    }

    /// Allocation status from `offset` on: all that the server tells, or with `one` a single
    /// extent. It may describe less than `len` bytes.
    ///
    /// # Errors
    /// [`ClientError::Failed`] by the server, [`ClientError::Disconnected`].
    pub async fn block_status(
        &self,
        offset: u64,
        len: u32,
        one: bool,
    ) -> Result<Vec<Extent>, ClientError> {
        if !self.shared.facts.base_allocation {
            return Err(ClientError::Unsupported("the server does not tell what is allocated"));
        }
        let flags = if one { flag::REQ_ONE } else { 0 };
        let none = Bytes::new();
        match self.call(cmd::BLOCK_STATUS, flags, offset, len, none, Expected::Extents).await? {
            Payload::Extents(extents) => Ok(extents),
            Payload::None | Payload::Data(_) => unreachable!("a status is answered with extents"),
        }
    }

    /// Waits for the requests in flight, then says goodbye and closes the connection.
    ///
    /// # Errors
    /// [`ClientError::Disconnected`] if the connection was gone already.
    pub async fn close(self) -> Result<(), ClientError> {
        let all = self.shared.slots.acquire_many(self.shared.depth).await;
        drop(all);
        if let Some(why) = self.shared.pending.closed() {
            return Err(ClientError::Disconnected(why));
        }
        let (done, closed) = oneshot::channel();
        // If the sending task is gone, so is `done`, and the wait ends.
        let _ = self.shared.frames.send(Frame::Goodbye(done));
        let _ = closed.await;
        Ok(())
    }

    fn needs(&self, flag: u16, why: &'static str) -> Result<(), ClientError> {
        if self.shared.facts.flags & flag == 0 {
            return Err(ClientError::Unsupported(why));
        }
        Ok(())
    }

    async fn plain(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: Bytes,
    ) -> Result<(), ClientError> {
        self.call(command, flags, offset, length, data, Expected::Nothing).await.map(|_| ())
    }

    async fn call(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: Bytes,
        expected: Expected,
    ) -> Result<Payload, ClientError> {
        let shared = &*self.shared;
        let slots = Arc::clone(&shared.slots);
        let Ok(slot) = slots.acquire_owned().await else {
            unreachable!("the semaphore is never closed")
        };
        let cookie = shared.next_cookie.fetch_add(1, Ordering::Relaxed);
        let (reply, replied) = oneshot::channel();
        shared.pending.insert(cookie, Waiter::new(expected, reply, slot))?;
        let header = RequestHeader { flags, command, cookie, offset, length };
        // If the sending task is gone, it has closed `pending`, and with it this waiter.
        let _ = shared.frames.send(Frame::Request(header, data));
        match replied.await {
            Ok(outcome) => outcome,
            Err(_) => Err(ClientError::Disconnected(
                shared.pending.closed().unwrap_or_else(|| "the runtime stopped".to_owned()),
            )),
        }
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { flag::FUA } else { 0 }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

async fn open(uri: &NbdUri) -> Result<(Inbox<Reader>, Outbox<Writer>), ClientError> {
    let (reader, writer) = connect(&uri.address)
        .await
        .map_err(|error| ClientError::Connect { uri: uri.clone(), source: Arc::new(error) })?;
    Ok((Inbox::new(reader), Outbox::new(writer)))
}

async fn connect(address: &Address) -> io::Result<(Reader, Writer)> {
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            tune_tcp(&stream)?;
            let (reader, writer) = stream.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Address::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
    }
}
