//! Looks after the volumes that are attached here: a lost copy is replaced, and a copy too many
//! is forgotten. What to do is decided by the core; this asks around, and acts.

use std::collections::BTreeMap;
use std::time::Duration;

use lockstep_core::cluster::replacement::{NodeState, Verdict, View, assess, surplus};
use lockstep_core::id::{NodeId, ReplicaId, Tick, VolumeId};
use lockstep_core::primary::Phase;
use lockstep_core::record::{Record, ReplicaState};
use tonic::Status;

use super::survey::{Survey, candidates};
use super::{Admin, peers};
use crate::engine::PrimaryInfo;

const LONGEST_PAUSE_MS: u64 = 5000;
const SHORTEST_PAUSE_MS: u64 = 100;

/// What was seen at earlier looks.
#[derive(Debug, Default)]
struct Memory {
    /// Since when a node is silent, or its copy of this volume is not reached.
    silent: BTreeMap<(VolumeId, NodeId), Tick>,
    /// Since when a copy is one too many.
    surplus: BTreeMap<(VolumeId, ReplicaId), Tick>,
    /// What was last logged about a volume.
    told: BTreeMap<VolumeId, String>,
}

impl Admin {
    /// Looks again and again, until the daemon stops.
    pub(super) async fn keep_copies(self) {
        let pause = (self.inner.rebuild_after_ms / 4).clamp(SHORTEST_PAUSE_MS, LONGEST_PAUSE_MS);
        let mut memory = Memory::default();
        loop {
            tokio::select! {
                biased;
                () = self.inner.stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
            }
            let primaries = self.inner.engine.list_primaries().await;
            memory.forget_all_but(&primaries);
            let ailing: Vec<_> = primaries.iter().filter(|p| needs_a_look(p)).collect();
            if ailing.is_empty() {
                continue;
            }
            let survey = match self.survey_all().await {
                Ok(survey) => survey,
                Err(status) => {
                    tracing::debug!(why = status.message(), "cannot look after copies now");
                    continue;
                }
            };
            for primary in ailing {
                if let Err(status) = self.mend(primary, &survey, &mut memory).await {
                    memory.tell(primary.volume, &peers::plain(&status));
                }
            }
        }
    }

    async fn mend(
        &self,
        primary: &PrimaryInfo,
        survey: &Survey,
        memory: &mut Memory,
    ) -> Result<(), Status> {
        let uid = primary.volume;
        // Read afresh: the primary may not have seen yet what was changed a moment ago.
        let Some(record) = self.inner.catalog.record(uid).await? else { return Ok(()) };
        let record = record.value;
        let claims = record.primary.as_ref().map(|p| p.instance);
        if claims != Some(primary.instance) {
            return Ok(());
        }
        let now = self.inner.clock.now();
        let nodes = memory.nodes(primary, &record, survey, now);
        let pool = record.replicas.first().map_or("", |r| r.pool.as_str());
        let candidates = candidates(survey, pool);
        let view = View {
            record: &record,
            nodes: &nodes,
            candidates: &candidates,
            now,
            grace_ms: self.inner.rebuild_after_ms,
        };
        let verdict = assess(&view);
        match &verdict {
            Verdict::Enough => {}
            Verdict::Replace(replace) => {
                memory.tell(uid, &verdict.to_string());
                if let Some(volume) = self.volume_of(uid).await? {
                    self.add_here(&volume, Some(replace.node.clone())).await?;
                }
            }
            Verdict::Wait { .. }
            | Verdict::Braked { .. }
            | Verdict::NoSource
            | Verdict::RecordFull
            | Verdict::NoRoom(_) => memory.tell(uid, &verdict.to_string()),
        }
        let Some(rid) = surplus(&view) else {
            memory.surplus.retain(|(volume, _), _| *volume != uid);
            return Ok(());
        };
        let since = *memory.surplus.entry((uid, rid)).or_insert(now);
        if now.ms_since(since) >= self.inner.forget_after_ms
            && let Some(volume) = self.volume_of(uid).await?
        {
            self.forget(&volume, rid).await?;
        }
        Ok(())
    }
}

/// Whether anything about the volume's copies is not as it should be.
fn needs_a_look(primary: &PrimaryInfo) -> bool {
    if !matches!(primary.core.phase, Phase::Active | Phase::Suspended) {
        return false;
    }
    let Some(record) = &primary.core.record else { return false };
    let reached =
        |rid: &ReplicaId| primary.core.replicas.get(rid).is_some_and(|status| status.connected);
    record.replicas.len() != usize::from(record.repl)
        || record.replicas.iter().any(|r| r.state != ReplicaState::InSync || !reached(&r.rid))
}

impl Memory {
    fn forget_all_but(&mut self, primaries: &[PrimaryInfo]) {
        let there = |volume: &VolumeId| primaries.iter().any(|p| p.volume == *volume);
        self.silent.retain(|(volume, _), _| there(volume));
        self.surplus.retain(|(volume, _), _| there(volume));
        self.told.retain(|volume, _| there(volume));
    }

    /// Logs what is new about a volume.
    fn tell(&mut self, volume: VolumeId, what: &str) {
        if self.told.get(&volume).map(String::as_str) != Some(what) {
            tracing::info!(%volume, what, "copies");
            self.told.insert(volume, what.to_owned());
        }
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
            let reached = match record.replicas.iter().find(|r| r.node == node) {
                Some(entry) => {
                    primary.core.replicas.get(&entry.rid).is_some_and(|status| status.connected)
                }
                None => status.live,
            };
            let key = (primary.volume, node.clone());
            let silent_since = if reached {
                self.silent.remove(&key);
                None
            } else {
                Some(*self.silent.entry(key).or_insert(now))
            };
            states.push(NodeState { node, silent_since, leaving: false });
        }
        states
    }
}
