//! Faults that happen at a time of their own, and the supervisor that keeps the volume attached.

use lockstep_core::id::ReplicaId;
use lockstep_core::primary::{Event as PrimaryEvent, Phase};
use lockstep_core::record::{ReplicaEntry, ReplicaState};

use super::host::formatted;
use super::{Aim, Event, MS, Stage, World};
use crate::cluster::POOL;
use crate::fault::Fault;
use crate::net::{DIALER, Wire};
use crate::node::Copy;

/// Does a copy that is opened again always get new connections?
const REOPEN_RESETS: bool = false;

impl World {
    /// The next time that a fault happens.
    pub(crate) fn plan_next(&mut self, fault: Fault) {
        let rate = self.plan.swarm.rate(fault) * MS;
        let delay = self.rng.below(rate * 2) + MS;
        self.schedule.after(delay, Event::Planned(fault));
    }

    pub(crate) fn planned(&mut self, fault: Fault) {
        if self.stage != Stage::Chaos {
            return;
        }
        self.strike(fault, None);
        self.plan_next(fault);
    }

    pub(crate) fn strike(&mut self, fault: Fault, aim: Option<Aim>) {
        let may = self.stage == Stage::Chaos && self.crisis.is_none() && !self.is_bereft();
        if may && self.inject(fault, aim) {
            self.count(fault);
        }
    }

    /// A delicate moment: something is under way that a fault can catch half done. In some worlds
    /// the faults of the seed strike just then, `per_mille` times in a thousand; and in some of
    /// these they strike whoever is concerned.
    pub(crate) fn delicate(&mut self, per_mille: u64, aim: Option<Aim>) {
        if self.stage != Stage::Chaos || !self.rng.chance(per_mille) {
            return;
        }
        let planned = self.plan.swarm.rates().iter().map(|(f, _)| *f).filter(|f| f.is_planned());
        let planned: Vec<Fault> = planned.collect();
        let aim = aim.filter(|_| self.plan.aims);
        // What one fault does not break, the second one may.
        let faults = self.rng.pick(&[1, 1, 2, 4]).unwrap_or(1);
        for _ in 0..faults {
            let Some(fault) = self.rng.pick(&planned) else { return };
            let soon = self.plan.distance * self.rng.pick(&[1, 4, 30, 300]).unwrap_or(1);
            let delay = self.rng.below(soon + 1);
            self.schedule.after(delay, Event::Ambush(fault, aim));
        }
    }

    fn disturb_clock(&mut self, fault: Fault, node: usize) -> bool {
        if fault == Fault::ClockRate { self.change_clock(node) } else { self.jump_clock(node) }
    }

    /// Makes the fault happen; answers whether it could.
    fn inject(&mut self, fault: Fault, aim: Option<Aim>) -> bool {
        let anybody = self.rng.index(self.nodes.len());
        let node = aim.map_or(anybody, |(_, to)| to);
        let until = self.now() + self.rng.latency(800 * MS);
        match fault {
            Fault::ConnectionReset => self.reset_connection(aim),
            Fault::LateFrames => self.late_frames(aim),
            Fault::Partition => self.partition(node, aim, true),
            Fault::OneWayPartition => self.partition(node, aim, false),
            Fault::Isolation => self.isolate(node),
            Fault::ProcessKill => self.kill(node),
            Fault::PowerLoss => self.power_loss(node),
            Fault::ClusterPowerLoss => {
                (0..self.nodes.len()).map(|n| self.power_loss(n)).fold(false, |a, b| a | b)
            }
            Fault::Pause => self.pause(node, until),
            Fault::PrimaryRestart => self.restart_primary(),
            Fault::Takeover => self.take_over(),
            Fault::CleanDetach => self.detach(),
            Fault::Idle => self.idle(),
            Fault::MetaDown => raise(&mut self.meta.down_until, until + 2000 * MS),
            Fault::MetaSlow => raise(&mut self.meta.slow_until, until + 2000 * MS),
            Fault::ControllerTouch => self.touch_record(),
            Fault::ControllerAdd => self.add_copy(),
            Fault::ControllerForget => self.forget_copy(),
            Fault::ControllerRemoveMember => self.remove_member(),
            Fault::ControllerSetRepl => self.want_copies(),
            Fault::ControllerResize | Fault::ControllerSnapshot => self.want_task(fault),
            Fault::NodeEvacuate => self.evacuate(node),
            Fault::NodeRemove => self.remove_node(node),
            Fault::SlowDisk => raise(&mut self.nodes[node].slow_until, until),
            Fault::HungDisk => raise(&mut self.nodes[node].hung_until, until + 2000 * MS),
            Fault::DiskError => self.fail_disk(node),
            Fault::BitRot | Fault::ReadError => self.go_bad(fault, node),
            Fault::BookRot => self.rot_books(node),
            Fault::RuinedReplica => self.ruin(node),
            Fault::MetaPutBack | Fault::MembersLost => self.break_down(fault),
            // Counted when they hit a write or a flush.
            Fault::LostWrite | Fault::MisdirectedWrite | Fault::FlushError => {
                self.nodes[node].copy.iter_mut().for_each(|copy| copy.mishap = Some(fault));
                false
            }
            Fault::DiskFull => raise(&mut self.nodes[node].full_until, until + 1000 * MS),
            Fault::DiskFullEverywhere => {
                self.nodes.iter_mut().for_each(|n| n.full_until = until + 1000 * MS);
                true
            }
            Fault::PoolGone => raise(&mut self.nodes[node].gone_until, until + 1000 * MS),
            Fault::VerySlowDisk => raise(&mut self.nodes[node].crawls_until, until + 60_000 * MS),
            Fault::GarbledFrame
            | Fault::MalformedFrame
            | Fault::WrongPeer
            | Fault::BabblingPeer
            | Fault::RefusedConnection => self.disturb_peers(fault, node),
            Fault::ClockRate | Fault::ClockJump => self.disturb_clock(fault, node),
            Fault::FlappingPartition => self.flap(node),
            Fault::WipedReplica => self.wipe(node),
            Fault::RolledBackReplica => self.put_back(node),
            Fault::MetaStorm => self.storm(),
            Fault::DoorReconnect => self.reconnect_guest(),
            Fault::OldWire => self.change_version(node),
            Fault::Bugify
            | Fault::TornBlock
            | Fault::MetaConflict
            | Fault::MetaUnknownApplied
            | Fault::MetaUnknownLost
            | Fault::MetaUnknownLate
            | Fault::MetaForeign => false,
        }
    }

    fn some_wire(&mut self, aim: Option<Aim>) -> Option<Wire> {
        let meant = |c: &crate::net::Connection| {
            aim.is_none_or(|(from, to)| c.ends[0].node == from && c.ends[1].node == to)
        };
        let far = self.net.connections.iter().filter(|(_, c)| !c.is_loopback() && meant(c));
        let wires: Vec<Wire> = far.map(|(wire, _)| *wire).collect();
        self.rng.pick(&wires)
    }

    /// One end breaks; the other learns it later.
    fn reset_connection(&mut self, aim: Option<Aim>) -> bool {
        let Some(wire) = self.some_wire(aim) else { return false };
        let side = self.rng.index(2);
        let late = self.now() + self.rng.latency(50 * MS);
        if let Some(end) = self.net.end(wire, 1 - side) {
            end.stuck_until = late;
        }
        self.close_end(wire, side, true);
        true
    }

    /// Frames towards one end get stuck; their sender gives the connection up before they arrive.
    fn late_frames(&mut self, aim: Option<Aim>) -> bool {
        let Some(wire) = self.some_wire(aim) else { return false };
        let stuck = self.now() + self.rng.between(5, 1500) * MS;
        let side = self.rng.index(2);
        if let Some(end) = self.net.end(wire, side) {
            end.stuck_until = stuck;
        }
        let given_up = self.rng.latency(10 * MS);
        self.schedule.after(given_up, Event::GiveUp(wire, 1 - side));
        true
    }

    pub(crate) fn give_up(&mut self, wire: Wire, side: usize) {
        self.close_end(wire, side, true);
    }

    fn partition(&mut self, node: usize, aim: Option<Aim>, both: bool) -> bool {
        let other = self.rng.index(self.nodes.len());
        let other = aim.map_or(other, |(from, _)| from);
        if node == other {
            return false;
        }
        let until = self.now() + self.rng.latency(2500 * MS);
        self.net.blocked.insert((node, other), until);
        if both {
            self.net.blocked.insert((other, node), until);
        }
        let (a, b) = (self.nodes[node].name.clone(), self.nodes[other].name.clone());
        let arrow = if both { "<->" } else { "->" };
        self.say(|| format!("network: {a} {arrow} {b} is cut until {}ms", until / MS));
        true
    }

    fn isolate(&mut self, node: usize) -> bool {
        let until = self.now() + self.rng.latency(4000 * MS);
        for other in (0..self.nodes.len()).filter(|o| *o != node) {
            self.net.blocked.insert((node, other), until);
            self.net.blocked.insert((other, node), until);
        }
        self.nodes[node].meta_cut_until = until;
        let name = self.nodes[node].name.clone();
        self.say(|| format!("network: {name} is cut off until {}ms", until / MS));
        true
    }

    /// SIGKILL; a supervisor starts the process again.
    pub(crate) fn kill(&mut self, node: usize) -> bool {
        if !self.stop_process(node, true) {
            return false;
        }
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: process is killed"));
        let delay = self.rng.pick(&[1, 200, 1500, 6000, 20_000]).unwrap_or(200);
        let delay = self.rng.latency(delay * MS);
        self.schedule.after(delay, Event::Boot(node));
        true
    }

    fn stop_process(&mut self, node: usize, tells: bool) -> bool {
        if !self.nodes[node].up {
            return false;
        }
        self.nodes[node].up = false;
        self.nodes[node].paused_until = 0;
        if let Some(seat) = self.nodes[node].seat.take() {
            self.note_counters(&seat);
        }
        self.drop_connections(node, tells);
        self.nodes[node].fetcher = Default::default();
        self.abandon_copy(node);
        true
    }

    fn power_loss(&mut self, node: usize) -> bool {
        let was_up = self.stop_process(node, false);
        let now = self.now();
        let mut boot = [0; 16];
        boot.copy_from_slice(&self.rng.bits128().to_le_bytes());
        self.spare_dirty(node);
        self.spare_superblock(node);
        let n = &mut self.nodes[node];
        (n.boot, n.lost_power) = (boot, Some(now));
        let tears = self.plan.swarm.rate(Fault::TornBlock).min(1000);
        let disk = n.copy.as_mut().map(|c| &mut c.disk);
        let (lost, torn) = disk.map_or((0, 0), |disk| disk.power_loss(&mut self.rng, tears));
        self.outcome.coverage.pages_lost += lost;
        (0..torn).for_each(|_| self.count(Fault::TornBlock));
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: power is lost, {lost} pages with it, {torn} blocks torn"));
        if was_up {
            let delay = self.rng.pick(&[50, 1500, 6000, 20_000]).unwrap_or(1500);
            let delay = self.rng.latency(delay * MS);
            self.schedule.after(delay, Event::Boot(node));
        }
        true
    }

    fn pause(&mut self, node: usize, until: u64) -> bool {
        let until = if self.rng.chance(400) { until + 4000 * MS } else { until };
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: process stands still until {}ms", until / MS));
        self.nodes[node].up && raise(&mut self.nodes[node].paused_until, until)
    }

    pub(crate) fn seats(&self) -> Vec<(usize, u64)> {
        let seat = |(n, node): (usize, &crate::node::Node)| {
            node.seat.as_ref().filter(|s| !s.is_over()).map(|s| (n, s.id))
        };
        self.nodes.iter().enumerate().filter_map(seat).collect()
    }

    fn restart_primary(&mut self) -> bool {
        let seats = self.seats();
        let Some((node, _)) = self.rng.pick(&seats) else { return false };
        self.seat_primary(node);
        true
    }

    fn take_over(&mut self) -> bool {
        let idle = |n: &usize| self.nodes[*n].up && self.nodes[*n].seat.is_none();
        let free: Vec<usize> = (0..self.nodes.len()).filter(idle).collect();
        let Some(node) = self.seat_for(&free) else { return false };
        let seats = self.seats();
        let contested = !seats.is_empty();
        if self.rng.chance(self.plan.cuts_off) {
            seats.iter().filter(|(n, _)| *n != node).for_each(|(n, _)| {
                self.isolate(*n);
            });
        }
        self.seat_primary(node);
        contested
    }

    /// One of these nodes for a new primary; in some worlds rather one without a copy.
    fn seat_for(&mut self, nodes: &[usize]) -> Option<usize> {
        let without: Vec<usize> =
            nodes.iter().copied().filter(|n| self.nodes[*n].copy.is_none()).collect();
        let away = !without.is_empty() && self.rng.chance(self.plan.away);
        self.rng.pick(if away { &without } else { nodes })
    }

    fn detach(&mut self) -> bool {
        let seats = self.seats();
        let Some((node, id)) = self.rng.pick(&seats) else { return false };
        let Some(seat) = self.nodes[node].seat(id) else { return false };
        // One that was not opened yet ends at once.
        let early = matches!(seat.phase, Phase::Claiming | Phase::Recovering);
        let served = matches!(seat.phase, Phase::Active | Phase::Suspended);
        if seat.closing || !(served || early && self.rng.chance(300)) {
            return false;
        }
        self.close(node, id);
        true
    }

    /// Asks a primary to close.
    pub(crate) fn close(&mut self, node: usize, id: u64) {
        let Some(seat) = self.nodes[node].seat(id) else { return };
        seat.closing = true;
        seat.guest.running = false;
        seat.guest.to_verify.clear();
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: primary {id} is asked to close"));
        self.tell_primary(node, id, PrimaryEvent::Close);
    }

    fn idle(&mut self) -> bool {
        let until = self.now() + self.rng.between(1, 40) * 1000 * MS;
        raise(&mut self.quiet_until, until)
    }

    pub(crate) fn add_copy(&mut self) -> bool {
        let free = |n: &usize| self.nodes[*n].copy.is_none() && self.nodes[*n].up;
        let free: Vec<usize> = (0..self.nodes.len()).filter(free).collect();
        let Some(node) = self.rng.pick(&free) else { return false };
        self.add_copy_on(node)
    }

    pub(crate) fn add_copy_on(&mut self, node: usize) -> bool {
        let record = self.meta.record().clone();
        let (rid, txn) = (ReplicaId(self.uuid()), self.uuid());
        let name = self.nodes[node].name.clone();
        let Ok(record) = record.add_new(rid, name, POOL.to_owned(), txn) else {
            return false;
        };
        let disk = formatted(rid, self.volume, self.lineage, record.blocks);
        let copy = Copy::new(rid, disk);
        self.nodes[node].copy = Some(copy);
        if self.nodes[node].up {
            self.open_copy(node, false);
        }
        self.controller_writes(record);
        true
    }

    fn forget_copy(&mut self) -> bool {
        let record = self.meta.record().clone();
        let outside = record.replicas.iter().filter(|r| r.state != ReplicaState::InSync);
        let outside: Vec<_> = outside.cloned().collect();
        let Some(entry) = self.rng.pick(&outside) else { return false };
        self.forget_entry(&entry)
    }

    pub(crate) fn forget_entry(&mut self, entry: &ReplicaEntry) -> bool {
        let record = self.meta.record().clone();
        let txn = self.uuid();
        let Ok(record) = record.forget(entry.rid, txn) else { return false };
        self.controller_writes(record);
        if let Some(node) = self.index_of(&entry.node) {
            self.abandon_copy(node);
            self.nodes[node].copy = None;
        }
        true
    }

    fn fail_disk(&mut self, node: usize) -> bool {
        // Counted when an operation fails.
        if let Some(copy) = self.nodes[node].copy.as_mut() {
            copy.fails_next = true;
        }
        false
    }

    /// Keeps the volume attached: when nobody has served it for long, somebody else tries.
    pub(crate) fn supervise(&mut self) {
        if self.stage != Stage::Chaos {
            return;
        }
        let delay = self.rng.between(100, 1000) * MS;
        self.schedule.after(delay, Event::Supervise);
        if self.crisis.is_some() {
            return;
        }
        let waited = self.now().saturating_sub(self.served_at);
        if !self.seats().is_empty() && waited < self.plan.patience_ms * MS {
            return;
        }
        let up: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].up).collect();
        if let Some(node) = self.seat_for(&up) {
            self.served_at = self.now();
            self.seat_primary(node);
        }
    }

    /// Closes what was dialled towards a node, as seen from there.
    pub(crate) fn reset_acceptors(&mut self, node: usize) {
        if !REOPEN_RESETS && self.rng.chance(500) {
            return;
        }
        let here = |c: &crate::net::Connection| c.ends[1].open && c.ends[1].node == node;
        let wires: Vec<Wire> =
            self.net.connections.iter().filter(|(_, c)| here(c)).map(|(w, _)| *w).collect();
        for wire in wires {
            self.close_end(wire, 1 - DIALER, true);
        }
    }
}

fn raise(what: &mut u64, to: u64) -> bool {
    *what = (*what).max(to);
    true
}
