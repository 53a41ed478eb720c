//! Numbers, sets and lists in little endian: the parts that bodies are made of.

use alloc::vec::Vec;
use uuid::Uuid;

use crate::id::{NodeId, RegionIndex};
use crate::limits::{MAX_BODY_BYTES, MAX_VOLUME_BLOCKS};
use crate::range::{BLOCKS_PER_REGION, BlockRange, BlockSet};

/// Bytes of a range in a list.
const RANGE_BYTES: usize = 12;

/// What is wrong in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Appends values to a growing body.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// A writer that leaves room for a header; the extra space holds most bodies.
    pub(super) fn after_header(header_bytes: usize) -> Self {
        let mut bytes = Vec::with_capacity(header_bytes + 56);
        bytes.resize(header_bytes, 0);
        Self { bytes }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn uuid(&mut self, value: Uuid) {
        self.bytes.extend_from_slice(value.as_bytes());
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// A length or number of entries, as 32 bits.
    pub(super) fn count(&mut self, count: usize) {
        assert!(count <= MAX_BODY_BYTES as usize, "{count} can't be a length in a frame");
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn node(&mut self, node: &NodeId) {
        let name = node.as_str().as_bytes();
        assert!(name.len() <= 253, "a node's name of {} bytes", name.len());
        self.u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
        self.bytes(name);
    }

    pub(super) fn range(&mut self, range: BlockRange) {
        self.u64(range.start);
        self.u32(range.count);
    }

    pub(super) fn set(&mut self, set: &BlockSet) {
        self.count(set.ranges().len());
        set.ranges().iter().for_each(|range| self.range(*range));
    }

    pub(super) fn regions(&mut self, regions: &[RegionIndex]) {
        self.count(regions.len());
        regions.iter().for_each(|region| self.u32(region.0));
    }
}

/// Takes values from the front of a body.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Refuses bytes that are left over.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed("bytes after the last field")) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (value, rest) =
            self.rest.split_first_chunk().ok_or(Malformed("ends within a field"))?;
        self.rest = rest;
        Ok(*value)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, Malformed> {
        self.array().map(Uuid::from_bytes)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (value, rest) = self.rest.split_at_checked(len).ok_or(Malformed("ends too early"))?;
        self.rest = rest;
        Ok(value)
    }

    /// Checks that `count` entries of `size` bytes can follow, before room is made for them.
    pub(super) fn expect(
        &self,
        count: usize,
        size: usize,
        why: &'static str,
    ) -> Result<(), Malformed> {
        let fits = count.checked_mul(size).is_some_and(|bytes| bytes <= self.rest.len());
        if fits { Ok(()) } else { Err(Malformed(why)) }
    }

    /// A number of entries of `size` bytes each, all of which must be there.
    pub(super) fn count(&mut self, size: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        self.expect(count, size, "fewer entries than announced")?;
        Ok(count)
    }

    pub(super) fn node(&mut self) -> Result<NodeId, Malformed> {
        let len = usize::from(self.u8()?);
        let name = self.bytes(len)?;
        let name = core::str::from_utf8(name).ok().and_then(NodeId::new);
        name.ok_or(Malformed("not a node's name"))
    }

    /// A block of a volume of any legal size.
    pub(super) fn block(&mut self) -> Result<u64, Malformed> {
        let block = self.u64()?;
        let legal = block < MAX_VOLUME_BLOCKS;
        if legal { Ok(block) } else { Err(Malformed("a block beyond the largest volume")) }
    }

    /// A range within a volume of any legal size.
    pub(super) fn range(&mut self) -> Result<BlockRange, Malformed> {
        let (start, count) = (self.block()?, self.u32()?);
        if count == 0 {
            return Err(Malformed("an empty range"));
        }
        if u64::from(count) > MAX_VOLUME_BLOCKS - start {
            return Err(Malformed("a range beyond the largest volume"));
        }
        Ok(BlockRange { start, count })
    }

    /// A set in its one form: ranges ascending, apart from each other.
    pub(super) fn set(&mut self) -> Result<BlockSet, Malformed> {
        let count = self.count(RANGE_BYTES)?;
        let mut set = BlockSet::new();
        for before in 0..count {
            let range = self.range()?;
            // Put behind all others it stays as it is; anywhere else it does not become the last.
            set.insert(range);
            if set.ranges().len() != before + 1 || set.ranges().last() != Some(&range) {
                return Err(Malformed("ranges out of order, overlapping or touching"));
            }
        }
        Ok(set)
    }

    pub(super) fn region(&mut self) -> Result<RegionIndex, Malformed> {
        let region = RegionIndex(self.u32()?);
        let legal = u64::from(region.0) < MAX_VOLUME_BLOCKS / u64::from(BLOCKS_PER_REGION);
        if legal { Ok(region) } else { Err(Malformed("a region beyond the largest volume")) }
    }

    /// Regions, each once, ascending.
    pub(super) fn regions(&mut self) -> Result<Vec<RegionIndex>, Malformed> {
        let count = self.count(4)?;
        let regions: Result<Vec<_>, Malformed> = (0..count).map(|_| self.region()).collect();
        let regions = regions?;
        let ascending = regions.is_sorted_by(|a, b| a < b);
        if ascending { Ok(regions) } else { Err(Malformed("regions are not ascending")) }
    }
}
