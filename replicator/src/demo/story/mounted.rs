//! The story on a mounted file system: what `fsync` has returned for is what must be there.

use std::fs::File;
use std::io::{Read as _, copy};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lockstep_proto::v1;
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use super::{FIRST, LIMIT, SECOND, Story, VOLUME, all_in_sync, millis};
use crate::demo::content::BLOCK;
use crate::demo::files::{Files, Writers};
use crate::demo::verify::hex;
use crate::demo::watch::Watch;
use crate::demo::workload::Orders;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

impl Story {
    pub(super) async fn act_mounted(&mut self) -> anyhow::Result<()> {
        let files =
            Files::new(self.report.seed, self.report.size_bytes, Arc::clone(&self.progress));
        let dir = self.set_up_mounted(&files).await?;
        let last = usize::from(self.args.nodes) - 1;
        let mut watch = Watch::begin(self.cluster.control(last)?, VOLUME);
        let _shown = self.screen.show(watch.seen());

        let (mut left, killed) = self.write_and_kill_mounted(&files, &dir).await?;
        let dir = self.take_over_mounted(&files, &left, killed).await?;
        self.write_on_mounted(&files, &dir, &mut watch).await?;
        self.free_those_left(&mut left).await?;

        self.screen.phase("all copies are in sync: comparing every block of every file");
        let volume = watch.until("all copies in sync", LIMIT, |v| all_in_sync(v, 1)).await?;
        self.check_files(&files, &dir).await?;
        self.note_mounted(&volume);
        self.check_on_the_copy_that_returned(&files).await?;
        self.check_copies(&volume).await
    }

    /// Attaches the volume on a node, with its file system mounted there; returns where.
    async fn mount_on(&mut self, index: usize, read_only: bool) -> anyhow::Result<PathBuf> {
        let (node, dir) = (self.cluster.name(index).to_owned(), self.cluster.mount_dir(index));
        let fs = self.args.file_system().unwrap_or_default();
        let mut mount_options = vec!["noatime".to_owned()];
        if fs == "xfs" {
            // All nodes are on one kernel here, and it has the former mount still.
            mount_options.push("nouuid".to_owned());
        }
        let device = v1::DeviceRequest {
            read_only,
            fs,
            mount_dir: dir.display().to_string(),
            mount_options,
            ..Default::default()
        };
        let control = self.cluster.control(index)?;
        let answer = control.attach_device(VOLUME, &node, LIMIT, device).await?;
        let device = answer.device.unwrap_or_default();
        self.report.door = device.door;
        self.screen.say(&format!("{} is mounted at {}", device.kernel_path, dir.display()));
        Ok(dir)
    }

    async fn set_up_mounted(&mut self, files: &Files) -> anyhow::Result<PathBuf> {
        let first = self.cluster.name(FIRST).to_owned();
        self.start_and_create().await?;
        self.screen.phase(&format!("attaching on {first}, with {}", self.report.fs));
        let dir = self.mount_on(FIRST, false).await?;
        self.screen.phase(&format!(
            "copying {} bytes of {}, and making files",
            self.input.len,
            self.input.path.display()
        ));
        let (source, len, to) = (self.input.path.clone(), self.input.len, dir.join("input"));
        let (files, at) = (files.clone(), dir.clone());
        self.report.input_sha256 = blocking(move || {
            let mut target = File::create(&to).context("making the copy")?;
            copy(&mut File::open(&source)?.take(len), &mut target).context("copying the file")?;
            target.sync_all().context("fsync of the copied file")?;
            files.make(&at)?;
            hash(&source, len)
        })
        .await?;
        Ok(dir)
    }

    /// Writes for a while, then kills the daemon in the midst of it. The writers wait from then on.
    async fn write_and_kill_mounted(
        &mut self,
        files: &Files,
        dir: &Path,
    ) -> anyhow::Result<(Writers, Instant)> {
        let first = self.cluster.name(FIRST).to_owned();
        self.screen.phase("writing files, each write with an fsync, as fast as it goes");
        let writers = files.write(dir, &Arc::new(Orders::default()))?;
        let begin = Instant::now();
        let writing = Duration::from_secs(self.args.seconds.into());
        while begin.elapsed() < writing || writers.under_way() < 2 {
            writers.must_go_on()?;
            if begin.elapsed() > writing + LIMIT {
                bail!("nothing is written on {first}");
            }
            sleep(PAUSE).await;
        }
        let killed = Instant::now();
        self.cluster.kill(FIRST)?;
        self.screen.daemon(FIRST, "killed");
        self.screen.phase(&format!("kill -9 of {first}'s daemon, in the midst of writing"));
        self.cluster.reap(FIRST).await?;
        Ok((writers, killed))
    }

    /// Mounts elsewhere, checks every file there, and finds out what became of what was under way.
    async fn take_over_mounted(
        &mut self,
        files: &Files,
        left: &Writers,
        killed: Instant,
    ) -> anyhow::Result<PathBuf> {
        let second = self.cluster.name(SECOND).to_owned();
        let dir = self.mount_on(SECOND, false).await?;
        self.report.in_flight_at_kill = left.under_way();
        left.abandon();
        self.report.failover_ms = millis(killed.elapsed());
        self.screen.phase(&format!(
            "{second} has taken over, mounted {} ms after the kill; comparing every file",
            self.report.failover_ms
        ));
        self.check_files(files, &dir).await?;
        let (at, files) = (dir.clone(), files.clone());
        let decided = blocking(move || files.decide(&at)).await?;
        self.report.in_flight_blocks_done += decided.0;
        self.report.in_flight_blocks_not_done += decided.1;
        self.screen.say(&format!(
            "{} writes had no fsync at the kill: {} of their blocks hold them, {} do not; \
             so it must stay",
            self.report.in_flight_at_kill, decided.0, decided.1
        ));
        Ok(dir)
    }

    /// Writes on the second node, while around it what was lost is made good.
    async fn write_on_mounted(
        &mut self,
        files: &Files,
        dir: &Path,
        watch: &mut Watch,
    ) -> anyhow::Result<()> {
        let orders = Arc::new(Orders::default());
        orders.rate.store(self.args.rate_bytes(), Ordering::Relaxed);
        let mut writers = files.write(dir, &orders)?;
        let failure = async {
            loop {
                if let Err(error) = writers.must_go_on() {
                    return error;
                }
                sleep(PAUSE).await;
            }
        };
        let (seen, absence) = (watch.seen(), Arc::clone(&orders));
        // What the volume took while the copy was away: no resync needs more.
        let missed = async {
            while !absence.absence_ended.load(Ordering::Relaxed) {
                sleep(PAUSE).await;
            }
            let volume = seen.borrow().volume.clone().unwrap_or_default();
            volume.counters.unwrap_or_default().acked_write_bytes
        };
        let changed = async {
            tokio::select! {
                changed = self.bring_back(watch, &orders) => changed,
                error = failure => Err(error),
            }
        };
        // If bringing it back fails, the absence never ends.
        let ((), missed) = futures::future::try_join(changed, async { Ok(missed.await) }).await?;
        self.report.resync_needed_bytes = missed;
        orders.stop.store(true, Ordering::Relaxed);
        let (_, errors) = writers.ended(LIMIT).await?;
        if errors > 0 {
            bail!("{errors} writers on {} failed", self.cluster.name(SECOND));
        }
        Ok(())
    }

    /// Those who wrote on the first node had to wait until its daemon was back, and then failed.
    async fn free_those_left(&mut self, left: &mut Writers) -> anyhow::Result<()> {
        let (last, errors) = left.ended(LIMIT).await.context("on the node that was left")?;
        self.report.late_acks = left.late();
        let returned = self.returned.unwrap_or(last);
        self.report.freed_ms = millis(last.saturating_duration_since(returned));
        self.screen.say(&format!(
            "the {errors} writers that waited on {} got errors within {} ms of its return",
            self.cluster.name(FIRST),
            self.report.freed_ms
        ));
        Ok(())
    }

    /// Compares all files, and the one that was copied.
    async fn check_files(&mut self, files: &Files, dir: &Path) -> anyhow::Result<()> {
        let (files, at, len) = (files.clone(), dir.to_owned(), self.input.len);
        let (findings, copied) =
            blocking(move || Ok((files.check(&at)?, hash(&at.join("input"), len)?))).await?;
        self.report.lost_acked_writes += findings.lost.len() as u64;
        self.report.lost_flushed_blocks += findings.lost_flushed_blocks;
        self.report.corrupt_blocks += findings.corrupt.len() as u64;
        let blocks = findings.blocks + self.input.len.div_ceil(BLOCK as u64);
        self.report.blocks_checked += blocks;
        self.report.input_sha256_ok = copied == self.report.input_sha256;
        for words in &findings.words {
            self.screen.say(words);
        }
        self.screen.say(&format!("{blocks} blocks of files compared"));
        Ok(())
    }

    fn note_mounted(&mut self, volume: &v1::VolumeStatus) {
        let counters = volume.counters.unwrap_or_default();
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        self.report.rebuild_bytes = counters.rebuild_bytes;
        self.report.resync_bytes = counters.resync_bytes;
        self.report.acked_writes = read(&self.progress.writes);
        self.report.acked_bytes = read(&self.progress.bytes);
        self.report.acked_flushes = read(&self.progress.flushes);
        self.report.reads_checked = read(&self.progress.reads);
        self.report.longest_pause_ms = read(&self.progress.longest_pause_ms);
    }

    /// Mounted once more, where the copy came back.
    async fn check_on_the_copy_that_returned(&mut self, files: &Files) -> anyhow::Result<()> {
        let first = self.cluster.name(FIRST).to_owned();
        self.screen.phase(&format!("unmounting, then comparing all files once more on {first}"));
        self.cluster.control(SECOND)?.detach(VOLUME, false).await?;
        let dir = self.mount_on(FIRST, true).await?;
        self.check_files(files, &dir).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("working with files")?
}

/// SHA-256 of the start of a file, which must be that long.
fn hash(path: &Path, len: u64) -> anyhow::Result<String> {
    let named = || format!("reading {}", path.display());
    let mut hash = Sha256::new();
    let mut file = File::open(path).with_context(named)?.take(len);
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).with_context(named)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        total += count as u64;
    }
    if total < len {
        bail!("{} has only {total} of {len} bytes", path.display());
    }
    Ok(hex(hash))
}
