//! Copies of snapshots that are missing are made anew (D4, D5). Every node that has a snapshot
//! looks whether the others have it; what is to be done is decided by the core. That a node is to
//! make a copy stands in the snapshot's object before it begins: it finds it there, and so does
//! whoever has to remove what is left of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::cluster::kept::{Failing, Source, Verdict, View, assess};
use lockstep_core::cluster::replacement::NodeState;
use lockstep_core::id::{NodeId, SnapshotId, Tick};
use lockstep_proto::v1;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::catalog::{SnapshotObject, Stage, VolumeObject};
use super::survey::{Survey, candidates, copysets};
use super::{Admin, names, refuse, snapshots};
use crate::engine::{Remade, Remake, RemakeError, RemakeProgress};

/// How long an attempt asks again when a node breaks off: it may have got far.
const PATIENCE: Duration = Duration::from_secs(180);
const LONGEST_PAUSE_MS: u64 = 15_000;
/// Pause after an attempt that failed, doubled each time, and how often at most (to about a
/// minute).
const BACKOFF_MS: u64 = 1000;
const BACKOFF_DOUBLINGS: u32 = 6;
/// Attempts against others who change the same snapshot.
const ATTEMPTS: usize = 5;

/// The copies that this node makes, one at a time.
pub(super) type Remakes = BTreeMap<SnapshotId, Attempt>;

/// A copy that this node makes, or tries to make.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    progress: Arc<RemakeProgress>,
    task: Option<JoinHandle<()>>,
    /// Why the last attempt failed.
    trouble: String,
    /// The reason is one of this node.
    own_trouble: bool,
    failures: u32,
    /// When to try again.
    again: Tick,
    /// Nodes that may have blocks which are missed.
    missed: BTreeMap<NodeId, Missed>,
}

/// A node that did not give what may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missed {
    since: Tick,
    /// It answers, and can't read what it has.
    unable: bool,
}

/// How an attempt failed.
#[derive(Debug)]
struct Failure {
    why: String,
    /// Nodes that may have blocks which are missed, and whether they answer and can't read them.
    missed: Vec<(NodeId, bool)>,
    /// Another node may be able to make the copy.
    own: bool,
}

/// What was seen at earlier looks.
#[derive(Debug, Default)]
struct Memory {
    /// Since when a node is silent, or lacks its copy of this snapshot.
    silent: BTreeMap<(SnapshotId, NodeId), Tick>,
    /// Since when a node fails to make a copy of this snapshot, and when it was last heard to.
    failing: BTreeMap<(SnapshotId, NodeId), (Tick, Tick)>,
    told: BTreeMap<SnapshotId, String>,
}

impl Admin {
    /// Looks again and again, until the daemon stops.
    pub(super) async fn keep_snapshots(self) {
        let mut memory = Memory::default();
        while self.is_time_to_look(LONGEST_PAUSE_MS).await {
            if !self.is_introduced() {
                continue;
            }
            if let Err(status) = self.look_after_snapshots(&mut memory).await {
                tracing::debug!(why = status.message(), "cannot look after snapshots now");
            }
        }
    }

    async fn look_after_snapshots(&self, memory: &mut Memory) -> Result<(), Status> {
        let mut ready = self.inner.catalog.snapshots().await?;
        ready.retain(|snapshot| snapshot.stage == Stage::Ready);
        // The oldest first: those that follow share blocks with it.
        ready.sort_by_key(|snapshot| (snapshot.created_unix_ms, snapshot.uid));
        self.begin_next(&ready).await?;
        let own = &self.inner.node;
        ready.retain(|snapshot| snapshot.made_for.is_none() && snapshot.nodes.contains(own));
        memory.keep_only(&ready);
        if ready.is_empty() {
            return Ok(());
        }
        let nodes: BTreeSet<NodeId> =
            ready.iter().flat_map(SnapshotObject::whereabouts).cloned().collect();
        let some = self.survey_some(&nodes).await?;
        let volumes = self.inner.catalog.volumes().await?;
        let of = |snapshot: &SnapshotObject| volumes.iter().find(|v| v.uid == snapshot.volume_uid);
        ready.retain(|snapshot| !is_well(snapshot, wanted(snapshot, of(snapshot)), &some));
        if ready.is_empty() {
            return Ok(());
        }
        let survey = self.survey_all().await?;
        for snapshot in &ready {
            let mended = self.mend_snapshot(snapshot, of(snapshot), &survey, memory).await;
            if let Err(status) = mended {
                // Mostly somebody else was first.
                tracing::debug!(
                    snapshot = snapshot.name,
                    why = status.message(),
                    "looked at later"
                );
            }
        }
        Ok(())
    }

    /// Decides about a snapshot, and has it done.
    async fn mend_snapshot(
        &self,
        snapshot: &SnapshotObject,
        volume: Option<&VolumeObject>,
        survey: &Survey,
        memory: &mut Memory,
    ) -> Result<(), Status> {
        let record = match volume {
            Some(volume) => self.inner.catalog.record(volume.uid).await?.map(|r| r.value),
            None => None,
        };
        let in_sync: Vec<NodeId> =
            record.iter().flat_map(|r| r.in_sync()).map(|r| r.node.clone()).collect();
        let served = record.as_ref().is_some_and(|record| record.primary.is_some());
        let now = self.inner.clock.now();
        let nodes = memory.nodes(snapshot, survey, now);
        let grace_ms = self.inner.rebuild_after_ms;
        let failing = memory.failing(snapshot, survey, (now, grace_ms));
        let spread = volume.map_or_else(names::zone_label, |volume| volume.spread.clone());
        let verdict = assess(&View {
            wanted: wanted(snapshot, volume),
            copies: &snapshot.nodes,
            making: &snapshot.making,
            gaps: snapshot.lost_blocks > 0,
            gapped: &snapshot.gaps_on,
            failing: &failing,
            full: &full(survey, &snapshot.pool),
            volume: record.is_some().then_some(Source { in_sync: &in_sync, served }),
            nodes: &nodes,
            candidates: &candidates(survey, &snapshot.pool, &spread),
            sets: &copysets(survey),
            bytes: snapshot.size_bytes,
            pool: &snapshot.pool,
            now,
            grace_ms,
        });
        let what = verdict.to_string();
        if memory.told.insert(snapshot.uid, what.clone()).is_none_or(|before| before != what) {
            tracing::info!(snapshot = snapshot.name, what, "copies of a snapshot");
        }
        match verdict {
            Verdict::Make(node) => {
                let mut next = snapshot.clone();
                next.nodes.retain(|n| *n != node);
                next.making.push(node);
                self.change(snapshot, &next).await
            }
            Verdict::GiveUp(node) | Verdict::Forget(node) => {
                let mut next = snapshot.clone();
                next.forget(&node);
                self.drop_from(snapshot, &next, &node).await
            }
            Verdict::Enough
            | Verdict::Coming
            | Verdict::Wait { .. }
            | Verdict::Braked { .. }
            | Verdict::NoSource
            | Verdict::Follows
            | Verdict::NoRoom(_) => Ok(()),
        }
    }

    /// Has a node drop what it has of a snapshot, now or when it is back.
    async fn drop_from(
        &self,
        before: &SnapshotObject,
        after: &SnapshotObject,
        node: &NodeId,
    ) -> Result<(), Status> {
        self.note_dropped_on(before, node).await?;
        self.change(before, after).await?;
        // The node may have met the note while the snapshot still named it.
        self.note_dropped_on(before, node).await
    }

    /// Changes a snapshot that is still as it was when that was decided.
    async fn change(&self, before: &SnapshotObject, after: &SnapshotObject) -> Result<(), Status> {
        match self.inner.catalog.snapshot(&before.name).await? {
            Some(found) if found.value == *before => {
                self.inner.catalog.put_snapshot(Some(found.revision), after).await
            }
            _ => Err(Status::aborted("the snapshot has just changed; it is looked at again")),
        }
    }

    /// Begins with the oldest copy that this node is to make, if it makes none, and ends what is
    /// not wanted any more.
    async fn begin_next(&self, ready: &[SnapshotObject]) -> Result<(), Status> {
        let own = &self.inner.node;
        let wanted: Vec<&SnapshotObject> =
            ready.iter().filter(|snapshot| snapshot.making.contains(own)).collect();
        let now = self.inner.clock.now();
        let next = {
            let mut remakes = self.remakes();
            remakes.retain(|id, attempt| {
                let stays = wanted.iter().any(|snapshot| snapshot.uid == *id);
                if !stays {
                    attempt.progress.stop();
                }
                stays || attempt.is_running()
            });
            if remakes.values().any(Attempt::is_running) {
                return Ok(());
            }
            let due = |s: &&&SnapshotObject| remakes.get(&s.uid).is_none_or(|a| a.again <= now);
            wanted.iter().find(due).copied()
        };
        let Some(snapshot) = next else { return Ok(()) };
        let survey = self.survey_some(&snapshot.nodes.iter().cloned().collect()).await?;
        let mut sources = snapshot.nodes.clone();
        sources.sort_by_key(|node| !survey.get(node.as_str()).is_some_and(|status| status.live));
        let grace_ms = self.inner.rebuild_after_ms;
        let mut remakes = self.remakes();
        if self.inner.stop.is_cancelled() {
            return Ok(());
        }
        let attempt = remakes.entry(snapshot.uid).or_default();
        let lives = |node: &NodeId| {
            let status = survey.get(node.as_str()).filter(|status| status.live);
            status.is_some_and(|status| !lacks(status, snapshot))
        };
        let passed_over = attempt.passed_over((now, grace_ms), lives);
        attempt.progress = Arc::default();
        let order = Remake {
            id: snapshot.uid,
            volume: snapshot.volume_uid,
            blocks: names::blocks(snapshot.size_bytes),
            newest: snapshot.r#gen,
            pool: snapshot.pool.clone(),
            sources,
            nearest: nearest(snapshot, ready, own),
            passed_over,
            patience: PATIENCE,
        };
        let making =
            self.clone().remake_here(snapshot.clone(), order, Arc::clone(&attempt.progress));
        attempt.task = Some(tokio::spawn(making));
        Ok(())
    }

    async fn remake_here(
        self,
        snapshot: SnapshotObject,
        order: Remake,
        progress: Arc<RemakeProgress>,
    ) {
        let name = &snapshot.name;
        tracing::info!(snapshot = name, sources = ?order.sources, "a copy is made anew");
        let made = match self.inner.engine.remake_snapshot(order, progress).await {
            Ok(made) => self.enter_copy(&snapshot, made).await.map_err(|status| {
                // What was made is found by the next attempt.
                Failure { why: status.message().to_owned(), missed: Vec::new(), own: false }
            }),
            Err(RemakeError::Stopped) => return,
            Err(error) => Err(Failure {
                why: error.to_string(),
                own: error.is_own(),
                missed: match error {
                    RemakeError::Unasked { silent, unable, .. } => {
                        let silent = silent.into_iter().map(|node| (node, false));
                        silent.chain(unable.into_iter().map(|node| (node, true))).collect()
                    }
                    _ => Vec::new(),
                },
            }),
        };
        let Err(failure) = made else { return };
        let now = self.inner.clock.now();
        let mut remakes = self.remakes();
        let Some(attempt) = remakes.get_mut(&snapshot.uid) else { return };
        if attempt.trouble != failure.why {
            tracing::warn!(snapshot = name, why = failure.why, "a copy is not made yet");
        }
        attempt.note_failure(now, failure);
    }

    /// Names the copy that was made here in the snapshot's object; removes it if it is not wanted
    /// any more.
    async fn enter_copy(&self, snapshot: &SnapshotObject, made: Remade) -> Result<(), Status> {
        let own = &self.inner.node;
        for _ in 0..ATTEMPTS {
            let found = self.inner.catalog.snapshot(&snapshot.name).await?;
            let same = |o: &SnapshotObject| o.uid == snapshot.uid && o.stage == Stage::Ready;
            let Some(found) = found.filter(|found| same(&found.value)) else { break };
            let mut next = found.value;
            if next.nodes.contains(own) {
                return Ok(());
            }
            if !next.making.contains(own) {
                break;
            }
            next.enter(own, made.gaps);
            match self.inner.catalog.put_snapshot(Some(found.revision), &next).await {
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => return Err(status),
                Ok(()) => {
                    let Remade { moved_bytes, gaps } = made;
                    tracing::info!(snapshot = next.name, moved_bytes, gaps, "a copy was made anew");
                    return Ok(());
                }
            }
        }
        let dropped = self.inner.engine.drop_snapshot(snapshot.uid).await;
        dropped.map(drop).map_err(|error| refuse::engine(&error))
    }

    /// Ends all attempts, and waits for that; the next daemon takes them up again.
    pub(super) async fn end_remakes(&self) {
        let attempts = std::mem::take(&mut *self.remakes());
        for attempt in attempts.into_values() {
            attempt.progress.stop();
            if let Some(task) = attempt.task {
                // It has no result, and one that panicked has ended as well.
                let _ = task.await;
            }
        }
    }

    /// Ends an attempt to make a copy of a snapshot that is to be removed.
    pub(super) fn stop_remake(&self, id: SnapshotId) {
        if let Some(attempt) = self.remakes().get(&id) {
            attempt.progress.stop();
        }
    }

    /// The snapshots that this node has, and those that it makes.
    pub(super) async fn own_snapshots(&self) -> v1::LocalSnapshots {
        let uids = self.inner.engine.list_snapshots().await;
        let remake = |(id, attempt): (&SnapshotId, &Attempt)| {
            let (done_bytes, total_bytes, moved_bytes) = attempt.progress.told();
            let (uid, trouble) = (id.to_string(), attempt.trouble.clone());
            let own_trouble = attempt.own_trouble;
            v1::LocalRemake { uid, done_bytes, total_bytes, moved_bytes, trouble, own_trouble }
        };
        v1::LocalSnapshots {
            uids: uids.iter().map(ToString::to_string).collect(),
            remakes: self.remakes().iter().map(remake).collect(),
        }
    }

    /// Where the copies of a snapshot are.
    pub(super) async fn look_at_snapshot(
        &self,
        name: &str,
    ) -> Result<v1::GetSnapshotResponse, Status> {
        let found = self.inner.catalog.snapshot(names::volume_name(name)?).await?;
        let missing = || {
            Status::not_found(format!(
                "there is no snapshot `{name}`; `lockstep snapshot list` shows them"
            ))
        };
        let snapshot = found.ok_or_else(missing)?.value;
        let volume = self.inner.catalog.volume(&snapshot.volume).await?.map(|stored| stored.value);
        let volume = volume.filter(|volume| volume.uid == snapshot.volume_uid);
        let survey = self.survey_some(&snapshot.whereabouts().cloned().collect()).await?;
        let copies = snapshot.whereabouts().map(|node| copy(&snapshot, node, &survey)).collect();
        let wanted = u32::try_from(wanted(&snapshot, volume.as_ref())).unwrap_or(u32::MAX);
        let lost_blocks = snapshot.lost_blocks;
        let snapshot = Some(snapshots::shown(snapshot));
        Ok(v1::GetSnapshotResponse { snapshot, wanted, copies, lost_blocks })
    }

    /// Changed by single calls: whole even after a panic.
    fn remakes(&self) -> MutexGuard<'_, Remakes> {
        self.inner.remakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt {
    fn is_running(&self) -> bool {
        self.task.as_ref().is_some_and(|task| !task.is_finished())
    }

    fn note_failure(&mut self, now: Tick, failure: Failure) {
        let Failure { why, missed, own } = failure;
        (self.trouble, self.own_trouble) = (why, own);
        self.again = now.plus_ms(BACKOFF_MS << self.failures.min(BACKOFF_DOUBLINGS));
        self.failures = self.failures.saturating_add(1);
        if missed.is_empty() {
            // It did not get to ask, which tells nothing of them.
            return;
        }
        let before = std::mem::take(&mut self.missed);
        self.missed.extend(missed.into_iter().map(|(node, unable)| {
            let since = before.get(&node).map_or(now, |missed| missed.since);
            (node, Missed { since, unable })
        }));
    }

    /// The nodes that were missed for the whole grace. One that showed life meanwhile may come to
    /// answer, and is waited for as long once more.
    fn passed_over(
        &mut self,
        (now, grace_ms): (Tick, u64),
        lives: impl Fn(&NodeId) -> bool,
    ) -> BTreeSet<NodeId> {
        self.missed.retain(|node, missed| missed.unable || !lives(node));
        let long = |missed: &Missed| now.ms_since(missed.since) >= grace_ms;
        self.missed.iter().filter(|(_, missed)| long(missed)).map(|(n, _)| n.clone()).collect()
    }
}

impl Memory {
    fn keep_only(&mut self, snapshots: &[SnapshotObject]) {
        let there = |id: &SnapshotId| snapshots.iter().any(|snapshot| snapshot.uid == *id);
        self.silent.retain(|(id, _), _| there(id));
        self.failing.retain(|(id, _), _| there(id));
        self.told.retain(|id, _| there(id));
    }

    /// The nodes that fail to make a copy of this snapshot, or did within the grace.
    fn failing(
        &mut self,
        snapshot: &SnapshotObject,
        survey: &Survey,
        (now, grace_ms): (Tick, u64),
    ) -> Vec<Failing> {
        let uid = snapshot.uid.to_string();
        for node in &snapshot.making {
            let status = survey.get(node.as_str()).filter(|status| status.live);
            let kept =
                status.and_then(|s| s.info.as_ref()).and_then(|info| info.snapshots.as_ref());
            let remake = kept.and_then(|kept| kept.remakes.iter().find(|r| r.uid == uid));
            let key = (snapshot.uid, node.clone());
            match remake {
                Some(remake) if remake.own_trouble => {
                    self.failing.entry(key).or_insert((now, now)).1 = now;
                }
                Some(_) => {
                    self.failing.remove(&key);
                }
                // It does not answer, or has just been told to make one.
                None => {}
            }
        }
        self.failing.retain(|_, (_, last)| now.ms_since(*last) < grace_ms);
        let here = self.failing.iter().filter(|((id, _), _)| *id == snapshot.uid);
        here.map(|((_, node), (since, last))| Failing {
            node: node.clone(),
            since: *since,
            last: *last,
        })
        .collect()
    }

    /// The nodes as they concern this snapshot.
    fn nodes(&mut self, snapshot: &SnapshotObject, survey: &Survey, now: Tick) -> Vec<NodeState> {
        let mut states = Vec::new();
        for (name, status) in survey {
            let Some(node) = NodeId::new(name) else { continue };
            let lacks_copy = snapshot.nodes.contains(&node) && lacks(status, snapshot);
            let key = (snapshot.uid, node.clone());
            let silent_since = if status.live && !lacks_copy {
                self.silent.remove(&key);
                None
            } else {
                Some(*self.silent.entry(key).or_insert(now))
            };
            let (answers, leaving) = (status.live, status.evacuating);
            states.push(NodeState { node, silent_since, answers, lacks_copy, leaving });
        }
        states
    }
}

/// Copies that a snapshot is to have: as many as its volume, or as that was to have.
fn wanted(snapshot: &SnapshotObject, volume: Option<&VolumeObject>) -> usize {
    let told = volume.map_or(snapshot.repl, |volume| volume.repl);
    if told == 0 { snapshot.nodes.len() } else { usize::from(told) }
}

/// Whether a node says that it has the pool of a snapshot, but not the snapshot.
fn lacks(status: &v1::NodeStatus, snapshot: &SnapshotObject) -> bool {
    let Some(info) = status.info.as_ref().filter(|_| status.live) else { return false };
    let uid = snapshot.uid.to_string();
    let told = info.snapshots.as_ref().is_some_and(|kept| !kept.uids.contains(&uid));
    told && info.pools.iter().any(|pool| pool.name == snapshot.pool)
}

/// The nodes whose pool is nearly full, so that no copy is made there.
fn full(survey: &Survey, pool: &str) -> Vec<NodeId> {
    let is_full = |status: &v1::NodeStatus| {
        let mut pools = status.info.iter().flat_map(|info| &info.pools);
        pools.any(|p| p.name == pool && p.free_bytes < p.capacity_bytes / 20)
    };
    let full = survey.iter().filter(|(_, status)| is_full(status));
    full.filter_map(|(name, _)| NodeId::new(name)).collect()
}

/// Is there nothing to decide?
fn is_well(snapshot: &SnapshotObject, wanted: usize, survey: &Survey) -> bool {
    let has = |node: &NodeId| {
        let status = survey.get(node.as_str());
        status.is_some_and(|s| s.live && !s.evacuating && !lacks(s, snapshot))
    };
    snapshot.making.is_empty() && snapshot.nodes.len() == wanted && snapshot.nodes.iter().all(has)
}

/// The snapshots of the same volume here between which it was taken, the older one first. All are
/// told in their order.
fn nearest(snapshot: &SnapshotObject, ready: &[SnapshotObject], own: &NodeId) -> Vec<SnapshotId> {
    let beside = |s: &&SnapshotObject| {
        s.volume_uid == snapshot.volume_uid && s.pool == snapshot.pool && s.nodes.contains(own)
    };
    let order = |s: &SnapshotObject| (s.created_unix_ms, s.uid);
    let older = ready.iter().filter(beside).rev().find(|s| order(s) < order(snapshot));
    let newer = ready.iter().filter(beside).find(|s| order(s) > order(snapshot));
    older.into_iter().chain(newer).map(|s| s.uid).collect()
}

/// How the copy on a node is.
fn copy(snapshot: &SnapshotObject, node: &NodeId, survey: &Survey) -> v1::SnapshotCopy {
    let status = survey.get(node.as_str()).filter(|status| status.live);
    let state = match status {
        _ if snapshot.making.contains(node) => v1::SnapshotCopyState::Making,
        None => v1::SnapshotCopyState::Silent,
        Some(status) if lacks(status, snapshot) => v1::SnapshotCopyState::Missing,
        Some(_) => v1::SnapshotCopyState::Present,
    };
    let uid = snapshot.uid.to_string();
    let info = status.and_then(|status| status.info.as_ref());
    let remakes = info.and_then(|info| info.snapshots.as_ref()).map(|kept| &kept.remakes);
    let is_made = |_: &&v1::LocalRemake| state == v1::SnapshotCopyState::Making;
    let remake = remakes.and_then(|all| all.iter().find(|remake| remake.uid == uid));
    let remake = remake.filter(is_made).cloned();
    v1::SnapshotCopy { node: node.to_string(), state: state.into(), remake }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE_MS: u64 = 600_000;

    fn at(ms: u64) -> Tick {
        Tick(ms * 1000)
    }

    fn snapshot() -> SnapshotObject {
        serde_json::from_value(serde_json::json!({
            "version": 1, "name": "s", "uid": uuid::Uuid::nil(), "volume": "v",
            "volume_uid": uuid::Uuid::nil(), "stage": "ready", "pool": "default",
            "size_bytes": 4096, "gen": 1, "created_unix_ms": 0, "nodes": ["a"], "pause_us": 0,
            "making": ["b"],
        }))
        .unwrap()
    }

    /// Node b with a pool that has so much of 100 bytes free, which tells of this attempt.
    fn survey(free_bytes: u64, own_trouble: Option<bool>) -> Survey {
        let remake = |own_trouble| v1::LocalRemake {
            uid: uuid::Uuid::nil().to_string(),
            own_trouble,
            ..Default::default()
        };
        let remakes = own_trouble.map(remake).into_iter().collect();
        let snapshots = Some(v1::LocalSnapshots { uids: Vec::new(), remakes });
        let (name, capacity_bytes) = ("default".to_owned(), 100);
        let pools = vec![v1::Pool { name, capacity_bytes, free_bytes, ..Default::default() }];
        let info = Some(v1::Node { snapshots, pools, ..Default::default() });
        let status = v1::NodeStatus { live: true, info, ..Default::default() };
        Survey::from([("b".to_owned(), status)])
    }

    #[test]
    fn a_node_fails_for_as_long_as_it_says_so_and_is_spared_afterwards() {
        let (mut memory, mut snapshot) = (Memory::default(), snapshot());
        let node = NodeId::new("b").unwrap();
        let fails = |since, last| Failing { node: node.clone(), since: at(since), last: at(last) };
        let mut look = |snapshot: &SnapshotObject, trouble, ms| {
            memory.failing(snapshot, &survey(50, trouble), (at(ms), GRACE_MS))
        };
        assert_eq!(look(&snapshot, None, 0), [], "it has not begun");
        assert_eq!(look(&snapshot, Some(true), 1), [fails(1, 1)]);
        assert_eq!(look(&snapshot, Some(true), 20_000), [fails(1, 20_000)]);
        assert_eq!(look(&snapshot, Some(false), 30_000), [], "others are to blame");
        assert_eq!(look(&snapshot, Some(true), 40_000), [fails(40_000, 40_000)]);
        snapshot.making.clear();
        let end = 40_000 + GRACE_MS;
        assert_eq!(look(&snapshot, None, end - 1), [fails(40_000, 40_000)]);
        assert_eq!(look(&snapshot, None, end), []);
    }

    #[test]
    fn a_node_is_passed_over_when_it_was_missed_for_the_whole_grace() {
        let mut attempt = Attempt::default();
        let (b, c) = (NodeId::new("b").unwrap(), NodeId::new("c").unwrap());
        let failure = |missed: &[(&NodeId, bool)]| {
            let missed = missed.iter().map(|(node, unable)| ((*node).clone(), *unable)).collect();
            Failure { why: "blocks are missed".to_owned(), missed, own: false }
        };
        let over = |attempt: &mut Attempt, ms, alive: &[&NodeId]| {
            let passed_over = attempt.passed_over((at(ms), GRACE_MS), |node| alive.contains(&node));
            passed_over.iter().map(NodeId::to_string).collect::<String>()
        };
        attempt.note_failure(at(5), failure(&[(&b, false)]));
        attempt.note_failure(at(9), failure(&[(&b, false), (&c, true)]));
        assert_eq!(over(&mut attempt, GRACE_MS, &[]), "");
        assert_eq!(over(&mut attempt, GRACE_MS + 5, &[]), "b", "each by itself");
        attempt.note_failure(at(GRACE_MS + 6), failure(&[]));
        assert_eq!(over(&mut attempt, GRACE_MS + 9, &[&c]), "bc", "one that cannot read lives");
        assert_eq!(over(&mut attempt, GRACE_MS + 10, &[&b]), "c", "it lives");
        attempt.note_failure(at(GRACE_MS + 11), failure(&[(&b, false)]));
        assert_eq!(over(&mut attempt, 2 * GRACE_MS + 10, &[]), "");
        assert_eq!(over(&mut attempt, 2 * GRACE_MS + 11, &[]), "b");
    }

    #[test]
    fn a_pool_with_less_than_a_twentieth_left_is_full() {
        assert_eq!(full(&survey(4, None), "default"), [NodeId::new("b").unwrap()]);
        assert_eq!(full(&survey(5, None), "default"), []);
        assert_eq!(full(&survey(4, None), "other"), []);
    }
}
