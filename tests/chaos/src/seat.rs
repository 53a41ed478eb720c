//! Where a volume is attached: what a failover controller would decide.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockstep_attach::nbd::NbdUri;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use tokio::time::timeout;

use crate::board::{bump, lock, wait_for};
use crate::cluster::Cluster;
use crate::volume::{NODES, Volume};

/// How long one node is given to take the volume over.
const WAIT: Duration = Duration::from_secs(6);
/// How long its answer may come late.
const GRACE: Duration = Duration::from_secs(2);
/// How long no node may be able to. More than any fault and its recovery takes.
const NOWHERE_LIMIT: Duration = Duration::from_secs(180);
/// Pause between two rounds.
const PAUSE: Duration = Duration::from_millis(200);

/// To move the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// To which node.
    pub(crate) to: usize,
    /// Without detaching it first.
    pub(crate) force: bool,
}

/// One volume's attachment.
#[derive(Debug)]
pub(crate) struct Seat {
    /// The volume.
    pub(crate) volume: Volume,
    /// Everybody else.
    pub(crate) cluster: Arc<Cluster>,
    at: AtomicUsize,
    order: Mutex<Option<Order>>,
    rng: Mutex<StdRng>,
}

impl Seat {
    /// Of a volume that is attached nowhere.
    pub(crate) fn new(volume: Volume, cluster: Arc<Cluster>, seed: u64) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self { volume, cluster, at: AtomicUsize::new(NODES), order: Mutex::default(), rng }
    }

    /// The node that serves it, as far as the client knows.
    pub(crate) fn at(&self) -> Option<usize> {
        Some(self.at.load(Ordering::Relaxed)).filter(|at| *at < NODES)
    }

    /// Asks for a move; the client will carry it out.
    pub(crate) fn give(&self, order: Order) {
        *lock(&self.order) = Some(order);
    }

    /// The order to move, if there is one.
    pub(crate) fn order(&self) -> Option<Order> {
        lock(&self.order).take()
    }

    /// Attaches the volume wherever it is possible. `None`: nowhere, which is a violation.
    pub(crate) async fn take(&self) -> Option<NbdUri> {
        let begin = Instant::now();
        while begin.elapsed() < NOWHERE_LIMIT {
            for node in self.candidates().await {
                if let Ok(uri) = self.attach(node, false).await {
                    return Some(uri);
                }
            }
            wait_for(PAUSE).await;
        }
        let words = format!("{} cannot be attached anywhere", self.volume.name);
        let seen = self.cluster.seen(self.volume.name).await;
        let why = seen.map(|v| v.health_reason).unwrap_or_default();
        self.cluster.board.violation(&format!("{words} for {NOWHERE_LIMIT:?}: {why}"));
        None
    }

    /// Attaches it elsewhere than where it is, unless its primary is alive.
    pub(crate) async fn elsewhere(&self) -> Option<NbdUri> {
        let here = self.at();
        for node in self.candidates().await {
            if Some(node) != here
                && let Ok(uri) = self.attach(node, false).await
            {
                return Some(uri);
            }
        }
        None
    }

    /// Attaches it on a node.
    pub(crate) async fn attach(&self, node: usize, force: bool) -> anyhow::Result<NbdUri> {
        let name = self.volume.name;
        // A daemon that hangs is not waited for.
        let answers = self.cluster.seen_by(node, name).await;
        anyhow::ensure!(answers.is_some(), "{} does not answer", self.cluster.nodes[node].name);
        let control = self.cluster.control(node)?;
        let asked = control.attach(name, &self.cluster.nodes[node].name, WAIT, force);
        let uri = timeout(WAIT + GRACE, asked).await??;
        let before = self.at.swap(node, Ordering::Relaxed);
        if before != node {
            let board = &self.cluster.board;
            if before < NODES {
                bump(&board.takeovers);
            }
            board.tell(&format!("{name} is attached on {}", self.cluster.nodes[node].name));
        }
        Ok(uri)
    }

    /// Detaches it, by any node.
    pub(crate) async fn detach(&self, force: bool) -> anyhow::Result<()> {
        let mut outcome = Err(anyhow::anyhow!("no daemon answers"));
        for node in (0..NODES).rev() {
            if self.cluster.seen_by(node, self.volume.name).await.is_some() {
                outcome = self.cluster.control(node)?.detach(self.volume.name, force).await;
                if outcome.is_ok() {
                    break;
                }
            }
        }
        outcome
    }

    /// All nodes; those with a copy in sync first, as a scheduler would prefer them.
    async fn candidates(&self) -> Vec<usize> {
        let seen = self.cluster.seen(self.volume.name).await.unwrap_or_default();
        let holds = |index: &usize| {
            let name = &self.cluster.nodes[*index].name;
            seen.replicas.iter().any(|replica| {
                replica.node == *name && replica.state == IN_SYNC && replica.connected
            })
        };
        let mut all: Vec<usize> = (0..NODES).collect();
        all.shuffle(&mut *lock(&self.rng));
        all.sort_by_key(|index| !holds(index));
        all
    }
}

/// State of a replica that has every acknowledged write.
pub(crate) const IN_SYNC: i32 = lockstep_proto::v1::ReplicaState::InSync as i32;
