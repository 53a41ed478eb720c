//! The guest of one attachment: bursts of reads, writes, zeroes and flushes on few blocks.

use lockstep_core::guest::GuestOp;
use lockstep_core::id::RequestId;
use lockstep_core::message::Payload;
use lockstep_core::range::BlockRange;
use std::collections::{BTreeMap, BTreeSet};

use crate::content::{Value, payload};
use crate::rng::Rng;

/// How the guests of a seed behave.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks that it may get.
    pub most_blocks: u64,
    /// Where most requests start.
    pub hot: Vec<u64>,
    /// Most requests under way.
    pub depth: usize,
    /// Requests in the life of the world, roughly.
    pub budget: u64,
    /// Reads, writes, zeroes and flushes among a hundred requests.
    pub mix: [u64; 4],
    /// Writes with FUA among a thousand.
    pub fua: u64,
    /// Requests of more than 256 blocks among a thousand.
    pub large: u64,
    /// Writes among a thousand that repeat what an earlier one wrote.
    pub repeats: u64,
    /// Requests beyond the end of the volume, among a thousand.
    pub invalid: u64,
    /// Reads everything that was ever written before anything else?
    pub verifies: bool,
}

impl Habits {
    /// Random habits.
    pub fn draw(rng: &mut Rng) -> Self {
        // One in thirty is large enough for a scan in several parts.
        let regions = if rng.chance(33) { rng.between(1000, 2500) } else { rng.between(2, 8) };
        let blocks = regions * 256 - rng.below(100);
        let hot_blocks = rng.pick(&[3, 8, 16, 40]).unwrap_or(8);
        let hot = (0..hot_blocks).map(|_| rng.below(blocks)).collect();
        let mixes =
            [[25, 55, 8, 12], [10, 80, 5, 5], [50, 40, 5, 5], [5, 90, 0, 5], [10, 60, 0, 30]];
        Self {
            blocks,
            most_blocks: blocks,
            hot,
            depth: rng.pick(&[1, 4, 8, 16, 32]).unwrap_or(8),
            budget: rng.pick(&[200, 500, 1000, 3000]).unwrap_or(500),
            mix: rng.pick(&mixes).unwrap_or([25, 55, 8, 12]),
            fua: rng.pick(&[0, 50, 300]).unwrap_or(50),
            large: rng.pick(&[0, 0, 3, 10]).unwrap_or(0),
            repeats: rng.pick(&[0, 0, 50, 300]).unwrap_or(0),
            invalid: rng.pick(&[0, 10]).unwrap_or(0),
            verifies: rng.chance(500),
        }
    }
}

impl Habits {
    /// Writes to few places of a small volume.
    pub fn few(&mut self, rng: &mut Rng) {
        self.blocks = rng.between(2, 4) * 256 - rng.below(100);
        self.most_blocks = self.blocks;
        let hot = rng.pick(&[2, 3, 8]).unwrap_or(3);
        self.hot = (0..hot).map(|_| rng.below(self.blocks)).collect();
        self.mix = rng.pick(&[[15, 70, 8, 7], [5, 90, 0, 5], [20, 60, 5, 15]]).unwrap_or(self.mix);
        (self.large, self.invalid) = (0, 0);
        self.budget = rng.pick(&[200, 500, 1000]).unwrap_or(500);
    }

    /// Typical pause between two bursts in a world that lasts this long; both in microseconds.
    #[must_use]
    pub fn pause(&self, lasts: u64) -> u64 {
        // A burst has `depth` requests on average.
        (lasts * self.depth as u64 / self.budget).max(1)
    }
}

/// One attachment's guest.
#[derive(Debug, Default)]
pub struct Guest {
    /// Requests without an answer.
    pub pending: BTreeMap<RequestId, (GuestOp, Value)>,
    /// Did its connection break while these were under way? Nobody hears their answers.
    pub unheard: BTreeSet<RequestId>,
    /// To be asked again on the new connection.
    again: Vec<(GuestOp, Value)>,
    /// Blocks still to be read before anything else.
    pub to_verify: Vec<BlockRange>,
    /// Blocks that its device shows.
    pub blocks: u64,
    /// Does it ask anything?
    pub running: bool,
    /// Number of requests so far.
    pub requests: u64,
    /// Requests under way that must be refused.
    pub invalid: BTreeSet<RequestId>,
    next: u64,
}

/// A request with what the oracle has to know of it.
#[derive(Debug)]
pub struct Asked {
    /// Its number.
    pub request: RequestId,
    /// The request.
    pub op: GuestOp,
    /// The content of a write.
    pub value: Value,
    /// Does it lie within the volume?
    pub is_valid: bool,
}

impl Guest {
    /// Its connection breaks; answers whether anything was under way.
    pub fn reconnect(&mut self) -> bool {
        let valid = |r: &&RequestId| !self.invalid.contains(r);
        let lost: Vec<RequestId> = self.pending.keys().filter(valid).copied().collect();
        for request in &lost {
            if self.unheard.insert(*request) {
                self.again.extend(self.pending.get(request).cloned());
            }
        }
        !lost.is_empty()
    }

    /// Must it wait until nothing of its old connection is under way?
    #[must_use]
    pub fn is_reconnecting(&self) -> bool {
        !self.unheard.is_empty()
    }

    /// The next request; `value` is for a write.
    pub fn ask(&mut self, rng: &mut Rng, habits: &Habits, value: Value) -> Asked {
        self.next += 1;
        self.requests += 1;
        let request = RequestId(self.next);
        if let Some((op, value)) = self.again.pop() {
            self.pending.insert(request, (op.clone(), value));
            return Asked { request, op, value, is_valid: true };
        }
        let is_valid = !(self.to_verify.is_empty() && rng.chance(habits.invalid));
        let repeats = rng.chance(habits.repeats);
        let back = if repeats { rng.below(30) } else { 0 };
        let value = Value(value.0.saturating_sub(back).max(1));
        let op = match self.to_verify.pop() {
            Some(range) => GuestOp::Read { range },
            None if is_valid => draw(rng, habits, self.blocks, value),
            None => beyond(rng, habits),
        };
        if !is_valid {
            self.invalid.insert(request);
        }
        let value = if matches!(op, GuestOp::Zero { .. }) { Value::ZERO } else { value };
        self.pending.insert(request, (op.clone(), value));
        Asked { request, op, value, is_valid }
    }
}

/// A request that reaches beyond the end of the volume.
fn beyond(rng: &mut Rng, habits: &Habits) -> GuestOp {
    let start = habits.most_blocks - rng.below(3).min(habits.blocks);
    let range = BlockRange::new(start, 3);
    if rng.chance(500) {
        return GuestOp::Read { range };
    }
    GuestOp::Zero { range, fua: false, deallocate: true }
}

fn draw(rng: &mut Rng, habits: &Habits, blocks: u64, value: Value) -> GuestOp {
    let range = place(rng, habits, blocks);
    let fua = rng.chance(habits.fua);
    let mut dice = rng.below(habits.mix.iter().sum());
    let kind = habits.mix.iter().position(|share| {
        let hit = dice < *share;
        dice = dice.saturating_sub(*share);
        hit
    });
    match kind {
        Some(0) => GuestOp::Read { range },
        Some(1) => {
            let payload = Payload::checksummed(payload(value, range.start, range.count));
            GuestOp::Write { range, fua, payload }
        }
        Some(2) => GuestOp::Zero { range, fua, deallocate: rng.chance(500) },
        _ => GuestOp::Flush,
    }
}

fn place(rng: &mut Rng, habits: &Habits, blocks: u64) -> BlockRange {
    let count = if rng.chance(habits.large) { rng.between(200, 700) } else { rng.between(1, 8) };
    let count = count.min(habits.blocks);
    let hot = rng.pick(&habits.hot).unwrap_or(0);
    let start = hot.saturating_sub(rng.below(4)).min(habits.blocks - count);
    if blocks > habits.blocks && rng.chance(400) {
        // What is new of it.
        let start = (blocks - count).saturating_sub(rng.below(8));
        return BlockRange::new(start, u32::try_from(count).unwrap_or(1));
    }
    BlockRange::new(start, u32::try_from(count).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_within_the_volume_and_every_kind_comes_up() {
        let mut seen = [0; 4];
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let habits = Habits::draw(&mut rng);
            let mut guest = Guest { blocks: habits.blocks, ..Guest::default() };
            for n in 1..20 {
                let asked = guest.ask(&mut rng, &habits, Value(n));
                let (kind, range) = match asked.op {
                    GuestOp::Read { range } => (0, range),
                    GuestOp::Write { range, .. } => (1, range),
                    GuestOp::Zero { range, .. } => (2, range),
                    GuestOp::Flush => (3, BlockRange::new(0, 1)),
                };
                seen[kind] += 1;
                let fits = range.end() <= habits.blocks;
                assert_eq!(fits, asked.is_valid, "{range:?} of {}", habits.blocks);
            }
            assert_eq!(guest.pending.len(), 19);
        }
        assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
    }
}
