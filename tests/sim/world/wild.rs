//! Faults of a rarer kind: clocks that run wrong, networks that come and go, copies that are
//! replaced, daemons of another version, guests that connect anew.

use lockstep_core::id::ReplicaId;
use lockstep_core::primary::Phase;
use lockstep_core::record::{Record, ReplicaState};
use lockstep_core::replica::Role;
use lockstep_core::wire::{MAX_VERSION, MIN_VERSION};

use super::{Event, MS, Stage, World};
use crate::fault::Fault;
use crate::node::Copy;

/// So long may a primary believe that a member is there that is gone, or a removal that it decided
/// on meanwhile wait for the record store.
const SILENCE: u64 = 20_000 * MS;
/// Clocks are at most so wrong, in a thousand: what the lease for reads assumes.
const RATES: [u64; 6] = [800, 900, 990, 1010, 1100, 1200];

impl World {
    /// A clock goes faster or slower from now on.
    pub(crate) fn change_clock(&mut self, node: usize) -> bool {
        let (now, rate) = (self.now(), self.rng.pick(&RATES).unwrap_or(1000));
        self.nodes[node].clock.run_at(now, rate);
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: clock runs at {rate} in 1000"));
        self.rearm(node);
        true
    }

    /// A clock jumps forward. This breaks what the lease for reads assumes, so in such a world
    /// reads of a deposed primary are compared with its own history only.
    pub(crate) fn jump_clock(&mut self, node: usize) -> bool {
        let by = self.rng.pick(&[20, 500, 3000, 60_000]).unwrap_or(500);
        let by = self.rng.between(1, by) * MS;
        self.oracle.distrust_leases();
        self.nodes[node].clock.jump(by);
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: clock jumps by {} ms", by / MS));
        self.rearm(node);
        true
    }

    /// Timers follow their clock.
    pub(crate) fn rearm(&mut self, node: usize) {
        if let Some(seat) = self.nodes[node].seat.as_ref().map(|s| s.id) {
            self.arm_primary(node, seat);
        }
        let host = self.nodes[node].copy.as_ref().and_then(|c| c.host.as_ref());
        if let Some(open) = host.map(|h| h.open) {
            self.arm_store(node, open);
        }
        let ends = self.net.ends_of(node);
        ends.into_iter().for_each(|(wire, side)| self.arm_link(wire, side));
    }

    /// A connection between two nodes comes and goes.
    pub(crate) fn flap(&mut self, node: usize) -> bool {
        let other = self.rng.index(self.nodes.len());
        if node == other {
            return false;
        }
        let mut at = self.now();
        for _ in 0..self.rng.between(3, 12) {
            let length = self.rng.pick(&[50, 300, 1200, 2500]).unwrap_or(300);
            let until = at + self.rng.between(1, length) * MS;
            self.schedule.at(at, Event::Cut { from: node, to: other, until });
            if self.rng.chance(600) {
                self.schedule.at(at, Event::Cut { from: other, to: node, until });
            }
            at = until + self.rng.between(1, length) * MS;
        }
        true
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize, until: u64) {
        if self.stage == Stage::Chaos && self.crisis.is_none() {
            let blocked = self.net.blocked.entry((from, to)).or_default();
            *blocked = until.max(*blocked);
        }
    }

    /// A copy's files are gone.
    pub(crate) fn wipe(&mut self, node: usize) -> bool {
        let Some(rid) = self.dispensable(node) else { return false };
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: the files of its copy are gone"));
        self.lose_files(node, rid);
        self.nodes[node].copy = None;
        true
    }

    /// A copy's files are put back to an image taken earlier, if the record proves that it is too
    /// old (R7). Otherwise an image is taken.
    pub(crate) fn put_back(&mut self, node: usize) -> bool {
        let open_epoch = self.meta.record().open_epoch;
        let Some(copy) = self.nodes[node].copy.as_ref() else { return false };
        let rid = copy.rid;
        // A primary that speaks an older version can't tell a replica what the record proves.
        let tells = self.nodes.iter().all(|n| n.speaks >= 2);
        let member = tells && self.meta.record().is_in_sync(rid);
        let may = member && self.dispensable(node).is_some();
        let kept = self.nodes[node]
            .image
            .take_if(|(of, promised, _)| *of == rid && *promised < open_epoch && may);
        let Some((_, _, disk)) = kept else {
            if self.nodes[node].image.as_ref().is_some_and(|(of, ..)| *of == rid) {
                return false;
            }
            let host = self.nodes[node].copy.as_ref().and_then(|c| Some((c.host.as_ref()?, c)));
            let image = host.map(|(h, c)| (rid, h.store.superblock().promised, c.disk.clone()));
            self.nodes[node].image = image;
            return false;
        };
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: the files of its copy are put back to an older image"));
        self.lose_files(node, rid);
        if let Some(copy) = &mut self.nodes[node].copy {
            (copy.disk, copy.is_old) = (disk, true);
        }
        true
    }

    /// The copy of a node, if enough others are members and have their files, so that nothing is
    /// lost with it: theirs are whole, and no change is under way that might leave only this one.
    pub(super) fn dispensable(&self, node: usize) -> Option<ReplicaId> {
        let record = self.meta.record();
        let rid = self.nodes[node].copy.as_ref().map(|c| c.rid)?;
        let others = self.in_sync_now(record).into_iter().filter(|(n, _)| *n != node);
        let others = others.filter(|(n, copy)| self.is_well(*n, copy)).count();
        let settled = !self.seats_in_doubt() && self.puts_under_way == 0 && !self.is_disturbed();
        let enough = others >= usize::from(record.min_in_sync.max(1));
        let enough = enough && self.is_sound();
        (settled && enough && record.replica(rid).is_some()).then_some(rid)
    }

    /// Is the copy open on a disk that works? One that is about to be found failed may be removed
    /// before the loss of another is noticed.
    fn is_well(&self, node: usize, copy: &Copy) -> bool {
        let (n, now) = (&self.nodes[node], self.now());
        let faulted = |h: &crate::node::Host| h.replica.status().role == Role::Faulted;
        let disk = n.hung_until <= now && n.full_until <= now && n.gone_until <= now;
        let open = copy.host.as_ref().is_some_and(|h| !faulted(h));
        open && disk && !copy.fails_next && copy.mishap.is_none()
    }

    /// Does a process stand still, or is a network cut? A primary may not know then who is there.
    pub(super) fn is_disturbed(&self) -> bool {
        let now = self.now();
        self.nodes.iter().any(|n| n.paused_until > now)
            || self.net.blocked.values().any(|until| *until > now)
    }

    /// Has a member lost its files, and is still one? Until that is noticed, what happens to
    /// others can take the last copy.
    pub(crate) fn is_bereft(&self) -> bool {
        let record = self.meta.record();
        let has = |rid| self.in_sync_now(record).iter().any(|(_, copy)| copy.rid == rid);
        !record.in_sync().all(|entry| has(entry.rid))
    }

    /// A copy may lose its files just when a primary that can't know it yet removes the last other
    /// member. Then an administrator has to decide, and the world ends here.
    pub(crate) fn give_up_if_lost(&mut self, record: &Record) {
        let lost = self.lost_files_lately() && self.crisis.is_none();
        if lost && self.in_sync_now(record).is_empty() {
            self.say(|| "all members have lost their files: beyond repair".to_owned());
            self.outcome.coverage.beyond_repair += 1;
            self.stage = Stage::Done;
        }
    }

    /// May somebody not know yet that a copy has lost its files?
    pub(super) fn lost_files_lately(&self) -> bool {
        self.files_lost_at.is_some_and(|at| self.now() < at + SILENCE)
    }

    pub(super) fn lose_files(&mut self, node: usize, rid: ReplicaId) {
        let now = self.now();
        self.kill(node);
        self.nodes[node].lost_power = Some(now);
        self.files_lost_at = Some(now);
        self.schedule.after(0, Event::Replace { node, rid });
    }

    /// Does any primary not see all members, or work on what the members are?
    fn seats_in_doubt(&self) -> bool {
        let sees_all = |seat: &crate::node::Seat| {
            let status = seat.primary.status();
            let mut members = self.meta.record().in_sync();
            members.all(|r| status.replicas.get(&r.rid).is_some_and(|r| r.connected))
        };
        let good = |seat: &&crate::node::Seat| {
            seat.is_over() || seat.phase == Phase::Active && sees_all(seat)
        };
        self.nodes.iter().filter_map(|n| n.seat.as_ref()).any(|seat| !good(&seat))
    }

    /// A controller forgets a copy without files once it is no member, and puts a new one there.
    pub(crate) fn replace(&mut self, node: usize, rid: ReplicaId) {
        if self.crisis.is_some() {
            self.schedule.after(1000 * MS, Event::Replace { node, rid });
            return;
        }
        let entry = self.meta.record().replica(rid).cloned();
        let taken = self.nodes[node].copy.as_ref().is_some_and(|c| c.rid != rid);
        // Controllers see that the files are gone, but not that they are old.
        if self.keeping().is_some() && self.nodes[node].copy.is_none() {
            return;
        }
        match entry.filter(|_| !taken) {
            None => return,
            Some(entry) if entry.state != ReplicaState::InSync => {
                if self.forget_entry(&entry) && self.rng.chance(800) {
                    self.add_copy_on(node);
                }
                return;
            }
            // As long as it counts as a member, another copy may have to take its place.
            Some(_) if self.stage != Stage::Chaos => {
                self.add_copy();
            }
            Some(_) => {}
        }
        let delay = self.rng.between(100, 1500) * MS;
        self.schedule.after(delay, Event::Replace { node, rid });
    }

    /// For a while somebody else changes the record before every put.
    pub(crate) fn storm(&mut self) -> bool {
        let until = self.now() + self.rng.latency(1500 * MS);
        self.meta.storm_until = until.max(self.meta.storm_until);
        true
    }

    /// A daemon of another version is started on the node, as in an upgrade or its undoing.
    pub(crate) fn change_version(&mut self, node: usize) -> bool {
        // It would not refuse a copy that was put back.
        if self.nodes.iter().any(|n| n.copy.as_ref().is_some_and(|c| c.is_old)) {
            return false;
        }
        let speaks = self.nodes[node].speaks;
        let others: Vec<u16> = (MIN_VERSION..=MAX_VERSION).filter(|v| *v != speaks).collect();
        let other = self.rng.pick(&others).unwrap_or(MIN_VERSION);
        if !self.kill(node) {
            return false;
        }
        self.nodes[node].speaks = other;
        // A promotion that was not told what is whole may have copied over it, and not opened.
        for copy in self.nodes.iter_mut().filter_map(|n| n.copy.as_mut()) {
            copy.whole.clear();
        }
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: speaks version {other} from now on"));
        true
    }

    /// Some daemons are old from the beginning.
    pub(crate) fn draw_versions(&mut self) {
        if self.plan.swarm.rate(Fault::OldWire) == 0 {
            return;
        }
        for node in 0..self.nodes.len() {
            if self.rng.chance(400) {
                self.nodes[node].speaks = self.rng.pick(&[1, 1, 2]).unwrap_or(MIN_VERSION);
            }
        }
    }

    /// The guest's connection to its device breaks. Its next one is accepted when nothing of the
    /// old one is under way; then what it had no answer to is asked again.
    pub(crate) fn reconnect_guest(&mut self) -> bool {
        let seats = self.seats();
        let Some((node, id)) = self.rng.pick(&seats) else { return false };
        let Some(seat) = self.nodes[node].seat(id) else { return false };
        if !seat.guest.reconnect() {
            return false;
        }
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: the guest of primary {id} connects anew"));
        true
    }

    /// In some worlds whatever a driver does may come late, where no order is promised.
    pub(crate) fn dawdles(&mut self, event: &Event) -> Option<u64> {
        let rate = self.plan.swarm.rate(Fault::Bugify);
        let may = matches!(
            event,
            Event::DiskDone { .. }
                | Event::StoreWake { .. }
                | Event::PrimaryWake { .. }
                | Event::LinkWake(..)
                | Event::MetaAnswer { .. }
                | Event::GuestTurn { .. }
                | Event::Redial { .. }
        );
        if rate == 0 || !may || self.stage != Stage::Chaos || !self.rng.chance(rate) {
            return None;
        }
        self.count(Fault::Bugify);
        let late = self.rng.pick(&[100, 2000, 30_000, 400_000]).unwrap_or(2000);
        Some(self.now() + self.rng.between(1, late))
    }
}
