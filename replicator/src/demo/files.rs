//! Writers of files on a mounted file system, each write entered in the ledger. A write counts as
//! acknowledged once `fsync` has returned.
//!
//! The ledger knows blocks; here they are those of all files, one after the other.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::content::{BLOCK, Content};
use super::ledger::{Findings, Ledger, Span};
use super::workload::{Orders, Pace, Progress};

/// Threads that write, each its own files.
const WRITERS: u64 = 8;
/// Blocks of a file: 1 MiB.
const FILE_BLOCKS: u64 = 256;
/// Most blocks of a write within a file.
const BLOCKS_MAX: u64 = 32;
/// Of a hundred operations, how many replace a file by a new one.
const REPLACED: u32 = 4;
/// Of a hundred operations, how many only read.
const READ: u32 = 6;
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);
/// How many places are tried to find one that may be written.
const TRIES: u32 = 64;

/// The files of one demonstration, wherever they are mounted.
#[derive(Clone, Debug)]
pub(super) struct Files {
    ledger: Arc<Mutex<Ledger>>,
    progress: Arc<Progress>,
    seed: u64,
    count: u64,
}

/// What came of the writers on one mount.
#[derive(Debug)]
struct Fate {
    /// Nobody waits for their answers any more.
    abandoned: AtomicBool,
    /// How each ended: when, and by which error if by one.
    ends: Mutex<Vec<(Instant, Option<io::Error>)>>,
    /// Writes that were acknowledged after they had been given up.
    late: Mutex<u64>,
    last_ack: Mutex<Instant>,
    pace: Mutex<Pace>,
}

/// Writers at work on one mount.
#[derive(Debug)]
pub(super) struct Writers {
    files: Files,
    fate: Arc<Fate>,
    threads: Vec<JoinHandle<()>>,
}

/// What is never half changed can be used even after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path(dir: &Path, file: u64) -> PathBuf {
    dir.join(format!("file-{file:04}"))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Files {
    /// As many files as fill a quarter of the volume; made by [`Files::make`].
    pub(super) fn new(seed: u64, size_bytes: u64, progress: Arc<Progress>) -> Self {
        let count = (size_bytes / 4 / BLOCK as u64 / FILE_BLOCKS).max(WRITERS);
        let area = Span { first: 0, count: count * FILE_BLOCKS };
        let ledger = Arc::new(Mutex::new(Ledger::new(Content::new(seed), area)));
        Self { ledger, progress, seed, count }
    }

    /// Makes all files, full of nothing, and durable.
    pub(super) fn make(&self, dir: &Path) -> anyhow::Result<()> {
        for file in 0..self.count {
            let path = path(dir, file);
            let made = File::create(&path).and_then(|made| {
                made.set_len(FILE_BLOCKS * BLOCK as u64)?;
                made.sync_all()
            });
            made.with_context(|| format!("making {}", path.display()))?;
        }
        sync_dir(dir).with_context(|| format!("fsync of {}", dir.display()))
    }

    /// Writers begin on a mount.
    pub(super) fn write(&self, dir: &Path, orders: &Arc<Orders>) -> io::Result<Writers> {
        let fate = Arc::new(Fate {
            abandoned: AtomicBool::new(false),
            ends: Mutex::default(),
            late: Mutex::new(0),
            last_ack: Mutex::new(Instant::now()),
            pace: Mutex::new(Pace::new(orders.rate.load(Ordering::Relaxed))),
        });
        let mut threads = Vec::new();
        for number in 0..WRITERS {
            let writer = Writer {
                files: self.clone(),
                fate: Arc::clone(&fate),
                orders: Arc::clone(orders),
                dir: dir.to_owned(),
                rng: StdRng::seed_from_u64(self.seed.wrapping_mul(WRITERS).wrapping_add(number)),
                number,
            };
            let thread = std::thread::Builder::new().name(format!("writer-{number}"));
            threads.push(thread.spawn(move || writer.run())?);
        }
        Ok(Writers { files: self.clone(), fate, threads })
    }

    /// Reads every block of every file on a mount, and compares it with the ledger.
    pub(super) fn check(&self, dir: &Path) -> anyhow::Result<Findings> {
        let mut findings = Findings::default();
        for file in 0..self.count {
            let span = Span { first: file * FILE_BLOCKS, count: FILE_BLOCKS };
            match read(dir, span) {
                Ok(data) => {
                    let mut ledger = lock(&self.ledger);
                    // Nothing is written meanwhile, so it does not matter when it was issued.
                    let reading = ledger.read(span);
                    findings.add(ledger.judge(&reading, &data));
                }
                // Every file was durable with its whole length before anything was acknowledged.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof
                    ) =>
                {
                    findings.blocks += span.count;
                    findings.corrupt.extend(span.blocks());
                    findings.words.push(format!("{}: {e}", path(dir, file).display()));
                }
                Err(e) => {
                    return Err(e)
                        .with_context(|| format!("reading {}", path(dir, file).display()));
                }
            }
        }
        Ok(findings)
    }

    /// Reads what no answer came for: it has to stay so. Returns how many blocks hold the write,
    /// and how many do not.
    pub(super) fn decide(&self, dir: &Path) -> anyhow::Result<(u64, u64)> {
        let uncertain = lock(&self.ledger).uncertain();
        let (mut done, mut not_done) = (0, 0);
        for block in uncertain.into_iter().flat_map(Span::blocks) {
            let span = Span { first: block, count: 1 };
            let data =
                read(dir, span).with_context(|| format!("reading block {block} of the files"))?;
            let mut ledger = lock(&self.ledger);
            let reading = ledger.read(span);
            let decided = ledger.decide(&reading, &data);
            done += decided.0;
            not_done += decided.1;
        }
        Ok((done, not_done))
    }
}

/// Reads blocks of one file, past what the page cache has of it.
fn read(dir: &Path, span: Span) -> io::Result<Vec<u8>> {
    let file = File::open(path(dir, span.first / FILE_BLOCKS))?;
    let offset = span.first % FILE_BLOCKS * BLOCK as u64;
    let bytes = span.count * BLOCK as u64;
    let (at, len) = (i64::try_from(offset), i64::try_from(bytes));
    if let (Ok(at), Ok(len)) = (at, len) {
        let unneeded = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, at, len, unneeded)?;
    }
    let mut data = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    file.read_exact_at(&mut data, offset)?;
    Ok(data)
}

impl Writers {
    /// How many writes are under way.
    pub(super) fn under_way(&self) -> u64 {
        lock(&self.files.ledger).pending().count() as u64
    }

    /// Fails if a writer has ended, which none should have.
    pub(super) fn must_go_on(&self) -> anyhow::Result<()> {
        match lock(&self.fate.ends).first() {
            None => Ok(()),
            Some((_, Some(error))) => bail!("writing files failed: {error}"),
            Some((_, None)) => bail!("a writer has ended though nobody told it to"),
        }
    }

    /// Gives up all answers that have not come: nobody knows what became of those writes. From now
    /// on none may be acknowledged here.
    pub(super) fn abandon(&self) {
        let mut ledger = lock(&self.files.ledger);
        let pending: Vec<_> = ledger.pending().map(|(version, _)| version).collect();
        pending.into_iter().for_each(|version| ledger.unanswered(version));
        ledger.mark_absence();
        self.fate.abandoned.store(true, Ordering::Relaxed);
    }

    /// Writes that were acknowledged after they had been given up. Must be 0.
    pub(super) fn late(&self) -> u64 {
        *lock(&self.fate.late)
    }

    /// Waits until all have ended: returns when the last did, and how many by an error.
    pub(super) async fn ended(&mut self, limit: Duration) -> anyhow::Result<(Instant, usize)> {
        let begin = Instant::now();
        while !self.threads.iter().all(JoinHandle::is_finished) {
            if begin.elapsed() > limit {
                bail!("writers are still waiting after {limit:?}");
            }
            tokio::time::sleep(PAUSE).await;
        }
        let ends = lock(&self.fate.ends);
        let last = ends.iter().map(|(at, _)| *at).max().unwrap_or(begin);
        Ok((last, ends.iter().filter(|(_, error)| error.is_some()).count()))
    }
}

/// One thread that writes.
struct Writer {
    files: Files,
    fate: Arc<Fate>,
    orders: Arc<Orders>,
    dir: PathBuf,
    rng: StdRng,
    number: u64,
}

impl Writer {
    fn run(mut self) {
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.orders.stop.load(Ordering::Relaxed) {
            if self.orders.absence_ended.load(Ordering::Relaxed) {
                lock(&self.files.ledger).end_absence();
            }
            if self.may_write() {
                outcome = self.operate();
            } else {
                wait_a_moment();
            }
        }
        lock(&self.fate.ends).push((Instant::now(), outcome.err()));
    }

    fn may_write(&self) -> bool {
        let mut pace = lock(&self.fate.pace);
        pace.obey(self.orders.rate.load(Ordering::Relaxed));
        pace.allows()
    }

    fn operate(&mut self) -> io::Result<()> {
        let kind = self.rng.random_range(0..100);
        let span = self.place(kind < REPLACED);
        if (REPLACED..REPLACED + READ).contains(&kind) {
            let data = read(&self.dir, span)?;
            let mut ledger = lock(&self.files.ledger);
            let reading = ledger.read(span);
            // This thread alone writes this file, so nothing has changed since.
            if !ledger.judge(&reading, &data).is_clean() {
                return Err(io::Error::other("a file does not hold what was written to it"));
            }
            Progress::add(&self.files.progress.reads, 1);
            return Ok(());
        }
        if lock(&self.files.ledger).is_frozen(span) {
            return Ok(());
        }
        let bytes = span.count * BLOCK as u64;
        lock(&self.fate.pace).spend(bytes);
        let (version, data) = lock(&self.files.ledger).write(span);
        let outcome = if span.count == FILE_BLOCKS {
            self.replace(span, &data)
        } else {
            self.overwrite(span, &data)
        };
        self.settle(version, bytes, outcome)
    }

    /// Blocks of one of this thread's files, or all of its blocks.
    fn place(&mut self, whole: bool) -> Span {
        let own = (self.files.count - self.number).div_ceil(WRITERS);
        let mut span = Span { first: 0, count: 0 };
        for _ in 0..TRIES {
            let file = self.number + WRITERS * self.rng.random_range(0..own);
            let count = if whole { FILE_BLOCKS } else { self.rng.random_range(1..=BLOCKS_MAX) };
            let at = self.rng.random_range(0..=FILE_BLOCKS - count);
            span = Span { first: file * FILE_BLOCKS + at, count };
            if !lock(&self.files.ledger).is_frozen(span) {
                break;
            }
        }
        span
    }

    fn overwrite(&self, span: Span, data: &[u8]) -> io::Result<()> {
        let name = path(&self.dir, span.first / FILE_BLOCKS);
        let file = File::options().write(true).open(name)?;
        file.write_all_at(data, span.first % FILE_BLOCKS * BLOCK as u64)?;
        file.sync_all()
    }

    /// As databases and editors do it: a new file beside the old one, which takes its name.
    fn replace(&self, span: Span, data: &[u8]) -> io::Result<()> {
        let name = path(&self.dir, span.first / FILE_BLOCKS);
        let new = name.with_extension("new");
        let file = File::create(&new)?;
        file.write_all_at(data, 0)?;
        file.sync_all()?;
        fs::rename(&new, &name)?;
        sync_dir(&self.dir)
    }

    /// Enters what came of a write.
    fn settle(&self, version: u64, bytes: u64, outcome: io::Result<()>) -> io::Result<()> {
        let mut ledger = lock(&self.files.ledger);
        if self.fate.abandoned.load(Ordering::Relaxed) {
            *lock(&self.fate.late) += u64::from(outcome.is_ok());
            return outcome;
        }
        if let Err(error) = outcome {
            ledger.unanswered(version);
            return Err(error);
        }
        ledger.acked(version, true);
        let progress = &self.files.progress;
        Progress::add(&progress.writes, 1);
        Progress::add(&progress.flushes, 1);
        Progress::add(&progress.bytes, bytes);
        progress.in_flight.store(ledger.pending().count() as u64, Ordering::Relaxed);
        let mut last = lock(&self.fate.last_ack);
        let pause = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
        progress.longest_pause_ms.fetch_max(pause, Ordering::Relaxed);
        *last = Instant::now();
        Ok(())
    }
}

fn wait_a_moment() {
    std::thread::sleep(PAUSE);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 32 << 20;

    async fn written(dir: &Path) -> (Files, Arc<Progress>) {
        let progress = Arc::new(Progress::default());
        let files = Files::new(7, SIZE, Arc::clone(&progress));
        files.make(dir).unwrap();
        let orders = Arc::new(Orders::default());
        let mut writers = files.write(dir, &orders).unwrap();
        while progress.writes.load(Ordering::Relaxed) < 300 {
            writers.must_go_on().unwrap();
            tokio::time::sleep(PAUSE).await;
        }
        orders.stop.store(true, Ordering::Relaxed);
        assert_eq!(writers.ended(Duration::from_secs(60)).await.unwrap().1, 0);
        assert_eq!((writers.under_way(), writers.late()), (0, 0));
        (files, progress)
    }

    #[tokio::test]
    async fn what_was_written_is_found_and_what_is_missing_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (files, progress) = written(dir.path()).await;
        let findings = files.check(dir.path()).unwrap();
        assert!(findings.is_clean(), "{findings:?}");
        assert_eq!(findings.blocks, SIZE / 4 / BLOCK as u64);
        assert!(progress.bytes.load(Ordering::Relaxed) > 300 * BLOCK as u64);

        // A file as it was before anything was written to it.
        let lost = path(dir.path(), 3);
        File::create(&lost).unwrap().set_len(FILE_BLOCKS * BLOCK as u64).unwrap();
        assert!(!files.check(dir.path()).unwrap().lost.is_empty());
        fs::write(&lost, vec![1; 1 << 20]).unwrap();
        assert_eq!(files.check(dir.path()).unwrap().corrupt.len() as u64, FILE_BLOCKS);
        fs::remove_file(&lost).unwrap();
        assert_eq!(files.check(dir.path()).unwrap().corrupt.len() as u64, FILE_BLOCKS);
    }

    #[tokio::test]
    async fn an_error_ends_a_writer_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(7, SIZE, Arc::new(Progress::default()));
        let orders = Arc::new(Orders::default());
        // No file was made.
        let mut writers = files.write(dir.path(), &orders).unwrap();
        let (_, errors) = writers.ended(Duration::from_secs(60)).await.unwrap();
        assert_eq!(errors as u64, WRITERS);
        assert!(writers.must_go_on().is_err());
    }
}
