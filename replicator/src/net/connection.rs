//! One connection, either end: a task that reads and keeps the link, a task that writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use lockstep_core::id::{Conn, NodeId, Tick};
use lockstep_core::link::{CloseReason, Effect, Event, Link, LinkParams};
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::wire::{Frame, LinkFrame, RejectReason};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::Net;
use super::frames::{FrameReader, ReadError, write_frames};

/// Most bytes that wait to be written. Credits keep every volume far below its part of it; a peer
/// that takes nothing for so long is as good as gone.
const QUEUED_BYTES_MAX: usize = 256 << 20;
/// What a frame without data counts as.
const FRAME_BYTES: usize = 256;
/// Most frames encoded at once.
const BATCH_FRAMES: usize = 32;
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

/// What the writing task gets.
#[derive(Debug)]
enum Out {
    /// To be written.
    Frame(Frame),
    /// Nothing follows.
    Finish,
}

/// The way to the writing task.
#[derive(Clone, Debug)]
struct Outbox {
    queue: mpsc::UnboundedSender<Out>,
    queued_bytes: Arc<AtomicUsize>,
    closed: CancellationToken,
}

impl Outbox {
    fn send(&self, frame: Frame) {
        let queued = self.queued_bytes.fetch_add(weight(&frame), Ordering::Relaxed);
        if queued > QUEUED_BYTES_MAX {
            if !self.closed.is_cancelled() {
                tracing::warn!(queued, "a peer takes nothing: connection closed");
            }
            self.closed.cancel();
            return;
        }
        // Fails only when the writing task has ended; then the connection is gone anyway.
        let _ = self.queue.send(Out::Frame(frame));
    }

    fn finish(&self) {
        // As above.
        let _ = self.queue.send(Out::Finish);
    }
}

/// What a frame counts as in the queue.
fn weight(frame: &Frame) -> usize {
    let data = match frame {
        Frame::Request(Message { body: Request::Write { payload, .. }, .. })
        | Frame::Request(Message { body: Request::Resync { payload, .. }, .. })
        | Frame::Reply(Message { body: Reply::Data(payload), .. }) => payload.data.len(),
        Frame::Request(_) | Frame::Reply(_) | Frame::Link(_) => 0,
    };
    FRAME_BYTES + data
}

/// A connection that is or was up.
pub(crate) struct Connection {
    id: Conn,
    peer: NodeId,
    net: Arc<Net>,
    outbox: Outbox,
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

    /// Sends a frame; does not wait. What can't be sent is dropped: the connection is gone then,
    /// and both ends learn it.
    pub(crate) fn send(&self, frame: Frame) {
        self.outbox.send(frame);
    }

    /// Closes the connection at once.
    pub(crate) fn reset(&self) {
        self.outbox.closed.cancel();
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
    let (queue, frames) = mpsc::unbounded_channel();
    let closed = CancellationToken::new();
    let outbox = Outbox { queue, queued_bytes: Arc::default(), closed: closed.clone() };
    let queued_bytes = Arc::clone(&outbox.queued_bytes);
    let writer = tokio::spawn(write(write_half, frames, queued_bytes, closed.clone()));
    let link = Link::new(params, net.clock.now());
    let mut end = End { net, handler, link, outbox, conn: None, effects: Vec::new() };
    let ended = end.serve(FrameReader::new(read_half), stop).await;
    if let Some(conn) = end.conn.take() {
        handler.down(&conn);
    }
    if matches!(ended, Ended::Link(_)) {
        // The link's last words, such as why it refuses; then the task ends by itself.
        end.outbox.finish();
        let _ = tokio::time::timeout(LAST_WORDS, writer).await;
    }
    closed.cancel();
    ended
}

/// The writing task: ends when all senders are gone and everything is written, or when closed.
async fn write(
    mut stream: OwnedWriteHalf,
    mut frames: mpsc::UnboundedReceiver<Out>,
    queued_bytes: Arc<AtomicUsize>,
    closed: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_FRAMES);
    let work = async {
        let mut finished = false;
        while !finished && frames.recv_many(&mut batch, BATCH_FRAMES).await > 0 {
            let mut bytes = 0;
            let frames = batch.drain(..).map_while(|out| match out {
                Out::Frame(frame) => {
                    bytes += weight(&frame);
                    Some(frame)
                }
                Out::Finish => {
                    finished = true;
                    None
                }
            });
            write_frames(&mut stream, frames).await?;
            queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        stream.shutdown().await
    };
    tokio::select! {
        result = work => {
            if let Err(e) = result {
                tracing::debug!(error = %e, "connection can't be written");
                closed.cancel();
            }
        }
        () = closed.cancelled() => {}
    }
}

/// The reading task's state.
struct End<'a, H> {
    net: &'a Arc<Net>,
    handler: &'a H,
    link: Link,
    outbox: Outbox,
    conn: Option<Arc<Connection>>,
    effects: Vec<Effect>,
}

impl<H: Handler> End<'_, H> {
    async fn serve(
        &mut self,
        reader: FrameReader<tokio::net::tcp::OwnedReadHalf>,
        stop: &CancellationToken,
    ) -> Ended {
        let clock = self.net.clock;
        if let Err(ended) = self.step(Event::Opened) {
            return ended;
        }
        let closed = self.outbox.closed.clone();
        let closed = closed.cancelled();
        let stopped = stop.cancelled();
        let read = reader.next();
        let timer = sleep_until(clock.instant(self.wake_at()));
        tokio::pin!(read, timer, closed, stopped);
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
            if let Effect::Up { peer, .. } = effect {
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
        self.outbox.send(Frame::Link(frame));
    }

    fn go_up(&mut self, peer: NodeId) -> Result<(), RejectReason> {
        let conn = Arc::new(Connection {
            id: self.net.next_conn(),
            peer,
            net: Arc::clone(self.net),
            outbox: self.outbox.clone(),
            heard: AtomicU64::new(self.link.last_heard().0),
        });
        let accepted = self.handler.up(&conn);
        self.conn = Some(conn);
        accepted
    }
}
