//! The stage: nodes with the real machines, a record store, links in order, and time that
//! passes only on command. Everything that is said is written down.

mod fetch;
mod records;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lockstep_core::guest::{GuestOp, GuestReply};
use lockstep_core::id::{
    Conn, Incarnation, InstanceId, Lineage, NodeId, ReplicaId, RequestId, Revision, SnapshotId,
    Tick, VolumeId,
};
use lockstep_core::message::{Message, Payload, Reply, Request};
use lockstep_core::planted::Planted;
use lockstep_core::primary::{self, Params, Phase, Primary};
use lockstep_core::range::BlockRange;
use lockstep_core::record::{Chosen, NewVolume, Record};
use lockstep_core::replica::{self, Identity, Replica};
use lockstep_core::store::StoreError;
use uuid::Uuid;

use self::records::Mishap;
use crate::twin::Twin;
use crate::words;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(0xf0));
const LINEAGE: Lineage = Lineage(Uuid::from_u128(0xf1));

/// Something on its way between two nodes.
enum Letter {
    Request(Message<Request>),
    Reply(Message<Reply>),
}

/// A node with its copy, its processes, and its links.
#[derive(Default)]
struct Node {
    disk: Option<(ReplicaId, Twin)>,
    /// An image of it, taken earlier.
    kept: Option<(ReplicaId, Twin)>,
    replica: Option<Replica>,
    primary: Option<Primary>,
    wanted: BTreeSet<NodeId>,
    incarnations: u64,
}

/// A connection from a primary's node to a replica's, or from that of a replica that fetches.
struct Link {
    from: NodeId,
    to: NodeId,
    fetches: bool,
    letters: VecDeque<Letter>,
    replies: VecDeque<Letter>,
}

#[derive(Default)]
pub(crate) struct Stage {
    /// A rule that every machine breaks.
    pub(crate) planted: Planted,
    now: Tick,
    nodes: BTreeMap<NodeId, Node>,
    links: BTreeMap<Conn, Link>,
    fetches: fetch::Fetches,
    cut: BTreeSet<(NodeId, NodeId)>,
    held: BTreeSet<(NodeId, NodeId)>,
    passing: Option<(NodeId, NodeId)>,
    stopped: BTreeSet<NodeId>,
    /// Nodes whose daemons don't tell how long their copies are.
    old: BTreeSet<NodeId>,
    record: Option<(Record, Revision)>,
    /// The record store as it was earlier.
    kept_record: Option<(Record, Revision)>,
    store_up: bool,
    mishap: Mishap,
    ids: u64,
    /// What machines will be told next.
    events: VecDeque<(NodeId, primary::Event)>,
    said: Vec<String>,
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a node name")
}

fn range(word: &str) -> BlockRange {
    let (start, count) = word.split_once('+').expect("start+count");
    BlockRange::new(start.parse().expect("a block"), count.parse().expect("a count"))
}

impl Stage {
    /// Performs one command and returns what was said because of it.
    pub(crate) fn perform(&mut self, command: &str) -> Vec<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["create", rest @ ..] => self.create(rest),
            ["claim", n] => self.claim(&node(n)),
            ["scrub", n] => self.tell(&node(n), primary::Event::Scrub),
            ["close", n] => self.tell(&node(n), primary::Event::Close),
            ["write", n, at, byte] => {
                let byte = byte.bytes().next().expect("a letter");
                let range = range(at);
                let data = vec![byte; range.count as usize * 4096];
                let payload = Payload::checksummed(data.into());
                self.guest(&node(n), GuestOp::Write { range, fua: false, payload });
            }
            ["zero", n, at] => {
                let op = GuestOp::Zero { range: range(at), fua: false, deallocate: true };
                self.guest(&node(n), op);
            }
            ["read", n, at] => self.guest(&node(n), GuestOp::Read { range: range(at) }),
            ["flush", n] => self.guest(&node(n), GuestOp::Flush),
            ["add", n] => self.add(&node(n)),
            ["want", repl, min] => {
                let number = |word: &str| word.parse().expect("a number");
                let (repl, min) = (number(repl), number(min));
                self.change_record(|r| r.want(repl, min, Uuid::from_u128(3)).expect("allowed"));
            }
            ["let-go", n, copy] => {
                let (record, _) = self.record.as_ref().expect("a record");
                let copy = record.replicas.iter().find(|r| r.node == node(copy));
                let rid = copy.expect("a copy there").rid;
                self.tell(&node(n), primary::Event::Release(rid));
            }
            ["forget", copy] => {
                let (record, _) = self.record.as_ref().expect("a record");
                let copy = record.replicas.iter().find(|r| r.node == node(copy));
                let rid = copy.expect("a copy there").rid;
                self.change_record(|r| r.forget(rid, Uuid::from_u128(4)).expect("allowed"));
            }
            ["resize", n, blocks] => {
                let blocks = blocks.parse().expect("a number of blocks");
                self.ask(&node(n), primary::Task::Resize { blocks });
            }
            ["snapshot", n] => {
                let id = SnapshotId(Uuid::from_u128(self.next_id().into()));
                self.ask(&node(n), primary::Task::Snapshot { id });
            }
            ["advance", ms] => self.advance(ms.parse().expect("milliseconds")),
            ["force", n] => self.force(&node(n)),
            ["keep", what] => self.keep(what),
            ["put-back", what] => self.put_back(what),
            ["show"] => self.show(),
            disturbance => self.disturb(disturbance),
        }
        self.run();
        std::mem::take(&mut self.said)
    }

    /// Performs one command that makes something go wrong, or right again.
    fn disturb(&mut self, words: &[&str]) {
        match words {
            ["kill", n] => self.kill(&node(n)),
            ["power-cut", n] => self.cut_power(&node(n)),
            ["start", n] => self.start(&node(n)),
            ["cut", a, b] => self.cut(&node(a), &node(b)),
            ["rot", n, block] => {
                let n = self.nodes.get_mut(&node(n)).expect("a node");
                let (_, twin) = n.disk.as_mut().expect("a copy there");
                twin.rot(block.parse().expect("a block's number"));
            }
            // Its pool has no room, or can't share blocks, from now on or not any more.
            ["pool", n, what] => {
                let n = self.nodes.get_mut(&node(n)).expect("a node");
                let (_, twin) = n.disk.as_mut().expect("a copy there");
                twin.refuses = match *what {
                    "full" => Some(StoreError::NoSpace),
                    "plain" => Some(StoreError::NoReflink),
                    _ => None,
                };
            }
            // A daemon of wire version 3, from its next connection on.
            ["downgrade", n] => {
                self.old.insert(node(n));
            }
            ["upgrade", n] => {
                self.old.remove(&node(n));
            }
            ["heal", a, b] => {
                self.cut.remove(&(node(a), node(b)));
                self.cut.remove(&(node(b), node(a)));
            }
            ["hold", a, b] => {
                self.held.insert((node(a), node(b)));
            }
            ["release", a, b] => {
                self.held.remove(&(node(a), node(b)));
            }
            // One letter of those that are held.
            ["pass", a, b] => self.passing = Some((node(a), node(b))),
            // A process stands still: it is not woken until it goes on.
            ["stop", n] => {
                self.stopped.insert(node(n));
            }
            ["continue", n] => {
                self.stopped.remove(&node(n));
            }
            ["store", what] => match *what {
                "up" => self.store_up = true,
                "down" => self.store_up = false,
                "loses-next-answer" => self.mishap = Mishap::LosesAnswer,
                "fails-after-next-put" => self.mishap = Mishap::FailsAfterPut,
                "fails-at-next-put" => self.mishap = Mishap::FailsAtPut,
                _ => panic!("unknown: {words:?}"),
            },
            _ => panic!("unknown command: {words:?}"),
        }
    }

    /// An administrator chooses this copy (T11).
    fn force(&mut self, name: &NodeId) {
        let (record, revision) = self.record.clone().expect("a record");
        let n = self.nodes.get(name).expect("a node");
        let status = n.replica.as_ref().expect("its replica runs").status();
        let replica = n.disk.as_ref().expect("a copy").0;
        let (lineage, promised) = (status.lineage, status.promised);
        let chosen = Chosen { replica, lineage, promised, r#gen: status.r#gen };
        let lineage = Lineage(Uuid::from_u128(0xf2 + (u128::from(self.next_id()) << 32)));
        let next = record.force(chosen, lineage, Uuid::from_u128(3)).expect("a valid record");
        self.say(format!("record: {}", words::record(&next)));
        self.record = Some((next, Revision(revision.0 + 1)));
    }

    /// Takes an image of a copy, or of the record store.
    fn keep(&mut self, what: &str) {
        if what == "store" {
            return self.kept_record = self.record.clone();
        }
        let n = self.nodes.get_mut(&node(what)).expect("a node");
        n.kept = n.disk.clone();
    }

    fn put_back(&mut self, what: &str) {
        if what == "store" {
            return self.record = self.kept_record.clone();
        }
        let n = self.nodes.get_mut(&node(what)).expect("a node");
        n.disk = n.kept.clone();
    }

    fn say(&mut self, what: String) {
        self.said.push(what);
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// `create n1 n2 … repl=R min=M`
    fn create(&mut self, words: &[&str]) {
        self.store_up = true;
        let value = |key: &str| {
            let found = words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
            found.map(|v| v.parse::<u8>().expect("a number"))
        };
        let names: Vec<&&str> = words.iter().filter(|w| !w.contains('=')).collect();
        let mut replicas = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let rid = ReplicaId(Uuid::from_u128(0x10 + i as u128));
            replicas.push((rid, node(name), "default".into()));
            self.nodes.insert(node(name), Node::default());
            self.place(&node(name), rid);
        }
        let new = NewVolume {
            uid: VOLUME,
            lineage: LINEAGE,
            blocks: words::USUAL_BLOCKS,
            repl: value("repl").unwrap_or(3),
            min_in_sync: value("min").unwrap_or(1),
            replicas,
        };
        let record = Record::create(new, Uuid::from_u128(1)).expect("a valid volume");
        self.say(format!("record: {}", words::record(&record)));
        self.record = Some((record, Revision(1)));
    }

    fn place(&mut self, name: &NodeId, rid: ReplicaId) {
        let blocks = self.record.as_ref().map_or(words::USUAL_BLOCKS, |(record, _)| record.blocks);
        let n = self.nodes.entry(name.clone()).or_default();
        n.disk = Some((rid, Twin::new(blocks)));
        self.start(name);
    }

    fn start(&mut self, name: &NodeId) {
        let n = self.nodes.get_mut(name).expect("a node");
        n.incarnations += 1;
        let (rid, twin) = n.disk.as_mut().expect("a copy");
        let incarnation = Incarnation(n.incarnations);
        let lineage = twin.lineage().unwrap_or(LINEAGE);
        let identity = Identity { volume: VOLUME, replica: *rid, lineage, incarnation };
        n.replica = Some(Replica::open(identity, twin.reopen(), self.planted).with_pulls());
    }

    fn claim(&mut self, name: &NodeId) {
        self.nodes.entry(name.clone()).or_default().primary = None;
        self.drop_links(|link| link.from == *name && !link.fetches);
        let instance = InstanceId(Uuid::from_u128(u128::from(self.next_id()) << 64));
        let params = Params { volume: VOLUME, node: name.clone(), instance, planted: self.planted };
        self.nodes.get_mut(name).expect("a node").primary = Some(Primary::new(params));
        self.tell(name, primary::Event::Wake);
    }

    fn guest(&mut self, name: &NodeId, op: GuestOp) {
        let request = RequestId(self.next_id());
        self.say(format!("{name} guest #{request} asks"));
        self.tell(name, primary::Event::Guest { request, op });
    }

    fn ask(&mut self, name: &NodeId, task: primary::Task) {
        let request = RequestId(self.next_id());
        self.say(format!("{name} task #{request} is asked for"));
        self.tell(name, primary::Event::Task { request, task });
    }

    /// The data that a primary sends because of a guest's request, instead of sending it.
    #[allow(dead_code, reason = "scenes are told in words; only the pitfalls look at data")]
    pub(crate) fn payloads_of(&mut self, name: &str, op: GuestOp) -> Vec<Payload> {
        let request = RequestId(self.next_id());
        let host = self.nodes.get_mut(&node(name)).expect("a node");
        let mut out = Vec::new();
        let primary = host.primary.as_mut().expect("a primary");
        primary.step(self.now, primary::Event::Guest { request, op }, &mut out);
        let payload = |effect| match effect {
            primary::Effect::Send { message, .. } => match message.body {
                Request::Write { payload, .. } => Some(payload),
                _ => None,
            },
            _ => None,
        };
        out.into_iter().filter_map(payload).collect()
    }

    fn add(&mut self, name: &NodeId) {
        let rid = ReplicaId(Uuid::from_u128(0x100 + u128::from(self.next_id())));
        self.place(name, rid);
        let txn = Uuid::from_u128(2);
        let add = |r: &Record| r.add_new(rid, name.clone(), "default".into(), txn);
        self.change_record(|r| add(r).expect("a valid record"));
    }

    /// What a controller does to the record; primaries are told.
    fn change_record(&mut self, change: impl FnOnce(&Record) -> Record) {
        let (record, revision) = self.record.clone().expect("a record");
        self.record = Some((change(&record), Revision(revision.0 + 1)));
        let hosts: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, n)| n.primary.is_some())
            .map(|(k, _)| k.clone())
            .collect();
        for host in hosts {
            self.tell(&host, primary::Event::RecordChanged);
        }
    }

    fn kill(&mut self, name: &NodeId) {
        let n = self.nodes.get_mut(name).expect("a node");
        n.replica = None;
        n.primary = None;
        n.wanted.clear();
        self.drop_links(|link| link.from == *name || link.to == *name);
    }

    /// Its processes end, and its copy loses what was not flushed.
    fn cut_power(&mut self, name: &NodeId) {
        self.kill(name);
        let n = self.nodes.get_mut(name).expect("a node");
        n.disk.iter_mut().for_each(|(_, twin)| twin.lose_power());
    }

    fn cut(&mut self, a: &NodeId, b: &NodeId) {
        self.cut.insert((a.clone(), b.clone()));
        self.cut.insert((b.clone(), a.clone()));
        let (a, b) = (a.clone(), b.clone());
        self.drop_links(|l| (l.from == a && l.to == b) || (l.from == b && l.to == a));
    }

    fn drop_links(&mut self, which: impl Fn(&Link) -> bool) {
        let gone: Vec<Conn> =
            self.links.iter().filter(|(_, l)| which(l)).map(|(c, _)| *c).collect();
        for conn in gone {
            let Some(link) = self.links.remove(&conn) else { continue };
            self.say(format!("{}-{} disconnected", link.from, link.to));
            if link.fetches {
                self.fetches_lost(conn);
            } else {
                self.tell(&link.from, primary::Event::Disconnected(conn));
            }
            self.tell_replica(&link.to, replica::Event::Disconnected(conn));
        }
    }

    /// Lets time pass, waking whoever asked to be woken.
    fn advance(&mut self, ms: u64) {
        let end = self.now.plus_ms(ms);
        loop {
            let awake = self.nodes.iter().filter(|(name, _)| !self.stopped.contains(*name));
            let due = awake.filter_map(|(name, n)| {
                let (at, reason) = n.primary.as_ref()?.deadline()?;
                Some((at.max(self.now), name.clone(), reason))
            });
            let due = due.min_by_key(|(at, ..)| *at);
            if let Some(at) = self
                .fetches
                .due()
                .filter(|at| *at <= end && due.as_ref().is_none_or(|(wake, ..)| at <= wake))
            {
                self.now = at;
                self.fetches_over();
                self.run();
                continue;
            }
            let Some((at, name, reason)) = due else { break };
            if at > end {
                break;
            }
            self.now = at;
            self.say(format!("{} ms: {name} wakes: {reason:?}", at.0 / 1000));
            self.tell(&name, primary::Event::Wake);
            self.run();
        }
        self.now = end;
    }

    fn show(&mut self) {
        let (record, _) = self.record.clone().expect("a record");
        self.say(format!("record: {}", words::record(&record)));
        let mut lines = Vec::new();
        for (name, n) in &self.nodes {
            if let Some(phase) = n.primary.as_ref().map(|p| p.status().phase) {
                lines.push(format!("{name} primary {phase:?}"));
            }
            if let Some((_, twin)) = &n.disk {
                let content: Vec<String> =
                    twin.content().iter().map(|(b, c)| format!("{b}={}", *c as char)).collect();
                let role = n.replica.as_ref().map(|r| r.status());
                let ring = role.map_or("down".into(), |s| format!("ring={}", s.ring));
                let logged = twin.logged();
                lines.push(format!("{name} copy {ring} log={logged} {}", content.join(" ")));
                lines.extend(twin.kept().map(|kept| format!("{name} snapshot {kept}")));
            }
        }
        self.said.extend(lines);
    }

    fn tell(&mut self, name: &NodeId, event: primary::Event) {
        let mut out = Vec::new();
        let Some(n) = self.nodes.get_mut(name) else { return };
        let Some(primary) = n.primary.as_mut() else { return };
        primary.step(self.now, event, &mut out);
        primary.check();
        for effect in out {
            self.primary_effect(name, effect);
        }
    }

    fn primary_effect(&mut self, name: &NodeId, effect: primary::Effect) {
        match effect {
            primary::Effect::Connect(to) => {
                self.nodes.get_mut(name).expect("a node").wanted.insert(to);
            }
            primary::Effect::Disconnect(to) => {
                self.nodes.get_mut(name).expect("a node").wanted.remove(&to);
            }
            primary::Effect::Reset(conn) => {
                if let Some(link) = self.links.remove(&conn) {
                    self.say(format!("{}-{} reset", link.from, link.to));
                    self.tell_replica(&link.to, replica::Event::Disconnected(conn));
                }
            }
            primary::Effect::Send { conn, message } => {
                if let Some(link) = self.links.get_mut(&conn) {
                    link.letters.push_back(Letter::Request(message));
                }
            }
            primary::Effect::Meta { token, op } => {
                let result = self.ask_store(name, op);
                self.events.push_back((name.clone(), primary::Event::Meta { token, result }));
            }
            primary::Effect::Reply { request, result } => {
                let what = match result {
                    Ok(GuestReply::Done) => "done".into(),
                    Ok(GuestReply::Data(data)) => {
                        let letter = |c: &[u8]| if c[0] == 0 { '.' } else { c[0] as char };
                        data.iter().flat_map(|d| d.chunks(4096)).map(letter).collect::<String>()
                    }
                    Err(error) => format!("{error:?}"),
                };
                self.say(format!("{name} guest #{request}: {what}"));
            }
            primary::Effect::Task { request, result } => {
                self.say(format!("{name} task #{request}: {}", words::task(&result)));
            }
            primary::Effect::Phase(phase) => self.on_phase(name, phase),
            primary::Effect::Notice(notice) => self.say(format!("{name} notes {notice:?}")),
        }
    }

    fn on_phase(&mut self, name: &NodeId, phase: Phase) {
        let node = self.nodes.get(name).and_then(|n| n.primary.as_ref());
        let why = node.and_then(|p| p.status().stopped);
        let why = why.map_or(String::new(), |why| format!(": {why:?}"));
        self.say(format!("{name} is {phase:?}{why}"));
    }

    fn tell_replica(&mut self, name: &NodeId, event: replica::Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (mut out, mut asked) = (Vec::new(), Vec::new());
            let Some(n) = self.nodes.get_mut(name) else { return };
            let (Some(machine), Some((_, twin))) = (n.replica.as_mut(), n.disk.as_mut()) else {
                return;
            };
            machine.step(self.now, event, &mut out);
            machine.check();
            for effect in out {
                match effect {
                    replica::Effect::Store { token, op } => {
                        let result = twin.run(op);
                        events.push_back(replica::Event::Stored { token, result });
                    }
                    replica::Effect::Note(note) => twin.note(note),
                    replica::Effect::Fetch { token, node, message } => {
                        asked.push((token, node, message));
                    }
                    // Its replicas are not counted.
                    replica::Effect::Entry(_) => {}
                    replica::Effect::Send { conn, mut message } => {
                        if let Reply::Promised(promised) = &mut message.body {
                            promised.blocks.take_if(|_| self.old.contains(name));
                        }
                        if let Some(link) = self.links.get_mut(&conn) {
                            link.replies.push_back(Letter::Reply(message));
                        }
                    }
                }
            }
            for (token, node, message) in asked {
                self.fetch(name, token, node, message);
            }
        }
    }

    /// Connects and delivers until nothing moves.
    fn run(&mut self) {
        while self.tell_one() || self.connect_one() || self.deliver_one() {}
    }

    fn tell_one(&mut self) -> bool {
        let next = self.events.pop_front();
        if let Some((name, event)) = next {
            self.tell(&name, event);
            return true;
        }
        false
    }

    fn connect_one(&mut self) -> bool {
        let linked = |from: &NodeId, to: &NodeId| {
            self.links.values().any(|l| !l.fetches && l.from == *from && l.to == *to)
        };
        let up = |to: &NodeId| self.nodes.get(to).is_some_and(|n| n.replica.is_some());
        let open = |from: &NodeId, to: &NodeId| !self.cut.contains(&(from.clone(), to.clone()));
        let wish = self.nodes.iter().find_map(|(from, n)| {
            let to = n.wanted.iter().find(|to| !linked(from, to) && up(to) && open(from, to))?;
            Some((from.clone(), to.clone()))
        });
        let Some((from, to)) = wish else { return false };
        let conn = Conn(self.next_id());
        let link = Link {
            from: from.clone(),
            to: to.clone(),
            fetches: false,
            letters: VecDeque::new(),
            replies: VecDeque::new(),
        };
        self.links.insert(conn, link);
        self.tell(&from, primary::Event::Connected { node: to, conn });
        true
    }

    fn deliver_one(&mut self) -> bool {
        let held = |a: &NodeId, b: &NodeId| {
            let way = (a.clone(), b.clone());
            self.held.contains(&way) && self.passing.as_ref() != Some(&way)
        };
        let ready = self.links.iter().find_map(|(conn, l)| {
            let forth = !l.letters.is_empty() && !held(&l.from, &l.to);
            let back = !l.replies.is_empty() && !held(&l.to, &l.from);
            (forth || back).then_some((*conn, forth))
        });
        let Some((conn, forth)) = ready else { return false };
        let Some(link) = self.links.get_mut(&conn) else { return false };
        let (from, to, fetches) = (link.from.clone(), link.to.clone(), link.fetches);
        let way = if forth { (from.clone(), to.clone()) } else { (to.clone(), from.clone()) };
        self.passing.take_if(|passing| *passing == way);
        let letter = if forth { link.letters.pop_front() } else { link.replies.pop_front() };
        match letter {
            Some(Letter::Request(message)) => {
                self.say(format!("{from} > {to}  {}", words::request(&message)));
                self.tell_replica(&to, replica::Event::Request { conn, message });
            }
            Some(Letter::Reply(message)) => {
                self.say(format!("{from} < {to}  {}", words::reply(&message)));
                if fetches {
                    self.fetched(message);
                } else {
                    self.tell(&from, primary::Event::Reply { conn, message });
                }
            }
            None => return false,
        }
        true
    }
}
