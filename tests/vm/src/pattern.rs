//! Bytes that follow from a seed.

/// `len` bytes. Another seed gives others.
///
/// `SplitMix64`, which an emulated processor does in no time: what has to be seen is that bytes are
/// those of one seed and no other, and nobody guesses.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = vec![0; len];
    for word in bytes.chunks_mut(size_of::<u64>()) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_belong_to_one_seed() {
        // The first word of SplitMix64 for the seed 0, as its author's program gives it.
        assert_eq!(bytes(0, 8), 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
        assert_eq!(bytes(7, 4099)[..4096], bytes(7, 4096));
        let others =
            |seed| bytes(seed, 4096).iter().zip(bytes(7, 4096)).filter(|(a, b)| *a == b).count();
        assert!([6, 8, 0].into_iter().all(|seed| others(seed) < 64));
    }
}
