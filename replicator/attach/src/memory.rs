//! A volume in memory, for tests and measurements. Nothing survives the process.

mod gated;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::backend::{
    BLOCK_BYTES, Backend, Errno, ExportInfo, Extent, ReadData, Segment, ZeroMode,
};

pub use gated::Gated;

const BLOCK: usize = BLOCK_BYTES as usize;
/// Blocks per chunk; a chunk is what one lock guards and what is allocated at once.
const CHUNK_BLOCKS: usize = 16;
const CHUNK: usize = CHUNK_BLOCKS * BLOCK;

/// A sparse volume in memory.
///
/// It remembers which blocks were written and not flushed since, so that a test can tell whether
/// a flush or the FUA flag reached it.
#[derive(Debug)]
pub struct MemoryBackend {
    info: ExportInfo,
    chunks: Vec<Mutex<Chunk>>,
    unflushed: Mutex<BTreeSet<u64>>,
    flushes: AtomicU64,
}

#[derive(Debug, Default)]
struct Chunk {
    /// Empty until the first write.
    data: Vec<u8>,
    /// Bit per block that was written since it was last zeroed or discarded.
    present: u16,
}

/// The part of a request that falls into one chunk, in bytes.
struct Piece {
    chunk: usize,
    start: usize,
    end: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryBackend {
    /// A volume of `size_bytes`, rounded up to whole blocks, that reads as zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let size_bytes = size_bytes.next_multiple_of(u64::from(BLOCK_BYTES));
        let chunks = size_bytes.div_ceil(CHUNK as u64);
        Self {
            info: ExportInfo { size_bytes, read_only: false },
            chunks: (0..chunks).map(|_| Mutex::new(Chunk::default())).collect(),
            unflushed: Mutex::new(BTreeSet::new()),
            flushes: AtomicU64::new(0),
        }
    }

    /// The same volume, read-only.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.info.read_only = true;
        self
    }

    /// Blocks written without FUA and not flushed since.
    #[must_use]
    pub fn unflushed_blocks(&self) -> usize {
        lock(&self.unflushed).len()
    }

    /// Flushes done so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// Blocks that hold written data.
    #[must_use]
    pub fn allocated_blocks(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(lock(chunk).present.count_ones())).sum()
    }

    fn pieces(&self, offset: u64, len: u64) -> Result<Vec<Piece>, Errno> {
        let (mut at, end) = (offset, offset.checked_add(len).ok_or(Errno::Invalid)?);
        if end > self.info.size_bytes {
            return Err(Errno::Invalid);
        }
        let mut pieces = Vec::with_capacity(1);
        while at < end {
            let start = index(at % CHUNK as u64);
            let stop = CHUNK.min(start.saturating_add(index(end - at)));
            pieces.push(Piece { chunk: index(at / CHUNK as u64), start, end: stop });
            at += (stop - start) as u64;
        }
        Ok(pieces)
    }

    fn chunk(&self, piece: &Piece) -> Result<MutexGuard<'_, Chunk>, Errno> {
        self.chunks.get(piece.chunk).map(lock).ok_or(Errno::Invalid)
    }

    fn written(&self, offset: u64, len: u64, fua: bool) {
        let block = u64::from(BLOCK_BYTES);
        let blocks = offset / block..(offset + len).div_ceil(block);
        let mut unflushed = lock(&self.unflushed);
        for number in blocks {
            if fua {
                unflushed.remove(&number);
            } else {
                unflushed.insert(number);
            }
        }
    }

    fn clear(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        for piece in self.pieces(offset, len)? {
            let mut chunk = self.chunk(&piece)?;
            for block in piece.blocks() {
                chunk.present &= !(1 << block);
            }
            if chunk.present == 0 {
                chunk.data = Vec::new();
            }
        }
        self.written(offset, len, fua);
        Ok(())
    }

    fn store(&self, offset: u64, mut data: Bytes, fua: bool) -> Result<(), Errno> {
        let len = data.len() as u64;
        for piece in self.pieces(offset, len)? {
            let part = data.split_to(piece.end - piece.start);
            let mut chunk = self.chunk(&piece)?;
            if chunk.data.is_empty() {
                chunk.data = vec![0; CHUNK];
            }
            let place = chunk.data.get_mut(piece.start..piece.end).ok_or(Errno::Invalid)?;
            place.copy_from_slice(&part);
            for block in piece.blocks() {
                chunk.present |= 1 << block;
            }
        }
        self.written(offset, len, fua);
        Ok(())
    }

    fn load(&self, offset: u64, len: u64) -> Result<ReadData, Errno> {
        let mut segments = Vec::with_capacity(1);
        let mut data = BytesMut::new();
        for piece in self.pieces(offset, len)? {
            let chunk = self.chunk(&piece)?;
            for block in piece.blocks() {
                if chunk.present & (1 << block) == 0 {
                    finish(&mut segments, &mut data);
                    segments.push(Segment::Zeroes(u64::from(BLOCK_BYTES)));
                    continue;
                }
                let stored = chunk.data.get(block * BLOCK..(block + 1) * BLOCK);
                data.extend_from_slice(stored.ok_or(Errno::Io)?);
            }
        }
        finish(&mut segments, &mut data);
        Ok(segments.into())
    }

    fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Errno> {
        let mut extents = Vec::new();
        for piece in self.pieces(offset, len)? {
            let chunk = self.chunk(&piece)?;
            extents.extend(piece.blocks().map(|block| {
                let hole = chunk.present & (1 << block) == 0;
                Extent { len_bytes: u64::from(BLOCK_BYTES), hole, zero: hole }
            }));
        }
        Ok(extents)
    }
}

impl Piece {
    fn blocks(&self) -> std::ops::Range<usize> {
        self.start / BLOCK..self.end.div_ceil(BLOCK)
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn finish(segments: &mut Vec<Segment>, data: &mut BytesMut) {
    if !data.is_empty() {
        segments.push(Segment::Data(data.split().freeze()));
    }
}

impl Backend for MemoryBackend {
    fn info(&self) -> ExportInfo {
        self.info
    }

    fn read(
        &self,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<ReadData, Errno>> + Send + '_ {
        std::future::ready(self.load(offset, u64::from(len)))
    }

    fn write(
        &self,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_ {
        std::future::ready(self.store(offset, data, fua))
    }

    fn flush(&self) -> impl Future<Output = Result<(), Errno>> + Send + '_ {
        lock(&self.unflushed).clear();
        self.flushes.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(()))
    }

    fn zero(
        &self,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_ {
        std::future::ready(match mode {
            // Provisioning memory means writing it, which is as slow as a write.
            ZeroMode { no_hole: true, fast: true, .. } => Err(Errno::NotSupported),
            ZeroMode { no_hole: true, fua, .. } => self.provision(offset, len, fua),
            ZeroMode { fua, .. } => self.clear(offset, len, fua),
        })
    }

    fn discard(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
    ) -> impl Future<Output = Result<(), Errno>> + Send + '_ {
        std::future::ready(self.clear(offset, len, fua))
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<Vec<Extent>, Errno>> + Send + '_ {
        std::future::ready(self.extents(offset, len))
    }
}

impl MemoryBackend {
    fn provision(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        let mut at = 0;
        while at < len {
            let part = (len - at).min(1 << 20);
            self.store(offset + at, Bytes::from(vec![0; index(part)]), fua)?;
            at += part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCKS: u64 = 40;

    fn flat(data: ReadData) -> Vec<u8> {
        let mut bytes = Vec::new();
        for segment in data.segments {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(&data),
                Segment::Zeroes(len) => bytes.resize(bytes.len() + index(len), 0),
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn it_is_an_array_of_bytes(
            steps in prop::collection::vec((0..BLOCKS, 1..20u64, 0..4u8, 1..=255u8), 1..60),
        ) {
            let volume = MemoryBackend::new(BLOCKS * BLOCK as u64);
            let mut model = vec![0u8; index(BLOCKS) * BLOCK];
            for (block, count, action, byte) in steps {
                let count = count.min(BLOCKS - block);
                let (offset, len) = (block * BLOCK as u64, count * BLOCK as u64);
                let range = index(offset)..index(offset + len);
                let value = match action {
                    0 => { volume.clear(offset, len, false).unwrap(); 0 }
                    1 => { volume.provision(offset, len, false).unwrap(); 0 }
                    _ => {
                        let data = vec![byte; index(len)];
                        volume.store(offset, data.into(), false).unwrap();
                        byte
                    }
                };
                model[range.clone()].fill(value);
                prop_assert!(flat(volume.load(offset, len).unwrap()) == model[range]);
            }
            let all = flat(volume.load(0, BLOCKS * BLOCK as u64).unwrap());
            prop_assert!(all == model);
            let extents = volume.extents(0, BLOCKS * BLOCK as u64).unwrap();
            let mut at = 0;
            for extent in extents {
                let end = at + index(extent.len_bytes);
                prop_assert!(!extent.zero || model[at..end].iter().all(|&byte| byte == 0));
                at = end;
            }
            prop_assert_eq!(at, model.len());
        }
    }

    #[tokio::test]
    async fn it_knows_what_was_not_flushed() {
        let volume = MemoryBackend::new(1 << 20);
        volume.write(0, vec![1; 8192].into(), false).await.unwrap();
        assert_eq!(volume.unflushed_blocks(), 2);
        volume.write(4096, vec![2; 4096].into(), true).await.unwrap();
        assert_eq!(volume.unflushed_blocks(), 1);
        volume.flush().await.unwrap();
        assert_eq!((volume.unflushed_blocks(), volume.flushes()), (0, 1));
    }
}
