//! The highest stamp of each region: in memory whole, on disk with a check per entry.

use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::id::{Gen, RegionIndex};

use crate::codec::{put, region_index, u32_at};
use crate::layout::{REGION_ENTRY_BYTES, REGIONS_PAGE_BYTES};

const PAGE_ENTRIES: usize = (REGIONS_PAGE_BYTES / REGION_ENTRY_BYTES) as usize;

/// An upper bound of the stamps in each region; 0 means that none of its blocks was ever written.
#[derive(Debug)]
pub(crate) struct Regions {
    max: Vec<Gen>,
    damaged: u32,
}

impl Regions {
    /// From the bytes of the file, which are enough for `count` entries. An entry that fails its
    /// check counts as stamped with the highest generation there is: it is looked at by every
    /// resync, and put right when the region is next cleaned.
    pub(crate) fn decode(bytes: &[u8], count: u32) -> Self {
        let mut max = Vec::with_capacity(region_index(RegionIndex(count)));
        let mut damaged = 0;
        for (region, entry) in (0..count).zip(bytes.chunks_exact(REGION_ENTRY_BYTES as usize)) {
            let stamp = u32_at(entry, 0);
            let good = entry == [0; 8] || u32_at(entry, 4) == check(region, stamp);
            damaged += u32::from(!good);
            max.push(if good { Gen(stamp) } else { Gen(u32::MAX) });
        }
        Self { max, damaged }
    }

    /// There are this many regions now; those that are new were never written.
    pub(crate) fn grow(&mut self, count: u32) {
        let count = region_index(RegionIndex(count));
        self.max.resize(count.max(self.max.len()), Gen(0));
    }

    /// Number of regions.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.max.len()).unwrap_or(u32::MAX)
    }

    /// Entries that failed their check when the file was read.
    pub(crate) fn damaged(&self) -> u32 {
        self.damaged
    }

    pub(crate) fn max(&self, region: RegionIndex) -> Gen {
        self.max[region_index(region)]
    }

    /// Was no block of any region ever written?
    pub(crate) fn is_untouched(&self) -> bool {
        self.max.iter().all(|stamp| *stamp == Gen(0))
    }

    pub(crate) fn set(&mut self, region: RegionIndex, stamp: Gen) {
        self.max[region_index(region)] = stamp;
    }

    pub(crate) fn raise(&mut self, region: RegionIndex, stamp: Gen) {
        let max = &mut self.max[region_index(region)];
        *max = stamp.max(*max);
    }

    /// Offset and bytes of a region's entry.
    pub(crate) fn entry(region: RegionIndex, stamp: Gen) -> (u64, Bytes) {
        let mut out = vec![0; REGION_ENTRY_BYTES as usize];
        if stamp.0 != 0 {
            put(&mut out, 0, &stamp.0.to_le_bytes());
            put(&mut out, 4, &check(region.0, stamp.0).to_le_bytes());
        }
        (u64::from(region.0) * u64::from(REGION_ENTRY_BYTES), Bytes::from(out))
    }

    /// Which page holds the region's entry.
    pub(crate) fn page_of(region: RegionIndex) -> usize {
        region_index(region) / PAGE_ENTRIES
    }

    /// Offset and bytes of a page.
    pub(crate) fn page(&self, page: usize) -> (u64, Bytes) {
        let mut out = vec![0; REGIONS_PAGE_BYTES as usize];
        let first = page * PAGE_ENTRIES;
        let entries = self.max.iter().enumerate().skip(first).take(PAGE_ENTRIES);
        for (region, stamp) in entries.filter(|(_, stamp)| stamp.0 != 0) {
            let at = (region - first) * REGION_ENTRY_BYTES as usize;
            let region = u32::try_from(region).unwrap_or(u32::MAX);
            put(&mut out, at, &stamp.0.to_le_bytes());
            put(&mut out, at + 4, &check(region, stamp.0).to_le_bytes());
        }
        (page as u64 * u64::from(REGIONS_PAGE_BYTES), Bytes::from(out))
    }
}

fn check(region: u32, stamp: u32) -> u32 {
    let mut bytes = [0; 8];
    put(&mut bytes, 0, &region.to_le_bytes());
    put(&mut bytes, 4, &stamp.to_le_bytes());
    crc32c::crc32c(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_back_and_damage_is_seen() {
        let mut regions = Regions::decode(&[0; 8192], 600);
        regions.set(RegionIndex(0), Gen(7));
        regions.set(RegionIndex(511), Gen(8));
        regions.raise(RegionIndex(512), Gen(9));
        regions.raise(RegionIndex(512), Gen(3));
        let mut bytes = Vec::new();
        for page in 0..2 {
            let (offset, data) = regions.page(page);
            assert_eq!(offset, bytes.len() as u64);
            bytes.extend_from_slice(&data);
        }
        let again = Regions::decode(&bytes, 600);
        assert_eq!(again.max, regions.max);
        assert_eq!((again.damaged(), again.max(RegionIndex(512))), (0, Gen(9)));

        bytes[511 * 8] ^= 1;
        bytes[100 * 8] ^= 1;
        let damaged = Regions::decode(&bytes, 600);
        assert_eq!(damaged.damaged(), 2);
        assert_eq!(damaged.max(RegionIndex(511)), Gen(u32::MAX));
        assert_eq!(damaged.max(RegionIndex(100)), Gen(u32::MAX));
        assert_eq!(damaged.max(RegionIndex(0)), Gen(7));
    }
}
