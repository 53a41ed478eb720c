//! Payload buffers that a back end can hand to a disk without copying.

use bytes::BytesMut;

use crate::backend::BLOCK_BYTES;

const ALIGN: usize = BLOCK_BYTES as usize;

/// An empty buffer with room for `len` bytes, whose first byte lies at a multiple of the block
/// size in memory. It costs one block of slack per payload, which is cheaper than a copy.
pub(crate) fn aligned(len: usize) -> BytesMut {
    let mut raw = BytesMut::with_capacity(len + ALIGN);
    let slack = raw.as_ptr().align_offset(ALIGN);
    assert!(slack < ALIGN, "an address is always less than one block from a block boundary");
    raw.resize(slack, 0);
    let payload = raw.split_off(slack);
    assert!(payload.capacity() >= len);
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_start_on_a_block_and_never_move() {
        for len in [1, 4096, 8192, 65_536, 1 << 20] {
            let mut payload = aligned(len);
            let start = payload.as_ptr();
            assert_eq!(start as usize % ALIGN, 0, "{len} bytes");
            payload.extend_from_slice(&vec![7; len]);
            assert_eq!(payload.as_ptr(), start, "{len} bytes were moved while filling");
            assert_eq!(payload.freeze().as_ptr(), start);
        }
    }
}
