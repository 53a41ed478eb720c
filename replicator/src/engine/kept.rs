//! What other nodes read of the snapshots here, to make copies of them anew (D4): answered from
//! their files, beside the replicas, and slowly while guests are at work.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::id::Tick;
use lockstep_core::limits::{RESYNC_GUARD_WRITES, RESYNC_INTERVAL_MS, RESYNC_RATE_START};
use lockstep_core::message::{Message, Refusal, Reply, Request};
use lockstep_core::range::{BLOCK_SIZE, BlockSet};
use lockstep_core::throttle::{RateLimits, Throttle};
use tokio::sync::Semaphore;

use super::path::ReplyPath;
use crate::clock::Clock;
use crate::pool::Pool;

/// Requests that are carried out at a time.
const TURNS: usize = 2;
/// Requests that wait for their turn; more are told to come back later.
const WAITING_MAX: usize = 64;

/// Reads of snapshots.
#[derive(Debug)]
pub(super) struct KeptReads {
    pools: Vec<Arc<Pool>>,
    waiting: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    pub(super) pace: KeptPace,
}

/// How fast snapshots are read and made here. Guests whose replicas are here come first: while they
/// do more than now and then, copies get half of what a resync begins with.
#[derive(Debug)]
pub(super) struct KeptPace {
    clock: Clock,
    /// Reads and writes of guests since the start.
    ops: AtomicU64,
    state: Mutex<PaceState>,
}

#[derive(Debug, Default)]
struct PaceState {
    throttle: Throttle,
    since: Tick,
    ops_then: u64,
}

impl KeptPace {
    fn new(clock: Clock) -> Self {
        Self { clock, ops: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Counts what guests do.
    pub(super) fn note(&self, request: &Request) {
        let guests =
            matches!(request, Request::Write { .. } | Request::Zero { .. } | Request::Read { .. });
        if guests {
            self.ops.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until so much more may be read.
    pub(super) async fn wait_for(&self, bytes: u64) {
        while let Err(wait_us) = self.ask(self.clock.now(), bytes) {
            tokio::time::sleep(Duration::from_micros(wait_us)).await;
        }
    }

    fn ask(&self, now: Tick, bytes: u64) -> Result<(), u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = now.ms_since(state.since);
        if elapsed >= RESYNC_INTERVAL_MS {
            let ops = self.ops.load(Ordering::Relaxed);
            let busy = (ops - state.ops_then) * 1000 / elapsed >= RESYNC_GUARD_WRITES;
            let bytes_per_s = if busy { RESYNC_RATE_START / 2 } else { 0 };
            state.throttle.set(RateLimits { iops: 0, bytes_per_s });
            (state.since, state.ops_then) = (now, ops);
        }
        state.throttle.pass(now, bytes)
    }
}

impl KeptReads {
    pub(super) fn new(clock: Clock, pools: Vec<Arc<Pool>>) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        let (waiting, turns) = (semaphore(WAITING_MAX), semaphore(TURNS));
        Self { pools, waiting, turns, pace: KeptPace::new(clock) }
    }

    /// Answers a request about a snapshot, later.
    pub(super) fn submit(self: &Arc<Self>, path: ReplyPath, message: Message<Request>) {
        let Message { header, body } = message;
        let answer = move |body| {
            path.send(Message { header, body });
            path.flush();
        };
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return answer(Reply::Refused(Refusal::Busy));
        };
        let reads = Arc::clone(self);
        tokio::spawn(async move {
            // Neither is ever closed.
            let turn = reads.turns.acquire().await;
            reads.pace.wait_for(bytes_of(&body)).await;
            let pools = reads.pools.clone();
            let read = tokio::task::spawn_blocking(move || read(&pools, &body)).await;
            answer(read.unwrap_or(Reply::Refused(Refusal::Io)));
            drop((turn, place));
        });
    }
}

fn bytes_of(request: &Request) -> u64 {
    match request {
        Request::DigestKept { blocks, .. } | Request::ReadKept { blocks, .. } => {
            blocks.len() * u64::from(BLOCK_SIZE)
        }
        _ => 0,
    }
}

/// Carries a request out. Blocks.
fn read(pools: &[Arc<Pool>], request: &Request) -> Reply {
    let (Request::ScanKept { id, .. }
    | Request::DigestKept { id, .. }
    | Request::ReadKept { id, .. }) = request
    else {
        return Reply::Refused(Refusal::Malformed);
    };
    let opened = pools.iter().find_map(|pool| pool.open_kept(*id).transpose());
    let kept = match opened {
        None => return Reply::Refused(Refusal::NoSuchReplica),
        Some(Err(error)) => return failed(&error),
        Some(Ok(kept)) => kept,
    };
    let fits = |blocks: &BlockSet| !blocks.is_empty() && kept.holds(blocks);
    match request {
        Request::ScanKept { from, limit, .. } => match kept.written(*from, *limit) {
            Ok((regions, next)) => Reply::Regions { regions, next },
            Err(error) => failed(&error),
        },
        Request::DigestKept { blocks, .. } if fits(blocks) => Reply::Digests(kept.digests(blocks)),
        Request::ReadKept { blocks, .. } if fits(blocks) => {
            kept.read(blocks).map_or_else(Reply::Refused, Reply::Data)
        }
        _ => Reply::Refused(Refusal::Malformed),
    }
}

fn failed(error: &std::io::Error) -> Reply {
    tracing::warn!(%error, "a snapshot can't be read");
    Reply::Refused(Refusal::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::range::BlockRange;

    #[test]
    fn guests_at_work_slow_it_down_and_idle_ones_do_not() {
        let pace = KeptPace::new(Clock::start());
        let at = |ms: u64| Tick(ms * 1000);
        let read = Request::Read { blocks: BlockRange::new(0, 1).into() };
        assert_eq!(pace.ask(at(1000), 1 << 30), Ok(()));
        assert_eq!(pace.ask(at(1001), 1 << 30), Ok(()));
        (0..RESYNC_GUARD_WRITES).for_each(|_| pace.note(&read));
        pace.note(&Request::Flush);
        assert_eq!(pace.ask(at(2000), 1 << 30), Ok(()), "it may go into debt");
        assert!(pace.ask(at(2001), 1).is_err());
        assert_eq!(pace.ask(at(3000), 1), Ok(()), "they have stopped");
    }
}
