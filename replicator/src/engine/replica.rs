//! The task of one replica: feeds the replica, its store and the disk with each other's wishes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::id::{Conn, Incarnation, NodeId, Tick, Token, VolumeId};
use lockstep_core::message::{Header, Message, Refusal, Reply, Request};
use lockstep_core::replica::{self, Effect, Event, Replica, Role};
use lockstep_core::slots::Wish;
use lockstep_store::{DiskError, DiskOpId, Store};
use tokio::sync::{mpsc, oneshot};

use super::alarm::Alarm;
use super::fetcher::Fetcher;
use super::path::ReplyPath;
use super::slots::NodeSlots;
use crate::clock::Clock;
use crate::disk::{ReplicaFiles, Threads, class_of};

/// Inputs handled before their effects are carried out.
const BATCH: usize = 64;

/// What happens to a replica's task.
#[derive(Debug)]
pub(super) enum Input {
    /// A request arrived; the answer goes back the same way.
    Request { path: ReplyPath, message: Message<Request> },
    /// A connection is gone.
    Disconnected(Conn),
    /// The disk answered.
    Disk { id: DiskOpId, result: Result<Bytes, DiskError> },
    /// Another node's replica answered, or can't be asked. `by` is the replica that asked, as it
    /// was opened then.
    Fetched { by: Incarnation, token: Token, answer: Option<Message<Reply>> },
    /// Somebody wants to know how it is.
    Status(oneshot::Sender<Snapshot>),
    /// End; answered when no disk operation is under way any more.
    Stop(oneshot::Sender<()>),
}

/// How a replica is.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) core: replica::Status,
    pub(super) activity_log_regions: usize,
    pub(super) lossy: bool,
    pub(super) primary_heard_ms: Option<u64>,
    pub(super) primary_node: Option<NodeId>,
    pub(super) fault: Option<String>,
}

/// What a replica's task is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) volume: VolumeId,
    pub(super) clock: Clock,
    pub(super) incarnation: Incarnation,
    pub(super) replica: Replica,
    pub(super) store: Store,
    pub(super) lossy: bool,
    pub(super) files: Arc<ReplicaFiles>,
    pub(super) threads: Arc<Threads>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) entries: Arc<NodeSlots>,
}

/// Why the task's loop ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was asked to.
    Stopped(oneshot::Sender<()>),
    /// The replica failed and nothing is under way: its files may be opened again.
    Failed,
}

/// A running replica.
#[derive(Debug)]
pub(super) struct Driver {
    parts: Parts,
    own: mpsc::UnboundedSender<Input>,
    /// Every connection that a request came on and that is not known to be gone.
    paths: BTreeMap<Conn, ReplyPath>,
    /// The connection of the newest promise.
    session: Option<Conn>,
    /// The node of the newest promise.
    primary_node: Option<NodeId>,
    /// When that node was last heard, if its connection is lost: that it is lost was only noticed
    /// later.
    heard_before_loss: Option<Tick>,
    effects: Vec<Effect>,
    /// Was something sent that has not left yet?
    unsent: bool,
    disk_ops: usize,
    fault: Option<String>,
    stop: Option<oneshot::Sender<()>>,
}

impl Driver {
    /// `own` is the sending end of the channel that [`Driver::run`] is given.
    pub(super) fn new(parts: Parts, own: mpsc::UnboundedSender<Input>) -> Self {
        Self {
            parts,
            own,
            paths: BTreeMap::new(),
            session: None,
            primary_node: None,
            heard_before_loss: None,
            effects: Vec::new(),
            unsent: false,
            disk_ops: 0,
            fault: None,
            stop: None,
        }
    }

    /// Runs until the replica is stopped or has failed, and its disk is quiet.
    pub(super) async fn run(&mut self, inputs: &mut mpsc::UnboundedReceiver<Input>) -> Outcome {
        let mut alarm = Alarm::new(self.parts.clock);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            if self.disk_ops == 0 {
                if let Some(done) = self.stop.take() {
                    return Outcome::Stopped(done);
                }
                if self.fault.is_some() {
                    return Outcome::Failed;
                }
            }
            alarm.set(self.parts.store.deadline());
            tokio::select! {
                biased;
                _ = inputs.recv_many(&mut batch, BATCH) => {
                    let now = self.parts.clock.now();
                    for input in batch.drain(..) {
                        self.on_input(now, input);
                    }
                    if alarm.take_due(now) {
                        self.parts.store.tick(now);
                    }
                    self.settle(now);
                }
                () = alarm.ring() => {
                    let now = self.parts.clock.now();
                    self.parts.store.tick(now);
                    self.settle(now);
                }
            }
        }
    }

    fn on_input(&mut self, now: Tick, input: Input) {
        match input {
            Input::Request { path, message } => self.on_request(now, path, message),
            Input::Disconnected(conn) => {
                let path = self.paths.remove(&conn);
                if self.session == Some(conn) {
                    let ago = |path: ReplyPath| path.heard_ms().saturating_mul(1000);
                    self.heard_before_loss = path.map(|p| Tick(now.0.saturating_sub(ago(p))));
                }
                self.step(now, Event::Disconnected(conn));
            }
            Input::Disk { id, result } => {
                self.disk_ops -= 1;
                let error = result.as_ref().err().copied();
                self.parts.store.done(now, id, result);
                error.into_iter().for_each(|error| self.note_fault(error));
            }
            Input::Fetched { by, token, answer } if by == self.parts.incarnation => {
                self.step(now, Event::Fetched { token, answer });
            }
            Input::Fetched { .. } => {}
            Input::Status(asker) => {
                // An asker that is gone needs no answer.
                let _ = asker.send(self.snapshot());
            }
            Input::Stop(done) => self.stop = Some(done),
        }
    }

    fn on_request(&mut self, now: Tick, path: ReplyPath, message: Message<Request>) {
        let conn = path.id();
        if self.stop.is_some() {
            path.send(refusal(&message.header, Refusal::Faulted));
            return path.flush();
        }
        if matches!(message.body, Request::Promise { .. }) {
            self.session = Some(conn);
            self.heard_before_loss = None;
            self.primary_node = Some(path.peer().clone());
        }
        self.paths.entry(conn).or_insert(path);
        self.step(now, Event::Request { conn, message });
    }

    fn step(&mut self, now: Tick, event: Event) {
        self.parts.replica.step(now, event, &mut self.effects);
        self.carry_out(now);
    }

    /// Carries out the replica's wishes, in their order.
    fn carry_out(&mut self, now: Tick) {
        let mut effects = std::mem::take(&mut self.effects);
        let mut entered = None;
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { conn, message } => {
                    if let Some(path) = self.paths.get(&conn) {
                        path.send(message);
                        self.unsent = true;
                    }
                }
                Effect::Store { token, op } => self.parts.store.submit(now, token, op),
                Effect::Note(note) => self.parts.store.note(now, note),
                Effect::Fetch { token, node, message } => self.fetch(token, node, message),
                Effect::Entry(wish) => {
                    let granted = self.parts.entries.tell(now, self.parts.volume, wish);
                    entered = matches!(wish, Wish::Wants { .. }).then_some(granted).or(entered);
                }
            }
        }
        // Keeps the memory for the next step.
        self.effects = effects;
        if let Some(granted) = entered {
            self.step(now, Event::Entered { granted });
        }
    }

    /// Asks another node's replica; the answer comes as an input.
    fn fetch(&self, token: Token, node: NodeId, message: Message<Request>) {
        let (fetcher, own) = (Arc::clone(&self.parts.fetcher), self.own.clone());
        let by = self.parts.incarnation;
        tokio::spawn(async move {
            let answer = fetcher.fetch(&node, message).await;
            // A replica that has ended needs no answer.
            let _ = own.send(Input::Fetched { by, token, answer });
        });
    }

    /// Passes answers up and disk operations down until both are quiet.
    fn settle(&mut self, now: Tick) {
        while let Some((token, result)) = self.parts.store.poll_done() {
            self.step(now, Event::Stored { token, result });
        }
        while let Some(op) = self.parts.store.poll_disk() {
            self.disk_ops += 1;
            let files = Arc::clone(&self.parts.files);
            let own = self.own.clone();
            self.parts.threads.submit(class_of(&op.kind), move || {
                let result = files.execute(&op.kind);
                // The task outlives its disk operations, but for the end of the process.
                let _ = own.send(Input::Disk { id: op.id, result });
            });
        }
        // Once per batch, so that answers share system calls.
        if std::mem::take(&mut self.unsent) {
            self.paths.values().for_each(ReplyPath::flush);
        }
        if self.fault.is_none() && self.is_faulted() {
            self.fault = Some("a disk operation failed; the log says which".into());
        }
    }

    fn is_faulted(&self) -> bool {
        self.parts.replica.status().role == Role::Faulted || self.parts.store.status().faulted
    }

    /// Tells the log once when the replica fails.
    fn note_fault(&mut self, error: DiskError) {
        let what = match error {
            DiskError::NoSpace => "the pool has no space left: free some",
            DiskError::Io | DiskError::NoReflink => "the disk failed: see the log, check the disk",
        };
        if self.fault.is_none() && self.parts.store.status().faulted {
            tracing::error!(volume = %self.parts.volume, what, "replica failed");
            self.fault = Some(what.into());
        }
    }

    /// The connection of the primary that is served; none after it closed in good order.
    pub(super) fn session(&self) -> Option<&ReplyPath> {
        let status = self.parts.replica.status();
        let served = status.connected && status.role != Role::Idle;
        self.session.filter(|_| served).and_then(|conn| self.paths.get(&conn))
    }

    /// Did a flush fail, so that un-flushed data may be gone?
    pub(super) fn lost_cache(&self) -> bool {
        self.parts.store.status().lost_cache
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let core = self.parts.replica.status();
        let clock = self.parts.clock;
        let path = self.session.and_then(|conn| self.paths.get(&conn));
        let heard = self.heard_before_loss.or(core.heard);
        let silent_ms = heard.map(|at| clock.ms_since(at));
        let primary_heard_ms = match (core.connected, path) {
            (true, Some(path)) => Some(path.heard_ms()),
            (true, None) | (false, _) => silent_ms,
        };
        let store = self.parts.store.status();
        Snapshot {
            activity_log_regions: store.active,
            lossy: self.parts.lossy && core.unclean,
            primary_heard_ms,
            primary_node: core.heard.and(self.primary_node.clone()),
            fault: self.fault.clone(),
            core,
        }
    }
}

/// However the task ends: the primary that is served learns that its session is void.
impl Drop for Driver {
    fn drop(&mut self) {
        self.session().into_iter().for_each(ReplyPath::reset);
        self.parts.entries.leave(self.parts.volume);
    }
}

/// The answer of a node that can't ask the replica itself.
pub(super) fn refusal(header: &Header, refusal: Refusal) -> Message<Reply> {
    Message { header: *header, body: Reply::Refused(refusal) }
}
