//! Members that answer, but are no good: many times slower than the others, so that every write
//! waits for them, or with ever more bad blocks. They are removed (T5) as carefully as a healthy
//! member is let go ([`super::release`]): they hold all data. They come back by a resync after a
//! pause, longer each time; sooner if they are needed.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::{Effect, Notice, Phase, Primary};
use crate::id::{ReplicaId, Tick};
use crate::limits;
use crate::planted::Bug;

/// Why a member was removed although it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unfit {
    /// Its writes take many times as long as those of the others.
    Slow,
    /// Its disk has ever more bad blocks.
    Rotten,
}

/// How long operations took on one member in the present interval.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    sum_us: u64,
    count: u64,
}

/// A copy that is not brought back for a while.
#[derive(Clone, Copy, Debug)]
struct Shunned {
    why: Unfit,
    until: Tick,
    /// How often it was removed.
    times: u32,
}

/// What is known of the members' fitness.
#[derive(Clone, Debug, Default)]
pub(super) struct Fitness {
    /// The present interval.
    since: Tick,
    times: BTreeMap<ReplicaId, Times>,
    /// The slowest of the last intervals, and how many of them in a row.
    slowest: Option<(ReplicaId, u32)>,
    /// Bad blocks that were met since, by member.
    bad: BTreeMap<ReplicaId, (Tick, u32)>,
    shunned: BTreeMap<ReplicaId, Shunned>,
}

impl Fitness {
    fn begin(&mut self, now: Tick) {
        self.since = now;
        self.times.clear();
    }

    /// The slowest member, if it is many times slower than the fastest half of all; nothing if
    /// there is too little to tell.
    fn outlier(&self, members: &[ReplicaId]) -> Option<Option<ReplicaId>> {
        let mut means = Vec::new();
        for rid in members {
            let times = self.times.get(rid).filter(|t| t.count >= limits::SLOW_OPS)?;
            means.push((times.sum_us / times.count, *rid));
        }
        means.sort_unstable();
        let (usual, _) = *means.get(means.len().checked_sub(1)? / 2)?;
        let (mean, rid) = means.pop()?;
        // Of two that are about equally slow, neither is to blame.
        let alone = means.last().is_none_or(|(next, _)| mean >= next.saturating_mul(2));
        let slow = alone
            && mean >= usual.saturating_mul(limits::SLOW_FACTOR)
            && mean >= limits::SLOW_FLOOR_MS * 1000;
        Some(slow.then_some(rid))
    }

    /// An interval is over.
    fn note_interval(&mut self, outlier: Option<ReplicaId>) {
        self.slowest = outlier.map(|rid| {
            let before = self.slowest.filter(|(known, _)| *known == rid);
            (rid, before.map_or(1, |(_, n)| n.saturating_add(1)))
        });
    }
}

impl Primary {
    /// A member has done an operation that all members do, `since` which time it was waited for.
    pub(super) fn note_time(&mut self, rid: ReplicaId, since: Tick) {
        let us = self.now.0.saturating_sub(since.0);
        let times = self.fitness.times.entry(rid).or_default();
        times.sum_us = times.sum_us.saturating_add(us);
        times.count += 1;
    }

    /// A bad block was met on a member, by a read or a copy. What a scrub finds has gathered for
    /// long, and says little about how the disk is now.
    pub(super) fn note_bad(&mut self, rid: ReplicaId) {
        let now = self.now;
        let (since, count) = self.fitness.bad.entry(rid).or_insert((now, 0));
        if now.ms_since(*since) > limits::ROT_WINDOW_MS {
            (*since, *count) = (now, 0);
        }
        *count += 1;
    }

    pub(super) fn drive_unfit(&mut self) {
        self.measure_members();
        if self.release.is_some() || self.phase != Phase::Active {
            return;
        }
        let slow = self.fitness.slowest.filter(|(_, n)| *n >= limits::SLOW_INTERVALS);
        let rotten = self.fitness.bad.iter().filter(|(_, (_, n))| *n > limits::ROT_BLOCKS);
        let rotten = rotten.map(|(rid, _)| (*rid, Unfit::Rotten));
        let mut unfit = rotten.chain(slow.map(|(rid, _)| (rid, Unfit::Slow)));
        if let Some((rid, why)) = unfit.find(|(rid, why)| self.may_leave(*rid, Some(*why))) {
            self.begin_release(rid, Some(why));
        }
    }

    fn measure_members(&mut self) {
        let ms = self.now.ms_since(self.fitness.since);
        // A resync makes its source and its target slow, a release all of them.
        let busy = self.resync_target().is_some() || self.release.is_some();
        if busy || self.phase != Phase::Active || ms > limits::SLOW_PATIENCE_MS {
            let now = self.now;
            return self.fitness.begin(now);
        }
        if ms < limits::SLOW_INTERVAL_MS {
            return;
        }
        let members = self.members();
        if let Some(outlier) = self.fitness.outlier(&members) {
            let now = self.now;
            self.fitness.note_interval(outlier);
            self.fitness.begin(now);
        }
    }

    /// How many members have to stay when one that answers is removed: one copy less than wanted,
    /// but never the last two. A slow copy is better than none.
    pub(super) fn enough_without_unfit(&self) -> usize {
        let Some(record) = self.cas.record() else { return usize::MAX };
        let wanted = record.repl.saturating_sub(1).max(record.min_in_sync);
        let least = if self.has(Bug::ShunOneOfTwo) { 1 } else { wanted.max(2) };
        usize::from(least)
    }

    /// T5 is in force for a member that answers.
    pub(super) fn shun(&mut self, rid: ReplicaId, why: Unfit) {
        self.counters.unfit_removals += 1;
        self.out.push(Effect::Notice(Notice::Unfit { replica: rid, why }));
        let times = self.fitness.shunned.get(&rid).map_or(0, |s| s.times);
        let ms = limits::UNFIT_BACKOFF_MS << times.min(limits::UNFIT_DOUBLINGS);
        let until = self.now.plus_ms(ms);
        self.fitness.shunned.insert(rid, Shunned { why, until, times: times + 1 });
        self.fitness.bad.remove(&rid);
        self.fitness.slowest = None;
    }

    /// Why a copy is left out for a while, and until when.
    pub(super) fn shunned(&self, rid: &ReplicaId) -> Option<(Unfit, Tick)> {
        let shunned = self.fitness.shunned.get(rid).filter(|s| s.until > self.now)?;
        let record = self.cas.record()?;
        // Without another one, it is better than none.
        let enough = self.members().len() >= self.enough_without_unfit();
        (enough && !record.is_in_sync(*rid)).then_some((shunned.why, shunned.until))
    }

    /// When a copy may come back.
    pub(super) fn unfit_due(&self) -> Option<Tick> {
        let rids = self.peers.keys().filter(|rid| self.is_serving(**rid));
        rids.filter_map(|rid| self.shunned(rid)).map(|(_, until)| until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn rid(n: u128) -> ReplicaId {
        ReplicaId(Uuid::from_u128(n))
    }

    fn measured(ms: &[u64]) -> (Fitness, Vec<ReplicaId>) {
        let mut fitness = Fitness::default();
        let members: Vec<ReplicaId> = (0..ms.len() as u128).map(rid).collect();
        for (rid, ms) in members.iter().zip(ms) {
            let times = Times { sum_us: ms * 1000 * limits::SLOW_OPS, count: limits::SLOW_OPS };
            fitness.times.insert(*rid, times);
        }
        (fitness, members)
    }

    #[test]
    fn only_one_that_is_many_times_slower_than_the_fastest_half_is_slow() {
        let cases: &[(&[u64], Option<u128>)] = &[
            (&[5, 6, 60], Some(2)),
            (&[60, 6, 5], Some(0)),
            // Two are equally slow.
            (&[5, 60, 60], None),
            // Slower, but not much.
            (&[10, 12, 99], None),
            // Many times, but of next to nothing.
            (&[1, 1, 40], None),
            (&[1, 1, 1, 50, 60], None),
            (&[1, 1, 5, 5, 60], Some(4)),
        ];
        for (ms, expected) in cases {
            let (fitness, members) = measured(ms);
            assert_eq!(fitness.outlier(&members), Some(expected.map(rid)), "{ms:?}");
        }
    }

    #[test]
    fn too_few_operations_tell_nothing() {
        let (mut fitness, members) = measured(&[1, 1, 500]);
        fitness.times.entry(rid(1)).or_default().count -= 1;
        assert_eq!(fitness.outlier(&members), None);
    }

    #[test]
    fn only_intervals_in_a_row_count() {
        let mut fitness = Fitness::default();
        fitness.note_interval(Some(rid(1)));
        fitness.note_interval(Some(rid(1)));
        assert_eq!(fitness.slowest, Some((rid(1), 2)));
        fitness.note_interval(None);
        fitness.note_interval(Some(rid(1)));
        assert_eq!(fitness.slowest, Some((rid(1), 1)));
        fitness.note_interval(Some(rid(2)));
        assert_eq!(fitness.slowest, Some((rid(2), 1)));
    }
}
