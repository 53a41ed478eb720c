//! A snapshot as files, as far as their bytes have to be understood by whoever reads it to make a
//! copy of it anew, and by whoever makes that copy (D4).

use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::block;
use lockstep_core::gap;
use lockstep_core::id::{Gen, RegionIndex, VolumeId};
use lockstep_core::message::{BlockDigest, Wholeness};

use crate::layout::{TABLE_BYTES, region_count};
use crate::read::OF_ZEROES;
use crate::regions::Regions;
use crate::tags::{Table, slot};
use crate::tuning::blake3_digest;

/// The tags of one region of a snapshot.
#[derive(Clone, Debug)]
pub struct KeptTags(Table);

impl KeptTags {
    /// Those of a region none of whose blocks was ever written.
    #[must_use]
    pub fn of_zeroes() -> Self {
        Self(Table::of_zeroes())
    }

    /// From the region's bytes in the file; none if they are too few.
    #[must_use]
    pub fn read(disk: &[u8]) -> Option<Self> {
        let mut table = Table::blank();
        table.merge(disk.get(..TABLE_BYTES as usize)?);
        Some(Self(table))
    }

    /// Stamp and digest of a block with this content; none if it can't be given out: the content
    /// does not match its checksum, or says that it is lost.
    #[must_use]
    pub fn digest(&self, volume: VolumeId, block: u64, content: &[u8]) -> Option<BlockDigest> {
        let (crc, stamp) = (self.0.crc(slot(block))?, self.0.stamp(slot(block))?);
        if crc != block::crc(content) || gap::is_gap(volume, content) {
            return None;
        }
        let zero = block::is_zero(content);
        let digest = if zero { OF_ZEROES } else { blake3_digest(content) };
        Some(BlockDigest { block, stamp, zero, digest, wholeness: Wholeness::Whole })
    }

    /// A block has this content, written by the generation.
    pub fn set(&mut self, block: u64, stamp: Gen, content: &[u8]) {
        self.0.set_stamp(slot(block), stamp);
        self.0.set_crc(slot(block), block::crc(content));
    }

    /// The bytes in the file of tags.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.0.encode()
    }

    /// Where the region's entry is in the file of regions, and its bytes.
    #[must_use]
    pub fn entry(&self, region: RegionIndex) -> (u64, Bytes) {
        Regions::entry(region, self.0.max_stamp())
    }
}

/// The regions that were ever written, of a snapshot of so many blocks, from the bytes of its file
/// of regions. One whose entry is damaged is among them: its tags tell. None if they are too few.
#[must_use]
pub fn written_regions(disk: &[u8], blocks: u64) -> Option<Vec<RegionIndex>> {
    let count = region_count(blocks);
    let entries = disk.get(..Regions::entry(RegionIndex(count), Gen(0)).0.try_into().ok()?)?;
    let regions = Regions::decode(entries, count);
    let written = |region: &RegionIndex| regions.max(*region) > Gen(0);
    Some((0..count).map(RegionIndex).filter(written).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use uuid::Uuid;

    const VOLUME: VolumeId = VolumeId(Uuid::from_u128(1));

    #[test]
    fn what_was_set_is_read_back_and_given_out_only_if_it_matches() {
        let mut tags = KeptTags::of_zeroes();
        let (content, zeroes) = ([7; 4096], [0; 4096]);
        tags.set(300, Gen(5), &content);
        tags.set(301, Gen(9), &zeroes);
        let again = KeptTags::read(&tags.encode()).unwrap();
        assert_eq!(again.encode(), tags.encode());
        let digest = again.digest(VOLUME, 300, &content).unwrap();
        assert_eq!((digest.stamp, digest.zero), (Gen(5), false));
        assert_eq!(digest.digest, blake3_digest(&content));
        let zero = again.digest(VOLUME, 301, &zeroes).unwrap();
        assert_eq!((zero.stamp, zero.zero, zero.digest), (Gen(9), true, blake3_digest(&zeroes)));
        assert_eq!(again.digest(VOLUME, 300, &zeroes), None, "rot");
        assert_eq!(again.digest(VOLUME, 302, &content), None, "it was never written");
        assert!(again.digest(VOLUME, 302, &zeroes).is_some_and(|d| d.stamp == Gen(0)));
    }

    #[test]
    fn a_gap_is_not_given_out_but_one_of_another_volume_is_content() {
        let mut tags = KeptTags::of_zeroes();
        let other = VolumeId(Uuid::from_u128(2));
        tags.set(1, Gen(3), &gap::content(VOLUME));
        tags.set(2, Gen(3), &gap::content(other));
        assert_eq!(tags.digest(VOLUME, 1, &gap::content(VOLUME)), None);
        assert!(tags.digest(VOLUME, 2, &gap::content(other)).is_some());
    }

    #[test]
    fn regions_that_were_written_are_found_and_short_files_refused() {
        let mut tags = KeptTags::of_zeroes();
        tags.set(2 * 256, Gen(4), &[1; 4096]);
        let mut disk = vec![0; 4096];
        for region in [2, 4] {
            let (at, entry) = tags.entry(RegionIndex(region));
            let at = usize::try_from(at).unwrap();
            disk[at..at + entry.len()].copy_from_slice(&entry);
        }
        assert_eq!(written_regions(&disk, 4 * 256), Some(vec![RegionIndex(2)]));
        disk[8] = 1;
        let found = written_regions(&disk, 4 * 256 + 1).unwrap();
        assert_eq!(found, [1, 2, 4].map(RegionIndex), "a damaged entry counts");
        assert_eq!(written_regions(&disk[..31], 4 * 256), None);
        assert!(KeptTags::read(&[0; 2047]).is_none());
    }
}
