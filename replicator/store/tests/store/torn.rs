//! Blocks that a power cut left half written: what the store says of them when they are compared.

use lockstep_core::id::Gen;
use lockstep_core::message::Wholeness::{self, Doubtful, Whole};
use lockstep_core::message::{Payload, ResyncBlock, ResyncContent};
use lockstep_core::store::{StoreNote, StoreOp, StoreReply};
use lockstep_store::{DiskError, File, Tuning};

use crate::driver::{Driver, blocks, write};
use crate::twin::content;

const SIZE: u64 = 4 * 256;

/// Blocks 0 and 1 are written and cleaned, then block 1 and the never written block 2 again; the
/// power fails.
fn after_a_power_cut() -> Driver {
    let mut driver = Driver::new(SIZE, Tuning::default());
    assert_eq!(driver.get(write(0, 2, 1, 7)), Ok(StoreReply::Done));
    driver.release(0, 2);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    assert_eq!(driver.get(write(1, 2, 1, 8)), Ok(StoreReply::Done));
    driver.reopen(1, Tuning::default());
    assert!(driver.recovered.lossy);
    driver
}

fn compared(driver: &mut Driver) -> Vec<Wholeness> {
    let answer = driver.get(StoreOp::Digest { blocks: blocks(0, 4), since: Gen(0) });
    let digests = match answer {
        Ok(StoreReply::Digests(digests)) => Some(digests),
        _ => None,
    };
    digests.expect("digests").iter().map(|d| d.wholeness).collect()
}

#[test]
fn what_matches_its_tag_on_disk_is_whole_and_nothing_else_is() {
    // New content is whole too, but nothing proves it.
    assert_eq!(compared(&mut after_a_power_cut()), [Whole, Doubtful, Doubtful, Whole]);
    let mut torn = after_a_power_cut();
    torn.disk.put(File::Data, 4096, &content(7)[..512]);
    torn.disk.put(File::Data, 2 * 4096, &[0; 4096]);
    assert_eq!(compared(&mut torn), [Whole, Doubtful, Whole, Whole]);
}

#[test]
fn the_older_content_is_known_to_be_whole() {
    let mut driver = after_a_power_cut();
    driver.disk.put(File::Data, 4096, &content(7));
    assert_eq!(compared(&mut driver), [Whole, Whole, Doubtful, Whole]);
}

#[test]
fn tags_that_cannot_be_read_prove_nothing_and_fail_nothing() {
    let mut driver = after_a_power_cut();
    driver.ask(1, StoreOp::Digest { blocks: blocks(0, 4), since: Gen(0) });
    driver.fail("read tags", DiskError::Io);
    driver.settle();
    match driver.answers().pop() {
        Some((_, Ok(StoreReply::Digests(digests)))) => {
            assert!(digests.iter().all(|d| d.wholeness == Doubtful), "{digests:?}");
        }
        other => panic!("no digests: {other:?}"),
    }
    assert!(!driver.store.status().faulted);
}

#[test]
fn what_is_resolved_counts_as_whole() {
    let mut driver = after_a_power_cut();
    driver.store.note(driver.now, StoreNote::RestampUnresolved { stamp: Gen(2) });
    driver.store.note(driver.now, StoreNote::Resolve);
    assert_eq!(compared(&mut driver), [Whole; 4]);
}

/// A promotion that does not open may hand a torn block on. Whoever has it then must not pass for
/// one that has it whole.
#[test]
fn what_was_written_is_whole_but_not_what_was_copied_or_found_equal() {
    let mut driver = after_a_power_cut();
    let block = |block, content| ResyncBlock { block, stamp: Gen(3), content };
    let copied = StoreOp::Resync {
        blocks: vec![block(1, ResyncContent::Same), block(2, ResyncContent::Data)],
        payload: Payload::checksummed(content(9).to_vec().into()),
    };
    assert_eq!(driver.get(copied), Ok(StoreReply::Done));
    assert_eq!(compared(&mut driver), [Whole, Doubtful, Doubtful, Whole]);
    assert_eq!(driver.get(write(1, 2, 4, 10)), Ok(StoreReply::Done));
    assert_eq!(compared(&mut driver), [Whole; 4]);
}
