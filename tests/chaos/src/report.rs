//! What came of it.

use std::collections::BTreeMap;

use serde::Serialize;

/// The figures of one run.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Report {
    /// How long faults were injected.
    pub(crate) minutes: f64,
    /// Which.
    pub(crate) seed: u64,
    /// What must not be. Must be 0.
    pub(crate) violations: usize,
    /// How often each kind was injected.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Writes that were acknowledged and entered in a ledger.
    pub(crate) acked_writes: u64,
    /// Their bytes.
    pub(crate) acked_bytes: u64,
    /// Reads that were compared with a ledger while writes went on.
    pub(crate) reads_checked: u64,
    /// Of those, answered by a daemon that its client had left for another.
    pub(crate) former_reads: u64,
    /// Blocks that were compared at the end.
    pub(crate) blocks_checked: u64,
    /// Runs of fio that came to their end.
    pub(crate) fio_runs: u64,
    /// How often a volume came to another node.
    pub(crate) takeovers: u64,
    /// Requests, or runs of fio, that ended with an error.
    pub(crate) failed_requests: u64,
    /// Connections that were given up.
    pub(crate) abandoned: u64,
    /// Faults that met nobody, or somebody who was hit already.
    pub(crate) skipped: u64,
    /// Copies that were compared byte by byte.
    pub(crate) copies_compared: usize,
    /// Longest time in which a client with a ledger got no write acknowledged.
    pub(crate) max_pause_ms: u64,
    /// All of it.
    pub(crate) elapsed_ms: u64,
}
