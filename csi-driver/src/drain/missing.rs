//! The budget of guards, which somebody may delete, and with it all guards.

use super::{Drains, Seen};
use crate::kubernetes::guards::{Budget, Found, Guards};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// An uninstall deletes the controller as well, and has ended it by then.
const UNINSTALL: Duration = Duration::from_secs(10);

/// What holds up drains.
pub(super) enum Guarded<'a> {
    /// Nothing is to.
    Unwanted,
    /// Nothing does: the budget is missing.
    Missing,
    /// These guards of a budget.
    By(&'a Guards, Budget, Vec<Found>),
}

/// Since when the budget is missing, if it is.
#[derive(Debug, Default)]
pub(super) struct Missing(Option<Instant>);

impl Missing {
    /// Notes that it is missing. Returns whether that is news, and whether it is for long enough to
    /// be made again.
    fn note(&mut self, now: Instant) -> (bool, bool) {
        let is_news = self.0.is_none();
        let since = *self.0.get_or_insert(now);
        (is_news, now - since >= UNINSTALL)
    }
}

impl Drains {
    /// What holds up drains now. A budget that is missing is made again.
    pub(super) async fn guarded(&self, seen: &mut Seen) -> Result<Guarded<'_>, Status> {
        let Some(guards) = &self.guards else { return Ok(Guarded::Unwanted) };
        if let Some(budget) = guards.budget().await? {
            seen.missing = Missing::default();
            let found = guards.all(&budget).await?;
            return Ok(Guarded::By(guards, budget, found));
        }
        let (is_news, is_due) = seen.missing.note(Instant::now());
        let name = guards.budget_name();
        if is_news {
            let what = format!(
                "{name} was deleted, and its guards with it: nothing holds up drains until it is \
                 made again, in {} s",
                UNINSTALL.as_secs()
            );
            tracing::warn!("{what}");
            self.events.tell(&guards.budget_reference(), true, "Unguarded", what);
        }
        if is_due && self.leader.acts() {
            guards.put_budget().await?;
            tracing::info!("{name} is made again");
        }
        Ok(Guarded::Missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_once_and_made_again_after_a_while() {
        let (mut missing, begin) = (Missing::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(missing.note(at(0)), (true, false));
        assert_eq!(missing.note(at(9)), (false, false));
        assert_eq!(missing.note(at(10)), (false, true));
        missing = Missing::default();
        assert_eq!(missing.note(at(11)), (true, false), "it was there in between");
    }
}
