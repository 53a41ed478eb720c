//! A few threads that do blocking I/O, so that no async thread waits for a disk.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// A piece of blocking work. It reports by itself.
type Job = Box<dyn FnOnce() + Send>;

/// What a job does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Reads or writes.
    Transfer,
    /// Flushes: takes long, so only some threads do it at the same time.
    Flush,
}

/// The threads. They end when the last handle is dropped and the queue is empty.
pub(crate) struct Threads {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    /// Most flushes at the same time; the other threads keep reads and writes going.
    flushes_max: usize,
}

#[derive(Default)]
struct Queue {
    transfers: VecDeque<Job>,
    flushes: VecDeque<Job>,
    flushing: usize,
    closed: bool,
}

impl Threads {
    /// Starts `count` threads, at least 2.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start(count: usize) -> std::io::Result<Self> {
        let count = count.max(2);
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(Shared { queue, ready: Condvar::new(), flushes_max: count / 2 });
        let threads = Self { shared };
        for i in 0..count {
            let shared = Arc::clone(&threads.shared);
            thread::Builder::new().name(format!("disk-{i}")).spawn(move || shared.run())?;
        }
        Ok(threads)
    }

    /// Queues a job. Jobs run in any order.
    pub(crate) fn submit(&self, class: Class, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.lock();
        match class {
            Class::Transfer => queue.transfers.push_back(Box::new(job)),
            Class::Flush => queue.flushes.push_back(Box::new(job)),
        }
        drop(queue);
        self.shared.ready.notify_one();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.ready.notify_all();
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").finish_non_exhaustive()
    }
}

impl Shared {
    /// The queue is a plain list: a job that panicked did not leave it half changed.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some((class, job)) = self.next() {
            job();
            if class == Class::Flush {
                self.lock().flushing -= 1;
                // A flush that had to wait for its turn may start now.
                self.ready.notify_one();
            }
        }
    }

    /// Waits for a job; `None` when there will be no more.
    fn next(&self) -> Option<(Class, Job)> {
        let mut queue = self.lock();
        loop {
            if queue.flushing < self.flushes_max
                && let Some(job) = queue.flushes.pop_front()
            {
                queue.flushing += 1;
                return Some((Class::Flush, job));
            }
            if let Some(job) = queue.transfers.pop_front() {
                return Some((Class::Transfer, job));
            }
            if queue.closed && queue.flushes.is_empty() {
                return None;
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
