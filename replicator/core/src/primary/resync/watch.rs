//! Watching a resync: how fast it is, whether it gets on, whether its target keeps up.

use super::{Primary, Stage};
use crate::id::{ReplicaId, Tick};
use crate::limits;
use crate::primary::{Effect, Notice, Phase, ResyncProgress};

/// How long a rate is measured before it is mixed into the one shown.
const SPEED_INTERVAL_MS: u64 = 1000;

/// How fast a resync is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speed {
    /// Since when, and from where, the present interval is measured.
    since: Tick,
    from_bytes: u64,
    bytes_per_s: u64,
    /// When it last got on, and how far it was then.
    moved_at: Tick,
    at_bytes: u64,
}

impl Speed {
    pub(super) fn begin(now: Tick) -> Self {
        Self { since: now, moved_at: now, ..Self::default() }
    }

    /// It is at `done` bytes.
    pub(super) fn note(&mut self, now: Tick, done: u64) {
        if done != self.at_bytes {
            (self.moved_at, self.at_bytes) = (now, done);
        }
        let ms = now.ms_since(self.since);
        if ms >= SPEED_INTERVAL_MS {
            let found = done.saturating_sub(self.from_bytes).saturating_mul(1000) / ms;
            self.bytes_per_s = match self.bytes_per_s {
                0 => found,
                known => (3 * known + found) / 4,
            };
            (self.since, self.from_bytes) = (now, done);
        }
    }

    /// It can't be expected to get on now.
    fn excuse(&mut self, now: Tick) {
        self.moved_at = now;
    }

    fn stalls_at(&self) -> Tick {
        self.moved_at.plus_ms(limits::RESYNC_STALL_MS)
    }

    /// Adds rate and time left.
    pub(super) fn show(&self, progress: ResyncProgress) -> ResyncProgress {
        let left = progress.total_bytes.saturating_sub(progress.done_bytes);
        let eta_ms = left.saturating_mul(1000).checked_div(self.bytes_per_s);
        ResyncProgress { bytes_per_s: self.bytes_per_s, eta_ms, ..progress }
    }
}

impl Primary {
    /// When a target that is being copied to has to have answered, or the copy to have got on.
    pub(super) fn watch_due(&self) -> Option<Tick> {
        let Stage::Copying(target) = self.resync.stage else { return None };
        let lags_at = self.lags_at(target);
        let stalls_at = Some(self.resync.speed.stalls_at());
        [lags_at, stalls_at].into_iter().flatten().filter(|at| *at > self.now).min()
    }

    fn lags_at(&self, target: ReplicaId) -> Option<Tick> {
        let owes_since = self.peers.get(&target)?.owes_since()?;
        Some(owes_since.plus_ms(limits::RESYNC_LAG_MS))
    }

    /// Notes how far the copy is, and ends it if it doesn't get on or holds the guest up.
    pub(super) fn watch_copy(&mut self, target: ReplicaId) {
        if let Some(job) = &self.copy {
            self.resync.speed.note(self.now, job.progress().done_bytes);
        }
        if self.phase == Phase::Suspended {
            self.resync.speed.excuse(self.now);
        }
        if self.lags_at(target).is_some_and(|at| at <= self.now) {
            self.abort_lagging(target);
        } else if self.resync.speed.stalls_at() <= self.now {
            self.counters.resyncs_stalled += 1;
            self.out.push(Effect::Notice(Notice::ResyncStalled { replica: target }));
            self.abort_resync();
        }
    }

    /// S3: the guest waits for a target only briefly. Called when all that can be issued is.
    pub(in crate::primary) fn drop_lagging_target(&mut self) {
        let Stage::Copying(target) = self.resync.stage else { return };
        if self.guests.is_held_back() && self.is_target_behind() {
            self.abort_lagging(target);
            self.drive_guests();
        }
    }

    /// Ends the resync, and leaves its target alone for longer each time.
    fn abort_lagging(&mut self, target: ReplicaId) {
        self.counters.resyncs_lagging += 1;
        self.out.push(Effect::Notice(Notice::ResyncLags { replica: target }));
        self.abort_resync();
        let doublings = self.resync.lags.min(limits::RESYNC_BACKOFF_DOUBLINGS);
        self.resync.lags += 1;
        self.hold_resync(self.now.plus_ms(limits::RESYNC_BACKOFF_MS << doublings));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_follow_from_what_was_done_of_late() {
        let mut speed = Speed::begin(Tick(0));
        let at =
            |done_bytes| ResyncProgress { done_bytes, total_bytes: 10_000, ..Default::default() };
        speed.note(Tick(500_000), 500);
        assert_eq!((speed.show(at(500)).bytes_per_s, speed.show(at(500)).eta_ms), (0, None));
        speed.note(Tick(1_000_000), 2000);
        assert_eq!(speed.show(at(2000)).bytes_per_s, 2000);
        assert_eq!(speed.show(at(2000)).eta_ms, Some(4000));
        // Slower of late: half as fast for a second counts for a quarter.
        speed.note(Tick(2_000_000), 3000);
        assert_eq!(speed.show(at(3000)).bytes_per_s, 1750);
        assert_eq!(speed.stalls_at(), Tick(2_000_000).plus_ms(limits::RESYNC_STALL_MS));
        speed.note(Tick(9_000_000), 3000);
        assert_eq!(speed.stalls_at(), Tick(2_000_000).plus_ms(limits::RESYNC_STALL_MS));
    }
}
