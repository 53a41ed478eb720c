//! The task of one primary: feeds it guests, replicas and the record store with each other's
//! wishes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_core::guest::{GuestError, GuestOp, GuestReply};
use lockstep_core::id::{Conn, InstanceId, NodeId, ReplicaId, RequestId, Tick, Token, VolumeId};
use lockstep_core::message::{Message, Reply};
use lockstep_core::primary::{
    self, Effect, Event, MetaOp, MetaResult, Notice, Phase, Primary, Task, TaskDone, TaskError,
};
use lockstep_core::range::BLOCK_SIZE;
use lockstep_meta::Meta;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::alarm::Alarm;
use super::path::{Local, RequestPath};
use super::records;
use super::replicas::Replicas;
use super::slots::{Asking, NodeSlots};
use super::waits;
use crate::net::{Connection, Net, Peers, Subscriber, User};

/// Inputs handled before their effects are carried out.
const BATCH: usize = 64;
/// Pause before a broken connection to the replica on this node is made anew.
const LOCAL_PAUSE: Duration = Duration::from_millis(50);

/// A guest's answer.
pub(crate) type GuestResult = Result<GuestReply, GuestError>;

/// What came of a task.
pub(crate) type TaskResult = Result<TaskDone, TaskError>;

/// A guest's request on its way through the primary.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) op: GuestOp,
    pub(crate) reply: oneshot::Sender<GuestResult>,
    /// What the request takes of the volume's limits, given back with the answer.
    pub(crate) permits: [OwnedSemaphorePermit; 2],
}

/// What happens to a primary's task.
#[derive(Debug)]
pub(crate) enum Input {
    /// A connection to a node is up.
    Connected(Arc<Connection>),
    /// It is gone.
    Disconnected(Conn),
    /// A replica answered.
    Reply { conn: Conn, message: Message<Reply> },
    /// The connection to the replica on this node was broken.
    LocalGone(Conn),
    /// It is time to make it anew.
    LocalAgain,
    /// A guest's request.
    Guest(Guest),
    /// The record store answered.
    Meta { token: Token, result: MetaResult },
    /// Somebody changed the record.
    RecordChanged,
    /// A healthy member is to leave.
    Release(ReplicaId),
    /// Every block of every member is to be read, and what is bad mended.
    Scrub,
    /// Something is asked of the volume as a whole.
    Task { task: Task, reply: oneshot::Sender<TaskResult> },
    /// Detach in good order.
    Close,
    /// Somebody wants to know how it is.
    Status(oneshot::Sender<primary::Status>),
    /// End at once; answered when nothing will be sent any more.
    Abort(oneshot::Sender<()>),
}

/// What a primary's task is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) volume: VolumeId,
    pub(super) instance: InstanceId,
    pub(super) net: Arc<Net>,
    pub(super) peers: Arc<Peers>,
    pub(super) replicas: Arc<Replicas>,
    pub(super) meta: Arc<dyn Meta>,
    pub(super) slots: Arc<NodeSlots>,
    pub(super) phase: watch::Sender<Phase>,
    /// Size of the volume, once known.
    pub(super) size_bytes: Arc<AtomicU64>,
}

/// Passes on what the net has for a primary.
#[derive(Debug)]
struct Inbox(mpsc::UnboundedSender<Input>);

// A primary that has ended needs no news: errors of sending are ignored.
impl Subscriber for Inbox {
    fn connected(&self, conn: &Arc<Connection>) {
        let _ = self.0.send(Input::Connected(Arc::clone(conn)));
    }

    fn disconnected(&self, conn: Conn) {
        let _ = self.0.send(Input::Disconnected(conn));
    }

    fn reply(&self, conn: Conn, message: Message<Reply>) {
        let _ = self.0.send(Input::Reply { conn, message });
    }
}

/// A running primary.
#[derive(Debug)]
pub(super) struct Driver {
    parts: Parts,
    core: Primary,
    own: mpsc::UnboundedSender<Input>,
    /// Connections that are up.
    paths: BTreeMap<Conn, RequestPath>,
    /// Nodes that the core wants to be connected to, this one excepted.
    wanted: BTreeSet<NodeId>,
    /// Does the core want the replica on this node?
    wants_local: bool,
    guests: BTreeMap<RequestId, Waiting>,
    /// Requests that the core has no room for yet.
    parked: VecDeque<Guest>,
    /// Who waits for a task.
    tasks: BTreeMap<RequestId, oneshot::Sender<TaskResult>>,
    next_request: u64,
    effects: Vec<Effect>,
    /// Was something sent that has not left yet?
    unsent: bool,
    /// What was asked of the node's slots for resyncs.
    asking: Asking,
    /// Did it let go of its slots?
    has_left: bool,
}

/// Somebody who waits for an answer.
#[derive(Debug)]
struct Waiting {
    reply: oneshot::Sender<GuestResult>,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Driver {
    /// `own` is the sending end of the channel that [`Driver::run`] is given.
    pub(super) fn new(parts: Parts, own: mpsc::UnboundedSender<Input>) -> Self {
        let core = Primary::new(primary::Params {
            volume: parts.volume,
            node: parts.net.node.clone(),
            instance: parts.instance,
            planted: lockstep_core::planted::Planted::NONE,
        })
        .with_slots();
        Self {
            parts,
            core,
            own,
            paths: BTreeMap::new(),
            wanted: BTreeSet::new(),
            wants_local: false,
            guests: BTreeMap::new(),
            parked: VecDeque::new(),
            tasks: BTreeMap::new(),
            next_request: 1,
            effects: Vec::new(),
            unsent: false,
            asking: Asking::default(),
            has_left: false,
        }
    }

    /// Runs until told to end. A primary that is closed or fenced stays to tell so.
    pub(super) async fn run(mut self, mut inputs: mpsc::UnboundedReceiver<Input>) {
        let clock = self.parts.net.clock;
        let mut alarm = Alarm::new(clock);
        let mut batch = Vec::with_capacity(BATCH);
        self.step(clock.now(), Event::Wake);
        loop {
            let due = self.core.deadline().map(|(at, _)| at);
            alarm.set(due.into_iter().chain(self.asking.due()).min());
            tokio::select! {
                biased;
                _ = inputs.recv_many(&mut batch, BATCH) => {
                    let now = clock.now();
                    for input in batch.drain(..) {
                        if let Input::Abort(done) = input {
                            drop(self);
                            // Whoever asked may have gone.
                            let _ = done.send(());
                            return;
                        }
                        self.on_input(now, input);
                    }
                    self.unpark(now);
                    if alarm.take_due(now) {
                        self.step(now, Event::Wake);
                    }
                }
                () = alarm.ring() => self.step(clock.now(), Event::Wake),
            }
            self.ask_for_slot(clock.now());
            self.flush();
        }
    }

    /// A resync starts when this node has a slot for it.
    fn ask_for_slot(&mut self, now: Tick) {
        if self.has_left {
            return;
        }
        let (volume, wish) = (self.parts.volume, self.core.slot_wish());
        if self.asking.tell(&self.parts.slots, now, volume, wish) {
            self.step(now, Event::ResyncSlot);
        }
    }

    fn on_input(&mut self, now: Tick, input: Input) {
        match input {
            Input::Connected(conn) => {
                if self.wanted.contains(conn.peer()) {
                    let node = conn.peer().clone();
                    self.go_up(now, node, RequestPath::Remote(conn));
                }
            }
            Input::Disconnected(conn) => self.go_down(now, conn),
            Input::Reply { conn, message } => {
                if self.paths.contains_key(&conn) {
                    self.step(now, Event::Reply { conn, message });
                }
            }
            Input::LocalGone(conn) => {
                if self.paths.contains_key(&conn) {
                    self.parts.replicas.disconnected(conn);
                    self.go_down(now, conn);
                    self.local_later();
                }
            }
            Input::LocalAgain => self.local_up(now),
            Input::Guest(guest) => self.on_guest(now, guest),
            Input::Meta { token, result } => self.step(now, Event::Meta { token, result }),
            Input::RecordChanged => self.step(now, Event::RecordChanged),
            Input::Release(rid) => self.step(now, Event::Release(rid)),
            Input::Scrub => self.step(now, Event::Scrub),
            Input::Task { task, reply } => {
                let request = RequestId(self.next_request);
                self.next_request += 1;
                self.tasks.insert(request, reply);
                self.step(now, Event::Task { request, task });
            }
            Input::Close => self.step(now, Event::Close),
            Input::Status(asker) => {
                // An asker that is gone needs no answer.
                let _ = asker.send(self.core.status());
            }
            // Handled by the loop.
            Input::Abort(_) => {}
        }
    }

    fn step(&mut self, now: Tick, event: Event) {
        self.core.step(now, event, &mut self.effects);
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        // Keeps the memory for the next step.
        self.effects = effects;
    }

    /// Lets everything leave that was sent: once per batch, so that it shares system calls.
    fn flush(&mut self) {
        if std::mem::take(&mut self.unsent) {
            self.paths.values().for_each(RequestPath::flush);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message } => {
                if let Some(path) = self.paths.get(&conn) {
                    path.send(message, &self.parts.replicas);
                    self.unsent = true;
                }
            }
            Effect::Reply { request, result } => {
                if let Some(waiting) = self.guests.remove(&request) {
                    // A guest that is gone needs no answer.
                    let _ = waiting.reply.send(result);
                }
            }
            Effect::Task { request, result } => self.on_task(request, result),
            Effect::Connect(node) => self.connect(&node),
            Effect::Disconnect(node) => self.disconnect(&node),
            Effect::Reset(conn) => {
                if let Some(path) = self.paths.get(&conn) {
                    path.reset();
                }
            }
            Effect::Meta { token, op } => self.ask(token, op),
            Effect::Phase(phase) => self.on_phase(phase),
            Effect::Notice(notice) => self.on_notice(notice),
        }
    }

    fn on_task(&mut self, request: RequestId, result: TaskResult) {
        if let Ok(TaskDone::Resized { blocks }) = &result {
            let bytes = blocks.saturating_mul(u64::from(BLOCK_SIZE));
            self.parts.size_bytes.store(bytes, Ordering::Relaxed);
        }
        if let Some(reply) = self.tasks.remove(&request) {
            // Whoever asked may have gone.
            let _ = reply.send(result);
        }
    }

    fn on_phase(&mut self, phase: Phase) {
        let status = self.core.status();
        let (volume, epoch) = (self.parts.volume, status.epoch);
        tracing::info!(%volume, %epoch, ?phase, "primary");
        if let Some(record) = &status.record {
            let bytes = record.blocks.saturating_mul(u64::from(BLOCK_SIZE));
            self.parts.size_bytes.store(bytes, Ordering::Relaxed);
        }
        // Before anybody learns that it is over and claims the volume again.
        if matches!(phase, Phase::Closed | Phase::Fenced) {
            self.leave();
        }
        self.parts.phase.send_replace(phase);
    }

    fn on_notice(&self, notice: Notice) {
        let volume = self.parts.volume;
        match notice {
            Notice::Mended { replica, block } => {
                tracing::warn!(%volume, %replica, block, "bad block rewritten: watch that disk");
            }
            Notice::Unreadable { block } => tracing::error!(
                %volume,
                block,
                "no copy can give this block: reads of it fail until it is written again"
            ),
            Notice::Torn { replica, blocks } => tracing::warn!(
                %volume,
                %replica,
                blocks,
                "after a power cut of all copies, blocks that may be half written on this one \
                 were taken from another"
            ),
            Notice::Diverged { block } => tracing::error!(
                %volume,
                block,
                "copies differ in this block although each has the right checksum: \
                 please report this"
            ),
            Notice::ResyncStalled { replica } => tracing::error!(
                %volume,
                %replica,
                "bringing this copy up to date got no further for a minute and begins anew: see \
                 that the disks and the network of its node answer"
            ),
            Notice::Unfit { replica, why } => tracing::error!(
                %volume,
                %replica,
                "this copy is left out for a while, since {}: look at that disk",
                waits::unfit(why)
            ),
            Notice::ResyncLags { replica } => tracing::warn!(
                %volume,
                %replica,
                "this copy can't keep up with the volume's writes while it is brought up to date; \
                 it is tried again after a pause"
            ),
        }
    }

    fn on_guest(&mut self, now: Tick, guest: Guest) {
        if self.parked.is_empty() && self.core.has_room() {
            self.submit(now, guest);
        } else {
            self.parked.push_back(guest);
        }
    }

    fn unpark(&mut self, now: Tick) {
        while self.core.has_room()
            && let Some(guest) = self.parked.pop_front()
        {
            self.submit(now, guest);
        }
    }

    fn submit(&mut self, now: Tick, guest: Guest) {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        let Guest { op, reply, permits } = guest;
        self.guests.insert(request, Waiting { reply, _permits: permits });
        self.step(now, Event::Guest { request, op });
    }

    fn connect(&mut self, node: &NodeId) {
        if *node == self.parts.net.node {
            self.wants_local = true;
            // Not here: the core is amidst its effects.
            let _ = self.own.send(Input::LocalAgain);
        } else if self.wanted.insert(node.clone()) {
            let inbox = Arc::new(Inbox(self.own.clone()));
            self.parts.peers.connect(node, User::Primary(self.parts.volume), inbox);
        }
    }

    fn disconnect(&mut self, node: &NodeId) {
        if *node == self.parts.net.node {
            self.wants_local = false;
            self.local_down();
        } else if self.wanted.remove(node) {
            self.parts.peers.disconnect(node, User::Primary(self.parts.volume));
        }
        let of_node = |path: &RequestPath| match path {
            RequestPath::Remote(conn) => conn.peer() == node,
            RequestPath::Local(local) => local.node == *node,
        };
        let gone: Vec<Conn> =
            self.paths.iter().filter(|(_, p)| of_node(p)).map(|(id, _)| *id).collect();
        for conn in gone {
            self.paths.remove(&conn);
            // The subscription is over, so nobody else tells.
            let _ = self.own.send(Input::Disconnected(conn));
        }
    }

    fn go_up(&mut self, now: Tick, node: NodeId, path: RequestPath) {
        let conn = path.id();
        self.paths.insert(conn, path);
        self.step(now, Event::Connected { node, conn });
    }

    fn go_down(&mut self, now: Tick, conn: Conn) {
        self.paths.remove(&conn);
        self.step(now, Event::Disconnected(conn));
    }

    /// Connects to the replica on this node.
    fn local_up(&mut self, now: Tick) {
        let is_up = self.paths.values().any(|p| matches!(p, RequestPath::Local(_)));
        if !self.wants_local || is_up {
            return;
        }
        let (id, node) = (self.parts.net.next_conn(), self.parts.net.node.clone());
        let local = Local { id, node: node.clone(), primary: self.own.clone() };
        self.go_up(now, node, RequestPath::Local(Arc::new(local)));
    }

    fn local_later(&self) {
        let own = self.own.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LOCAL_PAUSE).await;
            let _ = own.send(Input::LocalAgain);
        });
    }

    /// Tells the replica on this node that this primary is gone.
    fn local_down(&self) {
        for path in self.paths.values() {
            if let RequestPath::Local(local) = path {
                self.parts.replicas.disconnected(local.id);
            }
        }
    }

    fn ask(&self, token: Token, op: MetaOp) {
        let (own, meta, volume) = (self.own.clone(), self.parts.meta.clone(), self.parts.volume);
        tokio::spawn(async move {
            let result = records::ask(meta, volume, op).await;
            let _ = own.send(Input::Meta { token, result });
        });
    }

    /// Lets go of every connection: nothing more will be sent.
    fn leave(&mut self) {
        for node in std::mem::take(&mut self.wanted) {
            self.parts.peers.disconnect(&node, User::Primary(self.parts.volume));
        }
        self.wants_local = false;
        // Once: by the second time they may be its successor's on this node.
        if !std::mem::replace(&mut self.has_left, true) {
            self.parts.slots.leave(self.parts.volume);
        }
        self.local_down();
        self.paths.clear();
    }
}

/// However the task ends: nobody keeps a connection for it, and the replica on this node knows.
/// Guests that wait learn it from their channels.
impl Drop for Driver {
    fn drop(&mut self) {
        self.leave();
        tracing::info!(volume = %self.parts.volume, "primary ended");
    }
}
