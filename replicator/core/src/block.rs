//! The content of one block: is it zeroes, and what is its checksum?

use crate::range::BLOCK_SIZE;

/// The content of a block that was never written.
pub static ZEROES: [u8; BLOCK_SIZE as usize] = [0; BLOCK_SIZE as usize];

/// CRC32C (Castagnoli) of [`ZEROES`].
pub const ZERO_CRC: u32 = 0x98f9_4189;

/// Is it a whole block of zeroes?
#[must_use]
pub fn is_zero(block: &[u8]) -> bool {
    block == ZEROES
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
        let mut block = ZEROES;
        assert_eq!(crc(&block), crc32c::crc32c(&block));
        block[4095] = 1;
        assert!(!is_zero(&block), "one byte differs");
        assert_eq!(crc(&block), crc32c::crc32c(&block));
        assert!(!is_zero(&[0; 8]), "not a whole block");
        assert_eq!(crc(&[0; 8]), crc32c::crc32c(&[0; 8]));
    }
}
