//! What everybody writes on: the story as it goes, what was injected, what is wrong.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::plan::Kind;

/// Shared by all tasks.
#[derive(Debug)]
pub(crate) struct Board {
    begin: Instant,
    faults: Mutex<BTreeMap<Kind, u64>>,
    violations: Mutex<Vec<String>>,
    /// Faults are over: from now on nothing that fails is excused.
    pub(crate) healed: AtomicBool,
    /// Clients are to come to an end.
    pub(crate) stop: AtomicBool,
    /// Volumes that came to be served by another primary.
    pub(crate) takeovers: AtomicU64,
    /// Requests that a daemon answered with an error.
    pub(crate) failed_requests: AtomicU64,
    /// Connections that were given up because nothing came back.
    pub(crate) abandoned: AtomicU64,
    /// Runs of fio that were verified to the end.
    pub(crate) fio_runs: AtomicU64,
    /// Steps that found nobody to hit.
    pub(crate) skipped: AtomicU64,
}

/// More are counted, but not told.
const VIOLATIONS_TOLD: usize = 40;

impl Board {
    /// An empty one; time begins.
    pub(crate) fn new() -> Self {
        Self {
            begin: Instant::now(),
            faults: Mutex::default(),
            violations: Mutex::default(),
            healed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            takeovers: AtomicU64::new(0),
            failed_requests: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            fio_runs: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }

    /// One line of the story.
    pub(crate) fn tell(&self, words: &str) {
        say(&format!("[{:8.3}] {words}", self.begin.elapsed().as_secs_f64()));
    }

    /// Something that must not be.
    pub(crate) fn violation(&self, words: &str) {
        let mut all = lock(&self.violations);
        if all.len() < VIOLATIONS_TOLD {
            self.tell(&format!("VIOLATION: {words}"));
        }
        all.push(words.to_owned());
    }

    /// A fault was injected.
    pub(crate) fn count(&self, kind: Kind) {
        *lock(&self.faults).entry(kind).or_default() += 1;
    }

    /// How often each kind of fault was injected.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, u64> {
        let faults = lock(&self.faults);
        Kind::ALL.iter().map(|k| (k.name(), faults.get(k).copied().unwrap_or(0))).collect()
    }

    /// What was found wrong.
    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// Whether clients are to come to an end.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Adds one.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A lock whose holder panicked still guards good data here: whole values are put in.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets time pass: between two looks at something, or as long as a fault is to last.
pub(crate) async fn wait_for(time: Duration) {
    tokio::time::sleep(time).await;
}

/// One line of output. Nobody is left to hear it if that fails.
pub(crate) fn say(words: &str) {
    let _ = writeln!(std::io::stdout(), "{words}");
}
