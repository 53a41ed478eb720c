//! The two ways between a primary and a replica: a connection to another node, or none at all.

use std::sync::Arc;

use lockstep_core::id::{Conn, NodeId};
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::wire::Frame;
use tokio::sync::mpsc;

use super::primary;
use super::replicas::Replicas;
use crate::net::Connection;

/// The connection between a primary and the replica on its own node: nothing is encoded.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) id: Conn,
    pub(super) node: NodeId,
    pub(super) primary: mpsc::UnboundedSender<primary::Input>,
}

/// Where a replica's answers go.
#[derive(Clone, Debug)]
pub(super) enum ReplyPath {
    Remote(Arc<Connection>),
    Local(Arc<Local>),
}

impl ReplyPath {
    pub(super) fn id(&self) -> Conn {
        match self {
            Self::Remote(conn) => conn.id(),
            Self::Local(local) => local.id,
        }
    }

    /// The node at the other end.
    pub(super) fn peer(&self) -> &NodeId {
        match self {
            Self::Remote(conn) => conn.peer(),
            Self::Local(local) => &local.node,
        }
    }

    /// Milliseconds since the other end was heard, whatever it said. The primary of this very
    /// process is always heard while it is there.
    pub(super) fn heard_ms(&self) -> u64 {
        match self {
            Self::Remote(conn) => conn.heard_ms(),
            Self::Local(_) => 0,
        }
    }

    /// Sends an answer; on a connection it leaves with the next [`ReplyPath::flush`].
    pub(super) fn send(&self, message: Message<Reply>) {
        match self {
            Self::Remote(conn) => conn.push(&Frame::Reply(message)),
            Self::Local(local) => {
                // A primary that is gone needs no answer.
                let _ = local.primary.send(primary::Input::Reply { conn: local.id, message });
            }
        }
    }

    /// Lets the answers leave that were sent.
    pub(super) fn flush(&self) {
        match self {
            Self::Remote(conn) => conn.flush(),
            Self::Local(_) => {}
        }
    }

    /// Breaks the connection, so that the primary makes a new one and starts over with it.
    pub(super) fn reset(&self) {
        match self {
            Self::Remote(conn) => conn.reset(),
            Self::Local(local) => {
                let _ = local.primary.send(primary::Input::LocalGone(local.id));
            }
        }
    }
}

/// Where a primary's requests go.
#[derive(Clone, Debug)]
pub(super) enum RequestPath {
    Remote(Arc<Connection>),
    Local(Arc<Local>),
}

impl RequestPath {
    pub(super) fn id(&self) -> Conn {
        match self {
            Self::Remote(conn) => conn.id(),
            Self::Local(local) => local.id,
        }
    }

    /// Sends a request; on a connection it leaves with the next [`RequestPath::flush`].
    pub(super) fn send(&self, message: Message<Request>, replicas: &Replicas) {
        match self {
            Self::Remote(conn) => conn.push(&Frame::Request(message)),
            Self::Local(local) => replicas.submit(ReplyPath::Local(Arc::clone(local)), message),
        }
    }

    /// Lets the requests leave that were sent.
    pub(super) fn flush(&self) {
        match self {
            Self::Remote(conn) => conn.flush(),
            Self::Local(_) => {}
        }
    }

    pub(super) fn reset(&self) {
        match self {
            Self::Remote(conn) => conn.reset(),
            Self::Local(local) => ReplyPath::Local(Arc::clone(local)).reset(),
        }
    }
}
