//! Copies of snapshots made anew, from files of nodes that have them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use lockstep_core::gap;
use lockstep_core::id::{Gen, Lineage};
use lockstep_store::file_bytes;
use lockstep_store::layout::{File, data_offset};
use std::os::unix::fs::FileExt as _;

use super::cluster::*;
use crate::engine::*;
use crate::pool::SNAPSHOT_FILES;
use crate::pool::tests::kept::{self, BLOCKS};

const ID: SnapshotId = SnapshotId(Uuid::from_u128(9));
const VOLUME: VolumeId = VolumeId(Uuid::from_u128(8));

fn dir(cluster: &Cluster, i: u8) -> PathBuf {
    cluster.pool_dir(i).join("snapshots").join(ID.to_string())
}

fn keep(cluster: &Cluster, i: u8) {
    kept::keep(&cluster.pool_dir(i), ID, VOLUME);
}

fn spoil(cluster: &Cluster, i: u8, block: u64) {
    let data = std::fs::File::options().write(true).open(dir(cluster, i).join("data")).unwrap();
    data.write_all_at(&[0xee; 8], data_offset(block)).unwrap();
}

fn order(sources: &[u8]) -> Remake {
    Remake {
        id: ID,
        volume: VOLUME,
        blocks: BLOCKS,
        newest: Gen(9),
        pool: "default".into(),
        sources: sources.iter().map(|i| node(*i)).collect(),
        nearest: vec![SnapshotId(Uuid::from_u128(77))],
        passed_over: BTreeSet::new(),
        patience: Duration::ZERO,
    }
}

async fn remake(cluster: &Cluster, i: u8, order: Remake) -> Result<Remade, RemakeError> {
    cluster.on(i).remake_snapshot(order, Arc::default()).await
}

/// Is there nothing in the node's pool, not even what is not finished?
fn is_empty(cluster: &Cluster, i: u8) -> bool {
    std::fs::read_dir(cluster.pool_dir(i).join("snapshots")).unwrap().next().is_none()
}

fn assert_alike(cluster: &Cluster, a: u8, b: u8) {
    for name in ["about.json", "data", "tags", "regions"] {
        let read = |i| std::fs::read(dir(cluster, i).join(name)).unwrap();
        assert!(read(a) == read(b), "{name} differs");
    }
}

#[tokio::test]
async fn d4_a_copy_made_anew_is_that_of_the_others_byte_for_byte() {
    let cluster = Cluster::start(2).await;
    keep(&cluster, 1);
    let progress = Arc::<RemakeProgress>::default();
    let made = cluster.on(2).remake_snapshot(order(&[1]), Arc::clone(&progress)).await.unwrap();
    assert_eq!(made, Remade { moved_bytes: 5 * BLOCK as u64, gaps: 0 });
    assert_alike(&cluster, 1, 2);
    let looked_at = (2 * 256 + 10) * BLOCK as u64;
    assert_eq!(progress.told(), (looked_at, looked_at, made.moved_bytes));
    assert_eq!(cluster.on(2).list_snapshots().await, [ID]);
    let again = remake(&cluster, 2, order(&[1])).await.unwrap();
    assert_eq!(again, Remade::default(), "it is there");
    let new = NewReplica { source: Some(ID), ..new_replica(VOLUME, Lineage(Uuid::nil()), BLOCKS) };
    let made = cluster.on(2).create_replica(new).await;
    let unshared = matches!(made, Err(EngineError::Pool(_)));
    assert!(made.is_ok() || unshared, "a volume can be made of it: {made:?}");
}

#[tokio::test]
async fn d4_a_bad_block_is_taken_from_another_copy() {
    let cluster = Cluster::start(3).await;
    (1..=2).for_each(|i| keep(&cluster, i));
    let whole = std::fs::read(dir(&cluster, 1).join("data")).unwrap();
    spoil(&cluster, 1, 1);
    spoil(&cluster, 2, 300);
    let made = remake(&cluster, 3, order(&[1, 2])).await.unwrap();
    assert_eq!(made.gaps, 0);
    assert_eq!(std::fs::read(dir(&cluster, 3).join("data")).unwrap(), whole);
}

#[tokio::test]
async fn s9_what_no_copy_has_is_a_gap_but_not_while_one_is_silent() {
    let mut cluster = Cluster::start(3).await;
    (1..=2).for_each(|i| keep(&cluster, i));
    spoil(&cluster, 1, 1);
    cluster.kill(2).await;
    let error = remake(&cluster, 3, order(&[1, 2])).await.unwrap_err();
    assert!(matches!(error, RemakeError::Unasked { block: 1, .. }), "{error}");
    assert!(error.to_string().ends_with("waiting for node-2"), "{error}");
    let other = Remake { passed_over: BTreeSet::from([node(1)]), ..order(&[1, 2]) };
    let error = remake(&cluster, 3, other).await.unwrap_err();
    assert!(matches!(error, RemakeError::Unasked { block: 1, .. }), "another is passed over");
    assert!(is_empty(&cluster, 3));
    let lost = Remake { passed_over: BTreeSet::from([node(2)]), ..order(&[1, 2]) };
    assert_eq!(remake(&cluster, 3, lost).await.unwrap().gaps, 1);
    assert!(cluster.on(3).drop_snapshot(ID).await.unwrap());
    cluster.up(2).await;
    assert_eq!(remake(&cluster, 3, order(&[1, 2])).await.unwrap().gaps, 0, "node 2 has it");
    assert!(cluster.on(3).drop_snapshot(ID).await.unwrap());
    spoil(&cluster, 2, 1);
    assert_eq!(remake(&cluster, 3, order(&[1, 2])).await.unwrap().gaps, 1);
    let data = std::fs::read(dir(&cluster, 3).join("data")).unwrap();
    assert_eq!(Bytes::copy_from_slice(&data[BLOCK..2 * BLOCK]), gap::content(VOLUME));
    assert_eq!(data[..BLOCK], kept::content(0));
    // A gap is not given out as content either.
    let made = remake(&cluster, 2, order(&[3])).await.unwrap();
    assert_eq!(made, Remade::default(), "it is there");
    cluster.on(2).drop_snapshot(ID).await.unwrap();
    assert_eq!(remake(&cluster, 2, order(&[3])).await.unwrap().gaps, 1);
}

#[tokio::test]
async fn s9_how_many_blocks_are_gaps_is_known_of_a_copy_that_is_there() {
    let cluster = Cluster::start(2).await;
    keep(&cluster, 1);
    spoil(&cluster, 1, 1);
    spoil(&cluster, 1, 300);
    assert_eq!(remake(&cluster, 2, order(&[1])).await.unwrap().gaps, 2);
    // Whoever made it did not get to name it in the record store.
    let again = remake(&cluster, 2, order(&[1])).await.unwrap();
    assert_eq!(again, Remade { moved_bytes: 0, gaps: 2 });
}

#[tokio::test]
async fn a_volume_is_made_of_a_copy_that_had_grown_more_than_the_others() {
    let cluster = Cluster::start(1).await;
    keep(&cluster, 1);
    // Another copy had no room, so the volume did not grow.
    let about = serde_json::json!({ "volume": VOLUME, "blocks": 2 * BLOCKS });
    std::fs::write(dir(&cluster, 1).join("about.json"), about.to_string()).unwrap();
    for which in SNAPSHOT_FILES {
        let file = std::fs::File::options().write(true).open(dir(&cluster, 1).join(which.name()));
        file.unwrap().set_len(file_bytes(which, 2 * BLOCKS)).unwrap();
    }
    let new = NewReplica { source: Some(ID), ..new_replica(VOLUME, Lineage(Uuid::nil()), BLOCKS) };
    match cluster.on(1).create_replica(new).await {
        Ok(made) => {
            let ReplicaState::Open(open) = &made.state else { panic!("{made:?}") };
            assert_eq!(open.blocks, BLOCKS);
            assert_eq!(cluster.data(1, VOLUME).len() as u64, file_bytes(File::Data, BLOCKS));
        }
        // Not on every file system files share blocks.
        Err(error) => assert!(matches!(error, EngineError::Pool(_)), "{error}"),
    }
}

#[tokio::test]
async fn d4_the_last_node_is_waited_for_that_cannot_read_for_a_while() {
    let cluster = Cluster::start(2).await;
    keep(&cluster, 1);
    let (tags, away) = (dir(&cluster, 1).join("tags"), dir(&cluster, 1).join("away"));
    std::fs::rename(&tags, &away).unwrap();
    let error = remake(&cluster, 2, order(&[1])).await.unwrap_err();
    assert!(matches!(error, RemakeError::NoSource(_)), "nobody has patience: {error}");
    let engine = cluster.on(2).clone();
    let order = Remake { patience: LONG, ..order(&[1]) };
    let mut making =
        tokio::spawn(async move { engine.remake_snapshot(order, Arc::default()).await });
    let ended = timeout(Duration::from_millis(500), &mut making).await;
    assert!(ended.is_err(), "it goes on asking: {ended:?}");
    std::fs::rename(&away, &tags).unwrap();
    assert_eq!(timeout(LONG, making).await.unwrap().unwrap().unwrap().gaps, 0);
    assert_alike(&cluster, 1, 2);
}

#[tokio::test]
async fn d4_nothing_is_left_of_an_attempt_that_fails_or_is_stopped() {
    let mut cluster = Cluster::start(3).await;
    keep(&cluster, 1);
    let error = remake(&cluster, 2, order(&[3])).await.unwrap_err();
    assert!(matches!(error, RemakeError::NoSource(_)), "it has no such snapshot: {error}");
    let progress = Arc::<RemakeProgress>::default();
    progress.stop();
    let error = cluster.on(2).remake_snapshot(order(&[1]), progress).await.unwrap_err();
    assert!(matches!(error, RemakeError::Stopped), "{error}");
    let elsewhere = Remake { pool: "other".into(), ..order(&[1]) };
    let error = remake(&cluster, 2, elsewhere).await.unwrap_err();
    assert!(matches!(error, RemakeError::NoPool(_)), "{error}");
    assert!(is_empty(&cluster, 2));
    cluster.kill(1).await;
    let progress = Arc::<RemakeProgress>::default();
    let (engine, own) = (cluster.on(2).clone(), Arc::clone(&progress));
    let making = tokio::spawn(async move { engine.remake_snapshot(order(&[1]), own).await });
    wait_for("it asks", async || {
        let begun = !is_empty(&cluster, 2);
        begun.then_some(())
    })
    .await;
    progress.stop();
    let error = timeout(LONG, making).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, RemakeError::NoSource(_) | RemakeError::Stopped), "{error}");
    assert!(is_empty(&cluster, 2));
}
