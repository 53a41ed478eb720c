//! What the blocks of the test area hold: bytes that follow from the seed, the block and the
//! version that was written, so that any block can be recognised or be told to be wrong.

use lockstep_attach::backend::BLOCK_BYTES;

/// Bytes of a block.
pub const BLOCK: usize = BLOCK_BYTES as usize;

/// Which write a block's content is from; 0: none, the block is all zeroes.
pub type Version = u64;

/// The contents of one run.
#[derive(Clone, Copy, Debug)]
pub struct Content {
    seed: u64,
}

impl Content {
    /// The contents that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Writes the content of `version` of `block` into `out`, which is one block long.
    pub fn fill(self, block: u64, version: Version, out: &mut [u8]) {
        assert_eq!(out.len(), BLOCK, "contents are made block by block");
        for (word, bytes) in self.words(block, version).zip(out.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Which version of `block` these bytes are; `None`: none that was ever made.
    pub fn recognise(self, block: u64, bytes: &[u8]) -> Option<Version> {
        let (first, _) = bytes.split_first_chunk::<8>()?;
        let version = u64::from_le_bytes(*first) ^ self.mask(block);
        if bytes.len() != BLOCK {
            return None;
        }
        if bytes.iter().all(|b| *b == 0) {
            return Some(0);
        }
        let mut words = self.words(block, version).zip(bytes.chunks_exact(8));
        words.all(|(word, bytes)| bytes == word.to_le_bytes()).then_some(version)
    }

    /// The first word carries the version, the others follow from it.
    fn words(self, block: u64, version: Version) -> impl Iterator<Item = u64> {
        let mut state = mix(self.mask(block) ^ mix(version));
        std::iter::once(version ^ self.mask(block)).chain(std::iter::from_fn(move || {
            state = state.wrapping_add(GOLDEN);
            Some(mix(state))
        }))
    }

    fn mask(self, block: u64) -> u64 {
        mix(self.seed ^ mix(block.wrapping_add(GOLDEN)))
    }
}

/// 2^64 divided by the golden ratio: the increment of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_recognised_only_where_it_was_written_and_whole() {
        let content = Content::new(7);
        let mut bytes = vec![0; BLOCK];
        assert_eq!(content.recognise(3, &bytes), Some(0));
        content.fill(3, 41, &mut bytes);
        assert_eq!(content.recognise(3, &bytes), Some(41));
        assert_ne!(content.recognise(4, &bytes), Some(41));
        assert_ne!(Content::new(8).recognise(3, &bytes), Some(41));
        assert_eq!(content.recognise(3, &bytes[..512]), None);
        // Half of it is older.
        let mut older = vec![0; BLOCK];
        content.fill(3, 40, &mut older);
        let mut torn = bytes.clone();
        torn[2048..].copy_from_slice(&older[2048..]);
        assert_eq!(content.recognise(3, &torn), None);
        bytes[4095] ^= 1;
        assert_eq!(content.recognise(3, &bytes), None);
    }
}
