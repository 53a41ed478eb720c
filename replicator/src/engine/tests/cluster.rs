//! A cluster for tests: nodes that are started, killed and started again.

use crate::engine::*;
use async_trait::async_trait;
use bytes::Bytes;
use lockstep_attach::Backend;
use lockstep_core::id::Lineage;
use lockstep_core::range::BLOCK_SIZE;
use lockstep_core::record::{NewVolume, Record};
use lockstep_meta::Expect;
use lockstep_meta::faulty::Faulty;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;

/// Longer than anything takes unless it hangs.
pub(super) const LONG: Duration = Duration::from_secs(30);
pub(super) const BLOCK: usize = 4096;

/// Where nodes listen; a node that is down keeps its last address.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<BTreeMap<NodeId, SocketAddr>>);

#[async_trait]
impl Resolver for Addresses {
    async fn peer_addr(&self, node: &NodeId) -> Result<SocketAddr, String> {
        self.0.lock().unwrap().get(node).copied().ok_or_else(|| "never started".into())
    }
}

/// A cluster for tests.
pub(super) struct Cluster {
    pub(super) dir: TempDir,
    pub(super) id: Uuid,
    pub(super) meta: Arc<Faulty>,
    pub(super) addresses: Arc<Addresses>,
    engines: BTreeMap<u8, Engine>,
}

pub(super) fn node(i: u8) -> NodeId {
    NodeId::new(&format!("node-{i}")).unwrap()
}

impl Cluster {
    /// A cluster of nodes 1 to `nodes`.
    pub(super) async fn start(nodes: u8) -> Self {
        let mut cluster = Self {
            dir: TempDir::new().unwrap(),
            id: Uuid::new_v4(),
            meta: Arc::new(Faulty::over_memory()),
            addresses: Arc::default(),
            engines: BTreeMap::new(),
        };
        for i in 1..=nodes {
            cluster.up(i).await;
        }
        cluster
    }

    pub(super) fn config(&self, i: u8) -> EngineConfig {
        EngineConfig {
            cluster: self.id,
            node: node(i),
            listen: "127.0.0.1:0".parse().unwrap(),
            pools: vec![PoolConfig {
                name: "default".into(),
                dir: self.pool_dir(i),
                capacity_bytes: None,
                overcommit_percent: 100,
                reserve_bytes: 0,
            }],
            incoming_resyncs: lockstep_core::limits::RESYNC_ENTRIES,
            direct_io: true,
            version: "test".into(),
        }
    }

    pub(super) fn pool_dir(&self, i: u8) -> PathBuf {
        self.dir.path().join(format!("pool-{i}"))
    }

    /// Starts a node.
    pub(super) async fn up(&mut self, i: u8) -> Engine {
        self.up_with(i, self.config(i)).await
    }

    /// Starts a node that is configured otherwise than usual.
    pub(super) async fn up_with(&mut self, i: u8, config: EngineConfig) -> Engine {
        let meta: Arc<dyn Meta> = Arc::<Faulty>::clone(&self.meta);
        let resolver: Arc<dyn Resolver> = Arc::<Addresses>::clone(&self.addresses);
        let engine = Engine::start(config, meta, resolver).await.unwrap();
        self.addresses.0.lock().unwrap().insert(node(i), engine.peer_addr());
        self.engines.insert(i, engine.clone());
        engine
    }

    /// Stops a node as a kill would: nothing is closed, nothing flushed.
    pub(super) async fn kill(&mut self, i: u8) {
        let engine = self.engines.remove(&i).unwrap();
        for primary in engine.list_primaries().await {
            engine.detach(primary.volume, true, LONG).await.unwrap();
        }
        engine.shutdown(LONG).await;
    }

    pub(super) fn on(&self, i: u8) -> &Engine {
        &self.engines[&i]
    }

    /// Makes a volume with a copy on each of `nodes`.
    pub(super) async fn volume(&self, mib: u64, nodes: &[u8], min_in_sync: u8) -> VolumeId {
        let (uid, lineage) = (VolumeId(Uuid::new_v4()), Lineage(Uuid::new_v4()));
        let blocks = mib * 256;
        let mut replicas = Vec::new();
        for i in nodes {
            let new = new_replica(uid, lineage, blocks);
            replicas.push((new.replica, node(*i), new.pool.clone()));
            self.on(*i).create_replica(new).await.unwrap();
        }
        let repl = u8::try_from(nodes.len()).unwrap();
        let new = NewVolume { uid, lineage, blocks, repl, min_in_sync, replicas };
        let record = Record::create(new, Uuid::new_v4()).unwrap();
        let value = record.to_bytes().into();
        self.meta.put_if(&record_key(uid), Expect::Absent, value).await.unwrap();
        uid
    }

    /// Puts one more copy into the record, as an operator would.
    pub(super) async fn add_copy(&self, volume: VolumeId, i: u8) -> ReplicaId {
        let found = self.meta.get(&record_key(volume)).await.unwrap().unwrap();
        let record = Record::from_bytes(&found.value).unwrap();
        let new = new_replica(volume, record.lineage, record.blocks);
        let rid = new.replica;
        self.on(i).create_replica(new).await.unwrap();
        let next = record.add_new(rid, node(i), "default".into(), Uuid::new_v4()).unwrap();
        let (expected, value) = (Expect::Revision(found.revision), next.to_bytes().into());
        self.meta.put_if(&record_key(volume), expected, value).await.unwrap();
        rid
    }

    pub(super) async fn record(&self, volume: VolumeId) -> Record {
        let found = self.meta.get(&record_key(volume)).await.unwrap().unwrap();
        Record::from_bytes(&found.value).unwrap()
    }

    /// Attaches and waits until it is served.
    pub(super) async fn attach(&self, i: u8, volume: VolumeId) -> VolumeHandle {
        let handle = self.on(i).attach(volume).unwrap();
        handle.served(LONG).await.unwrap();
        handle
    }

    /// Waits until `count` copies are in sync.
    pub(super) async fn in_sync(&self, volume: VolumeId, count: usize) {
        let reached = async || {
            let record = self.record(volume).await;
            (record.in_sync().count() == count).then_some(())
        };
        wait_for(&format!("{count} copies in sync"), reached).await;
    }

    /// The data file of a copy.
    pub(super) fn data(&self, i: u8, volume: VolumeId) -> Vec<u8> {
        let dir = self.pool_dir(i).join("replicas").join(volume.to_string());
        std::fs::read(dir.join("data")).unwrap()
    }
}

pub(super) fn new_replica(volume: VolumeId, lineage: Lineage, blocks: u64) -> NewReplica {
    NewReplica {
        volume,
        replica: ReplicaId(Uuid::new_v4()),
        lineage,
        blocks,
        pool: "default".into(),
        volume_name: "vol".into(),
        source: None,
        thick: false,
    }
}

/// What write number `n` writes to a block.
pub(super) fn pattern(n: u64, block: u64) -> Vec<u8> {
    let seed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ block;
    (0..BLOCK as u64 / 8).flat_map(|i| (seed.wrapping_add(i * 7919)).to_le_bytes()).collect()
}

pub(super) async fn write(handle: &VolumeHandle, n: u64, block: u64, count: u64) {
    let data: Vec<u8> = (block..block + count).flat_map(|b| pattern(n, b)).collect();
    handle.write(block * BLOCK as u64, Bytes::from(data), false).await.unwrap();
}

pub(super) async fn read(handle: &VolumeHandle, block: u64, count: u32) -> Vec<u8> {
    let found = handle.read(block * BLOCK as u64, count * BLOCK_SIZE).await.unwrap();
    let pieces = found.segments.into_iter().map(|segment| match segment {
        lockstep_attach::Segment::Data(data) => data.to_vec(),
        lockstep_attach::Segment::Zeroes(len) => vec![0; usize::try_from(len).unwrap()],
    });
    pieces.collect::<Vec<_>>().concat()
}

/// Asks again and again until there is an answer; panics if there is none for very long.
pub(super) async fn wait_for<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, asking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
