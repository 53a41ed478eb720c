//! One connection, either end: a task that reads and keeps the link.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_core::id::{Conn, NodeId, Tick};
use lockstep_core::link::{CloseReason, Effect, Event, Link, LinkParams};
use lockstep_core::wire::{Frame, LinkFrame, RejectReason};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::Net;
use super::frames::{FrameReader, ReadError};
use super::outbox::Outbox;

/// How long a closing connection may take to send its last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum Ended {
    /// The link said so.
    #[error("{0}")]
    Link(CloseReason),
    /// Nothing (sensible) came from the peer.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// A frame that this end does not take.
    #[error("the peer broke the protocol: {0}")]
    Unexpected(&'static str),
    /// This end closed it: a machine's wish, too much unsent, or it is no longer needed.
    #[error("closed by this node")]
    Reset,
}

/// What is done with the frames of a connection, by the end it is used at.
pub(super) trait Handler: Send + Sync {
    /// The link is up. Called once, before any frame.
    ///
    /// # Errors
    /// Why the connection is not wanted after all.
    fn up(&self, conn: &Arc<Connection>) -> Result<(), RejectReason>;
    /// A frame about a volume arrived.
    ///
    /// # Errors
    /// What was wrong with it; the connection is closed then.
    fn frame(&self, conn: &Arc<Connection>, frame: Frame) -> Result<(), &'static str>;
    /// The connection is gone. Called once if [`Handler::up`] was called.
    fn down(&self, conn: &Arc<Connection>);
}

/// A connection that is or was up.
pub(crate) struct Connection {
    id: Conn,
    peer: NodeId,
    net: Arc<Net>,
    outbox: Arc<Outbox>,
    /// When a frame last arrived, in ticks.
    heard: AtomicU64,
}

impl Connection {
    /// Its number.
    pub(crate) fn id(&self) -> Conn {
        self.id
    }

    /// The node at the other end.
    pub(crate) fn peer(&self) -> &NodeId {
        &self.peer
    }

    /// The version of the format that both ends agreed on.
    pub(crate) fn version(&self) -> u16 {
        self.outbox.version()
    }

    /// Queues a frame, to leave with the next [`Connection::flush`]; does not wait. What can't be
    /// sent is dropped: the connection is gone then, and both ends learn it.
    pub(crate) fn push(&self, frame: &Frame) {
        self.outbox.push(frame);
    }

    /// Lets the queued frames leave; does not wait.
    pub(crate) fn flush(&self) {
        self.outbox.flush();
    }

    /// Closes the connection at once.
    pub(crate) fn reset(&self) {
        self.outbox.reset();
    }

    /// When a frame last arrived.
    pub(crate) fn heard(&self) -> Tick {
        Tick(self.heard.load(Ordering::Relaxed))
    }

    /// Milliseconds since a frame last arrived.
    pub(crate) fn heard_ms(&self) -> u64 {
        self.net.clock.ms_since(self.heard())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({} to {})", self.id, self.peer)
    }
}

/// Runs one connection until it ends; says why. `stop` closes it politely.
pub(super) async fn run<H: Handler>(
    net: &Arc<Net>,
    stream: TcpStream,
    params: LinkParams,
    stop: &CancellationToken,
    handler: &H,
) -> Ended {
    // Latency matters more than fullness; batching is done above the socket. A socket on which
    // this fails is about to fail otherwise too.
    let _ = stream.set_nodelay(true);
    let (read_half, write_half) = stream.into_split();
    let closed = CancellationToken::new();
    let outbox = Arc::new(Outbox::new(write_half, closed.clone()));
    let link = Link::new(params, net.clock.now());
    let mut end = End { net, handler, link, outbox, conn: None, effects: Vec::new() };
    let ended = end.serve(FrameReader::new(read_half), &closed, stop).await;
    if let Some(conn) = end.conn.take() {
        handler.down(&conn);
    }
    if matches!(ended, Ended::Link(_)) {
        // The link's last words, such as why it refuses, if the peer takes them in time.
        let _ = timeout(LAST_WORDS, end.outbox.drain()).await;
    }
    end.outbox.end();
    closed.cancel();
    ended
}

/// The reading task's state.
struct End<'a, H> {
    net: &'a Arc<Net>,
    handler: &'a H,
    link: Link,
    outbox: Arc<Outbox>,
    conn: Option<Arc<Connection>>,
    effects: Vec<Effect>,
}

impl<H: Handler> End<'_, H> {
    async fn serve(
        &mut self,
        reader: FrameReader<OwnedReadHalf>,
        closed: &CancellationToken,
        stop: &CancellationToken,
    ) -> Ended {
        let clock = self.net.clock;
        if let Err(ended) = self.step(Event::Opened) {
            return ended;
        }
        let outbox = Arc::clone(&self.outbox);
        let writing = outbox.keep_writing();
        let closed = closed.cancelled();
        let stopped = stop.cancelled();
        let read = reader.next();
        let timer = sleep_until(clock.instant(self.wake_at()));
        tokio::pin!(read, writing, timer, closed, stopped);
        loop {
            let result = tokio::select! {
                biased;
                (reader, frame) = &mut read => {
                    let result = self.on_read(frame);
                    read.set(reader.next());
                    result
                }
                () = &mut timer => {
                    let result = self.step(Event::Wake);
                    timer.as_mut().reset(clock.instant(self.wake_at()));
                    result
                }
                () = &mut writing => Ok(()),
                () = &mut closed => Err(Ended::Reset),
                () = &mut stopped => self.step(Event::Refuse(RejectReason::Shutdown)),
            };
            if let Err(ended) = result {
                return ended;
            }
            // Frames only move the link's deadline later, but for the one that brings it up.
            let at = clock.instant(self.wake_at());
            if at < timer.deadline() {
                timer.as_mut().reset(at);
            }
        }
    }

    fn wake_at(&self) -> Tick {
        // A link that is not closed has always a deadline.
        self.link.deadline().map_or_else(|| self.net.clock.now(), |(at, _)| at)
    }

    fn on_read(&mut self, frame: Result<Frame, ReadError>) -> Result<(), Ended> {
        match frame? {
            Frame::Link(frame) => self.step(Event::Received(frame)),
            frame @ (Frame::Request(_) | Frame::Reply(_)) => {
                self.step(Event::Heard)?;
                match &self.conn {
                    Some(conn) => self.handler.frame(conn, frame).map_err(Ended::Unexpected),
                    None => Err(Ended::Unexpected("a frame before the handshake")),
                }
            }
        }
    }

    /// Steps the link and does what it wants. Going up comes before anything is sent, since the
    /// peer may answer at once.
    fn step(&mut self, event: Event) -> Result<(), Ended> {
        let now = self.net.clock.now();
        let mut effects = std::mem::take(&mut self.effects);
        self.link.step(now, event, &mut effects);
        if let Some(conn) = &self.conn {
            conn.heard.store(self.link.last_heard().0, Ordering::Relaxed);
        }
        let mut refused = None;
        for effect in &effects {
            if let Effect::Up { peer, version, .. } = effect {
                self.outbox.agree(*version);
                refused = self.go_up(peer.clone()).err();
            }
        }
        let mut result = Ok(());
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(frame) => self.send(frame),
                Effect::Up { .. } => {}
                Effect::Close(reason) => result = Err(Ended::Link(reason)),
            }
        }
        self.effects = effects;
        match refused {
            Some(reason) if result.is_ok() => self.step(Event::Refuse(reason)),
            Some(_) | None => result,
        }
    }

    fn send(&self, frame: LinkFrame) {
        self.outbox.push(&Frame::Link(frame));
        self.outbox.flush();
    }

    fn go_up(&mut self, peer: NodeId) -> Result<(), RejectReason> {
        let conn = Arc::new(Connection {
            id: self.net.next_conn(),
            peer,
            net: Arc::clone(self.net),
            outbox: Arc::clone(&self.outbox),
            heard: AtomicU64::new(self.link.last_heard().0),
        });
        let accepted = self.handler.up(&conn);
        self.conn = Some(conn);
        accepted
    }
}
