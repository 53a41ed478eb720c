//! What a resync leaves alone: holes, other resyncs, and blocks that were not missed.

use super::cluster::*;
use crate::engine::*;
use lockstep_attach::Backend;
use lockstep_core::limits;
use std::os::unix::fs::MetadataExt;

/// Bytes that the data file of a copy takes on its disk.
fn taken(cluster: &Cluster, i: u8, volume: VolumeId) -> u64 {
    let dir = cluster.pool_dir(i).join("replicas").join(volume.to_string());
    std::fs::metadata(dir.join("data")).unwrap().blocks() * 512
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_stay_holes_on_a_new_copy_and_become_holes_on_an_old_one() {
    let mut cluster = Cluster::start(3).await;
    let volume = cluster.volume(64, &[1, 2], 1).await;
    let handle = cluster.attach(1, volume).await;
    // 2 MiB stay, 8 MiB are written and zeroed again, the rest is never written.
    write(&handle, 1, 0, 512).await;
    for start in (4096..6144).step_by(512) {
        write(&handle, 2, start, 512).await;
    }
    let zeroed = (4096 * BLOCK as u64, 2048 * BLOCK as u64);
    cluster.kill(2).await;
    cluster.in_sync(volume, 1).await;
    handle.discard(zeroed.0, zeroed.1, false).await.unwrap();
    handle.flush().await.unwrap();
    cluster.add_copy(volume, 3).await;
    cluster.on(1).record_changed(volume);
    cluster.up(2).await;
    cluster.in_sync(volume, 3).await;
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    for i in 2..=3 {
        assert!(cluster.data(i, volume) == cluster.data(1, volume), "copy {i} differs");
        let bytes = taken(&cluster, i, volume);
        assert!(bytes <= 3 << 20, "copy {i} takes {bytes} bytes for 2 MiB of data");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returning_copy_gets_the_blocks_that_it_missed_and_hardly_more() {
    let mut cluster = Cluster::start(2).await;
    let volume = cluster.volume(64, &[1, 2], 1).await;
    let handle = cluster.attach(1, volume).await;
    for start in (0..16384).step_by(512) {
        write(&handle, 1, start, 512).await;
    }
    handle.flush().await.unwrap();
    cluster.kill(2).await;
    cluster.in_sync(volume, 1).await;
    let missed: Vec<u64> = (0..600).map(|n| n * 27).collect();
    for block in &missed {
        write(&handle, 2, *block, 1).await;
    }
    cluster.up(2).await;
    cluster.in_sync(volume, 2).await;
    let info = cluster.on(1).primary_status(volume).await.unwrap();
    let (moved, least) = (info.core.counters.resync_bytes, 600 * BLOCK as u64);
    assert!((least..=least * 11 / 10).contains(&moved), "{moved} bytes moved for {least}");
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    assert!(cluster.data(2, volume) == cluster.data(1, volume), "copies differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_runs_only_so_many_resyncs_and_all_of_them_in_the_end() {
    let mut cluster = Cluster::start(2).await;
    let mut volumes = Vec::new();
    for _ in 0..3 * limits::RESYNC_SLOTS {
        let volume = cluster.volume(8, &[1, 2], 1).await;
        volumes.push((volume, cluster.attach(1, volume).await));
    }
    cluster.kill(2).await;
    for (volume, handle) in &volumes {
        cluster.in_sync(*volume, 1).await;
        for start in (0..2048).step_by(512) {
            write(handle, 1, start, 512).await;
        }
    }
    cluster.up(2).await;
    let mut most = 0;
    wait_for("all copies", async || {
        let primaries = cluster.on(1).list_primaries().await;
        let runs = |p: &&PrimaryInfo| p.core.replicas.values().any(|r| r.resync.is_some());
        most = most.max(primaries.iter().filter(runs).count());
        let done = |p: &PrimaryInfo| p.core.counters.resyncs_done > 0;
        primaries.iter().all(done).then_some(())
    })
    .await;
    // Each is asked in turn: one may have begun after another one was found to run.
    assert!((1..=limits::RESYNC_SLOTS + 1).contains(&most), "{most} at a time");
}

/// Two nodes with a primary each could run four resyncs to a third one, which takes but two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_the_target_of_only_so_many_resyncs() {
    let mut cluster = Cluster::start(3).await;
    let mut volumes = Vec::new();
    for n in 0..4 * limits::RESYNC_ENTRIES {
        let primary = if n % 2 == 0 { 1 } else { 2 };
        let volume = cluster.volume(8, &[primary, 3], 1).await;
        volumes.push((volume, cluster.attach(primary, volume).await));
    }
    cluster.kill(3).await;
    for (volume, handle) in &volumes {
        cluster.in_sync(*volume, 1).await;
        for start in (0..2048).step_by(512) {
            write(handle, 1, start, 512).await;
        }
    }
    cluster.up(3).await;
    let (mut most, mut refused) = (0, 0);
    wait_for("all copies", async || {
        let mut primaries = cluster.on(1).list_primaries().await;
        primaries.extend(cluster.on(2).list_primaries().await);
        let runs = |p: &&PrimaryInfo| p.core.replicas.values().any(|r| r.resync.is_some());
        most = most.max(primaries.iter().filter(runs).count());
        refused = primaries.iter().map(|p| p.core.counters.resyncs_refused).sum::<u64>();
        let done = |p: &PrimaryInfo| p.core.counters.resyncs_done > 0;
        primaries.iter().all(done).then_some(())
    })
    .await;
    // Each is asked in turn: others may have begun after one was found to run.
    assert!((1..=limits::RESYNC_ENTRIES + 2).contains(&most), "{most} at a time");
    assert!(refused > 0, "nobody had to wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_goes_from_copy_to_copy_if_the_primary_has_none() {
    let mut cluster = Cluster::start(5).await;
    let volume = cluster.volume(64, &[1, 2, 3], 1).await;
    let handle = cluster.attach(4, volume).await;
    for start in (0..4096).step_by(512) {
        write(&handle, 1, start, 512).await;
    }
    cluster.kill(3).await;
    cluster.in_sync(volume, 2).await;
    let missed: Vec<u64> = (0..300).map(|n| n * 13).collect();
    for block in &missed {
        write(&handle, 2, *block, 1).await;
    }
    cluster.up(3).await;
    cluster.in_sync(volume, 3).await;
    let counters = cluster.on(4).primary_status(volume).await.unwrap().core.counters;
    let (moved, least) = (counters.resync_bytes, 300 * BLOCK as u64);
    assert!((least..=least * 11 / 10).contains(&moved), "{moved} bytes moved for {least}");
    assert_eq!((counters.direct_bytes, counters.pulls_failed), (moved, 0));
    // A new copy gets everything, holes excepted, in the same way.
    cluster.add_copy(volume, 5).await;
    cluster.on(4).record_changed(volume);
    cluster.in_sync(volume, 4).await;
    let counters = cluster.on(4).primary_status(volume).await.unwrap().core.counters;
    assert_eq!(counters.rebuild_bytes, 4096 * BLOCK as u64);
    assert_eq!(counters.direct_bytes, moved + counters.rebuild_bytes);
    cluster.on(4).detach(volume, false, LONG).await.unwrap();
    for i in [2, 3, 5] {
        assert!(cluster.data(i, volume) == cluster.data(1, volume), "copy {i} differs");
    }
}
