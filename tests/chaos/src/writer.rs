//! A client that enters everything in a ledger, and goes where the volume goes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep_attach::nbd::{Client, NbdUri};
use lockstep_replicator::demo::ledger::Span;
use lockstep_replicator::demo::verify;
use lockstep_replicator::demo::workload::{End, Orders, Progress, Workload};
use tokio::time::timeout;

use crate::board::{Board, bump, wait_for};
use crate::files::{self, Image};
use crate::seat::{Order, Seat};

/// Without progress for so long, the client's node is given up, if another one can have the volume.
const STALL: Duration = Duration::from_secs(6);
/// Without progress for so long there is no excuse.
const HANG: Duration = Duration::from_secs(180);
/// How often progress is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes written per second at most, so that resyncs come to an end beside it.
const RATE: u64 = 12 << 20;

/// What the client is.
#[derive(Debug)]
pub(crate) struct Writer {
    seat: Arc<Seat>,
    board: Arc<Board>,
    work: Workload,
    progress: Arc<Progress>,
    image: Image,
    pulse: Pulse,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Writes that were acknowledged.
    pub(crate) acked_writes: u64,
    /// Their bytes.
    pub(crate) acked_bytes: u64,
    /// Reads that were checked in between.
    pub(crate) reads_checked: u64,
    /// Of those, answered by a daemon that had been left.
    pub(crate) former_reads: u64,
    /// Blocks that were checked at the end.
    pub(crate) blocks_checked: u64,
    /// Longest time without an acknowledged write, in milliseconds.
    pub(crate) max_pause_ms: u64,
}

/// How long nothing was acknowledged.
#[derive(Debug)]
struct Pulse {
    done: u64,
    at: Instant,
    longest: Duration,
}

impl Pulse {
    fn look(&mut self, done: u64) -> Duration {
        if done > self.done {
            self.longest = self.longest.max(self.at.elapsed());
            (self.done, self.at) = (done, Instant::now());
        }
        self.at.elapsed()
    }
}

/// Why a session with one primary is over.
enum Session {
    /// The client was told to come to an end, and nothing is under way.
    Over,
    /// The connection ended, or is of no use.
    Lost,
    /// The volume is served elsewhere.
    Moved(NbdUri),
}

impl Writer {
    /// A client of a volume that holds `image` and nothing else.
    pub(crate) fn new(seat: Arc<Seat>, image: Image, seed: u64) -> Self {
        let first = image.fs.size_bytes() / 4096;
        let area = Span { first, count: seat.volume.size_bytes / 4096 - first };
        let progress = Arc::new(Progress::default());
        let board = Arc::clone(&seat.cluster.board);
        let work = Workload::new(seed, area, Arc::clone(&progress));
        let pulse = Pulse { done: 0, at: Instant::now(), longest: Duration::ZERO };
        Self { seat, board, work, progress, image, pulse }
    }

    /// Writes until told to end, then checks everything.
    pub(crate) async fn run(mut self, mut uri: Option<NbdUri>) -> Outcome {
        let name = self.seat.volume.name;
        let mut outcome = Outcome::default();
        loop {
            let place = match uri.take() {
                Some(uri) => uri,
                None => match self.seat.take().await {
                    Some(uri) => uri,
                    None => break,
                },
            };
            let Ok(Ok(client)) = timeout(CONNECT_LIMIT, Client::connect(&place)).await else {
                wait_for(LOOK).await;
                continue;
            };
            match self.session(&client).await {
                Session::Lost => {}
                Session::Moved(next) => {
                    uri = Some(next);
                    // Whoever served it may not know that it does not any more.
                    self.work.haunt(client);
                }
                Session::Over => match timeout(HANG, self.last_look(&client)).await {
                    Ok(Ok(blocks)) => {
                        outcome.blocks_checked = blocks;
                        let _ = client.close().await;
                        break;
                    }
                    Ok(Err(e)) if !self.board.healed.load(Ordering::Relaxed) => {
                        self.board.tell(&format!("{name}: the last look: {e:#}; again"));
                    }
                    Ok(Err(e)) => {
                        self.board.violation(&format!("{name}: the last look: {e:#}"));
                        break;
                    }
                    Err(_) => {
                        self.board.violation(&format!("{name}: the last look hangs"));
                        break;
                    }
                },
            }
        }
        self.judge();
        outcome.acked_writes = self.progress.writes.load(Ordering::Relaxed);
        outcome.acked_bytes = self.progress.bytes.load(Ordering::Relaxed);
        outcome.former_reads = self.progress.former_reads.load(Ordering::Relaxed);
        outcome.reads_checked = self.progress.reads.load(Ordering::Relaxed);
        outcome.max_pause_ms = u64::try_from(self.pulse.longest.as_millis()).unwrap_or(u64::MAX);
        outcome
    }

    /// Uses one primary as long as it is of use.
    async fn session(&mut self, client: &Client) -> Session {
        self.work.ledger.thaw();
        match timeout(STALL, self.work.decide(client)).await {
            Ok(Ok(_)) => self.judge(),
            // Nothing was written yet over this connection, so it can be given up.
            Ok(Err(_)) | Err(_) => return Session::Lost,
        }
        let orders = Orders::default();
        orders.rate.store(RATE, Ordering::Relaxed);
        let (session, end) = {
            let mut drive = std::pin::pin!(self.work.drive(client, &orders));
            let mut leaving = None;
            let watch = Watch {
                seat: &self.seat,
                board: &self.board,
                progress: &self.progress,
                orders: &orders,
            };
            loop {
                let looked = tokio::select! {
                    end = &mut drive => break (None, Some((end, leaving))),
                    moved = watch.look(&mut self.pulse, &mut leaving) => moved,
                };
                if let Some(session) = looked {
                    break (Some(session), None);
                }
            }
        };
        // Of what is still under way no answer will be taken any more.
        self.work.abandon();
        self.judge();
        match (session, end) {
            (Some(session), _) => {
                bump(&self.board.abandoned);
                session
            }
            (None, Some((End::Stopped, Some(order)))) => self.walk(client, order).await,
            (None, Some((End::Stopped, None))) => Session::Over,
            (None, Some((End::Failed(why), _))) => {
                bump(&self.board.failed_requests);
                self.board.tell(&format!("{}: a request failed: {why}", self.seat.volume.name));
                Session::Lost
            }
            (None, _) => Session::Lost,
        }
    }

    /// Detaches the volume and attaches it where it is wanted.
    async fn walk(&self, client: &Client, order: Order) -> Session {
        let _ = client.flush().await;
        if let Err(e) = self.seat.detach(true).await {
            self.board.tell(&format!("{}: detaching: {e:#}", self.seat.volume.name));
        }
        match self.seat.attach(order.to, false).await {
            Ok(uri) => Session::Moved(uri),
            Err(_) => Session::Lost,
        }
    }

    /// Everything is compared with what was acknowledged. Returns how many blocks were looked at.
    async fn last_look(&mut self, client: &Client) -> anyhow::Result<u64> {
        client.flush().await?;
        let findings = verify::area(client, &mut self.work.ledger).await?;
        let blocks = findings.blocks;
        self.work.findings.add(findings);
        if let Some(wrong) = files::check_image(client, &self.image).await? {
            self.board.violation(&format!("{}: {wrong}", self.seat.volume.name));
        }
        Ok(blocks + self.image.fs.size_bytes() / 4096)
    }

    /// What the reads found wrong goes on the board.
    fn judge(&mut self) {
        let findings = std::mem::take(&mut self.work.findings);
        if !findings.is_clean() {
            let name = self.seat.volume.name;
            self.board.violation(&format!(
                "{name}: {} acknowledged writes lost, {} blocks corrupt: {}",
                findings.lost.len(),
                findings.corrupt.len(),
                findings.words.join("; ")
            ));
        }
    }
}

/// What is looked at while the workload runs.
struct Watch<'a> {
    seat: &'a Seat,
    board: &'a Board,
    progress: &'a Progress,
    orders: &'a Orders,
}

impl Watch<'_> {
    /// One look, after a pause. Says if the session is over although the workload is not.
    async fn look(&self, pulse: &mut Pulse, leaving: &mut Option<Order>) -> Option<Session> {
        wait_for(LOOK).await;
        if self.board.is_over() {
            self.orders.stop.store(true, Ordering::Relaxed);
        }
        let still = pulse.look(self.progress.writes.load(Ordering::Relaxed));
        if leaving.is_none()
            && let Some(order) = self.seat.order()
        {
            if order.force {
                if let Ok(uri) = self.seat.attach(order.to, true).await {
                    return Some(Session::Moved(uri));
                }
            } else {
                self.orders.stop.store(true, Ordering::Relaxed);
                *leaving = Some(order);
            }
        }
        if still > HANG {
            let name = self.seat.volume.name;
            self.board.violation(&format!("{name}: no write was answered for {still:?}"));
            return Some(Session::Lost);
        }
        if still > STALL
            && let Some(uri) = self.seat.elsewhere().await
        {
            return Some(Session::Moved(uri));
        }
        None
    }
}
