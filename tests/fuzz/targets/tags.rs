//! Tags and region entries of any content, under reads, digests and scans.

use lockstep_core::id::{Gen, RegionIndex};
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::store::{StoreError, StoreOp, StoreReply};
use lockstep_store::File;

use super::disk::Disk;
use super::files::{BLOCKS, ask, formatted, mend_entry, open_disk, work};
use super::input::Input;

pub(crate) fn target(data: &[u8]) {
    let mut input = Input(data);
    let mut disk = formatted();
    for region in 0..3_u32 {
        region_entry(&mut input, &mut disk, region);
    }
    for _ in 0..input.below(32) {
        tag(&mut input, &mut disk);
    }
    let mut opened = open_disk(&disk, 0).expect("tags are not looked at when opening");
    assert_eq!(opened.recovered.unresolved, []);
    for _ in 0..input.below(16) {
        let start = u64::from(input.u16()) % BLOCKS;
        let count =
            u32::from(input.u8()).clamp(1, 64).min(u32::try_from(BLOCKS - start).expect("small"));
        let blocks = BlockSet::from(BlockRange::new(start, count));
        let since = Gen(u32::from(input.below(6)));
        let op = match input.below(3) {
            0 => StoreOp::Read { blocks: blocks.clone() },
            1 => StoreOp::Digest { blocks: blocks.clone(), since },
            _ => StoreOp::Scan { since, from: RegionIndex(0), limit: 1 + u32::from(input.u8()) },
        };
        let answer = ask(&mut opened.store, &mut disk, op);
        check(&disk, &blocks, answer);
    }
    let again = open_disk(&disk, 0).expect("it opened before");
    work(again, disk);
}

/// Nothing, a good entry, or any bytes.
fn region_entry(input: &mut Input<'_>, disk: &mut Disk, region: u32) {
    let mut entry = [0; 8];
    match input.below(3) {
        0 => return,
        1 => mend_entry(&mut entry, region, u32::from(input.below(6))),
        _ => entry.copy_from_slice(&input.u64().to_le_bytes()),
    }
    disk.put(File::Regions, u64::from(region) * 8, &entry);
}

/// A tag, which may or may not match the data that is written with it.
fn tag(input: &mut Input<'_>, disk: &mut Disk) {
    let block = u64::from(input.u16()) % BLOCKS;
    let content = vec![input.u8(); 4096];
    disk.put(File::Data, block * 4096, &content);
    let crc = if input.flag() { crc32c::crc32c(&content) } else { input.u32() };
    let stamp = u32::from(input.below(6));
    let tag = [crc.to_le_bytes(), stamp.to_le_bytes()].concat();
    disk.put(File::Tags, block * 8, &tag);
}

/// No block whose content does not match its tag is ever given out.
fn check(disk: &Disk, blocks: &BlockSet, answer: Result<StoreReply, StoreError>) {
    match answer {
        Ok(StoreReply::Data(payload)) => {
            assert!(payload.is_intact() && payload.blocks() as u64 == blocks.len());
            for (block, data) in blocks.blocks().zip(payload.data.chunks_exact(4096)) {
                assert!(
                    tag_allows(disk, block, data),
                    "block {block} was read in spite of its tag"
                );
            }
        }
        Ok(StoreReply::Digests(found)) => {
            assert!(found.is_sorted_by_key(|digest| digest.block));
            assert!(found.iter().all(|digest| blocks.contains(digest.block)));
        }
        Ok(StoreReply::Regions { regions, .. }) => {
            assert!(regions.is_sorted() && regions.iter().all(|r| r.0 < 3));
        }
        Err(StoreError::Checksum { block }) => {
            let data = disk.read(File::Data, block * 4096, 4096);
            let entry = disk.read(File::Regions, block / 256 * 8, 8);
            let untouched = entry[..4] == [0; 4] && data.iter().all(|byte| *byte == 0);
            assert!(!untouched, "block {block} was never written, and is refused");
        }
        other => panic!("{other:?}"),
    }
}

fn tag_allows(disk: &Disk, block: u64, data: &[u8]) -> bool {
    let tag = disk.read(File::Tags, block * 8, 8);
    let crc = u32::from_le_bytes([tag[0], tag[1], tag[2], tag[3]]);
    let zeroes = data.iter().all(|byte| *byte == 0);
    let entry = disk.read(File::Regions, block / 256 * 8, 8);
    let never_written = tag == [0; 8] || entry[..4] == [0; 4];
    crc == crc32c::crc32c(data) || never_written && zeroes
}
