//! What tells one primary from another: all that can still decide something ([`crate::alike`]).

use core::hash::{Hash, Hasher};

use super::Primary;
use crate::planted::Planted;

impl Hash for Primary {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            params,
            phase,
            now,
            out,
            stopped,
            outbid,
            asked_since,
            cas,
            peers,
            conns,
            calls,
            ops,
            locks,
            guests,
            promotion,
            old_lease,
            copy,
            resync,
            mending,
            scrub: _,
            pace: _,
            closing,
            release,
            tasks,
            fitness: _,
            // Numbers to come are higher than all that are there.
            next_seq: _,
            counters: _,
        } = self;
        assert!(out.is_empty(), "hashed within a step");
        (params, phase, now, stopped, outbid, asked_since, cas, conns).hash(state);
        let bugs = params.planted != Planted::NONE;
        peers.len().hash(state);
        for (rid, peer) in peers {
            rid.hash(state);
            // Watermarks only rise, and all that were sent were ours.
            let behind = (!bugs).then(|| peer.commit_sent < self.watermark());
            peer.hash_as(self.is_open() && !bugs, behind, state);
        }
        (calls, ops, locks, guests, promotion, old_lease).hash(state);
        (copy, resync, mending, closing, release, tasks, self.watermark_gaps()).hash(state);
    }
}
