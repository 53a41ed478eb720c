//! Buffers that start at a block boundary in memory, as direct I/O needs them.

use bytes::{Buf, Bytes, BytesMut};
use lockstep_core::range::BLOCK_SIZE;

/// Alignment of every buffer: one block.
pub(crate) const ALIGN: usize = BLOCK_SIZE as usize;

/// Does `data` start at a block boundary in memory?
#[must_use]
pub(crate) fn is_aligned(data: &[u8]) -> bool {
    data.as_ptr().align_offset(ALIGN) == 0
}

/// A zeroed buffer that can be filled in place and then shared without a copy.
#[derive(Debug)]
pub(crate) struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes.
    #[must_use]
    pub(crate) fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + ALIGN - 1];
        // A shift of at most ALIGN - 1 always reaches the boundary; a platform that can't tell
        // costs the alignment, not the data.
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN - 1);
        Self { memory, start, len }
    }

    /// A copy of `data`.
    #[must_use]
    pub(crate) fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::zeroed(data.len());
        buf.as_mut().copy_from_slice(data);
        buf
    }

    /// The bytes, shared; no copy.
    #[must_use]
    pub(crate) fn freeze(self) -> Bytes {
        Bytes::from(self.memory).slice(self.start..self.start + self.len)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// An empty buffer whose next `len` bytes start at a block boundary; to be filled from a socket.
#[must_use]
pub(crate) fn aligned_space(len: usize) -> BytesMut {
    let mut space = BytesMut::with_capacity(len + ALIGN - 1);
    let pad = space.as_ptr().align_offset(ALIGN).min(ALIGN - 1);
    space.resize(pad, 0);
    space.advance(pad);
    space
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;

    #[test]
    fn buffers_start_at_a_block_boundary() {
        for len in [1, 4095, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert!(is_aligned(buf.as_ref()));
            buf.as_mut()[len - 1] = 7;
            let shared = buf.freeze();
            assert!(is_aligned(&shared));
            assert_eq!((shared.len(), shared[len - 1]), (len, 7));

            let mut space = aligned_space(len);
            space.put_slice(&shared);
            assert!(is_aligned(&space));
            assert_eq!(space.freeze(), shared);
        }
    }
}
