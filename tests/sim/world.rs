//! The world: nodes, network, disks, record store and guests of one seed, and what happens to them.

mod chaos;
mod checks;
mod controller;
mod errands;
mod fetch;
mod gaps;
mod heal;
mod host;
mod keeper;
mod operator;
mod records;
mod rot;
mod ruin;
mod seat;
mod slots;
mod story;
mod strangers;
mod tasks;
mod torn;
mod transport;
mod twice;
mod wild;

use lockstep_core::cluster::trim::Wanted;
use lockstep_core::guest::GuestError;
use lockstep_core::id::{Lineage, NodeId, ReplicaId, RequestId, Seq, SnapshotId, Token, VolumeId};
use lockstep_core::planted::Planted;
use lockstep_core::record::{NewVolume, Record};
use lockstep_core::{primary, replica};
use lockstep_store::DiskOpId;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use uuid::Uuid;

use crate::cluster::{Cluster, POOL};
use crate::content::Value;
use crate::fault::Fault;
use crate::meta::Meta;
use crate::net::{Net, Wire};
use crate::node::{Copy, Node};
use crate::oracle::Oracle;
use crate::plan::{Options, Plan};
use crate::report::{Outcome, Violation};
use crate::rng::Rng;
use crate::schedule::Schedule;

pub use heal::Stage;
use operator::Crisis;
use records::Put;
pub(crate) use strangers::Mistake;

/// Microseconds in a millisecond.
pub(crate) const MS: u64 = 1000;
/// A world that has handled so many events is stuck in a loop.
const MAX_STEPS: u64 = 5_000_000;

/// Whom an ambush is meant for: a primary's node, and the node it talks to.
pub(crate) type Aim = (usize, usize);

/// Takes the story of a world, line by line.
pub type Sink = Box<dyn FnMut(&str)>;

/// What happens to the world.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something arrives at an end of a connection.
    Arrive(Wire, usize),
    /// One end of a connection is closed.
    GiveUp(Wire, usize),
    /// A link's deadline.
    LinkWake(Wire, usize),
    /// A primary tries again to reach a node.
    Redial { node: usize, seat: u64, to: usize },
    /// A disk operation is done.
    DiskDone { node: usize, open: u64, op: DiskOpId },
    /// A store's deadline.
    StoreWake { node: usize, open: u64 },
    /// A replica learns something.
    Replica { node: usize, open: u64, event: Box<replica::Event> },
    /// A faulted copy is opened again.
    Reopen { node: usize, open: u64 },
    /// A copy that could not be opened is tried again, by this process.
    OpenAgain { node: usize, process: u64, lost_cache: bool },
    /// The time for what a copy asked another node is over.
    FetchOver { node: usize, seq: Seq, to: usize },
    /// A primary's deadline.
    PrimaryWake { node: usize, seat: u64 },
    /// A primary learns something.
    Primary { node: usize, seat: u64, event: Box<primary::Event> },
    /// The record store answers a primary.
    MetaAnswer { node: usize, seat: u64, token: Token, result: Box<primary::MetaResult> },
    /// A question reaches the record store.
    MetaArrive { node: usize, seat: u64, token: Token, op: Box<primary::MetaOp> },
    /// A put that was given up is applied all the same.
    MetaLate(Box<Put>),
    /// A guest may ask something.
    GuestTurn { node: usize, seat: u64 },
    /// Nothing passes from one node to another for a while.
    Cut { from: usize, to: usize, until: u64 },
    /// A copy without files may be replaced.
    Replace { node: usize, rid: ReplicaId },
    /// The controllers of a primary's node look at its copies.
    Keep { node: usize, seat: u64 },
    /// They go on with what they were doing.
    Errand(Box<errands::Errand>),
    /// A resync asks again for a slot of its node.
    AskForSlot { node: usize, seat: u64 },
    /// A resync of another volume goes on.
    Rival(slots::Rival),
    /// A node removes what is to go.
    KeepHouse(usize),
    /// The operator looks at what is broken.
    Operate,
    /// A fault is due.
    Planned(Fault),
    /// A fault strikes at a delicate moment.
    Ambush(Fault, Option<Aim>),
    /// A process starts.
    Boot(usize),
    /// Somebody looks whether the volume is served.
    Supervise,
    /// The checkers that look at everything have a look.
    Look,
    /// The faults end.
    Heal,
    /// The end phase goes on.
    Stage,
}

/// One seed's world.
pub struct World {
    pub(crate) schedule: Schedule<Event>,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) planted: Planted,
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Net,
    pub(crate) meta: Meta,
    pub(crate) oracle: Oracle,
    pub(crate) cluster: Cluster,
    pub(crate) outcome: Outcome,
    pub(crate) stage: Stage,
    /// When the faults ended.
    pub(crate) healed_at: u64,
    /// Copies that the record named then beyond those that are wanted.
    pub(crate) crowd: u64,
    pub(crate) volume: VolumeId,
    pub(crate) lineage: Lineage,
    pub(crate) cluster_id: Uuid,
    /// Typical pause of a guest between two bursts, microseconds.
    pub(crate) guest_pause: u64,
    /// Guests are quiet before then.
    pub(crate) quiet_until: u64,
    /// When a primary last served.
    pub(crate) served_at: u64,
    /// When damage was last taken back since the only good copy had left.
    pub(crate) spared_at: Option<u64>,
    /// When a copy last lost its files.
    pub(crate) files_lost_at: Option<u64>,
    /// What only the operator can put right.
    pub(crate) crisis: Option<Crisis>,
    /// Since when there is, or was, such a thing.
    pub(crate) crisis_since: u64,
    /// Puts that were asked for and may still be applied.
    pub(crate) puts_under_way: u64,
    /// What was asked of primaries and is not answered.
    pub(crate) tasks: BTreeMap<(u64, RequestId), primary::Task>,
    /// What could be read when the first copy of a snapshot was kept.
    pub(crate) moments: BTreeMap<SnapshotId, BTreeMap<u64, Vec<Value>>>,
    /// The next frame is garbled.
    pub(crate) garbles_next: bool,
    /// The next frame breaks the format.
    pub(crate) mangles_next: bool,
    next_id: u64,
    next_value: u64,
    sink: Option<Sink>,
}

impl World {
    /// The world of these options, telling its story to `sink`.
    #[must_use]
    pub fn new(options: &Options, sink: Option<Sink>) -> Self {
        let mut rng = Rng::new(options.seed);
        let plan = Plan::draw(options, &mut rng);
        let mut nodes: Vec<Node> =
            (1..=plan.nodes).filter_map(|n| NodeId::new(&format!("n{n}"))).map(Node::new).collect();
        let volume = VolumeId(Uuid::from_u128(rng.bits128()));
        let lineage = Lineage(Uuid::from_u128(rng.bits128()));
        let (cluster, hosts) = draw_cluster(&nodes, &plan, &mut rng);
        for node in nodes.iter_mut().filter(|n| hosts.contains(&n.name)) {
            let rid = ReplicaId(Uuid::from_u128(rng.bits128()));
            let disk = host::formatted(rid, volume, lineage, plan.habits.blocks);
            node.copy = Some(Copy::new(rid, disk));
        }
        let record = first_record(&nodes, volume, lineage, &plan, &mut rng);
        let mut world = Self {
            schedule: Schedule::default(),
            plan,
            planted: options.planted,
            nodes,
            net: Net::default(),
            meta: Meta::new(record),
            oracle: Oracle::default(),
            cluster,
            outcome: Outcome::default(),
            stage: Stage::Chaos,
            healed_at: 0,
            crowd: 0,
            volume,
            lineage,
            cluster_id: Uuid::from_u128(rng.bits128()),
            guest_pause: 0,
            quiet_until: 0,
            served_at: 0,
            spared_at: None,
            files_lost_at: None,
            crisis: None,
            crisis_since: 0,
            puts_under_way: 0,
            tasks: BTreeMap::new(),
            moments: BTreeMap::new(),
            garbles_next: false,
            mangles_next: false,
            next_id: 0,
            next_value: 0,
            sink,
            rng,
        };
        world.start();
        world
    }

    fn start(&mut self) {
        self.draw_versions();
        for node in 0..self.nodes.len() {
            self.schedule.after(0, Event::Boot(node));
            if self.cluster.keeping.is_some() {
                self.schedule.after(MS, Event::KeepHouse(node));
            }
        }
        let chaos = self.plan.chaos_ms * MS;
        self.guest_pause = self.plan.habits.pause(chaos);
        self.schedule.after(chaos, Event::Heal);
        self.schedule.after(MS, Event::Supervise);
        self.schedule.after(50 * MS, Event::Look);
        let planned: Vec<Fault> =
            self.plan.swarm.rates().iter().map(|(f, _)| *f).filter(|f| f.is_planned()).collect();
        planned.into_iter().for_each(|fault| self.plan_next(fault));
        let record = self.meta.record();
        let (repl, min) = (record.repl, record.min_in_sync);
        let faults: Vec<&str> = self.plan.swarm.rates().iter().map(|(f, _)| f.name()).collect();
        let profile = self.plan.profile.name();
        let (nodes, blocks) = (self.nodes.len(), self.plan.habits.blocks);
        self.say(|| {
            format!(
                "{profile}: {nodes} nodes, {repl} copies ({min} at least) of {blocks} blocks; \
                 {faults:?}"
            )
        });
    }

    /// Runs the world to its end.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        while self.outcome.violation.is_none() && self.stage != Stage::Done {
            let Some(event) = self.schedule.advance() else {
                self.fail("world", "nothing happens any more".to_owned());
                break;
            };
            self.outcome.steps += 1;
            if self.outcome.steps > MAX_STEPS {
                self.fail("world", "too much happens: somebody is in a loop".to_owned());
            }
            self.dispatch(event);
        }
        self.outcome.virtual_us = self.now();
        self.outcome
    }

    fn dispatch(&mut self, event: Event) {
        if let Some(until) = self.stands_still(&event).or_else(|| self.dawdles(&event)) {
            self.schedule.at(until, event);
            return;
        }
        match event {
            Event::Arrive(wire, side) => self.arrive(wire, side),
            Event::GiveUp(wire, side) => self.give_up(wire, side),
            Event::LinkWake(wire, side) => self.link_wake(wire, side),
            Event::Redial { node, seat, to } => self.redial(node, seat, to),
            Event::DiskDone { node, open, op } => self.disk_done(node, open, op),
            Event::StoreWake { node, open } => self.store_wake(node, open),
            Event::Replica { node, open, event } => self.replica_event(node, open, *event),
            Event::Reopen { node, open } => self.reopen(node, open),
            Event::OpenAgain { node, process, lost_cache } => {
                self.open_again(node, process, lost_cache);
            }
            Event::FetchOver { node, seq, to } => self.fetch_over(node, seq, to),
            Event::PrimaryWake { node, seat } => self.primary_wake(node, seat),
            Event::Primary { node, seat, event } => self.primary_event(node, seat, *event),
            Event::MetaAnswer { node, seat, token, result } => {
                self.meta_answer(node, seat, token, *result);
            }
            Event::MetaArrive { node, seat, token, op } => {
                self.meta_arrive(node, seat, token, *op);
            }
            Event::MetaLate(put) => self.meta_late(*put),
            Event::GuestTurn { node, seat } => self.guest_turn(node, seat),
            Event::Cut { from, to, until } => self.cut(from, to, until),
            Event::Replace { node, rid } => self.replace(node, rid),
            Event::Keep { node, seat } => self.keep(node, seat),
            Event::Errand(errand) => self.errand(*errand),
            Event::AskForSlot { node, seat } => self.ask_for_slot(node, seat),
            Event::Rival(rival) => self.rival(rival),
            Event::KeepHouse(node) => self.keep_house(node),
            Event::Planned(fault) => self.planned(fault),
            Event::Ambush(fault, aim) => self.strike(fault, aim),
            Event::Operate => self.operate(),
            Event::Boot(node) => self.boot(node),
            Event::Supervise => self.supervise(),
            Event::Look => self.look(),
            Event::Heal => self.heal(),
            Event::Stage => self.stage(),
        }
    }

    /// If the event concerns a process that stands still: until when it does.
    fn stands_still(&self, event: &Event) -> Option<u64> {
        let node = match event {
            Event::Arrive(wire, side) | Event::LinkWake(wire, side) => {
                self.net.connections.get(wire)?.ends.get(*side)?.node
            }
            Event::Redial { node, .. }
            | Event::DiskDone { node, .. }
            | Event::StoreWake { node, .. }
            | Event::Replica { node, .. }
            | Event::FetchOver { node, .. }
            | Event::PrimaryWake { node, .. }
            | Event::Primary { node, .. }
            | Event::MetaAnswer { node, .. }
            | Event::GuestTurn { node, .. }
            | Event::AskForSlot { node, .. }
            | Event::Keep { node, .. } => *node,
            Event::Errand(errand) => errand.node,
            Event::GiveUp(..)
            | Event::KeepHouse(_)
            | Event::Rival(_)
            | Event::Reopen { .. }
            | Event::OpenAgain { .. }
            | Event::MetaArrive { .. }
            | Event::MetaLate(_)
            | Event::Cut { .. }
            | Event::Replace { .. }
            | Event::Planned(_)
            | Event::Ambush(..)
            | Event::Operate
            | Event::Boot(_)
            | Event::Supervise
            | Event::Look
            | Event::Heal
            | Event::Stage => return None,
        };
        let until = self.nodes.get(node)?.paused_until;
        (until > self.now()).then_some(until)
    }

    /// The virtual time, microseconds.
    pub(crate) fn now(&self) -> u64 {
        self.schedule.now()
    }

    /// A number that was not used yet.
    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// A write's number that was not used yet.
    pub(crate) fn fresh_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    /// Random, for ids.
    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.rng.bits128())
    }

    /// A fault happened.
    pub(crate) fn count(&mut self, fault: Fault) {
        *self.outcome.faults.entry(fault.name()).or_default() += 1;
    }

    /// A checker found something. The first finding ends the world.
    pub(crate) fn fail(&mut self, checker: &'static str, what: String) {
        self.say(|| format!("VIOLATION ({checker}): {what}"));
        let at_us = self.now();
        self.outcome.violation.get_or_insert(Violation { at_us, checker, what });
    }

    /// As [`Self::fail`], if there is something.
    pub(crate) fn judge(&mut self, checker: &'static str, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(checker, what);
        }
    }

    /// Is somebody listening to the story?
    pub(crate) fn is_telling(&self) -> bool {
        self.sink.is_some()
    }

    /// Tells what happens.
    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        let now = self.now();
        if let Some(sink) = &mut self.sink {
            let mut line = String::new();
            let _ = write!(line, "{:>4}.{:06} {}", now / 1_000_000, now % 1_000_000, what());
            sink(&line);
        }
    }

    /// A node's index by its name.
    pub(crate) fn index_of(&self, name: &NodeId) -> Option<usize> {
        self.nodes.iter().position(|n| n.name == *name)
    }

    /// A request failed.
    pub(crate) fn told_failure(&mut self, node: usize, request: RequestId, error: GuestError) {
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: guest request {request} fails: {error:?}"));
    }
}

/// The cluster, and the nodes on which the volume begins.
fn draw_cluster(nodes: &[Node], plan: &Plan, rng: &mut Rng) -> (Cluster, Vec<NodeId>) {
    let names: Vec<NodeId> = nodes.iter().map(|n| n.name.clone()).collect();
    let repl = u8::try_from(plan.repl).unwrap_or(1);
    let wanted = Wanted { repl, min_in_sync: plan.min_in_sync };
    let mut cluster = Cluster::draw(&names, plan.keeping, wanted, plan.habits.blocks, rng);
    if plan.keeping.is_none() {
        return (cluster, names.into_iter().take(plan.repl).collect());
    }
    let settled = cluster.settle_others(rng);
    let created = settled.and_then(|()| cluster.create(plan.habits.blocks, rng));
    // The caller turns a panic into a finding.
    assert!(created.is_ok(), "{created:?}");
    (cluster, created.unwrap_or_default())
}

fn first_record(
    nodes: &[Node],
    uid: VolumeId,
    lineage: Lineage,
    plan: &Plan,
    rng: &mut Rng,
) -> Record {
    let copies = nodes.iter().filter_map(|n| Some((n.copy.as_ref()?.rid, n.name.clone())));
    let new = NewVolume {
        uid,
        lineage,
        blocks: plan.habits.blocks,
        repl: u8::try_from(plan.repl).unwrap_or(1),
        min_in_sync: plan.min_in_sync,
        replicas: copies.map(|(rid, name)| (rid, name, POOL.to_owned())).collect(),
    };
    let record = Record::create(new, Uuid::from_u128(rng.bits128()));
    assert!(record.is_ok(), "the first record is invalid: {record:?}");
    let Ok(record) = record else { unreachable!("asserted above") };
    record
}
