//! Callers go on counting while the API server and etcd are killed and started again.

use crate::cluster::{Cluster, User};
use crate::counting::Callers;
use crate::process::wait_for;
use anyhow::ensure;
use lockstep_meta::remote::Deadlines;
use std::sync::Arc;
use std::time::Duration;

const NAMESPACE: &str = "restarts";
const CALLERS: usize = 4;
const ROUNDS: usize = 6;
/// Increments between two kills.
const STEPS: u64 = 25;
const LIMIT: Duration = Duration::from_secs(120);
/// Shorter than etcd is away, so that callers give up while it is.
const SHORT: Deadlines =
    Deadlines { connect: Duration::from_secs(1), request: Duration::from_secs(2) };

pub(crate) async fn run(cluster: &mut Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    let store = Arc::new(cluster.store(User::Admin, NAMESPACE, SHORT).await?);
    let callers = Callers::start(store, CALLERS).await?;
    for round in 0..ROUNDS {
        let before = callers.counted();
        let goes_on = wait_for(LIMIT, async || callers.counted() >= before + STEPS).await;
        ensure!(goes_on, "no increments before kill {round}");
        match round % 3 {
            0 => {
                cluster.kill_api().await?;
                cluster.start_api(&[]).await?;
            }
            1 => {
                cluster.kill_etcd().await?;
                cluster.start_etcd()?;
            }
            _ => cluster.restart().await?,
        }
    }
    let before = callers.counted();
    let goes_on = wait_for(LIMIT, async || callers.counted() >= before + STEPS).await;
    ensure!(goes_on, "no increments after the last kill");
    let seen = callers.stop().await?;
    ensure!(seen.unavailable + seen.unknown > 0, "no caller noticed any kill");
    Ok(format!(
        "{} increments over {ROUNDS} kills: {} conflicts, {} unavailable, {} unknown of which {} \
         were made; none lost, none made twice",
        seen.counted, seen.conflicts, seen.unavailable, seen.unknown, seen.made
    ))
}
