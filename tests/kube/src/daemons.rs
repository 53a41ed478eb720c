//! Daemons whose records are objects: a volume is written to while the API server and etcd are
//! away, and taken over when its primary dies.

use crate::cluster::Cluster;
use crate::nodes::{LIMIT, NODES, Nodes};
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use lockstep_attach::nbd::Client;
use std::time::{Duration, Instant};
use tokio::time::timeout;

const NAMESPACE: &str = "daemons";
const BLOCK: u64 = 4096;
/// Writes while all is well, and while the API server is away.
const WRITES: u64 = 400;

pub(crate) async fn run(cluster: &mut Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    cluster.grant(NAMESPACE).await?;
    let mut nodes = Nodes::start(cluster, NAMESPACE).await?;
    nodes.lockstep(&["volume", "create", "v", "--size", "64MiB", "--repl", "3"]).await?;
    let shown = cluster.kubectl(&["-n", NAMESPACE, "get", "records"], "").await?;
    ensure!(shown.contains("volume/v"), "the volume is no object: {shown}");

    let client = nodes.attach("n1").await?;
    let mut written = 0;
    write(&client, &mut written).await?;
    cluster.kill_api().await?;
    cluster.kill_etcd().await?;
    write(&client, &mut written).await.context("with the API server away")?;

    let waited = member_dies(cluster, &mut nodes, &client, &mut written).await?;
    // Two of three must be there for a volume to be served.
    nodes.start_again(NODES - 1)?;
    nodes.kill(0).await?;
    drop(client);
    let begin = Instant::now();
    let client = nodes.attach("n2").await?;
    let moved = begin.elapsed().as_secs_f64();
    for block in 0..written {
        let read = client.read(block * BLOCK, 4096).await?;
        ensure!(read == content(block), "block {block} of {written} is not what was written");
    }
    write(&client, &mut written).await?;
    Ok(format!(
        "{written} writes acknowledged and none lost; {WRITES} with the API server away; a write \
         that needed it waited {waited:.1} s for its return; moved in {moved:.1} s"
    ))
}

/// A member dies while the API server is away: a write waits until the record can say so, and ends
/// well.
async fn member_dies(
    cluster: &mut Cluster,
    nodes: &mut Nodes,
    client: &Client,
    written: &mut u64,
) -> anyhow::Result<f64> {
    nodes.kill(NODES - 1).await?;
    let waits = client.write(*written * BLOCK, content(*written), false);
    tokio::pin!(waits);
    // Longer than it takes to find out that a member is gone.
    let early = timeout(Duration::from_secs(8), &mut waits).await;
    ensure!(early.is_err(), "acknowledged without a member that the record names: {early:?}");
    cluster.start_etcd()?;
    cluster.start_api(&[]).await?;
    let begin = Instant::now();
    timeout(LIMIT, waits).await.context("a write waits with the API server back")??;
    *written += 1;
    Ok(begin.elapsed().as_secs_f64())
}

fn content(block: u64) -> Bytes {
    block.to_le_bytes().repeat(512).into()
}

/// Writes the next blocks, one after the other.
async fn write(client: &Client, written: &mut u64) -> anyhow::Result<()> {
    for _ in 0..WRITES {
        client.write(*written * BLOCK, content(*written), false).await?;
        *written += 1;
    }
    Ok(client.flush().await?)
}
