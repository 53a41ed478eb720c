//! The control plane and our controller are away: pods write on. When they are back, what was asked
//! for is done.

use crate::lab::{LIMIT, Lab, NODES, pods};
use crate::process::wait_for;
use crate::writers::Writers;
use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::{Timestamp, ToSpan as _};

const SPACE: &str = "away";
/// Longer than any lease in the cluster.
const AWAY_SECONDS: i64 = 15;
/// For so long a write may wait meanwhile, in seconds, on a machine with all nodes.
const PAUSE: f64 = 5.0;

pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<String> {
    let mut writers = Writers::start(lab, SPACE, 1, "lockstep-3").await?;
    let pod = writers.pods.first().context("there is one")?.clone();
    let before = writers.whereabouts(lab, &pod).await?;
    lab.driver()?.kill().await?;
    lab.cluster.kill_api().await?;
    lab.cluster.kill_etcd().await?;
    let begin = Timestamp::now();
    let end = begin.checked_add(AWAY_SECONDS.seconds())?;
    let acked_late = async || writers.acks(lab, &pod).iter().any(|ack| ack.at > end);
    ensure!(wait_for(LIMIT, acked_late).await, "nothing is written with the control plane away");
    let said = writers.acks(lab, &pod);
    let times: Vec<Timestamp> = said.iter().map(|ack| ack.at).filter(|at| *at > begin).collect();
    let steps = times.iter().zip(times.iter().skip(1)).map(|(a, b)| a.until(*b));
    let seconds = steps.filter_map(|step| step.ok()?.total(k8s_openapi::jiff::Unit::Second).ok());
    let longest = seconds.fold(0.0, f64::max);
    ensure!(longest < PAUSE, "with the control plane away a write waited for {longest:.1} s");

    lab.cluster.start_etcd()?;
    lab.cluster.start_api(&[]).await?;
    lab.driver()?.start().await?;
    for number in 1..=NODES {
        lab.wait_until_ready(number).await?;
    }
    lab.apply(&pods::claim(SPACE, "new", "lockstep-3", "256Mi")).await?;
    lab.apply(&pods::pod(SPACE, "new", "new", "echo new >/data/x; sleep 3600")).await?;
    lab.wait_until_runs(SPACE, "new").await?;
    let after = writers.whereabouts(lab, &pod).await?;
    ensure!(after.uid == before.uid, "the pod was replaced");
    let acked = writers.verify(lab).await?;
    writers.end(lab).await?;
    Ok(format!(
        "{} writes acknowledged in {AWAY_SECONDS} s without etcd, API server and controller, the \
         longest pause {longest:.2} s; none of {acked} lost; a new pod runs afterwards",
        times.len()
    ))
}
