//! A disk for a virtual machine, served over NBD, that treats its cache as real disks do: at a
//! power cut, of the writes that were not flushed any may be there and any may be lost.
//!
//! On SIGTERM, which stands for the power cut, each block that was written since the last flush
//! keeps one of the versions that it had, from the last durable one to the newest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use lockstep_attach::backend::BLOCK_BYTES;
use lockstep_attach::nbd::{Export, Limits, Server, bind_unix};
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, ZeroMode};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::say;

const BLOCK: usize = BLOCK_BYTES as usize;

/// What to serve.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image; its size is the disk's.
    image: PathBuf,
    /// Where the export `disk` is served.
    #[arg(long)]
    socket: PathBuf,
    /// Decides what a power cut leaves.
    #[arg(long)]
    seed: u64,
}

/// Blocks in the cache: what each was made since the last flush, the newest last.
type Cache = BTreeMap<u64, Vec<Bytes>>;

struct Disk {
    image: File,
    size_bytes: u64,
    cache: Mutex<Cache>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<()> {
    let mut cut = signal(SignalKind::terminate())?;
    let at = || args.image.display().to_string();
    let disk = Arc::new(Disk::open(
        File::options().read(true).write(true).open(&args.image).with_context(at)?,
    )?);
    let stop = CancellationToken::new();
    let server = Server::new(Limits::default(), stop.clone());
    server.add(Export::new("disk", Arc::clone(&disk)))?;
    let listener = bind_unix(&args.socket).with_context(|| args.socket.display().to_string())?;
    say("serving");
    tokio::select! {
        () = server.serve(listener) => {}
        _ = cut.recv() => {}
    }
    stop.cancel();
    server.closed().await;
    let (kept, lost) = disk.cut(&mut StdRng::seed_from_u64(args.seed))?;
    say(&format!("cut: of {} cached blocks {lost} lost something", kept + lost));
    Ok(())
}

impl Disk {
    fn open(image: File) -> Result<Self> {
        let size_bytes = image.metadata()?.len();
        Ok(Self { image, size_bytes, cache: Mutex::default() })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the newest version of each block, or makes it the only one.
    fn put(&self, offset: u64, data: &Bytes, fua: bool) -> io::Result<()> {
        let mut cache = self.cache();
        for (block, at) in (offset / BLOCK as u64..).zip((0..data.len()).step_by(BLOCK)) {
            let content = data.slice(at..at + BLOCK);
            if fua {
                self.image.write_all_at(&content, block * BLOCK as u64)?;
                cache.remove(&block);
            } else {
                cache.entry(block).or_default().push(content);
            }
        }
        Ok(())
    }

    fn get(&self, offset: u64, len: u32) -> io::Result<Bytes> {
        let mut data = vec![0; len as usize];
        let cache = self.cache();
        self.image.read_exact_at(&mut data, offset)?;
        let blocks = offset / BLOCK as u64..(offset + u64::from(len)) / BLOCK as u64;
        for (block, place) in blocks.zip(data.chunks_exact_mut(BLOCK)) {
            if let Some(newest) = cache.get(&block).and_then(|versions| versions.last()) {
                place.copy_from_slice(newest);
            }
        }
        Ok(data.into())
    }

    fn settle(&self) -> io::Result<()> {
        let mut cache = self.cache();
        for (block, versions) in std::mem::take(&mut *cache) {
            if let Some(newest) = versions.last() {
                self.image.write_all_at(newest, block * BLOCK as u64)?;
            }
        }
        Ok(())
    }

    /// The power goes. Returns how many blocks kept all of their changes, and how many did not.
    fn cut(&self, rng: &mut StdRng) -> io::Result<(usize, usize)> {
        let (mut kept, mut lost) = (0, 0);
        for (block, versions) in std::mem::take(&mut *self.cache()) {
            let count = rng.random_range(0..=versions.len());
            if count == versions.len() {
                kept += 1
            } else {
                lost += 1
            }
            if let Some(last) = versions.get(count.wrapping_sub(1)) {
                self.image.write_all_at(last, block * BLOCK as u64)?;
            }
        }
        Ok((kept, lost))
    }
}

fn answer<T>(outcome: io::Result<T>) -> Result<T, Errno> {
    outcome.map_err(|_| Errno::Io)
}

impl Backend for Disk {
    fn info(&self) -> ExportInfo {
        ExportInfo { size_bytes: self.size_bytes, read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        answer(self.get(offset, len).map(ReadData::from))
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        answer(self.put(offset, &data, fua))
    }

    async fn flush(&self) -> Result<(), Errno> {
        answer(self.settle())
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        let zeroes = Bytes::from(vec![0; BLOCK]);
        for at in (offset..offset + len).step_by(BLOCK) {
            answer(self.put(at, &zeroes, mode.fua))?;
        }
        Ok(())
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.zero(offset, len, ZeroMode { fua, ..ZeroMode::default() }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        let image = tempfile::tempfile().unwrap();
        image.set_len(64 * BLOCK as u64).unwrap();
        Disk::open(image).unwrap()
    }

    fn block(byte: u8) -> Bytes {
        Bytes::from(vec![byte; BLOCK])
    }

    fn first_bytes(disk: &Disk) -> Vec<u8> {
        (0..64).map(|n| disk.get(n * BLOCK as u64, BLOCK_BYTES).unwrap()[0]).collect()
    }

    #[test]
    fn a_cut_loses_only_what_was_not_flushed() {
        let disk = disk();
        for n in 0..64 {
            disk.put(n * BLOCK as u64, &block(1), false).unwrap();
        }
        disk.settle().unwrap();
        for n in 0..64 {
            disk.put(n * BLOCK as u64, &block(2), false).unwrap();
            disk.put(n * BLOCK as u64, &block(3), n % 2 == 0).unwrap();
        }
        assert!(first_bytes(&disk).iter().all(|byte| *byte == 3));
        let (kept, lost) = disk.cut(&mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(kept + lost, 32, "the others were durable when they were written");
        let seen = first_bytes(&disk);
        assert!(seen.iter().step_by(2).all(|byte| *byte == 3));
        for version in 1..=3 {
            assert!(seen.contains(&version), "{seen:?}");
        }
    }
}
