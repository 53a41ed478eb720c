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

    /// Should it have rung by now? Asked after each batch of inputs, since a task with much to do
    /// may not come to wait for the ring.
    pub(super) fn take_due(&mut self, now: Tick) -> bool {
        let due = self.armed.is_some_and(|at| at <= now);
        if due {
            self.armed = None;
        }
        due
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn it_rings_for_the_earliest_deadline_and_then_needs_a_new_one() {
        let clock = Clock::start();
        let mut alarm = Alarm::new(clock);
        assert!(timeout(SOON, alarm.ring()).await.is_err(), "nothing is set");
        let at = clock.now().plus_ms(30);
        alarm.set(Some(at.plus_ms(100_000)));
        alarm.set(Some(at));
        alarm.set(Some(at.plus_ms(100_000)));
        alarm.set(None);
        timeout(LONG, alarm.ring()).await.expect("it rings");
        assert!(clock.now() >= at, "it rang too early");
        assert!(timeout(SOON, alarm.ring()).await.is_err(), "it rings once");
    }

    #[tokio::test]
    async fn a_deadline_that_is_always_past_does_not_take_the_processor() {
        let clock = Clock::start();
        let mut alarm = Alarm::new(clock);
        let began = clock.now();
        for _ in 0..20 {
            alarm.set(Some(began));
            timeout(LONG, alarm.ring()).await.expect("it rings");
        }
        assert!(clock.ms_since(began) >= 18, "{} ms for 20 rings", clock.ms_since(began));
    }

    #[tokio::test]
    async fn what_is_due_is_known_without_waiting() {
        let clock = Clock::start();
        let mut alarm = Alarm::new(clock);
        let now = clock.now();
        alarm.set(Some(now.plus_ms(100_000)));
        assert!(!alarm.take_due(now));
        assert!(alarm.take_due(now.plus_ms(100_000)));
        assert!(!alarm.take_due(now.plus_ms(100_000)), "told once");
    }
}
