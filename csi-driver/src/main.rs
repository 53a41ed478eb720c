//! lockstep-csi: what Kubernetes asks of Lockstep, over the Container Storage Interface.
//!
//! So far it serves the Identity service only, so that a registrar and a liveness probe work.

mod daemon;
mod endpoint;
mod identity;

use anyhow::Context;
use clap::Parser;
use endpoint::Endpoint;
use lockstep_proto::csi::identity_server::IdentityServer;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tonic::transport::Server;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// How long requests under way may take once the program was told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// The CSI driver of Lockstep.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Where to serve, as unix:///path/to/csi.sock.
    #[arg(long, env = "CSI_ENDPOINT")]
    endpoint: Endpoint,

    /// Name of this node, as Kubernetes knows it.
    #[arg(long, env = "NODE_ID", value_parser = node_id)]
    node_id: String,

    /// Where the daemon of this node listens, as unix:///path/to/socket or http://host:port.
    /// Without it the driver calls itself ready whether there is a daemon or not.
    #[arg(long, env = "LOCKSTEP_DAEMON")]
    daemon: Option<String>,
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
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    serve(args).await
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut stop = Stop::new().context("cannot wait for signals")?;
    let daemon = args.daemon.as_deref().map(daemon::Daemon::new).transpose()?;
    let identity = identity::Identity::new(args.node_id, daemon);
    let bound = args.endpoint.bind().await?;
    let (incoming, socket) = bound.split();
    info!(endpoint = %socket.display(), "serving CSI");

    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .add_service(IdentityServer::new(identity))
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
            match timeout(DRAIN, server).await {
                Ok(ended) => ended.context("the CSI server failed")?,
                Err(_) => warn!("requests were still under way and are dropped"),
            }
        }
    }
    Ok(())
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
