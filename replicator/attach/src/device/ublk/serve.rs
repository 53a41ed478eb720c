//! The thread that serves a device.
//!
//! It alone talks to the driver: it takes requests, copies payloads, and gives answers. What a
//! request asks for is done by a task of the runtime, which posts its outcome back.
//!
//! Payloads are copied by this thread only, and the driver's commands end by its hand: so the
//! driver never finds a copy under way when it takes requests back to send them again, which it
//! would take for a request to fail.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use lockstep_kernel::privilege::renounce_admin;
use lockstep_kernel::ublk::{Bell, Event, Queues};
use nix::libc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::limits::{PAUSE, PAYLOAD_BYTES_MAX, RECOVERY_WAIT};
use super::request::{Answer, Request, failure};
use crate::backend::{Backend, Errno, ReadData, Segment};
use crate::nbd::aligned;

/// What is to be served.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The driver's side of the device, `/dev/ublkcN`.
    pub(super) path: PathBuf,
    pub(super) queues: u16,
    pub(super) depth: u16,
    pub(super) write_through: bool,
}

/// What the thread is told.
enum Order {
    /// A request has an outcome; `turn` tells it from a later one under the same number.
    Done { slot: usize, turn: u32, outcome: Result<Answer, Errno> },
    /// The task of a request was dropped: whoever serves next does it.
    Dropped { slot: usize, turn: u32 },
    /// Begin nothing more, and end when what was begun is answered.
    Release,
    /// Answer everything with `EIO`.
    Fail,
    /// End at once.
    Abandon,
}

/// Where orders are left.
#[derive(Clone)]
struct Post {
    orders: Sender<Order>,
    bell: Bell,
}

impl Post {
    fn send(&self, order: Order) {
        // Nobody takes it any more when the thread has ended, and then nobody needs it.
        let _ = self.orders.send(order);
        self.bell.ring();
    }
}

/// A thread that serves a device.
pub(super) struct Server {
    post: Post,
    /// Ends the tasks of requests.
    stop: CancellationToken,
    /// The thread has ended, and what it held is closed.
    given_up: CancellationToken,
    thread: Mutex<Option<Thread>>,
}

/// Gives its side of the device back when it ends.
type Thread = JoinHandle<Option<Queues>>;

impl Server {
    /// Starts a thread, which fetches all requests. Blocks until it has.
    pub(super) fn start<B: Backend>(
        plan: Plan,
        backend: Arc<B>,
        runtime: Handle,
    ) -> io::Result<Self> {
        let (ready, is_ready) = sync_channel(1);
        let (stop, given_up) = (CancellationToken::new(), CancellationToken::new());
        let name = plan.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own_stop = stop.clone();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || serve(plan, backend, runtime, own_stop, &ready))?;
        match is_ready.recv() {
            Ok(Ok(post)) => Ok(Self { post, stop, given_up, thread: Mutex::new(Some(thread)) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the thread that was to serve it ended")),
        }
    }

    /// Answers what was begun, begins nothing more, and waits until the thread has ended.
    pub(super) async fn release(&self) {
        self.post.send(Order::Release);
        self.join().await;
    }

    /// Answers everything with `EIO` from now on.
    pub(super) fn fail(&self) {
        self.post.send(Order::Fail);
        self.stop.cancel();
    }

    /// Ends the thread, whatever is under way.
    pub(super) fn abandon(&self) {
        // In this order, so that the thread does not hear first of tasks that were stopped.
        self.post.send(Order::Abandon);
        self.stop.cancel();
    }

    /// Waits until the thread has ended and the device is given up.
    pub(super) async fn join(&self) {
        self.give_up();
        self.given_up.cancelled().await;
    }

    /// Gives the device up once the thread has ended, and not before: see [`Queues`].
    fn give_up(&self) {
        let Some(thread) = self.thread() else { return };
        let given_up = self.given_up.clone().drop_guard();
        // A thread, for it lasts as long as requests do, and nobody may be waiting for it.
        std::thread::spawn(move || {
            let _given_up = given_up;
            match thread.join() {
                Ok(queues) => drop(queues),
                Err(_) => tracing::error!("the thread that served a device panicked"),
            }
        });
    }

    fn thread(&self) -> Option<Thread> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.abandon();
        self.give_up();
    }
}

/// What is done with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Serving,
    Releasing,
    Failing,
    Abandoned,
}

/// One number under which requests come.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    state: State,
    /// How many requests were begun.
    turn: u32,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// The driver has it.
    #[default]
    Free,
    /// A request is under way.
    Running(Request),
    /// A request came and is left for whoever serves next.
    Held,
}

struct Loop<B> {
    queues: Queues,
    depth: u16,
    backend: Arc<B>,
    runtime: Handle,
    write_through: bool,
    post: Post,
    orders: Receiver<Order>,
    stop: CancellationToken,
    mode: Mode,
    slots: Vec<Slot>,
    /// Slots with a request under way.
    running: usize,
    /// Slots under which requests may still come.
    open: usize,
}

fn serve<B: Backend>(
    plan: Plan,
    backend: Arc<B>,
    runtime: Handle,
    stop: CancellationToken,
    ready: &SyncSender<io::Result<Post>>,
) -> Option<Queues> {
    let queues = match prepare(&plan) {
        Ok(queues) => queues,
        Err(error) => {
            // Whoever waits for it is still there: it does not end before it has heard.
            let _ = ready.send(Err(error));
            return None;
        }
    };
    let (sender, orders) = channel();
    let post = Post { orders: sender, bell: queues.bell() };
    let slots = vec![Slot::default(); usize::from(plan.queues) * usize::from(plan.depth)];
    let _ = ready.send(Ok(post.clone()));
    let mut all = Loop {
        queues,
        depth: plan.depth,
        backend,
        runtime,
        write_through: plan.write_through,
        post,
        orders,
        stop,
        mode: Mode::Serving,
        open: slots.len(),
        slots,
        running: 0,
    };
    if let Err(error) = all.run() {
        let path = plan.path.display();
        tracing::error!(%error, "{path} is not served any more; its requests wait for a restart");
    }
    Some(all.queues)
}

fn prepare(plan: &Plan) -> io::Result<Queues> {
    // The ring before the privilege goes: `kernel.io_uring_disabled=1` asks for it.
    let mut queues = Queues::new(plan.queues, plan.depth)?;
    // A device of which an unprivileged thread fetched requests is not searched for partitions.
    // That search happens while the kernel holds the device's lock, and would hold it for good if
    // the server died meanwhile. A volume's partitions are for its guest, not for the node.
    if let Err(error) = renounce_admin() {
        tracing::debug!(%error, "the kernel will look for partitions");
    }
    let since = Instant::now();
    while let Err(error) = queues.fetch(&plan.path) {
        // The last server's file is released by the kernel in its own time.
        if error.raw_os_error() != Some(libc::EBUSY) || since.elapsed() > RECOVERY_WAIT {
            return Err(error);
        }
        std::thread::sleep(PAUSE);
    }
    queues.map()?;
    Ok(queues)
}

impl<B: Backend> Loop<B> {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        while !self.is_over() {
            self.queues.wait(&mut events)?;
            self.post.bell.hush();
            for event in events.drain(..) {
                match event {
                    Event::Request { queue, tag } => self.on_request(queue, tag),
                    Event::Ended { queue, tag, errno } => self.on_end(queue, tag, errno),
                    Event::Bell => {}
                }
            }
            while let Ok(order) = self.orders.try_recv() {
                self.on_order(order);
            }
        }
        match self.mode {
            Mode::Abandoned => Ok(()),
            Mode::Serving | Mode::Releasing | Mode::Failing => self.queues.flush(),
        }
    }

    fn is_over(&self) -> bool {
        match self.mode {
            Mode::Abandoned => true,
            Mode::Releasing => self.running == 0,
            Mode::Serving | Mode::Failing => self.open == 0,
        }
    }

    fn slot(&self, queue: u16, tag: u16) -> usize {
        usize::from(queue) * usize::from(self.depth) + usize::from(tag)
    }

    fn place(&self, slot: usize) -> (u16, u16) {
        let depth = usize::from(self.depth);
        let place = (u16::try_from(slot / depth), u16::try_from(slot % depth));
        let (Ok(queue), Ok(tag)) = place else { unreachable!("slots are queues times depth") };
        (queue, tag)
    }

    fn on_request(&mut self, queue: u16, tag: u16) {
        let index = self.slot(queue, tag);
        match self.mode {
            Mode::Serving => {}
            Mode::Failing => return self.queues.answer(queue, tag, -libc::EIO),
            Mode::Releasing | Mode::Abandoned => return self.hold(index),
        }
        let descriptor = self.queues.descriptor(queue, tag);
        let facts = self.backend.info();
        let begun = Request::new(&descriptor, facts, self.write_through)
            .and_then(|request| Ok((request, self.payload(queue, tag, request)?)));
        match begun {
            Ok((request, payload)) => self.begin(index, request, payload),
            Err(errno) => {
                tracing::warn!(?descriptor, %errno, "a request of the kernel is refused");
                self.queues.answer(queue, tag, failure(errno));
            }
        }
    }

    /// What a write carries, in memory that nobody else will write to.
    fn payload(&self, queue: u16, tag: u16, request: Request) -> Result<Bytes, Errno> {
        let Request::Write { len, .. } = request else { return Ok(Bytes::new()) };
        assert!(len <= PAYLOAD_BYTES_MAX, "it was checked");
        let mut buffer: BytesMut = aligned(len as usize);
        self.queues.read_payload(queue, tag, len, &mut buffer).map_err(|error| {
            tracing::error!(%error, "the kernel does not give what is to be written");
            Errno::Io
        })?;
        Ok(buffer.freeze())
    }

    fn begin(&mut self, index: usize, request: Request, payload: Bytes) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        assert!(matches!(slot.state, State::Free), "one request at a time under each number");
        slot.turn = slot.turn.wrapping_add(1);
        slot.state = State::Running(request);
        self.running += 1;
        let mut reply = Reply { post: self.post.clone(), slot: index, turn: slot.turn, open: true };
        let (backend, stop) = (Arc::clone(&self.backend), self.stop.clone());
        self.runtime.spawn(async move {
            let work = request.execute(backend.as_ref(), payload);
            let outcome = stop.run_until_cancelled(work).await;
            reply.send(outcome.unwrap_or(Err(Errno::Shutdown)));
        });
    }

    /// The request of this slot, which has none any more; nothing if that was another.
    fn take(&mut self, index: usize, turn: u32) -> Option<Request> {
        let slot = self.slots.get_mut(index).filter(|slot| slot.turn == turn)?;
        let State::Running(request) = slot.state else { return None };
        slot.state = State::Free;
        self.running -= 1;
        Some(request)
    }

    fn hold(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.state = State::Held;
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Done { slot, turn, outcome } => {
                if self.mode != Mode::Abandoned
                    && let Some(request) = self.take(slot, turn)
                {
                    self.answer(slot, request, outcome);
                }
            }
            Order::Dropped { slot, turn } => {
                if self.take(slot, turn).is_some() {
                    self.hold(slot);
                }
            }
            Order::Release if self.mode == Mode::Serving => self.mode = Mode::Releasing,
            Order::Release => {}
            Order::Fail if self.mode == Mode::Abandoned => {}
            Order::Fail => self.fail(),
            Order::Abandon => self.mode = Mode::Abandoned,
        }
    }

    fn answer(&mut self, slot: usize, request: Request, outcome: Result<Answer, Errno>) {
        let (queue, tag) = self.place(slot);
        let result = match outcome {
            Ok(Answer::Done) => request.success(),
            Ok(Answer::Data(data)) => match self.give(queue, tag, &data) {
                Ok(()) => request.success(),
                Err(error) => {
                    tracing::error!(%error, "the kernel does not take what was read");
                    -libc::EIO
                }
            },
            // The volume leaves this daemon: the guest must not notice, its successor does it.
            Err(Errno::Shutdown) => return self.hold(slot),
            Err(errno) => failure(errno),
        };
        self.queues.answer(queue, tag, result);
    }

    /// Writes what was read into the pages of the request.
    fn give(&self, queue: u16, tag: u16, data: &ReadData) -> io::Result<()> {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut at = 0;
        for segment in &data.segments {
            let end = at + u32::try_from(segment.len()).unwrap_or(u32::MAX);
            match segment {
                Segment::Data(bytes) => self.queues.write_payload(queue, tag, at, bytes)?,
                Segment::Zeroes(_) => {
                    let mut from = at;
                    while from < end {
                        let part = (end - from).min(64 * 1024);
                        let zeroes = ZEROES.get(..part as usize).unwrap_or_default();
                        self.queues.write_payload(queue, tag, from, zeroes)?;
                        from += part;
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    fn fail(&mut self) {
        self.mode = Mode::Failing;
        self.running = 0;
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(index) else { continue };
            // The outcome of its task, should it still come, is not asked for any more.
            slot.turn = slot.turn.wrapping_add(1);
            if !matches!(std::mem::take(&mut slot.state), State::Free) {
                let (queue, tag) = self.place(index);
                self.queues.answer(queue, tag, -libc::EIO);
            }
        }
    }

    fn on_end(&mut self, queue: u16, tag: u16, errno: i32) {
        if errno != libc::ENODEV {
            let error = io::Error::from_raw_os_error(errno);
            tracing::error!(queue, tag, %error, "the kernel takes an answer for wrong");
        }
        self.open = self.open.saturating_sub(1);
    }
}

/// The duty to say what became of a request.
struct Reply {
    post: Post,
    slot: usize,
    turn: u32,
    open: bool,
}

impl Reply {
    fn send(&mut self, outcome: Result<Answer, Errno>) {
        self.open = false;
        self.post.send(Order::Done { slot: self.slot, turn: self.turn, outcome });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if std::thread::panicking() {
            return self.send(Err(Errno::Io));
        }
        // The runtime ends. The guest must not see that: the next daemon does the request.
        self.post.send(Order::Dropped { slot: self.slot, turn: self.turn });
    }
}
