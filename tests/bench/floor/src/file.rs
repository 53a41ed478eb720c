//! A file past the page cache, and memory that such a file takes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use nix::libc::O_DIRECT;

use crate::wire::MAX_BYTES;

/// What direct I/O wants memory, offsets and lengths to be multiples of.
const BLOCK: usize = 4096;

/// A file of fixed size, opened past the page cache.
#[derive(Debug)]
pub(crate) struct DirectFile {
    file: File,
    size_bytes: u64,
}

impl DirectFile {
    pub(crate) fn open(path: &Path, size_bytes: u64) -> anyhow::Result<DirectFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).custom_flags(O_DIRECT);
        let file = options.open(path).with_context(|| {
            let path = path.display();
            format!("cannot open {path} with O_DIRECT, which memory takes from Linux 6.6 on")
        })?;
        file.set_len(size_bytes).with_context(|| format!("cannot grow {}", path.display()))?;
        Ok(DirectFile { file, size_bytes })
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn read(&self, room: &mut Room, offset: u64, len: usize) -> io::Result<()> {
        self.file.read_exact_at(room.data(len), offset)
    }

    pub(crate) fn write(&self, room: &mut Room, offset: u64, len: usize) -> io::Result<()> {
        self.file.write_all_at(room.data(len), offset)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Memory for the data of one request, with space for a header right before it, so that both
/// leave in one call.
#[derive(Debug)]
pub(crate) struct Room {
    memory: Vec<u8>,
    start: usize,
}

impl Room {
    pub(crate) fn new() -> Room {
        let memory = vec![0; 2 * BLOCK + MAX_BYTES];
        let start = BLOCK + memory.as_ptr().align_offset(BLOCK).min(BLOCK - 1);
        Room { memory, start }
    }

    /// The first `len` bytes of the data; `len` is at most [`MAX_BYTES`].
    pub(crate) fn data(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + len]
    }

    /// The header and, after it, the first `len` bytes of the data.
    pub(crate) fn with_header(&mut self, header: &[u8], len: usize) -> &[u8] {
        let begin = self.start - header.len();
        self.memory[begin..self.start].copy_from_slice(header);
        &self.memory[begin..self.start + len]
    }
}
