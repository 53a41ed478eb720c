//! The whole of file meta: superblock and activity log, as opening finds them.

use std::collections::BTreeSet;

use lockstep_store::{File, OpenError};

use super::files::{BLOCKS, formatted, mend, open_disk, work};
use super::input::Input;

const RECORD: usize = 4096;

/// Writes records of any content, good or bad, into the ring, and opens it.
pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let mut disk = formatted();
    let mut named = BTreeSet::new();
    let mut next = 1_u64;
    while !input.is_empty() {
        let how = input.u8();
        // Mostly the next number, so that there are long runs of good records.
        let seq = match how & 3 {
            0 | 1 => next,
            2 => next.saturating_sub(u64::from(input.u8())),
            _ => input.u64(),
        };
        next = seq.saturating_add(1);
        let mut record = record(&mut input, seq, how & 4 != 0, &mut named);
        mend(&mut record, 16);
        if how & 8 != 0 {
            record[usize::from(input.u16()) % RECORD] ^= input.u8();
        }
        let slot = if how & 64 == 0 { seq % 256 } else { u64::from(input.u8()) };
        for copy in 0..2 {
            if how >> (4 + copy) & 1 == 0 {
                let offset = 8192 + slot * 8192 + copy * 4096;
                disk.put(File::Meta, offset, &record);
            }
        }
    }
    match open_disk(&disk, 1) {
        Ok(opened) => {
            let found = &opened.recovered.unresolved;
            assert!(found.is_sorted() && found.len() <= named.len(), "{found:?}, not {named:?}");
            assert!(found.iter().all(|region| named.contains(&region.0)));
            assert!(found.iter().all(|region| u64::from(region.0) * 256 < BLOCKS));
            work(opened, disk);
        }
        Err(OpenError::LogDamaged { .. } | OpenError::LogRegion { .. }) => {}
        Err(other) => panic!("{other} although only the log was written"),
    }
}

/// A record of the log, without its checksum. Remembers which regions were ever named.
fn record(input: &mut Input<'_>, seq: u64, wide: bool, named: &mut BTreeSet<u32>) -> Vec<u8> {
    let mut out = vec![0; RECORD];
    out[..8].copy_from_slice(b"LKSTLOG1");
    out[8..16].copy_from_slice(&seq.to_le_bytes());
    out[32..48].copy_from_slice(super::files::identity().replica.0.as_bytes());
    let mut at = 64;
    for count_at in [20, 22, 24] {
        let count = if wide { input.u16() } else { input.below(4) };
        out[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
        for _ in 0..count {
            let region = if wide { input.u32() } else { u32::from(input.below(4)) };
            if at + 4 > RECORD {
                break;
            }
            named.insert(region);
            out[at..at + 4].copy_from_slice(&region.to_le_bytes());
            at += 4;
        }
    }
    // A count without its list reads zeroes.
    named.insert(0);
    out
}
