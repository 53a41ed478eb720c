//! The primary of one attached volume: claim, promotion, the write path, membership, resync.

//!
//! Data flows one way: an event changes peers, operations or the record; then every sub-machine
//! is driven until nothing more can be done now (`settle`); effects leave in order.

mod alike;
mod calls;
mod cas;
mod close;
mod copy;
mod gaps;
mod guests;
mod heal;
mod lease;
mod members;
mod mend;
mod ops;
mod pace;
mod peer;
mod promote;
mod proof;
mod reads;
mod release;
mod resync;
mod scrub;
mod spoil;
mod standstill;
mod status;
mod stop;
mod tasks;
#[cfg(test)]
mod tests;
mod torn;
mod unfit;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use self::calls::{Call, Calls, Purpose};
use self::cas::Cas;
use self::close::Closing;
use self::copy::CopyJob;
use self::guests::Guests;
use self::lease::OldLease;
use self::mend::Mending;
use self::ops::Ops;
use self::pace::Pace;
use self::peer::Peer;
use self::promote::Promotion;
use self::release::Release;
use self::resync::Resync;
pub use self::scrub::ScrubReport;
pub use self::status::{Counters, ReplicaStatus, ResyncProgress, ScrubProgress, Status};
pub use self::stop::Stop;
use self::tasks::Tasks;
pub use self::tasks::{Snapshot, Task, TaskDone, TaskError};
use self::unfit::Fitness;
pub use self::unfit::Unfit;
use crate::guest::{GuestError, GuestOp, GuestReply};
use crate::id::{
    Conn, Epoch, InstanceId, NodeId, ReplicaId, RequestId, Revision, Seq, Tick, Token, VolumeId,
};
use crate::lock::RangeLock;
use crate::message::{Message, Reply, Request};
use crate::planted::{Bug, Planted};
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
    /// A member that is healthy is one too many, or its node is being emptied: it is to leave
    /// (T5) if as many copies as wanted stay. If not, nothing happens; ask again.
    Release(ReplicaId),
    /// Read every block of every member, mend what is bad, compare the members. Nothing happens
    /// if that is under way, or if the volume is not served.
    Scrub,
    /// Something is asked of the volume as a whole. Answered once by [`Effect::Task`].
    Task {
        /// Comes back in the answer; not one of a guest's.
        request: RequestId,
        /// What.
        task: Task,
    },
    /// Detach: finish what is in flight, flush, close the replicas, leave the record clean.
    Close,
    /// The resync that waits for one of its node's slots may start.
    ResyncSlot,
    /// The deadline passed.
    Wake,
}

/// What the record store said.
#[expect(clippy::large_enum_variant, reason = "one at a time, and only for a membership change")]
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
#[expect(clippy::large_enum_variant, reason = "one at a time, and only for a membership change")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Answer whoever asked for a task.
    Task {
        /// Which request.
        request: RequestId,
        /// How it went.
        result: Result<TaskDone, TaskError>,
    },
    /// The phase changed.
    Phase(Phase),
    /// Somebody should know of this: it belongs into the log.
    Notice(Notice),
}

/// What a person should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A block was bad on a member, and was rewritten with what another member holds.
    Mended {
        /// On which member.
        replica: ReplicaId,
        /// Which block.
        block: u64,
    },
    /// No member can give this block: reading it fails until it is written again.
    Unreadable {
        /// Which block.
        block: u64,
    },
    /// After a power cut of all members, blocks that might be torn on the source of a promotion
    /// were taken from a member on which they are whole.
    Torn {
        /// The source.
        replica: ReplicaId,
        /// How many.
        blocks: u64,
    },
    /// A scrub found that members differ, each with the right checksum.
    Diverged {
        /// Which block.
        block: u64,
    },
    /// A member was removed although it answers; it comes back after a pause.
    Unfit {
        /// Which copy.
        replica: ReplicaId,
        /// Why.
        why: Unfit,
    },
    /// A resync got no further for [`crate::limits::RESYNC_STALL_MS`] and begins anew.
    ResyncStalled {
        /// Which copy was brought up to date.
        replica: ReplicaId,
    },
    /// A resync ended because its target could not keep up with the guest; it is tried again
    /// after a pause.
    ResyncLags {
        /// Which copy was brought up to date.
        replica: ReplicaId,
    },
}

/// Where a primary is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// To ask a failed replica again whether it can go on.
    PromiseRetry,
    /// To stop waiting for promises (P3).
    PromiseWait,
    /// To open once no older primary can be answering reads (P7).
    OldLease,
    /// To remove a lost or hung member (T5).
    MemberGrace,
    /// To send the commit watermark on its own.
    CommitIdle,
    /// To start or restart a resync.
    Resync,
    /// To ask another member for what one has not read in time.
    HedgeRead,
    /// To give up a task.
    Task,
}

/// A list of effects that a step fills.
pub type Effects = Vec<Effect>;

/// What a primary is made with.
#[derive(Clone, Debug, Hash)]
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

/// The primary of one attached volume.
#[derive(Clone, Debug)]
pub struct Primary {
    params: Params,
    phase: Phase,
    /// Time of the step under way.
    now: Tick,
    /// Effects of the step under way.
    out: Effects,
    /// Why it was fenced.
    stopped: Option<Stop>,
    /// The highest epoch of others that a replica has promised, while we were claiming.
    outbid: Option<Epoch>,
    /// Was the record asked for after that was heard? An answer that was under way proves nothing.
    asked_since: bool,
    /// The record in force and the dialogue about the next one.
    cas: Cas,
    /// One per copy in the record.
    peers: BTreeMap<ReplicaId, Peer>,
    /// Connections to nodes, whether or not they hold a copy.
    conns: BTreeMap<NodeId, Conn>,
    /// Requests to one replica that wait for an answer.
    calls: Calls,
    /// Operations that go to every member.
    ops: Ops,
    locks: RangeLock,
    /// Requests of the guest and the pieces they are cut into.
    guests: Guests,
    /// While recovering.
    promotion: Promotion,
    /// Who else may be answering reads meanwhile.
    old_lease: OldLease,
    /// The copy job of a promotion or a resync.
    copy: Option<CopyJob>,
    /// Bringing a copy back, or filling a new one.
    resync: Resync,
    /// Rewriting bad blocks.
    mending: Mending,
    /// What the last scrub found.
    scrub: Option<scrub::Scrub>,
    /// How fast that may go.
    pace: Pace,
    /// While draining.
    closing: Option<Closing>,
    /// A member that answers is leaving.
    release: Option<Release>,
    /// What was asked of the volume as a whole.
    tasks: Tasks,
    /// Who is no good.
    fitness: Fitness,
    next_seq: Seq,
    counters: Counters,
}

impl Primary {
    /// A primary that will claim its volume at its first step.
    #[must_use]
    pub fn new(params: Params) -> Self {
        Self {
            params,
            phase: Phase::Claiming,
            now: Tick(0),
            out: Effects::new(),
            stopped: None,
            outbid: None,
            asked_since: false,
            cas: Cas::default(),
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            calls: Calls::default(),
            ops: Ops::default(),
            locks: RangeLock::default(),
            guests: Guests::default(),
            promotion: Promotion::default(),
            old_lease: OldLease::default(),
            copy: None,
            resync: Resync::default(),
            mending: Mending::default(),
            scrub: None,
            pace: Pace::default(),
            closing: None,
            release: None,
            tasks: Tasks::default(),
            fitness: Fitness::default(),
            next_seq: Seq(1),
            counters: Counters::default(),
        }
    }

    /// Handles one event. The driver calls it with [`Event::Wake`] once to start.
    pub fn step(&mut self, now: Tick, event: Event, out: &mut Effects) {
        self.excuse_standstill(now);
        self.now = self.now.max(now);
        match event {
            Event::Guest { request, op } => self.on_guest(request, op),
            Event::Task { request, task } => self.on_task(request, task),
            _ if self.is_over() => {}
            Event::Connected { node, conn } => self.on_connected(node, conn),
            Event::Disconnected(conn) => self.on_disconnected(conn),
            Event::Reply { conn, message } => self.on_reply(conn, message),
            Event::Meta { token, result } => self.on_meta(token, result),
            Event::RecordChanged => self.cas_refresh(),
            Event::Release(rid) => self.on_release(rid),
            Event::Scrub => self.on_scrub(),
            Event::Close => self.on_close(),
            Event::ResyncSlot => self.on_resync_slot(),
            Event::Wake => self.on_wake(),
        }
        self.settle();
        out.append(&mut self.out);
    }

    /// When and why to call [`Self::step`] with [`Event::Wake`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<(Tick, Reason)> {
        if self.is_over() {
            return None;
        }
        let commit = self.ops.commit_due().map(|at| (at, Reason::CommitIdle));
        let resync = self.resync_due().map(|at| (at, Reason::Resync));
        let promise = self.promotion_due().map(|at| (at, Reason::PromiseWait));
        let lease = self.old_lease_due().map(|at| (at, Reason::OldLease));
        let member = self.member_due().map(|at| (at, Reason::MemberGrace));
        let meta = self.cas.retry_at().map(|at| (at, Reason::MetaRetry));
        let again = self.promise_due().map(|at| (at, Reason::PromiseRetry));
        let hedge = self.hedge_due().map(|at| (at, Reason::HedgeRead));
        let task = self.task_due().map(|at| (at, Reason::Task));
        [commit, resync, promise, lease, again, member, meta, hedge, task]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// May the driver hand in another guest request? If not, it must stop reading its door
    /// until an answer has been given.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.guests.len() < crate::limits::MAX_QUEUED_REQUESTS
    }

    /// Is this rule to be broken, in tests?
    fn has(&self, bug: Bug) -> bool {
        self.params.planted.has(bug)
    }

    /// Nothing more will happen.
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Fenced)
    }

    /// Serving the guest, or finishing to?
    fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Active | Phase::Suspended | Phase::Draining)
    }

    /// Drives every sub-machine until nothing more can be done now.
    fn settle(&mut self) {
        if self.is_over() {
            return;
        }
        self.drive_cas();
        self.drive_promotion();
        self.drive_members();
        self.drive_unfit();
        self.drive_release();
        self.drive_resync();
        self.drive_mend();
        self.note_scrub();
        self.drive_tasks();
        self.drive_guests();
        self.drop_lagging_target();
        self.drive_close();
        self.update_phase();
    }

    fn on_wake(&mut self) {
        if self.cas.is_new() {
            self.cas_refresh();
        }
        self.send_idle_commits();
        self.retry_promises();
        self.hedge_reads();
    }

    /// Suspended is Active with a member missing beyond its grace.
    fn update_phase(&mut self) {
        if matches!(self.phase, Phase::Active | Phase::Suspended) {
            let suspended = self.is_suspended();
            self.set_phase(if suspended { Phase::Suspended } else { Phase::Active });
        }
    }

    fn set_phase(&mut self, phase: Phase) {
        if self.phase != phase {
            self.phase = phase;
            self.out.push(Effect::Phase(phase));
        }
    }

    /// Ends everything; `error` answers what is still open.
    fn stop(&mut self, error: GuestError) {
        self.fail_all_guests(error);
        self.drop_tasks();
        self.calls.clear();
        self.copy = None;
        self.mending = Mending::default();
        let nodes: Vec<NodeId> = self.peers.values().map(|p| p.node().clone()).collect();
        self.peers.clear();
        self.out.extend(nodes.into_iter().map(Effect::Disconnect));
    }

    fn take_seq(&mut self) -> Seq {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        seq
    }

    /// Asserts every internal invariant.
    pub fn check(&self) {
        if self.is_over() {
            assert!(self.guests.is_empty(), "requests left although it is over");
            return;
        }
        self.locks.check();
        self.check_ops();
        if let Some(record) = self.cas.record() {
            assert!(record.validate().is_ok(), "the record in force is invalid");
            let listed = |rid| record.replica(rid).is_some();
            assert!(self.peers.keys().all(|rid| listed(*rid)), "a peer that the record lacks");
        }
        for (seq, call) in self.calls.iter() {
            assert!(*seq < self.next_seq, "a call from the future");
            let peer = self.peers.get(&call.rid);
            assert!(peer.is_some_and(Peer::is_connected), "a call without a connection");
        }
    }
}
