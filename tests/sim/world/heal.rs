//! The end of a world: faults stop, and everything has to come right.

use lockstep_core::limits;
use lockstep_core::primary::{Event as PrimaryEvent, Phase, Stop};
use lockstep_core::record::ReplicaState;
use lockstep_core::wire::MAX_VERSION;

use super::{Event, MS, World};
use crate::fault::{Fault, Swarm};
use crate::node::Copy;

/// Where a world is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Faults happen.
    Chaos,
    /// They have stopped; all copies have to come in sync while a guest goes on (I14).
    Healing {
        /// Since when.
        since: u64,
    },
    /// The guest has stopped; the rest has to be answered, and everything is read once more.
    Settling {
        /// Since when.
        since: u64,
    },
    /// Every block of every copy is read, and what is bad is mended.
    Scrubbing {
        /// Since when.
        since: u64,
    },
    /// The volume is being closed, or was deleted.
    Closing {
        /// Since when.
        since: u64,
    },
    /// Over.
    Done,
}

/// How long healing may take.
const HEAL_LIMIT: u64 = 60_000 * MS;
/// How long it may take until one of many copies has left and is forgotten.
const EACH_LEAVES: u64 = 6000 * MS;
/// Puts that were given up are applied by then.
const LATE_LIMIT: u64 = 30_000 * MS;
/// How long the last requests, and the end, may take.
const END_LIMIT: u64 = 20_000 * MS;
/// Time for commits to arrive after the last request.
const QUIESCE: u64 = 1000 * MS;
const POLL: u64 = 20 * MS;

impl World {
    /// All faults end; whatever is down starts; one primary attaches the volume.
    pub(crate) fn heal(&mut self) {
        if self.crisis.is_some() {
            self.schedule.after(100 * MS, Event::Heal);
            return;
        }
        self.say(|| "the faults end".to_owned());
        let now = self.now();
        (self.stage, self.healed_at) = (Stage::Healing { since: now }, now);
        self.plan.swarm = Swarm::none();
        self.net.blocked.clear();
        (self.plan.distance, self.plan.disk_factor) = (self.plan.distance.min(300), 1);
        self.plan.detours.iter_mut().flatten().for_each(|factor| *factor = 1);
        (self.garbles_next, self.mangles_next) = (false, false);
        self.meta.storm_until = 0;
        (self.meta.down_until, self.meta.slow_until, self.quiet_until) = (0, 0, 0);
        for node in 0..self.nodes.len() {
            let n = &mut self.nodes[node];
            (n.paused_until, n.slow_until, n.hung_until, n.meta_cut_until) = (0, 0, 0, 0);
            n.crawls_until = 0;
            // What was read in vain may be told of for a while.
            (n.full_until, n.gone_until, n.mistake) = (0, n.gone_until.min(now), None);
            if let Some(copy) = &mut n.copy {
                (copy.fails_next, copy.mishap) = (false, None);
            }
            if !self.nodes[node].clock.is_true() {
                self.nodes[node].clock.run_at(now, 1000);
                self.rearm(node);
            }
            self.upgrade_if_grown(node);
            self.boot(node);
        }
        self.make_room();
        let (copies, wanted) = (self.meta.record().replicas.len(), self.cluster.wanted.repl);
        self.crowd = copies.saturating_sub(usize::from(wanted)) as u64;
        self.keep_one_primary();
        self.schedule.after(POLL, Event::Stage);
    }

    /// A copy that can't be made longer stays out until its daemon is of today.
    fn upgrade_if_grown(&mut self, node: usize) {
        let grows = self.plan.habits.most_blocks > self.plan.habits.blocks;
        if grows && self.nodes[node].speaks < MAX_VERSION {
            self.kill(node);
            self.nodes[node].speaks = MAX_VERSION;
        }
    }

    /// The primary that the record names goes on, or all make place for a new one.
    fn keep_one_primary(&mut self) {
        let named = self.meta.record().primary.as_ref().map(|p| p.instance);
        let keeps = self.rng.chance(600);
        let mut kept = false;
        for node in 0..self.nodes.len() {
            let seat = self.nodes[node].seat.as_ref();
            let good =
                seat.is_some_and(|s| !s.closing && !s.is_over() && Some(s.instance) == named);
            if keeps && good {
                kept = true;
                // The news of a changed record may have been lost; sooner or later they come.
                if let Some(id) = seat.map(|s| s.id) {
                    self.tell_primary(node, id, PrimaryEvent::RecordChanged);
                }
            } else {
                self.unseat(node);
            }
        }
        if !kept {
            let node = self.rng.index(self.nodes.len());
            self.seat_primary(node);
        }
    }

    pub(crate) fn stage(&mut self) {
        let now = self.now();
        let seat = self.nodes.iter().enumerate().find_map(|(n, node)| {
            let seat = node.seat.as_ref()?;
            Some((n, seat.id, seat.phase, seat.guest.pending.len(), seat.guest.to_verify.len()))
        });
        let Some((node, id, phase, waiting, unverified)) = seat else {
            self.fail("converge", "the last primary vanished".to_owned());
            return;
        };
        if phase == Phase::Fenced && self.meta.is_deleted {
            self.stage = Stage::Done;
            return;
        }
        // A claim that was given up long ago came in late; or the device had to fail (G4), which
        // may be found only now. Another attempt is due.
        if phase == Phase::Fenced && (now < self.healed_at + LATE_LIMIT || self.lost_device(node)) {
            // First, so that its controllers are at work again.
            self.stage = Stage::Healing { since: now };
            self.seat_primary(node);
        }
        match self.stage {
            Stage::Chaos | Stage::Done => return,
            Stage::Healing { since } => {
                self.forget_leaving();
                self.tell_if_overtaken(node, id);
                if phase == Phase::Active && self.is_whole(node) && self.is_kept(id) {
                    self.stop_guest(node, id);
                    self.stage = Stage::Settling { since: now };
                } else if now - since > self.heal_limit() {
                    let record = super::records::describe(self.meta.record());
                    self.fail("converge", format!("still {phase:?} after 60 s: {record}"));
                }
            }
            Stage::Settling { since } => {
                if waiting + unverified == 0 && now - since > QUIESCE {
                    self.tell_primary(node, id, PrimaryEvent::Scrub);
                    self.stage = Stage::Scrubbing { since: now };
                } else if now - since > END_LIMIT {
                    let what = format!("{waiting} requests are unanswered 20 s after the last");
                    self.fail("converge", what);
                }
            }
            Stage::Scrubbing { since } => self.scrubbing(node, id, since),
            Stage::Closing { since } => {
                if phase == Phase::Closed {
                    self.check_closed(node, id);
                    self.unseat(node);
                    self.stage = Stage::Done;
                    return;
                }
                if now - since > END_LIMIT {
                    self.fail("converge", format!("still {phase:?} 20 s after the close"));
                }
            }
        }
        self.schedule.after(POLL, Event::Stage);
    }

    /// A put that was given up may come in late, and take the volume over for nobody: its news
    /// come too.
    fn tell_if_overtaken(&mut self, node: usize, id: u64) {
        let named = self.meta.record().primary.as_ref().map(|p| p.instance);
        let overtaken = self.nodes[node].seat(id).is_some_and(|s| Some(s.instance) != named);
        let claimed = self.nodes[node].seat(id).is_some_and(|s| s.phase == Phase::Active);
        if overtaken && claimed && self.rng.chance(50) {
            self.tell_primary(node, id, PrimaryEvent::RecordChanged);
        }
    }

    /// Did the primary give up because only copies that lost power are left?
    fn lost_device(&self, node: usize) -> bool {
        let seat = self.nodes[node].seat.as_ref();
        seat.is_some_and(|s| s.primary.status().stopped == Some(Stop::DataLost))
    }

    /// How long healing may take. A member without files never answers: if all that do answer lost
    /// power, a promotion waits for it in vain (P3). So it does for one that fails over tags that
    /// it can't read, which may be found only after such a wait.
    fn heal_limit(&self) -> u64 {
        let had = |fault: Fault| self.outcome.faults.contains_key(fault.name());
        let kinds = [Fault::WipedReplica, Fault::RolledBackReplica, Fault::RuinedReplica];
        let lost = kinds.into_iter().any(had);
        let waits = u64::from(lost) + u64::from(had(Fault::ReadError));
        // One that was removed although it answers stays out for a while, longer each time.
        let c = &self.outcome.coverage;
        let again = (c.slow_removals + c.rot_removals).checked_sub(1);
        let doublings =
            again.map(|n| u32::try_from(n).map_or(0, |n| n.min(limits::UNFIT_DOUBLINGS)));
        let unfit = doublings.map_or(0, |n| limits::UNFIT_BACKOFF_MS << n);
        // Of copies that are too many one leaves at a time, and is forgotten after another look.
        HEAL_LIMIT + self.crowd * EACH_LEAVES + (waits * limits::LOSSY_GRACE_MS + unfit) * MS
    }

    /// I12: when everything was read and nothing is bad any more, the volume may be closed.
    fn scrubbing(&mut self, node: usize, id: u64, since: u64) {
        let now = self.now();
        self.forget_leaving();
        let busy = self.nodes[node].seat(id).is_some_and(|s| s.primary.status().scrub.is_some());
        let good = !busy && self.is_whole(node) && self.is_sound();
        let holders = self.slot_holders();
        if good && holders.is_empty() {
            self.check_end();
            if self.rng.chance(50) {
                self.say(|| "the volume is deleted".to_owned());
                self.meta.is_deleted = true;
                self.tell_primary(node, id, PrimaryEvent::RecordChanged);
            } else {
                self.close(node, id);
            }
            self.stage = Stage::Closing { since: now };
        } else if now - since > self.heal_limit() && good {
            self.fail("limits", format!("{holders:?} keep slots for no resync"));
        } else if now - since > self.heal_limit() {
            self.fail("converge", "a block is still bad after 60 s of scrubbing".to_owned());
        } else if !busy && !good {
            self.tell_primary(node, id, PrimaryEvent::Scrub);
        }
    }

    /// Are all copies in sync, open, and reached by their primary? The record alone does not
    /// tell: a copy that restarted, or lost its files, may not have been missed yet.
    fn is_whole(&self, node: usize) -> bool {
        let Some(seat) = self.nodes[node].seat.as_ref() else { return false };
        let status = seat.primary.status();
        let in_sync = self.meta.record().replicas.iter().all(|entry| {
            entry.state == ReplicaState::InSync
                && self.nodes.iter().any(|n| n.copy.as_ref().is_some_and(|c| c.rid == entry.rid))
                && status.replicas.get(&entry.rid).is_some_and(|r| r.connected)
        });
        let listed = |c: &&Copy| self.meta.record().replica(c.rid).is_some();
        let copies = self.nodes.iter().filter_map(|n| n.copy.as_ref()).filter(listed);
        let resolved = |c: &Copy| c.host.as_ref().is_some_and(|h| !h.replica.status().unclean);
        in_sync && copies.into_iter().all(resolved)
    }

    /// No more writes; everything that was ever written is read once more.
    fn stop_guest(&mut self, node: usize, id: u64) {
        let blocks: Vec<u64> = self.oracle.blocks().collect();
        let Some(seat) = self.nodes[node].seat(id) else { return };
        seat.guest.running = false;
        seat.guest.to_verify = super::seat::runs(&blocks);
        self.schedule.after(0, Event::GuestTurn { node, seat: id });
    }

    /// Everything is quiet: all copies are equal and hold what was acknowledged.
    fn check_end(&mut self) {
        let record = self.meta.record().clone();
        let members: Vec<usize> = self.in_sync(&record).into_iter().map(|(n, _)| n).collect();
        let blocks: Vec<u64> = self.oracle.blocks().collect();
        for block in blocks {
            let mut shown = Vec::new();
            for node in &members {
                let Some(copy) = self.nodes[*node].copy.as_ref() else { continue };
                shown.push(copy.disk.visible(block));
            }
            if shown.windows(2).any(|w| w[0] != w[1]) {
                self.fail("converge", format!("block {block} differs at the end: {shown:?}"));
            }
            if let Some(first) = shown.first()
                && !self.oracle.is_readable(block, *first)
            {
                self.fail("converge", format!("block {block} ends as {first:?}"));
            }
        }
    }
}
