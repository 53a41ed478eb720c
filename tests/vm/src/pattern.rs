//! Bytes that follow from a seed.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// `len` bytes. Another seed gives others.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
