//! A volume in memory, in a file, or nowhere, that counts, and can be slow or stand still.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lockstep_attach::memory::MemoryBackend;
use lockstep_attach::{Backend, Errno, ExportInfo, ReadData, ZeroMode};
use tokio::sync::watch;

/// What is behind the device.
pub(crate) struct TestBackend {
    store: Store,
    size_bytes: AtomicU64,
    delay: Duration,
    held: watch::Sender<bool>,
    counts: [AtomicU64; NAMES.len()],
}

enum Store {
    Memory(MemoryBackend),
    File(Arc<File>),
    /// Done at once: what is left is the cost of the door. Reads give zeroes.
    Null(Bytes),
}

/// Where a volume's content is.
pub(crate) enum Place<'a> {
    Memory,
    File(&'a Path),
    Null,
}

/// Largest request that any door passes on.
const REQUEST_MAX: usize = 32 << 20;

const NAMES: [&str; 6] = ["reads", "writes", "fua", "flushes", "zeroes", "discards"];
const READS: usize = 0;
const WRITES: usize = 1;
const FUA: usize = 2;
const FLUSHES: usize = 3;
const ZEROES: usize = 4;
const DISCARDS: usize = 5;

impl TestBackend {
    pub(crate) fn new(size_bytes: u64, place: &Place<'_>, delay: Duration) -> io::Result<Self> {
        let store = match place {
            Place::Memory => Store::Memory(MemoryBackend::new(size_bytes)),
            Place::Null => Store::Null(BytesMut::zeroed(REQUEST_MAX).freeze()),
            Place::File(path) => {
                let mut options = File::options();
                let file =
                    options.read(true).write(true).create(true).truncate(false).open(path)?;
                if file.metadata()?.len() < size_bytes {
                    file.set_len(size_bytes)?;
                }
                Store::File(Arc::new(file))
            }
        };
        Ok(Self {
            store,
            size_bytes: AtomicU64::new(size_bytes),
            delay,
            held: watch::Sender::new(false),
            counts: [const { AtomicU64::new(0) }; NAMES.len()],
        })
    }

    /// Grows; memory cannot.
    pub(crate) fn resize(&self, size_bytes: u64) -> io::Result<()> {
        match &self.store {
            Store::Memory(_) => return Err(io::Error::other("memory does not grow; use --file")),
            Store::Null(_) => {}
            Store::File(file) => file.set_len(size_bytes)?,
        }
        self.size_bytes.store(size_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Lets all requests wait, or go on.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// What was done so far, as one line of JSON.
    pub(crate) fn counts(&self) -> String {
        let counts = NAMES.iter().zip(&self.counts);
        let pairs: Vec<String> = counts
            .map(|(name, count)| format!("\"{name}\":{}", count.load(Ordering::Relaxed)))
            .collect();
        format!("{{{}}}", pairs.join(","))
    }

    fn count(&self, what: usize) {
        if let Some(count) = self.counts.get(what) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn wait(&self) {
        if *self.held.borrow() {
            // The sender is ours, so it does not go away.
            let _ = self.held.subscribe().wait_for(|held| !held).await;
        }
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
    }

    fn changed(&self, what: usize, fua: bool) {
        self.count(what);
        if fua {
            self.count(FUA);
        }
    }
}

/// Calls that may block, away from the tasks.
async fn blocking<T: Send + 'static>(
    file: &Arc<File>,
    work: impl FnOnce(&File) -> io::Result<T> + Send + 'static,
) -> Result<T, Errno> {
    let file = Arc::clone(file);
    let done = tokio::task::spawn_blocking(move || work(&file)).await;
    done.map_err(|_| Errno::Io)?.map_err(|_| Errno::Io)
}

impl Backend for TestBackend {
    fn info(&self) -> ExportInfo {
        ExportInfo { size_bytes: self.size_bytes.load(Ordering::Relaxed), read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<ReadData, Errno> {
        self.wait().await;
        self.count(READS);
        match &self.store {
            Store::Memory(memory) => memory.read(offset, len).await,
            Store::File(file) => {
                let data = blocking(file, move |file| {
                    let mut data = BytesMut::zeroed(usize::try_from(len).unwrap_or(0));
                    file.read_exact_at(&mut data, offset).map(|()| data.freeze())
                });
                data.await.map(Into::into)
            }
            Store::Null(zeroes) => {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                if len > zeroes.len() {
                    Err(Errno::Invalid)
                } else {
                    Ok(zeroes.slice(..len).into())
                }
            }
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Errno> {
        self.wait().await;
        self.changed(WRITES, fua);
        match &self.store {
            Store::Memory(memory) => memory.write(offset, data, fua).await,
            Store::File(file) => {
                blocking(file, move |file| {
                    file.write_all_at(&data, offset)?;
                    if fua { file.sync_data() } else { Ok(()) }
                })
                .await
            }
            Store::Null(_) => Ok(()),
        }
    }

    async fn flush(&self) -> Result<(), Errno> {
        self.wait().await;
        self.count(FLUSHES);
        match &self.store {
            Store::Memory(memory) => memory.flush().await,
            Store::File(file) => blocking(file, File::sync_data).await,
            Store::Null(_) => Ok(()),
        }
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Errno> {
        self.wait().await;
        self.changed(ZEROES, mode.fua);
        match &self.store {
            Store::Memory(memory) => memory.zero(offset, len, mode).await,
            Store::File(file) => blocking(file, move |file| punch(file, offset, len)).await,
            Store::Null(_) => Ok(()),
        }
    }

    async fn discard(&self, offset: u64, len: u64, fua: bool) -> Result<(), Errno> {
        self.wait().await;
        self.changed(DISCARDS, fua);
        match &self.store {
            Store::Memory(memory) => memory.discard(offset, len, fua).await,
            Store::File(file) => blocking(file, move |file| punch(file, offset, len)).await,
            Store::Null(_) => Ok(()),
        }
    }
}

fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    use nix::fcntl::FallocateFlags;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let [offset, len] = [offset, len].map(|value| i64::try_from(value).unwrap_or(i64::MAX));
    Ok(nix::fcntl::fallocate(file, flags, offset, len)?)
}
