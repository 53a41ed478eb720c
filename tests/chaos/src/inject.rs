//! Carries the plan out. Every fault is undone by the one who injected it, also the last one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::board::{bump, wait_for};
use crate::cluster::Cluster;
use crate::node::Node;
use crate::plan::{Kind, Step, Target};
use crate::seat::{IN_SYNC, Order, Seat};
use crate::volume::NODES;

/// Faults of nodes or of the network between them at the same time.
const AT_ONCE: usize = 2;
/// How long a daemon may take to end when asked to.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long a killed daemon's copies may stay in sync by the record before it is started again.
const REMOVAL_LIMIT: Duration = Duration::from_secs(20);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// One turn of a partition that comes and goes.
const FLAP: Duration = Duration::from_millis(700);

/// Injects all faults; returns when the last one is undone.
pub(crate) async fn inject(cluster: &Arc<Cluster>, seats: &[Arc<Seat>], steps: &[Step]) {
    let begin = Instant::now();
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut faults = JoinSet::new();
    for step in steps {
        wait_for(Duration::from_millis(step.at_ms).saturating_sub(begin.elapsed())).await;
        let target = match step.target {
            Target::Node(index) => Some(index),
            Target::Serving(volume) => seats[volume].at(),
        };
        let Some(target) = target else {
            bump(&cluster.board.skipped);
            continue;
        };
        if let (Kind::Move | Kind::Steal, Target::Serving(volume)) = (step.kind, step.target) {
            let order =
                Order { to: (target + step.other) % NODES, force: step.kind == Kind::Steal };
            cluster.board.tell(&format!(
                "{} of {} to {}",
                step.kind.name(),
                seats[volume].volume.name,
                cluster.nodes[order.to].name
            ));
            cluster.board.count(step.kind);
            seats[volume].give(order);
            continue;
        }
        // Without the record store nobody could say that a copy is not needed.
        let owner = step.kind == Kind::Replace && target + 1 == NODES;
        let target = if owner { step.other - 1 } else { target };
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { break };
        let fault = Fault { cluster: Arc::clone(cluster), step: *step, target };
        if fault.is_of_process() && fault.node().busy.swap(true, Ordering::SeqCst) {
            bump(&cluster.board.skipped);
            continue;
        }
        faults.spawn(fault.run(permit));
    }
    while let Some(ended) = faults.join_next().await {
        if let Err(e) = ended {
            cluster.board.violation(&format!("a fault could not be carried out: {e}"));
        }
    }
}

/// A fault that has found its node.
#[derive(Debug)]
struct Fault {
    cluster: Arc<Cluster>,
    step: Step,
    target: usize,
}

impl Fault {
    fn node(&self) -> &Node {
        &self.cluster.nodes[self.target]
    }

    fn other(&self) -> usize {
        (self.target + self.step.other) % NODES
    }

    fn is_of_process(&self) -> bool {
        use Kind::{Kill, Owner, Replace, Restart, Stop};
        matches!(self.step.kind, Kill | Owner | Replace | Restart | Stop)
    }

    async fn last(&self) {
        wait_for(Duration::from_millis(self.step.for_ms)).await;
    }

    async fn run(self, permit: OwnedSemaphorePermit) {
        self.tell();
        if self.step.kind != Kind::Replace {
            self.cluster.board.count(self.step.kind);
        }
        if let Err(e) = self.carry_out().await {
            let words = format!("{} could not be carried out: {e:#}", self.step.kind.name());
            self.cluster.board.violation(&words);
        }
        if self.is_of_process() {
            self.node().busy.store(false, Ordering::SeqCst);
        }
        drop(permit);
    }

    fn tell(&self) {
        let (kind, name, ms) = (self.step.kind, &self.node().name, self.step.for_ms);
        let other = &self.cluster.nodes[self.other()].name;
        let words = match kind {
            Kind::Partition | Kind::Flap => {
                format!("{} between {name} and {other} for {ms} ms", kind.name())
            }
            Kind::OneWay => format!("nothing from {name} reaches {other} for {ms} ms"),
            _ => format!("{} of {name} for {ms} ms", kind.name()),
        };
        self.cluster.board.tell(&words);
    }

    async fn carry_out(&self) -> anyhow::Result<()> {
        let (node, net) = (self.node(), &self.cluster.net);
        let (from, to) = (self.target, self.other());
        match self.step.kind {
            Kind::Kill => {
                node.kill().await?;
                self.last().await;
                self.cluster.launch(node)?;
            }
            Kind::Owner if self.step.for_ms.is_multiple_of(2) => {
                node.kill().await?;
                self.last().await;
                self.cluster.launch(node)?;
            }
            Kind::Restart | Kind::Owner => {
                self.end_in_order().await?;
                self.last().await;
                self.cluster.launch(node)?;
            }
            Kind::Stop => {
                node.pause(true);
                self.last().await;
                node.pause(false);
            }
            Kind::Replace => self.replace().await?,
            Kind::Fill => {
                let ballast = node.pool().join(format!("ballast-{}", self.step.at_ms));
                fill(&ballast)?;
                self.last().await;
                match std::fs::remove_file(&ballast) {
                    // The pool was emptied meanwhile.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    freed => freed.context("freeing the pool")?,
                }
            }
            Kind::OneWay => {
                net.cut(from, to).await?;
                self.last().await;
                net.mend(from, to).await?;
            }
            Kind::Partition => self.partition(true).await?,
            Kind::Flap => {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_millis(self.step.for_ms) {
                    self.partition(false).await?;
                    wait_for(FLAP / 2).await;
                }
            }
            Kind::Isolate => {
                for other in (0..NODES).filter(|other| *other != from) {
                    net.cut(from, other).await?;
                    net.cut(other, from).await?;
                }
                self.last().await;
                for other in (0..NODES).filter(|other| *other != from) {
                    net.mend(from, other).await?;
                    net.mend(other, from).await?;
                }
            }
            // Orders to clients, which were given already.
            Kind::Move | Kind::Steal => {}
        }
        Ok(())
    }

    async fn partition(&self, whole: bool) -> anyhow::Result<()> {
        let (one, other, net) = (self.target, self.other(), &self.cluster.net);
        net.cut(one, other).await?;
        net.cut(other, one).await?;
        if whole {
            self.last().await;
        } else {
            wait_for(FLAP).await;
        }
        net.mend(one, other).await?;
        net.mend(other, one).await
    }

    async fn end_in_order(&self) -> anyhow::Result<()> {
        let node = self.node();
        if !node.terminate(END_LIMIT).await? {
            let words = format!("the daemon of {} does not end when asked to", node.name);
            self.cluster.board.violation(&words);
            node.kill().await?;
        }
        Ok(())
    }

    /// The node's copies are destroyed, but only once the record counts on none of them: the last
    /// copy of what was acknowledged is never taken.
    async fn replace(&self) -> anyhow::Result<()> {
        let node = self.node();
        node.kill().await?;
        self.last().await;
        let emptied = self.until_unneeded().await;
        if emptied {
            for entry in std::fs::read_dir(node.pool())? {
                let path = entry?.path();
                if path.is_dir() {
                    std::fs::remove_dir_all(&path)?;
                } else {
                    std::fs::remove_file(&path)?;
                }
            }
            self.cluster.board.count(Kind::Replace);
            self.cluster.board.tell(&format!("{} comes back with an empty pool", node.name));
        } else {
            bump(&self.cluster.board.skipped);
            let words = format!("{} comes back as it was: its copies are needed", node.name);
            self.cluster.board.tell(&words);
        }
        self.cluster.launch(node)?;
        if emptied {
            // Else the daemon takes the pool's disk for one that is not mounted.
            self.cluster.forget_pool(&node.name).await?;
        }
        Ok(())
    }

    async fn until_unneeded(&self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < REMOVAL_LIMIT {
            let mut unneeded = true;
            for volume in crate::volume::ALL {
                let seen = self.cluster.seen(volume.name).await;
                let listed = |v: &lockstep_proto::v1::VolumeStatus| {
                    let here = |r: &&lockstep_proto::v1::VolumeReplica| r.node == self.node().name;
                    v.replicas.iter().filter(here).any(|r| r.state == IN_SYNC)
                };
                unneeded &= seen.is_some_and(|v| !listed(&v));
            }
            if unneeded {
                return true;
            }
            wait_for(PAUSE).await;
        }
        false
    }
}

/// Takes all the space that a pool has left.
fn fill(ballast: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(ballast).context("filling a pool")?;
    let facts = statvfs(ballast.parent().unwrap_or(ballast)).context("filling a pool")?;
    let free = facts.blocks_available().saturating_mul(facts.fragment_size());
    let len = i64::try_from(free)?;
    if len > 0 {
        // It is full enough also if somebody else took the last of it meanwhile.
        let _ = fallocate(&file, FallocateFlags::empty(), 0, len);
    }
    Ok(())
}
