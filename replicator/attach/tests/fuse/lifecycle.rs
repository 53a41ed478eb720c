//! From open to the end, in one process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lockstep_attach::device::{DeviceError, Door};
use lockstep_attach::memory::{Gated, MemoryBackend};

use crate::world::{MIB, World, away, is_bound, outcome, pattern, possible, run, sys, wait_until};

async fn a_file_system_lives_on_it(test: &str, fs: &str) {
    if !possible(test, &[&format!("mkfs.{fs}"), "mount", "umount", "fstrim"]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(320 * MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let (path, dir) = (device.path().to_owned(), world.mount_point());
    for (fact, value) in [
        ("queue/logical_block_size", "4096"),
        ("queue/physical_block_size", "4096"),
        ("queue/minimum_io_size", "4096"),
        ("queue/discard_granularity", "4096"),
        ("queue/write_cache", "write back"),
        ("loop/dio", "1"),
        ("ro", "0"),
    ] {
        assert_eq!(sys(&path, fact), value, "{fact}");
    }
    run(&format!("mkfs.{fs}"), &[&"-q", &path]).await;
    run("mount", &[&path, &dir]).await;
    let data = pattern(24 << 20, 7);
    let (file, content) = (dir.join("file"), data.clone());
    away(move || {
        std::fs::write(&file, content).unwrap();
        File::open(file).unwrap().sync_all().unwrap();
    })
    .await;
    assert!(backend.flushes() > 0, "fsync reaches the back end");
    match device.close().await {
        Err(DeviceError::Busy { by, .. }) => assert!(by.contains("mnt"), "{by}"),
        other => panic!("closed though it is mounted: {other:?}"),
    }
    run("umount", &[&dir]).await;
    assert_eq!(backend.unflushed_blocks(), 0, "unmounting makes all durable");
    run("mount", &[&path, &dir]).await;
    let file = dir.join("file");
    assert!(away(move || std::fs::read(file).unwrap()).await == data, "the content is the same");
    let before = backend.allocated_blocks();
    let file = dir.join("file");
    away(move || std::fs::remove_file(file).unwrap()).await;
    // Some file systems give space back only when they are quiet.
    run("umount", &[&dir]).await;
    run("mount", &[&path, &dir]).await;
    run("fstrim", &[&dir]).await;
    let freed = before.saturating_sub(backend.allocated_blocks());
    assert!(freed > 20 << 8, "trimming gave back {freed} blocks only");
    run("umount", &[&dir]).await;
    device.close().await.unwrap();
    assert!(!is_bound(&path), "the loop device is free again");
    assert_eq!(world.keeper.list().unwrap(), [""; 0]);
    assert!(!world.path("fuse/disk").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_lives_on_it() {
    a_file_system_lives_on_it("ext4_lives_on_it", "ext4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_lives_on_it() {
    a_file_system_lives_on_it("xfs_lives_on_it", "xfs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discards_and_zeroes_reach_the_back_end() {
    if !possible("discards_and_zeroes_reach_the_back_end", &["blkdiscard"]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(64 * MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let path = device.path().to_owned();
    let data = pattern(8 << 20, 3);
    let (target, content) = (path.clone(), data.clone());
    away(move || {
        let file = File::options().write(true).open(target).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
    })
    .await;
    assert_eq!(backend.allocated_blocks(), 2048);
    run("blkdiscard", &[&"--offset", &"0", &"--length", &"1048576", &path]).await;
    assert_eq!(backend.allocated_blocks(), 1792);
    run("blkdiscard", &[&"-z", &"--offset", &"1048576", &"--length", &"1048576", &path]).await;
    let mut expected = data;
    expected.get_mut(..2 << 20).unwrap().fill(0);
    let read = away(move || {
        let mut bytes = vec![1; 8 << 20];
        let file = File::options().read(true).open(path).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    assert!(read.await == expected);
    device.close().await.unwrap();
}

/// Reads or writes one block at `offset` past the page cache.
fn direct(path: &Path, offset: u64, write: Option<u8>) -> io::Result<u8> {
    let flags = nix::libc::O_DIRECT;
    let file = File::options().read(true).write(write.is_some()).custom_flags(flags).open(path)?;
    let mut room = vec![0; 8192];
    let start = room.as_ptr().align_offset(4096);
    let block = room.get_mut(start..start + 4096).unwrap();
    if let Some(byte) = write {
        block.fill(byte);
        file.write_all_at(block, offset)?;
    } else {
        file.read_exact_at(block, offset)?;
    }
    Ok(block[0])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_through_device_needs_no_flush() {
    if !possible("a_write_through_device_needs_no_flush", &[]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(MIB));
    let device = world.open(&backend, |shape| shape.write_through = true).await.unwrap();
    let path = device.path().to_owned();
    away(move || {
        direct(&path, 4096, Some(7)).unwrap();
        assert_eq!(direct(&path, 4096, None).unwrap(), 7);
    })
    .await;
    assert_eq!(backend.unflushed_blocks(), 0);
    device.close().await.unwrap();
    assert!(backend.flushes() <= 1, "only the first flush may have something to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_device_is_only_read() {
    if !possible("a_read_only_device_is_only_read", &[]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(MIB));
    let device = world.open(&backend, |shape| shape.read_only = true).await.unwrap();
    let path = device.path().to_owned();
    assert_eq!(sys(&path, "ro"), "1");
    away(move || {
        assert_eq!(direct(&path, 0, None).unwrap(), 0);
        assert!(direct(&path, 0, Some(1)).is_err());
    })
    .await;
    assert_eq!(backend.allocated_blocks(), 0);
    device.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_grows_while_it_is_used() {
    if !possible("it_grows_while_it_is_used", &["blockdev"]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(Gated::with_room(16 * MIB, 64 * MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let path = device.path().to_owned();
    assert_eq!(run("blockdev", &[&"--getsize64", &path]).await.trim(), "16777216");
    backend.grow(64 * MIB);
    device.resize(64 * MIB).await.unwrap();
    assert_eq!(run("blockdev", &[&"--getsize64", &path]).await.trim(), "67108864");
    let target = path.clone();
    away(move || {
        direct(&target, 63 * MIB, Some(9)).unwrap();
        assert_eq!(direct(&target, 63 * MIB, None).unwrap(), 9);
    })
    .await;
    // The token tells the old size; whoever takes it over shows the new one.
    device.release().await;
    let device = world.door.resume(device.token().clone(), Arc::clone(&backend)).await.unwrap();
    assert_eq!(run("blockdev", &[&"--getsize64", &path]).await.trim(), "67108864");
    device.close().await.unwrap();
}

/// Writes and reads blocks at the front of a device, over and over, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(path: &Path, count: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = |number: u64| {
            let (path, stop) = (path.to_owned(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    direct(&path, number * 4096, Some(1)).unwrap();
                }
            })
        };
        let threads = (0..count).map(begin).collect();
        Self { stop, threads }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        away(move || self.threads.into_iter().for_each(|thread| thread.join().unwrap())).await;
    }
}

/// The kernel throws away a size that it was told while it was asked for if a write has ended
/// meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_grows_although_it_is_written_meanwhile() {
    if !possible("it_grows_although_it_is_written_meanwhile", &["stat"]) {
        return;
    }
    const TIMES: u64 = 200;
    let world = World::new();
    let backend = Arc::new(Gated::with_room(MIB, (TIMES + 1) * MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let file = world.path("fuse/disk");
    let load = Load::start(device.path(), 8);
    for size_mib in 2..=TIMES + 1 {
        backend.grow(size_mib * MIB);
        device.resize(size_mib * MIB).await.unwrap();
        let sectors = sys(device.path(), "size").parse::<u64>().unwrap();
        assert_eq!(sectors / 2048, size_mib, "the loop device stays small");
        // What the kernel holds for true, without its asking once more.
        let known = run("stat", &[&"--cached=always", &"--format=%s", &file]).await;
        let known = known.trim().parse::<u64>().unwrap();
        assert_eq!(known / MIB, size_mib, "the file stays small");
    }
    load.end().await;
    device.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_has_it_open_is_not_cut_off() {
    if !possible("somebody_who_has_it_open_is_not_cut_off", &[]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let path = device.path().to_owned();
    let user = path.clone();
    let file = away(move || File::options().read(true).write(true).open(user).unwrap()).await;
    assert!(matches!(device.close().await, Err(DeviceError::Busy { .. })));
    let file = away(move || {
        file.write_all_at(&[5; 4096], 0).unwrap();
        file.sync_all().unwrap();
        file
    })
    .await;
    assert!(is_bound(&path) && backend.allocated_blocks() == 1);
    away(move || drop(file)).await;
    assert!(is_bound(&path), "it does not go when its user goes");
    device.close().await.unwrap();
    assert!(!is_bound(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_gets_an_error_when_it_fails() {
    if !possible("whoever_waits_gets_an_error_when_it_fails", &["mkfs.ext4", "mount", "umount"]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(Gated::new(64 * MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let (path, dir) = (device.path().to_owned(), world.mount_point());
    run("mkfs.ext4", &[&"-q", &path]).await;
    run("mount", &[&path, &dir]).await;
    backend.shut();
    let target = path.clone();
    let reader = tokio::task::spawn_blocking(move || direct(&target, 32 * MIB, None));
    let file = dir.join("file");
    let writer = tokio::task::spawn_blocking(move || {
        std::fs::write(&file, [1; 4096])?;
        File::open(file)?.sync_all()
    });
    wait_until("both wait", || backend.waiting() >= 2).await;
    let begun = Instant::now();
    device.fail().await;
    let error = reader.await.unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    assert!(writer.await.unwrap().is_err());
    // Milliseconds, where nothing else is going on.
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    assert!(is_bound(&path), "who has it open keeps it, as a device that fails");
    run("umount", &[&dir]).await;
    wait_until("the device is gone", || !is_bound(&path)).await;
    assert_eq!(world.keeper.list().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_device_waits_for_its_next_server() {
    if !possible("a_released_device_waits_for_its_next_server", &[]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(Gated::new(16 * MIB));
    let mut device = world.open(&backend, |_| {}).await.unwrap();
    let path = device.path().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, target) = (Arc::clone(&stop), path.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let mut written = 0;
        while !asked.load(Ordering::SeqCst) {
            let byte = u8::try_from(written % 251).unwrap();
            direct(&target, written % 4096 * 4096, Some(byte)).unwrap();
            written += 1;
        }
        written
    });
    for round in 1..=5 {
        let seen = backend.memory().allocated_blocks();
        let enough = || backend.memory().allocated_blocks() > seen.min(4000);
        wait_until("writes go on", enough).await;
        // A release finishes what is under way, so nobody may be held for good.
        device.release().await;
        assert_eq!(backend.waiting(), 0, "round {round}");
        let token = device.token().clone();
        drop(device);
        device = world.door.resume(token, Arc::clone(&backend)).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let written = writer.await.unwrap();
    away(move || {
        for at in written.saturating_sub(4096)..written {
            let byte = u8::try_from(at % 251).unwrap();
            assert_eq!(direct(&path, at % 4096 * 4096, None).unwrap(), byte, "write {at}");
        }
    })
    .await;
    device.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_swept_away() {
    if !possible("what_nobody_knows_is_swept_away", &["mount"]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let (path, token) = (device.path().to_owned(), device.token().clone());
    // As a crash: the keeper has the connection, and nobody serves it.
    drop(device);
    let sweep = |known: &[&str]| {
        let known = known.iter().map(ToString::to_string).collect();
        <_ as Door<MemoryBackend>>::sweep(&world.door, known)
    };
    sweep(&[]).await.unwrap();
    assert!(is_bound(&path), "its maker, which is this process, lives");
    let kept = world.keeper.fetch("disk").unwrap().unwrap();
    world.keeper.keep("disk", "served 0 0", kept.fd.as_fd()).unwrap();
    drop(kept);
    sweep(&["disk"]).await.unwrap();
    assert!(is_bound(&path), "what is known stays");
    sweep(&[]).await.unwrap();
    assert!(!is_bound(&path));
    assert!(!run("mount", &[]).await.contains(world.dir.path().to_str().unwrap()));
    let lost = world.door.resume(token.clone(), Arc::clone(&backend)).await;
    assert!(matches!(lost, Err(DeviceError::Lost { .. })));
    <_ as Door<MemoryBackend>>::end(&world.door, token).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_ended_though_nobody_serves_it() {
    if !possible("a_device_is_ended_though_nobody_serves_it", &[]) {
        return;
    }
    let world = World::new();
    let backend = Arc::new(MemoryBackend::new(MIB));
    let device = world.open(&backend, |_| {}).await.unwrap();
    let (path, token) = (device.path().to_owned(), device.token().clone());
    drop(device);
    let target = path.clone();
    let reader = tokio::task::spawn_blocking(move || direct(&target, 0, None));
    wait_until("the reader waits", || sys(&path, "inflight") != "0        0").await;
    <_ as Door<MemoryBackend>>::end(&world.door, token).await.unwrap();
    let error = reader.await.unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    wait_until("the device is gone", || !is_bound(&path)).await;
    assert!(outcome("true", &[]).await.status.success());
}
