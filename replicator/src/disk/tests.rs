use super::threads::Class;
use super::*;
use crate::disk::Home;
use bytes::Bytes;
use lockstep_core::id::VolumeId;
use lockstep_store::layout::File;
use lockstep_store::{DiskError, DiskOpKind};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, mpsc};
use tempfile::TempDir;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

fn files(dir: &TempDir, direct: bool) -> ReplicaFiles {
    for file in File::ALL {
        let file = std::fs::File::create(dir.path().join(file.name())).unwrap();
        file.set_len(MIB).unwrap();
    }
    ReplicaFiles::open(dir.path(), direct).unwrap()
}

fn read(files: &ReplicaFiles, file: File, offset: u64, len: u32) -> Bytes {
    files.execute(&DiskOpKind::Read { file, offset, len }).unwrap()
}

#[test]
fn what_is_written_is_read_in_every_way_of_writing() {
    for direct in [false, true] {
        let dir = TempDir::new().unwrap();
        let files = files(&dir, direct);
        let memory = Bytes::from(vec![7_u8; 3 * 4096 + 1]);
        for (i, durable) in [(0_u64, false), (1, true)] {
            for (j, file) in File::ALL.into_iter().enumerate() {
                let offset = (i * 4 + j as u64) * 8192;
                // One byte off a boundary: such a buffer must be copied for direct I/O.
                for skip in [0_usize, 1] {
                    let data = memory.slice(skip..skip + 4096);
                    let offset = offset + skip as u64 * 4096;
                    files
                        .execute(&DiskOpKind::Write { file, offset, data: data.clone(), durable })
                        .unwrap();
                    assert_eq!(read(&files, file, offset, 4096), data);
                }
            }
        }
        files.execute(&DiskOpKind::Sync { file: File::Data }).unwrap();
    }
}

#[test]
fn direct_io_is_used_where_the_file_system_can() {
    let dir = TempDir::new().unwrap();
    assert_eq!(files(&dir, false).direct(), DirectIo::Off);
    let direct = files(&dir, true).direct();
    assert!(matches!(direct, DirectIo::On | DirectIo::Refused));
}

#[test]
fn zeroing_reads_as_zeroes_and_gives_space_back_only_if_allowed() {
    let dir = TempDir::new().unwrap();
    let files = files(&dir, true);
    let data = Bytes::from(vec![7; 256 * 4096]);
    let file = File::Data;
    files.execute(&DiskOpKind::Write { file, offset: 0, data, durable: true }).unwrap();
    let blocks = || std::fs::metadata(dir.path().join("data")).unwrap().blocks();
    let full = blocks();
    let zero = |offset, len, deallocate| {
        files.execute(&DiskOpKind::Zero { file, offset, len, deallocate }).unwrap();
        files.execute(&DiskOpKind::Sync { file }).unwrap();
    };
    zero(4096, 8192, false);
    assert_eq!(blocks(), full);
    zero(16384, 65536, true);
    assert!(blocks() < full, "{} of {full}", blocks());
    let all = read(&files, file, 0, 1 << 20);
    for (i, block) in all.chunks(4096).enumerate() {
        let zeroed = (1..3).contains(&i) || (4..20).contains(&i);
        assert!(block.iter().all(|b| *b == if zeroed { 0 } else { 7 }), "block {i}");
    }
    assert_eq!(files.len(file).unwrap(), MIB);
}

#[test]
fn a_read_beyond_the_end_is_an_error() {
    let dir = TempDir::new().unwrap();
    let op = DiskOpKind::Read { file: File::Data, offset: MIB, len: 4096 };
    assert_eq!(files(&dir, true).execute(&op), Err(DiskError::Io));
}

#[test]
fn a_full_disk_is_told_as_such() {
    let write = |file| DiskOpKind::Write {
        file,
        offset: 0,
        data: Bytes::from(vec![1; 4096]),
        durable: false,
    };
    // Linux has a device that is always full.
    let dir = TempDir::new().unwrap();
    drop(files(&dir, false));
    std::fs::remove_file(dir.path().join("data")).unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("data")).unwrap();
    let files = ReplicaFiles::open(dir.path(), false).unwrap();
    assert_eq!(files.execute(&write(File::Data)), Err(DiskError::NoSpace));
}

#[test]
fn thick_data_keeps_its_space_and_grows_with_all_of_it() {
    for thick in [false, true] {
        let dir = TempDir::new().unwrap();
        let home = Home {
            pool: Arc::new(crate::pool::tests::open(&dir.path().join("pool")).unwrap()),
            volume: VolumeId(Uuid::from_u128(7)),
            blocks: Arc::default(),
            thick,
            room: Arc::new(|_| true),
        };
        let files = files(&dir, false).at_home(home);
        let taken = || std::fs::metadata(dir.path().join("data")).unwrap().blocks() * 512;
        let data = Bytes::from(vec![1; 1 << 20]);
        let write = DiskOpKind::Write { file: File::Data, offset: 0, data, durable: false };
        files.execute(&write).unwrap();
        let (file, offset, len) = (File::Data, 0, MIB);
        files.execute(&DiskOpKind::Zero { file, offset, len, deallocate: true }).unwrap();
        assert!(read(&files, file, 0, 4096).iter().all(|b| *b == 0));
        assert_eq!(taken() >= MIB, thick, "discarded");
        files.execute(&DiskOpKind::Extend { blocks: 1024 }).unwrap();
        assert_eq!(taken() >= 4 * MIB, thick, "grown");
    }
}

#[test]
fn flushes_leave_threads_for_reads_and_writes() {
    let threads = Threads::start(4).unwrap();
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    for _ in 0..8 {
        let held = std::sync::Arc::clone(&held);
        threads.submit(Class::Flush, move || {
            let _ = held.lock().unwrap().recv();
        });
    }
    let (done, finished) = mpsc::channel();
    for i in 0..100 {
        let done = done.clone();
        threads.submit(Class::Transfer, move || done.send(i).unwrap());
    }
    let mut seen: Vec<i32> = (0..100).map(|_| finished.recv().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    drop(release);
}

#[test]
fn queued_work_is_done_before_the_threads_end() {
    let threads = Threads::start(2).unwrap();
    let (done, finished) = mpsc::channel();
    for i in 0..100 {
        let done = done.clone();
        let class = if i % 2 == 0 { Class::Flush } else { Class::Transfer };
        threads.submit(class, move || done.send(i).unwrap());
    }
    drop((threads, done));
    assert_eq!(finished.iter().count(), 100);
}
