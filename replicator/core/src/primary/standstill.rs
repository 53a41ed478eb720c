//! Time in which this very process stood still (it was stopped, or its node was paused) says
//! nothing about the replicas: answers may have arrived, and nobody read them. So what is waited
//! for gets that time again. Never a lease for reads, which ends by the clock ([`super::lease`]),
//! nor anything that a fence hangs on.

use super::Primary;
use crate::id::Tick;
use crate::limits;
use crate::planted::Bug;

impl Primary {
    /// A step at `now` begins. If it should have been taken long before, nothing since the last
    /// one counts.
    pub(super) fn excuse_standstill(&mut self, now: Tick) {
        if now.ms_since(self.now) < limits::STANDSTILL_MS {
            return;
        }
        let due = self.deadline().map(|(at, _)| at.max(self.now));
        let late = due.is_some_and(|at| now.ms_since(at) >= limits::STANDSTILL_MS);
        if !late || self.has(Bug::CountStandstill) {
            return;
        }
        let ms = now.ms_since(self.now);
        let stretches = self.has(Bug::StretchLease);
        self.peers.values_mut().for_each(|peer| peer.excuse(ms, stretches));
        self.promotion.excuse(ms);
    }
}
