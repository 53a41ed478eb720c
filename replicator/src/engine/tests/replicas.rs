//! Replicas as files of a node.

use super::cluster::*;
use crate::engine::*;
use crate::pool::PoolError;
use lockstep_core::id::Lineage;
use lockstep_core::limits::MAX_VOLUME_BLOCKS;
use std::os::unix::fs::{FileExt, MetadataExt};

fn fresh(blocks: u64) -> NewReplica {
    new_replica(VolumeId(Uuid::new_v4()), Lineage(Uuid::new_v4()), blocks)
}

#[tokio::test]
async fn making_a_replica_twice_is_making_it_once() {
    let cluster = Cluster::start(1).await;
    let engine = cluster.on(1);
    let new = fresh(1024);
    let first = engine.create_replica(new.clone()).await.unwrap();
    assert_eq!((first.pool.as_str(), first.volume_name.as_str()), ("default", "vol"));
    assert!(matches!(first.state, ReplicaState::Open(_)));
    engine.create_replica(new.clone()).await.unwrap();
    let others = [
        NewReplica { replica: ReplicaId(Uuid::new_v4()), ..new.clone() },
        NewReplica { blocks: 2048, ..new.clone() },
        NewReplica { lineage: Lineage(Uuid::new_v4()), ..new.clone() },
    ];
    for other in others {
        let error = engine.create_replica(other).await.unwrap_err();
        assert!(matches!(error, EngineError::ReplicaExists { .. }), "{error}");
    }
    let wrong = ReplicaId(Uuid::new_v4());
    assert!(engine.delete_replica(new.volume, wrong).await.is_err());
    assert!(engine.delete_replica(new.volume, new.replica).await.unwrap());
    assert!(!engine.delete_replica(new.volume, new.replica).await.unwrap());
    assert_eq!(engine.list_replicas().await, vec![]);
}

#[tokio::test]
async fn a_replica_is_made_and_deleted_to_the_end_when_its_caller_goes_away() {
    let cluster = Cluster::start(1).await;
    let engine = cluster.on(1);
    for _ in 0..20 {
        let new = fresh(1024);
        // Both are begun, and given up at once.
        tokio::select! {
            biased;
            _ = engine.create_replica(new.clone()) => {}
            () = tokio::task::yield_now() => {}
        }
        let made = engine.create_replica(new.clone()).await.unwrap();
        assert!(matches!(made.state, ReplicaState::Open(_)), "{made:?}");
        tokio::select! {
            biased;
            _ = engine.delete_replica(new.volume, new.replica) => {}
            () = tokio::task::yield_now() => {}
        }
        engine.delete_replica(new.volume, new.replica).await.unwrap();
        assert!(engine.create_replica(new.clone()).await.is_ok(), "it can be made again");
    }
}

#[tokio::test]
async fn a_thick_replica_has_all_its_space_and_another_one_none() {
    let cluster = Cluster::start(1).await;
    let taken = async |thick| {
        let new = NewReplica { thick, ..fresh(1024) };
        cluster.on(1).create_replica(new.clone()).await.unwrap();
        let dir = cluster.pool_dir(1).join("replicas").join(new.volume.to_string());
        std::fs::metadata(dir.join("data")).unwrap().blocks() * 512
    };
    assert_eq!(taken(false).await, 0);
    assert!(taken(true).await >= 4 << 20);
}

#[tokio::test]
async fn sizes_pools_and_space_are_checked() {
    let cluster = Cluster::start(1).await;
    let engine = cluster.on(1);
    for blocks in [0, MAX_VOLUME_BLOCKS + 1] {
        let error = engine.create_replica(fresh(blocks)).await.unwrap_err();
        assert!(matches!(error, EngineError::BadSize { .. }), "{error}");
    }
    let elsewhere = NewReplica { pool: "fast".into(), ..fresh(1) };
    let error = engine.create_replica(elsewhere).await.unwrap_err().to_string();
    assert!(error.contains("default"), "{error}");
    let error = engine.create_replica(fresh(MAX_VOLUME_BLOCKS)).await.unwrap_err();
    assert!(matches!(error, EngineError::Pool(PoolError::Full { .. })), "{error}");
    engine.create_replica(fresh(262_144)).await.unwrap();
    let pool = engine.pools().await.remove(0);
    assert_eq!(pool.replicas, 1);
    assert!(pool.reserved_bytes > 1 << 29, "the rest of the replica is promised: {pool:?}");
}

/// Overwrites 100 bytes of a replica's `meta` at each of these places.
fn damage(cluster: &Cluster, volume: VolumeId, places: &[u64]) {
    let dir = cluster.pool_dir(1).join("replicas").join(volume.to_string());
    let file = std::fs::OpenOptions::new().write(true).open(dir.join("meta")).unwrap();
    for place in places {
        file.write_all_at(&[0xAA; 100], *place).unwrap();
    }
}

#[tokio::test]
async fn one_damaged_superblock_is_survived_two_are_reported_and_left_alone() {
    let mut cluster = Cluster::start(1).await;
    let mut volumes = Vec::new();
    for places in [&[0_u64][..], &[4096], &[0, 4096], &[]] {
        let new = fresh(1024);
        cluster.on(1).create_replica(new.clone()).await.unwrap();
        volumes.push((new, places));
    }
    cluster.kill(1).await;
    for (new, places) in &volumes {
        damage(&cluster, new.volume, places);
    }
    let engine = cluster.up(1).await;
    assert_eq!(engine.list_replicas().await.len(), 4);
    for (new, places) in &volumes {
        let info = engine.replica_status(new.volume).await.unwrap();
        match info.state {
            ReplicaState::Open(open) => {
                assert!(places.len() < 2);
                assert_eq!(open.replica, new.replica);
            }
            ReplicaState::Damaged(why) => {
                assert_eq!(places.len(), 2, "{why}");
                assert!(info.dir.join("data").exists());
                let error = engine.create_replica(new.clone()).await.unwrap_err();
                let damaged = PoolError::Damaged { volume: new.volume, dir: info.dir, why };
                assert_eq!(error.to_string(), damaged.to_string());
                assert!(engine.delete_replica(new.volume, new.replica).await.unwrap());
            }
        }
    }
    assert_eq!(engine.list_replicas().await.len(), 3);
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_reported() {
    let mut cluster = Cluster::start(1).await;
    let mut volumes = Vec::new();
    for file in ["meta", "data", "tags", "regions"] {
        let new = fresh(1024);
        let info = cluster.on(1).create_replica(new.clone()).await.unwrap();
        volumes.push((new.volume, info.dir.join(file)));
    }
    cluster.kill(1).await;
    for (_, path) in &volumes {
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
    }
    let engine = cluster.up(1).await;
    for (volume, path) in &volumes {
        let info = engine.replica_status(*volume).await.unwrap();
        let ReplicaState::Damaged(why) = info.state else { panic!("{path:?}: {info:?}") };
        assert!(why.contains(path.file_name().unwrap().to_str().unwrap()), "{why}");
    }
}

#[tokio::test]
async fn a_pool_in_use_or_of_another_node_stops_the_start() {
    let cluster = Cluster::start(1).await;
    let meta: Arc<dyn Meta> = cluster.meta.clone();
    let resolver: Arc<dyn Resolver> = cluster.addresses.clone();
    let again = Engine::start(cluster.config(1), meta.clone(), resolver.clone()).await;
    assert!(matches!(again, Err(EngineError::Pool(PoolError::InUse { .. }))));
    let other = EngineConfig { node: node(2), ..cluster.config(1) };
    let foreign = Engine::start(other, meta.clone(), resolver.clone()).await;
    assert!(matches!(foreign, Err(EngineError::Pool(PoolError::Foreign { .. }))));
    let mut twice = cluster.config(5);
    twice.pools.push(twice.pools[0].clone());
    let twice = Engine::start(twice, meta.clone(), resolver.clone()).await;
    assert!(matches!(twice, Err(EngineError::Pool(PoolError::Twice(_)))));
    let taken = EngineConfig { listen: cluster.on(1).peer_addr(), ..cluster.config(6) };
    let taken = Engine::start(taken, meta, resolver).await;
    assert!(matches!(taken, Err(EngineError::Listen { .. })));
}
