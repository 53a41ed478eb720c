//! All replicas of this node: finds them, makes them, keeps them running, hands them requests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use lockstep_core::id::{Conn, ReplicaId, SnapshotId, VolumeId};
use lockstep_core::limits::MAX_VOLUME_BLOCKS;
use lockstep_core::message::{Message, Refusal, Request};
use lockstep_store::Identity;
use tokio::sync::{mpsc, oneshot};

use super::config::NewReplica;
use super::error::EngineError;
use super::fetcher::Fetcher;
use super::keeper::{Context, Keeper};
use super::kept::KeptReads;
use super::opening::{self, OpenedFiles};
use super::path::ReplyPath;
use super::remake::{Parts, Remade, Remake, RemakeError, RemakeProgress, Remaking};
use super::replica::{Input, Snapshot, refusal};
use super::slots::NodeSlots;
use super::status::{OpenReplica, PoolInfo, ReplicaInfo, ReplicaState};
use crate::clock::Clock;
use crate::disk::{Home, Room, Threads, full_bytes};
use crate::pool::{self, About, Found, Pool, PoolError};

/// All replicas of this node.
#[derive(Debug)]
pub(super) struct Replicas {
    clock: Clock,
    direct_io: bool,
    boot_id: [u8; 16],
    threads: Arc<Threads>,
    fetcher: Arc<Fetcher>,
    entries: Arc<NodeSlots>,
    pools: Vec<Arc<Pool>>,
    /// What other nodes read of the snapshots here.
    kept: Arc<KeptReads>,
    slots: RwLock<BTreeMap<VolumeId, Slot>>,
    /// One replica is made or deleted at a time, so that space is promised once.
    changing: tokio::sync::Mutex<()>,
}

/// One replica.
#[derive(Clone, Debug)]
struct Slot {
    pool: Arc<Pool>,
    found: Found,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Open { identity: Identity, blocks: Arc<AtomicU64>, inputs: mpsc::UnboundedSender<Input> },
    Damaged(String),
}

impl Replicas {
    /// Opens every replica of the pools. Blocks, and must be called where tasks can be spawned.
    ///
    /// # Errors
    /// If a pool can't be listed or the disk threads can't be started.
    pub(super) fn open(
        clock: Clock,
        direct_io: bool,
        pools: Vec<Arc<Pool>>,
        disk_threads: usize,
        fetcher: Arc<Fetcher>,
        entries: NodeSlots,
    ) -> Result<Arc<Self>, PoolError> {
        let threads = Threads::start(disk_threads).map_err(|source| PoolError::Io {
            what: "start threads for",
            path: PathBuf::from("disk I/O"),
            source,
        })?;
        let replicas = Arc::new(Self {
            clock,
            direct_io,
            boot_id: opening::boot_id(),
            threads: Arc::new(threads),
            fetcher,
            entries: Arc::new(entries),
            kept: Arc::new(KeptReads::new(clock, pools.clone())),
            pools,
            slots: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
        });
        for pool in &replicas.pools {
            for found in pool.scan()? {
                replicas.adopt(pool, found);
            }
        }
        Ok(replicas)
    }

    /// Opens what was found in a pool and takes it in, be it damaged or not. Blocks.
    fn adopt(self: &Arc<Self>, pool: &Arc<Pool>, found: Found) {
        let volume = found.volume;
        if let Some(other) = self.read().get(&volume) {
            let (here, there) = (found.dir.display(), other.found.dir.display());
            tracing::error!(%volume, %here, %there, "two pools hold the volume: second one unused");
            return;
        }
        let home = self.home(pool, &found);
        let opened = opening::open(&found.dir, &home, self.direct_io, self.boot_id, false);
        let kind = match opened {
            Ok(files) => self.run(&found, home, files),
            Err(e) => {
                let dir = found.dir.display();
                tracing::error!(%volume, %dir, error = %e, "damaged replica: left alone");
                Kind::Damaged(e.to_string())
            }
        };
        self.write().insert(volume, Slot { pool: Arc::clone(pool), found, kind });
    }

    /// What a replica of the pool belongs to.
    fn home(self: &Arc<Self>, pool: &Arc<Pool>, found: &Found) -> Home {
        let (replicas, own) = (Arc::downgrade(self), Arc::clone(pool));
        let room: Room = Arc::new(move |bytes| {
            let space = replicas.upgrade().and_then(|replicas| replicas.space(&own).ok());
            space.is_some_and(|space| bytes <= space.room())
        });
        let (volume, thick) = (found.volume, found.about.thick);
        Home { pool: Arc::clone(pool), volume, blocks: Arc::default(), thick, room }
    }

    /// Starts the task of an opened replica.
    fn run(self: &Arc<Self>, found: &Found, home: Home, files: OpenedFiles) -> Kind {
        let identity = files.opened.superblock.identity;
        let blocks = Arc::clone(&home.blocks);
        let (inputs, received) = mpsc::unbounded_channel();
        let context = Context {
            clock: self.clock,
            direct_io: self.direct_io,
            boot_id: self.boot_id,
            threads: Arc::clone(&self.threads),
            fetcher: Arc::clone(&self.fetcher),
            entries: Arc::clone(&self.entries),
        };
        let place = (found.dir.clone(), home);
        let keeper = Keeper::new(context, place, identity, inputs.clone(), received);
        tokio::spawn(keeper.run(files));
        Kind::Open { identity, blocks, inputs }
    }

    /// Hands a request to its replica, or answers that there is none.
    pub(super) fn submit(&self, path: ReplyPath, message: Message<Request>) {
        let header = message.header;
        self.kept.pace.note(&message.body);
        if message.body.is_about_kept() {
            return self.kept.submit(path, message);
        }
        let refused = match self.read().get(&header.volume).map(|slot| &slot.kind) {
            Some(Kind::Open { inputs, .. }) => {
                match inputs.send(Input::Request { path, message }) {
                    Ok(()) => return,
                    Err(mpsc::error::SendError(Input::Request { path, .. })) => {
                        (path, Refusal::NoSuchReplica)
                    }
                    Err(_) => return,
                }
            }
            Some(Kind::Damaged(_)) => (path, Refusal::Faulted),
            None => (path, Refusal::NoSuchReplica),
        };
        let (path, why) = refused;
        path.send(refusal(&header, why));
        path.flush();
    }

    /// Tells every replica that a connection is gone.
    pub(super) fn disconnected(&self, conn: Conn) {
        for slot in self.read().values() {
            if let Kind::Open { inputs, .. } = &slot.kind {
                // A replica that is gone has no use for it.
                let _ = inputs.send(Input::Disconnected(conn));
            }
        }
    }

    /// Makes a replica; see [`super::Engine::create_replica`]. It is made whole, or not, also if
    /// the caller goes away: the next one would meet what is half made.
    pub(super) async fn create(
        self: &Arc<Self>,
        new: NewReplica,
    ) -> Result<ReplicaInfo, EngineError> {
        let replicas = Arc::clone(self);
        tokio::spawn(async move { replicas.make(new).await })
            .await
            .unwrap_or(Err(EngineError::Stopped))
    }

    async fn make(self: &Arc<Self>, new: NewReplica) -> Result<ReplicaInfo, EngineError> {
        let max = MAX_VOLUME_BLOCKS;
        if !(1..=max).contains(&new.blocks) {
            return Err(EngineError::BadSize { blocks: new.blocks, max });
        }
        let pool = self.pool(&new.pool)?;
        let changing = self.changing.lock().await;
        let there = self.read().get(&new.volume).cloned();
        if let Some(slot) = there {
            return self.same(&new, slot).await;
        }
        let (replicas, volume) = (Arc::clone(self), new.volume);
        blocking(move || {
            let space = replicas.space(&pool)?;
            // It may say that it is larger than the snapshot counts: its replica had grown already,
            // and the volume did not, since another had no room. Nothing was written there.
            if let Some(snapshot) = new.source
                && pool.snapshot(snapshot).is_none()
            {
                let pool = pool.name().to_owned();
                return Err(EngineError::NoSuchSnapshot { pool, snapshot });
            }
            let needed_bytes = full_bytes(new.blocks);
            if needed_bytes > space.room() {
                let (free_bytes, pool) = (space.room(), pool.name().to_owned());
                return Err(PoolError::Full { pool, free_bytes, needed_bytes }.into());
            }
            let files = opening::initial_files(&new, &pool, replicas.boot_id);
            let about = About { volume_name: new.volume_name, thick: new.thick };
            let found = pool.create(new.volume, about, &files)?;
            tracing::info!(volume = %new.volume, replica = %new.replica, "replica made");
            replicas.adopt(&pool, found);
            Ok::<(), EngineError>(())
        })
        .await?;
        drop(changing);
        self.status(volume).await.ok_or(EngineError::Stopped)
    }

    /// Is the replica that is there the one asked for?
    async fn same(&self, new: &NewReplica, slot: Slot) -> Result<ReplicaInfo, EngineError> {
        let volume = new.volume;
        match &slot.kind {
            Kind::Open { identity, blocks, .. }
                if *identity == opening::identity_of(new)
                    // It may have grown since it was made.
                    && blocks.load(Ordering::Relaxed) >= new.blocks
                    && slot.pool.name() == new.pool =>
            {
                self.info(slot).await.ok_or(EngineError::Stopped)
            }
            Kind::Open { identity, .. } => {
                Err(EngineError::ReplicaExists { volume, existing: identity.replica })
            }
            Kind::Damaged(why) => {
                let (dir, why) = (slot.found.dir.clone(), why.clone());
                Err(PoolError::Damaged { volume, dir, why }.into())
            }
        }
    }

    /// Deletes a replica; see [`super::Engine::delete_replica`]. Like the making of one, it goes on
    /// when the caller goes away.
    pub(super) async fn delete(
        self: &Arc<Self>,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Result<bool, EngineError> {
        let replicas = Arc::clone(self);
        tokio::spawn(async move { replicas.remove(volume, replica).await })
            .await
            .unwrap_or(Err(EngineError::Stopped))
    }

    async fn remove(&self, volume: VolumeId, replica: ReplicaId) -> Result<bool, EngineError> {
        let _changing = self.changing.lock().await;
        let Some(slot) = self.read().get(&volume).cloned() else { return Ok(false) };
        if let Kind::Open { identity, inputs, .. } = &slot.kind {
            if identity.replica != replica {
                return Err(EngineError::ReplicaExists { volume, existing: identity.replica });
            }
            stop(inputs).await;
        }
        self.write().remove(&volume);
        tracing::info!(%volume, %replica, "replica deleted");
        Ok(blocking(move || slot.pool.delete(volume)).await?)
    }

    /// Removes a snapshot from whichever pool has it; see [`super::Engine::drop_snapshot`].
    pub(super) async fn drop_snapshot(
        self: &Arc<Self>,
        id: SnapshotId,
    ) -> Result<bool, EngineError> {
        let replicas = Arc::clone(self);
        let dropped = blocking(move || {
            // A pool that can't is no reason for another one to keep it.
            let all: Vec<_> = replicas.pools.iter().map(|pool| pool.drop_snapshot(id)).collect();
            all.into_iter()
                .try_fold(false, |existed, dropped| Ok::<bool, PoolError>(existed | dropped?))
        });
        Ok(dropped.await?)
    }

    /// Makes a copy of a snapshot anew; see [`super::Engine::remake_snapshot`].
    pub(super) async fn remake(
        &self,
        order: Remake,
        progress: Arc<RemakeProgress>,
    ) -> Result<Remade, RemakeError> {
        let pool = self.pools.iter().find(|pool| pool.name() == order.pool).cloned();
        let pool = pool.ok_or_else(|| RemakeError::NoPool(order.pool.clone()))?;
        let Self { clock, kept, fetcher, entries, .. } = self;
        let (clock, kept, fetcher) = (*clock, Arc::clone(kept), Arc::clone(fetcher));
        let entries = Arc::clone(entries);
        Remaking::new(order, Parts { clock, pool, kept, fetcher, entries }, progress).run().await
    }

    /// The snapshots that this node has, as far as its pools can be read.
    pub(super) async fn list_snapshots(&self) -> Vec<SnapshotId> {
        let pools = self.pools.clone();
        let listed = blocking(move || {
            let all = pools.iter().flat_map(|pool| pool.list_kept().unwrap_or_default());
            Ok::<_, PoolError>(all.collect())
        });
        listed.await.unwrap_or_default()
    }

    /// Stops all replicas, waits until their disks are quiet, and lets go of the pools.
    pub(super) async fn stop(&self) {
        let _changing = self.changing.lock().await;
        let slots = std::mem::take(&mut *self.write());
        for slot in slots.into_values() {
            if let Kind::Open { inputs, .. } = slot.kind {
                stop(&inputs).await;
            }
        }
        self.pools.iter().for_each(|pool| pool.release());
    }

    /// How the replica of a volume is.
    pub(super) async fn status(&self, volume: VolumeId) -> Option<ReplicaInfo> {
        let slot = self.read().get(&volume).cloned()?;
        self.info(slot).await
    }

    /// How all replicas are, by volume.
    pub(super) async fn list(&self) -> Vec<ReplicaInfo> {
        let slots: Vec<Slot> = self.read().values().cloned().collect();
        let infos = slots.into_iter().map(|slot| self.info(slot));
        futures::future::join_all(infos).await.into_iter().flatten().collect()
    }

    /// `None` if it went away meanwhile.
    async fn info(&self, slot: Slot) -> Option<ReplicaInfo> {
        let Slot { pool, found, kind } = slot;
        let state = match kind {
            Kind::Damaged(why) => ReplicaState::Damaged(why),
            Kind::Open { identity, blocks, inputs } => {
                let (asker, answer) = oneshot::channel();
                inputs.send(Input::Status(asker)).ok()?;
                let snapshot = answer.await.ok()?;
                let blocks = blocks.load(Ordering::Relaxed);
                ReplicaState::Open(Box::new(open_replica(identity, blocks, snapshot)))
            }
        };
        let dir = found.dir.clone();
        let bytes_used = blocking(move || Ok::<_, PoolError>(pool::bytes_used(&dir))).await.ok()?;
        Some(ReplicaInfo {
            volume: found.volume,
            volume_name: found.about.volume_name,
            pool: pool.name().to_owned(),
            dir: found.dir,
            bytes_used,
            state,
        })
    }

    /// The pools and their space.
    pub(super) async fn pools(self: &Arc<Self>) -> Vec<PoolInfo> {
        let replicas = Arc::clone(self);
        let infos = blocking(move || {
            Ok::<_, PoolError>(replicas.pools.iter().map(|p| replicas.pool_info(p)).collect())
        });
        infos.await.unwrap_or_default()
    }

    fn pool_info(&self, pool: &Arc<Pool>) -> PoolInfo {
        let space = self.space(pool).unwrap_or_else(|e| {
            tracing::warn!(pool = pool.name(), error = %e, "cannot measure the pool");
            pool::Space::default()
        });
        PoolInfo {
            name: pool.name().to_owned(),
            dir: pool.config.dir.clone(),
            uuid: pool.uuid,
            capacity_bytes: space.capacity,
            free_bytes: space.free,
            reserved_bytes: space.reserved,
            room_bytes: space.room(),
            replicas: self.in_pool(pool).len(),
        }
    }

    /// Measures a pool. Blocks.
    fn space(&self, pool: &Arc<Pool>) -> Result<pool::Space, PoolError> {
        let (mut used, mut promised) = (0_u64, 0_u64);
        for slot in self.in_pool(pool) {
            let takes = pool::bytes_used(&slot.found.dir);
            let may_take = match slot.kind {
                Kind::Open { blocks, .. } => full_bytes(blocks.load(Ordering::Relaxed)).max(takes),
                Kind::Damaged(_) => takes,
            };
            used = used.saturating_add(takes);
            promised = promised.saturating_add(may_take);
        }
        pool.space(used, promised)
    }

    fn in_pool(&self, pool: &Arc<Pool>) -> Vec<Slot> {
        self.read().values().filter(|s| Arc::ptr_eq(&s.pool, pool)).cloned().collect()
    }

    fn pool(&self, name: &str) -> Result<Arc<Pool>, EngineError> {
        self.pools.iter().find(|p| p.name() == name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.pools.iter().map(|p| p.name()).collect();
            EngineError::NoSuchPool { pool: name.to_owned(), known: known.join(", ") }
        })
    }

    /// The map is changed by single inserts and removals: it is whole even after a panic.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<VolumeId, Slot>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<VolumeId, Slot>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_replica(identity: Identity, blocks: u64, snapshot: Snapshot) -> OpenReplica {
    OpenReplica {
        replica: identity.replica,
        lineage: snapshot.core.lineage,
        blocks,
        core: snapshot.core,
        lossy: snapshot.lossy,
        activity_log_regions: snapshot.activity_log_regions,
        primary_heard_ms: snapshot.primary_heard_ms,
        primary_node: snapshot.primary_node,
        fault: snapshot.fault,
    }
}

/// Runs blocking work on a thread that may block.
async fn blocking<T: Send + 'static, E: From<PoolError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        let source = std::io::Error::other(e);
        Err(PoolError::Io { what: "finish work on", path: PathBuf::from("a pool"), source }.into())
    })
}

/// Asks a replica's task to end and waits for it.
async fn stop(inputs: &mpsc::UnboundedSender<Input>) {
    let (done, stopped) = oneshot::channel();
    if inputs.send(Input::Stop(done)).is_ok() {
        // An error means that the task has ended otherwise, which is as good.
        let _ = stopped.await;
    }
}
