//! A process's clock: it starts anywhere, runs a little fast or slow, and may jump forward.

use lockstep_core::id::Tick;

/// Microseconds of virtual time in which a true clock goes on by one thousand parts of itself.
const TRUE_RATE: u64 = 1000;

/// What a process takes for the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// At this virtual time, microseconds …
    since: u64,
    /// … it showed this.
    showed: u64,
    /// Microseconds that it goes on in a thousand.
    rate: u64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { since: 0, showed: 0, rate: TRUE_RATE }
    }
}

impl Clock {
    /// What it shows at virtual time `now`.
    #[must_use]
    pub fn shows(&self, now: u64) -> Tick {
        Tick(self.showed + now.saturating_sub(self.since) * self.rate / TRUE_RATE)
    }

    /// The first virtual time, not before `now`, at which it shows `tick` or more.
    #[must_use]
    pub fn when(&self, tick: Tick, now: u64) -> u64 {
        let left = tick.0.saturating_sub(self.showed) * TRUE_RATE;
        (self.since + left.div_ceil(self.rate)).max(now)
    }

    /// From `now` on it shows `tick`, at the rate it had.
    pub fn start(&mut self, now: u64, tick: u64) {
        (self.since, self.showed) = (now, tick);
    }

    /// From `now` on it goes on by `rate` microseconds in a thousand.
    pub fn run_at(&mut self, now: u64, rate: u64) {
        self.start(now, self.shows(now).0);
        self.rate = rate.max(1);
    }

    /// It shows so many microseconds more at once.
    pub fn jump(&mut self, by: u64) {
        self.showed += by;
    }

    /// Does it run as it should?
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.rate == TRUE_RATE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_a_tick_when_it_says_and_not_before() {
        for rate in [800, 999, 1000, 1003, 1200] {
            let mut clock = Clock::default();
            clock.start(70, 1_000_000);
            clock.run_at(1234, rate);
            for ahead in [1, 7, 1000, 123_457] {
                let tick = Tick(clock.shows(1234).0 + ahead);
                let when = clock.when(tick, 1234);
                assert!(clock.shows(when) >= tick, "{rate} {ahead}");
                assert!(clock.shows(when - 1) < tick, "{rate} {ahead}");
            }
            let before = clock.shows(5000);
            clock.jump(10);
            assert_eq!(clock.shows(5000).0, before.0 + 10);
        }
    }
}
