//! The primary of one attached volume: claim, promotion, the write path, membership, resync.

use alloc::vec::Vec;

use crate::guest::{GuestError, GuestOp, GuestReply};
use crate::id::{Conn, NodeId, RequestId, Revision, Token};
use crate::message::{Message, Reply, Request};
use crate::record::Record;

/// What happens to a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection to a node is up and its version is agreed on. A node has at most one
    /// connection at a time; the one to the primary's own node is an in-process one.
    Connected {
        /// Which node.
        node: NodeId,
        /// Its connection.
        conn: Conn,
    },
    /// A connection is gone; what was in flight on it may or may not have arrived.
    Disconnected(Conn),
    /// A replica answered.
    Reply {
        /// On which connection.
        conn: Conn,
        /// The answer.
        message: Message<Reply>,
    },
    /// A guest's request.
    Guest {
        /// Comes back in [`Effect::Reply`].
        request: RequestId,
        /// The request.
        op: GuestOp,
    },
    /// The record store answered.
    Meta {
        /// To which question.
        token: Token,
        /// How it went.
        result: MetaResult,
    },
    /// Somebody changed the record (a copy was added or forgotten): read it again.
    RecordChanged,
    /// Detach: finish what is in flight, flush, close the replicas, leave the record clean.
    Close,
    /// The deadline passed.
    Wake,
}

/// What the record store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaResult {
    /// To a get: the record, or that there is none (the volume was deleted).
    Read(Option<(Record, Revision)>),
    /// To a put: it is in force under this revision.
    Written(Revision),
    /// To a put: somebody else was first; nothing was written.
    Conflict,
    /// To a put: it may or may not have been, or still be, applied.
    Unknown,
    /// It could not be asked; nothing was written.
    Unavailable,
}

/// What a primary asks of the record store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaOp {
    /// Linearizable read of the volume's record.
    Get,
    /// Put the record if the stored one still has this revision.
    PutIf {
        /// The revision expected.
        expected: Revision,
        /// The new record.
        record: Record,
    },
}

/// What a primary wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Keep a connection to this node from now on (reconnecting as needed).
    Connect(NodeId),
    /// No connection to this node is needed any more.
    Disconnect(NodeId),
    /// This connection misbehaved or is stale: close it (it will be made anew if still wanted).
    Reset(Conn),
    /// Send a request.
    Send {
        /// On which connection.
        conn: Conn,
        /// The request.
        message: Message<Request>,
    },
    /// Ask the record store.
    Meta {
        /// Comes back in [`Event::Meta`].
        token: Token,
        /// The question.
        op: MetaOp,
    },
    /// Answer a guest.
    Reply {
        /// Which request.
        request: RequestId,
        /// How it went.
        result: Result<GuestReply, GuestError>,
    },
    /// The phase changed.
    Phase(Phase),
}

/// Where a primary is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Reading the record and claiming the volume (T3).
    Claiming,
    /// Gathering promises, repairing, about to open (P2 to P6).
    Recovering,
    /// Serving I/O.
    Active,
    /// Serving reads; writes wait for the record store or for members.
    Suspended,
    /// Finishing: no new requests.
    Draining,
    /// Closed in good order; nothing more happens.
    Closed,
    /// Taken over elsewhere: every request fails; nothing more happens.
    Fenced,
}

/// Why a primary wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To ask the record store again.
    MetaRetry,
    /// To stop waiting for promises (P3).
    PromiseWait,
    /// To remove a lost or hung member (T5).
    MemberGrace,
    /// To send the commit watermark on its own.
    CommitIdle,
    /// To start or restart a resync.
    Resync,
}

/// A list of effects that a step fills.
pub type Effects = Vec<Effect>;

use alloc::collections::BTreeMap;

use crate::id::{Epoch, Gen, InstanceId, ReplicaId, Tick, VolumeId};
use crate::planted::Planted;

/// What a primary is made with.
#[derive(Clone, Debug)]
pub struct Params {
    /// The volume to claim.
    pub volume: VolumeId,
    /// The node this runs on.
    pub node: NodeId,
    /// Random per claim; also the source of transaction ids.
    pub instance: InstanceId,
    /// A rule to break, in tests.
    pub planted: Planted,
}

/// A primary as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its epoch, once claimed.
    pub epoch: Epoch,
    /// The generation in force.
    pub r#gen: Gen,
    /// The record in force, once read.
    pub record: Option<Record>,
    /// How each replica is reached and what it lacks.
    pub replicas: BTreeMap<ReplicaId, ReplicaStatus>,
    /// What was done since the claim.
    pub counters: Counters,
    /// Guest requests not answered yet.
    pub pending_requests: usize,
}

/// One replica as its primary sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Has it a session?
    pub connected: bool,
    /// Progress of its resync, if one runs.
    pub resync: Option<ResyncProgress>,
}

/// Progress of a resync, in bytes of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncProgress {
    /// Compared or copied so far.
    pub done_bytes: u64,
    /// To be compared or copied in all, as far as known.
    pub total_bytes: u64,
    /// Of those done, content that had to be moved.
    pub moved_bytes: u64,
}

/// Counts since the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Write, zero and discard requests acknowledged to the guest.
    pub acked_writes: u64,
    /// Flush requests acknowledged to the guest.
    pub acked_flushes: u64,
    /// Content moved to returning replicas, bytes.
    pub resync_bytes: u64,
    /// Content moved to fresh replicas, bytes.
    pub rebuild_bytes: u64,
    /// Content moved during promotion, bytes.
    pub repair_bytes: u64,
    /// Resyncs and rebuilds finished.
    pub resyncs_done: u64,
    /// Members removed (T5).
    pub removals: u64,
}

/// The primary of one attached volume.
#[derive(Debug)]
pub struct Primary {
    params: Params,
}

impl Primary {
    /// A primary that will claim its volume at its first step.
    #[must_use]
    pub fn new(params: Params) -> Self {
        Self { params }
    }

    /// Handles one event. The driver calls it with [`Event::Wake`] once to start.
    pub fn step(&mut self, now: Tick, event: Event, out: &mut Effects) {
        let _ = (now, event, out, &self.params);
    }

    /// When and why to call [`Self::step`] with [`Event::Wake`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<(Tick, Reason)> {
        None
    }

    /// May the driver hand in another guest request? If not, it must stop reading its door
    /// until an answer has been given.
    #[must_use]
    pub fn has_room(&self) -> bool {
        true
    }

    /// The primary as others see it.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            phase: Phase::Claiming,
            epoch: Epoch(0),
            r#gen: Gen(0),
            record: None,
            replicas: BTreeMap::new(),
            counters: Counters::default(),
            pending_requests: 0,
        }
    }

    /// Asserts every internal invariant.
    pub fn check(&self) {}
}
