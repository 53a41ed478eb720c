//! How long a resync will still take, from how fast it was since it began.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use lockstep_core::id::{ReplicaId, VolumeId};
use lockstep_core::primary::ResyncProgress;

/// Where a resync stood when it was first looked at.
#[derive(Clone, Copy, Debug)]
struct Start {
    at_ms: u64,
    done_bytes: u64,
    last_done_bytes: u64,
}

/// The resyncs that were looked at.
#[derive(Debug, Default)]
pub(super) struct Pace {
    starts: Mutex<BTreeMap<(VolumeId, ReplicaId), Start>>,
}

impl Pace {
    /// Milliseconds that the resync of a replica will take from now; `None` while that is unknown.
    pub(super) fn eta_ms(
        &self,
        replica: (VolumeId, ReplicaId),
        progress: &ResyncProgress,
        now_ms: u64,
    ) -> Option<u64> {
        let done = progress.done_bytes;
        let fresh = Start { at_ms: now_ms, done_bytes: done, last_done_bytes: done };
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        let start = starts.entry(replica).or_insert(fresh);
        if done < start.last_done_bytes {
            // It began anew.
            *start = fresh;
        }
        start.last_done_bytes = done;
        let gained = u128::from(done - start.done_bytes);
        let took = u128::from(now_ms.saturating_sub(start.at_ms));
        let left = u128::from(progress.total_bytes.saturating_sub(done));
        if gained == 0 || took == 0 {
            return None;
        }
        u64::try_from(left * took / gained).ok()
    }

    /// Forgets the resyncs of a volume that run no more.
    pub(super) fn retain(&self, volume: VolumeId, running: &[ReplicaId]) {
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.retain(|(uid, rid), _| *uid != volume || running.contains(rid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn at(done_bytes: u64) -> ResyncProgress {
        ResyncProgress { done_bytes, total_bytes: 1000, moved_bytes: 0 }
    }

    #[test]
    fn the_time_left_follows_from_the_pace_so_far() {
        let pace = Pace::default();
        let key = (VolumeId(Uuid::nil()), ReplicaId(Uuid::nil()));
        assert_eq!(pace.eta_ms(key, &at(0), 100), None);
        assert_eq!(pace.eta_ms(key, &at(100), 200), Some(900));
        assert_eq!(pace.eta_ms(key, &at(1000), 1100), Some(0));
        assert_eq!(pace.eta_ms(key, &at(10), 1200), None, "it began anew");
        pace.retain(key.0, &[]);
        assert_eq!(pace.eta_ms(key, &at(500), 1300), None, "it was forgotten");
    }
}
