//! The slots of a node for resyncs, which its primary and its copy share with those of other
//! volumes.

use lockstep_core::id::{NodeId, VolumeId};
use lockstep_core::limits;
use lockstep_core::primary::Event as PrimaryEvent;
use lockstep_core::replica;
use lockstep_core::slots::Wish;

use super::{Event, MS, Stage, World};
use crate::node::Node;

/// Time between two times that somebody asks who got none.
const RETRY: u64 = limits::RESYNC_SLOT_RETRY_MS * MS;

/// The primary or the copy of another volume on a node, which dies with its process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rival {
    node: usize,
    process: u64,
    volume: VolumeId,
    /// Is it a copy, the target of a resync?
    enters: bool,
    /// Copies that it has in sync.
    copies: usize,
    /// Its resync is over then.
    until: u64,
}

impl World {
    /// Tells the node's slots what a primary wants, if that is news or it is time.
    pub(super) fn ask_for_slot(&mut self, node: usize, seat: u64) {
        let (now, volume) = (self.now(), self.volume);
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let wish = s.primary.slot_wish();
        if wish == s.wish && s.asks_at.is_none_or(|at| at > now) {
            return;
        }
        let wants = matches!(wish, Wish::Wants { .. });
        let begins = wants && s.wish == Wish::Nothing;
        s.wish = wish;
        if begins && self.stage == Stage::Chaos && self.rng.chance(500) {
            self.add_rivals(node, false);
        }
        let tick = self.nodes[node].tick(now);
        let has = self.nodes[node].slots.tell(tick, volume, wish);
        let again = (wants && !has).then_some(now + RETRY);
        if let Some(s) = self.nodes[node].seat(seat) {
            s.asks_at = again;
        }
        if let Some(at) = again {
            self.schedule.at(at, Event::AskForSlot { node, seat });
        } else if wants {
            self.tell_primary(node, seat, PrimaryEvent::ResyncSlot);
        }
    }

    /// Other volumes of the node have copies to bring up to date, too.
    fn add_rivals(&mut self, node: usize, enters: bool) {
        for _ in 0..self.rng.between(1, 4) {
            let rival = Rival {
                node,
                process: self.nodes[node].process,
                volume: VolumeId(self.uuid()),
                enters,
                copies: self.rng.index(4),
                until: self.now() + self.rng.latency(700 * MS),
            };
            self.rival(rival);
        }
    }

    pub(crate) fn rival(&mut self, rival: Rival) {
        let Rival { node, process, volume, enters, copies, until } = rival;
        if !self.nodes[node].up || self.nodes[node].process != process {
            return;
        }
        let now = self.now();
        let tick = self.nodes[node].tick(now);
        let n = &mut self.nodes[node];
        let slots = if enters { &mut n.entries } else { &mut n.slots };
        if until <= now || self.stage != Stage::Chaos {
            slots.tell(tick, volume, Wish::Nothing);
            return;
        }
        let has = slots.tell(tick, volume, Wish::Wants { copies });
        if has {
            slots.tell(tick, volume, Wish::Keeps);
        }
        self.check_slots(node);
        self.schedule.at(if has { until } else { until.min(now + RETRY) }, Event::Rival(rival));
    }

    /// What a copy tells its node about being the target of a resync.
    pub(super) fn entry(&mut self, node: usize, open: u64, wish: Wish) {
        let (now, volume) = (self.now(), self.volume);
        let tick = self.nodes[node].tick(now);
        let asks = matches!(wish, Wish::Wants { .. });
        if asks && self.stage == Stage::Chaos && self.rng.chance(300) {
            self.add_rivals(node, true);
        }
        let granted = self.nodes[node].entries.tell(tick, volume, wish);
        self.check_slots(node);
        if asks {
            self.replica_step(node, open, replica::Event::Entered { granted });
        }
    }

    fn check_slots(&mut self, node: usize) {
        let n = &self.nodes[node];
        let (out, r#in) = (n.slots.taken(), n.entries.taken());
        if out > limits::RESYNC_SLOTS || r#in > limits::RESYNC_ENTRIES {
            self.fail("limits", format!("{out} resyncs run from a node, {in} to it", in = r#in));
        }
    }

    /// Who has a slot for a resync of the volume, from its node or to it. When all copies are in
    /// sync and their primary knows, nobody keeps others from their resyncs.
    pub(super) fn slot_holders(&self) -> Vec<NodeId> {
        let holds = |n: &&Node| n.slots.holds(self.volume) || n.entries.holds(self.volume);
        self.nodes.iter().filter(holds).map(|n| n.name.clone()).collect()
    }
}
