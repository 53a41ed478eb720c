//! The life of `lockstepd`: what is started in which order, and how it ends.

mod cluster;
mod listen;
mod ready;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use lockstep_meta::kubernetes::Kubernetes;
use lockstep_meta::redb::Redb;
use lockstep_meta::remote::{Deadlines, Remote};
use lockstep_meta::{Meta, server as meta_server};
use lockstep_proto::v1::control_server::ControlServer;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Code;
use uuid::Uuid;

use crate::admin::{Addresses, Admin, Catalog, CatalogResolver, Parts};
use crate::config::{Config, Keeper, MetaConfig};
use crate::devices::{DeviceConfig, Devices};
use crate::engine::{Engine, EngineConfig};
use listen::Listeners;

/// How long primaries get to close in good order.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How long calls under way get to be answered when the daemon stops.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Pause before the record store is asked again at the start.
const META_PAUSE: Duration = Duration::from_millis(200);

/// Runs a daemon until it is told to stop. The error says what was wrong and what to do.
///
/// # Errors
/// If it cannot start: a pool, a socket or the record store's file cannot be used, or another
/// daemon is this node already.
pub async fn run(config: Config) -> anyhow::Result<()> {
    // Left by one that was killed.
    ready::withdraw(config.ready_file.as_deref());
    ready::withdraw(config.settled_file.as_deref());
    let mut signals = Signals::listen()?;
    let listeners = Listeners::bind(&config).await?;
    let (meta, owned) = open_meta(&config.meta).await?;
    let catalog = Catalog::new(Arc::clone(&meta));
    let resolver = Arc::new(CatalogResolver::new(catalog.clone()));
    let cluster = tokio::select! {
        found = cluster::find(config.cluster, &config.pools, &catalog) => found?,
        () = signals.wait() => return Ok(()),
    };
    let engine = Engine::start(engine_config(&config, cluster), meta, resolver).await?;
    let addresses = Addresses {
        peer: listen::advertised(config.peer_address.as_deref(), engine.peer_addr()),
        admin: listen::advertised(config.admin_address.as_deref(), listeners.admin_addr),
    };
    tracing::info!(
        node = %config.node,
        peer = addresses.peer,
        admin = addresses.admin,
        socket = %config.socket.display(),
        version = env!("CARGO_PKG_VERSION"),
        "started"
    );
    let devices = devices(&config, cluster).await?;
    let admin = Admin::new(Parts {
        engine,
        catalog: catalog.clone(),
        addresses,
        zone: config.zone.clone(),
        labels: config.labels.clone(),
        nbd_dir: &config.nbd_dir,
        nbd_tcp: listeners.nbd,
        devices,
        rebuild_after_ms: config.rebuild_after_ms,
        forget_after_ms: config.forget_after_ms,
    })
    .with_context(|| format!("cannot make nbd_dir {}", config.nbd_dir.display()))?;

    let stop = CancellationToken::new();
    let servers = TaskTracker::new();
    let control = ControlServer::new(admin.clone());
    let service = owned.map(meta_server::service);
    let tcp = tonic::transport::server::TcpIncoming::from(listeners.admin).with_nodelay(Some(true));
    servers.spawn(listen::serve(control.clone(), service.clone(), tcp, stop.clone()));
    let unix = tokio_stream::wrappers::UnixListenerStream::new(listeners.socket);
    servers.spawn(listen::serve(control, service, unix, stop.clone()));

    let outcome = tokio::select! {
        started = serve(&admin, &catalog, cluster, &config) => started,
        () = signals.wait() => Ok(()),
    };
    tracing::info!("stopping");
    ready::withdraw(config.ready_file.as_deref());
    ready::withdraw(config.settled_file.as_deref());
    tokio::select! {
        () = shut_down(&admin, &stop, &servers) => {}
        () = signals.wait() => tracing::warn!("told twice to stop: stopping at once"),
    }
    remove_socket(&config.socket);
    outcome
}

/// Joins the cluster and then waits for ever.
async fn serve(
    admin: &Admin,
    catalog: &Catalog,
    cluster: Uuid,
    config: &Config,
) -> anyhow::Result<()> {
    let mut told: Option<String> = None;
    while let Err(status) = join(admin, catalog, cluster).await {
        // The name is taken by a living daemon, or this is another cluster: waiting would not help.
        anyhow::ensure!(status.code() != Code::FailedPrecondition, "{}", status.message());
        if told.as_deref() != Some(status.message()) {
            let lost = status.code() == Code::DataLoss;
            let what = if lost { "waiting for a pool" } else { "waiting for the record store" };
            tracing::warn!(why = status.message(), "{what}");
            admin.waits_for(status.message());
            told = Some(status.message().to_owned());
        }
        tokio::time::sleep(META_PAUSE).await;
    }
    admin.begin();
    ready::announce(config.ready_file.as_deref(), config.ready_fd)?;
    tracing::info!(node = %config.node, "ready");
    if let Some(file) = config.settled_file.as_deref() {
        admin.wait_until_settled().await;
        ready::announce(Some(file), None)?;
        tracing::info!(node = %config.node, "settled");
    }
    std::future::pending().await
}

async fn join(admin: &Admin, catalog: &Catalog, cluster: Uuid) -> Result<(), tonic::Status> {
    catalog.check_cluster(cluster).await?;
    catalog.ping().await?;
    admin.introduce().await
}

async fn shut_down(admin: &Admin, stop: &CancellationToken, servers: &TaskTracker) {
    let cut_off = admin.end(CLOSE_LIMIT).await;
    if !cut_off.is_empty() {
        let volumes: Vec<_> = cut_off.iter().map(ToString::to_string).collect();
        tracing::warn!(?volumes, "not closed in time; they are recovered when next attached");
    }
    stop.cancel();
    servers.close();
    if tokio::time::timeout(ANSWER_LIMIT, servers.wait()).await.is_err() {
        tracing::debug!("clients of the admin API stayed connected");
    }
}

/// The record store, and the same once more if this daemon owns it and serves it to others.
type OpenMeta = (Arc<dyn Meta>, Option<Arc<dyn Meta>>);

async fn open_meta(config: &MetaConfig) -> anyhow::Result<OpenMeta> {
    match config {
        MetaConfig::Embedded(path) => {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)
                    .with_context(|| format!("cannot make {} for `meta`", dir.display()))?;
            }
            let store: Arc<dyn Meta> = Arc::new(Redb::open(path)?);
            Ok((Arc::clone(&store), Some(store)))
        }
        MetaConfig::Remote(uri) => Ok((Arc::new(Remote::new(uri, Deadlines::default())?), None)),
        MetaConfig::Kubernetes(namespace) => {
            let store = Kubernetes::infer(namespace.as_deref(), Deadlines::default()).await?;
            Ok((Arc::new(store), None))
        }
    }
}

fn engine_config(config: &Config, cluster: Uuid) -> EngineConfig {
    EngineConfig {
        incoming_resyncs: config.incoming_resyncs,
        cluster,
        node: config.node.clone(),
        listen: config.peer_listen,
        pools: config.pools.clone(),
        direct_io: config.direct_io,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The doors of this node, and the devices that the daemon before this one left.
async fn devices(config: &Config, cluster: Uuid) -> anyhow::Result<Devices> {
    let wanted = DeviceConfig {
        run_dir: config.run_dir.clone(),
        device_dir: config.device_dir.clone(),
        door: config.door,
        starts_keeper: config.keeper == Keeper::Own,
    };
    let owner = format!("{cluster}/{}", config.node);
    let devices = tokio::task::spawn_blocking(move || Devices::new(&wanted, &owner)).await??;
    for probe in devices.probes() {
        tracing::debug!(door = %probe.kind, usable = probe.usable, why = probe.why, "probed");
    }
    // The daemon before this one is dead: this one has its pools and its socket.
    devices.hold().await;
    Ok(devices)
}

fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "cannot remove the socket");
    }
}

/// The signals that stop a daemon.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
