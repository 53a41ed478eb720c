//! One copy of one volume, behind the epoch fence: rules R1 to R7.

mod entry;
mod past;
mod promise;
mod pull;
mod ring;
mod serve;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

use self::entry::Entry;
use self::past::Past;
use self::promise::PendingPromise;
use self::pull::Pull;
use self::ring::Ring;
use crate::alike::{Aside, Kind};
use crate::id::{
    Conn, Epoch, Gen, Incarnation, InstanceId, Lineage, NodeId, RegionIndex, ReplicaId, Seq, Tick,
    Token, VolumeId,
};
use crate::limits;
use crate::message::{Header, Message, Refusal, Reply, Request};
use crate::planted::{Bug, Planted};
use crate::range::BlockSet;
use crate::slots::Wish;
use crate::store::{Recovered, StoreError, StoreNote, StoreOp, StoreReply};

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
    /// What was to be fetched, or that it could not be had.
    Fetched {
        /// That of [`Effect::Fetch`].
        token: Token,
        /// The other replica's answer.
        answer: Option<Message<Reply>>,
    },
    /// Whether the node has a slot for another target.
    Entered {
        /// Has it?
        granted: bool,
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
    /// What it wants of its node's slots for targets ([`Slots::of_targets`]). [`Wish::Wants`] is
    /// answered by [`Event::Entered`], the others are not. Only from a replica made by
    /// [`Replica::with_entries`].
    ///
    /// [`Slots::of_targets`]: crate::slots::Slots::of_targets
    Entry(Wish),
    /// Ask the replica on another node. Only from a replica made by [`Replica::with_pulls`].
    Fetch {
        /// Comes back once in [`Event::Fetched`], within [`limits::FETCH_MS`], unless the
        /// replica is closed before.
        token: Token,
        /// Which node.
        node: NodeId,
        /// The request. The driver gives it a number that no other request of this process to
        /// that node has, so that no late answer can be taken for this one's.
        message: Message<Request>,
    },
}

/// Which replica this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// The history it belongs to; another one after a forced recovery (T11).
    pub lineage: Lineage,
    /// Epoch promised.
    pub promised: Epoch,
    /// Highest generation seen since it was opened.
    pub r#gen: Gen,
    /// Where it is in its life.
    pub role: Role,
    /// Has a primary a session with it? Its connection is kept alive by heartbeats, so a primary
    /// with a session was heard within [`crate::limits::SESSION_DEAD_MS`].
    pub connected: bool,
    /// When a primary was last heard or lost.
    pub heard: Option<Tick>,
    /// Restarted with a non-empty activity log that is not resolved yet.
    pub unclean: bool,
    /// Writes not known to be committed.
    pub ring: usize,
    /// Their blocks, counted once for each write.
    pub ring_blocks: u64,
}

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Open; no primary since, or closed in good order.
    Idle,
    /// Bound to an epoch, not (yet) a member in it.
    Promised,
    /// A member of the in-sync set of its epoch.
    Member,
    /// Failed; waits to be reopened.
    Faulted,
}

/// One copy of one volume.
#[derive(Clone, Debug, Hash)]
pub struct Replica {
    identity: Identity,
    planted: Planted,
    /// Size of the volume.
    blocks: u64,
    role: Role,
    /// Epoch promised; durable before anything is answered in it.
    promised: Epoch,
    /// The claim that holds `promised`; unknown after a restart, until it promises again.
    instance: Option<InstanceId>,
    /// Highest attachment number, durable with the promise.
    attach_seq: u64,
    /// Highest generation seen as a member; durable with the next promise.
    member_gen: Gen,
    /// Highest generation seen since it was opened.
    view: Gen,
    /// Never written.
    fresh: bool,
    /// Machine was restarted while `unresolved` was not empty.
    lossy: bool,
    /// Regions that can't be trusted; empty once resolved.
    unresolved: Vec<RegionIndex>,
    /// Writes not known to be committed.
    ring: Ring,
    /// The primary's session; at most one (rule R3).
    session: Option<Session>,
    /// When a primary was last heard or lost.
    heard: Option<Tick>,
    /// When older epochs were answered.
    past: Past,
    /// Can its driver fetch from other nodes?
    fetches: bool,
    /// Is it the target of a resync?
    entry: Entry,
    /// What it was told to pull in this session and has not got yet (S8).
    pulls: BTreeMap<Token, Pull>,
    /// Of the operations in flight, reads for pulls of others.
    giving: usize,
    /// A promise under way: draining, then persisting.
    promising: Option<PendingPromise>,
    /// Operations that the store has not answered yet.
    in_flight: BTreeMap<Token, InFlight>,
    next_token: Aside<u64>,
}

/// A primary's session.
#[derive(Clone, Copy, Debug)]
struct Session {
    conn: Conn,
    /// Number of its promise; everything in it has a higher one.
    first: Seq,
}

impl Hash for Session {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { conn, first } = self;
        conn.hash(state);
        // Compared with the writes in the ring.
        Kind::Bound.hash(first.0, state);
    }
}

/// What a store operation in flight is for.
#[derive(Clone, Debug, Hash)]
struct InFlight {
    /// Who waits for the answer.
    conn: Conn,
    /// Header of the request.
    header: Header,
    /// Blocks and stamp, if it mutates them.
    mutation: Option<(BlockSet, Gen)>,
    /// Does its failure mean that the replica has failed?
    fatal: bool,
    /// Is it a read for another replica's pull?
    gives: bool,
    /// Its size in blocks when that is done.
    extends: Option<u64>,
}

/// Most operations in the store: two sessions' credit, one of them draining, a promise, and what
/// others pull.
const MAX_IN_FLIGHT: usize = 2 * limits::CREDIT_OPS as usize + 1 + limits::FETCHES;

impl Replica {
    /// A replica whose store was just opened.
    #[must_use]
    pub fn open(identity: Identity, recovered: Recovered, planted: Planted) -> Self {
        Self {
            identity,
            planted,
            blocks: recovered.blocks,
            role: Role::Idle,
            promised: recovered.promised,
            instance: None,
            attach_seq: recovered.attach_seq,
            member_gen: recovered.member_gen,
            view: Gen(0),
            fresh: recovered.fresh,
            lossy: recovered.lossy,
            unresolved: recovered.unresolved,
            ring: Ring::default(),
            session: None,
            heard: None,
            past: Past::default(),
            fetches: false,
            entry: Entry::default(),
            pulls: BTreeMap::new(),
            giving: 0,
            promising: None,
            in_flight: BTreeMap::new(),
            next_token: Aside(1),
        }
    }

    /// The same replica, with a driver that answers [`Effect::Fetch`]: it can be told to pull.
    #[must_use]
    pub fn with_pulls(mut self) -> Self {
        self.fetches = true;
        self
    }

    /// Handles one event.
    pub fn step(&mut self, now: Tick, event: Event, out: &mut Vec<Effect>) {
        self.past.begin(now);
        match event {
            Event::Request { conn, message } => self.on_request(now, conn, message, out),
            Event::Disconnected(conn) => self.on_disconnected(now, conn),
            Event::Stored { token, result } => self.on_stored(now, token, result, out),
            Event::Fetched { token, answer } => self.on_fetched(token, answer, out),
            Event::Entered { granted } => self.on_entered(now, granted, out),
        }
        self.settle_entry(out);
    }

    /// The replica as others see it.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            lineage: self.identity.lineage,
            promised: self.promised,
            r#gen: self.view,
            role: self.role,
            connected: self.session.is_some(),
            heard: self.heard,
            unclean: self.is_unclean(),
            ring: self.ring.len(),
            ring_blocks: self.ring.blocks_written(),
        }
    }

    /// Asserts every internal invariant.
    pub fn check(&self) {
        assert!(!self.lossy || self.is_unclean(), "lossy but not unclean");
        assert!(self.session.is_none() || self.role != Role::Faulted, "failed, with a session");
        assert!(self.in_flight.len() <= MAX_IN_FLIGHT, "more in flight than was granted");
        for item in self.in_flight.values() {
            let known = item.header.epoch <= self.promised || self.promising.is_some();
            assert!(known, "an operation of an epoch that was never promised");
        }
        self.ring.check(self.promised);
        self.check_pulls();
    }

    /// Restarted with a non-empty activity log that is not resolved yet.
    fn is_unclean(&self) -> bool {
        !self.unresolved.is_empty()
    }

    fn on_request(
        &mut self,
        now: Tick,
        conn: Conn,
        message: Message<Request>,
        out: &mut Vec<Effect>,
    ) {
        let Message { header, body } = message;
        if let Request::Promise { replica, lineage, parent, at_least, instance, attach_seq } = body
        {
            let wanted =
                promise::Wanted { replica, lineage, parent, at_least, instance, attach_seq };
            return self.on_promise(now, conn, header, wanted, out);
        }
        if let Request::Fetch { source, blocks } = body {
            return self.on_fetch(conn, header, source, blocks, out);
        }
        if let Err(refusal) = self.admit(conn, &header) {
            return self.reply(conn, &header, Reply::Refused(refusal), out);
        }
        self.heard = Some(now);
        self.past.note_answer(now);
        self.see_gen(header.r#gen, out);
        self.commit(&header, out);
        self.keep_entry(now, out);
        self.serve(conn, header, body, out);
    }

    /// Rules R1 and R3: only the session that holds the promise is served.
    fn admit(&self, conn: Conn, header: &Header) -> Result<(), Refusal> {
        if header.volume != self.identity.volume {
            return Err(Refusal::NoSuchReplica);
        }
        if self.role == Role::Faulted {
            return Err(Refusal::Faulted);
        }
        if self.planted.has(Bug::NoEpochFence) && header.epoch <= self.promised {
            return Ok(());
        }
        if header.epoch != self.promised {
            return Err(Refusal::Epoch { promised: self.promised });
        }
        match self.session {
            Some(session) if session.conn == conn => Ok(()),
            Some(_) | None if self.planted.has(Bug::AnySession) => Ok(()),
            Some(_) | None => Err(Refusal::NoSession),
        }
    }

    /// Rule R4: on the first message of a higher generation, everything uncommitted or unresolved
    /// is stamped with it, before anything else of the message takes effect.
    fn see_gen(&mut self, r#gen: Gen, out: &mut Vec<Effect>) {
        if r#gen <= self.view {
            return;
        }
        self.view = r#gen;
        let blocks = self.ring.blocks();
        if !blocks.is_empty() && !self.planted.has(Bug::NoRingRestamp) {
            out.push(Effect::Note(StoreNote::Restamp { blocks, stamp: r#gen }));
        }
        if self.is_unclean() && !self.planted.has(Bug::NoUnresolvedRestamp) {
            out.push(Effect::Note(StoreNote::RestampUnresolved { stamp: r#gen }));
        }
    }

    /// Rule R5: what every target has needs no memory here. While it is no member, what it holds
    /// from before this session may be void, so it stays until a resync has settled it.
    fn commit(&mut self, header: &Header, out: &mut Vec<Effect>) {
        let from = match (self.role, self.session) {
            (Role::Member, _) | (_, None) => Seq(0),
            _ if self.planted.has(Bug::OutsiderCommit) => Seq(0),
            (_, Some(session)) => session.first,
        };
        for blocks in self.ring.commit(header.epoch, from, header.commit) {
            out.push(Effect::Note(StoreNote::Release { blocks }));
        }
    }

    /// P7 and T6: the replica is a member, so older epochs' leftovers are settled.
    fn become_member(&mut self, header: &Header, out: &mut Vec<Effect>) {
        self.role = Role::Member;
        self.member_gen = self.member_gen.max(header.r#gen);
        self.settle(header, out);
    }

    /// What older epochs left is settled: it is as on every other member.
    fn settle(&mut self, header: &Header, out: &mut Vec<Effect>) {
        for blocks in self.ring.commit_older(header.epoch) {
            out.push(Effect::Note(StoreNote::Release { blocks }));
        }
        if self.is_unclean() {
            self.unresolved.clear();
            self.lossy = false;
            out.push(Effect::Note(StoreNote::Resolve));
        }
    }

    fn on_disconnected(&mut self, now: Tick, conn: Conn) {
        if self.session.is_some_and(|s| s.conn == conn) {
            self.end_session();
            self.heard = Some(now);
        }
        if let Some(pending) = self.promising.as_mut().filter(|p| p.conn == conn) {
            pending.connected = false;
        }
    }

    fn reply(&self, conn: Conn, header: &Header, body: Reply, out: &mut Vec<Effect>) {
        let header = Header { r#gen: self.view, commit: Default::default(), ..*header };
        out.push(Effect::Send { conn, message: Message { header, body } });
    }

    fn submit(&mut self, item: InFlight, op: StoreOp, out: &mut Vec<Effect>) {
        let token = Token(*self.next_token);
        *self.next_token += 1;
        self.in_flight.insert(token, item);
        out.push(Effect::Store { token, op });
    }
}
