//! One state of the small cluster: the real machines, their files, what is on its way between
//! them, the record, and what may still go wrong.
//!
//! Time passes for each primary on its own, and only in jumps: a short one, after which nothing
//! but an idle commit is due, and a long one, after which everything is due that a machine may
//! wait for, except for the grace of a promotion with lossy answers only. Between two jumps any
//! number of messages may be delivered, in any order that their connections allow.

use lockstep_core::alike::Kind;
use lockstep_core::id::{
    Conn, Incarnation, InstanceId, Lineage, NodeId, ReplicaId, Revision, Tick, Token, VolumeId,
};
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::planted::Planted;
use lockstep_core::primary::{Params, Phase, Primary};
use lockstep_core::record::{NewVolume, Record};
use lockstep_core::replica::{Identity, Replica};
use std::collections::VecDeque;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use uuid::Uuid;

use crate::disk::{Disk, Value};
use crate::eye::{EPOCHS, Eye, see};
use crate::focus::Focus;
use crate::judge::Judge;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0xf0));
const LINEAGE: Lineage = Lineage(Uuid::from_u128(0xf1));

/// What a run may do, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Guest writes, of all primaries together.
    pub(crate) writes: u8,
    /// Guest flushes.
    pub(crate) flushes: u8,
    /// Guest reads.
    pub(crate) reads: u8,
    /// A replica's process is killed and started again.
    pub(crate) kills: u8,
    /// A replica's node loses power and comes back.
    pub(crate) powers: u8,
    /// A connection breaks; what was on its way may still arrive.
    pub(crate) breaks: u8,
    /// A primary's process is killed.
    pub(crate) deaths: u8,
    /// A long jump of one primary's clock.
    pub(crate) waits: u8,
    /// A primary learns nothing of the outcome of a change of the record.
    pub(crate) unknowns: u8,
    /// A detach is asked for.
    pub(crate) closes: u8,
    /// A replica cleans its activity log.
    pub(crate) cleans: u8,
    /// An idle commit.
    pub(crate) commits: u8,
}

/// A small cluster and what may happen in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) copies: u8,
    pub(crate) seats: u8,
    pub(crate) min_in_sync: u8,
    /// Does the exploration begin when the first primary has opened?
    pub(crate) opened: bool,
    pub(crate) budget: Budget,
    pub(crate) planted: Planted,
    /// Every order of steps, also where it makes no difference?
    pub(crate) full: bool,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.budget;
        write!(f, "{} copies, {} primaries", self.copies, self.seats)?;
        if self.min_in_sync > 1 {
            write!(f, ", {} members at least", self.min_in_sync)?;
        }
        if !self.opened {
            write!(f, ", from before the first claim")?;
        }
        let parts = [
            (b.writes, "write"),
            (b.flushes, "flush"),
            (b.reads, "read"),
            (b.kills, "kill"),
            (b.powers, "power loss"),
            (b.breaks, "broken connection"),
            (b.deaths, "death of a primary"),
            (b.waits, "time-out"),
            (b.unknowns, "unknown outcome"),
            (b.closes, "detach"),
            (b.cleans, "cleaning"),
            (b.commits, "idle commit"),
        ];
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        Ok(())
    }
}

/// A change of the record on its way.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Put {
    pub(crate) token: Token,
    pub(crate) expected: Revision,
    pub(crate) record: Arc<Record>,
    /// `None`: the record store has not seen it. Then whether it was in force.
    pub(crate) done: Option<bool>,
}

/// A place for a primary.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub(crate) machine: Option<Primary>,
    pub(crate) started: bool,
    pub(crate) phase: Phase,
    pub(crate) now: Tick,
    /// Copies it wants to be connected to, as bits.
    pub(crate) wants: u8,
    pub(crate) put: Option<Put>,
    /// Changes that nobody waits for any more, and that may still be made.
    pub(crate) ghosts: Vec<Put>,
    /// The guest's write that has no answer.
    pub(crate) write: Option<Value>,
    /// The guest's flush that has no answer: the write it must cover.
    pub(crate) flush: Option<Value>,
    /// The guest's read that has no answer: what it may find, as bits.
    pub(crate) read: Option<u16>,
}

/// A node with a copy.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) machine: Replica,
    pub(crate) disk: Disk,
    opened: u64,
    /// The connection of its session, as far as it has one.
    pub(crate) session: Option<Conn>,
}

/// A connection from a primary to a replica.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Link {
    pub(crate) conn: Conn,
    pub(crate) seat: u8,
    pub(crate) copy: u8,
    pub(crate) requests: VecDeque<Arc<Message<Request>>>,
    pub(crate) replies: VecDeque<Arc<Message<Reply>>>,
    /// Has this end not been told yet that it is gone?
    pub(crate) seat_open: bool,
    pub(crate) copy_open: bool,
    /// Nothing new passes.
    pub(crate) broken: bool,
}

/// One state.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) seats: Vec<Arc<Seat>>,
    pub(crate) copies: Vec<Arc<Copy>>,
    pub(crate) links: Vec<Arc<Link>>,
    pub(crate) record: Arc<Record>,
    pub(crate) revision: Revision,
    /// Which seat claimed each epoch.
    pub(crate) claimed: [u8; EPOCHS],
    pub(crate) left: Budget,
    pub(crate) judge: Judge,
    /// Connections made so far.
    made: u64,
    pub(crate) planted: Planted,
    /// Go through every order of steps, also where it makes no difference.
    pub(crate) full: bool,
    /// The fence holds: no bug is planted.
    pub(crate) trusting: bool,
    pub(crate) focus: Focus,
}

/// The seat that made a connection.
pub(crate) fn seat_of(conn: u64) -> u8 {
    u8::try_from(conn >> 32).unwrap_or(u8::MAX)
}

/// The ends of a connection, as a number.
pub(crate) fn pair_of(conn: u64) -> u8 {
    let copy = u8::try_from(conn >> 24 & 0xff).unwrap_or(u8::MAX);
    assert!(copy < 16, "more copies than are provided for");
    seat_of(conn) << 4 | copy
}

pub(crate) fn copy_node(copy: u8) -> NodeId {
    node(&format!("r{copy}"))
}

#[expect(clippy::expect_used, reason = "the names are ours")]
fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a node name")
}

pub(crate) fn rid_of(copy: u8) -> ReplicaId {
    ReplicaId(Uuid::from_u128(0x10 + u128::from(copy)))
}

/// The copy behind a replica's id.
pub(crate) fn copy_of(rid: ReplicaId) -> u8 {
    u8::try_from(rid.0.as_u128().wrapping_sub(0x10)).unwrap_or(u8::MAX)
}

/// The seat behind a claim.
pub(crate) fn instance_of(seat: u8) -> InstanceId {
    InstanceId(Uuid::from_u128((0x100 + u128::from(seat)) << 64))
}

/// The in-sync set as bits.
pub(crate) fn members(record: &Record) -> u8 {
    record.in_sync().fold(0, |bits, r| bits | 1 << copy_of(r.rid))
}

impl Copy {
    fn new(copy: u8, planted: Planted) -> Self {
        let mut disk = Disk::new(planted);
        let machine = Self::open(copy, 0, &mut disk, planted);
        Self { machine, disk, opened: 0, session: None }
    }

    fn open(copy: u8, opened: u64, disk: &mut Disk, planted: Planted) -> Replica {
        let identity = Identity {
            volume: VOLUME,
            replica: rid_of(copy),
            lineage: LINEAGE,
            incarnation: Incarnation(opened),
        };
        Replica::open(identity, disk.reopen(), planted)
    }

    /// The process ends and starts again.
    pub(crate) fn restart(&mut self, copy: u8, planted: Planted) {
        self.opened += 1;
        self.session = None;
        self.machine = Self::open(copy, self.opened, &mut self.disk, planted);
    }
}

impl Seat {
    fn new() -> Self {
        Self {
            machine: None,
            started: false,
            phase: Phase::Claiming,
            now: Tick(1_000_000_000),
            wants: 0,
            put: None,
            ghosts: Vec::new(),
            write: None,
            flush: None,
            read: None,
        }
    }

    pub(crate) fn start(&mut self, seat: u8, planted: Planted) {
        let node = node(&format!("p{seat}"));
        let instance = instance_of(seat);
        self.machine = Some(Primary::new(Params { volume: VOLUME, node, instance, planted }));
        self.started = true;
    }

    /// Is the guest served, or will it be?
    pub(crate) fn is_open(&self) -> bool {
        self.machine.is_some() && matches!(self.phase, Phase::Active | Phase::Suspended)
    }

    /// Nothing is decided here any more. A change of the record that is on its way stays so.
    pub(crate) fn end(&mut self) {
        self.machine = None;
        self.abandon_put();
        (self.wants, self.write, self.flush, self.read) = (0, None, None, None);
    }

    /// Nobody waits for the change any more.
    pub(crate) fn abandon_put(&mut self) {
        self.ghosts.extend(self.put.take().filter(|put| put.done.is_none()));
    }
}

impl State {
    /// Three idle nodes, or two, and a record that names them.
    #[expect(clippy::expect_used, reason = "the record is ours")]
    pub(crate) fn new(setup: &Setup) -> Self {
        let replicas = (0..setup.copies).map(|c| (rid_of(c), copy_node(c), "default".to_owned()));
        let new = NewVolume {
            uid: VOLUME,
            lineage: LINEAGE,
            blocks: 1,
            repl: setup.copies,
            min_in_sync: setup.min_in_sync,
            replicas: replicas.collect(),
        };
        let record = Record::create(new, Uuid::from_u128(1)).expect("a valid volume");
        Self {
            seats: (0..setup.seats).map(|_| Arc::new(Seat::new())).collect(),
            copies: (0..setup.copies).map(|c| Arc::new(Copy::new(c, setup.planted))).collect(),
            links: Vec::new(),
            record: Arc::new(record),
            revision: Revision(1),
            claimed: [u8::MAX; EPOCHS],
            left: setup.budget,
            judge: Judge::new(),
            made: 0,
            planted: setup.planted,
            full: setup.full,
            trusting: setup.planted == Planted::NONE && !setup.full,
            focus: Focus::Free,
        }
    }

    pub(crate) fn seat(&mut self, seat: u8) -> &mut Seat {
        Arc::make_mut(&mut self.seats[usize::from(seat)])
    }

    pub(crate) fn copy(&mut self, copy: u8) -> &mut Copy {
        Arc::make_mut(&mut self.copies[usize::from(copy)])
    }

    pub(crate) fn link(&mut self, conn: Conn) -> Option<&mut Link> {
        self.links.iter_mut().find(|l| l.conn == conn).map(Arc::make_mut)
    }

    /// The connection that a primary uses towards a copy.
    pub(crate) fn link_of(&self, seat: u8, copy: u8) -> Option<&Link> {
        let found = self.links.iter().find(|l| l.seat == seat && l.copy == copy && l.seat_open);
        found.map(Arc::as_ref)
    }

    pub(crate) fn connect(&mut self, seat: u8, copy: u8) -> Conn {
        self.made += 1;
        let conn = Conn(u64::from(seat) << 32 | u64::from(copy) << 24 | self.made);
        let link = Link {
            conn,
            seat,
            copy,
            requests: VecDeque::new(),
            replies: VecDeque::new(),
            seat_open: true,
            copy_open: true,
            broken: false,
        };
        let at = self.links.partition_point(|l| (l.seat, l.copy) <= (seat, copy));
        self.links.insert(at, Arc::new(link));
        conn
    }

    /// The primary's end is closed by the primary itself.
    pub(crate) fn close_seat_end(&mut self, conn: Conn) {
        if let Some(link) = self.link(conn) {
            (link.seat_open, link.broken) = (false, true);
            link.replies.clear();
        }
    }

    /// The replica's process is gone, with what it had not read.
    pub(crate) fn close_copy_ends(&mut self, copy: u8) {
        for link in self.links.iter_mut().filter(|l| l.copy == copy) {
            let link = Arc::make_mut(link);
            (link.copy_open, link.broken) = (false, true);
            link.requests.clear();
        }
    }

    /// What the state is recognised by.
    pub(crate) fn fingerprint(&self, eye: &mut Eye) -> u64 {
        eye.clear();
        eye.frozen = (self.left.waits, self.left.commits) == (0, 0);
        eye.leases = self.left.reads > 0 || self.seats.iter().any(|s| s.read.is_some());
        for (index, seat) in (0..).zip(&self.seats) {
            eye.look_at_seat(index, seat.now.0);
            see(&seat.machine, eye);
            see(&(seat.started, seat.phase, seat.wants, &seat.put, &seat.ghosts), eye);
            see(&(seat.write, seat.flush, seat.read), eye);
        }
        for link in &self.links {
            eye.look_at_seat(link.seat, 0);
            // A write that arrives late is compared with what was committed meanwhile.
            let writes = link.requests.iter().filter(|m| m.body.mutates());
            writes.for_each(|m| eye.note_seq(m.header.seq.0));
            // So are those that its session will have.
            let promises =
                link.requests.iter().filter(|m| matches!(m.body, Request::Promise { .. }));
            promises.for_each(|m| Kind::Bound.hash(m.header.seq.0, eye));
            see(link.as_ref(), eye);
        }
        for (index, copy) in (0..).zip(&self.copies) {
            eye.look_at_copy(index, self.claimed);
            see(&(&copy.machine, &copy.disk, copy.session), eye);
        }
        eye.look_at_seat(u8::MAX, 0);
        see(&(self.record.as_ref(), self.revision, self.claimed, self.left, self.judge), eye);
        see(&self.focus, eye);
        eye.fingerprint()
    }
}
