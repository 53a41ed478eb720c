//! Real Kafka brokers whose nodes die under load: with their logs on volumes of ours, and in
//! directories of nodes, where a new broker has to take all there is from the others.

mod brokers;
mod load;
mod timeline;
mod traffic;

use crate::cluster::Cluster;
use crate::lab::{LIMIT, Lab};
use crate::process::wait_for;
use crate::say;
use anyhow::{Context as _, ensure};
use brokers::{BROKERS, Disk};
use load::{Load, number};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use timeline::{Back, Lost, Timeline, round};
use tokio::sync::OwnedMutexGuard;
use traffic::{All, Moved, Totals};

/// The broker whose node dies.
const VICTIM: usize = 1;

/// What one round showed.
#[derive(Debug)]
struct Outcome {
    line: Timeline,
    back: Back,
    /// Its node held a copy in sync when the other died.
    on_copy: bool,
    taken: u64,
    rebuilt: Moved,
    returned: Moved,
    ran: Value,
    verified: Value,
}

/// Where a node has its pods' volumes mounted.
const MOUNTS: &str = "/var/lib/kubelet/pods/*/volumes/kubernetes.io~csi/*/mount";
/// How long copies may be lost before they are built elsewhere: much less than in earnest, and
/// longer than it takes until the broker serves.
const REBUILD_AFTER_MS: &str = "45000";

/// Takes all figures on a cluster of its own; tells lines as they come.
pub(crate) async fn figures(
    cluster: OwnedMutexGuard<Cluster>,
    programs: &Path,
    sizes: &[u64],
) -> anyhow::Result<Value> {
    let mut lab = Lab::start(cluster).await?;
    lab.install_driver_with(&["--rebuild-after-ms", REBUILD_AFTER_MS]).await?;
    let taken = run(&mut lab, programs, sizes).await;
    let finished = lab.finish().await;
    let taken = taken?;
    finished?;
    Ok(taken)
}

/// Runs both kinds of disks with so many MiB on each broker, for each of the sizes; returns all
/// figures, those of the last size also by themselves.
async fn run(lab: &mut Lab, programs: &Path, sizes: &[u64]) -> anyhow::Result<Value> {
    lab.import(&[programs.join("image.tar")]).await?;
    let mut figures = json!({});
    let mut all = Vec::new();
    for (number, mib) in sizes.iter().enumerate() {
        let ours = on_volumes(lab, programs, number * 2, *mib).await?;
        say(&format!("{mib} MiB on volumes: {}", ours.told()));
        let theirs = on_nodes(lab, programs, number * 2 + 1, *mib).await?;
        say(&format!("{mib} MiB on directories of nodes: {}", theirs.told()));
        figures = side_by_side(*mib, &ours, &theirs);
        all.push(figures.clone());
    }
    figures["sizes"] = Value::Array(all);
    Ok(figures)
}

/// One round on volumes of ours.
async fn on_volumes(
    lab: &mut Lab,
    programs: &Path,
    round: usize,
    mib: u64,
) -> anyhow::Result<Outcome> {
    let space = format!("kafka-{round}");
    // Room for what is written meanwhile, and for Kafka's own files.
    let disk = Disk::Volume(mib * 2 + 1024);
    let (load, dead) = begin(lab, programs, &space, round, disk, mib).await?;
    // What a log has had for half a minute is on its disk: so is what it was just filled with. The
    // load of the last moments is not.
    lab.node(dead)?.run(&["sh", "-euc", &format!("sync -f {MOUNTS}")]).await?;
    let volumes = traffic::volumes(lab, &space).await?;
    traffic::wait_until_whole(lab, &volumes, All::Told).await?;
    let copies = lab.in_sync(&volumes[VICTIM]).await?;
    let before = Totals::now(lab, &volumes).await?;
    let lost = Lost::new(lab, &space, VICTIM).await?;

    let mut line = Timeline::new();
    lab.kill(dead).await?;
    let back = lost.wait_until_back(lab, &load, &mut line).await?;
    let taken = back.taken_bytes();
    traffic::wait_until_whole(lab, &volumes, All::Reached).await?;
    let after = Totals::now(lab, &volumes).await?;
    lab.boot(dead).await?;
    traffic::wait_until_whole(lab, &volumes, All::Told).await?;
    let later = Totals::now(lab, &volumes).await?;

    let (ran, verified) = end(lab, &load, &space).await?;
    ensure!(back.held_bytes > 0, "the broker did not find its log");
    let on_copy = copies.contains(&back.node);
    ensure!(on_copy, "the broker went to {}, copies were on {copies:?}", back.node);
    let (rebuilt, returned) = (after.since(&before), later.since(&after));
    Ok(Outcome { line, back, on_copy, taken, rebuilt, returned, ran, verified })
}

/// One round on directories of nodes: the pod is deleted as soon as Kubernetes says that its node
/// is gone, which without anybody's help it is after five more minutes.
async fn on_nodes(
    lab: &mut Lab,
    programs: &Path,
    round: usize,
    mib: u64,
) -> anyhow::Result<Outcome> {
    let space = format!("kafka-{round}");
    let (load, dead) = begin(lab, programs, &space, round, Disk::Node, mib).await?;
    let lost = Lost::new(lab, &space, VICTIM).await?;

    let mut line = Timeline::new();
    lab.kill(dead).await?;
    by_hand(lab, &space, dead, &mut line).await?;
    let back = lost.wait_until_back(lab, &load, &mut line).await?;
    let taken = back.taken_bytes();
    lab.boot(dead).await?;

    let (ran, verified) = end(lab, &load, &space).await?;
    ensure!(back.held_bytes == 0, "a new directory has a log");
    let (rebuilt, returned) = (Moved::default(), Moved::default());
    Ok(Outcome { line, back, on_copy: false, taken, rebuilt, returned, ran, verified })
}

/// Deletes the pod of a broker as soon as Kubernetes misses its node.
async fn by_hand(lab: &Lab, space: &str, dead: usize, line: &mut Timeline) -> anyhow::Result<()> {
    let is_missed = async || !lab.is_ready(dead).await.unwrap_or(true);
    ensure!(wait_for(LIMIT, is_missed).await, "n{dead} is dead and ready");
    line.note("detected");
    let pod = brokers::pod(VICTIM);
    lab.kubectl(&["-n", space, "delete", "pod", &pod, "--grace-period=0", "--force"]).await?;
    line.note("pod deleted");
    Ok(())
}

/// Starts brokers, fills them and begins the load; returns that and the node that is to die.
async fn begin(
    lab: &mut Lab,
    programs: &Path,
    space: &str,
    round: usize,
    disk: Disk,
    mib: u64,
) -> anyhow::Result<(Load, usize)> {
    lab.make_namespace(space).await?;
    lab.apply(&brokers::objects(space, round, disk)).await?;
    let mut on = Vec::new();
    for broker in 0..BROKERS {
        let node = lab.wait_until_runs(space, &brokers::pod(broker)).await?;
        on.push(lab.number_of(&node)?);
    }
    let dead = on[VICTIM];
    let used: BTreeSet<usize> = on.into_iter().collect();
    let free = lab.nodes().map(crate::lab::Node::number).find(|node| !used.contains(node));
    let load = Load::new(lab, programs, round, free.context("no node is without a broker")?);
    load.make_topics(lab).await?;
    load.fill(lab, mib << 20).await?;
    load.begin(lab).await?;
    Ok((load, dead))
}

/// Ends the load, reads all there is, and removes the brokers.
async fn end(lab: &Lab, load: &Load, space: &str) -> anyhow::Result<(Value, Value)> {
    let ran = load.end().await?;
    let verified = load.verify(lab).await?;
    lab.kubectl(&["delete", "namespace", space, "--timeout=120s"]).await?;
    Ok((ran, verified))
}

impl Outcome {
    fn told(&self) -> String {
        let count = |event: &Value, name| number(event, name).unwrap_or_default();
        format!(
            "{} (s); began with {} bytes, took {} from other brokers; copies: {} bytes for new \
             ones, {} for those that missed something, {} when the node was back; {} records \
             acknowledged, {} lost; longest pause of producers {} ms, of consumers {} ms",
            self.line.told(),
            self.back.held_bytes,
            self.taken,
            self.rebuilt.rebuild,
            self.rebuilt.resync,
            self.returned.rebuild + self.returned.resync,
            count(&self.verified, "acknowledged"),
            count(&self.verified, "lost"),
            count(&self.ran, "producer_gap_ms"),
            count(&self.ran, "consumer_gap_ms"),
        )
    }

    fn serving(&self) -> Option<f64> {
        self.line.at("serving").map(round)
    }
}

fn side_by_side(mib: u64, ours: &Outcome, theirs: &Outcome) -> Value {
    let lost = |outcome: &Outcome| number(&outcome.verified, "lost");
    json!({
        "mib": mib,
        "serving_s": ours.serving(),
        "lost_records": lost(ours),
        "acknowledged_records": number(&ours.verified, "acknowledged"),
        "on_copy": ours.on_copy,
        "taken_bytes": ours.taken,
        "rebuild_bytes": ours.rebuilt.rebuild,
        "resync_bytes": ours.rebuilt.resync + ours.returned.resync,
        "return_bytes": ours.returned.rebuild + ours.returned.resync,
        "consumer_gap_ms": number(&ours.ran, "consumer_gap_ms"),
        "producer_gap_ms": number(&ours.ran, "producer_gap_ms"),
        "steps": ours.line.to_json(),
        "baseline_serving_s": theirs.serving(),
        "baseline_bytes": theirs.taken,
        "baseline_lost_records": lost(theirs),
        "baseline_consumer_gap_ms": number(&theirs.ran, "consumer_gap_ms"),
        "baseline_producer_gap_ms": number(&theirs.ran, "producer_gap_ms"),
        "baseline_steps": theirs.line.to_json(),
    })
}
