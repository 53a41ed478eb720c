//! How fast a resync may go: as fast as it can while nobody else writes, and no faster than the
//! guest's writes can bear while somebody does.
//!
//! The measure is the latency of the guest's writes, arrival to answer: its 99th percentile while
//! a resync runs must stay near what it usually is without one. The rate rises by a constant step
//! while that holds and is halved when it does not, but never falls below a floor, so that a
//! resync always ends. What is usual is learned while no resync runs; if that is unknown, or out
//! of date, the resync pauses for one interval to learn it.

mod histogram;
#[cfg(test)]
mod tests;

use self::histogram::Histogram;
use crate::id::Tick;
use crate::limits;

/// The rate of the resyncs of one volume, and what it is worked out from.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Latencies of the guest's writes since `since`.
    guest: Histogram,
    since: Tick,
    /// Does a resync run, and has one run since `since`?
    running: bool,
    disturbed: bool,
    /// The percentile that writes have without a resync, µs.
    usual: Option<u64>,
    /// Does the guest write enough to be protected?
    guarded: bool,
    /// Bytes per second that may be compared while it does.
    rate: u64,
    /// When the next window may start.
    next_at: Tick,
    /// Until when no window starts, so that what is usual can be learned.
    hold_until: Option<Tick>,
    /// Intervals in a row at the lowest rate without relief.
    at_floor: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            guest: Histogram::default(),
            since: Tick(0),
            running: false,
            disturbed: false,
            usual: None,
            guarded: false,
            rate: limits::RESYNC_RATE_START,
            next_at: Tick(0),
            hold_until: None,
            at_floor: 0,
        }
    }
}

impl Pace {
    /// A resync begins.
    pub(super) fn begin(&mut self, now: Tick) {
        self.roll(now);
        self.running = true;
        self.disturbed = true;
        self.rate = limits::RESYNC_RATE_START;
        self.next_at = now;
        self.at_floor = 0;
        self.guarded = self.guest.count() >= limits::RESYNC_GUARD_WRITES;
        if self.guarded && self.usual.is_none() {
            self.hold(now);
        }
    }

    /// The resync ended.
    pub(super) fn end(&mut self) {
        self.running = false;
        self.guarded = false;
        self.hold_until = None;
    }

    /// A write of the guest was answered after `took_us`.
    pub(super) fn note(&mut self, now: Tick, took_us: u64) {
        self.roll(now);
        // What waited for a lost member tells nothing about the load.
        if took_us / 1000 >= limits::MEMBER_GRACE_MS || now < self.since {
            return;
        }
        self.guest.add(took_us);
        // The guest has begun to write: no need to wait for the end of the interval.
        if self.running && !self.guarded && self.guest.count() >= limits::RESYNC_GUARD_WRITES {
            self.guarded = true;
            if self.usual.is_none() {
                self.hold(now);
            }
        }
    }

    /// May a window start now, with `running` in flight already?
    pub(super) fn admits(&mut self, now: Tick, running: usize) -> bool {
        self.roll(now);
        if !self.guarded {
            return running < limits::RESYNC_WINDOWS;
        }
        let held = self.hold_until.is_some();
        !held && now >= self.next_at && running < limits::RESYNC_WINDOWS_GUARDED
    }

    /// When a window may start that may not start now; `None` if it is not time that it lacks.
    pub(super) fn due(&self, now: Tick) -> Option<Tick> {
        let at = self.hold_until.unwrap_or(self.next_at);
        (self.guarded && at > now).then_some(at)
    }

    /// `bytes` were compared.
    pub(super) fn charge(&mut self, now: Tick, bytes: u64) {
        let took_us = bytes.saturating_mul(1_000_000) / self.rate;
        self.next_at = Tick(self.next_at.max(now).0.saturating_add(took_us));
    }

    /// No windows for one interval, from when those in flight have ended.
    fn hold(&mut self, now: Tick) {
        self.guest.clear();
        self.since = now.plus_ms(limits::RESYNC_SETTLE_MS);
        self.disturbed = false;
        self.hold_until = Some(self.since.plus_ms(limits::RESYNC_INTERVAL_MS));
    }

    /// Ends the interval if it is long enough, and long enough ago if it saw few writes.
    fn roll(&mut self, now: Tick) {
        let age = now.ms_since(self.since);
        let enough = self.guest.count() >= limits::RESYNC_INTERVAL_WRITES;
        let longest = 4 * limits::RESYNC_INTERVAL_MS;
        let held = self.hold_until.is_some_and(|until| now >= until);
        if age < limits::RESYNC_INTERVAL_MS || (!enough && age < longest && !held) {
            return;
        }
        let some = self.guest.count() >= limits::RESYNC_GUARD_WRITES;
        let found = some.then(|| self.guest.percentile(99));
        // An interval that ended long ago says nothing about now.
        match found.filter(|_| age <= 2 * longest) {
            Some(us) if self.disturbed => self.adapt(us),
            Some(us) => self.learn(us),
            None => self.guarded = false,
        }
        self.guest.clear();
        self.since = now;
        self.disturbed = self.running;
        self.hold_until = None;
        let stuck = self.at_floor >= limits::RESYNC_FLOOR_INTERVALS;
        if self.guarded && (self.usual.is_none() || stuck) {
            self.at_floor = 0;
            self.hold(now);
        }
    }

    /// An interval without a resync. While one is only held, what it shows counts at once: what
    /// was known before was missing or in doubt.
    fn learn(&mut self, us: u64) {
        self.usual = match self.usual {
            Some(usual) if !self.running => Some((3 * usual + us) / 4),
            Some(_) | None => Some(us),
        };
    }

    /// An interval with a resync.
    fn adapt(&mut self, us: u64) {
        let Some(usual) = self.usual.filter(|_| self.guarded) else { return };
        if us.saturating_mul(10) < usual.saturating_mul(limits::RESYNC_TOLERANCE_TENTHS) {
            self.rate = self.rate.saturating_add(limits::RESYNC_RATE_STEP);
            self.at_floor = 0;
        } else {
            self.rate = (self.rate / 2).max(limits::RESYNC_RATE_FLOOR);
            let lowest = self.rate == limits::RESYNC_RATE_FLOOR;
            self.at_floor = if lowest { self.at_floor + 1 } else { 0 };
        }
    }
}
