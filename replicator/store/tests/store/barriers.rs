//! What must be done before what.

use lockstep_core::id::{Epoch, Gen, RegionIndex, Token};
use lockstep_core::message::{Payload, ResyncBlock, ResyncContent};
use lockstep_core::range::BlockRange;
use lockstep_core::store::{StoreError, StoreNote, StoreOp, StoreReply};
use lockstep_store::{DiskError, File, Tuning};

use crate::driver::{Driver, blocks, done, write};
use crate::world::identity;

const SIZE: u64 = 40 * 256;

fn plain() -> Tuning {
    Tuning { ahead: 0, ..Tuning::default() }
}

fn driver() -> Driver {
    Driver::new(SIZE, plain())
}

/// A region that was written, flushed and cleaned.
fn cleaned(tuning: Tuning) -> Driver {
    let mut driver = Driver::new(SIZE, tuning);
    assert_eq!(driver.get(write(0, 4, 3, 7)), Ok(StoreReply::Done));
    driver.release(0, 4);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    assert!(driver.active().is_empty());
    driver
}

fn failed(token: u64, error: StoreError) -> crate::driver::Answer {
    (Token(token), Err(error))
}

#[test]
fn m21_data_is_written_only_after_its_region_is_durably_active() {
    let mut driver = driver();
    driver.ask(1, write(250, 10, 1, 7));
    assert_eq!(driver.wanted(), ["log"]);
    assert!(driver.answers().is_empty());
    driver.run("log");
    assert_eq!(driver.wanted(), ["write"]);
    driver.run("write");
    assert_eq!(driver.answers(), [done(1)]);
    // A hot region pays nothing.
    driver.ask(2, write(3, 1, 1, 8));
    assert_eq!(driver.wanted(), ["write"]);
}

#[test]
fn activations_that_wait_go_into_one_record() {
    let mut driver = driver();
    (0..5).for_each(|i| driver.ask(i, write(i * 256, 1, 1, 7)));
    assert_eq!(driver.wanted(), ["log"]);
    driver.run("log");
    // The first region's write can go on; the four others share the next record.
    assert_eq!(driver.wanted(), ["write", "log"]);
    driver.run("log");
    assert_eq!(driver.wanted(), ["write"; 5]);
}

#[test]
fn a_failed_record_fails_what_waits_for_it_and_nothing_is_written() {
    let mut driver = driver();
    driver.ask(1, write(0, 1, 1, 7));
    driver.ask(2, StoreOp::Flush);
    driver.fail("log", DiskError::Io);
    assert_eq!(driver.answers(), [failed(1, StoreError::Io), failed(2, StoreError::Io)]);
    assert_eq!(driver.wanted(), ["flush data"]);
    driver.run("flush data");
    driver.ask(3, write(0, 1, 1, 7));
    driver.ask(4, StoreOp::Read { blocks: blocks(0, 1) });
    let faulted = [failed(3, StoreError::Faulted), failed(4, StoreError::Faulted)];
    assert_eq!(driver.answers(), faulted);
    assert!(driver.wanted().is_empty());
    assert!(driver.store.status().faulted);
    assert_eq!(driver.store.deadline(), None);
}

#[test]
fn no_space_and_a_failed_flush_latch() {
    let mut driver = driver();
    driver.ask(1, write(0, 1, 1, 7));
    driver.run("log");
    driver.fail("write", DiskError::NoSpace);
    assert_eq!(driver.answers(), [failed(1, StoreError::NoSpace)]);
    assert_eq!(driver.get(StoreOp::Flush), Err(StoreError::Faulted));

    let mut driver = cleaned(plain());
    driver.ask(1, StoreOp::Flush);
    driver.fail("flush data", DiskError::Io);
    assert_eq!(driver.answers(), [failed(1, StoreError::Io)]);
    // R6: never asked again.
    assert_eq!(driver.get(StoreOp::Flush), Err(StoreError::Faulted));
}

#[test]
fn a_failed_read_fails_alone() {
    let mut driver = cleaned(plain());
    driver.ask(1, StoreOp::Read { blocks: blocks(0, 4) });
    driver.fail("read", DiskError::Io);
    driver.settle();
    assert_eq!(driver.answers(), [failed(1, StoreError::Io)]);
    assert!(matches!(driver.get(StoreOp::Read { blocks: blocks(0, 4) }), Ok(StoreReply::Data(_))));
}

#[test]
fn a_flush_joins_only_one_that_has_not_begun() {
    let mut driver = driver();
    (1..4).for_each(|i| driver.ask(i, StoreOp::Flush));
    assert_eq!(driver.wanted(), ["flush data"]);
    driver.run("flush data");
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(driver.wanted(), ["flush data"]);
    driver.run("flush data");
    assert_eq!(driver.answers(), [done(2), done(3)]);
    assert!(driver.wanted().is_empty());
}

#[test]
fn a_durable_write_is_one_write_and_a_durable_zero_a_zero_and_a_flush() {
    let mut driver = cleaned(plain());
    let (range, stamp) = (BlockRange::new(0, 1), Gen(1));
    let StoreOp::Write { payload, .. } = write(0, 1, 1, 7) else { panic!("a write") };
    driver.ask(1, StoreOp::Write { range, stamp, durable: true, payload });
    driver.run("log");
    driver.run("durable write");
    assert_eq!(driver.answers(), [done(1)]);
    driver.ask(2, StoreOp::Zero { range, stamp, durable: true, deallocate: false });
    driver.run("zero");
    assert!(driver.answers().is_empty());
    driver.run("flush data");
    assert_eq!(driver.answers(), [done(2)]);
}

#[test]
fn a_promise_is_answered_when_both_places_have_it() {
    let mut driver = driver();
    let promise = |epoch| StoreOp::Promise {
        epoch: Epoch(epoch),
        attach_seq: 1,
        member_gen: Gen(2),
        lineage: identity().lineage,
    };
    driver.ask(1, promise(5));
    driver.run("superblock");
    driver.ask(2, promise(6));
    assert_eq!(driver.wanted(), ["superblock"]);
    assert!(driver.answers().is_empty());
    driver.run("superblock");
    assert_eq!(driver.answers(), [done(1)]);
    driver.run("superblock");
    driver.run("superblock");
    assert_eq!(driver.answers(), [done(2)]);
    driver.reopen(0, plain());
    assert_eq!((driver.recovered.promised, driver.recovered.attach_seq), (Epoch(6), 1));
    assert_eq!(driver.recovered.member_gen, Gen(2));
}

#[test]
fn an_idle_region_is_cleaned_in_this_order() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 1, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.store.deadline(), None, "m3: pinned");
    driver.wait_ms(60_000);
    assert!(driver.wanted().is_empty(), "m3: pinned");
    driver.release(0, 1);
    driver.settle();
    assert_eq!(driver.store.deadline(), None);
    assert!(driver.active().is_empty(), "idle for long already");

    assert_eq!(driver.get(write(0, 1, 1, 7)), Ok(StoreReply::Done));
    driver.release(0, 1);
    let due = driver.now.plus_ms(30_000);
    assert_eq!(driver.store.deadline(), Some(due));
    driver.wait_ms(29_999);
    assert!(driver.wanted().is_empty());
    driver.wait_ms(1);
    for barrier in [
        &["flush data"][..],
        &["write tags", "write regions"],
        &["flush tags", "flush regions"],
        &["log"],
    ] {
        assert_eq!(driver.wanted(), barrier);
        barrier.iter().for_each(|op| driver.run(op));
    }
    assert!(driver.wanted().is_empty());
    assert!(driver.active().is_empty());
}

#[test]
fn a_write_that_meets_cleaning_stops_it_before_the_clear() {
    let order = ["flush data", "write tags", "write regions", "flush tags", "flush regions"];
    for steps in 0..=order.len() {
        let mut driver = driver();
        assert_eq!(driver.get(write(0, 1, 1, 7)), Ok(StoreReply::Done));
        driver.release(0, 1);
        driver.wait_ms(30_000);
        order.iter().take(steps).for_each(|op| driver.run(op));
        let too_late = steps == order.len();
        driver.ask(1, write(1, 1, 2, 8));
        if too_late {
            // The clear is being written: the write waits, and has its region set again.
            assert_eq!(driver.wanted(), ["log"]);
            driver.run("log");
            assert_eq!(driver.wanted(), ["log"]);
            driver.run("log");
        }
        driver.run("write");
        assert_eq!(driver.answers().last(), Some(&done(1)));
        driver.settle();
        assert_eq!(driver.active(), [0], "after {steps} steps of cleaning");
        driver.release(1, 1);
        assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
        driver.reopen(0, plain());
        let read = driver.get(StoreOp::Read { blocks: blocks(0, 2) });
        assert!(matches!(read, Ok(StoreReply::Data(payload)) if payload.is_intact()));
    }
}

#[test]
fn a_clear_that_is_not_being_written_yet_is_taken_back() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 1, 7)), Ok(StoreReply::Done));
    driver.release(0, 1);
    driver.wait_ms(30_000);
    // Keep the log busy, so that the clear has to wait.
    driver.ask(1, write(5 * 256, 1, 1, 7));
    ["flush data", "write tags", "write regions", "flush tags", "flush regions"]
        .iter()
        .for_each(|op| driver.run(op));
    assert_eq!(driver.wanted(), ["log"]);
    driver.ask(2, write(1, 1, 1, 8));
    assert_eq!(driver.wanted(), ["log", "write"]);
    driver.settle();
    assert_eq!(driver.active(), [0, 5]);
}

#[test]
fn at_the_cap_a_new_region_waits_for_a_cleaned_one() {
    let tuning = Tuning { active_max: 2, clean_above: 2, ..plain() };
    let mut driver = Driver::new(SIZE, tuning);
    (0..2).for_each(|i| driver.ask(i, write(i * 256, 1, 1, 7)));
    driver.settle();
    driver.release(0, 1);
    driver.ask(2, write(2 * 256, 1, 1, 7));
    assert_eq!(driver.wanted(), ["flush data"]);
    assert_eq!(driver.store.status().stalled, 1);
    driver.settle();
    assert_eq!(driver.answers(), [done(0), done(1), done(2)]);
    assert_eq!(driver.active(), [1, 2]);
    // With nothing to clean, waiting would be for ever.
    driver.ask(3, write(3 * 256, 1, 1, 7));
    driver.settle();
    assert_eq!(driver.answers(), [done(3)]);
    assert_eq!(driver.active(), [1, 2, 3]);
}

/// A region can't be cleaned, as its checksums are in doubt and its data can't be read: others do
/// not wait for that.
#[test]
fn at_the_cap_a_new_region_does_not_wait_for_one_that_cannot_be_read() {
    let tuning = Tuning { active_max: 1, clean_above: 1, ..plain() };
    let mut driver = Driver::new(SIZE, tuning);
    assert_eq!(driver.get(write(0, 1, 1, 7)), Ok(StoreReply::Done));
    driver.reopen(0, tuning);
    driver.store.note(driver.now, StoreNote::Resolve);
    driver.settle();
    driver.ask(1, write(256, 1, 1, 8));
    assert_eq!(driver.wanted(), ["read"]);
    driver.fail("read", DiskError::Io);
    assert_eq!(driver.wanted(), ["log"]);
    driver.settle();
    assert_eq!(driver.answers(), [done(1)]);
    assert_eq!(driver.active(), [0, 1]);
}

#[test]
fn a_stream_has_its_next_regions_set_in_advance() {
    let mut driver = Driver::new(SIZE, Tuning::default());
    assert_eq!(driver.get(write(0, 1, 1, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.active(), [0]);
    assert_eq!(driver.get(write(256, 1, 1, 7)), Ok(StoreReply::Done));
    assert_eq!(driver.active(), (0..18).collect::<Vec<_>>());
    driver.ask(1, write(17 * 256, 1, 1, 7));
    assert_eq!(driver.wanted(), ["write"]);
    driver.settle();
    // Cleaning those that were not written needs no tags.
    driver.release(0, 1);
    driver.release(256, 1);
    driver.release(17 * 256, 1);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    assert!(driver.active().is_empty());
}

#[test]
fn tags_are_loaded_when_needed_and_never_for_untouched_regions() {
    let mut driver = cleaned(plain());
    driver.reopen(0, plain());
    driver.settle();
    driver.ask(1, StoreOp::Read { blocks: blocks(0, 1) });
    assert_eq!(driver.wanted(), ["read tags", "read"]);
    driver.settle();
    driver.ask(2, StoreOp::Read { blocks: blocks(0, 4) });
    assert_eq!(driver.wanted(), ["read"]);
    driver.settle();
    driver.ask(3, StoreOp::Read { blocks: blocks(256, 1) });
    assert_eq!(driver.wanted(), ["read"]);
    driver.settle();
    // Never written, so nothing is read at all.
    driver.ask(4, StoreOp::Digest { blocks: blocks(512, 256), since: Gen(0) });
    assert!(driver.wanted().is_empty());
    let answers = driver.answers();
    let Some((_, Ok(StoreReply::Digests(digests)))) = answers.last() else { panic!("digests") };
    assert_eq!(digests.len(), 256);
    assert!(digests.iter().all(|digest| digest.zero && digest.stamp == Gen(0)));
}

#[test]
fn a_write_does_not_wait_for_the_tags_of_its_region() {
    let mut driver = cleaned(plain());
    driver.reopen(0, plain());
    driver.settle();
    driver.ask(1, write(1, 1, 5, 8));
    assert_eq!(driver.wanted(), ["read tags", "log"]);
    driver.run("log");
    driver.run("write");
    assert_eq!(driver.answers(), [done(1)]);
    driver.release(1, 1);
    driver.wait_ms(30_000);
    assert_eq!(driver.wanted(), ["read tags"], "cleaning has to wait for them");
    driver.settle();
    driver.reopen(0, plain());
    let Ok(StoreReply::Digests(digests)) =
        driver.get(StoreOp::Digest { blocks: blocks(0, 5), since: Gen(1) })
    else {
        panic!("digests")
    };
    let stamps: Vec<_> = digests.iter().map(|d| (d.block, d.stamp.0)).collect();
    assert_eq!(stamps, [(0, 3), (1, 5), (2, 3), (3, 3)]);
}

#[test]
fn a_resync_adopts_stamps_and_keeps_what_is_the_same() {
    let mut driver = cleaned(plain());
    let block = |block, stamp, content| ResyncBlock { block, stamp: Gen(stamp), content };
    let StoreOp::Write { payload, .. } = write(0, 1, 1, 9) else { panic!("a write") };
    let list = vec![
        block(0, 2, ResyncContent::Same),
        block(1, 9, ResyncContent::Zero),
        block(2, 1, ResyncContent::Data),
    ];
    driver.ask(1, StoreOp::Resync { blocks: list, payload });
    driver.run("log");
    assert_eq!(driver.wanted(), ["zero", "write"]);
    driver.settle();
    assert_eq!(driver.answers().last(), Some(&done(1)));
    driver.release(0, 3);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    let Ok(StoreReply::Digests(digests)) =
        driver.get(StoreOp::Digest { blocks: blocks(0, 4), since: Gen(0) })
    else {
        panic!("digests")
    };
    let seen: Vec<_> = digests.iter().map(|d| (d.stamp.0, d.zero)).collect();
    assert_eq!(seen, [(2, false), (9, true), (1, false), (3, false)]);
}

#[test]
fn an_unresolved_region_is_of_interest_to_everybody_until_it_is_resolved() {
    let mut driver = cleaned(plain());
    assert_eq!(driver.get(write(5, 1, 4, 8)), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    assert_eq!(driver.recovered.unresolved, [RegionIndex(0)]);
    assert!(!driver.recovered.lossy && !driver.recovered.fresh);
    let scan = StoreOp::Scan { since: Gen(100), from: RegionIndex(0), limit: 9 };
    let regions = |regions: &[u32]| {
        let regions = regions.iter().map(|r| RegionIndex(*r)).collect();
        Ok(StoreReply::Regions { regions, next: None })
    };
    assert_eq!(driver.get(scan.clone()), regions(&[0]));
    let digest = StoreOp::Digest { blocks: blocks(0, 256), since: Gen(100) };
    let Ok(StoreReply::Digests(all)) = driver.get(digest.clone()) else { panic!("digests") };
    assert_eq!(all.len(), 256);
    // It can't be cleaned.
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    assert_eq!(driver.active(), [0]);

    driver.store.note(driver.now, StoreNote::RestampUnresolved { stamp: Gen(7) });
    driver.store.note(driver.now, StoreNote::Resolve);
    assert_eq!(driver.get(scan), regions(&[]));
    assert_eq!(driver.get(digest), Ok(StoreReply::Digests(Vec::new())));
    let seven = StoreOp::Digest { blocks: blocks(0, 256), since: Gen(7) };
    let Ok(StoreReply::Digests(all)) = driver.get(seven.clone()) else { panic!("digests") };
    assert_eq!(all.len(), 256);
    // Its checksums come from its data.
    driver.ask(1, StoreOp::CleanAll);
    assert_eq!(driver.wanted(), ["read"]);
    driver.settle();
    assert!(driver.active().is_empty());
    driver.reopen(0, plain());
    assert_eq!(driver.get(seven), Ok(StoreReply::Digests(all)));
    let read = driver.get(StoreOp::Read { blocks: blocks(0, 256) });
    assert!(matches!(read, Ok(StoreReply::Data(payload)) if payload.is_intact()));
}

/// A disk that fails again and again: what a flush has lost is lost until it is resolved, however
/// often the files are opened and whatever else fails meanwhile.
#[test]
fn a_lost_cache_is_remembered_though_it_cannot_be_marked() {
    let mut driver = cleaned(plain());
    assert_eq!(driver.get(write(0, 1, 4, 8)), Ok(StoreReply::Done));
    driver.ask(1, StoreOp::Flush);
    driver.fail("flush data", DiskError::Io);
    driver.fail("superblock", DiskError::Io);
    for _ in 0..3 {
        driver.open_again(plain());
        assert!(driver.recovered.lossy);
        driver.fail("superblock", DiskError::Io);
    }
    driver.open_again(plain());
    driver.settle();
    // From now on the disk knows it, and so does any other process.
    driver.reopen(0, plain());
    assert!(driver.recovered.lossy);
    driver.store.note(driver.now, StoreNote::RestampUnresolved { stamp: Gen(7) });
    driver.store.note(driver.now, StoreNote::Resolve);
    driver.settle();
    assert!(!driver.store.status().lost_cache);
    driver.open_again(plain());
    assert!(!driver.recovered.lossy);
}

/// The mark is made in both places of the superblock. If there was time for one only, the other is
/// made when the files are opened again.
#[test]
fn a_lost_cache_is_remembered_though_one_place_of_its_mark_rots() {
    for (offset, early) in [(200, true), (4296, true), (200, false), (4296, false)] {
        let mut driver = cleaned(plain());
        assert_eq!(driver.get(write(0, 1, 4, 8)), Ok(StoreReply::Done));
        driver.ask(1, StoreOp::Flush);
        driver.fail("flush data", DiskError::Io);
        driver.run("superblock");
        if early {
            driver.reopen(0, plain());
        }
        driver.settle();
        driver.disk.flip(File::Meta, offset);
        driver.reopen(0, plain());
        assert!(driver.recovered.lossy, "forgotten when the place at {offset} rots");
    }
}

#[test]
fn lost_power_is_remembered_until_it_is_resolved() {
    let mut driver = cleaned(plain());
    assert_eq!(driver.get(write(0, 1, 4, 8)), Ok(StoreReply::Done));
    driver.reopen(1, plain());
    assert!(driver.recovered.lossy);
    let promise = |epoch| StoreOp::Promise {
        epoch: Epoch(epoch),
        attach_seq: 1,
        member_gen: Gen(4),
        lineage: identity().lineage,
    };
    assert_eq!(driver.get(promise(3)), Ok(StoreReply::Done));
    // The process is killed before anybody resolved the region: the loss is still a loss.
    driver.reopen(1, plain());
    assert!(driver.recovered.lossy);
    driver.store.note(driver.now, StoreNote::RestampUnresolved { stamp: Gen(7) });
    driver.store.note(driver.now, StoreNote::Resolve);
    driver.settle();
    driver.reopen(1, plain());
    assert_eq!(driver.recovered.unresolved, [RegionIndex(0)]);
    assert!(!driver.recovered.lossy);
}

/// A resync has given back what was lost: only another loss makes the copy lossy again.
#[test]
fn what_is_complete_is_not_lossy_though_it_is_unresolved() {
    let mut driver = cleaned(plain());
    assert_eq!(driver.get(write(0, 1, 4, 8)), Ok(StoreReply::Done));
    driver.reopen(1, plain());
    assert!(driver.recovered.lossy);
    driver.settle();
    driver.ask(1, StoreOp::Complete);
    assert_eq!(driver.wanted(), ["flush data"]);
    driver.run("flush data");
    // Durable in both places of the superblock before the answer.
    for _ in 0..2 {
        assert!(driver.answers().is_empty());
        driver.run("superblock");
    }
    assert_eq!(driver.answers(), [done(1)]);
    driver.reopen(1, plain());
    assert_eq!(driver.recovered.unresolved, [RegionIndex(0)]);
    assert!(!driver.recovered.lossy);
    driver.reopen(2, plain());
    assert!(driver.recovered.lossy, "power was lost once more");
    driver.ask(1, StoreOp::Complete);
    driver.fail("flush data", DiskError::Io);
    driver.reopen(2, plain());
    assert!(driver.recovered.lossy, "nothing is complete that could not be flushed");
}

#[test]
fn the_record_found_at_open_is_made_durable_before_anything_builds_on_it() {
    let mut driver = driver();
    assert_eq!(driver.get(write(0, 1, 4, 8)), Ok(StoreReply::Done));
    driver.reopen(0, plain());
    driver.ask(1, write(1, 1, 5, 9));
    driver.ask(2, write(256, 1, 5, 9));
    assert_eq!(driver.wanted(), ["log"]);
    driver.run("log");
    assert_eq!(driver.wanted(), ["write", "log"]);
}

#[test]
fn a_scan_goes_on_where_it_stopped() {
    let mut driver = driver();
    for region in [1, 4, 7] {
        assert_eq!(driver.get(write(region * 256, 1, 3, 7)), Ok(StoreReply::Done));
    }
    let scan = |from, limit| StoreOp::Scan { since: Gen(0), from: RegionIndex(from), limit };
    let regions = |regions: &[u32], next: Option<u32>| {
        let regions = regions.iter().map(|r| RegionIndex(*r)).collect();
        Ok(StoreReply::Regions { regions, next: next.map(RegionIndex) })
    };
    assert_eq!(driver.get(scan(0, 2)), regions(&[1, 4], Some(7)));
    assert_eq!(driver.get(scan(7, 2)), regions(&[7], None));
    assert_eq!(driver.get(scan(0, 3)), regions(&[1, 4, 7], None));
    let newer = StoreOp::Scan { since: Gen(4), from: RegionIndex(0), limit: 9 };
    assert_eq!(driver.get(newer), regions(&[], None));
}

#[test]
fn a_read_that_meets_a_write_is_tried_again() {
    let mut driver = cleaned(plain());
    driver.ask(1, StoreOp::Read { blocks: blocks(0, 1) });
    driver.ask(2, write(0, 1, 4, 9));
    driver.run("log");
    driver.run("write");
    assert_eq!(driver.answers(), [done(2)]);
    driver.settle();
    let StoreOp::Write { payload, .. } = write(0, 1, 4, 9) else { panic!("a write") };
    assert_eq!(driver.answers(), [(Token(1), Ok(StoreReply::Data(payload)))]);
}

#[test]
fn answers_share_the_payload_type_with_messages() {
    let mut driver = cleaned(plain());
    let set = [BlockRange::new(0, 2), BlockRange::new(9, 1)].into_iter().collect();
    let Ok(StoreReply::Data(payload)) = driver.get(StoreOp::Read { blocks: set }) else {
        panic!("data")
    };
    assert_eq!(payload, Payload::checksummed(payload.data.clone()));
    assert_eq!((payload.blocks(), payload.data[0], payload.data[2 * 4096]), (3, 7, 0));
}
