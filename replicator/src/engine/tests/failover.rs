//! What a volume is for: it goes on when nodes go away.

use super::cluster::*;
use crate::engine::*;
use crate::pool::tests::mount::Mount;
use lockstep_attach::{Backend, Errno, ZeroMode};
use lockstep_core::record::ReplicaState as Copy;
use std::os::unix::fs::FileExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_read_and_is_on_every_copy() {
    let cluster = Cluster::start(3).await;
    let volume = cluster.volume(8, &[1, 2, 3], 2).await;
    let handle = cluster.attach(1, volume).await;
    assert_eq!(handle.info().size_bytes, 8 << 20);
    assert_eq!(read(&handle, 100, 2).await, vec![0; 2 * BLOCK], "new volumes are zero");
    write(&handle, 1, 0, 1).await;
    write(&handle, 2, 250, 20).await;
    write(&handle, 3, 512, 600).await;
    let zero = ZeroMode { fua: true, ..ZeroMode::default() };
    handle.zero(600 * BLOCK as u64, 10 * BLOCK as u64, zero).await.unwrap();
    handle.discard(700 * BLOCK as u64, BLOCK as u64, false).await.unwrap();
    handle.flush().await.unwrap();
    assert_eq!(read(&handle, 0, 1).await, pattern(1, 0));
    let expected: Vec<u8> = (250..270).flat_map(|b| pattern(2, b)).collect();
    assert_eq!(read(&handle, 250, 20).await, expected);
    assert_eq!(read(&handle, 600, 10).await, vec![0; 10 * BLOCK]);
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    let record = cluster.record(volume).await;
    assert!(record.clean && record.primary.is_none(), "{record:?}");
    let copies: Vec<Vec<u8>> = (1..=3).map(|i| cluster.data(i, volume)).collect();
    assert!(copies[0] == copies[1] && copies[1] == copies[2], "copies differ");
    assert_eq!(&copies[0][..BLOCK], pattern(1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_goes_on_without_a_killed_copy_and_takes_it_back() {
    let mut cluster = Cluster::start(3).await;
    let volume = cluster.volume(8, &[1, 2, 3], 2).await;
    let handle = cluster.attach(1, volume).await;
    write(&handle, 1, 0, 300).await;
    cluster.kill(3).await;
    write(&handle, 2, 10, 5).await;
    cluster.in_sync(volume, 2).await;
    write(&handle, 3, 600, 5).await;
    cluster.up(3).await;
    cluster.in_sync(volume, 3).await;
    let info = cluster.on(1).primary_status(volume).await.unwrap();
    let moved = info.core.counters.resync_bytes;
    assert!((10 * 4096..=100 * 4096).contains(&moved), "only what was missed: {moved} bytes");
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    assert!(cluster.data(3, volume) == cluster.data(1, volume), "copies differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_replaced_elsewhere_with_nothing_lost() {
    let mut cluster = Cluster::start(3).await;
    let volume = cluster.volume(8, &[1, 2, 3], 2).await;
    let handle = cluster.attach(1, volume).await;
    for n in 0..50 {
        write(&handle, n, n * 7, 3).await;
    }
    cluster.kill(1).await;
    let error = handle.flush().await.unwrap_err();
    assert!(matches!(error, Errno::Shutdown | Errno::Io), "{error:?}");
    let second = cluster.attach(2, volume).await;
    for n in 0..50 {
        assert_eq!(read(&second, n * 7, 1).await, pattern(n, n * 7));
    }
    write(&second, 99, 1, 1).await;
    second.flush().await.unwrap();
    cluster.up(1).await;
    cluster.in_sync(volume, 3).await;
    cluster.on(2).detach(volume, false, LONG).await.unwrap();
    let copies: Vec<Vec<u8>> = (1..=3).map(|i| cluster.data(i, volume)).collect();
    assert!(copies[0] == copies[1] && copies[1] == copies[2], "copies differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_taken_over_fails_all_io_and_says_so() {
    let cluster = Cluster::start(3).await;
    let volume = cluster.volume(4, &[1, 2, 3], 2).await;
    let old = cluster.attach(1, volume).await;
    write(&old, 1, 0, 1).await;
    let new = cluster.attach(2, volume).await;
    let offset = 0;
    let data = pattern(7, 0).into();
    assert_eq!(old.write(offset, data, false).await, Err(Errno::Io));
    assert_eq!(old.flush().await, Err(Errno::Io));
    assert_eq!(*old.phase().borrow(), Phase::Fenced);
    let info = cluster.on(1).primary_status(volume).await.unwrap();
    assert_eq!(info.core.phase, Phase::Fenced);
    assert_eq!(read(&new, 0, 1).await, pattern(1, 0));
    // Attaching again is a new claim, and now the other one is fenced.
    let again = cluster.attach(1, volume).await;
    assert!(again.instance() != old.instance());
    assert_eq!(new.flush().await, Err(Errno::Io));
    assert_eq!(read(&again, 0, 1).await, pattern(1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_copy_is_filled_while_the_volume_is_used() {
    let cluster = Cluster::start(4).await;
    let volume = cluster.volume(8, &[1, 2], 1).await;
    let handle = cluster.attach(1, volume).await;
    write(&handle, 1, 0, 1000).await;
    let rid = cluster.add_copy(volume, 4).await;
    assert!(cluster.on(1).record_changed(volume));
    for n in 2..40 {
        write(&handle, n, n * 11, 4).await;
    }
    cluster.in_sync(volume, 3).await;
    assert!(cluster.record(volume).await.is_in_sync(rid));
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    assert!(cluster.data(4, volume) == cluster.data(1, volume), "copies differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_with_no_copy_on_its_node_is_served_all_the_same() {
    let cluster = Cluster::start(3).await;
    let volume = cluster.volume(4, &[2, 3], 1).await;
    let handle = cluster.attach(1, volume).await;
    write(&handle, 1, 5, 5).await;
    assert_eq!(read(&handle, 5, 1).await, pattern(1, 5));
    let status = cluster.on(2).replica_status(volume).await.unwrap();
    let ReplicaState::Open(open) = status.state else { panic!("{status:?}") };
    assert_eq!(open.primary_node, Some(node(1)));
    assert!(open.primary_heard_ms.is_some_and(|ms| ms < 2000), "{open:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_record_store_stops_no_write() {
    let mut cluster = Cluster::start(3).await;
    let volume = cluster.volume(4, &[1, 2, 3], 2).await;
    let handle = cluster.attach(1, volume).await;
    cluster.meta.cut_off(true);
    write(&handle, 1, 0, 5).await;
    handle.flush().await.unwrap();
    // A member is lost: now the record has to change before anything is acknowledged.
    cluster.kill(3).await;
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { write(&handle, 2, 0, 5).await }
    });
    let mut phase = handle.phase();
    timeout(LONG, phase.wait_for(|p| *p == Phase::Suspended)).await.unwrap().unwrap();
    assert!(!waiting.is_finished());
    let info = cluster.on(1).primary_status(volume).await.unwrap();
    assert!(info.waits_for.contains("node-3"), "{}", info.waits_for);
    cluster.meta.cut_off(false);
    timeout(LONG, waiting).await.unwrap().unwrap();
    cluster.in_sync(volume, 2).await;
    let out = cluster.record(volume).await;
    assert!(out.replicas.iter().any(|r| matches!(r.state, Copy::Out { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_what_cannot_be_attached_says_what_it_waits_for() {
    let mut cluster = Cluster::start(2).await;
    let volume = cluster.volume(4, &[1, 2], 1).await;
    cluster.kill(2).await;
    cluster.kill(1).await;
    cluster.up(3).await;
    let handle = cluster.on(3).attach(volume).unwrap();
    let error = handle.served(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, EngineError::AttachTimeout { .. }), "{error}");
    let told = async || {
        let info = cluster.on(3).primary_status(volume).await?;
        info.waits_for.contains("node-1").then_some(info.waits_for)
    };
    let why = wait_for("a reason", told).await;
    assert!(why.contains("node-2"), "{why}");
    // The attempt goes on, and succeeds when a copy is back.
    cluster.up(2).await;
    handle.served(LONG).await.unwrap();
    cluster.on(3).detach(volume, true, LONG).await.unwrap();
    assert!(cluster.on(3).attached(volume).is_none());
    assert!(handle.flush().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_are_idempotent_and_end_once() {
    let cluster = Cluster::start(1).await;
    let volume = cluster.volume(4, &[1], 1).await;
    let first = cluster.attach(1, volume).await;
    let second = cluster.attach(1, volume).await;
    assert_eq!(first.instance(), second.instance());
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    let error = cluster.on(1).detach(volume, false, LONG).await.unwrap_err();
    assert!(matches!(error, EngineError::NotAttached(_)), "{error}");
    assert_eq!(first.flush().await, Err(Errno::Shutdown));
    let unknown = VolumeId(Uuid::new_v4());
    let handle = cluster.on(1).attach(unknown).unwrap();
    let error = handle.served(Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, EngineError::Fenced { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_closes_volumes_in_good_order() {
    let cluster = Cluster::start(2).await;
    let volume = cluster.volume(4, &[1, 2], 1).await;
    let handle = cluster.attach(1, volume).await;
    write(&handle, 1, 0, 10).await;
    assert_eq!(cluster.on(1).shutdown(LONG).await, vec![]);
    assert!(cluster.record(volume).await.clean);
    assert!(matches!(cluster.on(1).attach(volume), Err(EngineError::Stopped)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotten_block_is_read_from_another_copy() {
    let mut cluster = Cluster::start(2).await;
    let volume = cluster.volume(4, &[1, 2], 1).await;
    let handle = cluster.attach(1, volume).await;
    write(&handle, 1, 0, 8).await;
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    cluster.kill(1).await;
    let data = cluster.pool_dir(1).join("replicas").join(volume.to_string()).join("data");
    let file = std::fs::OpenOptions::new().write(true).open(data).unwrap();
    file.write_all_at(&[0xAA; 10], 3 * BLOCK as u64).unwrap();
    file.sync_all().unwrap();
    cluster.up(1).await;
    let handle = cluster.attach(1, volume).await;
    for _ in 0..4 {
        assert_eq!(read(&handle, 3, 1).await, pattern(1, 3));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_without_space_is_left_out_and_comes_back_when_there_is_some() {
    const NAME: &str = "a_copy_without_space_is_left_out_and_comes_back_when_there_is_some";
    let Some(mount) = Mount::tmpfs("size=3m") else {
        eprintln!("SKIPPED {NAME}: mounting needs root");
        return;
    };
    let mut cluster = Cluster::start(2).await;
    let mut small = cluster.config(3);
    small.pools[0].dir = mount.path().to_owned();
    // Promised more than there is, as an operator may.
    small.pools[0].capacity_bytes = Some(1 << 30);
    cluster.up_with(3, small).await;
    let volume = cluster.volume(8, &[1, 2, 3], 2).await;
    let handle = cluster.attach(1, volume).await;
    write(&handle, 1, 0, 1024).await;
    cluster.in_sync(volume, 2).await;
    let info = cluster.on(3).replica_status(volume).await.unwrap();
    let ReplicaState::Open(open) = info.state else { panic!("{info:?}") };
    assert!(open.fault.is_some_and(|why| why.contains("space")));
    write(&handle, 2, 0, 10).await;
    handle.flush().await.unwrap();
    mount.remount("size=64m");
    cluster.in_sync(volume, 3).await;
    cluster.on(1).detach(volume, false, LONG).await.unwrap();
    let dir = mount.path().join("replicas").join(volume.to_string());
    assert!(std::fs::read(dir.join("data")).unwrap() == cluster.data(1, volume), "copies differ");
    cluster.kill(3).await;
}
