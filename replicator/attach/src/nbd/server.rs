//! The server: exports on one side, listeners on the other.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::export::{Export, Registry};
use super::inbox::Inbox;
use super::limits::Limits;
use super::listen::{Listener, tune_tcp};
use super::negotiate::{Session, negotiate};
use super::outbox::Outbox;
use super::transmit::{End, Transmission};
use crate::backend::{BLOCK_BYTES, Backend};

/// Pause after the system refuses to accept a connection, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What can be wrong with a change of the exports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// The name is taken.
    #[error("export {name:?} exists already: remove it first or choose another name")]
    Exists {
        /// The name asked for.
        name: String,
    },
    /// The name is still held by connections of a removed export.
    #[error("export {name:?} is still being removed: wait for its removal to return")]
    Leaving {
        /// The name asked for.
        name: String,
    },
    /// There is no such export.
    #[error("there is no export {name:?}")]
    NotFound {
        /// The name asked for.
        name: String,
    },
    /// The name or the description cannot be sent to clients.
    #[error("export name {name:?} or its description is empty, has a NUL or exceeds 4096 bytes")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// The size is not made of whole blocks.
    #[error("export {name:?} has {size_bytes} bytes, not a multiple of {BLOCK_BYTES}")]
    BadSize {
        /// The name asked for.
        name: String,
        /// The size of its back end.
        size_bytes: u64,
    },
    /// No connection would ever be let in.
    #[error("export {name:?} allows no connection: connections_max must be at least 1")]
    NoConnections {
        /// The name asked for.
        name: String,
    },
}

/// A client that has just arrived.
enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

struct Shared<B> {
    registry: Registry<B>,
    limits: Limits,
    stop: CancellationToken,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// An NBD server. Clones are handles of the same server.
pub struct Server<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Clone for Server<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B> fmt::Debug for Server<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl<B: Backend> Server<B> {
    /// A server without exports. Cancelling `stop` ends its listeners and connections.
    #[must_use]
    pub fn new(limits: Limits, stop: CancellationToken) -> Self {
        let limits = limits.at_least_one_request();
        let places = limits.connections_max.min(Semaphore::MAX_PERMITS);
        let shared = Shared {
            registry: Registry::new(),
            limits,
            stop,
            places: Arc::new(Semaphore::new(places)),
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Puts an export on offer.
    ///
    /// # Errors
    /// [`ServerError`] if the name is taken or still held, or name, size or limit is unusable.
    pub fn add(&self, export: Export<B>) -> Result<(), ServerError> {
        self.shared.registry.add(export, self.shared.stop.child_token())
    }

    /// Takes an export off the offer. Its requests in flight get [`Limits::drain`] to finish and
    /// then fail with `ESHUTDOWN`; its connections are closed. Returns when all of them are gone
    /// and the server no longer holds the back end.
    ///
    /// # Errors
    /// [`ServerError::NotFound`].
    pub async fn remove(&self, name: &str) -> Result<(), ServerError> {
        self.shared.registry.remove(name).await
    }

    /// Names of the exports on offer, sorted.
    #[must_use]
    pub fn exports(&self) -> Vec<String> {
        self.shared.registry.list().into_iter().map(|(name, _)| name).collect()
    }

    /// Accepts clients until the server is stopped. Several listeners may be served at once.
    pub async fn serve(&self, listener: impl Into<Listener>) {
        let listener = listener.into();
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => {}
            () = self.accept_all(&listener) => {}
        }
    }

    /// Waits until the server has been stopped and the last connection is gone.
    pub async fn closed(&self) {
        self.shared.stop.cancelled().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Serves one client over a connection made elsewhere, handshake included, to its end.
    pub async fn serve_stream<R, W>(&self, reader: R, writer: W, peer: &str)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        self.shared.connection(reader, writer, peer).await;
    }

    /// Serves one client that skips the handshake, as a kernel does on a socket handed to it:
    /// the transmission phase of `export` begins at once, with simple replies.
    ///
    /// # Errors
    /// [`ServerError::NotFound`] if there is no such export, or it is being removed.
    pub async fn serve_attached<R, W>(
        &self,
        export: &str,
        reader: R,
        writer: W,
    ) -> Result<(), ServerError>
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let not_found = || ServerError::NotFound { name: export.to_owned() };
        let live = self.shared.registry.find(export).ok_or_else(not_found)?;
        let visit = live.enter().await.ok_or_else(not_found)?;
        let session = Session { visit, structured: false, base_allocation: false };
        let (inbox, outbox) = (Inbox::new(reader), Outbox::new(writer));
        self.shared.transmission(session, inbox, outbox, "kernel").await;
        Ok(())
    }

    async fn accept_all(&self, listener: &Listener) {
        loop {
            let accepted = match listener {
                Listener::Unix(listener) => listener.accept().await.map(|(s, _)| Accepted::Unix(s)),
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(s, at)| Accepted::Tcp(s, at))
                }
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an NBD client, trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Only now: a listener without clients must not keep a place from another one.
            let Ok(place) = Arc::clone(&self.shared.places).acquire_owned().await else { return };
            self.spawn(stream, place);
        }
    }

    fn spawn(&self, stream: Accepted, place: OwnedSemaphorePermit) {
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            match stream {
                Accepted::Unix(stream) => {
                    let (reader, writer) = stream.into_split();
                    shared.connection(reader, writer, "unix socket").await;
                }
                Accepted::Tcp(stream, peer) => {
                    let peer = peer.to_string();
                    if let Err(error) = tune_tcp(&stream) {
                        tracing::debug!(%error, peer, "cannot tune the connection");
                    }
                    let (reader, writer) = stream.into_split();
                    shared.connection(reader, writer, &peer).await;
                }
            }
            drop(place);
        });
    }
}

impl<B: Backend> Shared<B> {
    async fn connection<R, W>(&self, reader: R, writer: W, peer: &str)
    where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let (mut inbox, mut outbox) = (Inbox::new(reader), Outbox::new(writer));
        let handshake = negotiate(&self.registry, &self.limits, &mut inbox, &mut outbox);
        let agreed = tokio::select! {
            biased;
            () = self.stop.cancelled() => return,
            agreed = timeout(self.limits.handshake, handshake) => agreed,
        };
        match agreed {
            Ok(Ok(Some(session))) => self.transmission(session, inbox, outbox, peer).await,
            Ok(Ok(None)) => tracing::debug!(peer, "the client ended the handshake"),
            Ok(Err(error)) => tracing::info!(peer, %error, "handshake failed"),
            Err(_) => tracing::info!(peer, "handshake not finished in time"),
        }
    }

    async fn transmission<R, W>(
        &self,
        session: Session<B>,
        inbox: Inbox<R>,
        outbox: Outbox<W>,
        peer: &str,
    ) where
        R: AsyncRead + Unpin + Send,
        W: AsyncWrite + Unpin + Send,
    {
        let export = session.visit.export().name.clone();
        tracing::info!(export, peer, structured = session.structured, "client connected");
        match Transmission::new(session, self.limits, inbox, outbox).run().await {
            End::Left => tracing::info!(export, peer, "client left"),
            End::Stopped => tracing::info!(export, peer, "client disconnected: export stopped"),
            End::Failed(error) => tracing::info!(export, peer, %error, "client lost"),
        }
    }
}
