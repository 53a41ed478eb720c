//! The data path of one node: its replicas, its primaries and the links between nodes.

mod alarm;
mod config;
mod error;
mod fetcher;
mod incoming;
mod keeper;
mod kept;
mod opening;
mod path;
mod primary;
mod records;
mod remake;
mod replica;
mod replicas;
mod slots;
mod status;
#[cfg(test)]
mod tests;
mod waits;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lockstep_core::id::{InstanceId, NodeId, ReplicaId, SnapshotId, VolumeId};
use lockstep_core::primary::Phase;
use lockstep_meta::Meta;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use crate::door::VolumeHandle;
pub use config::{EngineConfig, NewReplica, PoolConfig, Resolver};
pub use error::EngineError;
pub(crate) use primary::{Guest, GuestResult, Input as PrimaryInput};
pub use remake::{Remade, Remake, RemakeError, RemakeProgress};
pub use status::{Missing, OpenReplica, PoolInfo, PrimaryInfo, ReplicaInfo, ReplicaState};

use crate::clock::Clock;
use crate::net::{Net, Peers, Server, Service};
use crate::pool::{Pool, PoolError};
use fetcher::Fetcher;
use incoming::Incoming;
use replicas::Replicas;

/// Threads that wait for disks. A thread waits for one operation at a time, so this is also the
/// most that is asked of the disks at once.
const DISK_THREADS: usize = 16;

/// Key of a volume's record in the record store.
#[must_use]
pub fn record_key(volume: VolumeId) -> String {
    format!("record/{volume}")
}

/// The data path of one node. Clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// The attachments of a node.
type Primaries = Arc<Mutex<BTreeMap<VolumeId, VolumeHandle>>>;

/// The map is changed by single inserts and removals: it is whole even after a panic.
fn locked(primaries: &Primaries) -> MutexGuard<'_, BTreeMap<VolumeId, VolumeHandle>> {
    primaries.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Inner {
    net: Arc<Net>,
    peers: Arc<Peers>,
    server: Server,
    replicas: Arc<Replicas>,
    meta: Arc<dyn Meta>,
    slots: Arc<slots::NodeSlots>,
    primaries: Primaries,
    stopping: AtomicBool,
    /// Ends the listener and all connections.
    stop: CancellationToken,
}

impl Engine {
    /// Locks and scans the pools, opens their replicas and listens for peers. A damaged replica
    /// is reported and skipped. The record store is not asked before the first attachment.
    ///
    /// # Errors
    /// If a pool can't be used or the peer port can't be had.
    pub async fn start(
        config: EngineConfig,
        meta: Arc<dyn Meta>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, EngineError> {
        let clock = Clock::start();
        let net = Net::new(clock, config.cluster, config.node.clone());
        let (listen, runtime) = (config.listen, tokio::runtime::Handle::current());
        let version = config.version.clone();
        let stop = CancellationToken::new();
        let peers = Peers::new(Arc::clone(&net), resolver, stop.clone());
        let fetcher = Fetcher::new(Arc::clone(&peers), stop.clone());
        let opening = tokio::task::spawn_blocking(move || {
            let _tasks = runtime.enter();
            let pools = open_pools(&config)?;
            let entries = slots::NodeSlots::of_targets(config.incoming_resyncs);
            Replicas::open(clock, config.direct_io, pools, DISK_THREADS, fetcher, entries)
        });
        let replicas = opening.await.map_err(|_| EngineError::Stopped)??;
        let primaries = Primaries::default();
        let incoming =
            Incoming { replicas: Arc::clone(&replicas), primaries: Arc::clone(&primaries) };
        let service: Arc<dyn Service> = Arc::new(incoming);
        let server = Server::start(Arc::clone(&net), listen, service, stop.clone())
            .await
            .map_err(|source| EngineError::Listen { addr: listen, source })?;
        tracing::info!(node = %net.node, addr = %server.addr(), version, "engine started");
        let inner = Inner {
            net,
            peers,
            server,
            replicas,
            meta,
            slots: Arc::default(),
            primaries,
            stopping: AtomicBool::new(false),
            stop,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The node this engine is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.inner.net.node
    }

    /// Where it listens for peers: the address configured, with the port really taken.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.inner.server.addr()
    }

    /// The pools, in the order configured.
    pub async fn pools(&self) -> Vec<PoolInfo> {
        self.inner.replicas.pools().await
    }

    /// Makes an empty replica and opens it; durable when it returns. Succeeds also if the very
    /// same replica is there already.
    ///
    /// # Errors
    /// [`EngineError::NoSuchPool`], [`EngineError::ReplicaExists`], [`EngineError::BadSize`], and
    /// [`EngineError::Pool`] when the pool is full or fails.
    pub async fn create_replica(&self, new: NewReplica) -> Result<ReplicaInfo, EngineError> {
        self.refuse_when_stopping()?;
        self.inner.replicas.create(new).await
    }

    /// Removes a replica and its data. `replica` must be the one that is there, unless it is
    /// damaged. `Ok(false)` if there was none.
    ///
    /// # Errors
    /// [`EngineError::ReplicaExists`] if another copy is there; [`EngineError::Pool`].
    pub async fn delete_replica(
        &self,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Result<bool, EngineError> {
        self.refuse_when_stopping()?;
        self.inner.replicas.delete(volume, replica).await
    }

    /// Removes a snapshot that this node holds. `Ok(false)` if there was none.
    ///
    /// # Errors
    /// [`EngineError::Pool`].
    pub async fn drop_snapshot(&self, id: SnapshotId) -> Result<bool, EngineError> {
        self.refuse_when_stopping()?;
        self.inner.replicas.drop_snapshot(id).await
    }

    /// Makes a copy of a snapshot here anew, of what other nodes have of it. Nothing is left of an
    /// attempt that fails, or that `progress` is told to stop.
    ///
    /// # Errors
    /// See [`RemakeError`].
    pub async fn remake_snapshot(
        &self,
        order: Remake,
        progress: Arc<RemakeProgress>,
    ) -> Result<Remade, RemakeError> {
        self.inner.replicas.remake(order, progress).await
    }

    /// The snapshots that this node has.
    pub async fn list_snapshots(&self) -> Vec<SnapshotId> {
        self.inner.replicas.list_snapshots().await
    }

    /// The replica of `volume` that this node holds.
    pub async fn replica_status(&self, volume: VolumeId) -> Option<ReplicaInfo> {
        self.inner.replicas.status(volume).await
    }

    /// All replicas that this node holds, damaged ones included, by volume.
    pub async fn list_replicas(&self) -> Vec<ReplicaInfo> {
        self.inner.replicas.list().await
    }

    /// Makes this node the primary of `volume` and returns at once; the handle's
    /// [`VolumeHandle::served`] waits for it. An attachment that is there and neither fenced nor
    /// closed is returned as it is; a fenced or closed one is replaced by a new claim.
    ///
    /// That no live primary is robbed (rule A4) is the caller's to check; safety does not rest on
    /// it.
    ///
    /// # Errors
    /// [`EngineError::Stopped`].
    pub fn attach(&self, volume: VolumeId) -> Result<VolumeHandle, EngineError> {
        let mut primaries = self.primaries();
        self.refuse_when_stopping()?;
        if let Some(handle) = primaries.get(&volume) {
            if !handle.is_over() {
                return Ok(handle.clone());
            }
            end(handle);
        }
        let handle = self.claim(volume);
        primaries.insert(volume, handle.clone());
        Ok(handle)
    }

    /// Starts a primary's task.
    fn claim(&self, volume: VolumeId) -> VolumeHandle {
        let inner = &self.inner;
        let instance = InstanceId(Uuid::new_v4());
        let (phase, phases) = watch::channel(Phase::Claiming);
        let (inputs, received) = mpsc::unbounded_channel();
        let size_bytes = Arc::new(AtomicU64::new(0));
        let parts = primary::Parts {
            volume,
            instance,
            net: Arc::clone(&inner.net),
            peers: Arc::clone(&inner.peers),
            replicas: Arc::clone(&inner.replicas),
            meta: Arc::clone(&inner.meta),
            slots: Arc::clone(&inner.slots),
            phase,
            size_bytes: Arc::clone(&size_bytes),
        };
        tokio::spawn(primary::Driver::new(parts, inputs.clone()).run(received));
        VolumeHandle::new(volume, instance, phases, inputs, size_bytes)
    }

    /// The attachment of `volume` on this node, if there is one, in whatever phase.
    #[must_use]
    pub fn attached(&self, volume: VolumeId) -> Option<VolumeHandle> {
        self.primaries().get(&volume).cloned()
    }

    /// Status of the volume's primary on this node, also after it was fenced, until it is
    /// detached.
    pub async fn primary_status(&self, volume: VolumeId) -> Option<PrimaryInfo> {
        let handle = self.attached(volume)?;
        let core = handle.status().await?;
        let waits_for = waits::waits_for(&core, &self.inner.peers);
        let now = self.inner.net.clock.now();
        let missing = waits::missing_replicas(&core, &self.inner.peers, now);
        Some(PrimaryInfo { volume, instance: handle.instance(), core, missing, waits_for })
    }

    /// Status of all primaries of this node, by volume.
    pub async fn list_primaries(&self) -> Vec<PrimaryInfo> {
        let volumes: Vec<VolumeId> = self.primaries().keys().copied().collect();
        let infos = volumes.into_iter().map(|volume| self.primary_status(volume));
        futures::future::join_all(infos).await.into_iter().flatten().collect()
    }

    /// Tells the volume's primary on this node, if any, that somebody changed the record.
    /// Returns whether there is one.
    pub fn record_changed(&self, volume: VolumeId) -> bool {
        let handle = self.attached(volume);
        if let Some(handle) = &handle {
            handle.send(PrimaryInput::RecordChanged);
        }
        handle.is_some()
    }

    /// Tells the volume's primary on this node, if any, that a healthy member is to leave. It does
    /// if as many copies as wanted stay; ask again if the record does not say so after a while.
    pub fn release(&self, volume: VolumeId, replica: ReplicaId) {
        if let Some(handle) = self.attached(volume) {
            handle.send(PrimaryInput::Release(replica));
        }
    }

    /// Has the volume's primary on this node, if any, read every block of every member and mend
    /// what is bad. Returns whether there is one. Nothing happens if it does so already.
    pub fn scrub(&self, volume: VolumeId) -> bool {
        let handle = self.attached(volume).filter(|handle| !handle.is_over());
        if let Some(handle) = &handle {
            handle.send(PrimaryInput::Scrub);
        }
        handle.is_some()
    }

    /// Ends the attachment. Without `force`: finishes what is in flight, flushes, leaves the
    /// record clean; waits `limit` for that and goes on with it afterwards. With `force`: stops
    /// at once, as a crash would; the record still names this primary. The caller takes the doors
    /// down first. A fenced or closed attachment is just forgotten.
    ///
    /// # Errors
    /// [`EngineError::NotAttached`]; [`EngineError::DetachTimeout`].
    pub async fn detach(
        &self,
        volume: VolumeId,
        force: bool,
        limit: Duration,
    ) -> Result<(), EngineError> {
        let handle = self.attached(volume).ok_or(EngineError::NotAttached(volume))?;
        if !force && !close(&handle, limit).await {
            let waited_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            return Err(EngineError::DetachTimeout { volume, waited_ms });
        }
        self.forget(&handle);
        // An error means that the task has ended otherwise, which is as good.
        let _ = end(&handle).await;
        Ok(())
    }

    /// Closes all primaries in good order, for at most `limit`, then cuts off what is left, closes
    /// all connections and files. The engine answers [`EngineError::Stopped`] afterwards.
    /// Returns the volumes that were cut off.
    pub async fn shutdown(&self, limit: Duration) -> Vec<VolumeId> {
        self.inner.stopping.store(true, Ordering::SeqCst);
        let handles: Vec<VolumeHandle> =
            std::mem::take(&mut *self.primaries()).into_values().collect();
        let closing = handles.iter().map(|handle| close(handle, limit));
        let closed = futures::future::join_all(closing).await;
        let cut: BTreeSet<VolumeId> = handles
            .iter()
            .zip(closed)
            .filter(|(_, closed)| !closed)
            .map(|(handle, _)| handle.volume())
            .collect();
        for handle in &handles {
            // As in `detach`.
            let _ = end(handle).await;
        }
        self.inner.stop.cancel();
        self.inner.replicas.stop().await;
        cut.into_iter().collect()
    }

    /// Forgets an attachment, unless another one is in its place already.
    fn forget(&self, handle: &VolumeHandle) {
        let mut primaries = self.primaries();
        let same = |other: &VolumeHandle| other.instance() == handle.instance();
        if primaries.get(&handle.volume()).is_some_and(same) {
            primaries.remove(&handle.volume());
        }
    }

    fn refuse_when_stopping(&self) -> Result<(), EngineError> {
        if self.inner.stopping.load(Ordering::SeqCst) { Err(EngineError::Stopped) } else { Ok(()) }
    }

    fn primaries(&self) -> MutexGuard<'_, BTreeMap<VolumeId, VolumeHandle>> {
        locked(&self.inner.primaries)
    }
}

/// Asks a primary to close and waits; `false` if it took too long.
async fn close(handle: &VolumeHandle, limit: Duration) -> bool {
    handle.send(PrimaryInput::Close);
    let mut phase = handle.phase();
    let over = phase.wait_for(|p| matches!(p, Phase::Closed | Phase::Fenced));
    timeout(limit, over).await.is_ok()
}

/// Ends a primary's task; the receiver tells when it has let go of everything.
fn end(handle: &VolumeHandle) -> oneshot::Receiver<()> {
    let (done, ended) = oneshot::channel();
    handle.send(PrimaryInput::Abort(done));
    ended
}

/// Opens every pool. Blocks.
fn open_pools(config: &EngineConfig) -> Result<Vec<Arc<Pool>>, PoolError> {
    let mut pools: Vec<Arc<Pool>> = Vec::new();
    for pool in &config.pools {
        if pools.iter().any(|p| p.config.name == pool.name || p.config.dir == pool.dir) {
            return Err(PoolError::Twice(pool.name.clone()));
        }
        pools.push(Arc::new(Pool::open(pool, config.cluster, &config.node)?));
    }
    Ok(pools)
}
