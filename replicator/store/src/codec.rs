//! Little-endian fields at fixed offsets of a block.

use lockstep_core::id::RegionIndex;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Checksum of a block whose own checksum field, 4 bytes at `field`, counts as zero.
pub(crate) fn checksum_without(bytes: &[u8], field: usize) -> u32 {
    let crc = crc32c::crc32c(&bytes[..field]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[field + 4..])
}

/// An index into something held in memory. Everything indexed here is far below 2^32.
pub(crate) fn index(value: u64) -> usize {
    let index = usize::try_from(value);
    assert!(index.is_ok(), "{value} does not fit into memory");
    index.unwrap_or(usize::MAX)
}

pub(crate) fn region_index(region: RegionIndex) -> usize {
    index(u64::from(region.0))
}
