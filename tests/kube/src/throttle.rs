//! An API server that takes one change at a time and sends all others away.

use crate::cluster::{Cluster, PATIENT, User};
use crate::counting::Callers;
use crate::process::wait_for;
use anyhow::ensure;
use lockstep_meta::Meta;
use std::sync::Arc;
use std::time::Duration;

const NAMESPACE: &str = "throttle";
const CALLERS: usize = 24;
const STEPS: u64 = 60;
const LIMIT: Duration = Duration::from_secs(240);
const NARROW: [&str; 3] = [
    "--enable-priority-and-fairness=false",
    "--max-requests-inflight=1",
    "--max-mutating-requests-inflight=1",
];

pub(crate) async fn run(cluster: &mut Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    cluster.grant(NAMESPACE).await?;
    cluster.kill_api().await?;
    cluster.start_api(&NARROW).await?;
    let store = Arc::new(cluster.store(User::Lockstep, NAMESPACE, PATIENT).await?);
    let is_allowed = async || store.get("k").await.is_ok();
    ensure!(wait_for(LIMIT, is_allowed).await, "the role allows no read");
    let callers = Callers::start(store.clone(), CALLERS).await?;
    let goes_on = wait_for(LIMIT, async || callers.counted() >= STEPS).await;
    ensure!(goes_on, "only {} increments", callers.counted());
    let seen = callers.stop().await?;
    let metrics = cluster.raw("/metrics").await?;
    let refused = refused(&metrics);
    cluster.kill_api().await?;
    cluster.start_api(&[]).await?;
    ensure!(refused > 0, "the API server refused nothing");
    ensure!(seen.unknown == 0, "{} refusals were taken for unknown outcomes", seen.unknown);
    Ok(format!(
        "{} increments, {refused} requests sent away by the server, {} after all",
        seen.counted, seen.unavailable
    ))
}

/// How many requests about records the server answered with 429.
fn refused(metrics: &str) -> u64 {
    let counters = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("code=\"429\"")
            && line.contains("resource=\"records\"")
    });
    let values = counters.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    values.sum()
}
