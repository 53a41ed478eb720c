//! The content of one block: is it zeroes, and what is its checksum?

use crate::range::{BLOCK_SIZE, BLOCKS_PER_REGION};

/// A region of zeroes, to be given out for a hole: what lies in here is known to be zeroes without
/// a look at it.
pub static ZEROES: [u8; REGION] = [0; REGION];

/// CRC32C (Castagnoli) of a block of zeroes.
pub const ZERO_CRC: u32 = 0x98f9_4189;

const BLOCK: usize = BLOCK_SIZE as usize;
const REGION: usize = BLOCK * BLOCKS_PER_REGION as usize;

/// Is it a whole block of zeroes?
#[must_use]
pub fn is_zero(block: &[u8]) -> bool {
    let known = ZEROES.as_ptr_range().contains(&block.as_ptr());
    block.len() == BLOCK && (known || *block == ZEROES[..BLOCK])
}

/// CRC32C (Castagnoli) of a block. Volumes are mostly holes, and to see that a block is one takes
/// a fraction of the time of its checksum; other blocks differ from it early.
#[must_use]
pub fn crc(block: &[u8]) -> u32 {
    if is_zero(block) { ZERO_CRC } else { crc32c::crc32c(block) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_block_is_its_crc32c() {
        let mut block = [0; BLOCK];
        assert!(is_zero(&block) && is_zero(&ZEROES[BLOCK..2 * BLOCK]));
        assert_eq!(crc(&block), crc32c::crc32c(&block));
        block[4095] = 1;
        assert!(!is_zero(&block), "one byte differs");
        assert_eq!(crc(&block), crc32c::crc32c(&block));
        assert!(!is_zero(&[0; 8]), "not a whole block");
        assert_eq!(crc(&[0; 8]), crc32c::crc32c(&[0; 8]));
    }
}
