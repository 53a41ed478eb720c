//! Connections between nodes: one port to listen on, one dialled connection per peer node that
//! a primary or a fetching replica here needs.
//!
//! Who asks dials; requests go from the end that dialled to the end that was dialled,
//! replies go back. Handshake, versions and heartbeats are `lockstep_core::link`'s.

mod connection;
mod frames;
mod outbox;
mod peers;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_core::id::{Conn, NodeId};
use lockstep_core::link::{LinkParams, Role};
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::wire;
use uuid::Uuid;

pub(crate) use connection::Connection;
pub(crate) use peers::{FETCH_SEQS, Peers, User};
pub(crate) use server::Server;

use crate::clock::Clock;

/// What every connection of this process needs to know.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) clock: Clock,
    pub(crate) cluster: Uuid,
    pub(crate) node: NodeId,
    /// Random per process.
    pub(crate) process: u64,
    next_conn: AtomicU64,
}

impl Net {
    pub(crate) fn new(clock: Clock, cluster: Uuid, node: NodeId) -> Arc<Self> {
        let (process, _) = Uuid::new_v4().as_u64_pair();
        Arc::new(Self { clock, cluster, node, process, next_conn: AtomicU64::new(1) })
    }

    /// A number that no other connection of this process has or had.
    pub(crate) fn next_conn(&self) -> Conn {
        Conn(self.next_conn.fetch_add(1, Ordering::Relaxed))
    }

    fn link_params(&self, role: Role, expect: Option<NodeId>) -> LinkParams {
        LinkParams {
            role,
            cluster: self.cluster,
            node: self.node.clone(),
            process: self.process,
            expect,
            min_version: wire::MIN_VERSION,
            max_version: wire::MAX_VERSION,
        }
    }
}

/// Who takes the requests of other nodes' primaries: the replicas here. Nothing here may block.
pub(crate) trait Service: Send + Sync + 'static {
    /// A request arrived.
    fn request(&self, from: &Arc<Connection>, message: Message<Request>);
    /// A connection that was up is gone; nothing more comes from it.
    fn disconnected(&self, conn: Conn);
}

/// Who wants a connection to a node: a primary here, or what fetches. Nothing here may block.
pub(crate) trait Subscriber: Send + Sync + 'static {
    /// A connection is up.
    fn connected(&self, conn: &Arc<Connection>);
    /// It is gone; nothing more comes from it.
    fn disconnected(&self, conn: Conn);
    /// A reply to one of the subscriber's requests arrived.
    fn reply(&self, conn: Conn, message: Message<Reply>);
}
