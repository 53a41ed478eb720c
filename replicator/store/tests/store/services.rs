//! Growing, and snapshots: what must be done before what, and what is found afterwards.

use lockstep_core::id::{Gen, SnapshotId, Token};
use lockstep_core::store::{StoreError, StoreOp, StoreReply};
use lockstep_store::{DiskError, File, Tuning, format_clone};
use uuid::Uuid;

use crate::disk::Disk;
use crate::driver::{Driver, blocks, done, open, write};
use crate::twin::content;
use crate::world::identity;

const SIZE: u64 = 3 * 256 + 10;
const ID: SnapshotId = SnapshotId(Uuid::from_u128(9));

fn plain() -> Tuning {
    Tuning { ahead: 0, ..Tuning::default() }
}

fn driver() -> Driver {
    Driver::new(SIZE, plain())
}

/// What is read of these blocks, as the value of each.
fn read(driver: &mut Driver, start: u64, count: u32) -> Result<Vec<u32>, StoreError> {
    match driver.get(StoreOp::Read { blocks: blocks(start, count) }) {
        Ok(StoreReply::Data(payload)) => {
            let values = payload.data.chunks(4096).map(crate::twin::value_of);
            Ok(values.map(|value| value.expect("a value")).collect())
        }
        Ok(_) => Err(StoreError::Io),
        Err(error) => Err(error),
    }
}

/// A store on the files of a snapshot, as a clone has them.
fn cloned(kept: &Disk, size: u64) -> Driver {
    let disk = kept.clone_of(size, format_clone(identity(), size, [0; 16]));
    let (store, recovered) = open(&disk, 0, plain()).expect("a clone opens");
    Driver { disk, store, recovered, now: lockstep_core::id::Tick(0) }
}

#[test]
fn t10_files_grow_before_the_superblock_says_so_and_that_before_the_answer() {
    let mut driver = driver();
    driver.ask(1, StoreOp::Extend { blocks: SIZE + 600 });
    assert_eq!(driver.wanted(), ["extend"]);
    assert!(driver.answers().is_empty());
    driver.run("extend");
    assert_eq!(driver.wanted(), ["superblock"]);
    driver.run("superblock");
    assert!(driver.answers().is_empty(), "one place may rot");
    driver.run("superblock");
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(driver.get(write(SIZE + 500, 3, 2, 7)), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    assert_eq!(driver.recovered.blocks, SIZE + 600);
    assert_eq!(read(&mut driver, SIZE + 499, 3), Ok(vec![0, 7, 7]));
    // What is there already is answered when it is durable, which a write of the superblock shows.
    assert_eq!(driver.get(StoreOp::Extend { blocks: SIZE }), Ok(StoreReply::Done));
    assert_eq!(driver.store.superblock().blocks, SIZE + 600);
}

#[test]
fn without_room_nothing_changes_and_the_store_goes_on() {
    let mut driver = driver();
    driver.ask(1, StoreOp::Extend { blocks: SIZE + 600 });
    driver.fail("extend", DiskError::NoSpace);
    assert_eq!(driver.answers(), [(Token(1), Err(StoreError::NoSpace))]);
    assert_eq!(driver.store.superblock().blocks, SIZE);
    assert_eq!(driver.get(write(5, 1, 2, 7)), Ok(StoreReply::Done));
    driver.ask(2, StoreOp::Extend { blocks: SIZE + 600 });
    driver.fail("extend", DiskError::Io);
    assert_eq!(driver.answers(), [(Token(2), Err(StoreError::Io))]);
    assert!(driver.store.status().faulted);
}

#[test]
fn the_last_region_grows_with_the_volume_while_it_is_cleaned() {
    let mut driver = driver();
    assert_eq!(driver.get(write(768, 10, 2, 7)), Ok(StoreReply::Done));
    driver.release(768, 10);
    driver.reopen(0, plain());
    driver.store.note(driver.now, lockstep_core::store::StoreNote::Resolve);
    driver.ask(1, StoreOp::CleanAll);
    // What was found is written again first.
    driver.run("log");
    // Its checksums are computed from data that was read before it grew.
    assert_eq!(driver.wanted(), ["read"]);
    let (id, result) = driver.disk.run(0);
    assert_eq!(driver.get(StoreOp::Extend { blocks: 1024 }), Ok(StoreReply::Done));
    driver.store.done(driver.now, id, result);
    driver.settle();
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(read(&mut driver, 776, 4), Ok(vec![7, 7, 0, 0]));
}

#[test]
fn d2_a_copy_has_all_tags_though_the_disk_has_not() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 4, 3, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.get(write(300, 1, 3, 8)), Ok(StoreReply::Done));
    driver.ask(1, StoreOp::Snapshot { id: ID });
    assert_eq!(driver.wanted(), ["snapshot"], "guests wait: nothing else is done");
    driver.run("snapshot");
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(driver.wanted(), ["keep tags"]);
    // Guests go on.
    driver.ask(2, write(1, 1, 4, 9));
    driver.run("write");
    assert_eq!(driver.answers(), [done(2)]);
    driver.ask(3, StoreOp::Seal { id: ID });
    driver.run("keep tags");
    assert!(driver.answers().is_empty());
    driver.run("seal snapshot");
    assert_eq!(driver.answers(), [done(3)]);
    assert_eq!(driver.active(), [0, 1], "what may be in doubt after a crash stays so");

    let kept = driver.disk.kept(ID).expect("it was taken").clone();
    let mut clone = cloned(&kept, SIZE);
    assert!(clone.recovered.unresolved.is_empty() && !clone.recovered.fresh);
    assert_eq!(read(&mut clone, 0, 5), Ok(vec![7, 7, 7, 7, 0]));
    assert_eq!(read(&mut clone, 300, 1), Ok(vec![8]));
    assert!(clone.store.newest_stamp(lockstep_core::id::RegionIndex(0)) == Gen(3));
    assert_eq!(read(&mut driver, 0, 2), Ok(vec![7, 9]));
    let mut larger = cloned(&kept, SIZE + 1000);
    assert_eq!(larger.get(write(SIZE + 999, 1, 4, 5)), Ok(StoreReply::Done));
    assert_eq!(read(&mut larger, 3, 1), Ok(vec![7]));
}

#[test]
fn d2_tags_that_were_never_read_are_those_of_the_copy() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 4, 3, 7)), Ok(StoreReply::Done));
    driver.release(0, 4);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    assert_eq!(driver.get(write(2, 1, 5, 9)), Ok(StoreReply::Done));
    driver.ask(1, StoreOp::Snapshot { id: ID });
    driver.run("snapshot");
    assert_eq!(driver.answers(), [done(1)]);
    driver.settle();
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 0, 5), Ok(vec![7, 7, 9, 7, 0]));
    assert_eq!(clone.store.newest_stamp(lockstep_core::id::RegionIndex(0)), Gen(5));
}

#[test]
fn d2_tags_of_later_writes_are_not_written_before_the_tags_are_copied() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 3, 7)), Ok(StoreReply::Done));
    driver.release(0, 1);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    driver.ask(1, StoreOp::Snapshot { id: ID });
    driver.run("snapshot");
    assert_eq!(driver.answers(), [done(1)]);
    driver.ask(2, write(0, 1, 4, 8));
    driver.run("log");
    driver.run("write");
    driver.release(0, 1);
    driver.ask(3, StoreOp::CleanAll);
    driver.run("flush data");
    assert_eq!(driver.wanted(), ["keep tags"], "the cleaner waits");
    driver.run("keep tags");
    assert_eq!(driver.wanted(), ["seal snapshot", "write tags", "write regions"]);
    driver.settle();
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 0, 1), Ok(vec![7]));
    assert_eq!(read(&mut driver, 0, 1), Ok(vec![8]));
}

#[test]
fn d2_checksums_that_have_to_be_computed_are_before() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 3, 7)), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    driver.store.note(driver.now, lockstep_core::store::StoreNote::Resolve);
    driver.ask(1, StoreOp::Snapshot { id: ID });
    driver.run("log");
    assert_eq!(driver.wanted(), ["read"]);
    driver.run("read");
    driver.run("snapshot");
    assert_eq!(driver.answers(), [done(1)]);
    driver.settle();
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 0, 2), Ok(vec![7, 0]));
}

#[test]
fn d1_only_what_was_kept_last_and_is_durable_is_sealed() {
    let mut driver = driver();
    let seal = |n| StoreOp::Seal { id: SnapshotId(Uuid::from_u128(n)) };
    assert_eq!(driver.get(seal(9)), Err(StoreError::Io), "there is none");
    assert_eq!(driver.get(StoreOp::Snapshot { id: ID }), Ok(StoreReply::Done));
    assert_eq!(driver.get(seal(8)), Err(StoreError::Io));
    assert_eq!(driver.get(seal(9)), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    assert_eq!(driver.get(seal(9)), Err(StoreError::Io), "it was another process");
    let other = SnapshotId(Uuid::from_u128(10));
    driver.ask(1, StoreOp::Snapshot { id: other });
    driver.run("snapshot");
    driver.run("keep tags");
    driver.fail("seal snapshot", DiskError::NoSpace);
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(driver.get(seal(10)), Err(StoreError::NoSpace));
    assert_eq!(driver.get(write(0, 1, 3, 7)), Ok(StoreReply::Done));
}

/// Who asked for it has let the guest go on.
#[test]
fn d1_what_is_to_be_dropped_is_not_taken_any_more_and_holds_nothing_up() {
    let mut driver = driver();
    driver.ask(1, write(300, 1, 3, 8));
    driver.run("log");
    driver.ask(2, StoreOp::Snapshot { id: ID });
    assert_eq!(driver.wanted(), ["write"]);
    driver.ask(3, StoreOp::DropSnapshot { id: ID });
    assert_eq!(driver.answers(), [(Token(2), Err(StoreError::Io))]);
    driver.run("drop snapshot");
    driver.ask(4, StoreOp::Prepare);
    for step in ["try snapshot", "begin ahead", "copy ahead"] {
        driver.run(step);
    }
    assert_eq!(driver.answers(), [done(3), done(4)], "the write is still under way");
}

#[test]
fn who_prepares_waits_for_no_write_and_writes_nothing_itself() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 3, 7)), Ok(StoreReply::Done));
    driver.ask(1, write(300, 1, 3, 8));
    driver.run("log");
    assert_eq!(driver.wanted(), ["write"]);
    driver.ask(2, StoreOp::Prepare);
    for step in ["try snapshot", "begin ahead", "copy ahead"] {
        driver.run(step);
    }
    assert_eq!(driver.answers(), [done(2)], "the write is still under way");
    assert_eq!(driver.wanted(), ["write"]);
    driver.run("write");
    driver.answers();
    driver.ask(3, StoreOp::Snapshot { id: ID });
    driver.run("snapshot");
    assert_eq!(driver.answers(), [done(3)]);
    assert_eq!(driver.active(), [0, 1], "they are cleaned in their time");
}

/// Two regions whose checksums nobody has, as after a crash.
fn untrusted() -> Driver {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 3, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.get(write(300, 1, 3, 8)), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    driver.store.note(driver.now, lockstep_core::store::StoreNote::Resolve);
    driver.run("log");
    driver
}

#[test]
fn d2_checksums_are_computed_before_guests_wait() {
    let mut driver = untrusted();
    driver.ask(1, StoreOp::Prepare);
    for step in ["try snapshot", "begin ahead", "copy ahead"] {
        driver.run(step);
    }
    assert_eq!(driver.wanted(), ["read", "read"]);
    // A region that is written meanwhile is read again.
    driver.ask(2, write(1, 1, 4, 9));
    driver.run("write");
    assert_eq!(driver.answers(), [done(2)]);
    driver.settle();
    assert_eq!(driver.answers(), [done(1)]);
    driver.ask(3, StoreOp::Snapshot { id: ID });
    assert_eq!(driver.wanted(), ["snapshot"], "guests wait: nothing else is done");
    driver.settle();
    assert_eq!(driver.answers(), [done(3)]);
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 0, 3), Ok(vec![7, 9, 0]));
    assert_eq!(read(&mut clone, 300, 1), Ok(vec![8]));
}

#[test]
fn d2_what_cannot_be_read_is_no_snapshot() {
    let mut driver = untrusted();
    driver.ask(1, StoreOp::Prepare);
    for step in ["try snapshot", "begin ahead", "copy ahead"] {
        driver.run(step);
    }
    driver.fail("read", DiskError::Io);
    driver.settle();
    assert_eq!(driver.answers(), [(Token(1), Err(StoreError::Io))]);
    assert_eq!(driver.get(write(0, 1, 4, 9)), Ok(StoreReply::Done), "the store goes on");
    assert_eq!(driver.get(StoreOp::Snapshot { id: ID }), Ok(StoreReply::Done));
}

#[test]
fn d3_content_is_copied_ahead_and_what_is_written_since_once_more() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 4, 3, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.get(write(300, 1, 3, 8)), Ok(StoreReply::Done));
    driver.ask(1, StoreOp::Prepare);
    driver.run("try snapshot");
    driver.run("begin ahead");
    // Under way while it is copied, and done after.
    driver.ask(2, write(1, 1, 3, 9));
    assert_eq!(driver.wanted(), ["copy ahead", "write"]);
    driver.run("copy ahead");
    driver.run("write");
    driver.settle();
    assert_eq!(driver.answers(), [done(1), done(2)]);
    assert_eq!(driver.get(write(300, 1, 3, 5)), Ok(StoreReply::Done));
    driver.ask(3, StoreOp::Snapshot { id: ID });
    driver.run("snapshot");
    assert_eq!(driver.answers(), [done(3)]);
    assert!(driver.disk.ahead.is_none());
    assert_eq!(driver.get(write(0, 1, 3, 4)), Ok(StoreReply::Done));
    driver.settle();
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 0, 5), Ok(vec![7, 9, 7, 7, 0]));
    assert_eq!(read(&mut clone, 300, 1), Ok(vec![5]));
}

#[test]
fn d3_what_was_copied_ahead_is_removed_if_nobody_asks_for_it() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 4, 3, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.get(StoreOp::Prepare), Ok(StoreReply::Done));
    assert!(driver.disk.ahead.is_some());
    let due = driver.store.deadline().expect("it does not stay for ever");
    driver.now = due;
    driver.store.tick(due);
    driver.settle();
    assert!(driver.disk.ahead.is_none());
    assert_eq!(driver.get(StoreOp::Snapshot { id: ID }), Ok(StoreReply::Done));
    driver.settle();
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 3, 2), Ok(vec![7, 0]));
}

#[test]
fn d3_who_cannot_copy_ahead_takes_a_snapshot_all_the_same() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 4, 3, 7)), Ok(StoreReply::Done));
    driver.ask(1, StoreOp::Prepare);
    driver.run("try snapshot");
    driver.run("begin ahead");
    driver.fail("copy ahead", DiskError::Io);
    driver.settle();
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(driver.get(StoreOp::Snapshot { id: ID }), Ok(StoreReply::Done));
    driver.settle();
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 3, 2), Ok(vec![7, 0]));
}

#[test]
fn what_cannot_be_kept_is_refused_and_the_store_goes_on() {
    let mut driver = driver();
    driver.ask(1, StoreOp::Prepare);
    driver.fail("try snapshot", DiskError::NoReflink);
    assert_eq!(driver.answers(), [(Token(1), Err(StoreError::NoReflink))]);
    driver.ask(2, StoreOp::Snapshot { id: ID });
    driver.fail("snapshot", DiskError::NoSpace);
    assert_eq!(driver.answers(), [(Token(2), Err(StoreError::NoSpace))]);
    assert_eq!(driver.get(StoreOp::Snapshot { id: ID }), Ok(StoreReply::Done));
    assert_eq!(driver.get(StoreOp::DropSnapshot { id: ID }), Ok(StoreReply::Done));
    assert!(driver.disk.kept(ID).is_none());
    assert_eq!(driver.get(write(0, 1, 3, 7)), Ok(StoreReply::Done));
}

/// A gap of the source's stands for content that is lost in the clone too, which has another id.
#[test]
fn a_gap_is_not_given_out_by_a_clone() {
    let mut driver = driver();
    let other = lockstep_core::id::VolumeId(Uuid::from_u128(77));
    let gap = lockstep_core::gap::content(other);
    let payload = lockstep_core::message::Payload::checksummed(gap);
    let range = lockstep_core::range::BlockRange::new(4, 1);
    let op = StoreOp::Write { range, stamp: Gen(3), durable: false, payload };
    assert_eq!(driver.get(op), Ok(StoreReply::Done));
    assert_eq!(driver.get(write(5, 1, 3, 7)), Ok(StoreReply::Done));
    let plain = driver.get(StoreOp::Read { blocks: blocks(4, 1) });
    assert!(matches!(plain, Ok(StoreReply::Data(_))), "another volume's is content here");
    assert_eq!(driver.get(StoreOp::Snapshot { id: ID }), Ok(StoreReply::Done));
    let mut clone = cloned(&driver.disk.kept(ID).expect("taken").clone(), SIZE);
    assert_eq!(read(&mut clone, 4, 1), Err(StoreError::Checksum { block: 4 }));
    assert_eq!(read(&mut clone, 5, 1), Ok(vec![7]));
    assert_eq!(content(7).len(), 4096);
    assert_eq!(clone.disk.file(File::Data).len() as u64, SIZE * 4096);
}
