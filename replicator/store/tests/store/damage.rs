//! Damaged files: what is tolerated, what is refused, and what is said.

use lockstep_core::gap;
use lockstep_core::id::{Epoch, Gen, Lineage, RegionIndex, ReplicaId, VolumeId};
use lockstep_core::message::{Payload, ResyncBlock, ResyncContent};
use lockstep_core::store::{StoreError, StoreNote, StoreOp, StoreReply};
use lockstep_store::{CopyFault, File, Identity, OpenError, OpenParams, Store, Superblock, Tuning};

use crate::driver::{Driver, blocks, open, write};
use crate::world::{identity, params};

const SIZE: u64 = 4 * 256;

fn promised(epoch: u64) -> Driver {
    let mut driver = Driver::new(SIZE, Tuning::default());
    let promise = StoreOp::Promise {
        epoch: Epoch(epoch),
        attach_seq: 1,
        member_gen: Gen(1),
        lineage: identity().lineage,
    };
    assert_eq!(driver.get(promise), Ok(StoreReply::Done));
    driver
}

fn error(driver: &Driver) -> OpenError {
    open(&driver.disk, 0, Tuning::default()).map(|(_, recovered)| recovered).expect_err("an error")
}

#[test]
fn either_superblock_may_be_damaged_and_no_promise_is_lost() {
    for offset in [0, 8, 12, 80, 4096, 4096 + 20, 4096 + 4000] {
        let mut driver = promised(5);
        driver.disk.flip(File::Meta, offset);
        assert_eq!(Superblock::good_copies(&driver.disk.file(File::Meta)), 1);
        driver.reopen(0, Tuning::default());
        assert_eq!(driver.recovered.promised, Epoch(5), "byte {offset} damaged");
        // The next promise puts both right.
        let promise = StoreOp::Promise {
            epoch: Epoch(6),
            attach_seq: 1,
            member_gen: Gen(1),
            lineage: identity().lineage,
        };
        assert_eq!(driver.get(promise), Ok(StoreReply::Done));
        assert_eq!(Superblock::good_copies(&driver.disk.file(File::Meta)), 2);
    }
}

#[test]
fn both_superblocks_damaged_is_refused_and_said() {
    let mut driver = promised(5);
    driver.disk.flip(File::Meta, 100);
    driver.disk.flip(File::Meta, 4096);
    let (a, b) = (CopyFault::Checksum, CopyFault::Magic);
    assert_eq!(error(&driver), OpenError::SuperblockDamaged { a, b });
    let text = error(&driver).to_string();
    assert!(text.contains("A: wrong checksum; B: no superblock there"), "{text}");
    driver.disk.flip(File::Meta, 3);
    assert_eq!(error(&driver), OpenError::NotAReplica);
}

#[test]
fn a_newer_format_is_refused_and_a_damaged_version_is_damage() {
    let driver = promised(5);
    let mut meta = driver.disk.file(File::Meta);
    meta[8] = 2;
    assert_eq!(Superblock::read(&meta).map(|s| s.promised), Ok(Epoch(5)), "the other copy is good");
    let mut copy = meta[..4096].to_vec();
    copy[12..16].fill(0);
    let crc = crc32c::crc32c(&copy);
    meta[12..16].copy_from_slice(&crc.to_le_bytes());
    let expected = OpenError::FutureVersion { found: 2, supported: 1 };
    assert_eq!(Superblock::read(&meta), Err(expected));
}

#[test]
fn files_that_end_too_early_are_refused() {
    let driver = promised(5);
    let (meta, regions) = (driver.disk.file(File::Meta), driver.disk.file(File::Regions));
    let try_open = |meta: &[u8], regions: &[u8]| {
        let params = OpenParams { expect: None, ..params(meta, regions, 0) };
        Store::open(params).map(|opened| opened.recovered.blocks)
    };
    assert_eq!(try_open(&meta, &regions), Ok(SIZE));
    for (file, meta, regions) in [
        (File::Meta, &meta[..0], &regions[..]),
        (File::Meta, &meta[..8191], &regions[..]),
        (File::Meta, &meta[..meta.len() - 1], &regions[..]),
        (File::Regions, &meta[..], &regions[..8]),
    ] {
        let have = if file == File::Meta { meta.len() } else { regions.len() };
        match try_open(meta, regions) {
            Err(OpenError::TooShort { file: said, have: size, .. }) => {
                assert_eq!((said, size), (file, have as u64));
            }
            other => panic!("{file} of {have} bytes gave {other:?}"),
        }
    }
}

#[test]
fn files_of_somebody_else_are_refused() {
    let driver = promised(5);
    let (meta, regions) = (driver.disk.file(File::Meta), driver.disk.file(File::Regions));
    let other = uuid::Uuid::from_u128(77);
    let try_open = |expect: Identity| {
        let params = OpenParams { expect: Some(expect), ..params(&meta, &regions, 0) };
        Store::open(params).map(|opened| opened.recovered.blocks)
    };
    let me = identity();
    let found = me.volume;
    let expected = VolumeId(other);
    assert_eq!(
        try_open(Identity { volume: expected, ..me }),
        Err(OpenError::OtherVolume { expected, found })
    );
    let (expected, found) = (ReplicaId(other), me.replica);
    assert_eq!(
        try_open(Identity { replica: expected, ..me }),
        Err(OpenError::OtherReplica { expected, found })
    );
    let (expected, found) = (Lineage(other), me.lineage);
    assert_eq!(
        try_open(Identity { lineage: expected, ..me }),
        Err(OpenError::OtherLineage { expected, found })
    );
}

#[test]
fn rot_in_the_activity_log_is_healed_or_refused_but_never_overlooked() {
    let mut driver = promised(5);
    for region in [0, 2, 1] {
        assert_eq!(driver.get(write(region * 256, 1, 1, 7)), Ok(StoreReply::Done));
    }
    let record = |seq: u64| 8192 + seq * 8192;
    for seq in 1..4 {
        driver.disk.flip(File::Meta, record(seq) + 64);
    }
    driver.reopen(0, Tuning::default());
    assert_eq!(driver.recovered.unresolved.len(), 3, "one good copy of each is enough");
    driver.disk.flip(File::Meta, record(2) + 4096 + 64);
    assert_eq!(error(&driver), OpenError::LogDamaged { seq: 2, slot: 2 });
}

#[test]
fn rot_in_data_and_tags_is_seen_when_it_is_read() {
    for (file, offset, block) in [(File::Data, 2 * 4096 + 9, 2), (File::Tags, 8 + 1, 1)] {
        let mut driver = promised(5);
        assert_eq!(driver.get(write(0, 4, 1, 7)), Ok(StoreReply::Done));
        driver.release(0, 4);
        assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
        driver.reopen(0, Tuning::default());
        driver.disk.flip(file, offset);
        let read = driver.get(StoreOp::Read { blocks: blocks(0, 4) });
        assert_eq!(read, Err(StoreError::Checksum { block }));
        // The rest is fine, and so is the block once it is written again.
        let rest = driver.get(StoreOp::Read { blocks: blocks(3, 1) });
        assert!(matches!(rest, Ok(StoreReply::Data(_))));
        assert_eq!(driver.get(write(block, 1, 1, 7)), Ok(StoreReply::Done));
        let read = driver.get(StoreOp::Read { blocks: blocks(0, 4) });
        assert!(matches!(read, Ok(StoreReply::Data(_))));
    }
}

#[test]
fn rot_after_a_comparison_is_seen_although_the_stored_checksum_was_not_trusted() {
    let mut driver = promised(1);
    assert_eq!(driver.get(write(3, 1, 1, 7)), Ok(StoreReply::Done));
    driver.reopen(0, Tuning::default());
    let compare = StoreOp::Digest { blocks: blocks(3, 1), since: Gen(0) };
    assert!(matches!(driver.get(compare), Ok(StoreReply::Digests(_))));
    driver.store.note(driver.now, StoreNote::RestampUnresolved { stamp: Gen(2) });
    driver.store.note(driver.now, StoreNote::Resolve);
    driver.disk.flip(File::Data, 3 * 4096 + 5);
    let read = driver.get(StoreOp::Read { blocks: blocks(3, 1) });
    assert_eq!(read, Err(StoreError::Checksum { block: 3 }));
}

#[test]
fn rot_where_nothing_was_written_is_seen_too() {
    let mut driver = promised(5);
    driver.disk.flip(File::Data, 700 * 4096);
    let read = driver.get(StoreOp::Read { blocks: blocks(699, 3) });
    assert_eq!(read, Err(StoreError::Checksum { block: 700 }));
}

#[test]
fn a_damaged_region_entry_makes_the_region_of_interest_to_everybody() {
    let mut driver = promised(5);
    driver.disk.flip(File::Regions, 8 + 3);
    driver.reopen(0, Tuning::default());
    assert_eq!(driver.store.status().damaged_regions, 1);
    assert!(!driver.recovered.fresh);
    let scan = StoreOp::Scan { since: Gen(9), from: RegionIndex(0), limit: 9 };
    let all = StoreReply::Regions { regions: vec![RegionIndex(1)], next: None };
    assert_eq!(driver.get(scan.clone()), Ok(all));
    // A write and a cleaning put it right.
    assert_eq!(driver.get(write(256, 1, 2, 7)), Ok(StoreReply::Done));
    driver.release(256, 1);
    assert_eq!(driver.get(StoreOp::CleanAll), Ok(StoreReply::Done));
    driver.reopen(0, Tuning::default());
    assert_eq!(driver.store.status().damaged_regions, 0);
    let none = StoreReply::Regions { regions: Vec::new(), next: None };
    assert_eq!(driver.get(scan), Ok(none));
}

#[test]
fn a_gap_is_refused_whatever_becomes_of_its_tag() {
    let mut driver = Driver::new(SIZE, Tuning::default());
    let lost = ResyncBlock { block: 7, stamp: Gen(3), content: ResyncContent::Data };
    let payload = Payload::checksummed(gap::content(identity().volume));
    let resync = StoreOp::Resync { blocks: vec![lost], payload };
    assert_eq!(driver.get(resync), Ok(StoreReply::Done));
    assert_eq!(driver.get(StoreOp::Flush), Ok(StoreReply::Done));
    // The second time, in a region whose tags are not trusted since the machine lost power.
    for boot in 0..2 {
        if boot == 1 {
            driver.reopen(boot, Tuning::default());
            assert!(driver.recovered.lossy && !driver.recovered.unresolved.is_empty());
        }
        let bad = Err(StoreError::Checksum { block: 7 });
        assert_eq!(driver.get(StoreOp::Read { blocks: blocks(6, 3) }), bad);
        assert_eq!(driver.get(StoreOp::Digest { blocks: blocks(7, 1), since: Gen(0) }), bad);
        assert!(driver.get(StoreOp::Read { blocks: blocks(8, 3) }).is_ok());
    }
    assert_eq!(driver.get(write(7, 1, 4, 9)), Ok(StoreReply::Done));
    assert!(driver.get(StoreOp::Read { blocks: blocks(6, 3) }).is_ok(), "it was written");
}
