//! Holds a volume's requests back as its limits say, before they count as under way.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lockstep_core::primary::Phase;
use lockstep_core::throttle::{RateLimits, Throttle};
use tokio::sync::{Mutex as Turn, watch};

use crate::clock::Clock;

/// The limits of one attachment.
#[derive(Debug)]
pub(crate) struct Pace {
    clock: Clock,
    limits: watch::Sender<RateLimits>,
    throttle: Mutex<Throttle>,
    /// Of the request that is next; the others come in their order.
    turn: Turn<()>,
}

impl Pace {
    /// No limits.
    pub(crate) fn new() -> Self {
        Self {
            clock: Clock::start(),
            limits: watch::Sender::default(),
            throttle: Mutex::default(),
            turn: Turn::new(()),
        }
    }

    /// Other limits, also for requests that wait.
    pub(crate) fn set(&self, limits: RateLimits) {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner).set(limits);
        self.limits.send_if_modified(|there| {
            let other = *there != limits;
            *there = limits;
            other
        });
    }

    /// Waits until a request of so many bytes may go on. Nobody waits any more once the volume is
    /// being closed or was taken over: what is left is to be got over with.
    pub(crate) async fn pass(&self, bytes: u64, phase: &watch::Receiver<Phase>) {
        if self.limits.borrow().is_none() {
            return;
        }
        let (mut phase, _next) = (phase.clone(), self.turn.lock().await);
        // From here on no change is missed.
        let mut limits = self.limits.subscribe();
        loop {
            let passed = {
                let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
                throttle.pass(self.clock.now(), bytes)
            };
            let Err(wait_us) = passed else { return };
            let over = |p: &Phase| matches!(p, Phase::Draining | Phase::Closed | Phase::Fenced);
            tokio::select! {
                _ = phase.wait_for(over) => return,
                _ = limits.changed() => {}
                () = tokio::time::sleep(Duration::from_micros(wait_us)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const FOR_EVER: u64 = 1 << 60;

    /// A request that waits for ever, behind one that took all there is for ages.
    async fn waiting(pace: &Arc<Pace>, phase: &watch::Receiver<Phase>) -> impl Future<Output = ()> {
        pace.set(RateLimits { iops: 0, bytes_per_s: 1 });
        pace.pass(FOR_EVER, phase).await;
        let (pace, phase) = (Arc::clone(pace), phase.clone());
        let second = tokio::spawn(async move { pace.pass(1, &phase).await });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        async move { tokio::time::timeout(Duration::from_secs(20), second).await.unwrap().unwrap() }
    }

    #[tokio::test]
    async fn requests_that_wait_see_other_limits() {
        let (_tell, phase) = watch::channel(Phase::Active);
        let pace = Arc::new(Pace::new());
        let second = waiting(&pace, &phase).await;
        pace.set(RateLimits::default());
        second.await;
        pace.pass(FOR_EVER, &phase).await;
        pace.pass(FOR_EVER, &phase).await;
    }

    #[tokio::test]
    async fn nobody_waits_on_a_volume_that_is_over() {
        for end in [Phase::Draining, Phase::Fenced] {
            let (tell, phase) = watch::channel(Phase::Active);
            let pace = Arc::new(Pace::new());
            let second = waiting(&pace, &phase).await;
            tell.send(end).unwrap();
            second.await;
        }
    }
}
