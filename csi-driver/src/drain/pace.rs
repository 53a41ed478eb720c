//! How soon to look again.

use std::time::Duration;
use tokio::time::Instant;

/// Pause between looks while a node is cordoned that has a guard.
const SOON: Duration = Duration::from_secs(1);
/// For so long after something has changed. What lasts longer may last for weeks.
const HASTE: Duration = Duration::from_secs(60);

/// What the looks find, and since when.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<(String, Instant)>);

impl Pace {
    /// The pause after a look that found that somebody waits for this, or nobody.
    pub(super) fn pause(
        &mut self,
        waits: Option<String>,
        now: Instant,
        every: Duration,
    ) -> Duration {
        let Some(what) = waits else {
            self.0 = None;
            return every;
        };
        let since = self.0.take().filter(|(before, _)| *before == what);
        let since = since.map_or(now, |(_, since)| since);
        self.0 = Some((what, since));
        if now - since < HASTE { every.min(SOON) } else { every }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_while_what_is_waited_for_changes() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let every = Duration::from_secs(5);
        let mut pause = |what: Option<&str>, seconds| {
            let at = begin + Duration::from_secs(seconds);
            pace.pause(what.map(str::to_owned), at, every).as_secs()
        };
        assert_eq!(pause(None, 0), 5);
        assert_eq!([pause(Some("a"), 1), pause(Some("a"), 60), pause(Some("a"), 61)], [1, 1, 5]);
        assert_eq!([pause(Some("b"), 62), pause(Some("b"), 122)], [1, 5]);
        assert_eq!([pause(None, 123), pause(Some("b"), 124)], [5, 1]);
    }
}
