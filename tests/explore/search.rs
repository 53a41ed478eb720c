//! Going through every state: a pool of states to look at, and a table of those that were seen.

mod twins;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::act::Action;
use crate::eye::Eye;
use crate::focus::Focus;
use crate::world::State;

/// States that a worker keeps for itself before it gives some away.
const KEEP: usize = 256;

/// How often the progress is told.
const PROGRESS: Duration = Duration::from_secs(10);

/// A state after so many steps without an alternative is remembered like one with alternatives.
const MOST_STEPS: usize = 256;

/// How to search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) jobs: usize,
    /// The table has two to the power of this many places of 8 bytes.
    pub(crate) table_bits: u32,
    /// Stop after about so many states.
    pub(crate) most: u64,
    /// The shortest story first; takes more memory.
    pub(crate) breadth_first: bool,
    /// See that states that count as the same are followed by the same.
    pub(crate) compare: bool,
    /// Tell now and then how far it is.
    pub(crate) progress: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) states: u64,
    pub(crate) transitions: u64,
    /// Longest way that was gone.
    pub(crate) depth: usize,
    /// Was everything seen?
    pub(crate) complete: bool,
    /// States whose successors were compared with those of others that count as the same.
    pub(crate) compared: u64,
    pub(crate) violation: Option<(String, Vec<Action>)>,
}

/// How a state was reached.
#[derive(Debug)]
struct Way {
    action: Action,
    before: Option<Arc<Self>>,
    depth: usize,
}

impl Drop for Way {
    /// Ways are long: they are taken apart one by one, not one inside the other.
    fn drop(&mut self) {
        let mut next = self.before.take();
        while let Some(way) = next {
            next = Arc::into_inner(way).and_then(|mut w| w.before.take());
        }
    }
}

impl Way {
    fn on(before: Option<Arc<Self>>, action: Action) -> Option<Arc<Self>> {
        let depth = before.as_ref().map_or(0, |w| w.depth) + 1;
        Some(Arc::new(Self { action, before, depth }))
    }
}

fn actions_of(way: Option<&Arc<Way>>, last: &[Action]) -> Vec<Action> {
    let mut all: Vec<Action> = last.iter().rev().copied().collect();
    let mut way = way;
    while let Some(step) = way {
        all.push(step.action);
        way = step.before.as_ref();
    }
    all.reverse();
    all
}

/// Fingerprints that were seen: open addressing in a table of fixed size.
struct Table {
    places: Vec<AtomicU64>,
    mask: usize,
}

impl Table {
    fn new(bits: u32) -> Self {
        let size = 1usize << bits;
        let mut places = Vec::new();
        places.resize_with(size, || AtomicU64::new(0));
        Self { places, mask: size - 1 }
    }

    /// Remembers `print`; was it new?
    fn insert(&self, print: u64) -> bool {
        let mut at = (print >> 7) as usize & self.mask;
        loop {
            let place = &self.places[at];
            match place.load(Ordering::Relaxed) {
                0 => match place.compare_exchange(0, print, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => return true,
                    Err(other) if other == print => return false,
                    Err(_) => {}
                },
                there if there == print => return false,
                _ => {}
            }
            at = (at + 1) & self.mask;
        }
    }
}

/// A state, how it was reached, and its share of all there is to do.
type Item = (State, Option<Arc<Way>>, f64);

/// What the workers share.
struct Shared {
    plan: Plan,
    table: Table,
    pool: Mutex<Vec<Item>>,
    changed: Condvar,
    waiting: AtomicUsize,
    stop: AtomicBool,
    states: AtomicU64,
    transitions: AtomicU64,
    depth: AtomicUsize,
    /// Of all there is to do, what is done, as far as that can be told.
    done: Mutex<f64>,
    full: AtomicBool,
    /// What follows each state, if that is compared, and how often it was.
    follows: Mutex<BTreeMap<u64, u64>>,
    compared: AtomicU64,
    violation: Mutex<Option<(String, Vec<Action>)>>,
}

impl Shared {
    /// Says on standard error how far the workers are, until they are `finished`.
    fn tell_progress(&self, finished: impl Fn() -> bool) {
        let begun = Instant::now();
        let mut told = begun;
        while !finished() {
            thread::sleep(Duration::from_millis(100));
            if told.elapsed() < PROGRESS {
                continue;
            }
            told = Instant::now();
            let states = self.states.load(Ordering::Relaxed);
            let share = *lock(&self.done) * 100.0;
            let seconds = begun.elapsed().as_secs();
            let mut err = std::io::stderr().lock();
            let _ = writeln!(err, "{seconds:>5} s: {states} states, {share:.1} % by share");
        }
    }
}

/// Looks at everything that can be reached from `start`.
pub(crate) fn search(start: State, plan: Plan) -> Found {
    let shared = Shared {
        plan,
        table: Table::new(plan.table_bits),
        pool: Mutex::new(Vec::new()),
        changed: Condvar::new(),
        waiting: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        states: AtomicU64::new(1),
        transitions: AtomicU64::new(0),
        depth: AtomicUsize::new(0),
        done: Mutex::new(0.0),
        full: AtomicBool::new(false),
        follows: Mutex::new(BTreeMap::new()),
        compared: AtomicU64::new(0),
        violation: Mutex::new(None),
    };
    shared.table.insert(start.fingerprint(&mut Eye::default()));
    lock(&shared.pool).push((start, None, 1.0));
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..plan.jobs).map(|_| scope.spawn(|| Worker::new(&shared).run())).collect();
        if plan.progress {
            shared.tell_progress(|| workers.iter().all(|w| w.is_finished()));
        }
    });
    let violation = lock(&shared.violation).take();
    let cut_short = shared.full.load(Ordering::Relaxed) || violation.is_some();
    Found {
        states: shared.states.load(Ordering::Relaxed),
        transitions: shared.transitions.load(Ordering::Relaxed),
        depth: shared.depth.load(Ordering::Relaxed),
        complete: !cut_short,
        compared: shared.compared.load(Ordering::Relaxed),
        violation,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker<'a> {
    shared: &'a Shared,
    own: std::collections::VecDeque<Item>,
    eye: Eye,
    actions: Vec<Action>,
    /// Steps since the last state that was remembered.
    steps: Vec<Action>,
    /// What may follow them.
    ahead: Vec<Action>,
    states: u64,
    transitions: u64,
    done: f64,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            own: std::collections::VecDeque::new(),
            eye: Eye::default(),
            actions: Vec::new(),
            steps: Vec::new(),
            ahead: Vec::new(),
            states: 0,
            transitions: 0,
            done: 0.0,
        }
    }

    fn run(mut self) {
        while let Some((state, way, share)) = self.next() {
            self.expand(&state, way.as_ref(), share);
            self.share();
        }
        self.report();
    }

    fn report(&mut self) {
        let states = std::mem::take(&mut self.states);
        let total = self.shared.states.fetch_add(states, Ordering::Relaxed) + states;
        let transitions = std::mem::take(&mut self.transitions);
        self.shared.transitions.fetch_add(transitions, Ordering::Relaxed);
        *lock(&self.shared.done) += std::mem::take(&mut self.done);
        let room = self.shared.table.places.len() as u64 / 8 * 7;
        if total >= self.shared.plan.most.min(room) {
            self.shared.full.store(true, Ordering::Relaxed);
            self.shared.stop.store(true, Ordering::Relaxed);
            self.shared.changed.notify_all();
        }
    }

    fn next(&mut self) -> Option<Item> {
        if self.shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        let own = match self.shared.plan.breadth_first {
            true => self.own.pop_front(),
            false => self.own.pop_back(),
        };
        own.or_else(|| self.take())
    }

    /// Takes from the pool, or waits until there is something, or nobody works any more.
    fn take(&mut self) -> Option<Item> {
        self.report();
        let shared = self.shared;
        let mut pool = lock(&shared.pool);
        let idle = shared.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        if idle == shared.plan.jobs && pool.is_empty() {
            shared.stop.store(true, Ordering::Relaxed);
            shared.changed.notify_all();
            return None;
        }
        while pool.is_empty() {
            if shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            pool = shared.changed.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
        shared.waiting.fetch_sub(1, Ordering::Relaxed);
        let keep = pool.len() / 2;
        self.own.extend(pool.drain(keep..));
        drop(pool);
        self.next()
    }

    /// Gives half of what it has, the oldest, to whoever has nothing.
    fn share(&mut self) {
        if self.states >= 4096 {
            self.report();
        }
        let wanted = self.shared.waiting.load(Ordering::Relaxed) > 0;
        if self.own.len() < 2 || !(wanted || self.own.len() > KEEP * 1024) {
            return;
        }
        let half = self.own.len() / 2;
        lock(&self.shared.pool).extend(self.own.drain(..half));
        self.shared.changed.notify_all();
    }

    fn expand(&mut self, state: &State, way: Option<&Arc<Way>>, share: f64) {
        let before = self.own.len();
        let mut actions = std::mem::take(&mut self.actions);
        actions.clear();
        state.actions(&mut actions);
        for action in &actions {
            let mut next = state.clone();
            self.steps.clear();
            let print = match self.look(&mut next, *action) {
                Ok(print) => print,
                Err(what) => {
                    let mut violation = lock(&self.shared.violation);
                    violation.get_or_insert_with(|| (what, actions_of(way, &self.steps)));
                    self.shared.stop.store(true, Ordering::Relaxed);
                    self.shared.changed.notify_all();
                    break;
                }
            };
            if print.is_some_and(|print| self.shared.table.insert(print)) {
                self.states += 1;
                let way = self.steps.iter().fold(way.cloned(), |way, step| Way::on(way, *step));
                let depth = way.as_ref().map_or(0, |w| w.depth);
                self.shared.depth.fetch_max(depth, Ordering::Relaxed);
                self.own.push_back((next, way, share));
            }
        }
        let new = self.own.len() - before;
        if new == 0 {
            self.done += share;
        }
        self.own.iter_mut().skip(before).for_each(|item| item.2 = share / new as f64);
        self.actions = actions;
    }

    /// Takes steps and recognises the state after them, if anything follows it.
    fn look(&mut self, state: &mut State, action: Action) -> Result<Option<u64>, String> {
        if !self.follow(state, action)? {
            return Ok(None);
        }
        let print = state.fingerprint(&mut self.eye);
        if self.shared.plan.compare {
            self.compare(state, print)?;
        }
        Ok(Some(print))
    }

    /// Takes a step, and all after it that have no alternative. Is the state to be remembered, or
    /// does nothing follow?
    fn follow(&mut self, state: &mut State, action: Action) -> Result<bool, String> {
        let mut next = Some(action);
        while let Some(action) = next {
            self.transitions += 1;
            self.steps.push(action);
            guarded(state, action)?;
            self.ahead.clear();
            state.actions(&mut self.ahead);
            let single = state.focus != Focus::Free
                && self.ahead.len() == 1
                && self.steps.len() < MOST_STEPS;
            next = self.ahead.first().copied().filter(|_| single);
        }
        Ok(!self.ahead.is_empty())
    }
}

thread_local! {
    /// Where the code under test panicked last.
    static PANIC: Cell<Option<String>> = const { Cell::new(None) };
}

/// Lets [`guarded`] say where a panic came from, instead of the program's standard error.
pub(crate) fn catch_panics() {
    std::panic::set_hook(Box::new(|info| PANIC.set(Some(info.to_string()))));
}

/// Takes a step; a panic of the code under test is a violation like any other.
pub(crate) fn guarded(state: &mut State, action: Action) -> Result<(), String> {
    let step = catch_unwind(AssertUnwindSafe(|| state.act(action)));
    step.unwrap_or_else(|_| {
        Err(format!("panic: {}", PANIC.take().unwrap_or_else(|| "without words".to_owned())))
    })
}
