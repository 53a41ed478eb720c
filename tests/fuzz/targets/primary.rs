//! A primary whose replicas, record store and guests do and say anything that the types allow.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use lockstep_core::guest::{GuestError, GuestOp};
use lockstep_core::id::{
    Conn, Epoch, Gen, Incarnation, InstanceId, Lineage, NodeId, RegionIndex, ReplicaId, RequestId,
    Revision, Tick, Token, VolumeId,
};
use lockstep_core::message::{
    BlockDigest, Digest, Header, Message, Payload, Promised, Refusal, Reply, Request, Wholeness,
};
use lockstep_core::planted::Planted;
use lockstep_core::primary::{Effect, Event, MetaOp, MetaResult, Params, Phase, Primary};
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::record::{NewVolume, PrimaryRef, Record};
use uuid::Uuid;

use super::input::Input;

const BLOCKS: u64 = 600;
const VOLUME: VolumeId = VolumeId(Uuid::from_u128(1));
const STEPS_MAX: usize = 600;

struct World {
    primary: Primary,
    now: Tick,
    record: Record,
    revision: Revision,
    /// Nodes that the primary wants to be connected to.
    wanted: BTreeSet<NodeId>,
    conns: BTreeMap<Conn, NodeId>,
    next_conn: u64,
    /// Sent and not answered.
    sent: VecDeque<(Conn, Message<Request>)>,
    asked: VecDeque<(Token, MetaOp)>,
    guests: BTreeSet<RequestId>,
    next_request: u64,
    phase: Phase,
}

pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new(&mut input);
    world.tell(Event::Wake);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
}

fn node(index: u16) -> NodeId {
    NodeId::new(&format!("n{index}")).expect("a name")
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let replicas = (0..3)
            .map(|i| (ReplicaId(Uuid::from_u128(10 + u128::from(i))), node(i), "p".to_owned()));
        let new = NewVolume {
            uid: VOLUME,
            lineage: Lineage(Uuid::from_u128(2)),
            blocks: BLOCKS,
            repl: 3,
            min_in_sync: 1 + u8::from(input.flag()),
            replicas: replicas.collect(),
        };
        let mut record = Record::create(new, Uuid::from_u128(1)).expect("a valid volume");
        if input.below(16) == 15 {
            // Few generations are left.
            record.r#gen = Gen(u32::MAX - 1 - u32::from(input.below(8)));
        }
        let params = Params {
            volume: VOLUME,
            node: node(0),
            instance: InstanceId(Uuid::from_u128(7 << 64)),
            planted: Planted::NONE,
        };
        Self {
            primary: Primary::new(params),
            now: Tick(0),
            record,
            revision: Revision(1),
            wanted: BTreeSet::new(),
            conns: BTreeMap::new(),
            next_conn: 1,
            sent: VecDeque::new(),
            asked: VecDeque::new(),
            guests: BTreeSet::new(),
            next_request: 1,
            phase: Phase::Claiming,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0 => self.connect(input),
            1..=6 => self.reply(input, true),
            7 => self.reply(input, false),
            8 | 9 => self.guest(input),
            10 => self.meta(input, true),
            11 => self.meta(input, false),
            12 => self.wake(),
            13 => self.disconnect(input),
            14 => self.outsider(input),
            _ if input.below(8) == 0 => self.tell(Event::Close),
            _ => self.settle(),
        }
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        self.primary.step(self.now, event, &mut out);
        self.primary.check();
        for effect in out {
            self.effect(effect);
        }
        let over = matches!(self.phase, Phase::Fenced | Phase::Closed);
        assert!(!over || self.guests.is_empty(), "requests left although it is over");
        assert_eq!(self.primary.status().phase, self.phase, "a phase was not announced");
    }

    fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Connect(node) => drop(self.wanted.insert(node)),
            Effect::Disconnect(node) => drop(self.wanted.remove(&node)),
            Effect::Reset(conn) => drop(self.conns.remove(&conn)),
            Effect::Send { conn, message } => {
                assert!(self.conns.contains_key(&conn), "sent on a connection that is gone");
                let commits_itself = message.header.commit >= message.header.seq;
                assert!(!(message.body.mutates() && commits_itself), "commits what it sends");
                if !matches!(message.body, Request::Commit { .. }) {
                    self.sent.push_back((conn, message));
                }
            }
            Effect::Meta { token, op } => self.asked.push_back((token, op)),
            Effect::Reply { request, result } => {
                assert!(self.guests.remove(&request), "answered twice, or never asked");
                let fenced = self.phase == Phase::Fenced;
                assert!(!fenced || result.is_err(), "acknowledged although it is fenced");
                assert!(!fenced || result != Err(GuestError::Invalid));
            }
            Effect::Phase(phase) => self.phase = phase,
            _ => {}
        }
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        let node = node(input.below(4));
        let linked = self.conns.values().any(|to| *to == node);
        if linked || !self.wanted.contains(&node) {
            return;
        }
        let conn = Conn(self.next_conn);
        self.next_conn += 1;
        self.conns.insert(conn, node.clone());
        self.tell(Event::Connected { node, conn });
    }

    fn disconnect(&mut self, input: &mut Input<'_>) {
        let count = self.conns.len();
        let Some(conn) = self.conns.keys().nth(usize::from(input.u8()) % count.max(1)) else {
            return;
        };
        let conn = *conn;
        self.conns.remove(&conn);
        self.sent.retain(|(of, _)| *of != conn);
        self.tell(Event::Disconnected(conn));
    }

    /// Answers a request that waits: as a replica would, or with whatever.
    fn reply(&mut self, input: &mut Input<'_>, sensible: bool) {
        let count = self.sent.len().min(8);
        if count == 0 {
            return;
        }
        let which = usize::from(input.u8()) % count;
        let Some((conn, message)) = self.sent.get(which).cloned() else { return };
        if !self.conns.contains_key(&conn) {
            self.sent.remove(which);
            return;
        }
        let Message { mut header, body } = message;
        let body = if sensible {
            self.sent.remove(which);
            answer(input, &body)
        } else {
            header = disturbed(input, header);
            any_reply(input)
        };
        header.commit = Default::default();
        self.tell(Event::Reply { conn, message: Message { header, body } });
    }

    fn guest(&mut self, input: &mut Input<'_>) {
        if !self.primary.has_room() {
            return;
        }
        let start = u64::from(input.below(128)) * 5;
        let range = BlockRange::new(start, 1 + u32::from(input.below(200)));
        let fua = input.flag();
        let op = match input.below(4) {
            0 => GuestOp::Read { range },
            1 => {
                let data = vec![input.u8(); range.count as usize * 4096];
                GuestOp::Write { range, fua, payload: Payload::checksummed(Bytes::from(data)) }
            }
            2 => GuestOp::Zero { range, fua, deallocate: input.flag() },
            _ => GuestOp::Flush,
        };
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.guests.insert(request);
        self.tell(Event::Guest { request, op });
    }

    /// The record store answers: as it should, or that it could not.
    fn meta(&mut self, input: &mut Input<'_>, well: bool) {
        let Some((token, op)) = self.asked.pop_front() else { return };
        let result = match op {
            _ if !well && input.flag() => MetaResult::Unavailable,
            MetaOp::Get => MetaResult::Read(Some((self.record.clone(), self.revision))),
            MetaOp::PutIf { expected, record } => {
                assert_eq!(record.validate(), Ok(()), "an invalid record is put");
                assert!(record.epoch >= self.record.epoch || expected != self.revision);
                let applied = expected == self.revision && (well || input.flag());
                if applied {
                    self.revision = Revision(self.revision.0 + 1);
                    self.record = record;
                }
                match (well, applied) {
                    (true, true) => MetaResult::Written(self.revision),
                    (true, false) => MetaResult::Conflict,
                    (false, _) => MetaResult::Unknown,
                }
            }
        };
        self.tell(Event::Meta { token, result });
    }

    /// Somebody else changes the record: takes the volume over, adds a copy, or forgets one.
    fn outsider(&mut self, input: &mut Input<'_>) {
        let txn = Uuid::from_u128(u128::from(self.revision.0) << 32);
        let next = match input.below(8) {
            0 => {
                let primary = PrimaryRef { node: node(1), instance: InstanceId(txn) };
                Ok(self.record.claim(primary, txn))
            }
            1..=3 => {
                let rid = ReplicaId(Uuid::from_u128(100 + u128::from(self.revision.0)));
                self.record.add_new(rid, node(3), "p".to_owned(), txn)
            }
            _ => match self.record.replicas.get(usize::from(input.below(4))) {
                Some(entry) => self.record.forget(entry.rid, txn),
                None => return,
            },
        };
        let Ok(record) = next else { return };
        if record.validate().is_err() {
            return;
        }
        self.record = record;
        self.revision = Revision(self.revision.0 + 1);
        if input.flag() {
            self.tell(Event::RecordChanged);
        }
    }

    /// Time passes until the primary wants to be woken. It may not ask to be woken for nothing.
    fn wake(&mut self) {
        for _ in 0..50 {
            let Some((at, reason)) = self.primary.deadline() else { return };
            if at > self.now {
                self.now = at;
                return self.tell(Event::Wake);
            }
            let before = (at, reason);
            self.tell(Event::Wake);
            if self.primary.deadline() != Some(before) {
                return;
            }
        }
        panic!("woken again and again for {:?}", self.primary.deadline());
    }

    /// Everybody does what is expected, for a while: so inputs get far with few bytes.
    fn settle(&mut self) {
        let mut nothing = Input(&[]);
        for _ in 0..40 {
            if !self.asked.is_empty() {
                self.meta(&mut nothing, true);
            } else if let Some(index) = (0..4).find(|i| self.may_connect(*i)) {
                self.connect(&mut Input(&[index]));
            } else if !self.sent.is_empty() {
                self.reply(&mut nothing, true);
            } else {
                return;
            }
        }
    }

    fn may_connect(&self, index: u8) -> bool {
        let node = node(u16::from(index));
        self.wanted.contains(&node) && !self.conns.values().any(|to| *to == node)
    }
}

/// A right answer, of which the details are up to the input.
fn answer(input: &mut Input<'_>, request: &Request) -> Reply {
    if input.below(32) == 31 {
        return any_reply(input);
    }
    match request {
        Request::Promise { .. } => Reply::Promised(Box::new(promised(input))),
        Request::Read { blocks } => {
            let count = usize::try_from(blocks.len()).expect("small");
            Reply::Data(Payload::checksummed(Bytes::from(vec![5; count * 4096])))
        }
        Request::Scan { .. } => regions(input),
        Request::Digest { blocks, .. } => digests(input, blocks),
        _ => Reply::Done,
    }
}

fn promised(input: &mut Input<'_>) -> Promised {
    let unclean = input.below(4) == 1;
    let mut ring = BlockSet::new();
    for _ in 0..input.below(3) {
        ring.insert(BlockRange::new(u64::from(input.below(64)) * 9, 1 + u32::from(input.below(8))));
    }
    let unresolved = (0..3).filter(|_| unclean && input.flag()).map(RegionIndex).collect();
    Promised {
        incarnation: Incarnation(u64::from(input.below(3))),
        unclean,
        lossy: unclean && input.flag(),
        fresh: input.below(8) == 1,
        member_gen: Gen(u32::from(input.below(4))),
        ring,
        unresolved,
        credit_ops: 512,
        credit_bytes: 64 << 20,
        silent_ms: input.flag().then(|| u32::from(input.u16())),
        pulls: true,
        blocks: None,
    }
}

fn regions(input: &mut Input<'_>) -> Reply {
    let regions = (0..3).filter(|_| input.flag()).map(RegionIndex).collect();
    Reply::Regions { regions, next: None }
}

fn digests(input: &mut Input<'_>, blocks: &BlockSet) -> Reply {
    let of = |block, input: &mut Input<'_>| BlockDigest {
        block,
        stamp: Gen(u32::from(input.below(8))),
        zero: input.below(4) == 1,
        digest: Digest([input.u8() & 1; 16]),
        wholeness: wholeness(block),
    };
    let some = input.flag();
    let blocks = blocks.blocks().filter(|block| !some || block % 3 == 0);
    Reply::Digests(blocks.take(64).map(|block| of(block, input)).collect())
}

fn wholeness(block: u64) -> Wholeness {
    match block % 3 {
        0 => Wholeness::Whole,
        1 => Wholeness::Doubtful,
        _ => Wholeness::Unknown,
    }
}

/// Any reply that the wire would let through.
fn any_reply(input: &mut Input<'_>) -> Reply {
    match input.below(8) {
        0 => Reply::Promised(Box::new(Promised {
            ring: BlockRange::new(input.u64() >> 33, 1 + u32::from(input.u16())).into(),
            unresolved: vec![RegionIndex(input.u32() >> 8)],
            credit_ops: u32::from(input.u8()),
            credit_bytes: u64::from(input.u8()),
            ..promised(input)
        })),
        1 => {
            let data = vec![1; usize::from(input.below(5)) * 4096];
            Reply::Data(Payload::checksummed(Bytes::from(data)))
        }
        2 => Reply::Done,
        3 => Reply::Regions {
            regions: vec![RegionIndex(input.u32() >> 8)],
            next: input.flag().then(|| RegionIndex(input.u32() >> 8)),
        },
        4 => {
            let block = input.u64() >> 32;
            let digest = Digest([input.u8(); 16]);
            Reply::Digests(vec![BlockDigest {
                block,
                stamp: Gen(input.u32()),
                zero: false,
                digest,
                wholeness: wholeness(block),
            }])
        }
        _ => Reply::Refused(match input.below(7) {
            0 => Refusal::Epoch { promised: Epoch(u64::from(input.u8())) },
            1 => Refusal::NoSuchReplica,
            2 => Refusal::NoSession,
            3 => Refusal::Faulted,
            4 => Refusal::Io,
            5 => Refusal::Checksum { block: input.u64() },
            _ => Refusal::Malformed,
        }),
    }
}

/// A header that answers something else, perhaps.
fn disturbed(input: &mut Input<'_>, header: Header) -> Header {
    match input.below(5) {
        0 => Header { epoch: Epoch(u64::from(input.u8())), ..header },
        1 => Header { seq: lockstep_core::id::Seq(u64::from(input.u8())), ..header },
        2 => Header { r#gen: Gen(u32::from(input.u8())), ..header },
        3 => Header { volume: VolumeId(Uuid::from_u128(9)), ..header },
        _ => header,
    }
}
