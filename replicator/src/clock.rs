//! The one clock of the daemon: microseconds since it started.

use std::time::{Duration, Instant};

use lockstep_core::id::Tick;

/// Turns the process's monotonic clock into the core's [`Tick`]s. Copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Now, in microseconds since the start.
    #[must_use]
    pub fn now(&self) -> Tick {
        let micros = u64::try_from(self.start.elapsed().as_micros());
        Tick(micros.unwrap_or(u64::MAX))
    }

    /// The instant at which `tick` is reached, for timers.
    #[must_use]
    pub fn instant(&self, tick: Tick) -> tokio::time::Instant {
        let at = self.start.checked_add(Duration::from_micros(tick.0));
        // A tick beyond what the platform can name is as good as never; a day is far enough.
        at.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400)).into()
    }

    /// Milliseconds since `tick`; 0 if it lies ahead.
    #[must_use]
    pub fn ms_since(&self, tick: Tick) -> u64 {
        self.now().ms_since(tick)
    }
}
