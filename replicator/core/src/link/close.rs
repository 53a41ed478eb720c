//! Why a link is closed, in words for the log.

use core::fmt;

use crate::id::NodeId;
use crate::wire::RejectReason;

/// Why a link is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The handshake took too long.
    HandshakeTimeout,
    /// Nothing was heard for too long.
    Silent {
        /// For how long, in milliseconds.
        for_ms: u64,
    },
    /// The peer sent what it must not send at this point.
    Protocol(&'static str),
    /// No version of the wire format in common. Ranges include both ends.
    Version {
        /// Oldest and newest spoken here.
        ours: (u16, u16),
        /// Oldest and newest spoken there.
        theirs: (u16, u16),
    },
    /// The peer is not the node that was expected.
    WrongNode {
        /// Who was expected.
        expected: NodeId,
        /// Who it says it is.
        found: NodeId,
    },
    /// The peer refuses the connection.
    Rejected(RejectReason),
    /// This end refuses the connection.
    Refused(RejectReason),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandshakeTimeout => write!(f, "the handshake took too long"),
            Self::Silent { for_ms } => write!(f, "nothing was heard for {for_ms} ms"),
            Self::Protocol(what) => write!(f, "the peer broke the protocol: {what}"),
            Self::Version { ours, theirs } => {
                let older = if theirs.1 < ours.0 { "the peer" } else { "this node" };
                write!(
                    f,
                    "no wire version in common: this node speaks {} to {}, the peer {} to {}; \
                     upgrade {older}",
                    ours.0, ours.1, theirs.0, theirs.1
                )
            }
            Self::WrongNode { expected, found } => write!(
                f,
                "{found} answered where {expected} was expected; check the addresses of the nodes"
            ),
            Self::Rejected(reason) => {
                write!(f, "the peer refuses the connection: ")?;
                explain(*reason, f)
            }
            Self::Refused(reason) => {
                write!(f, "this node refuses the connection: ")?;
                explain(*reason, f)
            }
        }
    }
}

fn explain(reason: RejectReason, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match reason {
        RejectReason::Version { min, max } => {
            write!(f, "no wire version in common with {min} to {max}")
        }
        RejectReason::Cluster => {
            write!(f, "it belongs to another cluster; check the cluster id of both nodes")
        }
        RejectReason::Duplicate => write!(f, "there is another connection between the two"),
        RejectReason::Shutdown => write!(f, "it is about to stop"),
        RejectReason::WrongNode => {
            write!(f, "another node was expected; check the addresses of the nodes")
        }
        RejectReason::SameNode => {
            write!(f, "both ends have the same node name; give each node its own")
        }
        RejectReason::Unknown(code) => write!(f, "reason {code}, which this build does not know"),
    }
}
