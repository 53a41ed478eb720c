//! lockstep-csi: what Kubernetes asks of Lockstep, over the Container Storage Interface.
//!
//! The Node service runs beside each daemon, the Controller service anywhere; `--standalone` is
//! both in one process.

mod capability;
mod controller;
mod daemon;
mod drain;
mod endpoint;
mod failover;
mod identity;
mod keeper;
mod kubernetes;
mod labels;
mod leader;
mod names;
mod node;
mod pages;
mod parameters;
mod refuse;
mod size;
mod topology;
mod turns;
mod views;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use daemon::Daemons;
use endpoint::Endpoint;
use lockstep_proto::csi::controller_server::ControllerServer;
use lockstep_proto::csi::identity_server::IdentityServer;
use lockstep_proto::csi::node_server::NodeServer;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Server;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// How long requests under way may take once the program was told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How long it may take to give the lease back.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Which services are served, besides Identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Volumes are staged and published on this node.
    Node,
    /// Volumes are made, changed and removed.
    Controller,
}

/// The CSI driver of Lockstep.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// What to serve.
    #[arg(value_enum, required_unless_present = "standalone")]
    role: Option<Role>,

    /// Serve both, on one socket: for tests, and to try it without a cluster.
    #[arg(long, conflicts_with = "role")]
    standalone: bool,

    /// Where to serve, as unix:///path/to/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT")]
    endpoint: Endpoint,

    /// Name of this node, as the orchestrator knows it. The controller needs none.
    #[arg(long, env = "NODE_ID", value_parser = node_id)]
    node_id: Option<String>,

    /// Where a daemon listens, as unix:///path/to/socket or http://host:port. The first is that of
    /// this node; the controller asks the others too, should it not answer.
    #[arg(long, env = "LOCKSTEP_DAEMON", required = true, value_delimiter = ',')]
    daemon: Vec<String>,

    /// Most volumes on this node, or 0. The kernel module ublk makes 64 devices, unless told
    /// otherwise.
    #[arg(long, env = "MAX_VOLUMES", default_value_t = 64)]
    max_volumes: u32,

    /// The controller keeps labels on the Node objects of the Kubernetes cluster that it runs in,
    /// or that KUBECONFIG leads to, and shows volumes as objects there. Otherwise labels are kept
    /// in the record store.
    #[arg(long, env = "LOCKSTEP_KUBERNETES")]
    kubernetes: bool,

    /// How often the controller compares labels of nodes with where copies are, in milliseconds.
    #[arg(long, env = "LABELS_EVERY_MS", default_value_t = 5000,
        value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    labels_every_ms: u64,

    #[command(flatten)]
    cluster: Cluster,
}

/// How controllers of a Kubernetes cluster share the work, and watch its nodes.
#[derive(Clone, Debug, clap::Args)]
struct Cluster {
    /// Namespace of the lease by which one of several controllers acts, and of guards.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    lease_namespace: String,

    /// How long a controller that acts is waited for when it is silent, in milliseconds.
    #[arg(long, env = "LEASE_MS", default_value_t = 5000,
        value_parser = clap::value_parser!(u64).range(2000..=600_000))]
    lease_ms: u64,

    /// How often the lease is renewed, and looked at by those who wait for it, in milliseconds.
    #[arg(long, env = "LEASE_RENEW_MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(100..=60_000))]
    lease_renew_ms: u64,

    #[command(flatten)]
    watching: failover::Watching,

    #[command(flatten)]
    draining: drain::Draining,
}

/// CSI allows 256 bytes.
fn node_id(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("a node has a name; pass spec.nodeName of the pod".to_owned()),
        1..=256 => Ok(text.to_owned()),
        n => Err(format!("a node's name has at most 256 bytes, this one has {n}")),
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // The client of Kubernetes logs each error that it returns; whoever handles one logs it once.
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("kube_client=off,info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    serve(args).await
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut stop = Stop::new().context("cannot wait for signals")?;
    let controller = args.standalone || args.role == Some(Role::Controller);
    let node = args.standalone || args.role == Some(Role::Node);
    let all = Arc::new(Daemons::new(&args.daemon)?);
    // What is done on this node is done by its own daemon.
    let own = Arc::new(Daemons::new(args.daemon.get(..1).unwrap_or_default())?);
    if node && args.node_id.is_none() {
        anyhow::bail!("--node-id is needed: a node has a name; pass spec.nodeName of the pod");
    }
    let node_id = args.node_id.filter(|_| node);
    let asked = if node { Arc::clone(&own) } else { Arc::clone(&all) };
    let identity = identity::Identity::new(node_id.clone(), asked, controller);
    let every = Duration::from_millis(args.labels_every_ms);
    let (end, ended) = tokio::sync::watch::channel(false);
    let keeper = if controller && args.kubernetes {
        Some(in_kubernetes(&all, every, &args.cluster, ended).await?)
    } else {
        None
    };
    let (keeper, lease) = keeper.unzip();
    let keeper = keeper.unwrap_or_else(|| {
        let labels = labels::InRecordStore(Arc::clone(&all));
        let keeper = keeper::Keeper::new(Arc::clone(&all), Arc::new(labels));
        if controller {
            tokio::spawn(keeper.clone().keep(every, leader::Leader::alone()));
        }
        keeper
    });
    let controller = controller.then(|| controller::Controller::new(Arc::clone(&all), keeper));
    let node = node_id.map(|id| node::Node::new(id, i64::from(args.max_volumes), own));
    let bound = args.endpoint.bind().await?;
    let (incoming, socket) = bound.split();
    info!(endpoint = %socket.display(), "serving CSI");

    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(IdentityServer::new(identity))
        .add_optional_service(controller.map(ControllerServer::new))
        .add_optional_service(node.map(NodeServer::new))
        .serve_with_incoming_shutdown(incoming, async {
            // Also when the sender is gone: then nobody could ever tell us again.
            told.await.unwrap_or_default();
        });
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended.context("the CSI server failed")?,
        name = stop.wait() => {
            info!(signal = name, "stopping");
            drop(tell);
            end.send_replace(true);
            match timeout(DRAIN, server).await {
                Ok(ended) => ended.context("the CSI server failed")?,
                Err(_) => warn!("requests were still under way and are dropped"),
            }
            if let Some(lease) = lease {
                // Otherwise it ends by itself.
                let _ = timeout(GIVE_BACK, lease).await;
            }
        }
    }
    Ok(())
}

/// Does a controller's work in a Kubernetes cluster from now on, while it is the one that acts, and
/// gives its lease back when it is told to end. Returns who keeps labels there, and what ends when
/// the lease is given back.
async fn in_kubernetes(
    all: &Arc<Daemons>,
    every: Duration,
    how: &Cluster,
    end: tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<(keeper::Keeper, JoinHandle<()>)> {
    let (duration, renew) = (how.lease_ms, how.lease_renew_ms);
    anyhow::ensure!(
        renew * 2 < duration,
        "--lease-renew-ms {renew} is too long for --lease-ms {duration}: less than half of it"
    );
    let term = leader::Term {
        duration: Duration::from_millis(duration),
        renew: Duration::from_millis(renew),
    };
    let me = myself();
    let prompt = kubernetes::connect(term.renew * 2).await?;
    let (candidate, leader) =
        kubernetes::lease::Candidate::new(prompt, &how.lease_namespace, me.clone(), term);
    let lease = tokio::spawn(candidate.stand(end));
    let client = kubernetes::connect(kubernetes::ANSWER).await?;
    let watcher = kubernetes::connect(kubernetes::WATCH).await?;
    let pods = kubernetes::pods::Pods::new(client.clone());
    let events = kubernetes::events::Events::new(client.clone(), me);
    let (for_pods, for_events) = (pods.clone(), events.clone());
    let publisher =
        kubernetes::volumes::Publisher::new(Arc::clone(all), client.clone(), for_pods, for_events);
    tokio::spawn(publisher.keep(every, leader.clone()));
    let guards = how.draining.guards(&client, &how.lease_namespace)?;
    let nodes = kubernetes::nodes::OnNodes::new(client, watcher);
    let keeper = keeper::Keeper::new(Arc::clone(all), Arc::new(nodes.clone()));
    tokio::spawn(nodes.clone().watch(keeper.clone()));
    tokio::spawn(keeper.clone().keep(every, leader.clone()));
    let drains = drain::Drains::new(
        Arc::clone(all),
        nodes.clone(),
        events.of_drains(),
        leader.clone(),
        &how.draining,
        guards,
    );
    tokio::spawn(drains.keep(every));
    let (all, keeper_too) = (Arc::clone(all), keeper.clone());
    let failover = failover::Failover::new(all, keeper_too, nodes, pods, events, leader);
    tokio::spawn(failover.keep(how.watching));
    Ok((keeper, lease))
}

/// A name that no other controller has: that of the pod or machine, and a number of this start.
fn myself() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let start = since.unwrap_or_default().as_micros();
    format!("{}-{start:x}-{:x}", host.to_string_lossy(), std::process::id())
}

/// The signals that end this program.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
