//! The superblock's two copies, damaged at will.

use lockstep_core::id::{Epoch, Gen};
use lockstep_core::store::{StoreOp, StoreReply};
use lockstep_store::layout::MAX_WRITES;
use lockstep_store::{File, OpenError, Superblock, format};

use super::files::{BLOCKS, ask, formatted, identity, mend, open_disk};
use super::input::Input;

const SIZE: usize = 4096;

/// Starts from two good copies and changes bytes in them, with or without mending the checksum;
/// or takes the bytes as they are.
pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    if input.flag() {
        let mut raw = input.0.to_vec();
        raw.resize(raw.len().min(2 * SIZE), 0);
        return check(&raw);
    }
    let mut meta = vec![0; 2 * SIZE];
    for (_, offset, bytes) in format(identity(), BLOCKS, [1; 16]) {
        let at = usize::from(offset != 0) * SIZE;
        meta[at..at + SIZE].copy_from_slice(&bytes);
    }
    let mended = input.u8();
    while !input.is_empty() {
        // The fields are in the first 120 bytes; some changes go further.
        let place = usize::from(input.u16());
        let at = (place >> 13 & 1) * SIZE
            + if place >> 12 & 1 == 0 { place % 128 } else { place % SIZE };
        meta[at] = input.u8();
    }
    for copy in 0..2 {
        if mended >> copy & 1 == 1 {
            mend(&mut meta[copy * SIZE..(copy + 1) * SIZE], 12);
        }
    }
    check(&meta);
}

/// What can be read can be used: a promise is made, and found again.
fn promise(meta: &[u8]) {
    let mut disk = formatted();
    disk.put(File::Meta, 0, &meta[..2 * SIZE]);
    // A volume of another size has other files.
    let Ok(opened) = open_disk(&disk, 1) else { return };
    let epoch = Epoch(opened.superblock.promised.0.saturating_add(1));
    let lineage = opened.superblock.identity.lineage;
    let op = StoreOp::Promise { epoch, attach_seq: 1, member_gen: Gen(1), lineage };
    let mut store = opened.store;
    // No replica lives to count so far.
    let counts_on = opened.superblock.seq < MAX_WRITES - 8;
    if counts_on && opened.superblock.promised < epoch {
        assert_eq!(ask(&mut store, &mut disk, op), Ok(StoreReply::Done));
        let again = open_disk(&disk, 1).expect("it opened before");
        assert_eq!(again.recovered.promised, epoch, "a promise was forgotten");
        assert_eq!(Superblock::good_copies(&disk.file(File::Meta)), 2);
    }
}

fn check(meta: &[u8]) {
    let good = Superblock::good_copies(meta);
    match Superblock::read(meta) {
        Ok(found) => {
            assert!(good > 0, "read from two bad copies");
            promise(meta);
            for copy in meta.chunks_exact(SIZE).take(2) {
                // A copy alone, twice: what it says by itself.
                if let Ok(alone) = Superblock::read(&[copy, copy].concat()) {
                    assert!(alone.seq <= found.seq, "the older copy is in force");
                }
            }
        }
        Err(OpenError::FutureVersion { found, .. }) => assert_ne!(found, 1),
        Err(OpenError::TooShort { .. }) => assert!(meta.len() < 2 * SIZE),
        Err(_) => assert_eq!(good, 0, "a good copy was not taken"),
    }
}
