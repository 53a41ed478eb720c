//! The controllers of a primary's node, as the daemon has them: they ask all nodes how they are,
//! let the core decide what to do about the volume's copies, and do it. What they found out may be
//! old when they act, and those of an older primary may still be at work.

use lockstep_core::cluster::placement::Candidate;
use lockstep_core::cluster::replacement::{NodeState, Verdict, View, assess, surplus, vanished};
use lockstep_core::cluster::trim::{settle, spare};
use lockstep_core::id::{NodeId, ReplicaId, Tick};
use lockstep_core::primary::{Event as PrimaryEvent, Phase};
use lockstep_core::record::{Record, ReplicaState};
use std::collections::BTreeSet;

use super::errands::{Act, Errand, What};
use super::{Event, MS, Stage, World};
use crate::cluster::{Keeping, POOL};

/// What a node says of itself, or what is said of one that is silent.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    node: NodeId,
    live: bool,
    /// Its pool, if there is one.
    pool: Option<Candidate>,
    /// The copy that it has.
    copy: Option<ReplicaId>,
    leaving: bool,
}

impl Told {
    /// The node.
    pub(super) fn name(&self) -> &NodeId {
        &self.node
    }

    /// Its pool, if it has any.
    pub(super) fn pool(&self) -> Option<&Candidate> {
        self.pool.as_ref()
    }

    /// Is it being emptied?
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }
}

/// What all nodes said.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    pub(super) told: Vec<Told>,
    /// How many wishes there were then.
    wishes: u64,
}

impl World {
    /// Do controllers look after copies, now?
    pub(crate) fn keeping(&self) -> Option<Keeping> {
        let busy = matches!(self.stage, Stage::Chaos | Stage::Healing { .. });
        self.cluster.keeping.filter(|_| busy)
    }

    /// The next look at the copies of this primary.
    pub(crate) fn keep_later(&mut self, node: usize, seat: u64) {
        let Some(keeping) = self.keeping() else { return };
        let delay = self.rng.latency(keeping.pause_ms * MS);
        self.schedule.after(delay, Event::Keep { node, seat });
    }

    /// A look begins: all nodes are asked.
    pub(crate) fn keep(&mut self, node: usize, seat: u64) {
        if self.keeping().is_none() {
            return;
        }
        let phase = self.nodes[node].seat(seat).filter(|s| !s.is_over()).map(|s| s.phase);
        let Some(phase) = phase else {
            self.cluster.memories.remove(&seat);
            return;
        };
        let works = matches!(phase, Phase::Recovering | Phase::Active | Phase::Suspended);
        if !works || self.is_meta_away(node) {
            return self.keep_later(node, seat);
        }
        let survey = self.survey(node);
        let slow = if self.rng.chance(50) { 1500 * MS } else { 10 * MS };
        let delay = self.rng.latency(slow);
        let what = What::Look(survey);
        self.send_errand(Errand { node, process: self.nodes[node].process, seat, what }, delay);
    }

    /// What a node hears when it asks all others.
    pub(crate) fn survey(&self, from: usize) -> Survey {
        let now = self.now();
        let known = (0..self.nodes.len()).filter(|n| !self.cluster.removed.contains(n));
        let told = known.map(|index| {
            let node = &self.nodes[index];
            let cut = |a, b| a != b && self.net.blocked_until(a, b) > now;
            let heard = !cut(from, index) && !cut(index, from);
            let live = node.up && node.paused_until <= now && heard;
            let works = node.gone_until <= now;
            let pool = &self.cluster.pools[index];
            let pool = match live {
                true => works.then(|| pool.clone()),
                false => Some(Candidate {
                    pool: POOL.to_owned(),
                    free_bytes: 0,
                    live: false,
                    ..pool.clone()
                }),
            };
            let copy = node.copy.as_ref().map(|c| c.rid);
            let leaving = self.cluster.leaving.contains(&index);
            Told { node: node.name.clone(), live, pool, copy, leaving }
        });
        Survey { told: told.collect(), wishes: self.cluster.wishes }
    }

    /// All have answered, or not: what is to be done?
    pub(super) fn look_after(&mut self, node: usize, seat: u64, survey: &Survey) {
        let record = self.meta.record().clone();
        let instance = self.nodes[node].seat(seat).map(|s| s.instance);
        let ours = instance.is_some() && record.primary.as_ref().map(|p| p.instance) == instance;
        let Some(keeping) = self.keeping().filter(|_| ours && !self.is_meta_away(node)) else {
            return self.keep_later(node, seat);
        };
        let reached = self.reached(node, seat);
        let at_hand = record.in_sync().filter(|r| reached.contains(&r.rid)).count();
        // As for a daemon, nothing is calm while a copy is not reached.
        let all_there = record.replicas.iter().all(|r| reached.contains(&r.rid));
        let now = self.nodes[node].tick(self.now());
        let states = self.node_states(seat, &record, survey, &reached, now);
        let candidates: Vec<Candidate> =
            survey.told.iter().filter_map(|t| t.pool.clone()).collect();
        let view = View {
            follow: false,
            record: &record,
            nodes: &states,
            candidates: &candidates,
            sets: &self.cluster.sets,
            now,
            grace_ms: keeping.grace_ms,
        };
        let (verdict, gone) = (assess(&view), vanished(&view));
        let (too_many, healthy) = (surplus(&view), spare(&view));
        let active = self.nodes[node].seat(seat).is_some_and(|s| s.phase == Phase::Active);
        let told = verdict.to_string();
        let name = self.nodes[node].name.clone();
        let memory = self.cluster.memories.entry(seat).or_default();
        let news = memory.told != told;
        (memory.told, memory.calm) = (told.clone(), None);
        if news {
            self.say(|| format!("{name}: copies: {told}"));
        }
        if let Some(next) = settle(&record, self.cluster.wanted, at_hand) {
            return self.act(node, seat, Act::Want(next));
        }
        if let Some(rid) = gone {
            self.outcome.coverage.copies_vanished += 1;
            return self.act(node, seat, Act::Forget(rid));
        }
        if let Verdict::Replace(replace) = &verdict
            && let Some(target) = self.index_of(&replace.node)
        {
            return self.act(node, seat, Act::Make(target));
        }
        if let Some(rid) = healthy.filter(|_| active) {
            self.outcome.coverage.copies_spared += 1;
            self.tell_primary(node, seat, PrimaryEvent::Release(rid));
            return self.keep_later(node, seat);
        }
        match too_many {
            Some(rid) => self.forget_surplus(node, seat, rid, now),
            None => {
                let calm = (active && all_there).then(|| (self.meta.revision(), survey.wishes));
                let memory = self.cluster.memories.entry(seat).or_default();
                memory.surplus.clear();
                memory.calm = calm;
                self.keep_later(node, seat);
            }
        }
    }

    /// Forgets a copy that is not needed any more, at once if it left in good order.
    fn forget_surplus(&mut self, node: usize, seat: u64, rid: ReplicaId, now: Tick) {
        let entry = self.meta.record().replica(rid);
        let left = entry.is_some_and(|r| r.state == ReplicaState::Leaving);
        let forget_ms = self.cluster.keeping.map_or(0, |k| k.forget_ms);
        let memory = self.cluster.memories.entry(seat).or_default();
        let since = *memory.surplus.entry(rid).or_insert(now);
        if left || now.ms_since(since) >= forget_ms {
            return self.act(node, seat, Act::Forget(rid));
        }
        self.keep_later(node, seat);
    }

    /// Copies to which a primary has a connection.
    fn reached(&mut self, node: usize, seat: u64) -> BTreeSet<ReplicaId> {
        let Some(s) = self.nodes[node].seat(seat) else { return BTreeSet::new() };
        let status = s.primary.status();
        status.replicas.iter().filter(|(_, r)| r.connected).map(|(rid, _)| *rid).collect()
    }

    /// The nodes as this volume sees them. One that answers, but whose copy is not reached, is as
    /// good as silent to it.
    fn node_states(
        &mut self,
        seat: u64,
        record: &Record,
        survey: &Survey,
        reached: &BTreeSet<ReplicaId>,
        now: Tick,
    ) -> Vec<NodeState> {
        let memory = self.cluster.memories.entry(seat).or_default();
        let mut states = Vec::new();
        for told in &survey.told {
            let entry = record.replicas.iter().find(|r| r.node == told.node);
            let there = entry.map_or(told.live, |entry| reached.contains(&entry.rid));
            let has_pool = told.pool.as_ref().is_some_and(|p| p.pool == POOL);
            let lacks = |rid| told.live && has_pool && told.copy != Some(rid);
            let node = told.node.clone();
            let silent_since = if there {
                memory.silent.remove(&node);
                None
            } else {
                Some(*memory.silent.entry(node.clone()).or_insert(now))
            };
            states.push(NodeState {
                node,
                silent_since,
                answers: told.live,
                lacks_copy: entry.is_some_and(|entry| lacks(entry.rid)),
                leaving: told.leaving,
            });
        }
        states
    }

    /// Nothing is left to do about the copies, says the primary's controller of the record as it
    /// is. Then there are as many as wanted, where they may be.
    pub(crate) fn is_kept(&mut self, seat: u64) -> bool {
        if self.cluster.keeping.is_none() {
            return true;
        }
        let now = Some((self.meta.revision(), self.cluster.wishes));
        let memory = self.cluster.memories.get(&seat).filter(|m| m.calm == now);
        let Some(told) = memory.map(|m| m.told.clone()) else { return false };
        let record = self.meta.record();
        let wanted = self.cluster.wanted;
        let leaving = |name: &NodeId| {
            self.index_of(name).is_none_or(|index| self.cluster.leaving.contains(&index))
        };
        let enough = told == Verdict::Enough.to_string();
        let right = record.replicas.len() == usize::from(wanted.repl)
            && (record.repl, record.min_in_sync) == (wanted.repl, wanted.min_in_sync)
            && !record.replicas.iter().any(|r| leaving(&r.node));
        if enough && !right {
            let record = super::records::describe(record);
            self.fail("copies", format!("{wanted:?} are wanted, and {told}: {record}"));
        }
        true
    }
}
