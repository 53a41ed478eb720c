//! A snapshot in a pool, without anybody having taken it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use lockstep_core::id::{Gen, SnapshotId, VolumeId};
use lockstep_core::range::region_of;
use lockstep_store::layout::{File as Which, data_offset, table_offset};
use lockstep_store::{KeptTags, file_bytes};

use crate::pool::SnapshotAbout;

/// Its size.
pub(crate) const BLOCKS: u64 = 3 * 256 + 10;
/// The blocks that were written. The last one is in a region of its own, which is cut off.
const WRITTEN: [u64; 6] = [0, 1, 2, 255, 300, 3 * 256 + 9];

/// Puts a snapshot into a pool.
pub(crate) fn keep(pool: &Path, id: SnapshotId, volume: VolumeId) {
    let dir = pool.join("snapshots").join(id.to_string());
    std::fs::create_dir(&dir).unwrap();
    let about = serde_json::to_vec(&SnapshotAbout { volume, blocks: BLOCKS, gaps: 0 }).unwrap();
    std::fs::write(dir.join("about.json"), about).unwrap();
    let make = |which: Which| {
        let file = File::create_new(dir.join(which.name())).unwrap();
        file.set_len(file_bytes(which, BLOCKS)).unwrap();
        file
    };
    let (data, tags, regions) = (make(Which::Data), make(Which::Tags), make(Which::Regions));
    let mut tables: BTreeMap<_, KeptTags> = BTreeMap::new();
    for block in WRITTEN {
        let content = content(block);
        data.write_all_at(&content, data_offset(block)).unwrap();
        let table = tables.entry(region_of(block)).or_insert_with(KeptTags::of_zeroes);
        table.set(block, stamp(block), &content);
    }
    for (region, table) in tables {
        tags.write_all_at(&table.encode(), table_offset(region)).unwrap();
        let (offset, entry) = table.entry(region);
        regions.write_all_at(&entry, offset).unwrap();
    }
}

/// What a block has. One of them is zeroes that were written.
pub(crate) fn content(block: u64) -> Vec<u8> {
    if block == 2 {
        return vec![0; 4096];
    }
    (0..4096_u64 / 8).flat_map(|i| (block * 7919 + i + 1).to_le_bytes()).collect()
}

fn stamp(block: u64) -> Gen {
    Gen(3 + u32::try_from(block % 4).unwrap())
}
