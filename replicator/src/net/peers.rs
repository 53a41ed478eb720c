//! Dialled connections: one per node that somebody here needs, made anew when it breaks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::id::{NodeId, VolumeId};
use lockstep_core::link::Role;
use lockstep_core::wire::{Frame, RejectReason};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::connection::{Connection, Handler, run};
use super::{Net, Subscriber};
use crate::engine::Resolver;

/// Pause before the first attempt to reconnect.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted for so long is made anew without hesitation.
const STABLE_MS: u64 = 2000;
/// How long an address lookup or a TCP handshake may take.
const DIAL_MAX: Duration = Duration::from_secs(2);

/// Numbers of fetches begin here (S8); no primary ever counts so far. They tell whose a reply is.
pub(crate) const FETCH_SEQS: u64 = 1 << 63;

/// Who needs a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum User {
    /// The replicas of this node, to fetch.
    Fetches,
    /// The volume's primary.
    Primary(VolumeId),
}

/// All dialled connections of this process.
#[derive(Debug)]
pub(crate) struct Peers {
    net: Arc<Net>,
    resolver: Arc<dyn Resolver>,
    stop: CancellationToken,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
}

/// One node that is wanted.
struct Peer {
    node: NodeId,
    stop: CancellationToken,
    state: Mutex<State>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({})", self.node)
    }
}

#[derive(Default)]
struct State {
    /// The connection, while it is up.
    conn: Option<Arc<Connection>>,
    subscribers: BTreeMap<User, Arc<dyn Subscriber>>,
    /// Why there is no connection; empty while there is one.
    trouble: String,
}

impl Peers {
    pub(crate) fn new(
        net: Arc<Net>,
        resolver: Arc<dyn Resolver>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { net, resolver, stop, peers: Mutex::default() })
    }

    /// Keeps a connection to `node` from now on. The subscriber is told when it is up, at once
    /// if it is.
    pub(crate) fn connect(
        self: &Arc<Self>,
        node: &NodeId,
        user: User,
        subscriber: Arc<dyn Subscriber>,
    ) {
        let mut peers = self.lock();
        let peer = peers.entry(node.clone()).or_insert_with(|| {
            let peer = Arc::new(Peer {
                node: node.clone(),
                stop: self.stop.child_token(),
                state: Mutex::default(),
            });
            tokio::spawn(dial(Arc::clone(self), Arc::clone(&peer)));
            peer
        });
        let mut state = peer.lock();
        if let Some(conn) = &state.conn {
            subscriber.connected(conn);
        }
        state.subscribers.insert(user, subscriber);
    }

    /// The user needs no connection to `node` any more. Its subscriber hears no more.
    pub(crate) fn disconnect(&self, node: &NodeId, user: User) {
        let mut peers = self.lock();
        let Some(peer) = peers.get(node) else { return };
        let mut state = peer.lock();
        state.subscribers.remove(&user);
        if state.subscribers.is_empty() {
            peer.stop.cancel();
            drop(state);
            peers.remove(node);
        }
    }

    /// Why there is no connection to a node that is wanted.
    pub(crate) fn trouble(&self, node: &NodeId) -> Option<String> {
        let trouble = self.lock().get(node)?.lock().trouble.clone();
        (!trouble.is_empty()).then_some(trouble)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why there is no connection. The log hears of it when it changes.
    fn trouble(&self, why: String) {
        let mut state = self.lock();
        if state.trouble != why {
            tracing::warn!(peer = %self.node, %why, "no connection; trying on");
            state.trouble = why;
        }
    }
}

/// The task of one peer: connects, serves, connects again.
async fn dial(peers: Arc<Peers>, peer: Arc<Peer>) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let attempt = tokio::select! {
            attempt = connect(&peers, &peer) => attempt,
            () = peer.stop.cancelled() => return,
        };
        match attempt {
            Err(why) => peer.trouble(why),
            Ok(stream) => {
                let params = peers.net.link_params(Role::Initiator, Some(peer.node.clone()));
                let began = peers.net.clock.now();
                let ended = run(&peers.net, stream, params, &peer.stop, peer.as_ref()).await;
                if peer.stop.is_cancelled() {
                    return;
                }
                peer.trouble(ended.to_string());
                if peers.net.clock.ms_since(began) > STABLE_MS {
                    backoff = BACKOFF_MIN;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = peer.stop.cancelled() => return,
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Looks the node up and connects to it.
async fn connect(peers: &Peers, peer: &Peer) -> Result<TcpStream, String> {
    let lookup = tokio::time::timeout(DIAL_MAX, peers.resolver.peer_addr(&peer.node)).await;
    let addr: SocketAddr = match lookup {
        Ok(Ok(addr)) => addr,
        Ok(Err(why)) => return Err(format!("its address is not known: {why}")),
        Err(_) => return Err("its address can't be looked up in time".into()),
    };
    match tokio::time::timeout(DIAL_MAX, TcpStream::connect(addr)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) => Err(format!("cannot connect to {addr}: {e}")),
        Err(_) => Err(format!("cannot connect to {addr}: no answer")),
    }
}

impl Handler for Peer {
    fn up(&self, conn: &Arc<Connection>) -> Result<(), RejectReason> {
        tracing::info!(peer = %self.node, conn = %conn.id(), "connected");
        let mut state = self.lock();
        state.trouble.clear();
        for subscriber in state.subscribers.values() {
            subscriber.connected(conn);
        }
        state.conn = Some(Arc::clone(conn));
        Ok(())
    }

    fn frame(&self, conn: &Arc<Connection>, frame: Frame) -> Result<(), &'static str> {
        match frame {
            Frame::Reply(message) => {
                let fetched = message.header.seq.0 >= FETCH_SEQS;
                let primary = User::Primary(message.header.volume);
                let user = if fetched { User::Fetches } else { primary };
                // A volume that was detached meanwhile has no use for its replies.
                if let Some(subscriber) = self.lock().subscribers.get(&user) {
                    subscriber.reply(conn.id(), message);
                }
                Ok(())
            }
            Frame::Request(_) => Err("a request from the end that was dialled"),
            Frame::Link(_) => Ok(()),
        }
    }

    fn down(&self, conn: &Arc<Connection>) {
        let mut state = self.lock();
        state.conn = None;
        for subscriber in state.subscribers.values() {
            subscriber.disconnected(conn.id());
        }
    }
}
