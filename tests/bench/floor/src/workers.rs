//! Threads that take turns at a connection: whoever has it reads one request, hands the connection
//! on, and carries the request out. They outlive clients, so that what they cost can be counted.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context as _;

use crate::file::{DirectFile, Room};
use crate::wire::{Kind, Request, done};

/// How many requests are carried out at once: the depth of the benchmark.
const WORKERS: usize = 32;
/// Several small requests are read in one call.
pub(crate) const BUFFER_BYTES: usize = 64 << 10;

/// Nothing here is left half done by a thread that ends.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that run for as long as the process does: the first that ends, ends it.
pub(crate) struct Threads(Sender<anyhow::Result<()>>);

impl Threads {
    pub(crate) fn new() -> (Threads, Receiver<anyhow::Result<()>>) {
        let (sender, first) = channel();
        (Threads(sender), first)
    }

    pub(crate) fn start(&self, run: impl FnOnce() -> anyhow::Result<()> + Send + 'static) {
        let end = self.0.clone();
        // Nobody listens any more once the first has ended.
        thread::spawn(move || end.send(run()).unwrap_or_default());
    }
}

/// Where requests come from.
pub(crate) trait Source: Send + 'static {
    /// The next request, with its data in the room; nothing when there will be no more.
    fn next(&mut self, room: &mut Room) -> anyhow::Result<Option<Request>>;
}

impl Source for BufReader<TcpStream> {
    fn next(&mut self, room: &mut Room) -> anyhow::Result<Option<Request>> {
        Request::read(self, room)
    }
}

/// Starts threads that give all requests of a source to `handle`.
pub(crate) fn work(
    threads: &Threads,
    source: impl Source,
    handle: impl Fn(&Request, &mut Room) -> anyhow::Result<()> + Send + Sync + 'static,
) {
    let shared = Arc::new((Mutex::new(source), handle));
    for _ in 0..WORKERS {
        let shared = Arc::clone(&shared);
        threads.start(move || take_turns(&shared.0, &shared.1));
    }
}

/// One thread's part.
fn take_turns(
    source: &Mutex<impl Source>,
    handle: &impl Fn(&Request, &mut Room) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut room = Room::new();
    loop {
        let next = lock(source).next(&mut room)?;
        let Some(request) = next else { return Ok(()) };
        handle(&request, &mut room)
            .with_context(|| format!("{:?} at {} failed", request.kind, request.offset))?;
    }
}

/// Does on the file what a request asks for, and returns the answer.
pub(crate) fn carry_out<'a>(
    file: &DirectFile,
    request: &Request,
    room: &'a mut Room,
) -> anyhow::Result<&'a [u8]> {
    let mut answer_bytes = 0;
    match request.kind {
        Kind::Read => {
            file.read(room, request.offset, request.len)?;
            answer_bytes = request.len;
        }
        Kind::Write => file.write(room, request.offset, request.len)?,
        Kind::Flush => file.flush()?,
    }
    Ok(room.with_header(&done(request.cookie), answer_bytes))
}

/// Carries out all that comes from a door on the file of a copy, until the door is gone or
/// something fails.
pub(crate) fn serve_copy(stream: TcpStream, file: Arc<DirectFile>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let to = Mutex::new(stream.try_clone()?);
    let (threads, first) = Threads::new();
    work(&threads, BufReader::with_capacity(BUFFER_BYTES, stream), move |request, room| {
        let answer = carry_out(&file, request, room)?;
        Ok(lock(&to).write_all(answer)?)
    });
    first.recv()?
}
