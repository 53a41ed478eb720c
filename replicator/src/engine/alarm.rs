//! A timer that is moved seldom: it may ring early, never late.

use std::pin::Pin;
use std::time::Duration;

use lockstep_core::id::Tick;
use tokio::time::{Sleep, sleep_until};

use crate::clock::Clock;

/// Shortest pause after an alarm. A machine that asks to be woken in the past again and again
/// must not take the processor.
const PAUSE: Duration = Duration::from_millis(1);

/// A timer for a machine's deadline. Deadlines mostly move later, so the timer is left where it
/// is until it rings; the machine is then woken for nothing, which is harmless.
#[derive(Debug)]
pub(super) struct Alarm {
    clock: Clock,
    sleep: Pin<Box<Sleep>>,
    armed: Option<Tick>,
}

impl Alarm {
    pub(super) fn new(clock: Clock) -> Self {
        let sleep = Box::pin(sleep_until(clock.instant(clock.now())));
        Self { clock, sleep, armed: None }
    }

    /// Rings at `deadline` at the latest; a deadline of `None` needs no ringing.
    pub(super) fn set(&mut self, deadline: Option<Tick>) {
        let Some(at) = deadline else { return };
        if self.armed.is_none_or(|armed| at < armed) {
            self.armed = Some(at);
            let instant = self.clock.instant(at);
            // Equal to the last ring: then the pause was set by it and stays.
            if instant > self.sleep.deadline() || !self.sleep.is_elapsed() {
                self.sleep.as_mut().reset(instant);
            } else {
                self.sleep.as_mut().reset(tokio::time::Instant::now() + PAUSE);
            }
        }
    }

    /// Waits for the ring; for ever, if nothing is set. May be dropped and called again.
    pub(super) async fn ring(&mut self) {
        if self.armed.is_none() {
            return std::future::pending().await;
        }
        self.sleep.as_mut().await;
        self.armed = None;
    }
}
