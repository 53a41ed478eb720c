//! The four files of one replica: their sizes, and where things are in them.

use core::fmt;

use lockstep_core::id::RegionIndex;
use lockstep_core::range::{BLOCK_SIZE, BLOCKS_PER_REGION};

/// One of the four files of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// Superblocks and activity log. Never sparse.
    Meta,
    /// The volume's blocks, at `block * 4096`. Sparse or preallocated.
    Data,
    /// Checksum and stamp of each block. Sparse.
    Tags,
    /// Highest stamp of each region. Sparse.
    Regions,
}

impl File {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Meta, Self::Data, Self::Tags, Self::Regions];

    /// The file's name in the directory of its replica.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Data => "data",
            Self::Tags => "tags",
            Self::Regions => "regions",
        }
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Bytes of a superblock; the two copies are at 0 and at this offset of [`File::Meta`].
pub const SUPERBLOCK_BYTES: u32 = 4096;
/// Where the activity log begins in [`File::Meta`].
pub const LOG_OFFSET: u32 = 2 * SUPERBLOCK_BYTES;
/// Bytes of one record of the activity log.
pub const LOG_RECORD_BYTES: u32 = 4096;
/// Bytes of a place in the ring: a record, twice. So damage to the newest record can be told from
/// a write that was cut short.
pub const LOG_SLOT_BYTES: u32 = 2 * LOG_RECORD_BYTES;
/// Places in the ring of the activity log.
pub const LOG_RECORDS: u32 = 256;
/// Highest number that a superblock or a record of the log may carry: no replica lives to reach it,
/// so a higher one is damage, and what counts on from a good one does not overflow.
pub const MAX_WRITES: u64 = 1 << 62;
/// Most regions that one record sets and clears.
pub const LOG_CHANGES: usize = 512;
/// Most regions of the active set that one record repeats.
pub const LOG_SLICE: usize = 480;
/// Most regions that may be active at once.
pub const LOG_CAPACITY: usize = 120_000;
/// Bytes of a tag.
pub const TAG_BYTES: u32 = 8;
/// Bytes of the tags of one region.
pub const TABLE_BYTES: u32 = TAG_BYTES * BLOCKS_PER_REGION;
/// Bytes of a region's entry in [`File::Regions`].
pub const REGION_ENTRY_BYTES: u32 = 8;
/// [`File::Regions`] is written in pages of this size.
pub const REGIONS_PAGE_BYTES: u32 = 4096;

/// Bytes of a record's head; the region numbers follow, 4 bytes each.
pub(crate) const LOG_HEAD_BYTES: usize = 64;

const _: () = assert!(LOG_HEAD_BYTES + 4 * (LOG_CHANGES + LOG_SLICE) <= LOG_RECORD_BYTES as usize);
// Every active region is repeated before the record that named it is overwritten, with one record
// to spare for a torn one: the argument is in `docs/ondisk.md`.
const _: () = assert!(LOG_CAPACITY.div_ceil(LOG_SLICE) < LOG_RECORDS as usize);

/// Number of regions of a volume of `blocks` blocks.
#[must_use]
pub fn region_count(blocks: u64) -> u32 {
    u32::try_from(blocks.div_ceil(u64::from(BLOCKS_PER_REGION))).unwrap_or(u32::MAX)
}

/// Size in bytes of a replica's file, for a volume of `blocks` blocks.
#[must_use]
pub fn file_bytes(file: File, blocks: u64) -> u64 {
    let regions = u64::from(region_count(blocks));
    match file {
        File::Meta => u64::from(LOG_OFFSET + LOG_RECORDS * LOG_SLOT_BYTES),
        File::Data => blocks * u64::from(BLOCK_SIZE),
        File::Tags => (regions * u64::from(TABLE_BYTES)).next_multiple_of(4096),
        File::Regions => (regions * u64::from(REGION_ENTRY_BYTES))
            .next_multiple_of(u64::from(REGIONS_PAGE_BYTES)),
    }
}

/// Where a block is in [`File::Data`].
#[must_use]
pub fn data_offset(block: u64) -> u64 {
    block * u64::from(BLOCK_SIZE)
}

/// Where the tags of a region are in [`File::Tags`].
#[must_use]
pub fn table_offset(region: RegionIndex) -> u64 {
    u64::from(region.0) * u64::from(TABLE_BYTES)
}

/// Where the two copies of the record with this number are in [`File::Meta`].
#[must_use]
pub fn record_offset(seq: u64) -> u64 {
    u64::from(LOG_OFFSET) + record_slot(seq) * u64::from(LOG_SLOT_BYTES)
}

/// Which place of the ring holds the record with this number.
#[must_use]
pub fn record_slot(seq: u64) -> u64 {
    seq % u64::from(LOG_RECORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_small_volume() {
        // 300 blocks: two regions, the second cut off.
        assert_eq!(file_bytes(File::Meta, 300), 8192 + 256 * 8192);
        assert_eq!(file_bytes(File::Data, 300), 300 * 4096);
        assert_eq!(file_bytes(File::Tags, 300), 4096);
        assert_eq!(file_bytes(File::Regions, 300), 4096);
        assert_eq!(file_bytes(File::Tags, 257 * 256), 257 * 2048 + 2048);
        assert_eq!(file_bytes(File::Regions, 513 * 256), 8192);
    }

    #[test]
    fn records_wrap_around_within_the_file() {
        assert_eq!(record_offset(0), 8192);
        assert_eq!(record_offset(256), 8192);
        assert_eq!(record_offset(255) + 8192, file_bytes(File::Meta, 1));
    }
}
