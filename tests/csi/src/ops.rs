//! Operations in random order, and what must come of them.

mod handover;
mod places;
mod scene;
mod snapshots;
mod volumes;

use crate::calls::settled;
use crate::model::{Snapshot, Volume};
use crate::say;
use crate::world::World;
use anyhow::Context as _;
use lockstep_proto::csi::controller_client::ControllerClient;
use lockstep_proto::csi::node_client::NodeClient;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Volumes at a time.
const VOLUMES_MAX: usize = 12;
/// Snapshots at a time.
const SNAPSHOTS_MAX: usize = 8;
/// Places of a volume at a time.
const PLACES_MAX: usize = 2;

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) operations: u32,
    pub(crate) volumes: u32,
    pub(crate) snapshots: u32,
    pub(crate) clones: u32,
    pub(crate) expansions: u32,
    pub(crate) kills: u32,
    pub(crate) at_once: u32,
    pub(crate) handovers: u32,
    pub(crate) longest_handover_ms: u128,
}

/// A run: the world, and what must be true of it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) rng: SmallRng,
    pub(crate) told: Told,
    pub(crate) violations: Vec<String>,
    volumes: Vec<Volume>,
    snapshots: Vec<Snapshot>,
    verbose: bool,
    /// Nothing befalls any call.
    pub(crate) is_calm: bool,
    /// Makes names that were never used.
    next: u64,
}

/// What to do next, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Create,
    Again,
    Delete,
    Stage,
    Unstage,
    Publish,
    Unpublish,
    Write,
    Verify,
    List,
    Modify,
    Expand,
    Snapshot,
    SnapshotAgain,
    DeleteSnapshot,
    Restore,
    Clone,
    Steal,
    HandOver,
    Restart,
}

const OPS: [(Op, u32); 20] = [
    (Op::Create, 12),
    (Op::Again, 3),
    (Op::Delete, 24),
    (Op::Stage, 16),
    (Op::Unstage, 20),
    (Op::Publish, 16),
    (Op::Unpublish, 20),
    (Op::Write, 14),
    (Op::Verify, 8),
    (Op::List, 3),
    (Op::Modify, 2),
    (Op::Expand, 5),
    (Op::Snapshot, 10),
    (Op::SnapshotAgain, 2),
    (Op::DeleteSnapshot, 7),
    (Op::Restore, 9),
    (Op::Clone, 5),
    (Op::Steal, 1),
    (Op::HandOver, 1),
    (Op::Restart, 2),
];

/// Does something that may wait for a device.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> anyhow::Result<std::io::Result<T>> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

impl Run {
    pub(crate) fn new(world: World, rng: SmallRng, verbose: bool) -> Self {
        Self {
            world,
            rng,
            told: Told::default(),
            violations: Vec::new(),
            volumes: Vec::new(),
            snapshots: Vec::new(),
            verbose,
            is_calm: false,
            next: 0,
        }
    }

    pub(crate) fn violation(&mut self, what: &str) {
        let words = format!("VIOLATION in operation {}: {what}", self.told.operations);
        say(&words);
        self.violations.push(words);
    }

    pub(crate) fn note(&self, what: &str) {
        if self.verbose {
            say(what);
        }
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.world.csi.clone())
    }

    fn node(&self, node: usize) -> anyhow::Result<NodeClient<Channel>> {
        let node = self.world.nodes.get(node).context("there is no such node")?;
        Ok(NodeClient::new(node.csi.clone()))
    }

    /// A call that has to succeed.
    fn needed<T>(&mut self, what: &str, outcome: Result<T, Status>) -> Option<T> {
        match outcome {
            Ok(answer) => Some(answer),
            Err(status) => {
                self.violation(&format!("{what}: {:?}: {}", status.code(), status.message()));
                None
            }
        }
    }

    /// A call that has to be refused.
    fn refused<T>(&mut self, what: &str, code: Code, outcome: &Result<T, Status>) {
        match outcome {
            Err(status) if status.code() == code => {}
            Err(status) => {
                let (found, why) = (status.code(), status.message());
                self.violation(&format!("{what}: {found:?} and not {code:?}: {why}"));
            }
            Ok(_) => self.violation(&format!("{what}: it was not refused")),
        }
    }

    /// One operation.
    pub(crate) async fn one(&mut self) -> anyhow::Result<()> {
        self.told.operations += 1;
        let op = OPS.choose_weighted(&mut self.rng, |(_, weight)| *weight)?.0;
        if matches!(op, Op::SnapshotAgain | Op::DeleteSnapshot | Op::Restore) {
            return self.on_snapshot(op).await;
        }
        let which = self.pick(op);
        let id = which.map(|which| self.volumes[which].id.clone()).unwrap_or_default();
        self.note(&format!("{}: {op:?} {id}", self.told.operations));
        let has_room = self.volumes.len() < VOLUMES_MAX;
        match (op, which) {
            (Op::Create, _) if has_room => self.create().await,
            (Op::List, _) => self.list().await,
            (Op::Restart, _) => self.restart().await,
            (Op::Again, Some(volume)) => self.create_again(volume).await,
            (Op::Delete, Some(volume)) => self.delete(volume).await,
            (Op::Stage, Some(volume)) => self.stage(volume).await,
            (Op::Unstage, Some(volume)) => self.unstage(volume).await,
            (Op::Publish, Some(volume)) => self.publish(volume).await,
            (Op::Unpublish, Some(volume)) => self.unpublish(volume).await,
            (Op::Write, Some(volume)) => self.write(volume).await,
            (Op::Verify, Some(volume)) => self.verify(volume).await,
            (Op::Modify, Some(volume)) => self.modify(volume).await,
            (Op::Expand, Some(volume)) => self.expand(volume).await,
            (Op::Snapshot, Some(volume)) if self.snapshots.len() < SNAPSHOTS_MAX => {
                self.snapshot(volume).await
            }
            (Op::Clone, Some(volume)) if has_room => self.clone_volume(volume).await,
            (Op::Steal, Some(volume)) => self.steal(volume).await,
            (Op::HandOver, Some(volume)) => self.hand_over(volume).await,
            _ => Ok(()),
        }
    }

    async fn on_snapshot(&mut self, op: Op) -> anyhow::Result<()> {
        let all: Vec<usize> = (0..self.snapshots.len()).collect();
        let Some(which) = all.choose(&mut self.rng).copied() else { return Ok(()) };
        let id = self.snapshots[which].told.snapshot_id.clone();
        self.note(&format!("{}: {op:?} {id}", self.told.operations));
        match op {
            Op::SnapshotAgain => self.snapshot_again(which).await,
            Op::Restore if self.volumes.len() >= VOLUMES_MAX => Ok(()),
            Op::Restore => self.restore(which).await,
            _ => self.delete_snapshot(which).await,
        }
    }

    /// A volume that the operation suits. Removing also meets those in use, now and then.
    fn pick(&mut self, op: Op) -> Option<usize> {
        let also_used = self.rng.random_bool(0.1);
        let suits = |volume: &Volume| match op {
            Op::Delete => volume.staged.is_none() || also_used,
            Op::Again | Op::Modify | Op::Expand | Op::Snapshot | Op::Clone => true,
            Op::Stage => volume.staged.is_none(),
            Op::Unstage => volume.staged.is_some() && volume.published.is_empty(),
            Op::Publish => volume.staged.is_some() && volume.published.len() < PLACES_MAX,
            Op::Write => !volume.writable().is_empty(),
            Op::Unpublish | Op::Verify | Op::HandOver => !volume.published.is_empty(),
            Op::Steal => volume.staged.is_some(),
            _ => false,
        };
        let fitting: Vec<usize> =
            (0..self.volumes.len()).filter(|which| suits(&self.volumes[*which])).collect();
        fitting.choose(&mut self.rng).copied()
    }

    /// Calls that have to settle, without faults, and to succeed.
    async fn plain<T, A>(&mut self, what: &str, call: impl Fn() -> A) -> anyhow::Result<Option<T>>
    where
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let outcome = settled(what, call).await?;
        Ok(self.needed(what, outcome))
    }
}
