//! S10: a copy that returns is brought up before the one that is being made in its place.

use super::Primary;
use crate::id::{Gen, ReplicaId};
use crate::primary::copy::CopyJob;

impl Primary {
    /// Is there another copy that has less to catch up than the target under way? A replacement
    /// takes hours to fill, its elder minutes to return, and then the replacement is not needed.
    /// One that has failed since does not interrupt another time, so that two can't take turns for
    /// ever; and what has only its last windows in flight is let finish.
    pub(super) fn has_nearer_target(&self, target: ReplicaId) -> bool {
        let since = |rid| {
            let entry = self.cas.record().and_then(|record| record.replica(rid));
            entry.map_or(Gen(0), |entry| entry.state.since())
        };
        let has_more = self.copy.as_ref().is_some_and(CopyJob::has_more);
        let nearer = |rid: &ReplicaId| since(*rid) > since(target);
        has_more
            && self.cas.record().is_some_and(|record| record.replicas.len() > 2)
            && self
                .next_target()
                .is_some_and(|next| nearer(&next) && !self.resync.failed.contains(&next))
    }

    /// Ends the resync under way, to go on with it when its betters are in sync.
    pub(super) fn put_off_resync(&mut self, target: ReplicaId) {
        self.abort_resync();
        self.resync.failed = [target].into();
    }
}
