//! After the faults: all must be whole again, and every byte where it belongs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep_proto::v1::VolumeStatus;
use lockstep_replicator::demo::verify;
use tokio::process::Command;

use crate::board::wait_for;
use crate::cluster::Cluster;
use crate::net::must;
use crate::seat::{IN_SYNC, Seat};
use crate::volume::Volume;

/// How long daemons may take to start.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take until all copies are in sync.
const SYNC_LIMIT: Duration = Duration::from_secs(300);
/// How long a volume may take to be detached.
const DETACH_LIMIT: Duration = Duration::from_secs(60);
/// How long a daemon may take to end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Waits until every volume has all its copies in sync.
pub(crate) async fn heal(cluster: &Arc<Cluster>, volumes: &[Volume]) -> anyhow::Result<()> {
    let board = &cluster.board;
    anyhow::ensure!(cluster.net.is_whole(), "a partition was not mended");
    for node in &cluster.nodes {
        anyhow::ensure!(node.is_running(), "the daemon of {} does not run", node.name);
    }
    if let Err(e) = cluster.until_ready(READY_LIMIT).await {
        board.violation(&format!("{e:#}"));
    }
    board.healed.store(true, Ordering::Relaxed);
    board.tell("the faults are over; waiting for all copies");
    let begin = Instant::now();
    for volume in volumes {
        loop {
            let seen = cluster.seen(volume.name).await;
            if seen.as_ref().is_some_and(is_whole) {
                break;
            }
            if begin.elapsed() > SYNC_LIMIT {
                let words = seen.map(|v| story(&v)).unwrap_or_default();
                let name = volume.name;
                board.violation(&format!("{name} is not whole after {SYNC_LIMIT:?}: {words}"));
                break;
            }
            wait_for(PAUSE).await;
        }
    }
    board.tell(&format!("waited {:?} for all copies", begin.elapsed()));
    Ok(())
}

fn is_whole(volume: &VolumeStatus) -> bool {
    volume.replicas.len() >= volume.repl as usize
        && volume.replicas.iter().all(|r| r.state == IN_SYNC && r.connected)
}

fn story(volume: &VolumeStatus) -> String {
    let copies = volume.replicas.iter().map(|r| format!("{}: {}", r.node, r.state().as_str_name()));
    let copies: Vec<String> = copies.collect();
    format!("{} ({})", volume.health_reason, copies.join(", "))
}

/// Detaches the volumes and compares their copies byte by byte. Returns how many were compared.
pub(crate) async fn compare(cluster: &Arc<Cluster>, seats: &[Arc<Seat>]) -> usize {
    let mut compared = 0;
    for seat in seats {
        let name = seat.volume.name;
        let begin = Instant::now();
        while let Err(e) = seat.detach(false).await {
            if begin.elapsed() > DETACH_LIMIT {
                cluster.board.violation(&format!("{name} cannot be detached: {e:#}"));
                break;
            }
            wait_for(PAUSE).await;
        }
        let Some(volume) = cluster.seen(name).await else {
            cluster.board.violation(&format!("{name}: no daemon knows it"));
            continue;
        };
        if !volume.clean {
            cluster.board.violation(&format!("{name} was not closed in good order"));
        }
        let in_sync = volume.replicas.iter().filter(|r| r.state == IN_SYNC);
        let nodes = in_sync.filter_map(|r| cluster.index(&r.node));
        let data = |index: usize| {
            cluster.nodes[index].pool().join("replicas").join(&volume.uid).join("data")
        };
        let paths: Vec<_> = nodes.map(data).collect();
        compared += paths.len();
        match verify::compare(&paths) {
            Ok(None) => {}
            Ok(Some(d)) => cluster.board.violation(&format!("{name}: the copies differ: {d:?}")),
            Err(e) => cluster.board.violation(&format!("{name}: comparing the copies: {e:#}")),
        }
    }
    compared
}

/// Ends all daemons, the record store's owner last, and looks at what they leave.
pub(crate) async fn end(cluster: &Arc<Cluster>) -> anyhow::Result<()> {
    let board = &cluster.board;
    for node in &cluster.nodes {
        if !node.terminate(END_LIMIT).await? {
            let name = &node.name;
            board.violation(&format!("the daemon of {name} does not end when asked to"));
            node.kill().await?;
        }
        let log = std::fs::read(node.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        for line in log.lines().filter(|line| line.contains("panicked at")) {
            board.violation(&format!("{} says: {line}", node.name));
        }
        // Kept for a look at it, if need be.
        let copy = node.dir.join("kept-pool");
        if !board.violations().is_empty() {
            let mut command = Command::new("cp");
            must(command.args(["-a", "--sparse=always"]).arg(node.pool()).arg(copy)).await?;
        }
        must(Command::new("umount").arg(node.pool())).await?;
    }
    // This process is the first in its namespace: it sees whoever is left.
    let processes = std::fs::read_dir("/proc")?.flatten();
    let left = processes.filter(|entry| {
        let number = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok());
        number.is_some_and(|n| n != std::process::id()) && entry.path().join("exe").exists()
    });
    for entry in left {
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        board.violation(&format!("a process is left: {}", exe.display()));
    }
    Ok(())
}
