//! What only a person can put right: a record store that was put back to an older state, and a
//! volume whose members have all lost their files. The operator restores the record store, or goes
//! on from a copy by force (T11). Until the volume is open again nothing else strikes.

use lockstep_core::limits;
use lockstep_core::primary::{Event as PrimaryEvent, Phase};
use lockstep_core::record::{Chosen, Record, ReplicaState};
use lockstep_core::replica::Role;
use lockstep_core::wire::MAX_VERSION;
use std::collections::BTreeMap;

use super::{Event, MS, World};
use crate::content::Value;
use crate::fault::Fault;
use crate::node::{Copy, Host};

/// So many epochs of its copies prove that the record store was put back, however often the volume
/// is claimed meanwhile; or so many generations.
const PROOF: u64 = 3;
/// How long it may take until that is noticed, or until a chosen copy is opened.
const LIMIT: u64 = 60_000 * MS;
/// What was on its way to a disk is there after so long.
const UNDER_WAY: u64 = 2500 * MS;
/// So long after the record store was put back may a primary stop for that.
const AFTERMATH: u64 = 20_000 * MS;

/// What the operator has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crisis {
    /// The record store shows an older record.
    PutBack,
    /// No member has its files any more.
    Bereft,
    /// A copy was chosen, and is to be opened.
    Forced,
}

impl World {
    /// Something breaks that only a person can put right.
    pub(super) fn break_down(&mut self, fault: Fault) -> bool {
        if fault == Fault::MetaPutBack { self.put_back_store() } else { self.lose_members() }
    }

    /// The record store is put back to an older state, if the copies can prove it. Otherwise its
    /// state is kept.
    fn put_back_store(&mut self) -> bool {
        let Some(kept) = self.meta.kept.take() else {
            self.meta.kept = Some(self.meta.record().clone());
            return false;
        };
        if !self.may_break_down() || !self.is_calm() || !self.is_disproved(&kept) {
            let other = kept.lineage != self.lineage || self.rng.chance(1);
            self.meta.kept = if other { None } else { Some(kept) };
            return false;
        }
        let was = super::records::describe(&kept);
        self.say(|| format!("record: the store is put back to {was}"));
        self.meta.put_back(kept);
        self.begin_crisis(Crisis::PutBack);
        true
    }

    /// All members lose their files, while another copy has its own.
    fn lose_members(&mut self) -> bool {
        let opens = |s: &crate::node::Seat| matches!(s.phase, Phase::Claiming | Phase::Recovering);
        let opens = self.nodes.iter().filter_map(|n| n.seat.as_ref()).any(opens);
        if !self.may_break_down() || opens || self.stale_copy().is_none() {
            return false;
        }
        let record = self.meta.record().clone();
        let members: Vec<usize> = self.in_sync(&record).into_iter().map(|(n, _)| n).collect();
        self.begin_crisis(Crisis::Bereft);
        for node in members {
            let (name, now) = (self.nodes[node].name.clone(), self.now());
            self.say(|| format!("{name}: the files of its copy are gone, as of all members"));
            self.kill(node);
            let lost = self.nodes[node].copy.take();
            self.nodes[node].lost_power = Some(now);
            // Should another copy have joined just before, they are replaced like any.
            if let Some(rid) = lost.map(|copy| copy.rid) {
                self.schedule.after(0, Event::Replace { node, rid });
            }
        }
        true
    }

    /// Is there nothing that could keep the operator from what is to be done?
    fn may_break_down(&self) -> bool {
        let news = self.nodes.iter().all(|n| n.speaks == MAX_VERSION);
        self.crisis.is_none() && self.cluster.keeping.is_none() && news && !self.is_bereft()
    }

    /// Does everybody reach everybody, so that who tries to attach the volume hears of all proofs?
    fn is_calm(&self) -> bool {
        let now = self.now();
        let well = |n: &crate::node::Node| {
            let old = n.copy.as_ref().is_some_and(|c| c.is_old);
            n.mistake.is_none() && n.meta_cut_until <= now && !old
        };
        let store = self.meta.down_until.max(self.meta.slow_until).max(self.meta.storm_until);
        let calm = store <= now && self.puts_under_way == 0 && !self.is_disturbed();
        // One that does not know yet that it was overtaken may be in force in an older record.
        let calm = calm && !self.is_overtaken();
        calm && self.nodes.iter().all(well)
    }

    /// Does a primary still run whose volume another one has claimed? What it knows of the record
    /// does not prove what replicas promised since.
    fn is_overtaken(&self) -> bool {
        let named = self.meta.record().primary.as_ref().map(|p| p.instance);
        let seats = self.nodes.iter().filter_map(|n| n.seat.as_ref());
        seats.filter(|s| !s.is_over()).any(|s| Some(s.instance) != named)
    }

    /// Does a member that an older record names show that it is too old?
    fn is_disproved(&self, kept: &Record) -> bool {
        let shows = |host: &Host| {
            let status = host.replica.status();
            let member = status.role == Role::Member;
            let r#gen = member && u64::from(status.r#gen.0) > u64::from(kept.r#gen.0) + PROOF;
            status.role != Role::Faulted && (status.promised.0 >= kept.epoch.0 + PROOF || r#gen)
        };
        let members = self.in_sync_now(self.meta.record());
        let mut named = members.iter().filter(|(_, c)| kept.is_in_sync(c.rid));
        kept.lineage == self.lineage && named.any(|(_, c)| c.host.as_ref().is_some_and(shows))
    }

    /// A node with a copy that is no member and can be gone on from.
    fn stale_copy(&self) -> Option<usize> {
        self.usable_copy(|state| matches!(state, ReplicaState::Out { .. } | ReplicaState::Leaving))
    }

    /// A node with a copy in such a state that can be gone on from. What is on its way to a paused
    /// one may yet be written.
    fn usable_copy(&self, fits: fn(ReplicaState) -> bool) -> Option<usize> {
        let record = self.meta.record();
        let usable = |copy: &Copy| {
            let works = |h: &Host| h.replica.status().role != Role::Faulted;
            let state = record.replica(copy.rid).map(|entry| entry.state);
            state.is_some_and(fits) && !copy.is_old && copy.host.as_ref().is_some_and(works)
        };
        let now = self.now();
        let well = |n: &crate::node::Node| {
            n.hung_until.max(n.full_until).max(n.gone_until).max(n.paused_until) <= now
        };
        self.nodes.iter().position(|n| well(n) && n.copy.as_ref().is_some_and(usable))
    }

    fn begin_crisis(&mut self, crisis: Crisis) {
        for copy in self.nodes.iter_mut().filter_map(|n| n.copy.as_mut()) {
            (copy.fails_next, copy.mishap) = (false, None);
        }
        // The network is seen to first.
        self.net.blocked.clear();
        self.nodes.iter_mut().for_each(|n| n.meta_cut_until = 0);
        self.turn_to(crisis);
        self.operate_later();
    }

    fn turn_to(&mut self, crisis: Crisis) {
        self.crisis = Some(crisis);
        self.crisis_since = self.now();
    }

    fn operate_later(&mut self) {
        let delay = self.rng.pick(&[10, 300, 2000]).unwrap_or(300);
        let delay = self.rng.between(1, delay) * MS;
        self.schedule.after(delay, Event::Operate);
    }

    /// The operator looks at what there is to do.
    pub(crate) fn operate(&mut self) {
        match self.crisis {
            Some(Crisis::PutBack) => self.see_to_the_store(),
            Some(Crisis::Bereft) => self.go_on_from_stale(),
            Some(Crisis::Forced) => self.await_opening(),
            None => return,
        }
        if self.crisis.is_some() {
            if self.now() > self.crisis_since + LIMIT {
                self.fail("forced", format!("{:?} for a minute", self.crisis));
            }
            self.operate_later();
        }
    }

    /// Somebody has to notice that the record store was put back; then the operator restores what
    /// it forgot, or goes on from a copy.
    fn see_to_the_store(&mut self) {
        if self.meta.seen().put_back.0 == 0 {
            return self.provoke();
        }
        if self.rng.chance(300) {
            // Whoever tries now is told at once.
            self.attempt();
            return;
        }
        self.outcome.coverage.put_back_noticed += 1;
        let truth = self.meta.record().clone();
        // Restored, it must still be ahead of all that happened since.
        let promised = self.hosts().map(|(_, h)| h.replica.status().promised).max();
        let ahead = self.meta.seen().epoch < truth.epoch && promised <= Some(truth.epoch);
        let may_serve = |rid| self.meta.seen().replica(rid).map(|r| r.state);
        let filled = |rid| may_serve(rid).is_some_and(|state| state != ReplicaState::New);
        let mut members: Vec<usize> = self.hosts().map(|(node, _)| node).collect();
        members.retain(|n| {
            let copy = self.nodes[*n].copy.as_ref();
            copy.is_some_and(|c| truth.is_in_sync(c.rid) && filled(c.rid))
        });
        match self.rng.pick(&members).filter(|_| !ahead || self.rng.chance(600)) {
            Some(node) => self.force(node),
            None if ahead => {
                self.say(|| "record: the store is restored".to_owned());
                self.meta.restore();
                self.tell_all_seats();
                self.crisis = None;
            }
            None => self.no_way_out("no member is left to go on from"),
        }
    }

    /// Copies that are open and work.
    fn hosts(&self) -> impl Iterator<Item = (usize, &Host)> {
        let hosts = self.nodes.iter().enumerate();
        let hosts = hosts.filter_map(|(n, node)| Some((n, node.copy.as_ref()?.host.as_ref()?)));
        hosts.filter(|(_, h)| h.replica.status().role != Role::Faulted)
    }

    /// A primary that is there reads the record again, or another one tries.
    fn provoke(&mut self) {
        if self.seats().is_empty() {
            // A mark may be under way.
            if self.puts_under_way == 0 && self.now() > self.crisis_since + 2000 * MS {
                self.attempt();
            }
        } else if self.rng.chance(300) {
            self.tell_all_seats();
        } else if self.rng.chance(200) && self.puts_under_way == 0 && !self.has_claimed() {
            (0..self.nodes.len()).for_each(|node| self.unseat(node));
        }
    }

    /// Does a primary have the record as it is shown? Each claim brings it nearer to the proof.
    fn has_claimed(&self) -> bool {
        let named = self.meta.seen().primary.as_ref().map(|p| p.instance);
        let seats = self.nodes.iter().filter_map(|n| n.seat.as_ref());
        seats.filter(|s| !s.is_over()).any(|s| Some(s.instance) == named)
    }

    /// Another primary tries to attach the volume.
    fn attempt(&mut self) {
        let idle = |n: &crate::node::Node| n.seat.as_ref().is_none_or(|s| s.is_over());
        let free = |n: &usize| self.nodes[*n].up && idle(&self.nodes[*n]);
        let free: Vec<usize> = (0..self.nodes.len()).filter(free).collect();
        if let Some(node) = self.rng.pick(&free) {
            self.seat_primary(node);
        }
    }

    fn tell_all_seats(&mut self) {
        for (node, seat) in self.seats() {
            self.tell_primary(node, seat, PrimaryEvent::RecordChanged);
        }
    }

    /// Have all members lost their files?
    pub(super) fn is_without_members(&self) -> bool {
        self.crisis == Some(Crisis::Bereft)
    }

    /// The operator stops whoever tries to serve the volume, and goes on from a copy that is out;
    /// if one became a member just before, from that, unless the volume opens with it by itself.
    fn go_on_from_stale(&mut self) {
        let record = self.meta.record();
        if self.in_sync_now(record).len() >= usize::from(record.min_in_sync) {
            self.crisis = None;
            return;
        }
        (0..self.nodes.len()).for_each(|node| self.unseat(node));
        // What was on its way to that copy is there.
        if self.now() < self.crisis_since + UNDER_WAY {
            return;
        }
        let member = self.usable_copy(|state| state == ReplicaState::InSync);
        let Some(node) = member.or_else(|| self.stale_copy()) else {
            return self.no_way_out("no copy is left to go on from");
        };
        let Some(copy) = self.nodes[node].copy.as_ref() else { return };
        if copy.host.as_ref().is_some_and(|h| !h.flights.is_empty() || !h.asked.is_empty()) {
            return;
        }
        let kept: BTreeMap<u64, Value> = copy.disk.shown().collect();
        self.oracle.force(kept);
        self.force(node);
    }

    fn no_way_out(&mut self, why: &'static str) {
        self.say(|| format!("{why}: beyond repair"));
        self.outcome.coverage.beyond_repair += 1;
        self.stage = super::Stage::Done;
    }

    /// T11 with the copy of this node, as the command does it.
    fn force(&mut self, node: usize) {
        let (lineage, txn) = (lockstep_core::id::Lineage(self.uuid()), self.uuid());
        let Some(copy) = self.nodes[node].copy.as_ref() else { return };
        let Some(status) = copy.host.as_ref().map(|h| h.replica.status()) else { return };
        let (replica, promised, r#gen) = (copy.rid, status.promised, status.r#gen);
        let chosen = Chosen { replica, lineage: status.lineage, promised, r#gen };
        let next = match self.meta.seen().force(chosen, lineage, txn) {
            Ok(next) => next,
            Err(why) => return self.fail("forced", format!("can't go on from a copy: {why}")),
        };
        self.say(|| format!("record: recovered by force: {}", super::records::describe(&next)));
        self.meta.replace(next);
        self.lineage = lineage;
        self.outcome.coverage.forced += 1;
        self.turn_to(Crisis::Forced);
        self.keep_recoverable();
        if self.rng.chance(500) {
            self.drop_strangers();
        }
        self.tell_all_seats();
    }

    /// Copies that the record does not name are removed.
    fn drop_strangers(&mut self) {
        for node in 0..self.nodes.len() {
            let rid = self.nodes[node].copy.as_ref().map(|c| c.rid);
            if rid.is_some_and(|rid| self.meta.record().replica(rid).is_none()) {
                self.abandon_copy(node);
                self.nodes[node].copy = None;
            }
        }
    }

    /// Once the chosen copy is open others are built.
    fn await_opening(&mut self) {
        let record = self.meta.record();
        if record.open_epoch.0 == 0 {
            self.tell_all_seats();
            if self.seats().is_empty() {
                self.attempt();
            }
            return;
        }
        let wanted = usize::from(record.repl);
        self.crisis = None;
        self.drop_strangers();
        for node in 0..self.nodes.len() {
            let few = self.meta.record().replicas.len() < wanted;
            if few && self.nodes[node].copy.is_none() && self.rng.chance(800) {
                self.add_copy_on(node);
            }
        }
        if self.rng.chance(700) {
            let txn = self.uuid();
            let known = self.meta.record().acknowledge_loss(txn);
            self.controller_writes(known);
        }
    }

    /// May a primary say that the record store was put back?
    pub(super) fn was_put_back(&self) -> bool {
        let lately = self.crisis_since > 0 && self.now() < self.crisis_since + AFTERMATH;
        self.crisis == Some(Crisis::PutBack) || lately
    }

    /// Has a copy that can prove that the record store was put back answered this primary?
    fn was_told(&self, record: &Record) -> bool {
        let instance = record.primary.as_ref().map(|p| p.instance);
        let mut seats = self.nodes.iter().filter_map(|n| n.seat.as_ref());
        let Some(seat) = seats.find(|s| Some(s.instance) == instance) else { return true };
        let ahead = |host: &Host| {
            let status = host.replica.status();
            status.role == Role::Member && status.r#gen > record.r#gen
        };
        let mut hosts = self.hosts().filter(|(node, _)| seat.answered.contains_key(node));
        !seat.refused_by.is_empty() || hosts.any(|(_, host)| ahead(host))
    }

    /// What primaries may do to a record that was put back: claim, and say what is wrong with it.
    /// If those that can prove it do not answer in time, it is taken for good.
    pub(super) fn check_put_back(&mut self, old: &Record, new: &Record) {
        let same = Record {
            epoch: old.epoch,
            r#gen: old.r#gen,
            attach: old.attach.clone(),
            primary: old.primary.clone(),
            clean: old.clean,
            put_back: old.put_back,
            txn: old.txn,
            ..new.clone()
        };
        if same != *old && !self.was_told(new) {
            self.no_way_out("no copy that knows better answered");
        } else if same != *old {
            let what = super::records::describe(new);
            self.fail("forced", format!("a record that was put back is taken for good: {what}"));
        }
    }
}

const _: () = assert!(LIMIT > limits::LOSSY_GRACE_MS * MS / 2);
