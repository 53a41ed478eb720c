//! The table, as text.

use std::sync::atomic::Ordering;
use std::time::Instant;

use lockstep_proto::v1::{ReplicaState, VolumeReplica, VolumeStatus};

use crate::demo::control::{on_node, state};
use crate::demo::workload::Progress;

/// Cells of a bar.
const BAR: u64 = 20;
const MIB: u64 = 1 << 20;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeLine {
    node: String,
    daemon: &'static str,
    primary: bool,
    copy: &'static str,
    /// Compared so far, of how many bytes, and moved.
    resync: Option<(u64, u64, u64)>,
}

impl NodeLine {
    /// For a line among others.
    pub(super) fn short(&self) -> String {
        let mut words = vec![self.node.clone()];
        if self.daemon != "up" {
            words.push(self.daemon.to_owned());
        }
        if self.primary {
            words.push("primary".to_owned());
        }
        if !self.copy.is_empty() {
            words.push(self.copy.to_owned());
        }
        if let Some((done, total, _)) = self.resync {
            words.push(format!("{} %", percent(done, total)));
        }
        words.join(" ")
    }

    /// For the table.
    pub(super) fn row(&self) -> String {
        let role = if self.primary { "primary" } else { "" };
        let bar = self.resync.map_or_else(String::new, |(done, total, moved)| {
            let percent = percent(done, total);
            let full = usize::try_from(percent * BAR / 100).unwrap_or(0);
            let empty = usize::try_from(BAR).unwrap_or(0).saturating_sub(full);
            let (full, empty) = ("█".repeat(full), "░".repeat(empty));
            format!("{full}{empty} {percent:3} %, {} MiB moved", moved / MIB)
        });
        let line =
            format!("  {:<5} {:<9} {:<8} {:<11} {bar}", self.node, self.daemon, role, self.copy);
        line.trim_end().to_owned()
    }
}

/// The table's first line.
pub(super) fn head() -> String {
    format!("  {:<5} {:<9} {:<8} {:<11} {}", "NODE", "DAEMON", "ROLE", "COPY", "RESYNC")
}

fn percent(done: u64, total: u64) -> u64 {
    (done.min(total) * 100).checked_div(total).unwrap_or(0)
}

/// One line for each node: its name, what its daemon does, and its copy.
pub(super) fn node_lines(
    nodes: &[(&str, &'static str)],
    volume: Option<&VolumeStatus>,
) -> Vec<NodeLine> {
    let line = |(node, daemon): &(&str, &'static str)| {
        let replica = volume.and_then(|v| on_node(v, node));
        let named = volume.is_some_and(|v| v.primary_node.as_deref() == Some(node));
        NodeLine {
            node: (*node).to_owned(),
            daemon,
            primary: named && *daemon == "up",
            copy: replica.map_or("", copy_word),
            resync: replica
                .and_then(|r| r.resync.as_ref())
                .map(|r| (r.done_bytes, r.total_bytes, r.moved_bytes)),
        }
    };
    nodes.iter().map(line).collect()
}

fn copy_word(replica: &VolumeReplica) -> &'static str {
    match (state(replica), replica.resync.is_some()) {
        (ReplicaState::InSync, _) => "in sync",
        (ReplicaState::New, true) => "rebuilding",
        (ReplicaState::New, false) => "new",
        (ReplicaState::Out, true) => "resyncing",
        (ReplicaState::Out, false) => "out",
        (ReplicaState::Leaving, _) => "leaving",
        (ReplicaState::Unspecified, _) => "unknown",
    }
}

/// What had been done at the last look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    at: Instant,
    writes: u64,
    bytes: u64,
}

impl Rates {
    /// Nothing had.
    pub(super) fn new(at: Instant) -> Self {
        Self { at, writes: 0, bytes: 0 }
    }
}

/// What the writer has done, and how fast since the last look.
pub(super) fn totals(progress: &Progress, last: &mut Rates, now: Instant) -> String {
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (writes, bytes) = (read(&progress.writes), read(&progress.bytes));
    let millis = u64::try_from((now - last.at).as_millis()).unwrap_or(u64::MAX).max(1);
    let per_second = |new: u64, old: u64| (new.saturating_sub(old)).saturating_mul(1000) / millis;
    let line = format!(
        "{writes} writes acknowledged ({}/s, {} MiB/s), {} flushes, {} reads checked, {} under way",
        per_second(writes, last.writes),
        per_second(bytes, last.bytes) / MIB,
        read(&progress.flushes),
        read(&progress.reads),
        read(&progress.in_flight),
    );
    *last = Rates { at: now, writes, bytes };
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::v1::Resync;
    use std::time::Duration;

    fn replica(node: &str, state: ReplicaState, resync: Option<Resync>) -> VolumeReplica {
        VolumeReplica { node: node.to_owned(), state: state.into(), resync, ..Default::default() }
    }

    #[test]
    fn each_node_has_its_line() {
        let half = Resync {
            done_bytes: 5 * MIB,
            total_bytes: 10 * MIB,
            moved_bytes: 3 * MIB,
            eta_ms: None,
            bytes_per_s: 0,
        };
        let volume = VolumeStatus {
            primary_node: Some("n2".to_owned()),
            replicas: vec![
                replica("n1", ReplicaState::Out, None),
                replica("n2", ReplicaState::InSync, None),
                replica("n4", ReplicaState::New, Some(half)),
            ],
            ..Default::default()
        };
        let nodes = [("n1", "killed"), ("n2", "up"), ("n3", "up"), ("n4", "up")];
        let lines = node_lines(&nodes, Some(&volume));
        let short: Vec<String> = lines.iter().map(NodeLine::short).collect();
        assert_eq!(short, ["n1 killed out", "n2 primary in sync", "n3", "n4 rebuilding 50 %"]);
        let rows: Vec<String> = lines.iter().map(NodeLine::row).collect();
        assert!(rows[3].ends_with("██████████░░░░░░░░░░  50 %, 3 MiB moved"), "{}", rows[3]);
        assert_eq!(node_lines(&nodes, None)[1].short(), "n2");
    }

    #[test]
    fn a_killed_daemon_is_not_shown_as_the_primary() {
        let volume = VolumeStatus { primary_node: Some("n1".to_owned()), ..Default::default() };
        assert_eq!(node_lines(&[("n1", "killed")], Some(&volume))[0].short(), "n1 killed");
    }

    #[test]
    fn rates_are_those_since_the_last_look() {
        let (progress, begin) = (Progress::default(), Instant::now());
        let mut rates = Rates::new(begin);
        progress.writes.store(100, Ordering::Relaxed);
        progress.bytes.store(4 * MIB, Ordering::Relaxed);
        let line = totals(&progress, &mut rates, begin + Duration::from_secs(2));
        assert!(line.starts_with("100 writes acknowledged (50/s, 2 MiB/s)"), "{line}");
        let line = totals(&progress, &mut rates, begin + Duration::from_secs(3));
        assert!(line.starts_with("100 writes acknowledged (0/s, 0 MiB/s)"), "{line}");
    }
}
