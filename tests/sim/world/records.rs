//! The record store as primaries see it: late, away, contested, or silent about what it did.

use lockstep_core::id::{Revision, Token};
use lockstep_core::primary::{Event as PrimaryEvent, MetaOp, MetaResult};
use lockstep_core::record::{RECORD_VERSION, Record, ReplicaEntry, ReplicaState};

use super::{Event, MS, World};
use crate::fault::Fault;

/// After so long without an answer the driver of a primary gives a question up.
const PATIENCE: u64 = lockstep_core::limits::CAS_TIMEOUT_MS * MS;

/// Who puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Author {
    /// A primary.
    Primary,
    /// A controller.
    Controller,
}

/// How a put goes.
enum Fate {
    Usual,
    Contested,
    UnknownApplied,
    UnknownLost,
    UnknownLate,
}

/// A put of a record, from when it is sent.
#[derive(Debug)]
pub(crate) struct Put {
    /// The node that it comes from.
    pub(super) by: usize,
    pub(super) author: Author,
    pub(super) expected: Revision,
    pub(super) record: Record,
}

impl World {
    pub(crate) fn ask_meta(&mut self, node: usize, seat: u64, token: Token, op: MetaOp) {
        let typical = if self.meta.slow_until > self.now() { 400 * MS } else { 2 * MS };
        let delay = self.rng.latency(typical);
        self.puts_under_way += u64::from(matches!(op, MetaOp::PutIf { .. }));
        let op = Box::new(op);
        self.schedule.after(delay, Event::MetaArrive { node, seat, token, op });
    }

    pub(crate) fn meta_arrive(&mut self, node: usize, seat: u64, token: Token, op: MetaOp) {
        let now = self.now();
        self.puts_under_way -= u64::from(matches!(op, MetaOp::PutIf { .. }));
        if self.is_meta_away(node) {
            let delay = self.rng.between(10 * MS, PATIENCE);
            // A put that got stuck on the way may still arrive, whatever its sender believes.
            let result = match op {
                MetaOp::PutIf { expected, record } if self.rng.chance(200) => {
                    self.apply_late(Put { by: node, author: Author::Primary, expected, record });
                    MetaResult::Unknown
                }
                MetaOp::PutIf { .. } if self.rng.chance(300) => MetaResult::Unknown,
                MetaOp::Get | MetaOp::PutIf { .. } => MetaResult::Unavailable,
            };
            self.answer(node, seat, token, result, delay);
            return;
        }
        let result = match op {
            MetaOp::Get if self.answers_nonsense() => MetaResult::Unavailable,
            MetaOp::Get if self.meta.is_deleted => MetaResult::Read(None),
            MetaOp::Get => {
                let (record, revision) = (self.meta.seen().clone(), self.meta.revision());
                MetaResult::Read(Some((record, revision)))
            }
            MetaOp::PutIf { expected, record } => {
                self.put(Put { by: node, author: Author::Primary, expected, record })
            }
        };
        let typical = if self.meta.slow_until > now { 400 * MS } else { 2 * MS };
        let mut delay = self.rng.latency(typical);
        let result = if delay >= PATIENCE {
            delay = PATIENCE;
            match result {
                MetaResult::Written(_) | MetaResult::Conflict | MetaResult::Unknown => {
                    MetaResult::Unknown
                }
                MetaResult::Read(_) | MetaResult::Unavailable => MetaResult::Unavailable,
            }
        } else {
            result
        };
        self.answer(node, seat, token, result, delay);
    }

    fn answer(&mut self, node: usize, seat: u64, token: Token, result: MetaResult, delay: u64) {
        let result = Box::new(result);
        self.schedule.after(delay, Event::MetaAnswer { node, seat, token, result });
    }

    pub(crate) fn meta_answer(&mut self, node: usize, seat: u64, token: Token, result: MetaResult) {
        let Some(s) = self.nodes[node].seat(seat) else { return };
        s.asked.remove(&token);
        self.primary_event(node, seat, PrimaryEvent::Meta { token, result });
    }

    pub(super) fn put(&mut self, put: Put) -> MetaResult {
        self.delicate(self.plan.ambushes, None);
        if self.meta.storm_until > self.now() {
            self.touch_record();
        }
        match self.fate() {
            Fate::Usual => self.apply_put(put),
            Fate::Contested => {
                self.count(Fault::MetaConflict);
                self.touch_record();
                self.apply_put(put)
            }
            Fate::UnknownApplied => {
                self.count(Fault::MetaUnknownApplied);
                self.apply_put(put);
                MetaResult::Unknown
            }
            Fate::UnknownLost => {
                self.count(Fault::MetaUnknownLost);
                MetaResult::Unknown
            }
            Fate::UnknownLate => {
                self.apply_late(put);
                MetaResult::Unknown
            }
        }
    }

    fn fate(&mut self) -> Fate {
        if self.stage != super::Stage::Chaos || self.crisis.is_some() {
            return Fate::Usual;
        }
        let fates = [
            (Fault::MetaConflict, Fate::Contested),
            (Fault::MetaUnknownApplied, Fate::UnknownApplied),
            (Fault::MetaUnknownLost, Fate::UnknownLost),
            (Fault::MetaUnknownLate, Fate::UnknownLate),
        ];
        for (fault, fate) in fates {
            let rate = self.plan.swarm.rate(fault);
            if self.rng.chance(rate) {
                return fate;
            }
        }
        Fate::Usual
    }

    fn apply_late(&mut self, put: Put) {
        self.count(Fault::MetaUnknownLate);
        let delay = self.rng.pick(&[20, 150, 1000, 4000, 10_000]).unwrap_or(1000) * MS;
        let delay = self.rng.below(delay * 2);
        self.puts_under_way += 1;
        self.schedule.after(delay, Event::MetaLate(Box::new(put)));
    }

    pub(crate) fn meta_late(&mut self, put: Put) {
        self.puts_under_way -= 1;
        self.apply_put(put);
    }

    fn apply_put(&mut self, put: Put) -> MetaResult {
        let Put { by, author, expected, record } = put;
        let name = self.nodes[by].name.clone();
        let new = record.clone();
        let Some(old) = self.meta.put_if(expected, record) else {
            self.say(|| format!("record: a put of {name} meets another revision"));
            return MetaResult::Conflict;
        };
        self.say(|| format!("record: {name} writes {}", describe(&new)));
        match author {
            Author::Primary if self.meta.is_put_back() => self.check_put_back(&old, &new),
            Author::Primary => self.check_put(&old, &new),
            Author::Controller => {
                let judged = only_copies(&old, &new);
                self.judge("copies", judged);
                self.tell_of_change();
            }
        }
        self.keep_recoverable();
        MetaResult::Written(self.meta.revision())
    }

    /// Does the record store answer with something that can't be used: of a newer version,
    /// garbled, or breaking a rule? Then the daemon does as if there were no answer.
    fn answers_nonsense(&mut self) -> bool {
        let rate = self.plan.swarm.rate(Fault::MetaForeign);
        if self.stage != super::Stage::Chaos || !self.rng.chance(rate) {
            return false;
        }
        let record = self.meta.record().clone();
        let bytes = match self.rng.below(4) {
            0 => {
                let mut bytes = self.meta.bytes().to_vec();
                bytes.truncate(self.rng.index(bytes.len()));
                bytes
            }
            1 => Record { version: RECORD_VERSION + 1, ..record }.to_bytes(),
            2 => Record { min_in_sync: record.repl + 1, ..record }.to_bytes(),
            _ => Record { replicas: Vec::new(), ..record }.to_bytes(),
        };
        match Record::from_bytes(&bytes) {
            Ok(_) => self.fail("record", "what is no record is taken for one".to_owned()),
            Err(why) => self.say(|| format!("record: what is read can't be used: {why}")),
        }
        self.count(Fault::MetaForeign);
        true
    }

    /// Can't a node reach the record store?
    pub(super) fn is_meta_away(&self, node: usize) -> bool {
        self.meta.down_until.max(self.nodes[node].meta_cut_until) > self.now()
    }

    /// A controller writes the record; primaries are told, unless the news are lost.
    pub(crate) fn controller_writes(&mut self, record: Record) {
        let (revision, new) = (self.meta.revision(), record.clone());
        let valid = record.validate().map_err(|e| e.to_string());
        self.judge("record", valid);
        let old = self.meta.put_if(revision, record);
        assert!(old.is_some(), "the revision was read just now");
        self.keep_recoverable();
        self.say(|| format!("record: a controller writes {}", describe(&new)));
        self.tell_of_change();
    }

    /// Primaries are told that somebody else has changed the record; now and then the news are
    /// lost.
    fn tell_of_change(&mut self) {
        for node in 0..self.nodes.len() {
            let Some(seat) = self.nodes[node].seat.as_ref().map(|s| s.id) else { continue };
            if self.stage != super::Stage::Chaos || self.rng.chance(900) {
                let delay = self.rng.latency(5 * MS);
                let event = Box::new(PrimaryEvent::RecordChanged);
                self.schedule.after(delay, Event::Primary { node, seat, event });
            }
        }
    }

    /// A controller changes nothing but revision and transaction.
    pub(crate) fn touch_record(&mut self) -> bool {
        let txn = self.uuid();
        let record = Record { txn, ..self.meta.record().clone() };
        self.controller_writes(record);
        true
    }
}

/// A controller adds and forgets copies, and changes how many are wanted, and nothing else: it
/// never takes a member away.
fn only_copies(old: &Record, new: &Record) -> Result<(), String> {
    new.validate().map_err(|e| e.to_string())?;
    let mut same = new.clone();
    same.replicas.clone_from(&old.replicas);
    (same.repl, same.min_in_sync, same.txn) = (old.repl, old.min_in_sync, old.txn);
    let kept = |r: &ReplicaEntry| new.replica(r.rid) == Some(r);
    let forgotten = |r: &&ReplicaEntry| !kept(r);
    let added = |r: &&ReplicaEntry| old.replica(r.rid).is_none();
    let rules = [
        (same == *old, "a controller changes what is not its business"),
        (old.in_sync().all(kept), "a controller takes a member away"),
        (old.replicas.iter().filter(forgotten).count() <= 1, "two copies are forgotten at once"),
        (
            new.replicas.iter().filter(added).all(|r| r.state == ReplicaState::New),
            "a copy is added that is not empty",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, broken)) => Err((*broken).to_owned()),
        None => Ok(()),
    }
}

/// A record in a line.
pub(crate) fn describe(record: &Record) -> String {
    let copies: Vec<String> =
        record.replicas.iter().map(|r| format!("{} {:?}", r.node, r.state)).collect();
    let primary = record.primary.as_ref().map_or("none".to_owned(), |p| p.node.to_string());
    format!(
        "epoch {} (opened {}), gen {}, primary {primary}{}, [{}]",
        record.epoch,
        record.open_epoch,
        record.r#gen,
        if record.clean { ", clean" } else { "" },
        copies.join(", ")
    )
}
