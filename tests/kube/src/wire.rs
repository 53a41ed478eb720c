//! Answers and requests that are lost on their way, below TLS.

use crate::cluster::{Cluster, PATIENT, User};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use lockstep_meta::kubernetes::{Kubernetes, careful};
use lockstep_meta::remote::Deadlines;
use lockstep_meta::{Expect, Meta, MetaError, PutError, Revision};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const NAMESPACE: &str = "wire";
const KEY: &str = "record/1";
const API: &str = "127.0.0.1:6443";
/// So long is waited for what never comes; a new connection on a busy machine takes less.
const SHORT: Deadlines =
    Deadlines { connect: Duration::from_secs(2), request: Duration::from_secs(3) };
/// How long until a change that was sent is seen.
const SEEN: Duration = Duration::from_secs(20);

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// What the server says waits.
    HoldAnswers,
    /// What the client says waits.
    HoldRequests,
    /// Connections end.
    Cut,
}

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    let direct = cluster.store(User::Admin, NAMESPACE, PATIENT).await?;
    let (address, mode) = listen().await?;
    let store = Arc::new(over(cluster, address, SHORT).await?);
    let first = store.put_if(KEY, Expect::Absent, text("first")).await?;

    let second = answer_is_late(&store, &direct, &mode, first).await?;
    request_is_lost(&store, &direct, &mode, second).await?;
    let store = Arc::new(over(cluster, address, PATIENT).await?);
    connection_breaks(&store, &direct, &mode).await?;
    nobody_listens(cluster).await?;
    Ok("late and lost answers, lost requests, no connection".to_owned())
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// A client that believes the API server to be elsewhere.
async fn over(
    cluster: &Cluster,
    address: SocketAddr,
    deadlines: Deadlines,
) -> anyhow::Result<Kubernetes> {
    let mut config = careful(cluster.config(User::Admin, deadlines).await?, deadlines);
    config.cluster_url = format!("https://{address}").parse()?;
    Ok(Kubernetes::new(config, Some(NAMESPACE), deadlines)?)
}

async fn wait_until_made(store: &Kubernetes, value: &'static str) -> anyhow::Result<()> {
    let is_made = async || {
        store.get(KEY).await.is_ok_and(|found| found.is_some_and(|v| v.value == text(value)))
    };
    ensure!(wait_for(SEEN, is_made).await, "{value:?} is never made");
    Ok(())
}

/// The change is made, its answer waits for longer than the caller.
async fn answer_is_late(
    store: &Kubernetes,
    direct: &Kubernetes,
    mode: &watch::Sender<Mode>,
    first: Revision,
) -> anyhow::Result<Revision> {
    mode.send_replace(Mode::HoldAnswers);
    let outcome = store.put_if(KEY, Expect::Revision(first), text("second")).await;
    ensure!(matches!(outcome, Err(PutError::Unknown(_))), "a late answer: {outcome:?}");
    wait_until_made(direct, "second").await?;
    let read = store.get(KEY).await;
    ensure!(matches!(read, Err(MetaError::Unavailable(_))), "a read without answer: {read:?}");
    mode.send_replace(Mode::Pass);
    let found = store.get(KEY).await?.context("the record is gone")?;
    ensure!(found.value == text("second") && found.revision > first, "after it: {found:?}");
    let stale = store.put_if(KEY, Expect::Revision(first), text("stale")).await;
    let conflict = Err(PutError::Conflict { current: Some(found.revision) });
    ensure!(stale == conflict, "a put over the late one: {stale:?}");
    Ok(found.revision)
}

/// The change is sent and never arrives; then there is not even a connection.
async fn request_is_lost(
    store: &Kubernetes,
    direct: &Kubernetes,
    mode: &watch::Sender<Mode>,
    second: Revision,
) -> anyhow::Result<()> {
    mode.send_replace(Mode::HoldRequests);
    let outcome = store.put_if(KEY, Expect::Revision(second), text("lost")).await;
    ensure!(matches!(outcome, Err(PutError::Unknown(_))), "a lost request: {outcome:?}");
    let outcome = store.put_if(KEY, Expect::Revision(second), text("unsent")).await;
    let is_honest = matches!(outcome, Err(PutError::Unavailable(_)));
    ensure!(is_honest, "a request without a connection: {outcome:?}");
    mode.send_replace(Mode::Cut);
    // All but the listener have a look at the mode as long as their connection lasts.
    let is_cut = wait_for(SEEN, async || mode.receiver_count() == 1).await;
    ensure!(is_cut, "{} connections are not cut", mode.receiver_count());
    mode.send_replace(Mode::Pass);
    let found = direct.get(KEY).await?.context("the record is gone")?;
    ensure!(found.revision == second, "a lost request was made: {found:?}");
    let third = store.put_if(KEY, Expect::Revision(second), text("third")).await?;
    store.delete_if(KEY, third).await?;
    Ok(())
}

/// The change is made, and the connection breaks before its answer has come.
async fn connection_breaks(
    store: &Arc<Kubernetes>,
    direct: &Kubernetes,
    mode: &watch::Sender<Mode>,
) -> anyhow::Result<()> {
    let first = store.put_if(KEY, Expect::Absent, text("fourth")).await?;
    mode.send_replace(Mode::HoldAnswers);
    let put = {
        let store = Arc::clone(store);
        let put = async move { store.put_if(KEY, Expect::Revision(first), text("fifth")).await };
        tokio::spawn(put)
    };
    wait_until_made(direct, "fifth").await?;
    let cut = Instant::now();
    mode.send_replace(Mode::Cut);
    let outcome = put.await?;
    ensure!(matches!(outcome, Err(PutError::Unknown(_))), "a cut connection: {outcome:?}");
    ensure!(cut.elapsed() < PATIENT.request / 2, "a cut connection was waited for");
    mode.send_replace(Mode::Pass);
    let found = store.get(KEY).await?.context("the record is gone")?;
    ensure!(found.value == text("fifth"), "after a cut: {found:?}");
    Ok(())
}

async fn nobody_listens(cluster: &Cluster) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    drop(listener);
    let store = over(cluster, address, SHORT).await?;
    let outcome = store.put_if(KEY, Expect::Absent, text("none")).await;
    ensure!(matches!(outcome, Err(PutError::Unavailable(_))), "nobody listens: {outcome:?}");
    let outcome = store.delete_if(KEY, Revision(1)).await;
    ensure!(matches!(outcome, Err(PutError::Unavailable(_))), "nobody listens: {outcome:?}");
    ensure!(matches!(store.get(KEY).await, Err(MetaError::Unavailable(_))), "a read of nobody");
    Ok(())
}

/// A network between a client and the API server.
async fn listen() -> anyhow::Result<(SocketAddr, watch::Sender<Mode>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (mode, seen) = watch::channel(Mode::Pass);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(connect(client, seen.clone()));
        }
    });
    Ok((address, mode))
}

async fn connect(client: TcpStream, mode: watch::Receiver<Mode>) {
    let Ok(server) = TcpStream::connect(API).await else { return };
    let (client_says, server_hears) = (client.into_split(), server.into_split());
    let mut cut = mode.clone();
    tokio::select! {
        () = carry(client_says.0, server_hears.1, mode.clone(), Mode::HoldRequests) => {}
        () = carry(server_hears.0, client_says.1, mode, Mode::HoldAnswers) => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

/// Carries what is said, but not while the network is in the mode `held`.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
    held: Mode,
) {
    let mut said = vec![0; 1 << 16];
    loop {
        let Ok(length @ 1..) = from.read(&mut said).await else { return };
        if mode.wait_for(|mode| *mode != held && *mode != Mode::Cut).await.is_err() {
            return;
        }
        let Some(part) = said.get(..length) else { return };
        if to.write_all(part).await.is_err() {
            return;
        }
    }
}
