//! What the replicas here fetch from replicas on other nodes (S8): each question is answered once,
//! in time, by the other replica or by nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::id::{Conn, NodeId, Seq};
use lockstep_core::limits::FETCH_MS;
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::wire::{Frame, Kind};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::net::{Connection, FETCH_SEQS, Peers, Subscriber, User};

/// A connection that nobody fetched on for so long is given up.
const IDLE: Duration = Duration::from_secs(10);

/// Fetches for all replicas of this node.
#[derive(Debug)]
pub(super) struct Fetcher {
    peers: Arc<Peers>,
    stop: CancellationToken,
    next: AtomicU64,
    remotes: Mutex<BTreeMap<NodeId, Remote>>,
}

#[derive(Debug)]
struct Remote {
    line: Arc<Line>,
    /// Counts questions.
    uses: u64,
}

/// The questions to one node.
#[derive(Debug, Default)]
struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    conn: Option<Arc<Connection>>,
    open: BTreeMap<Seq, Question>,
}

/// A question without an answer. It is dropped if there will be none.
#[derive(Debug)]
struct Question {
    /// Until it is sent.
    message: Option<Message<Request>>,
    answer: oneshot::Sender<Message<Reply>>,
}

impl Fetcher {
    pub(super) fn new(peers: Arc<Peers>, stop: CancellationToken) -> Arc<Self> {
        let next = AtomicU64::new(FETCH_SEQS);
        Arc::new(Self { peers, stop, next, remotes: Mutex::default() })
    }

    /// Asks the replica on `node`. `None` if there is no answer in time: no connection, an older
    /// daemon, or the connection broke.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        node: &NodeId,
        message: Message<Request>,
    ) -> Option<Message<Reply>> {
        self.fetch_within(Duration::from_millis(FETCH_MS), node, message).await
    }

    /// The same, waiting for so long.
    pub(super) async fn fetch_within(
        self: &Arc<Self>,
        limit: Duration,
        node: &NodeId,
        mut message: Message<Request>,
    ) -> Option<Message<Reply>> {
        let seq = Seq(self.next.fetch_add(1, Ordering::Relaxed));
        message.header.seq = seq;
        let line = self.line(node);
        let answer = line.ask(seq, message);
        let answer = tokio::time::timeout(limit, answer).await;
        line.lock().open.remove(&seq);
        answer.ok()?.ok()
    }

    /// The line to a node; its connection is made if need be.
    fn line(self: &Arc<Self>, node: &NodeId) -> Arc<Line> {
        let mut remotes = self.lock();
        let remote = remotes.entry(node.clone()).or_insert_with(|| {
            let line = Arc::new(Line::default());
            let subscriber = Arc::new(Inbox(Arc::clone(&line)));
            self.peers.connect(node, User::Fetches, subscriber);
            tokio::spawn(Arc::clone(self).keep(node.clone()));
            Remote { line, uses: 0 }
        });
        remote.uses += 1;
        Arc::clone(&remote.line)
    }

    /// Keeps the connection to a node for as long as somebody fetches from it.
    async fn keep(self: Arc<Self>, node: NodeId) {
        let mut seen = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(IDLE) => {}
                () = self.stop.cancelled() => return,
            }
            let mut remotes = self.lock();
            let Some(remote) = remotes.get(&node) else { return };
            if remote.uses == seen {
                self.peers.disconnect(&node, User::Fetches);
                remotes.remove(&node);
                return;
            }
            seen = remote.uses;
        }
    }

    /// The map is changed by single inserts and removals: it is whole even after a panic.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Remote>> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, seq: Seq, message: Message<Request>) -> oneshot::Receiver<Message<Reply>> {
        let (answer, receiver) = oneshot::channel();
        let mut state = self.lock();
        state.open.insert(seq, Question { message: Some(message), answer });
        state.send();
        receiver
    }
}

impl State {
    /// Sends what waits for a connection, if there is one.
    fn send(&mut self) {
        let Some(conn) = &self.conn else { return };
        let knows = |message: &Message<Request>| {
            let kept = message.body.is_about_kept();
            conn.version() >= if kept { Kind::ReadKept.since() } else { Kind::Fetch.since() }
        };
        self.open.retain(|_, question| question.message.as_ref().is_none_or(knows));
        for message in self.open.values_mut().filter_map(|question| question.message.take()) {
            conn.push(&Frame::Request(message));
        }
        conn.flush();
    }
}

/// Passes on what the net has for a line.
#[derive(Debug)]
struct Inbox(Arc<Line>);

impl Subscriber for Inbox {
    fn connected(&self, conn: &Arc<Connection>) {
        let mut state = self.0.lock();
        state.conn = Some(Arc::clone(conn));
        state.send();
    }

    fn disconnected(&self, conn: Conn) {
        let mut state = self.0.lock();
        if state.conn.as_ref().is_some_and(|known| known.id() == conn) {
            state.conn = None;
            state.open.retain(|_, question| question.message.is_some());
        }
    }

    fn reply(&self, _: Conn, message: Message<Reply>) {
        if let Some(question) = self.0.lock().open.remove(&message.header.seq) {
            // Whoever asked may have given up.
            let _ = question.answer.send(message);
        }
    }
}
