//! Which of several controllers acts. All of them answer calls; one keeps labels, shows volumes and
//! moves pods.
//!
//! It is order, not safety: whatever is done may be done twice. No two clocks are compared: whoever
//! waits measures how long the lease did not change, and whoever leads ends before that.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a leader acts after it began to renew, and how often it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) duration: Duration,
    pub(crate) renew: Duration,
}

impl Term {
    /// Until when one acts that began to renew then: one renewal less than the others wait, so that
    /// what it has begun by then can end.
    pub(crate) fn end(self, begun: Instant) -> Instant {
        begun + self.duration.saturating_sub(self.renew)
    }
}

/// What the lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Who has it; nobody: it was given back.
    pub(crate) holder: Option<String>,
    /// How long its holder wants to be waited for.
    pub(crate) duration: Duration,
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is ours: renew it.
    Renew,
    /// It is nobody's, or has been for too long: take it.
    Take,
    /// Somebody else has it.
    Wait,
}

/// What to do about a lease that has not changed for so long.
pub(crate) fn step(me: &str, lease: &Lease, unchanged: Duration) -> Step {
    match lease.holder.as_deref() {
        Some(holder) if holder == me => Step::Renew,
        Some(holder) if !holder.is_empty() && unchanged < lease.duration => Step::Wait,
        _ => Step::Take,
    }
}

/// Whether this controller acts. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Leader(watch::Receiver<Option<Instant>>);

impl Leader {
    /// One that acts until when it is told last, and not before it is told.
    pub(crate) fn new() -> (watch::Sender<Option<Instant>>, Self) {
        let (tell, told) = watch::channel(None);
        (tell, Self(told))
    }

    /// Where there is only one controller: it acts.
    pub(crate) fn alone() -> Self {
        let year = Duration::from_secs(365 * 24 * 3600);
        Self(watch::channel(Instant::now().checked_add(100 * year)).1)
    }

    /// Whether it acts now.
    pub(crate) fn acts(&self) -> bool {
        self.acts_at(Instant::now())
    }

    fn acts_at(&self, now: Instant) -> bool {
        self.0.borrow().is_some_and(|end| now < end)
    }

    /// Waits until it acts.
    pub(crate) async fn wait(&mut self) {
        while !self.acts() {
            if self.0.changed().await.is_err() {
                // Nobody will ever tell it again.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_nobody_has_it_or_its_holder_is_silent() {
        let second = Duration::from_secs(1);
        let of = |holder: Option<&str>| Lease {
            holder: holder.map(str::to_owned),
            duration: 5 * second,
        };
        assert_eq!(step("a", &of(Some("a")), 9 * second), Step::Renew);
        assert_eq!(step("a", &of(Some("b")), 4 * second), Step::Wait);
        assert_eq!(step("a", &of(Some("b")), 5 * second), Step::Take);
        assert_eq!(step("a", &of(Some("")), Duration::ZERO), Step::Take);
        assert_eq!(step("a", &of(None), Duration::ZERO), Step::Take);
    }

    #[tokio::test]
    async fn a_leader_ends_before_the_others_begin() {
        let term = Term { duration: Duration::from_secs(5), renew: Duration::from_secs(1) };
        let (tell, mut leader) = Leader::new();
        assert!(!leader.acts());
        let begun = Instant::now();
        tell.send_replace(Some(term.end(begun)));
        leader.wait().await;
        assert!(leader.acts_at(begun + Duration::from_millis(3999)));
        let late = begun + Duration::from_millis(4000);
        assert!(!leader.acts_at(late), "nobody else acts before 5 s are over");
    }
}
