//! A primary as others see it.

use alloc::collections::BTreeMap;

use super::{Peer, Phase, Primary, ScrubReport, Stop, Unfit};
use crate::id::{Epoch, Gen, ReplicaId, Tick};
use crate::message::Refusal;
use crate::record::Record;

/// A primary as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its epoch, once claimed.
    pub epoch: Epoch,
    /// The generation in force.
    pub r#gen: Gen,
    /// Why it was fenced, if it was.
    pub stopped: Option<Stop>,
    /// The record in force, once read.
    pub record: Option<Record>,
    /// How each replica is reached and what it lacks.
    pub replicas: BTreeMap<ReplicaId, ReplicaStatus>,
    /// What was done since the claim.
    pub counters: Counters,
    /// Guest requests not answered yet.
    pub pending_requests: usize,
    /// Progress of a scrub, if one runs.
    pub scrub: Option<ScrubProgress>,
    /// What that has found, or the last one since the claim.
    pub scrubbed: Option<ScrubReport>,
}

/// Progress of a scrub, in bytes of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Read so far, on each member.
    pub done_bytes: u64,
    /// Size of the volume.
    pub total_bytes: u64,
}

/// One replica as its primary sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Has it a session?
    pub connected: bool,
    /// Since when it has none, if so.
    pub lost_at: Option<Tick>,
    /// Why it would not promise, the last time it was asked.
    pub refused: Option<Refusal>,
    /// Why it is left out for a while although it answers, and until when.
    pub unfit: Option<(Unfit, Tick)>,
    /// Is it left out since it is shorter than the volume, and its node runs a version that can't
    /// make it longer?
    pub too_short: bool,
    /// Progress of its resync, if one runs.
    pub resync: Option<ResyncProgress>,
    /// Bad blocks on it that were rewritten since the claim.
    pub mended_blocks: u64,
}

/// Progress of a resync, in bytes of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncProgress {
    /// Compared or copied so far.
    pub done_bytes: u64,
    /// To be compared or copied in all, as far as known.
    pub total_bytes: u64,
    /// Of those done, content that had to be moved.
    pub moved_bytes: u64,
    /// Compared or copied per second of late; 0 if not known yet.
    pub bytes_per_s: u64,
    /// Milliseconds left at that rate, as far as known.
    pub eta_ms: Option<u64>,
}

/// Counts since the claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Write, zero and discard requests acknowledged to the guest.
    pub acked_writes: u64,
    /// What those wrote, zeroed or discarded, bytes.
    pub acked_write_bytes: u64,
    /// Flush requests acknowledged to the guest.
    pub acked_flushes: u64,
    /// Read requests answered with data.
    pub reads: u64,
    /// What those read, bytes.
    pub read_bytes: u64,
    /// Content moved to returning replicas, bytes.
    pub resync_bytes: u64,
    /// Content moved to fresh replicas, bytes.
    pub rebuild_bytes: u64,
    /// Of the content moved to returning and fresh replicas, what those fetched from another
    /// replica by themselves, bytes.
    pub direct_bytes: u64,
    /// Windows whose content could not be fetched so.
    pub pulls_failed: u64,
    /// Content moved during promotion, bytes.
    pub repair_bytes: u64,
    /// Resyncs and rebuilds finished.
    pub resyncs_done: u64,
    /// Resyncs that began anew because they got no further for a long time.
    pub resyncs_stalled: u64,
    /// Resyncs that ended because their target could not keep up with the guest.
    pub resyncs_lagging: u64,
    /// Times that a resync was put off since the target's node had enough of them.
    pub resyncs_refused: u64,
    /// Snapshots taken.
    pub snapshots: u64,
    /// Members removed (T5).
    pub removals: u64,
    /// Of these, members that answered, but were slow or had ever more bad blocks.
    pub unfit_removals: u64,
    /// Blocks that were bad on a member and were rewritten there.
    pub mended_blocks: u64,
    /// Blocks of a promotion's source that might be torn, taken from another member.
    pub torn_blocks: u64,
    /// Times that no member could give a block.
    pub unreadable_blocks: u64,
    /// Times that a copy was told of a block that its content is lost.
    pub gaps: u64,
    /// Blocks in which a scrub found members that differ.
    pub diverged_blocks: u64,
}

impl Primary {
    /// The primary as others see it.
    #[must_use]
    pub fn status(&self) -> Status {
        let record = self.cas.record();
        let of = |rid: &ReplicaId, peer: &Peer| ReplicaStatus {
            connected: peer.is_up(),
            lost_at: peer.lost_at(),
            refused: peer.refused,
            unfit: self.shunned(rid),
            too_short: self.is_beyond_reach(*rid),
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
            counters: self.counters,
            pending_requests: self.guests.len(),
            scrub: self.scrub_progress(),
            scrubbed: self.scrub_report(),
        }
    }
}
