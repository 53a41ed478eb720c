//! Looks after the volumes that are attached here: a lost copy is replaced, a copy too many is let
//! go and forgotten, a node that is being emptied loses its copies. What to do is decided by the
//! core; this asks around, and acts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::cluster::follow::follow;
use lockstep_core::cluster::replacement::{NodeState, Verdict, View, assess, surplus, vanished};
use lockstep_core::cluster::trim::{Wanted, spare};
use lockstep_core::id::{InstanceId, NodeId, ReplicaId, Tick, VolumeId};
use lockstep_core::primary::Phase;
use lockstep_core::record::{Record, ReplicaEntry, ReplicaState};
use lockstep_proto::v1;
use tonic::Status;

use super::catalog::VolumeObject;
use super::evacuate::concerns;
use super::survey::{Survey, candidates, copysets};
use super::{Admin, peers};
use crate::engine::PrimaryInfo;

#[cfg(test)]
mod tests;

const LONGEST_PAUSE_MS: u64 = 5000;
const SHORTEST_PAUSE_MS: u64 = 100;

/// What is done about a volume's copies, or why nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// In words.
    pub(super) what: String,
    /// When something will be done, if that is waited for.
    pub(super) until: Option<Tick>,
    /// Something should be done, and cannot.
    pub(super) blocked: bool,
}

impl Told {
    fn now(what: String) -> Self {
        Self { what, until: None, blocked: false }
    }
}

/// A volume, and the claim by which it is attached here.
type Attachment = (VolumeId, InstanceId);

/// What was seen at earlier looks.
#[derive(Debug, Default)]
struct Memory {
    /// Since when a node is silent, or its copy of this volume is not reached.
    silent: BTreeMap<(VolumeId, NodeId), Tick>,
    /// Since when a copy is one too many.
    surplus: BTreeMap<(VolumeId, ReplicaId), Tick>,
    /// Attachments about which nothing was left to do at the last look, and what their owner
    /// wanted then.
    calm: BTreeMap<Attachment, Wanted>,
    /// Since when a volume is attached here, as far as that was asked.
    attached: BTreeMap<Attachment, Tick>,
}

impl Admin {
    /// Waits until it is time for the next look at copies, of which there are several within the
    /// time after which a lost one is made anew. False: the daemon stops.
    pub(super) async fn is_time_to_look(&self, longest_ms: u64) -> bool {
        let pause = (self.inner.rebuild_after_ms / 4).clamp(SHORTEST_PAUSE_MS, longest_ms);
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => false,
            () = tokio::time::sleep(Duration::from_millis(pause)) => true,
        }
    }

    /// Looks again and again, until the daemon stops.
    pub(super) async fn keep_copies(self) {
        let mut memory = Memory::default();
        while self.is_time_to_look(LONGEST_PAUSE_MS).await {
            let primaries = self.inner.engine.list_primaries().await;
            memory.forget_all_but(&primaries);
            self.told().retain(|volume, _| primaries.iter().any(|p| p.volume == *volume));
            if primaries.is_empty() {
                continue;
            }
            if let Err(status) = self.look_after(&primaries, &mut memory).await {
                tracing::debug!(why = status.message(), "cannot look after copies now");
            }
        }
    }

    async fn look_after(
        &self,
        primaries: &[PrimaryInfo],
        memory: &mut Memory,
    ) -> Result<(), Status> {
        let evacuated = self.inner.catalog.evacuations().await?;
        // Not only as the primary knows it: whoever wanted something else may not have reached us.
        let volumes = self.inner.catalog.volumes().await?;
        volumes.iter().for_each(|volume| self.limit_here(volume));
        let wanted: BTreeMap<VolumeId, Wanted> =
            volumes.iter().map(|v| (v.uid, wanted_of(v))).collect();
        let calm = |p: &PrimaryInfo| memory.is_calm(key_of(p), wanted.get(&p.volume));
        let due = |p: &&PrimaryInfo| works(p) && (needs_a_look(p, &evacuated) || !calm(p));
        let ailing: Vec<_> = primaries.iter().filter(due).collect();
        if ailing.is_empty() {
            return Ok(());
        }
        let survey = self.survey_all().await?;
        for primary in ailing {
            let key = key_of(primary);
            memory.calm.remove(&key);
            match self.mend(primary, &survey, memory).await {
                Ok(true) if !needs_a_look(primary, &evacuated) => {
                    memory.note_calm(key, wanted.get(&primary.volume));
                    self.told().remove(&primary.volume);
                }
                Ok(_) => {}
                Err(status) => self.tell(primary.volume, Told::now(peers::plain(&status))),
            }
        }
        Ok(())
    }

    /// Does what can be done about a volume now. Returns whether it was seen that nothing is left:
    /// of one that is not what it was a moment ago nothing is known.
    async fn mend(
        &self,
        primary: &PrimaryInfo,
        survey: &Survey,
        memory: &mut Memory,
    ) -> Result<bool, Status> {
        let uid = primary.volume;
        // Read afresh: the primary may not have seen yet what was changed a moment ago.
        let Some(record) = self.inner.catalog.record(uid).await? else { return Ok(false) };
        let record = record.value;
        let claims = record.primary.as_ref().map(|p| p.instance);
        let Some(volume) = self.volume_of(uid).await? else { return Ok(false) };
        if claims != Some(primary.instance) {
            return Ok(false);
        }
        if primary.core.record.as_ref() != Some(&record) {
            self.inner.engine.record_changed(uid);
        }
        let wanted = wanted_of(&volume);
        let at_hand = record.in_sync().filter(|r| reached(primary, &r.rid)).count();
        let pending = self.settle(&volume, wanted, Some(at_hand)).await?;
        let now = self.inner.clock.now();
        let nodes = memory.nodes(primary, &record, survey, now);
        let pool = record.replicas.first().map_or("", |r| r.pool.as_str());
        let candidates = candidates(survey, pool, &volume.spread);
        let view = View {
            record: &record,
            nodes: &nodes,
            candidates: &candidates,
            sets: &copysets(survey),
            now,
            grace_ms: self.inner.rebuild_after_ms,
            follow: volume.follow,
        };
        if let Some(rid) = vanished(&view) {
            tracing::info!(volume = volume.name, replica = %rid, "a copy is gone from its node");
            self.forget(&volume, rid).await?;
            return Ok(false);
        }
        let verdict = assess(&view);
        self.act(&volume, &verdict).await?;
        if primary.core.phase == Phase::Active
            && let Some(rid) = spare(&view)
        {
            tracing::info!(volume = volume.name, replica = %rid, "a copy is to leave");
            self.inner.engine.release(uid, rid);
            return Ok(false);
        }
        let forgotten = self.forget_surplus(&volume, &view, memory).await?;
        let local = self.go_along(&volume, &view, memory.attached_since(primary, now)).await?;
        Ok(verdict == Verdict::Enough && pending.is_empty() && forgotten && local)
    }

    /// Makes a copy here of a volume that wants one where it is served, if it has been here for
    /// long enough. Returns whether nothing of that is left to do.
    async fn go_along(
        &self,
        volume: &VolumeObject,
        view: &View<'_>,
        since: Tick,
    ) -> Result<bool, Status> {
        if let Some(replace) = follow(view, since) {
            let what = format!("a copy is made on {}, which serves the volume", replace.node);
            self.tell(volume.uid, Told::now(what));
            self.add_here(volume, Some(replace.node)).await?;
            return Ok(false);
        }
        let here = |r: &ReplicaEntry| r.node == self.inner.node;
        Ok(!volume.follow || view.record.in_sync().any(here))
    }

    async fn act(&self, volume: &VolumeObject, verdict: &Verdict) -> Result<(), Status> {
        let told = |until| Told { what: verdict.to_string(), until, blocked: verdict.is_blocked() };
        match verdict {
            Verdict::Enough => {
                self.told().remove(&volume.uid);
            }
            Verdict::Replace(replace) => {
                self.tell(volume.uid, told(None));
                self.add_here(volume, Some(replace.node.clone())).await?;
            }
            Verdict::Wait { until } => self.tell(volume.uid, told(Some(*until))),
            Verdict::Braked { .. }
            | Verdict::NoSource
            | Verdict::RecordFull
            | Verdict::NoRoom(_) => self.tell(volume.uid, told(None)),
        }
        Ok(())
    }

    /// Forgets a copy that is not needed any more, at once if it left in good order. Returns
    /// whether there was none.
    async fn forget_surplus(
        &self,
        volume: &VolumeObject,
        view: &View<'_>,
        memory: &mut Memory,
    ) -> Result<bool, Status> {
        let uid = volume.uid;
        let Some(rid) = surplus(view) else {
            memory.surplus.retain(|(volume, _), _| *volume != uid);
            return Ok(true);
        };
        let left = view.record.replica(rid).is_some_and(|r| r.state == ReplicaState::Leaving);
        let since = *memory.surplus.entry((uid, rid)).or_insert(view.now);
        if left || view.now.ms_since(since) >= self.inner.forget_after_ms {
            self.forget(volume, rid).await?;
        }
        Ok(false)
    }

    /// Remembers, and logs, what is new about a volume.
    fn tell(&self, volume: VolumeId, told: Told) {
        let before = self.told().insert(volume, told.clone());
        if before.is_none_or(|before| before.what != told.what) {
            tracing::info!(%volume, what = told.what, "copies");
        }
    }

    pub(super) fn told(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Told>> {
        self.inner.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is it at work? A volume that can't be opened, since it has too few members, may need a new copy
/// first of all.
fn works(primary: &PrimaryInfo) -> bool {
    matches!(primary.core.phase, Phase::Recovering | Phase::Active | Phase::Suspended)
}

fn key_of(primary: &PrimaryInfo) -> Attachment {
    (primary.volume, primary.instance)
}

fn wanted_of(volume: &VolumeObject) -> Wanted {
    Wanted { repl: volume.repl, min_in_sync: volume.min_in_sync }
}

fn reached(primary: &PrimaryInfo, rid: &ReplicaId) -> bool {
    primary.core.replicas.get(rid).is_some_and(|status| status.connected)
}

/// Whether a node says that it has the pool of a copy, but not the copy. Files that are too damaged
/// to be opened cannot tell whose they are, and are no copy: else a node whose only copy is such
/// could never get another one.
fn lacks(status: &v1::NodeStatus, entry: &ReplicaEntry) -> bool {
    let Some(info) = status.info.as_ref().filter(|_| status.live) else { return false };
    let rid = entry.rid.to_string();
    info.pools.iter().any(|pool| pool.name == entry.pool)
        && info.replicas.iter().all(|replica| replica.rid != rid)
}

/// Whether anything about the copies of a volume at work is not as it should be.
fn needs_a_look(primary: &PrimaryInfo, evacuated: &BTreeSet<NodeId>) -> bool {
    let Some(record) = primary.core.record.as_ref() else { return false };
    let unwell = |r: &ReplicaEntry| r.state != ReplicaState::InSync || !reached(primary, &r.rid);
    record.replicas.len() != usize::from(record.repl)
        || record.replicas.iter().any(unwell)
        || concerns(record, evacuated)
}

impl Memory {
    /// Was nothing left to do at the last look, and does the owner still want the same? A volume
    /// whose wishes are not known is looked at.
    fn is_calm(&self, attachment: Attachment, wanted: Option<&Wanted>) -> bool {
        let known = self.calm.get(&attachment);
        known.is_some() && known == wanted
    }

    /// Nothing is left to do for what is wanted.
    fn note_calm(&mut self, attachment: Attachment, wanted: Option<&Wanted>) {
        self.calm.extend(wanted.map(|wanted| (attachment, *wanted)));
    }

    /// Since when it is known to be attached here.
    fn attached_since(&mut self, primary: &PrimaryInfo, now: Tick) -> Tick {
        *self.attached.entry(key_of(primary)).or_insert(now)
    }

    fn forget_all_but(&mut self, primaries: &[PrimaryInfo]) {
        let there = |volume: &VolumeId| primaries.iter().any(|p| p.volume == *volume);
        self.silent.retain(|(volume, _), _| there(volume));
        self.surplus.retain(|(volume, _), _| there(volume));
        self.calm.retain(|(volume, _), _| there(volume));
        self.attached.retain(|(volume, _), _| there(volume));
    }

    /// The nodes as this volume sees them. A node that answers, but whose copy the primary does
    /// not reach, is as good as silent to it: its disk or its replica is broken.
    fn nodes(
        &mut self,
        primary: &PrimaryInfo,
        record: &Record,
        survey: &Survey,
        now: Tick,
    ) -> Vec<NodeState> {
        let mut states = Vec::new();
        for (name, status) in survey {
            let Some(node) = NodeId::new(name) else { continue };
            let entry = record.replicas.iter().find(|r| r.node == node);
            let reached = entry.map_or(status.live, |entry| reached(primary, &entry.rid));
            let lacks_copy = entry.is_some_and(|entry| lacks(status, entry));
            let key = (primary.volume, node.clone());
            let silent_since = if reached {
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
