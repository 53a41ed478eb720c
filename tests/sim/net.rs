//! Connections: frames in order in each direction, until one end is closed.
//!
//! An end that is closed learns nothing more. What is under way to the other end still arrives
//! there, followed by the news of the end; or the news overtakes it and it is lost. Between the
//! two lies the time in which late frames of an old connection arrive beside those of a new one.

use bytes::Bytes;
use lockstep_core::id::Conn;
use lockstep_core::link::Link;
use lockstep_core::wire;
use std::collections::{BTreeMap, VecDeque};

/// Identifies a connection in the world.
pub type Wire = u64;

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// "I would like a connection."
    Dial,
    /// "You have one."
    Accept,
    /// A frame.
    Frame {
        /// Header and body.
        head: Bytes,
        /// Blocks.
        data: Bytes,
        /// Was a bit of it flipped?
        garbled: bool,
    },
    /// "It is over."
    Gone,
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    /// The node.
    pub node: usize,
    /// What its machines call it.
    pub conn: Conn,
    /// Is it open?
    pub open: bool,
    /// Has the handshake been done, so that machines know of it?
    pub up: bool,
    /// The handshake and the heartbeats; none within a node.
    pub link: Option<Link>,
    /// Version of the format of every frame that leaves here, once agreed on.
    pub version: u16,
    /// When the link is to be woken, if an event for it exists.
    pub armed: Option<u64>,
    /// Frames under way to this end with the times at which they arrive.
    pub inbox: VecDeque<(u64, Packet)>,
    /// Nothing arrives here before then.
    pub stuck_until: u64,
}

impl End {
    fn new(node: usize, conn: Conn) -> Self {
        Self {
            node,
            conn,
            open: true,
            up: false,
            link: None,
            version: wire::MAX_VERSION,
            armed: None,
            inbox: VecDeque::new(),
            stuck_until: 0,
        }
    }
}

/// Which end.
pub const DIALER: usize = 0;
/// Which end.
pub const ACCEPTOR: usize = 1;

/// Two ends.
#[derive(Debug)]
pub struct Connection {
    /// The dialer's and the acceptor's.
    pub ends: [End; 2],
}

impl Connection {
    /// Is it within one node?
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.ends[0].node == self.ends[1].node
    }
}

/// All connections, and who can't reach whom.
#[derive(Debug, Default)]
pub struct Net {
    /// Those with an open end.
    pub connections: BTreeMap<Wire, Connection>,
    /// From the first node nothing reaches the second before then.
    pub blocked: BTreeMap<(usize, usize), u64>,
    next: Wire,
}

impl Net {
    /// A new connection between two nodes, not answered yet.
    pub fn dial(&mut self, from: (usize, Conn), to: usize) -> Wire {
        self.next += 1;
        let mut acceptor = End::new(to, Conn(0));
        acceptor.open = false;
        let ends = [End::new(from.0, from.1), acceptor];
        self.connections.insert(self.next, Connection { ends });
        self.next
    }

    /// The end, if it exists.
    pub fn end(&mut self, wire: Wire, side: usize) -> Option<&mut End> {
        self.connections.get_mut(&wire)?.ends.get_mut(side)
    }

    /// The end that `node`'s machines call `conn`.
    #[must_use]
    pub fn find(&self, node: usize, conn: Conn) -> Option<(Wire, usize)> {
        self.connections.iter().find_map(|(wire, c)| {
            let side = c.ends.iter().position(|e| e.open && e.node == node && e.conn == conn)?;
            Some((*wire, side))
        })
    }

    /// The open ends of a node.
    #[must_use]
    pub fn ends_of(&self, node: usize) -> Vec<(Wire, usize)> {
        let mine = |e: &End| e.open && e.node == node;
        let sides = |c: &Connection| [DIALER, ACCEPTOR].map(|side| (side, mine(&c.ends[side])));
        let ends = self.connections.iter().flat_map(|(wire, c)| sides(c).map(|s| (*wire, s)));
        ends.filter(|(_, (_, mine))| *mine).map(|(wire, (side, _))| (wire, side)).collect()
    }

    /// When something sent now between the nodes gets through at the earliest.
    #[must_use]
    pub fn blocked_until(&self, from: usize, to: usize) -> u64 {
        self.blocked.get(&(from, to)).copied().unwrap_or(0)
    }

    /// Puts `packet` into the inbox of `side`, to arrive at `when` or after what is before it.
    /// Answers when it arrives.
    pub fn post(&mut self, wire: Wire, side: usize, when: u64, packet: Packet) -> Option<u64> {
        let end = self.end(wire, side)?;
        let last = end.inbox.back().map_or(0, |(at, _)| *at);
        let at = when.max(last).max(end.stuck_until);
        end.inbox.push_back((at, packet));
        Some(at)
    }

    /// What has arrived at `side` by `now`.
    pub fn take(&mut self, wire: Wire, side: usize, now: u64) -> Option<Packet> {
        let end = self.end(wire, side)?;
        if end.inbox.front().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        end.inbox.pop_front().map(|(_, packet)| packet)
    }

    /// Forgets a connection whose ends are both closed.
    pub fn prune(&mut self, wire: Wire) {
        let over = |c: &Connection| c.ends.iter().all(|e| !e.open && e.inbox.is_empty());
        if self.connections.get(&wire).is_some_and(over) {
            self.connections.remove(&wire);
        }
    }
}
