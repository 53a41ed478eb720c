//! A primary as others see it.

use super::{Peer, Primary, ReplicaStatus, Status};
use crate::id::ReplicaId;

impl Primary {
    /// The primary as others see it.
    #[must_use]
    pub fn status(&self) -> Status {
        let record = self.cas.record();
        let of = |rid: &ReplicaId, peer: &Peer| ReplicaStatus {
            connected: peer.is_up(),
            refused: peer.refused,
            resync: self.resync_progress(rid),
            mended_blocks: self.mending.mended(rid),
        };
        Status {
            phase: self.phase,
            stopped: self.stopped,
            epoch: record.map(|r| r.epoch).unwrap_or_default(),
            r#gen: record.map(|r| r.r#gen).unwrap_or_default(),
            record: record.cloned(),
            replicas: self.peers.iter().map(|(rid, peer)| (*rid, of(rid, peer))).collect(),
            counters: *self.counters,
            pending_requests: self.guests.len(),
            scrub: self.scrub_progress(),
        }
    }
}
