//! What came of it.

use serde::Serialize;

/// How much more than the needed bytes a resync may move and still count as a delta, in percent.
const RESYNC_PERCENT_MAX: u64 = 125;

/// The figures of one demonstration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DemoReport {
    /// Everything is as it must be.
    pub ok: bool,
    /// Writes that were acknowledged.
    pub acked_writes: u64,
    /// Their bytes.
    pub acked_bytes: u64,
    /// Flushes that were acknowledged.
    pub acked_flushes: u64,
    /// Acknowledged writes that were not to be read afterwards. Must be 0.
    pub lost_acked_writes: u64,
    /// Blocks that miss even what a flush had covered. Must be 0.
    pub lost_flushed_blocks: u64,
    /// Blocks with content that was never written there. Must be 0.
    pub corrupt_blocks: u64,
    /// From the kill to the first write acknowledged by the node that took over.
    pub failover_ms: u64,
    /// Longest time without an acknowledged write, apart from the failover.
    pub longest_pause_ms: u64,
    /// Writes that were under way when the daemon was killed.
    pub in_flight_at_kill: u64,
    /// Blocks of those that hold the write, and stay so.
    pub in_flight_blocks_done: u64,
    /// Blocks of those that do not, and stay so.
    pub in_flight_blocks_not_done: u64,
    /// Moved to the new copy.
    pub rebuild_bytes: u64,
    /// How long that took, from its beginning.
    pub rebuild_ms: u64,
    /// Moved to the copy that came back.
    pub resync_bytes: u64,
    /// What it had missed, by the ledger.
    pub resync_needed_bytes: u64,
    /// How long that took, from the start of its daemon.
    pub resync_ms: u64,
    /// Reads that were checked while writes went on.
    pub reads_checked: u64,
    /// Blocks compared with the ledger at the end.
    pub blocks_checked: u64,
    /// The in-sync copies have the same bytes on disk.
    pub replicas_identical: bool,
    /// How many copies were compared.
    pub replicas_compared: u64,
    /// The file that was copied onto the volume is still the same.
    pub input_sha256_ok: bool,
    /// Its SHA-256.
    pub input_sha256: String,
    /// Daemons.
    pub nodes: u8,
    /// Copies wanted.
    pub repl: u8,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Type of the file system that it was done on; empty: none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub fs: String,
    /// The door of its block device.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub door: String,
    /// From the return of the killed daemon until all who waited on its device had errors.
    pub freed_ms: u64,
    /// Writes acknowledged by the node that was left, after the volume was taken over. Must be 0.
    pub late_acks: u64,
    /// Which random writes.
    pub seed: u64,
    /// All of it.
    pub elapsed_ms: u64,
}

impl DemoReport {
    /// What is not as it must be, in words; empty if all is well.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut must = |holds: bool, words: String| {
            if !holds {
                all.push(words);
            }
        };
        let lost = self.lost_acked_writes;
        must(lost == 0, format!("{lost} acknowledged writes are lost"));
        let flushed = self.lost_flushed_blocks;
        must(flushed == 0, format!("{flushed} blocks miss what a flush had covered"));
        must(self.corrupt_blocks == 0, format!("{} blocks are corrupt", self.corrupt_blocks));
        let late = self.late_acks;
        must(late == 0, format!("{late} writes were acknowledged by a node that was left"));
        must(self.acked_writes > 0, "no write was acknowledged".to_owned());
        must(self.replicas_identical, "the copies differ".to_owned());
        must(
            self.replicas_compared >= u64::from(self.repl),
            format!("only {} copies were in sync", self.replicas_compared),
        );
        must(self.input_sha256_ok, "the copied file has changed".to_owned());
        must(
            self.resync_bytes * 100 <= self.resync_needed_bytes * RESYNC_PERCENT_MAX,
            format!(
                "the resync moved {} bytes where {} were needed",
                self.resync_bytes, self.resync_needed_bytes
            ),
        );
        all
    }

    /// The figures for people, several lines.
    #[must_use]
    pub fn words(&self) -> String {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let mut lines = vec![
            format!(
                "{} writes ({} MiB) and {} flushes acknowledged, {} lost; {} of {} blocks corrupt",
                self.acked_writes,
                mib(self.acked_bytes),
                self.acked_flushes,
                self.lost_acked_writes,
                self.corrupt_blocks,
                self.blocks_checked
            ),
            format!(
                "take-over in {} ms; otherwise never more than {} ms without a write",
                self.failover_ms, self.longest_pause_ms
            ),
            format!("new copy: {} MiB in {} ms", mib(self.rebuild_bytes), self.rebuild_ms),
            format!(
                "returned copy: {} KiB moved, {} KiB missed, of {} MiB; in sync after {} ms",
                self.resync_bytes >> 10,
                self.resync_needed_bytes >> 10,
                mib(self.size_bytes),
                self.resync_ms
            ),
            format!(
                "{} copies on disk {}; copied file {}",
                self.replicas_compared,
                if self.replicas_identical { "identical" } else { "DIFFER" },
                if self.input_sha256_ok { "unchanged" } else { "CHANGED" }
            ),
        ];
        if !self.fs.is_empty() {
            lines.push(format!(
                "on {} through {}; who waited on the lost node had errors {} ms after its return",
                self.fs, self.door, self.freed_ms
            ));
        }
        let complaints = self.complaints();
        lines.extend(complaints.iter().map(|c| format!("FAILED: {c}")));
        if complaints.is_empty() {
            lines.push(format!("all as it must be, in {:.1} s", self.seconds()));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    #[expect(clippy::cast_precision_loss, reason = "it is rounded for people anyway")]
    fn seconds(&self) -> f64 {
        self.elapsed_ms as f64 / 1000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> DemoReport {
        DemoReport {
            acked_writes: 1,
            replicas_identical: true,
            replicas_compared: 3,
            repl: 3,
            input_sha256_ok: true,
            resync_bytes: 125,
            resync_needed_bytes: 100,
            ..DemoReport::default()
        }
    }

    #[test]
    fn each_figure_counts() {
        assert_eq!(good().complaints(), [""; 0]);
        for spoil in [
            |r: &mut DemoReport| r.acked_writes = 0,
            |r: &mut DemoReport| r.lost_acked_writes = 1,
            |r: &mut DemoReport| r.lost_flushed_blocks = 1,
            |r: &mut DemoReport| r.corrupt_blocks = 1,
            |r: &mut DemoReport| r.late_acks = 1,
            |r: &mut DemoReport| r.replicas_identical = false,
            |r: &mut DemoReport| r.replicas_compared = 2,
            |r: &mut DemoReport| r.input_sha256_ok = false,
            |r: &mut DemoReport| r.resync_bytes = 126,
        ] {
            let mut report = good();
            spoil(&mut report);
            assert_eq!(report.complaints().len(), 1, "{report:?}");
        }
    }

    #[test]
    fn it_is_one_flat_line_of_json() {
        let line = serde_json::to_string(&good()).unwrap();
        assert!(line.contains("\"lost_acked_writes\":0") && !line.contains('\n'), "{line}");
        assert_eq!(line.matches('{').count(), 1);
    }
}
