//! A node: its process, its copy of the volume, and its primary.

use lockstep_core::id::{Conn, Epoch, InstanceId, NodeId, ReplicaId, Seq, Tick, Token};
use lockstep_core::limits;
use lockstep_core::message::{Header, Message, Reply, Request};
use lockstep_core::primary::{Phase, Primary};
use lockstep_core::range::{BlockRange, region_of};
use lockstep_core::replica::Replica;
use lockstep_core::slots::{Slots, Wish};
use lockstep_store::layout::{File, TABLE_BYTES};
use lockstep_store::{DiskOpId, DiskOpKind, Store};
use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Clock;
use crate::content::BLOCK;
use crate::disk::{Damage, Disk};
use crate::fault::Fault;
use crate::fetch::Fetcher;
use crate::guest::Guest;
use crate::net::Wire;
use crate::world::Mistake;

/// A machine in the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeId,
    /// Does its process run?
    pub up: bool,
    /// Random per process.
    pub process: u64,
    /// The newest version of the wire format that it speaks.
    pub speaks: u16,
    /// What its process takes for the time.
    pub clock: Clock,
    /// Changes with every loss of power.
    pub boot: [u8; 16],
    /// Its process stands still before then.
    pub paused_until: u64,
    /// Its disk is slow before then.
    pub slow_until: u64,
    /// Its disk is so slow until then that its operations hold everybody up.
    pub crawls_until: u64,
    /// Its disk answers nothing before then.
    pub hung_until: u64,
    /// Its disk has no space left before then.
    pub full_until: u64,
    /// Nothing on its disk works before then.
    pub gone_until: u64,
    /// The record store can't be reached from here before then.
    pub meta_cut_until: u64,
    /// How it is set up wrongly, until then.
    pub(crate) mistake: Option<(Mistake, u64)>,
    /// When it last lost power, if it did.
    pub lost_power: Option<u64>,
    /// Its copy of the volume.
    pub copy: Option<Copy>,
    /// An image of a copy's files, with the epoch that it promised.
    pub image: Option<(ReplicaId, Epoch, Disk)>,
    /// Its primary.
    pub seat: Option<Seat>,
    /// What its copy fetches from other nodes.
    pub fetcher: Fetcher,
    /// Its slots for resyncs.
    pub slots: Slots,
    /// Its slots for resyncs that its replicas are the target of.
    pub entries: Slots,
    next_conn: u64,
}

impl Node {
    /// A node that is down.
    #[must_use]
    pub fn new(name: NodeId) -> Self {
        Self {
            name,
            up: false,
            process: 0,
            speaks: lockstep_core::wire::MAX_VERSION,
            clock: Clock::default(),
            boot: [0; 16],
            paused_until: 0,
            slow_until: 0,
            crawls_until: 0,
            hung_until: 0,
            full_until: 0,
            gone_until: 0,
            meta_cut_until: 0,
            mistake: None,
            lost_power: None,
            copy: None,
            image: None,
            seat: None,
            fetcher: Fetcher::default(),
            slots: Slots::default(),
            entries: Slots::of_targets(limits::RESYNC_ENTRIES),
            next_conn: 0,
        }
    }

    /// A connection number that its process has not used yet.
    pub fn fresh_conn(&mut self) -> Conn {
        self.next_conn += 1;
        Conn(self.next_conn)
    }

    /// What its clock shows at virtual time `now`.
    #[must_use]
    pub fn tick(&self, now: u64) -> Tick {
        self.clock.shows(now)
    }

    /// Its open copy, if it is the one opened as `open`.
    pub fn host(&mut self, open: u64) -> Option<(&mut Host, &mut Disk)> {
        let copy = self.copy.as_mut()?;
        let host = copy.host.as_mut().filter(|h| h.open == open)?;
        Some((host, &mut copy.disk))
    }

    /// Its primary, if it is the one called `id`.
    pub fn seat(&mut self, id: u64) -> Option<&mut Seat> {
        self.seat.as_mut().filter(|s| s.id == id)
    }
}

/// One copy of the volume.
#[derive(Debug)]
pub struct Copy {
    /// Which.
    pub rid: ReplicaId,
    /// Its files.
    pub disk: Disk,
    /// The machines, while it is open.
    pub host: Option<Host>,
    /// The next write or flush fails.
    pub fails_next: bool,
    /// What happens to the next write or flush instead.
    pub mishap: Option<Fault>,
    /// Will be opened again.
    pub reopening: bool,
    /// Was it put back to an older image?
    pub is_old: bool,
    /// When it was opened as one that lost what was not flushed, if that was so the last time.
    pub lossy_since: Option<u64>,
    /// Blocks of active regions of which its checksums proved, when it was opened after a power
    /// cut, that they are not torn.
    pub whole: BTreeSet<u64>,
}

/// A copy that is open.
#[derive(Debug)]
pub struct Host {
    /// Unique in the world.
    pub open: u64,
    /// The decisions.
    pub replica: Replica,
    /// The plans.
    pub store: Store,
    /// Disk operations under way.
    pub flights: BTreeMap<DiskOpId, Flight>,
    /// Store operations without an answer.
    pub asked: BTreeSet<Token>,
    /// When the store is to be woken.
    pub armed: Option<u64>,
}

/// A disk operation under way.
#[derive(Debug)]
pub struct Flight {
    /// What.
    pub kind: DiskOpKind,
    /// What a flush covers.
    pub mark: u64,
}

/// A primary with its guest.
#[derive(Debug)]
pub struct Seat {
    /// Unique in the world.
    pub id: u64,
    /// Its claim.
    pub instance: InstanceId,
    /// The decisions.
    pub primary: Primary,
    /// As last told.
    pub phase: Phase,
    /// Who uses the volume.
    pub guest: Guest,
    /// Nodes to which connections are wanted.
    pub wanted: BTreeSet<usize>,
    /// Connections, by node.
    pub wires: BTreeMap<usize, Wire>,
    /// Questions to the record store without an answer.
    pub asked: BTreeSet<Token>,
    /// What is under way on each connection.
    pub flows: BTreeMap<Conn, Flow>,
    /// When the primary is to be woken.
    pub armed: Option<u64>,
    /// When each node promised it the epoch, in a session that still lives.
    pub answered: BTreeMap<usize, u64>,
    /// The nodes that refused its epoch.
    pub refused_by: BTreeSet<usize>,
    /// Was it asked to close?
    pub closing: bool,
    /// What it wants of its node's slots for resyncs.
    pub wish: Wish,
    /// When it asks for one again.
    pub asks_at: Option<u64>,
}

/// The page of the tags file in which a block has its tag.
#[must_use]
pub fn tag_page(block: u64) -> u64 {
    u64::from(region_of(block).0) * u64::from(TABLE_BYTES) / BLOCK as u64
}

impl Copy {
    /// A copy that is not open.
    #[must_use]
    pub fn new(rid: ReplicaId, disk: Disk) -> Self {
        Self {
            rid,
            disk,
            host: None,
            fails_next: false,
            mishap: None,
            reopening: false,
            is_old: false,
            lossy_since: None,
            whole: BTreeSet::new(),
        }
    }

    /// Damages a page of its files. What it could prove to be whole it can't any more.
    pub fn harm(&mut self, file: File, page: u64, damage: Damage) {
        let spoiled = |block: &u64| match file {
            File::Data => *block == page,
            File::Tags => tag_page(*block) == page,
            File::Meta | File::Regions => false,
        };
        self.whole.retain(|block| !spoiled(block));
        self.disk.harm(file, page, damage);
    }
}

impl Seat {
    /// A primary that has not claimed yet.
    #[must_use]
    pub fn new(id: u64, instance: InstanceId, primary: Primary) -> Self {
        Self {
            id,
            instance,
            primary,
            phase: Phase::Claiming,
            guest: Guest::default(),
            wanted: BTreeSet::new(),
            wires: BTreeMap::new(),
            asked: BTreeSet::new(),
            flows: BTreeMap::new(),
            armed: None,
            answered: BTreeMap::new(),
            refused_by: BTreeSet::new(),
            closing: false,
            wish: Wish::Nothing,
            asks_at: None,
        }
    }

    /// Is its life over?
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Fenced)
    }
}

/// What a primary has under way on a connection, in the session that it opened last.
#[derive(Debug, Default)]
pub struct Flow {
    /// Requests without an answer, with their bytes.
    sent: BTreeMap<(Epoch, Seq), Sent>,
    /// Has the promise been answered that opens the session?
    is_open: bool,
}

impl Flow {
    /// A request goes out. A promise opens a new session: what was under way in the old one is
    /// drained by the replica and never answered.
    ///
    /// # Errors
    /// If another one with its number is under way, or too much is.
    pub fn asks(&mut self, message: &Message<Request>) -> Result<(), String> {
        let bytes = match &message.body {
            Request::Commit { .. } => return Ok(()),
            Request::Promise { .. } => {
                *self = Self::default();
                0
            }
            Request::Write { payload, .. } | Request::Resync { payload, .. } => {
                payload.data.len() as u64
            }
            _ => 0,
        };
        let Header { epoch, seq, .. } = message.header;
        let touches = touched(&message.body);
        let meets = |other: &BlockRange, mine: BlockRange| {
            other.start < mine.end() && mine.start < other.end()
        };
        let mut others = self.sent.values().filter_map(|sent| sent.touches.as_ref());
        if let Some(mine) = touches
            && let Some(other) = others.find(|other| meets(other, mine))
        {
            return Err(format!(
                "I8: {mine:?} is changed while a change of {other:?} is in flight"
            ));
        }
        if self.sent.insert((epoch, seq), Sent { bytes, touches }).is_some() {
            return Err(format!("two requests in flight have seq {seq}"));
        }
        let (ops, bytes) = (self.sent.len(), self.sent.values().map(|s| s.bytes).sum::<u64>());
        if ops > MAX_OPS || bytes > limits::CREDIT_BYTES {
            return Err(format!("{ops} requests with {bytes} bytes in flight"));
        }
        Ok(())
    }

    /// An answer arrives.
    ///
    /// # Errors
    /// If it answers nothing that was asked in this session.
    pub fn is_answered(&mut self, message: &Message<Reply>) -> Result<(), String> {
        let Header { epoch, seq, .. } = message.header;
        let known = self.sent.remove(&(epoch, seq)).is_some();
        self.is_open |= known && matches!(message.body, Reply::Promised(_));
        let refused = matches!(message.body, Reply::Refused(_));
        if self.is_open && !known && !refused {
            return Err(format!("an answer to {seq}, which was answered or drained before"));
        }
        Ok(())
    }
}

/// A request without an answer.
#[derive(Debug)]
struct Sent {
    bytes: u64,
    /// What it changes.
    touches: Option<BlockRange>,
}

/// What a request changes, from the first to the last block.
fn touched(body: &Request) -> Option<BlockRange> {
    match body {
        Request::Write { range, .. } | Request::Zero { range, .. } => Some(*range),
        Request::Resync { blocks, .. } | Request::Pull { blocks, .. } => {
            let (first, last) = (blocks.first()?.block, blocks.last()?.block);
            Some(BlockRange::new(first, u32::try_from(last - first + 1).ok()?))
        }
        _ => None,
    }
}

/// The credit in operations; promises, scans and the like come on top of it.
const MAX_OPS: usize = limits::CREDIT_OPS as usize + 64;
