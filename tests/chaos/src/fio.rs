//! fio, which puts a checksum into all that it writes and checks what it reads.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lockstep_attach::nbd::NbdUri;
use tokio::process::{Child, Command};

use crate::board::{Board, bump, wait_for};
use crate::seat::{Order, Seat};

/// How long a run writes.
const RUN_SECONDS: u64 = 6;
/// A run that takes longer is stuck, or the machine is slow: then another node is looked for.
const STALL: Duration = Duration::from_secs(RUN_SECONDS + 8);
/// A run that takes this long has no excuse.
const HANG: Duration = Duration::from_secs(180);
/// How long fio may take to notice that its volume was taken away.
const NOTICE: Duration = Duration::from_secs(5);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What fio says when it reads something else than it wrote.
const COMPLAINTS: [&str; 5] =
    ["verify failed", "bad magic", "bad header", "verify: bad", "verify type mismatch"];

/// The client of one volume.
#[derive(Debug)]
pub(crate) struct Fio {
    seat: Arc<Seat>,
    board: Arc<Board>,
    dir: PathBuf,
    seed: u64,
    runs: u64,
    /// The run whose writes on the first half were all acknowledged and flushed.
    kept: Option<u64>,
}

/// What a run of fio does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// Writes the first half once.
    Keep,
    /// Verifies what that wrote.
    Verify,
    /// Writes the second half at random for a while, and verifies it.
    Churn,
}

/// How a run of fio ended.
enum Ended {
    Clean,
    Lost,
    Moved(NbdUri),
}

impl Fio {
    /// A client that has written nothing yet.
    pub(crate) fn new(seat: Arc<Seat>, dir: PathBuf, seed: u64) -> Self {
        let board = Arc::clone(&seat.cluster.board);
        Self { seat, board, dir, seed, runs: 0, kept: None }
    }

    /// Runs fio again and again until told to end.
    pub(crate) async fn run(mut self, mut uri: Option<NbdUri>) {
        let mut jobs = [Job::Verify, Job::Keep, Job::Churn].into_iter().cycle();
        let mut last = false;
        while !last {
            let place = match uri.take() {
                Some(uri) => uri,
                None => match self.seat.take().await {
                    Some(uri) => uri,
                    None => return,
                },
            };
            // What is told as kept must verify on whoever serves the volume.
            let mut verified = false;
            loop {
                last = self.board.is_over();
                let job = match (last, self.kept) {
                    // A last look at nothing would be none.
                    (true, None) => Job::Keep,
                    _ if !verified || last => Job::Verify,
                    _ => jobs.next().unwrap_or(Job::Churn),
                };
                last &= job == Job::Verify;
                match self.job(&place, job).await {
                    Ok(Ended::Clean) => verified = true,
                    Ok(Ended::Lost) => {
                        last = false;
                        wait_for(LOOK).await;
                        break;
                    }
                    Ok(Ended::Moved(next)) => {
                        last = false;
                        uri = Some(next);
                        break;
                    }
                    Err(e) => {
                        self.board.violation(&format!("{}: fio: {e:#}", self.seat.volume.name));
                        return;
                    }
                }
                if last {
                    break;
                }
                if let Some(order) = self.seat.order() {
                    uri = self.walk(order).await;
                    break;
                }
            }
        }
    }

    /// One run.
    async fn job(&mut self, uri: &NbdUri, job: Job) -> anyhow::Result<Ended> {
        if job == Job::Verify && self.kept.is_none() {
            return Ok(Ended::Clean);
        }
        self.runs += 1;
        let number = if job == Job::Verify { self.kept.unwrap_or_default() } else { self.runs };
        if job == Job::Keep {
            self.kept = None;
        }
        let output = self.dir.join(format!("{}.fio", self.seat.volume.name));
        let mut child = self.command(uri, job, number, &output)?;
        let ended = self.watch(&mut child).await?;
        // Ended by us, if it has not ended.
        child.kill().await.context("ending fio")?;
        let words = std::fs::read_to_string(&output).unwrap_or_default();
        if COMPLAINTS.iter().any(|complaint| words.contains(complaint)) {
            let name = self.seat.volume.name;
            let kept = self.dir.join(format!("{name}-{}.fio", self.runs));
            std::fs::copy(&output, &kept)?;
            let line = words.lines().find(|l| COMPLAINTS.iter().any(|c| l.contains(c)));
            let line = line.unwrap_or_default();
            self.board
                .violation(&format!("{name}: fio ({job:?}, run {number}) reads wrong: {line}"));
        }
        match ended {
            Watched::Exit(status) if status.success() => {
                bump(&self.board.fio_runs);
                if job == Job::Keep {
                    self.kept = Some(number);
                }
                Ok(Ended::Clean)
            }
            Watched::Exit(_) => {
                bump(&self.board.failed_requests);
                Ok(Ended::Lost)
            }
            Watched::Moved(uri) => {
                bump(&self.board.abandoned);
                Ok(Ended::Moved(uri))
            }
            Watched::Hangs => Ok(Ended::Lost),
        }
    }

    fn command(
        &self,
        uri: &NbdUri,
        job: Job,
        number: u64,
        output: &std::path::Path,
    ) -> anyhow::Result<Child> {
        let half = self.seat.volume.size_bytes / 2;
        let offset = if job == Job::Churn { half } else { 0 };
        let log = std::fs::File::create(output)?;
        let mut command = Command::new("fio");
        command
            .args(["--name=chaos", "--thread", "--ioengine=nbd", "--rw=randwrite"])
            .arg(format!("--uri={uri}"))
            .args(["--bsrange=4k-128k", "--blockalign=4k", "--iodepth=16", "--verify=crc32c"])
            .args(["--verify_fatal=1", "--verify_state_save=0", "--eta=never"])
            .arg(format!("--randseed={}", self.seed ^ number))
            .arg(format!("--offset={offset}"))
            .arg(format!("--size={half}"))
            .arg(format!("--aux-path={}", self.dir.display()))
            .current_dir(&self.dir);
        match job {
            Job::Keep => command.arg("--end_fsync=1"),
            Job::Verify => command.arg("--verify_only"),
            Job::Churn => {
                command.args(["--time_based", &format!("--runtime={RUN_SECONDS}"), "--rate=12m"])
            }
        };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.spawn().context("starting fio")
    }

    async fn watch(&self, child: &mut Child) -> anyhow::Result<Watched> {
        let begin = Instant::now();
        loop {
            tokio::select! {
                status = child.wait() => {
                    return Ok(Watched::Exit(status.context("waiting for fio")?));
                }
                () = wait_for(LOOK) => {}
            }
            if let Some(order) = self.seat.order() {
                if !order.force {
                    // Carried out after this run.
                    self.seat.give(order);
                } else if let Ok(uri) = self.seat.attach(order.to, true).await {
                    // Its requests should fail now; a primary that is cut off learns of it later.
                    let _ = tokio::time::timeout(NOTICE, child.wait()).await;
                    return Ok(Watched::Moved(uri));
                }
            }
            if begin.elapsed() > HANG {
                let name = self.seat.volume.name;
                self.board.violation(&format!("{name}: fio is stuck for {HANG:?}"));
                return Ok(Watched::Hangs);
            }
            if begin.elapsed() > STALL
                && let Some(uri) = self.seat.elsewhere().await
            {
                return Ok(Watched::Moved(uri));
            }
        }
    }

    async fn walk(&self, order: Order) -> Option<NbdUri> {
        if let Err(e) = self.seat.detach(true).await {
            self.board.tell(&format!("{}: detaching: {e:#}", self.seat.volume.name));
        }
        self.seat.attach(order.to, order.force).await.ok()
    }
}

enum Watched {
    Exit(ExitStatus),
    Moved(NbdUri),
    Hangs,
}
