//! What a driver may choose about a store.

use lockstep_core::message::Digest;

use crate::layout::{LOG_CAPACITY, TABLE_BYTES};

/// Limits and times of a store. The format does not depend on them.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Resolved regions that may be active before a new activation waits for cleaning. Bounds
    /// what must be compared after a crash, and the tags held in memory (2 KiB each).
    pub active_max: usize,
    /// Resolved active regions above which a region is cleaned after a sixteenth of `idle_ms`.
    /// Below `active_max`, so that writes seldom wait.
    pub clean_above: usize,
    /// Milliseconds without a write after which a region is cleaned.
    pub idle_ms: u64,
    /// Regions cleaned at once: they share the barriers.
    pub clean_batch: usize,
    /// Regions activated ahead of a sequential stream, in the same record of the activity log.
    pub ahead: u32,
    /// Tables of tags kept in memory besides those of active regions; one is 2 KiB.
    pub cached_tables: usize,
    /// How the content of a block is digested: [`blake3_digest`], or what answers the same in
    /// another way.
    pub digest: fn(&[u8]) -> Digest,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            active_max: LOG_CAPACITY / 2,
            clean_above: LOG_CAPACITY / 4,
            idle_ms: 30_000,
            clean_batch: 256,
            ahead: 16,
            cached_tables: CACHE_BYTES / TABLE_BYTES as usize,
            digest: blake3_digest,
        }
    }
}

/// The first half of the content's BLAKE3 hash.
#[must_use]
pub fn blake3_digest(content: &[u8]) -> Digest {
    Digest(crate::codec::array_at(blake3::hash(content).as_bytes(), 0))
}

/// 64 MiB per attached volume.
const CACHE_BYTES: usize = 64 << 20;

impl Tuning {
    /// The same, forced into what the format can hold.
    pub(crate) fn clamped(self) -> Self {
        let active_max = self.active_max.clamp(1, LOG_CAPACITY / 2);
        Self {
            active_max,
            clean_above: self.clean_above.min(active_max),
            clean_batch: self.clean_batch.clamp(1, crate::layout::LOG_CHANGES),
            ..self
        }
    }
}
