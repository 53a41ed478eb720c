//! One copy of one volume, behind the epoch fence: rules R1 to R7.

use crate::id::{Conn, Token};
use crate::message::{Message, Reply, Request};
use crate::store::{StoreError, StoreNote, StoreOp, StoreReply};

/// What happens to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request arrived on a connection.
    Request {
        /// Which connection; answers go there.
        conn: Conn,
        /// The request.
        message: Message<Request>,
    },
    /// A connection is gone; nothing can be sent on it any more.
    Disconnected(Conn),
    /// The store answered.
    Stored {
        /// To which operation.
        token: Token,
        /// How it went.
        result: Result<StoreReply, StoreError>,
    },
}

/// What a replica wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send an answer.
    Send {
        /// On which connection.
        conn: Conn,
        /// The answer.
        message: Message<Reply>,
    },
    /// Give the store an operation.
    Store {
        /// Comes back in [`Event::Stored`].
        token: Token,
        /// The operation.
        op: StoreOp,
    },
    /// Give the store a remark.
    Note(StoreNote),
}

use alloc::vec::Vec;

use crate::id::{Epoch, Gen, Incarnation, Lineage, ReplicaId, Tick, VolumeId};
use crate::planted::Planted;
use crate::store::Recovered;

/// Which replica this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which copy.
    pub replica: ReplicaId,
    /// Of which history.
    pub lineage: Lineage,
    /// Random per open.
    pub incarnation: Incarnation,
}

/// A replica as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Epoch promised.
    pub promised: Epoch,
    /// Highest generation seen.
    pub r#gen: Gen,
    /// Where it is in its life.
    pub role: Role,
    /// When a primary with a session was last heard.
    pub heard: Option<Tick>,
    /// Restarted with a non-empty activity log that is not resolved yet.
    pub unclean: bool,
    /// Writes not known to be committed.
    pub ring: usize,
}

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Open; no primary.
    Idle,
    /// Bound to an epoch, not yet told what it is in it.
    Promised,
    /// Failed; waits to be reopened.
    Faulted,
}

/// One copy of one volume.
#[derive(Debug)]
pub struct Replica {
    identity: Identity,
}

impl Replica {
    /// A replica whose store was just opened.
    #[must_use]
    pub fn open(identity: Identity, recovered: Recovered, planted: Planted) -> Self {
        let _ = (recovered, planted);
        Self { identity }
    }

    /// Handles one event.
    pub fn step(&mut self, now: Tick, event: Event, out: &mut Vec<Effect>) {
        let _ = (now, event, out, self.identity);
    }

    /// The replica as others see it.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            promised: Epoch(0),
            r#gen: Gen(0),
            role: Role::Idle,
            heard: None,
            unclean: false,
            ring: 0,
        }
    }

    /// Asserts every internal invariant.
    pub fn check(&self) {}
}
