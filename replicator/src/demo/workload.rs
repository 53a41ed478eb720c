//! Random writes, reads and flushes at changing depths, each entered in the ledger.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use lockstep_attach::nbd::{Client, ClientError};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::content::{BLOCK, Content, Version};
use super::ledger::{Findings, Ledger, Reading, Span};
use super::verify::pieces;

/// Most operations under way.
pub const DEPTH_MAX: usize = 32;
/// Largest write: 128 KiB.
const BLOCKS_MAX: u64 = 32;
/// Operations after which another depth is chosen.
const OPS_PER_DEPTH: u32 = 200;
/// How long the loop waits at most before it looks at its orders again.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a server that was left may take to answer a read.
const FORMER_LIMIT: Duration = Duration::from_millis(500);
/// How many places are tried to find one that may be written.
const TRIES: u32 = 64;

/// What the writer is told while it runs.
#[derive(Debug, Default)]
pub struct Orders {
    /// Finish what is under way and stop.
    pub stop: AtomicBool,
    /// The absent copy gets writes again.
    pub absence_ended: AtomicBool,
    /// As much under way as possible, from now on.
    pub deepest: AtomicBool,
    /// Bytes per second; 0: as many as possible.
    pub rate: AtomicU64,
}

/// What the writer tells while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Acknowledged writes.
    pub writes: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Acknowledged flushes.
    pub flushes: AtomicU64,
    /// Reads that were checked.
    pub reads: AtomicU64,
    /// Of those, reads that a server answered which the writer had left.
    pub former_reads: AtomicU64,
    /// Operations under way.
    pub in_flight: AtomicU64,
    /// Longest time between two acknowledged writes, in milliseconds.
    pub longest_pause_ms: AtomicU64,
}

impl Progress {
    pub(super) fn add(counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }
}

/// Why the writer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// The server is gone.
    Disconnected {
        /// Writes that it had not answered.
        unanswered: u64,
    },
    /// The server failed a request.
    Failed(String),
}

/// The writer, with its ledger.
#[derive(Debug)]
pub struct Workload {
    /// Who wrote what.
    pub ledger: Ledger,
    /// What the reads found wrong.
    pub findings: Findings,
    progress: Arc<Progress>,
    rng: StdRng,
    depth: usize,
    ops_left: u32,
    /// A server that was left though it may be alive. It must not answer with what is out of date.
    former: Option<Client>,
}

/// An operation that has ended.
enum Done {
    Write {
        version: Version,
        blocks: u64,
        fua: bool,
        result: Result<(), ClientError>,
    },
    Flush {
        issued: u64,
        result: Result<(), ClientError>,
    },
    Read {
        reading: Reading,
        result: Result<Bytes, ClientError>,
    },
    /// Of a read by way of a server that was left; `None`: it was of no use.
    FormerRead {
        reading: Reading,
        data: Option<Bytes>,
    },
}

/// How many bytes may be written by now.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
    rate: u64,
}

impl Pace {
    /// From now on.
    pub(super) fn new(rate: u64) -> Self {
        Self { since: Instant::now(), bytes: 0, rate }
    }

    /// Begins anew if the rate is another one.
    pub(super) fn obey(&mut self, rate: u64) {
        if rate != self.rate {
            *self = Self::new(rate);
        }
    }

    /// These were written.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Whether more may be.
    pub(super) fn allows(&self) -> bool {
        let due = self.since.elapsed().as_secs_f64() * rate_f64(self.rate);
        self.rate == 0 || rate_f64(self.bytes) <= due
    }
}

#[expect(clippy::cast_precision_loss, reason = "a pace need not be exact")]
fn rate_f64(number: u64) -> f64 {
    number as f64
}

impl Workload {
    /// Random operations in an area in which nothing was written yet.
    pub fn new(seed: u64, area: Span, progress: Arc<Progress>) -> Self {
        Self {
            ledger: Ledger::new(Content::new(seed), area),
            findings: Findings::default(),
            progress,
            rng: StdRng::seed_from_u64(seed),
            depth: 1,
            ops_left: 0,
            former: None,
        }
    }

    /// Writes until told to stop or until the server is lost. Nothing is under way afterwards.
    pub async fn drive(&mut self, client: &Client, orders: &Orders) -> End {
        let mut flying: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
        let mut pace = Pace::new(orders.rate.load(Ordering::Relaxed));
        let mut last_ack = Instant::now();
        let mut end = None;
        let mut unanswered = 0;
        loop {
            if orders.absence_ended.load(Ordering::Relaxed) {
                self.ledger.end_absence();
            }
            if orders.stop.load(Ordering::Relaxed) {
                end.get_or_insert(End::Stopped);
            }
            pace.obey(orders.rate.load(Ordering::Relaxed));
            let deepest = orders.deepest.load(Ordering::Relaxed);
            let depth = if deepest { DEPTH_MAX } else { self.depth };
            while end.is_none() && flying.len() < depth && pace.allows() {
                let (op, bytes) = self.next_op(client);
                pace.spend(bytes);
                flying.push(op);
            }
            self.progress.in_flight.store(flying.len() as u64, Ordering::Relaxed);
            let done = match tokio::time::timeout(PAUSE, flying.next()).await {
                Ok(Some(done)) => done,
                Ok(None) if end.is_some() => break,
                Ok(None) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(_) => continue,
            };
            let is_write = matches!(done, Done::Write { .. });
            match self.settle(done, &end) {
                Ok(()) if is_write => self.note_pause(&mut last_ack),
                Ok(()) => {}
                Err(why) => {
                    unanswered += u64::from(is_write);
                    end.get_or_insert(why);
                }
            }
        }
        match end {
            Some(End::Disconnected { .. }) => End::Disconnected { unanswered },
            Some(end) => end,
            None => End::Stopped,
        }
    }

    /// One write that must succeed; returns once it is acknowledged.
    ///
    /// # Errors
    /// It does not.
    pub async fn write_one(&mut self, client: &Client) -> anyhow::Result<()> {
        let span = self.place();
        let done = self.write_op(client, span, true).await;
        match self.settle(done, &None) {
            Ok(()) => Ok(()),
            Err(end) => anyhow::bail!("the first write after the take-over: {end:?}"),
        }
    }

    /// The server is given up: nobody will ever say what became of the writes under way. To be
    /// called only when none of their answers is awaited any more, and when nothing that the server
    /// still holds of them can be done after what is asked of its successor.
    pub fn abandon(&mut self) {
        let pending: Vec<Version> = self.ledger.pending().map(|(version, _)| version).collect();
        for version in pending {
            self.ledger.unanswered(version);
        }
    }

    /// Some reads go by way of this server, which was left, as long as it answers any.
    pub fn haunt(&mut self, former: Client) {
        self.former = Some(former);
    }

    /// Reads what no answer came for: it holds that for good from now on, or until
    /// [`Ledger::thaw`]. Returns how many blocks have the write, and how many do not.
    ///
    /// # Errors
    /// The server fails a read, or is gone.
    pub async fn decide(&mut self, client: &Client) -> Result<(u64, u64), ClientError> {
        let (mut done, mut not_done) = (0, 0);
        for span in self.ledger.uncertain().into_iter().flat_map(pieces) {
            let reading = self.ledger.read(span);
            let data = read_span(client, span).await?;
            self.findings.add(self.ledger.judge(&reading, &data));
            let decided = self.ledger.decide(&reading, &data);
            done += decided.0;
            not_done += decided.1;
        }
        Ok((done, not_done))
    }

    fn note_pause(&self, last_ack: &mut Instant) {
        let pause = u64::try_from(last_ack.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.progress.longest_pause_ms.fetch_max(pause, Ordering::Relaxed);
        *last_ack = Instant::now();
    }

    /// The next operation, and how many bytes it writes.
    fn next_op(&mut self, client: &Client) -> (BoxFuture<'static, Done>, u64) {
        if self.ops_left == 0 {
            self.ops_left = OPS_PER_DEPTH;
            self.depth = [1, 4, 8, 16, DEPTH_MAX, DEPTH_MAX][self.rng.random_range(0..6)];
        }
        self.ops_left -= 1;
        match self.rng.random_range(0..100) {
            0 => (self.flush_op(client), 0),
            1..5 if self.former.is_some() => (self.former_read_op(client), 0),
            1..10 => (self.read_op(client), 0),
            10 => {
                // Beside or over a write that is under way, if there is one.
                let near = self.ledger.pending().last().map(|(_, span)| span);
                let span = match near {
                    Some(near) => self.around(near),
                    None => self.place(),
                };
                (self.write_op(client, span, false), span.count * BLOCK as u64)
            }
            kind => {
                let span = self.place();
                (self.write_op(client, span, kind > 93), span.count * BLOCK as u64)
            }
        }
    }

    fn write_op(&mut self, client: &Client, span: Span, fua: bool) -> BoxFuture<'static, Done> {
        let (version, data) = self.ledger.write(span);
        let client = client.clone();
        Box::pin(async move {
            let offset = span.first * BLOCK as u64;
            let result = client.write(offset, Bytes::from(data), fua).await;
            Done::Write { version, blocks: span.count, fua, result }
        })
    }

    fn flush_op(&mut self, client: &Client) -> BoxFuture<'static, Done> {
        let issued = self.ledger.flush();
        let client = client.clone();
        Box::pin(async move { Done::Flush { issued, result: client.flush().await } })
    }

    fn read_op(&mut self, client: &Client) -> BoxFuture<'static, Done> {
        let span = self.anywhere();
        let reading = self.ledger.read(span);
        let client = client.clone();
        Box::pin(async move {
            let result = read_span(&client, span).await;
            Done::Read { reading, result }
        })
    }

    /// A read by way of the server that was left, as another reader would that did not notice.
    fn former_read_op(&mut self, client: &Client) -> BoxFuture<'static, Done> {
        let span = self.anywhere();
        let reading = self.ledger.read(span);
        let former = self.former.clone().unwrap_or_else(|| client.clone());
        Box::pin(async move {
            let read = tokio::time::timeout(FORMER_LIMIT, read_span(&former, span)).await;
            Done::FormerRead { reading, data: read.ok().and_then(Result::ok) }
        })
    }

    /// Blocks that may be written; small numbers of them are more likely than large ones.
    fn place(&mut self) -> Span {
        for _ in 0..TRIES {
            let span = self.anywhere();
            if !self.ledger.is_frozen(span) {
                return span;
            }
        }
        // Few blocks are frozen, ever; one that is not is soon found.
        let area = self.ledger.area();
        let free = |b: &u64| !self.ledger.is_frozen(Span { first: *b, count: 1 });
        let first = area.blocks().find(free).unwrap_or(area.first);
        Span { first, count: 1 }
    }

    fn anywhere(&mut self) -> Span {
        let area = self.ledger.area();
        let most = 1 << self.rng.random_range(0..=BLOCKS_MAX.ilog2());
        let count = self.rng.random_range(most / 2 + 1..=most).min(area.count);
        let first = area.first + self.rng.random_range(0..=area.count - count);
        Span { first, count }
    }

    fn around(&mut self, other: Span) -> Span {
        let area = self.ledger.area();
        let back = self.rng.random_range(0..4);
        let first = other.first.saturating_sub(back).max(area.first);
        let count = self.rng.random_range(1..=8).min(area.blocks().end - first);
        let span = Span { first, count };
        if self.ledger.is_frozen(span) { self.place() } else { span }
    }

    /// Enters what came of an operation; `end` is why no more are issued, if so.
    fn settle(&mut self, done: Done, end: &Option<End>) -> Result<(), End> {
        match done {
            Done::Write { version, blocks, fua, result: Ok(()) } => {
                self.ledger.acked(version, fua);
                Progress::add(&self.progress.writes, 1);
                Progress::add(&self.progress.bytes, blocks * BLOCK as u64);
                Ok(())
            }
            Done::Write { version, result: Err(error), .. } => {
                if end.is_none() {
                    // The copy beside the server that was lost misses what it did not answer.
                    self.ledger.mark_absence();
                }
                self.ledger.unanswered(version);
                Err(ended(&error))
            }
            Done::Flush { issued, result } => {
                result.map_err(|e| self.lost(&e, end))?;
                self.ledger.flushed(issued);
                Progress::add(&self.progress.flushes, 1);
                Ok(())
            }
            Done::Read { reading, result } => {
                let data = result.map_err(|e| self.lost(&e, end))?;
                let findings = self.ledger.judge(&reading, &data);
                self.findings.add(findings);
                Progress::add(&self.progress.reads, 1);
                Ok(())
            }
            Done::FormerRead { reading, data: Some(data) } => {
                self.findings.add(self.ledger.judge(&reading, &data));
                Progress::add(&self.progress.reads, 1);
                Progress::add(&self.progress.former_reads, 1);
                Ok(())
            }
            Done::FormerRead { data: None, .. } => {
                self.former = None;
                Ok(())
            }
        }
    }

    fn lost(&mut self, error: &ClientError, end: &Option<End>) -> End {
        if end.is_none() {
            self.ledger.mark_absence();
        }
        ended(error)
    }
}

/// Reads blocks.
///
/// # Errors
/// As [`Client::read`].
pub async fn read_span(client: &Client, span: Span) -> Result<Bytes, ClientError> {
    let len = u32::try_from(span.count * BLOCK as u64).unwrap_or(u32::MAX);
    client.read(span.first * BLOCK as u64, len).await
}

fn ended(error: &ClientError) -> End {
    match error {
        ClientError::Disconnected(_) => End::Disconnected { unanswered: 0 },
        error => End::Failed(error.to_string()),
    }
}
