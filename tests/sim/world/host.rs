//! Processes and their copies: a replica over its store over its disk.

use bytes::Bytes;
use lockstep_core::id::{Incarnation, Lineage, ReplicaId, VolumeId};
use lockstep_core::limits;
use lockstep_core::replica::{self, Effect, Replica, Role};
use lockstep_core::slots::Slots;
use lockstep_core::wire::Frame;
use lockstep_store::layout::{File, file_bytes};
use lockstep_store::{
    DiskError, DiskOp, DiskOpId, DiskOpKind, Identity, OpenParams, Store, Superblock, format,
};

use super::torn::whole_blocks;
use super::{Event, MS, World};
use crate::disk::{Disk, pieces};
use crate::fault::Fault;
use crate::node::{Flight, Host};
use crate::rng::Rng;

/// What each operation takes on a disk that holds everybody up.
const CRAWL: u64 = 60 * MS;
/// The longest that a disk takes which is not hung.
const SLOWEST: u64 = 4000 * MS;

/// The files of an empty replica.
pub(crate) fn formatted(
    replica: ReplicaId,
    volume: VolumeId,
    lineage: Lineage,
    blocks: u64,
) -> Disk {
    let mut disk = Disk::default();
    for (file, offset, data) in format(Identity { volume, replica, lineage }, blocks, [0; 16]) {
        disk.write(file, offset, &data, true);
    }
    disk
}

impl World {
    /// A node's process starts.
    pub(crate) fn boot(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        let (now, process, clock) = (self.now(), self.rng.bits(), self.rng.below(1 << 40));
        let n = &mut self.nodes[node];
        (n.up, n.process) = (true, process);
        (n.slots, n.entries) = (Slots::default(), Slots::of_targets(limits::RESYNC_ENTRIES));
        // It introduces itself.
        self.cluster.removed.remove(&node);
        n.clock.start(now, clock);
        let name = n.name.clone();
        self.say(|| format!("{name}: process starts"));
        self.open_copy(node, false);
    }

    /// Opens the node's copy, if it has one.
    pub(crate) fn open_copy(&mut self, node: usize, lost_cache: bool) {
        let open = self.fresh_id();
        let incarnation = Incarnation(self.rng.bits());
        let (volume, planted) = (self.volume, self.planted);
        let (blocks, tuning) = (self.plan.habits.most_blocks, self.plan.tuning);
        let now = self.now();
        if self.nodes[node].gone_until > now {
            return self.open_later(node, lost_cache);
        }
        let n = &mut self.nodes[node];
        let boot_id = n.boot;
        let Some(copy) = n.copy.as_mut() else { return };
        copy.reopening = false;
        copy.disk.drop_unsealed();
        let whole = |file| copy.disk.given(file, 0, file_bytes(file, blocks)).unwrap_or_default();
        let meta = whole(File::Meta);
        let doubted = Superblock::good_copies(&meta) < 2;
        let params = OpenParams {
            meta: &meta,
            regions: &whole(File::Regions),
            expect: None,
            boot_id,
            lost_cache,
            tuning,
            planted,
        };
        let opened = match Store::open(params) {
            Ok(opened) => opened,
            Err(why) => {
                let what = format!("{} can't open its copy: {why}", n.name);
                self.fail("open", what);
                return;
            }
        };
        // After a forced recovery it may be of an older history, until it promises.
        let lineage = opened.superblock.identity.lineage;
        let identity = replica::Identity { volume, replica: copy.rid, lineage, incarnation };
        let recovered = opened.recovered;
        let (unresolved, lossy) = (recovered.unresolved.len(), recovered.lossy);
        copy.whole = whole_blocks(copy, &recovered);
        copy.lossy_since = lossy.then_some(now);
        let promised = recovered.promised;
        copy.host = Some(Host {
            open,
            replica: Replica::open(identity, recovered, planted).with_pulls().with_entries(),
            store: opened.store,
            flights: Default::default(),
            asked: Default::default(),
            armed: None,
        });
        let name = n.name.clone();
        self.outcome.coverage.unclean_opens += u64::from(unresolved > 0);
        self.outcome.coverage.lossy_opens += u64::from(lossy);
        self.say(|| {
            format!(
                "{name}: copy opens, promised {promised}, {unresolved} regions unresolved{}{}",
                if lossy { ", lossy" } else { "" },
                if doubted { ", one superblock is bad" } else { "" }
            )
        });
        self.pump(node, open);
    }

    /// A faulted copy is opened again; its process goes on.
    pub(crate) fn reopen(&mut self, node: usize, open: u64) {
        if !self.nodes[node].up || self.nodes[node].host(open).is_none() {
            return;
        }
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: faulted copy is opened again"));
        let lost_cache =
            self.nodes[node].host(open).is_some_and(|(h, _)| h.store.status().lost_cache);
        self.abandon_copy(node);
        if lost_cache {
            // What a failed flush left unwritten is gone, as with the power.
            self.nodes[node].lost_power = Some(self.now());
        }
        self.open_copy(node, lost_cache);
        self.reset_acceptors(node);
    }

    /// The process lets go of its copy; disk operations under way are done in part.
    pub(crate) fn abandon_copy(&mut self, node: usize) {
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let Some(host) = copy.host.take() else { return };
        self.nodes[node].entries.leave(self.volume);
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let doubtful: Vec<u64> =
            copy.disk.harmed_blocks().filter(|b| host.store.is_in_doubt(*b)).collect();
        doubtful.into_iter().for_each(|block| copy.disk.heal(File::Data, block));
        for flight in host.flights.into_values() {
            apply_in_part(&mut copy.disk, flight.kind, &mut self.rng);
        }
    }

    /// What a replica is told.
    pub(crate) fn replica_event(&mut self, node: usize, open: u64, event: replica::Event) {
        self.replica_step(node, open, event);
        self.pump(node, open);
    }

    pub(super) fn replica_step(&mut self, node: usize, open: u64, event: replica::Event) {
        let tick = self.nodes[node].tick(self.now());
        if self.is_telling() {
            self.tell_replica(node, &event);
        }
        let Some((host, _)) = self.nodes[node].host(open) else { return };
        let mut out = Vec::new();
        host.replica.step(tick, event, &mut out);
        host.replica.check();
        for effect in out {
            match effect {
                Effect::Send { conn, message } => self.send(node, conn, &Frame::Reply(message)),
                Effect::Store { token, op } => {
                    let Some((host, _)) = self.nodes[node].host(open) else { return };
                    if host.asked.insert(token) {
                        host.store.submit(tick, token, op);
                    } else {
                        self.fail("honest", format!("a replica uses token {token} twice"));
                    }
                }
                Effect::Fetch { token, node: other, message } => {
                    let to = self.index_of(&other);
                    self.fetch(node, open, token, to, message);
                }
                Effect::Entry(wish) => self.entry(node, open, wish),
                Effect::Note(note) => {
                    let Some((host, _)) = self.nodes[node].host(open) else { return };
                    host.store.note(tick, note);
                }
            }
        }
    }

    /// Lets the store do what it can.
    fn pump(&mut self, node: usize, open: u64) {
        loop {
            let Some((host, _)) = self.nodes[node].host(open) else { return };
            if let Some(op) = host.store.poll_disk() {
                self.start_disk_op(node, open, op);
                continue;
            }
            let Some((token, result)) = host.store.poll_done() else { break };
            if !host.asked.remove(&token) {
                self.fail("honest", format!("a store answers {token}, which is not open"));
                return;
            }
            self.replica_step(node, open, replica::Event::Stored { token, result });
        }
        let Some((host, _)) = self.nodes[node].host(open) else { return };
        host.store.check();
        self.arm_store(node, open);
        self.watch_for_faults(node, open);
    }

    pub(crate) fn arm_store(&mut self, node: usize, open: u64) {
        let (now, clock) = (self.now(), self.nodes[node].clock);
        let Some((host, _)) = self.nodes[node].host(open) else { return };
        let Some(tick) = host.store.deadline() else { return };
        let when = clock.when(tick, now);
        if host.armed != Some(when) {
            host.armed = Some(when);
            self.schedule.at(when, Event::StoreWake { node, open });
        }
    }

    pub(crate) fn store_wake(&mut self, node: usize, open: u64) {
        let now = self.now();
        let tick = self.nodes[node].tick(now);
        let Some((host, _)) = self.nodes[node].host(open) else { return };
        if host.armed.is_none_or(|at| at > now) {
            return;
        }
        host.armed = None;
        host.store.tick(tick);
        self.pump(node, open);
    }

    /// A replica that faulted is opened again after a while, as an operator or a daemon would.
    fn watch_for_faults(&mut self, node: usize, open: u64) {
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let Some(host) = copy.host.as_ref() else { return };
        let faulted = host.replica.status().role == Role::Faulted || host.store.status().faulted;
        if copy.reopening || !faulted {
            return;
        }
        copy.reopening = true;
        self.outcome.coverage.faulted += 1;
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: copy is faulted"));
        let delay = self.rng.between(200, 5000) * MS;
        self.schedule.after(delay, Event::Reopen { node, open });
    }

    fn start_disk_op(&mut self, node: usize, open: u64, op: DiskOp) {
        let now = self.now();
        let n = &self.nodes[node];
        let typical = match op.kind {
            DiskOpKind::Read { .. } => 40,
            DiskOpKind::Write { durable: false, .. } | DiskOpKind::Zero { .. } => 30,
            DiskOpKind::Write { durable: true, .. } => 80,
            DiskOpKind::Sync { .. } => 300,
            DiskOpKind::Extend { .. }
            | DiskOpKind::TrySnapshot
            | DiskOpKind::CopyAhead { .. }
            | DiskOpKind::DropAhead
            | DiskOpKind::Snapshot { .. }
            | DiskOpKind::KeepTags { .. }
            | DiskOpKind::SealSnapshot { .. }
            | DiskOpKind::DropSnapshot { .. } => 500,
        };
        let typical = typical * self.plan.disk_factor;
        let typical = if n.slow_until > now { typical * 20 } else { typical };
        let typical = if n.crawls_until > now { typical.max(CRAWL) } else { typical };
        // Slow is not hung: that is a fault of its own, and ends.
        let delay = self.rng.latency(typical).min(SLOWEST);
        let when = (now + delay).max(n.hung_until);
        let Some((host, disk)) = self.nodes[node].host(open) else { return };
        let flight = Flight { kind: op.kind, mark: disk.mark() };
        if host.flights.insert(op.id, flight).is_some() {
            self.fail("honest", format!("a store uses disk operation {:?} twice", op.id));
        }
        self.schedule.at(when, Event::DiskDone { node, open, op: op.id });
    }

    pub(crate) fn disk_done(&mut self, node: usize, open: u64, op: DiskOpId) {
        let now = self.now();
        let tick = self.nodes[node].tick(now);
        let hung = self.nodes[node].hung_until;
        if hung > now {
            self.schedule.at(hung, Event::DiskDone { node, open, op });
            return;
        }
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let Some(host) = copy.host.as_mut().filter(|h| h.open == open) else { return };
        let Some(flight) = host.flights.remove(&op) else { return };
        let fails = copy.fails_next && !matches!(flight.kind, DiskOpKind::Read { .. });
        let result = if fails {
            copy.fails_next = false;
            let flush = matches!(flight.kind, DiskOpKind::Sync { file: File::Data });
            apply_in_part(&mut copy.disk, flight.kind, &mut self.rng);
            if flush {
                // Whatever the disk has kept: nobody can know, so the copy says that it lost.
                self.nodes[node].lost_power = Some(now);
            }
            self.count(Fault::DiskError);
            Err(DiskError::Io)
        } else {
            if let DiskOpKind::Snapshot { id, .. } = flight.kind {
                self.note_moment(id);
            }
            self.execute(node, flight)
        };
        let Some((host, _)) = self.nodes[node].host(open) else { return };
        host.store.done(tick, op, result);
        self.pump(node, open);
    }
}

pub(super) fn apply(disk: &mut Disk, flight: Flight) -> Bytes {
    match flight.kind {
        DiskOpKind::Read { file, offset, len } => return disk.read(file, offset, u64::from(len)),
        DiskOpKind::Write { file, offset, data, durable } => {
            disk.write(file, offset, &data, durable);
        }
        DiskOpKind::Zero { file, offset, len, .. } => disk.zero(file, offset, len, false),
        DiskOpKind::Sync { file } => disk.flushed(file, flight.mark),
        DiskOpKind::CopyAhead { fresh, ranges } => disk.copy_ahead(fresh, &ranges),
        DiskOpKind::DropAhead => disk.drop_ahead(),
        DiskOpKind::Snapshot { id, ahead } => disk.keep(id, ahead.as_deref()),
        DiskOpKind::KeepTags { id, unwritten } => disk.keep_tags(id, &unwritten),
        DiskOpKind::SealSnapshot { id, blocks } => disk.seal(id, blocks),
        DiskOpKind::DropSnapshot { id } => disk.drop_kept(id),
        // The files have no end here; what the volume is told stands in the superblock.
        DiskOpKind::Extend { .. } | DiskOpKind::TrySnapshot => {}
    }
    Bytes::new()
}

/// An operation that nobody heard the end of: each page of a write may have been written.
pub(super) fn apply_in_part(disk: &mut Disk, kind: DiskOpKind, rng: &mut Rng) {
    match kind {
        DiskOpKind::Write { file, offset, data, .. } => {
            for (page, start, part) in pieces(offset, &data) {
                if rng.chance(500) {
                    disk.write(file, page * 4096 + start as u64, &part, false);
                }
            }
        }
        DiskOpKind::Zero { file, offset, len, .. } => {
            for page in (offset..offset + len).step_by(4096) {
                if rng.chance(500) {
                    disk.zero(file, page, 4096, false);
                }
            }
        }
        DiskOpKind::Read { .. }
        | DiskOpKind::Sync { .. }
        | DiskOpKind::Extend { .. }
        | DiskOpKind::TrySnapshot
        | DiskOpKind::CopyAhead { .. }
        | DiskOpKind::DropAhead
        | DiskOpKind::Snapshot { .. }
        | DiskOpKind::KeepTags { .. }
        | DiskOpKind::SealSnapshot { .. }
        | DiskOpKind::DropSnapshot { .. } => {}
    }
}
