//! Blocks whose content tells which write they come from.

use bytes::Bytes;
use lockstep_core::block::is_zero;
use lockstep_core::gap;
use lockstep_core::message::Digest;
use lockstep_store::blake3_digest;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

/// Bytes that are repeated all over a block.
const UNIT: usize = 16;
/// Bytes in a block.
pub const BLOCK: usize = 4096;

/// Which write a block's content comes from; 0 is zeroes. What nobody wrote has the highest bit,
/// and differs where the contents differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(pub u64);

impl Value {
    /// What a block holds that was never written, or was zeroed.
    pub const ZERO: Self = Self(0);
    /// What stands in place of a block whose content is lost.
    pub const GAP: Self = Self(1 << 62);
    const NOBODYS: u64 = 1 << 63;

    /// Did nobody write it? It may be a mixture of what was written.
    #[must_use]
    pub fn is_torn(self) -> bool {
        self.0 & Self::NOBODYS != 0
    }

    fn nobodys(content: &[u8]) -> Self {
        let mix = |sum: u64, eight: &[u8]| {
            let number = eight.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            (sum.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        Self(content.chunks(8).fold(1, mix) | Self::NOBODYS)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ZERO => write!(f, "zeroes"),
            Self::GAP => write!(f, "a gap"),
            _ if self.is_torn() => write!(f, "garbage {:x}", self.0 & 0xffff),
            Self(n) => write!(f, "w{n}"),
        }
    }
}

fn unit(value: Value, block: u64) -> [u8; UNIT] {
    let mut unit = [0; UNIT];
    unit[..8].copy_from_slice(&value.0.to_le_bytes());
    unit[8..].copy_from_slice(&(block ^ 0x005e_ed0b_10c5).to_le_bytes());
    unit
}

/// The content that write `value` gives to the `count` blocks from `start`.
#[must_use]
pub fn payload(value: Value, start: u64, count: u32) -> Bytes {
    let mut out = Vec::with_capacity(count as usize * BLOCK);
    for block in start..start + u64::from(count) {
        let at = out.len();
        out.extend_from_slice(&unit(value, block));
        while out.len() - at < BLOCK {
            let have = out.len() - at;
            out.extend_from_within(at..at + have.min(BLOCK - have));
        }
    }
    Bytes::from(out)
}

/// Which write the content of `block` comes from.
#[must_use]
pub fn value_of(block: u64, content: &[u8]) -> Value {
    let Some(head) = content.get(..8).and_then(|h| h.try_into().ok()) else {
        return Value::nobodys(content);
    };
    if content.starts_with(&gap::MAGIC) {
        let whole = content.len() == BLOCK && content[..BLOCK - 32] == content[32..];
        return if whole { Value::GAP } else { Value::nobodys(content) };
    }
    let value = Value(u64::from_le_bytes(head));
    if value == Value::ZERO {
        return if is_zero(content) { Value::ZERO } else { Value::nobodys(content) };
    }
    let here = content[..UNIT] == unit(value, block);
    if here && is_periodic(content) { value } else { Value::nobodys(content) }
}

/// Contents of which the digests are kept: more than a world has.
const KEPT: usize = 20_000;

/// The digest of a block's content. To compute it again for each copy and each look takes most of
/// the time of a comparison, and the contents here are few.
#[must_use]
pub fn digest(content: &[u8]) -> Digest {
    type Known = BTreeMap<[u8; UNIT], Digest>;
    thread_local! {
        static KNOWN: RefCell<Known> = const { RefCell::new(BTreeMap::new()) };
    }
    // What is periodic is known by its first unit.
    let Some(unit) = content.first_chunk().filter(|_| is_periodic(content)) else {
        return blake3_digest(content);
    };
    KNOWN.with_borrow_mut(|known| {
        if known.len() > KEPT {
            known.clear();
        }
        *known.entry(*unit).or_insert_with(|| blake3_digest(content))
    })
}

/// Is it one unit, over and over?
fn is_periodic(content: &[u8]) -> bool {
    content.len() == BLOCK && content[..BLOCK - UNIT] == content[UNIT..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_whole_content() {
        let data = payload(Value(42), 7, 2);
        let mut torn = data[..BLOCK].to_vec();
        torn[4095] ^= 1;
        for content in [&data[..BLOCK], &data[BLOCK..], &torn, &data[..BLOCK]] {
            assert_eq!(digest(content), blake3_digest(content));
        }
    }

    #[test]
    fn content_tells_its_write_and_its_place() {
        let data = payload(Value(42), 7, 3);
        assert_eq!(data.len(), 3 * BLOCK);
        for (i, chunk) in data.chunks(BLOCK).enumerate() {
            assert_eq!(value_of(7 + i as u64, chunk), Value(42));
            assert!(value_of(8 + i as u64, chunk).is_torn(), "of another block");
        }
        assert_eq!(value_of(0, &[0; BLOCK]), Value::ZERO);
        let mut torn = data[..BLOCK].to_vec();
        torn[2048..].fill(0);
        let half = value_of(7, &torn);
        torn[1024..].fill(0);
        assert!(half.is_torn() && value_of(7, &torn).is_torn() && value_of(7, &torn) != half);
    }
}
