//! The threads that read requests from the kernel, and the tasks that do them.

use std::io::{self, IoSliceMut, Read as _};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::buffer::{Landing, Spares};
use super::service::Service;
use super::wire::{self, HEAD_BYTES, Request};
use crate::backend::Backend;

/// More threads cost a wake-up per request and gain nothing: all work is done by tasks.
const THREADS_MAX: u16 = 4;

/// A service at work. Dropping it ends the work as a crash of the process would.
pub(crate) struct Readers {
    stop: Arc<Stop>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

struct Stop {
    asked: AtomicBool,
    wake: EventFd,
    /// Held by the one thread that waits for the kernel: a request wakes one thread, not all.
    waiting: Mutex<()>,
}

struct Reader<B> {
    service: Arc<Service<B>>,
    stop: Arc<Stop>,
    runtime: Handle,
    tasks: TaskTracker,
    cancel: CancellationToken,
    landing: Landing,
}

impl Readers {
    /// Begins to serve. Must be called within a runtime, which does the work.
    pub(crate) fn start<B: Backend>(service: &Arc<Service<B>>, count: u16) -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let asked = AtomicBool::new(false);
        let stop = Arc::new(Stop { asked, wake, waiting: Mutex::new(()) });
        let readers = Self {
            stop,
            threads: Mutex::new(Vec::new()),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        };
        let spares = Arc::new(Spares::default());
        for _ in 0..count.clamp(1, THREADS_MAX) {
            let reader = Reader {
                service: Arc::clone(service),
                stop: Arc::clone(&readers.stop),
                runtime: Handle::current(),
                tasks: readers.tasks.clone(),
                cancel: readers.cancel.clone(),
                landing: Landing::new(&spares),
            };
            let thread = std::thread::Builder::new().name("fuse-reader".to_owned());
            readers.threads().push(thread.spawn(move || reader.run())?);
        }
        Ok(readers)
    }

    fn threads(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads no more. When this returns, every request that was read has begun.
    fn halt(&self) {
        self.stop.asked.store(true, Ordering::SeqCst);
        // It stays readable, so every thread sees it. It is full only if it is readable.
        let _ = self.stop.wake.write(1);
        for thread in self.threads().drain(..) {
            // One that panicked has said so; the panic ends the process or a test.
            let _ = thread.join();
        }
    }

    /// Reads no more, and finishes what was begun.
    pub(crate) async fn finish(&self) {
        self.halt();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Reads no more, and gives up what was begun. When this returns, none of it runs.
    pub(crate) async fn abandon(&self) {
        self.halt();
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.halt();
        self.cancel.cancel();
    }
}

impl<B: Backend> Reader<B> {
    fn run(mut self) {
        let mut head = [0; HEAD_BYTES];
        while !self.stop.asked.load(Ordering::SeqCst) {
            let place = &mut [IoSliceMut::new(&mut head), IoSliceMut::new(self.landing.place())];
            match self.service.connection().read_vectored(place) {
                Ok(len) => self.take(&head, len),
                Err(error) => match error.raw_os_error() {
                    Some(nix::libc::EAGAIN) => self.wait(),
                    // The second: that request has been given up while it was being read.
                    Some(nix::libc::EINTR | nix::libc::ENOENT) => {}
                    // Unmounted, or ended by somebody.
                    Some(nix::libc::ENODEV | nix::libc::ECONNABORTED) => return,
                    _ => {
                        tracing::error!(%error, "the kernel gives no requests any more");
                        return;
                    }
                },
            }
        }
    }

    /// Waits until there is a request, or a reason to stop.
    fn wait(&self) {
        let _one = self.stop.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fds = [
            PollFd::new(self.service.connection().as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.wake.as_fd(), PollFlags::POLLIN),
        ];
        // If it fails, reading tells why.
        let _ = nix::poll::poll(&mut fds, PollTimeout::NONE);
    }

    /// Begins a request. What is done at once is answered here, without a task's switch.
    fn take(&mut self, head: &[u8; HEAD_BYTES], len: usize) {
        let shown = head.get(..len.min(HEAD_BYTES)).unwrap_or(head);
        let (unique, request) = match wire::parse(shown, len) {
            Ok(understood) => understood,
            Err(error) => return tracing::error!("{error}"),
        };
        let data = match request {
            Request::Write { len, .. } => self.landing.take(usize::try_from(len).unwrap_or(0)),
            _ => bytes::Bytes::new(),
        };
        let _within = self.runtime.enter();
        let mut work = Box::pin(Arc::clone(&self.service).serve(unique, request, data));
        let mut context = Context::from_waker(Waker::noop());
        if Pin::as_mut(&mut work).poll(&mut context).is_pending() {
            // The task polls it anew, and so is woken.
            let cancel = self.cancel.clone();
            self.tasks.spawn_on(
                async move {
                    let _ = cancel.run_until_cancelled(work).await;
                },
                &self.runtime,
            );
        }
    }
}
