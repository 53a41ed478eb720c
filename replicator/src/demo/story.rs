//! What happens, in order.

mod mounted;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lockstep_attach::nbd::{Client, NbdUri};
use lockstep_proto::v1::{ReplicaState, VolumeStatus};
use tokio::time::{sleep, timeout};

use super::args::{DemoArgs, Input};
use super::cluster::{Cluster, Place};
use super::control::{all_in_sync, on_node, state};
use super::report::DemoReport;
use super::screen::Screen;
use super::verify;
use super::watch::Watch;
use super::workload::{DEPTH_MAX, End, Orders, Progress, Workload};

const VOLUME: &str = "demo";
/// The node that is killed.
const FIRST: usize = 0;
/// The node that takes over.
const SECOND: usize = 1;
/// How long one step may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Operations that are under way, at least, when the daemon is killed.
const BUSY: u64 = DEPTH_MAX as u64 / 2;
/// How long is written after all copies are in sync again.
const LAST_WRITES: Duration = Duration::from_secs(1);
/// How long is written with a copy missing, where there is no node for a new one.
const DEGRADED_WRITES: Duration = Duration::from_secs(3);

/// One demonstration.
pub(super) struct Story {
    args: DemoArgs,
    input: Input,
    cluster: Cluster,
    screen: Screen,
    progress: Arc<Progress>,
    report: DemoReport,
    /// When the killed daemon was started again.
    returned: Option<Instant>,
}

impl Story {
    /// Makes the directories; starts nothing yet.
    pub(super) fn new(
        args: DemoArgs,
        place: Place,
        seed: u64,
        screen: Screen,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Self> {
        let input = args.input()?;
        let cluster = Cluster::make(place, args.nodes)?;
        screen.daemons(cluster.names());
        let report = DemoReport {
            nodes: args.nodes,
            repl: args.repl,
            size_bytes: args.size_bytes(),
            fs: args.file_system().unwrap_or_default(),
            seed,
            ..DemoReport::default()
        };
        Ok(Self { args, input, cluster, screen, progress, report, returned: None })
    }

    /// Tells it all. If something goes wrong, what the daemons said last is shown.
    pub(super) async fn tell(mut self) -> anyhow::Result<DemoReport> {
        let outcome = match self.args.file_system() {
            Some(_) => self.act_mounted().await,
            None => self.act().await,
        };
        self.screen.clear();
        if let Err(error) = outcome {
            for end in self.cluster.log_ends() {
                self.screen.say(&end);
            }
            if !self.args.keep {
                self.screen.say("--keep leaves the daemons' data and logs to look at");
            }
            return Err(error);
        }
        let stuck = self.cluster.stop_all().await;
        if !stuck.is_empty() {
            bail!("the daemons of {} did not end when asked to", stuck.join(", "));
        }
        let mut report = self.report;
        report.elapsed_ms = millis(self.screen.elapsed());
        Ok(report)
    }

    async fn act(&mut self) -> anyhow::Result<()> {
        let client = self.set_up().await?;
        let last = usize::from(self.args.nodes) - 1;
        let mut watch = Watch::begin(self.cluster.control(last)?, VOLUME);
        let _shown = self.screen.show(watch.seen());
        let area = self.args.area(&self.input);
        let mut workload = Workload::new(self.report.seed, area, Arc::clone(&self.progress));

        let killed = self.write_and_kill(&mut workload, client).await?;
        let client = self.take_over(&mut workload, killed).await?;
        self.write_on(&mut workload, &client, &mut watch).await?;
        self.screen.phase("all copies are in sync: flushing, then comparing every block");
        client.flush().await.context("the last flush")?;
        self.report.acked_flushes += 1;
        let volume = watch.until("all copies in sync", LIMIT, |v| all_in_sync(v, 1)).await?;
        self.check_volume(&client, &mut workload).await?;
        self.note_counters(&volume, &workload);
        client.close().await.context("closing the connection")?;
        self.check_copies(&volume).await
    }

    /// Writes on the second node, while around it what was lost is made good.
    async fn write_on(
        &mut self,
        workload: &mut Workload,
        client: &Client,
        watch: &mut Watch,
    ) -> anyhow::Result<()> {
        let orders = Orders::default();
        orders.rate.store(self.args.rate_bytes(), Ordering::Relaxed);
        let mut drive = std::pin::pin!(workload.drive(client, &orders));
        let end = tokio::select! {
            end = &mut drive => end,
            changed = self.bring_back(watch, &orders) => {
                changed?;
                orders.stop.store(true, Ordering::Relaxed);
                timeout(LIMIT, drive).await.context("the last writes are not answered")?
            }
        };
        if end != End::Stopped {
            bail!("writing on {} ended: {end:?}", self.cluster.name(SECOND));
        }
        Ok(())
    }

    /// Starts the daemons and makes the volume.
    async fn start_and_create(&mut self) -> anyhow::Result<()> {
        let (nodes, repl) = (self.args.nodes, self.args.repl);
        self.screen.phase(&format!(
            "starting {nodes} daemons in {} (seed {})",
            self.cluster.dir().display(),
            self.report.seed
        ));
        self.cluster.start_all().await?;
        for index in 0..usize::from(nodes) {
            self.screen.daemon(index, "up");
        }
        self.screen.say(&format!("to look around: lockstep --server {} status", self.server()));
        let control = self.cluster.control(FIRST)?;
        let names: Vec<String> = self.cluster.names().into_iter().take(usize::from(repl)).collect();
        self.screen.phase(&format!("making a volume with copies on {}", names.join(", ")));
        control.create(VOLUME, self.report.size_bytes, names).await.map(drop)
    }

    /// Starts the daemons, makes the volume, attaches it and copies the file.
    async fn set_up(&mut self) -> anyhow::Result<Client> {
        let first = self.cluster.name(FIRST).to_owned();
        self.start_and_create().await?;
        let control = self.cluster.control(FIRST)?;
        let uri = control.attach(VOLUME, &first, LIMIT, false).await?;
        let client = connect(&uri).await?;
        self.screen.phase(&format!(
            "attached on {first}; copying {} bytes of {}",
            self.input.len,
            self.input.path.display()
        ));
        self.report.input_sha256 = verify::copy_input(&client, &self.input).await?;
        Ok(client)
    }

    fn server(&self) -> String {
        self.cluster.server()
    }

    /// Writes for a while, then kills the daemon that serves the volume in the midst of it.
    async fn write_and_kill(
        &mut self,
        workload: &mut Workload,
        client: Client,
    ) -> anyhow::Result<Instant> {
        let first = self.cluster.name(FIRST).to_owned();
        self.screen.phase("writing at random, as fast as it goes");
        let orders = Orders::default();
        let mut drive = std::pin::pin!(workload.drive(&client, &orders));
        let writing = Duration::from_secs(self.args.seconds.into());
        let progress = Arc::clone(&self.progress);
        let busy = async {
            sleep(writing).await;
            orders.deepest.store(true, Ordering::Relaxed);
            while progress.in_flight.load(Ordering::Relaxed) < BUSY {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            end = &mut drive => bail!("writing on {first} ended: {end:?}"),
            () = busy => {}
        }
        let killed = Instant::now();
        self.cluster.kill(FIRST)?;
        self.screen.daemon(FIRST, "killed");
        self.screen.phase(&format!("kill -9 of {first}'s daemon, in the midst of writing"));
        let end = timeout(LIMIT, drive).await.context("writes to a dead daemon do not fail")?;
        let End::Disconnected { unanswered } = end else {
            bail!("writing on {first} ended: {end:?}");
        };
        self.report.in_flight_at_kill = unanswered;
        self.cluster.reap(FIRST).await?;
        Ok(killed)
    }

    /// Attaches elsewhere, writes at once, and finds out what became of the writes under way.
    async fn take_over(
        &mut self,
        workload: &mut Workload,
        killed: Instant,
    ) -> anyhow::Result<Client> {
        let second = self.cluster.name(SECOND).to_owned();
        let uri = self.cluster.control(SECOND)?.attach(VOLUME, &second, LIMIT, false).await?;
        let client = connect(&uri).await?;
        timeout(LIMIT, workload.write_one(&client)).await.context("the first write hangs")??;
        self.report.failover_ms = millis(killed.elapsed());
        self.screen.phase(&format!(
            "{second} has taken over: first write acknowledged {} ms after the kill",
            self.report.failover_ms
        ));
        let decided = workload.decide(&client).await.context("reading what was under way")?;
        self.report.in_flight_blocks_done += decided.0;
        self.report.in_flight_blocks_not_done += decided.1;
        self.screen.say(&format!(
            "{} writes were under way at the kill: {} of their blocks hold them, {} do not; \
             so it must stay",
            self.report.in_flight_at_kill,
            self.report.in_flight_blocks_done,
            self.report.in_flight_blocks_not_done
        ));
        Ok(client)
    }

    /// While writes go on: a new copy is built, the killed daemon returns, all get in sync.
    async fn bring_back(&mut self, watch: &mut Watch, orders: &Orders) -> anyhow::Result<()> {
        let first = self.cluster.name(FIRST).to_owned();
        let copies = usize::from(self.args.repl);
        let spare = self.args.nodes > self.args.repl;
        if spare {
            self.rebuild(watch).await?;
        } else {
            self.screen.phase("writing on with a copy missing");
            sleep(DEGRADED_WRITES).await;
        }
        self.screen.daemon(FIRST, "starting");
        self.screen.phase(&format!("{first}'s daemon is started again"));
        let begin = Instant::now();
        self.returned = Some(begin);
        self.cluster.launch(FIRST)?;
        self.cluster.until_ready(FIRST).await?;
        self.screen.daemon(FIRST, "up");
        let seen = |v: &VolumeStatus| {
            let copy = on_node(v, &first);
            copy.is_some_and(|c| c.resync.is_some() || state(c) == ReplicaState::InSync)
        };
        watch.until(&format!("the copy on {first} is found again"), LIMIT, seen).await?;
        orders.absence_ended.store(true, Ordering::Relaxed);
        // The one too many goes once all are in sync, maybe between two looks.
        watch.until("all copies get in sync", LIMIT, |v| all_in_sync(v, copies)).await?;
        self.report.resync_ms = millis(begin.elapsed());
        self.screen.phase(&format!(
            "the copy on {first} is in sync again after {} ms; some more writes",
            self.report.resync_ms
        ));
        orders.rate.store(0, Ordering::Relaxed);
        sleep(LAST_WRITES).await;
        Ok(())
    }

    /// Waits for the new copy, which the daemons decide to build by themselves.
    async fn rebuild(&mut self, watch: &mut Watch) -> anyhow::Result<()> {
        let old: Vec<String> =
            self.cluster.names().into_iter().take(self.args.repl.into()).collect();
        let is_new = |node: &String| !old.contains(node);
        self.screen.phase("writing on; a new copy will be built in place of the lost one");
        let made = |v: &VolumeStatus| v.replicas.iter().any(|r| is_new(&r.node));
        let volume = watch.until("a new copy is begun", LIMIT, made).await?;
        let begin = Instant::now();
        let node = volume.replicas.iter().map(|r| &r.node).find(|n| is_new(n));
        let node = node.cloned().unwrap_or_default();
        self.screen.phase(&format!("a new copy is being built on {node}"));
        let built =
            |v: &VolumeStatus| on_node(v, &node).is_some_and(|r| state(r) == ReplicaState::InSync);
        watch.until(&format!("the copy on {node} is built"), LIMIT, built).await?;
        self.report.rebuild_ms = millis(begin.elapsed());
        self.screen.say(&format!("built within {} ms", self.report.rebuild_ms));
        Ok(())
    }

    /// Every block through the volume.
    async fn check_volume(
        &mut self,
        client: &Client,
        workload: &mut Workload,
    ) -> anyhow::Result<()> {
        let mut findings = std::mem::take(&mut workload.findings);
        let area = verify::area(client, &mut workload.ledger).await?;
        self.report.blocks_checked = area.blocks;
        findings.add(area);
        let (hash, blocks) = verify::input_hash(client, &self.input).await?;
        self.report.blocks_checked += blocks;
        self.report.input_sha256_ok = hash == self.report.input_sha256;
        self.report.lost_acked_writes = findings.lost.len() as u64;
        self.report.lost_flushed_blocks = findings.lost_flushed_blocks;
        self.report.corrupt_blocks = findings.corrupt.len() as u64;
        if !findings.is_clean() {
            for words in &findings.words {
                self.screen.say(words);
            }
        }
        self.screen.say(&format!("{} blocks compared", self.report.blocks_checked));
        Ok(())
    }

    fn note_counters(&mut self, volume: &VolumeStatus, workload: &Workload) {
        let counters = volume.counters.unwrap_or_default();
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        self.report.rebuild_bytes = counters.rebuild_bytes;
        self.report.resync_bytes = counters.resync_bytes;
        self.report.resync_needed_bytes = workload.ledger.missed_blocks() * 4096;
        self.report.acked_writes = read(&self.progress.writes);
        self.report.acked_bytes = read(&self.progress.bytes);
        self.report.acked_flushes += read(&self.progress.flushes);
        self.report.reads_checked = read(&self.progress.reads);
        self.report.longest_pause_ms = read(&self.progress.longest_pause_ms);
    }

    /// The copies, directly on disk, after the volume was closed.
    async fn check_copies(&mut self, volume: &VolumeStatus) -> anyhow::Result<()> {
        self.screen.phase("detaching, then comparing the copies on disk");
        let control = self.cluster.control(SECOND)?;
        control.detach(VOLUME, false).await?;
        let volume = control.volume(&volume.name).await?;
        let in_sync = volume.replicas.iter().filter(|r| state(r) == ReplicaState::InSync);
        let paths: Vec<PathBuf> = in_sync
            .map(|r| self.cluster.data_file(&r.node, &volume.uid))
            .collect::<anyhow::Result<_>>()?;
        self.report.replicas_compared = paths.len() as u64;
        let compare = move || verify::compare(&paths);
        let difference = tokio::task::spawn_blocking(compare).await.context("comparing")??;
        self.report.replicas_identical = difference.is_none();
        if let Some(difference) = difference {
            self.screen.say(&format!("the copies differ: {difference:?}"));
        }
        Ok(())
    }
}

async fn connect(uri: &NbdUri) -> anyhow::Result<Client> {
    Client::connect(uri).await.context("connecting to the volume")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
