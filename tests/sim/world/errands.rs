//! What controllers do about copies, step by step; each step may come late, meet a record that
//! somebody else has changed, or end without anybody knowing how.

use lockstep_core::cluster::placement::{Candidate, Want, choose};
use lockstep_core::cluster::trim::Wanted;
use lockstep_core::id::ReplicaId;
use lockstep_core::primary::MetaResult;
use lockstep_core::record::Record;

use super::host::formatted;
use super::keeper::Survey;
use super::records::{Author, Put};
use super::{Event, MS, Stage, World};
use crate::cluster::{POOL, is_spread};
use crate::content::BLOCK;
use crate::node::Copy;

/// Attempts against others who change the same record.
const ATTEMPTS: u32 = 10;
/// Time between two times that a node looks which files are to go.
const HOUSEKEEPING: u64 = 2000 * MS;

/// A step of a controller, which dies with its process.
#[derive(Debug)]
pub(crate) struct Errand {
    pub(crate) node: usize,
    pub(crate) process: u64,
    /// The primary for whose volume it is.
    pub(crate) seat: u64,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// The nodes have answered.
    Look(Survey),
    /// Something is done.
    Do(Act),
}

/// What is done to the record.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Other numbers of copies are put in force.
    Want(Wanted),
    /// A copy is forgotten.
    Forget(ReplicaId),
    /// An empty copy is made on a node.
    Make(usize),
    /// It is named in the record.
    Enter { target: usize, rid: ReplicaId, tries: u32 },
}

impl World {
    pub(crate) fn send_errand(&mut self, errand: Errand, delay: u64) {
        self.schedule.after(delay, Event::Errand(Box::new(errand)));
    }

    pub(super) fn act(&mut self, node: usize, seat: u64, act: Act) {
        let slow = if self.rng.chance(50) { 1000 * MS } else { 3 * MS };
        let delay = self.rng.latency(slow);
        let process = self.nodes[node].process;
        self.send_errand(Errand { node, process, seat, what: What::Do(act) }, delay);
    }

    pub(crate) fn errand(&mut self, errand: Errand) {
        let Errand { node, process, seat, what } = errand;
        let alive = self.nodes[node].up && self.nodes[node].process == process;
        if !alive || self.keeping().is_none() {
            return;
        }
        match what {
            What::Look(survey) => self.look_after(node, seat, &survey),
            What::Do(_) if self.is_meta_away(node) => self.keep_later(node, seat),
            What::Do(Act::Want(wanted)) => {
                let (record, txn) = (self.meta.record().clone(), self.uuid());
                let next = record.want(wanted.repl, wanted.min_in_sync, txn);
                if let Ok(next) = next {
                    self.controller_puts(node, next);
                }
                self.keep_later(node, seat);
            }
            What::Do(Act::Forget(rid)) => {
                self.forget_by_record(node, rid);
                self.keep_later(node, seat);
            }
            What::Do(Act::Make(target)) => match self.make(node, target) {
                Some(rid) => self.act(node, seat, Act::Enter { target, rid, tries: 0 }),
                None => self.keep_later(node, seat),
            },
            What::Do(Act::Enter { target, rid, tries }) => {
                if self.enter(node, target, rid, tries) {
                    self.keep_later(node, seat);
                } else {
                    self.act(node, seat, Act::Enter { target, rid, tries: tries + 1 });
                }
            }
        }
    }

    fn forget_by_record(&mut self, by: usize, rid: ReplicaId) {
        let (record, txn) = (self.meta.record().clone(), self.uuid());
        let Some(entry) = record.replica(rid).cloned() else { return };
        let Ok(next) = record.forget(rid, txn) else { return };
        if matches!(self.controller_puts(by, next), MetaResult::Written(_)) {
            self.outcome.coverage.copies_forgotten += 1;
            if let Some(node) = self.index_of(&entry.node) {
                self.discard(node, rid);
            }
        }
    }

    /// Makes an empty copy on a node if it still fits there.
    fn make(&mut self, by: usize, target: usize) -> Option<ReplicaId> {
        let record = self.meta.record().clone();
        let name = self.nodes[target].name.clone();
        if record.replicas.iter().any(|r| r.node == name) {
            return None;
        }
        let survey = self.survey(by);
        let leaving = survey.told.iter().filter(|t| t.is_leaving()).map(|t| t.name().clone());
        let mut pools: Vec<Candidate> =
            survey.told.iter().filter_map(|t| t.pool().cloned()).collect();
        pools.retain(|pool| pool.node == name);
        let want = Want {
            bytes: record.blocks * BLOCK as u64,
            copies: 1,
            pool: POOL.to_owned(),
            beside: record.replicas.iter().map(|r| r.node.clone()).collect(),
            exclude: leaving.collect(),
            ..Want::default()
        };
        match choose(&want, &pools, &self.cluster.sets) {
            Ok(chosen) => {
                let judged = is_spread(&want, &pools, &chosen);
                self.judge("copies", judged);
            }
            Err(error) => {
                self.say(|| format!("no node for another copy: {error}"));
                return None;
            }
        }
        // What an attempt left that broke off.
        let left = self.nodes[target].copy.as_ref().map(|c| c.rid);
        if left.is_some_and(|rid| record.replica(rid).is_some()) {
            return None;
        }
        self.abandon_copy(target);
        let rid = ReplicaId(self.uuid());
        let disk = formatted(rid, self.volume, record.lineage, record.blocks);
        self.nodes[target].copy = Some(Copy::new(rid, disk));
        self.open_copy(target, false);
        self.say(|| format!("{name}: an empty copy is made"));
        Some(rid)
    }

    /// Names a new copy in the record. Answers whether that is over.
    fn enter(&mut self, by: usize, target: usize, rid: ReplicaId, tries: u32) -> bool {
        let (record, txn) = (self.meta.record().clone(), self.uuid());
        let name = self.nodes[target].name.clone();
        if let Some(there) = record.replicas.iter().find(|r| r.node == name) {
            if there.rid != rid {
                self.discard(target, rid);
            }
            return true;
        }
        let result = match record.add_new(rid, name, POOL.to_owned(), txn) {
            Ok(next) => self.controller_puts(by, next),
            Err(_) => MetaResult::Unavailable,
        };
        match result {
            MetaResult::Written(_) => {
                self.outcome.coverage.copies_made += 1;
                true
            }
            MetaResult::Conflict | MetaResult::Unknown if tries < ATTEMPTS => false,
            _ => {
                self.discard(target, rid);
                true
            }
        }
    }

    /// A controller puts a record that it made from the one in force.
    fn controller_puts(&mut self, by: usize, next: Record) -> MetaResult {
        let expected = self.meta.revision();
        let result = self.put(Put { by, author: Author::Controller, expected, record: next });
        // An answer may take longer than anybody waits for it.
        let slow = self.meta.slow_until > self.now() && self.rng.chance(100);
        if slow { MetaResult::Unknown } else { result }
    }

    /// The files of a copy are to go: their node sees to it when it can.
    fn discard(&mut self, node: usize, rid: ReplicaId) {
        self.cluster.gone.insert((node, rid));
        self.remove_gone(node);
    }

    /// A node removes what is to go, unless it came into force after all.
    fn remove_gone(&mut self, node: usize) {
        if !self.nodes[node].up || self.is_meta_away(node) {
            return;
        }
        let gone: Vec<ReplicaId> =
            self.cluster.gone.iter().filter(|(n, _)| *n == node).map(|(_, rid)| *rid).collect();
        for rid in gone {
            self.cluster.gone.remove(&(node, rid));
            let held = self.nodes[node].copy.as_ref().is_some_and(|c| c.rid == rid);
            if held && self.meta.record().replica(rid).is_none() {
                self.abandon_copy(node);
                self.nodes[node].copy = None;
            }
        }
    }

    /// Each node keeps house now and then.
    pub(crate) fn keep_house(&mut self, node: usize) {
        self.cluster.removed.retain(|n| *n != node || !self.nodes[node].up);
        self.remove_gone(node);
        if self.stage != Stage::Done {
            self.schedule.after(HOUSEKEEPING, Event::KeepHouse(node));
        }
    }

    /// A node is to be emptied, or is not any more.
    pub(crate) fn evacuate(&mut self, node: usize) -> bool {
        if self.cluster.keeping.is_none() {
            return false;
        }
        if !self.cluster.leaving.remove(&node) {
            self.cluster.leaving.insert(node);
        }
        self.cluster.stir();
        let leaves = self.cluster.leaving.contains(&node);
        let name = self.nodes[node].name.clone();
        self.say(|| {
            format!("{name}: is {} emptied", if leaves { "being" } else { "not any more" })
        });
        true
    }

    /// A node that is down is removed from the cluster, unless it has the last good copy. When it
    /// starts again it is back.
    pub(crate) fn remove_node(&mut self, node: usize) -> bool {
        let name = self.nodes[node].name.clone();
        let others = |r: &&lockstep_core::record::ReplicaEntry| {
            r.node != name && self.index_of(&r.node).is_some_and(|n| self.nodes[n].up)
        };
        let last = !self.meta.record().in_sync().any(|r| others(&r));
        if self.cluster.keeping.is_none() || self.nodes[node].up || last {
            return false;
        }
        self.say(|| format!("{name}: is removed from the cluster"));
        self.cluster.leaving.remove(&node);
        self.cluster.removed.insert(node)
    }

    /// When the faults end there is room for all copies that are wanted.
    pub(super) fn make_room(&mut self) {
        let pools = self.cluster.pools.iter().enumerate();
        let needed = self.plan.habits.blocks * BLOCK as u64;
        let fits = |(at, pool): &(usize, &Candidate)| {
            pool.pool == POOL && pool.free_bytes >= needed && !self.cluster.leaving.contains(at)
        };
        if pools.filter(fits).count() < usize::from(self.cluster.wanted.repl) {
            self.cluster.leaving.clear();
            for pool in &mut self.cluster.pools {
                pool.pool = POOL.to_owned();
                pool.free_bytes = pool.free_bytes.max(needed);
            }
            self.cluster.stir();
        }
    }
}
