//! A gap: what a copy holds in place of a block whose content is lost on every copy.
//!
//! A new copy has to say of such a block what the others say: that it can't be read. It is told so
//! by content that no guest writes, which stands where the block's content would: so it holds
//! whatever becomes of tags and logs, until the block is written again. No copy ever gives it out.

use bytes::{BufMut, Bytes, BytesMut};

use crate::id::VolumeId;
use crate::range::BLOCK_SIZE;

/// Begins every unit of a gap. Random, so that it stands nowhere by chance.
pub const MAGIC: [u8; 16] = 0x6c6f_7374_a94d_7be2_9a3c_11f0_5ed8_c04b_u128.to_be_bytes();

const UNITS: usize = BLOCK_SIZE as usize / 32;

/// What a block of this volume holds whose content is lost.
#[must_use]
pub fn content(volume: VolumeId) -> Bytes {
    let mut out = BytesMut::with_capacity(BLOCK_SIZE as usize);
    for _ in 0..UNITS {
        out.put_slice(&MAGIC);
        out.put_slice(volume.0.as_bytes());
    }
    out.freeze()
}

/// Is it the content of a block of this volume that is lost?
#[must_use]
pub fn is_gap(volume: VolumeId, block: &[u8]) -> bool {
    // All other blocks differ at the first bytes.
    block.starts_with(&MAGIC) && block == content(volume)
}

/// Is it the content of a block of any volume that is lost?
#[must_use]
pub fn is_any_gap(block: &[u8]) -> bool {
    let unit = block.get(..32).filter(|unit| unit.starts_with(&MAGIC));
    unit.is_some_and(|unit| {
        block.len() == BLOCK_SIZE as usize && block.chunks_exact(32).all(|other| other == unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_gap_is_one_of_its_volume_and_whole() {
        let (here, there) = (VolumeId(Uuid::from_u128(1)), VolumeId(Uuid::from_u128(2)));
        let gap = content(here);
        assert_eq!(gap.len(), BLOCK_SIZE as usize);
        assert!(is_gap(here, &gap) && !is_gap(there, &gap));
        assert!(!is_gap(here, &[0; BLOCK_SIZE as usize]) && !is_gap(here, &gap[..512]));
        let mut other = gap.to_vec();
        other[4095] ^= 1;
        assert!(!is_gap(here, &other) && !is_any_gap(&other));
        assert!(is_any_gap(&gap) && is_any_gap(&content(there)) && !is_any_gap(&gap[..512]));
    }
}
