//! A replica on the real store and a disk in memory, under the requests of good primaries and of
//! confused ones, with kills, power cuts and disk errors in between.

use std::collections::BTreeSet;

use bytes::Bytes;
use lockstep_core::id::{Conn, Epoch, Gen, Incarnation, InstanceId, RegionIndex, Seq, Tick};
use lockstep_core::message::{
    Header, Message, Payload, Refusal, Reply, Request, ResyncBlock, ResyncContent,
};
use lockstep_core::planted::Planted;
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::replica::{Effect, Event, Identity, Replica, Role};
use lockstep_store::{DiskError, Store};
use uuid::Uuid;

use super::disk::{Disk, Rng};
use super::files::{BLOCKS, formatted, identity, open_disk};
use super::input::Input;

const STEPS_MAX: usize = 400;

struct World {
    disk: Disk,
    store: Store,
    replica: Replica,
    incarnation: u64,
    boot: u8,
    now: Tick,
    next_seq: u64,
    /// Requests that the replica owes an answer on a live connection.
    owed: BTreeSet<(Conn, Seq)>,
    /// Those of them that ask for a promise.
    promising: BTreeSet<(Conn, Seq)>,
    /// Ranges of mutations that are not answered: a primary never has two that overlap.
    busy: Vec<(Conn, Seq, BlockSet)>,
    /// The highest epoch whose promise was answered.
    promised: Epoch,
}

pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.finish();
}

impl World {
    fn new() -> Self {
        let disk = formatted();
        let (store, replica) = open(&disk, 0, 1);
        Self {
            disk,
            store,
            replica,
            incarnation: 1,
            boot: 0,
            now: Tick(0),
            next_seq: 1,
            owed: BTreeSet::new(),
            promising: BTreeSet::new(),
            busy: Vec::new(),
            promised: Epoch(0),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let conn = Conn(u64::from(input.below(2)));
        match input.below(16) {
            0 => self.promise(input, conn),
            1..=6 => self.request(input, conn),
            7 => self.disconnect(conn),
            8..=11 => self.run_disk(usize::from(input.u8())),
            12 => self.settle(),
            13 => {
                self.now = self.now.plus_ms(u64::from(input.u8()));
                self.store.tick(self.now);
                self.pump();
            }
            14 => self.restart(input),
            _ => self.fail_disk(input),
        }
        self.replica.check();
        self.store.check();
        assert!(self.replica.status().promised >= self.promised, "a promise was forgotten");
    }

    fn header(&mut self, input: &mut Input<'_>) -> Header {
        let epoch = self.replica.status().promised;
        let epoch = match input.below(8) {
            0 => Epoch(epoch.0.saturating_sub(1)),
            1 => epoch.next(),
            _ => epoch,
        };
        let seq = self.next_seq;
        self.next_seq += 1;
        let commit = Seq(seq.saturating_sub(u64::from(input.below(8)) + 1));
        // What is not answered is not committed.
        let first = self.busy.iter().map(|(_, seq, _)| seq.0).min().unwrap_or(u64::MAX);
        let commit = commit.min(Seq(first - 1));
        let r#gen = Gen(self.replica.status().r#gen.0 + u32::from(input.below(16) == 0));
        Header { volume: identity().volume, epoch, r#gen, seq: Seq(seq), commit }
    }

    fn promise(&mut self, input: &mut Input<'_>, conn: Conn) {
        let mut header = self.header(input);
        header.epoch = Epoch(self.replica.status().promised.0 + u64::from(input.below(3)));
        let body = Request::Promise {
            replica: identity().replica,
            lineage: identity().lineage,
            instance: InstanceId(Uuid::from_u128(u128::from(header.epoch.0))),
            attach_seq: 1,
            parent: None,
            at_least: Epoch(u64::from(input.below(3))),
        };
        // Whoever waits for the same epoch's promise on another connection is a session of the same
        // claim, and superseded.
        self.owed.retain(|waits| !self.promising.contains(waits));
        self.promising.insert((conn, header.seq));
        self.send(conn, Message { header, body });
    }

    fn request(&mut self, input: &mut Input<'_>, conn: Conn) {
        let header = self.header(input);
        let body = body(input);
        let touched = mutated(&body);
        let overlaps = |set: &BlockSet| {
            set.ranges().iter().any(|r| touched.ranges().iter().any(|t| r.overlaps(*t)))
        };
        if self.busy.iter().any(|(_, _, set)| overlaps(set)) {
            return;
        }
        // A primary closes when everything is answered and committed.
        if body == Request::Close && (!self.busy.is_empty() || self.replica.status().ring > 0) {
            return;
        }
        if !touched.is_empty() {
            self.busy.push((conn, header.seq, touched));
        }
        self.send(conn, Message { header, body });
    }

    fn send(&mut self, conn: Conn, message: Message<Request>) {
        if !matches!(message.body, Request::Commit { .. }) {
            self.owed.insert((conn, message.header.seq));
        }
        self.tell(Event::Request { conn, message });
        self.pump();
    }

    fn disconnect(&mut self, conn: Conn) {
        self.owed.retain(|(of, _)| *of != conn);
        self.tell(Event::Disconnected(conn));
        self.pump();
    }

    fn tell(&mut self, event: Event) {
        let mut out = Vec::new();
        let asked = match &event {
            Event::Request { message, .. } => Some(message.header),
            _ => None,
        };
        let before = self.replica.status().promised;
        self.replica.step(self.now, event, &mut out);
        self.replica.check();
        if !self.replica.status().connected {
            // What is asked in a session that is gone gets no answer; its primary asks again.
            self.owed.retain(|waits| self.promising.contains(waits));
        }
        let fenced = asked.is_some_and(|header| header.epoch < before);
        for effect in out {
            match effect {
                Effect::Store { token, op } => {
                    assert!(!fenced, "a request of an old epoch reached the store");
                    self.store.submit(self.now, token, op);
                }
                Effect::Note(note) => self.store.note(self.now, note),
                Effect::Fetch { .. } => panic!("a replica fetched that was never told it could"),
                Effect::Entry(_) => panic!("a replica counts that was never told it should"),
                Effect::Send { conn, message } => self.heard(conn, &message),
            }
        }
    }

    fn heard(&mut self, conn: Conn, message: &Message<Reply>) {
        let seq = message.header.seq;
        let refused = matches!(message.body, Reply::Refused(_));
        // A commit is answered only if it is refused.
        let was_owed = self.owed.remove(&(conn, seq));
        let superseded = self.promising.contains(&(conn, seq));
        assert!(
            was_owed || refused || superseded,
            "request {seq} was answered twice, or without being asked"
        );
        self.busy.retain(|(of, number, _)| (*of, *number) != (conn, seq));
        if let Reply::Promised(_) = message.body {
            assert!(message.header.epoch >= self.promised, "an older epoch was promised");
            self.promised = message.header.epoch;
            // Whoever had a session lost it, and gets no answers.
            self.owed.clear();
            self.busy.clear();
        }
        if let Reply::Refused(Refusal::Epoch { promised }) = message.body {
            assert!(promised >= self.promised, "refused in the name of an older epoch");
        }
    }

    fn pump(&mut self) {
        loop {
            while let Some(op) = self.store.poll_disk() {
                self.disk.take(op);
            }
            let Some((token, result)) = self.store.poll_done() else { return };
            self.tell(Event::Stored { token, result });
        }
    }

    fn run_disk(&mut self, which: usize) {
        if self.disk.flying.is_empty() {
            return;
        }
        let (id, result) = self.disk.run(which % self.disk.flying.len());
        self.store.done(self.now, id, result);
        self.pump();
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.disk.flying.is_empty() {
                return;
            }
            self.run_disk(0);
        }
        panic!("the store never stops asking for the disk");
    }

    fn fail_disk(&mut self, input: &mut Input<'_>) {
        let which = usize::from(input.u8());
        if self.disk.flying.is_empty() || input.below(4) != 0 {
            return;
        }
        let index = which % self.disk.flying.len();
        let op = self.disk.fail(index, &mut Rng(u64::from(input.u8())));
        let error = if input.flag() { DiskError::Io } else { DiskError::NoSpace };
        self.store.done(self.now, op.id, Err(error));
        self.pump();
        assert!(
            !self.store.status().faulted || self.store.status().disk_ops == self.disk.flying.len()
        );
    }

    fn restart(&mut self, input: &mut Input<'_>) {
        let mut rng = Rng(u64::from(input.u8()));
        if input.flag() {
            self.disk.power_loss(&mut rng);
            self.boot = self.boot.wrapping_add(1);
        } else {
            self.disk.kill(&mut rng);
        }
        self.incarnation += 1;
        self.owed.clear();
        self.busy.clear();
        (self.store, self.replica) = open(&self.disk, self.boot, self.incarnation);
        self.pump();
    }

    /// When the disk has done everything, everybody has an answer.
    fn finish(&mut self) {
        self.settle();
        self.replica.check();
        if self.replica.status().role != Role::Faulted {
            assert!(self.owed.is_empty(), "never answered: {:?}", self.owed);
        }
    }
}

fn open(disk: &Disk, boot: u8, incarnation: u64) -> (Store, Replica) {
    let opened = open_disk(disk, boot).expect("a crash never makes the files unreadable");
    let own = identity();
    let who = Identity {
        volume: own.volume,
        replica: own.replica,
        lineage: own.lineage,
        incarnation: Incarnation(incarnation),
    };
    (opened.store, Replica::open(who, opened.recovered, Planted::NONE))
}

fn range(input: &mut Input<'_>) -> BlockRange {
    let start = u64::from(input.below(64)) * 10;
    let count = u32::from(input.below(16)) + 1;
    // Some reach beyond the end.
    BlockRange::new(start.min(BLOCKS), count)
}

fn body(input: &mut Input<'_>) -> Request {
    let durable = input.flag();
    match input.below(15) {
        0 => Request::Read { blocks: range(input).into() },
        1..=3 => {
            let range = range(input);
            let data = vec![input.u8(); range.count as usize * 4096];
            Request::Write { range, fua: durable, payload: Payload::checksummed(Bytes::from(data)) }
        }
        4 => Request::Zero { range: range(input), fua: durable, deallocate: input.flag() },
        5 => Request::Flush,
        6 => Request::Commit { member: durable },
        7 => Request::Mark { blocks: range(input).into() },
        8 => Request::Scan {
            since: Gen(u32::from(input.below(4))),
            from: RegionIndex(u32::from(input.below(4))),
            limit: u32::from(input.below(3)),
        },
        9 => Request::Digest { blocks: range(input).into(), since: Gen(u32::from(input.below(4))) },
        10 => resync(input),
        11 => Request::Renew,
        12 => Request::Enter { copies: u32::from(input.below(4)) },
        13 => Request::Complete,
        _ => Request::Close,
    }
}

fn resync(input: &mut Input<'_>) -> Request {
    let range = range(input);
    let mut data = Vec::new();
    let mut blocks = Vec::new();
    for block in range.blocks() {
        let content = match input.below(3) {
            0 => ResyncContent::Data,
            1 => ResyncContent::Zero,
            _ => ResyncContent::Same,
        };
        if content == ResyncContent::Data {
            data.resize(data.len() + 4096, input.u8());
        }
        blocks.push(ResyncBlock { block, stamp: Gen(u32::from(input.below(8))), content });
    }
    Request::Resync { blocks, payload: Payload::checksummed(Bytes::from(data)) }
}

fn mutated(body: &Request) -> BlockSet {
    match body {
        Request::Write { range, .. } | Request::Zero { range, .. } => (*range).into(),
        Request::Resync { blocks, .. } => {
            blocks.iter().map(|b| BlockRange::new(b.block, 1)).collect()
        }
        Request::Mark { blocks } => blocks.clone(),
        _ => BlockSet::new(),
    }
}
