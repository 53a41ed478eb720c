//! Memory that the kernel copies requests into.
//!
//! A process that is killed while the kernel copies a request into memory that was never touched
//! makes that request fail: finding the page is interrupted, and what was half read cannot be sent
//! again. So requests are read only into memory that is there already.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use super::wire::DATA_BYTES_MAX;
use crate::nbd::aligned;

const LEN: usize = DATA_BYTES_MAX as usize;
/// A payload up to this long is copied out, which is cheaper than holding a large buffer for it.
const COPIED_BYTES_MAX: usize = 64 * 1024;
/// Most large buffers kept for later.
const SPARE_MAX: usize = 16;

/// Large buffers that are not in use.
#[derive(Debug, Default)]
pub(crate) struct Spares(Mutex<Vec<BytesMut>>);

/// What one reader reads the data of writes into: [`DATA_BYTES_MAX`] bytes, at an address that is
/// a multiple of the block size.
#[derive(Debug)]
pub(crate) struct Landing {
    memory: BytesMut,
    spares: Arc<Spares>,
}

/// A payload in a large buffer, which goes back when nobody needs it any more.
struct Lent {
    memory: BytesMut,
    len: usize,
    spares: Arc<Spares>,
}

impl Spares {
    fn take(&self) -> BytesMut {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| {
            let mut memory = aligned(LEN);
            // Writes, so that the pages are there.
            memory.resize(LEN, 0);
            memory
        })
    }

    fn put(&self, memory: BytesMut) {
        let mut spares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spares.len() < SPARE_MAX {
            spares.push(memory);
        }
    }
}

impl Landing {
    pub(crate) fn new(spares: &Arc<Spares>) -> Self {
        Self { memory: spares.take(), spares: Arc::clone(spares) }
    }

    /// Where to read into.
    pub(crate) fn place(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The first `len` bytes, as a buffer of their own; the place is free again.
    pub(crate) fn take(&mut self, len: usize) -> Bytes {
        let len = len.min(LEN);
        if len <= COPIED_BYTES_MAX {
            let mut own = aligned(len);
            own.extend_from_slice(self.memory.get(..len).unwrap_or_default());
            return own.freeze();
        }
        let memory = std::mem::replace(&mut self.memory, self.spares.take());
        Bytes::from_owner(Lent { memory, len, spares: Arc::clone(&self.spares) })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.memory.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spares.put(std::mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BLOCK_BYTES;

    #[test]
    fn payloads_are_their_own_and_aligned() {
        let spares = Arc::new(Spares::default());
        let mut landing = Landing::new(&spares);
        let mut taken = Vec::new();
        for (byte, len) in [(1, 4096), (2, 65_536), (3, 131_072), (4, 1 << 20), (5, 4096)] {
            landing.place()[..len].fill(byte);
            taken.push((byte, len, landing.take(len)));
        }
        landing.place().fill(9);
        for (byte, len, payload) in &taken {
            assert_eq!(payload.as_ptr() as usize % BLOCK_BYTES as usize, 0, "{len} bytes");
            assert!(payload.len() == *len && payload.iter().all(|b| b == byte), "{len} bytes");
        }
        drop(taken);
        assert_eq!(spares.0.lock().unwrap().len(), 2, "both large buffers came back");
    }
}
