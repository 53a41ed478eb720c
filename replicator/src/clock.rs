//! The one clock of the daemon: microseconds since it started.

use std::time::{Duration, Instant};

use lockstep_core::id::Tick;
use nix::time::{ClockId, clock_gettime};

/// Less than this is no sleep of the machine, but the time between two looks at two clocks.
const ASLEEP_MIN: Duration = Duration::from_millis(5);

/// Turns the machine's monotonic clock into the core's [`Tick`]s. Copies agree with each other.
/// Time for which the machine slept counts: a lease that ran out meanwhile has run out.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// What the clock that also runs while the machine sleeps had shown; `None` if there is none.
    boot: Option<Duration>,
}

/// Time since the machine was started, its sleep included.
fn since_boot() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).ok().map(Duration::from)
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), boot: since_boot() }
    }

    /// Since the start, the machine's sleep included.
    fn elapsed(&self) -> Duration {
        let boot = self.boot.and_then(|boot| since_boot()?.checked_sub(boot));
        boot.unwrap_or_else(|| self.start.elapsed())
    }

    /// For how long the machine slept.
    fn asleep(&self) -> Duration {
        let awake = self.start.elapsed();
        let asleep = self.elapsed().saturating_sub(awake);
        if asleep < ASLEEP_MIN { Duration::ZERO } else { asleep }
    }

    /// Now, in microseconds since the start.
    #[must_use]
    pub fn now(&self) -> Tick {
        Tick(u64::try_from(self.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The instant at which `tick` is reached, for timers. They stand still while the machine
    /// sleeps, so one that was set before rings late by that.
    #[must_use]
    pub fn instant(&self, tick: Tick) -> tokio::time::Instant {
        let awake = Duration::from_micros(tick.0).saturating_sub(self.asleep());
        // A tick beyond what the platform can name is as good as never; a day is far enough.
        let at = self.start.checked_add(awake);
        at.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400)).into()
    }

    /// Milliseconds since `tick`; 0 if it lies ahead.
    #[must_use]
    pub fn ms_since(&self, tick: Tick) -> u64 {
        self.now().ms_since(tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLEEP: Duration = Duration::from_secs(10);

    #[test]
    fn a_machine_that_slept_did_not_stop_the_clock() {
        let awake = Clock::start();
        let boot = awake.boot.expect("Linux has this clock");
        let boot = boot.checked_sub(SLEEP).expect("this machine runs for longer than that");
        let slept = Clock { boot: Some(boot), ..awake };
        let earlier = awake.now();
        assert!(slept.ms_since(earlier) >= 10_000);
        // Its timers are set by the time that is left.
        let at = slept.now().plus_ms(60_000);
        let left = slept.instant(at).saturating_duration_since(tokio::time::Instant::now());
        assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(50), "{left:?}");
    }
}
