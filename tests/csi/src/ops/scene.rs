//! What is promised of a volume whose node dies, and of one that another node asks for: played
//! once, without chance, and with the clock running.

use super::{Run, blocking};
use crate::calls::{repeated, settled};
use crate::data;
use crate::model::{Kind, Volume, wanted};
use anyhow::{Context as _, bail, ensure};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;

/// The node that has a volume, and the one that wants it. The last has the record store.
const FROM: usize = 0;
const TO: usize = 2;
/// What is promised.
const GOAL: Duration = Duration::from_secs(5);
/// What fails the test: machines that run tests have much else to do.
const LIMIT: Duration = Duration::from_secs(30);
/// How often the other node asks for a volume that is in use.
const ASKED: u32 = 10;
/// Writes that are looked at before somebody asks.
const WRITES_BEFORE: u64 = 50;
/// A stall that fails the test, beyond what there was before.
const STALL_MS: u64 = 2_000;
const PAUSE: Duration = Duration::from_millis(50);

/// A writer that reads each write back.
#[derive(Debug, Default)]
struct Writer {
    stop: AtomicBool,
    writes: AtomicU64,
    longest_ms: AtomicU64,
}

impl Writer {
    /// Writes until it is told to stop; returns what went wrong.
    fn run(&self, target: &Path, block: bool) -> std::io::Result<Option<String>> {
        for number in 1.. {
            let begin = Instant::now();
            data::write(target, block, number)?;
            let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            if let Some(wrong) = data::look(target, block, &vec![Some(number)])? {
                return Ok(Some(wrong));
            }
            self.longest_ms.fetch_max(took_ms, Ordering::Relaxed);
            self.writes.fetch_add(1, Ordering::Relaxed);
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(None)
    }
}

async fn wait_a_moment() {
    tokio::time::sleep(PAUSE).await;
}

impl Run {
    /// Plays it all, and says what came of it.
    pub(crate) async fn scene(&mut self) -> anyhow::Result<String> {
        self.is_calm = true;
        let mut told = Vec::new();
        for kind in Kind::ALL {
            let took = self.dies(kind).await.with_context(|| format!("{kind:?}"))?;
            told.push(format!("{kind:?} {} ms", took.as_millis()).to_lowercase());
            if took > LIMIT {
                self.violation(&format!("{kind:?}: taken over after {} ms only", took.as_millis()));
            }
        }
        let (before, meanwhile) = self.is_asked_for().await?;
        self.remove_all().await?;
        self.nothing_left().await?;
        Ok(format!(
            "right on the other node after {} (goal {} ms); refused {ASKED} times while it was \
             written: the longest write took {before} ms before and {meanwhile} ms meanwhile",
            told.join(", "),
            GOAL.as_millis()
        ))
    }

    /// A volume with a copy on each node, in use on the first.
    async fn in_use(&mut self, kind: Kind) -> anyhow::Result<usize> {
        let request = wanted(&self.fresh_name(), kind, 3, kind.bytes());
        let sent = request.clone();
        let call = repeated(self.controller(), sent, |mut client, request| async move {
            client.create_volume(request).await
        });
        let made = self.plain("CreateVolume", call).await?.context("no volume is made")?;
        let made = made.volume.context("CreateVolume tells no volume")?;
        self.volumes.push(Volume::new(kind, request, made));
        let which = self.volumes.len() - 1;
        self.stage_on(which, FROM).await?;
        ensure!(self.volumes[which].staged == Some(FROM), "it is not staged");
        self.publish(which).await?;
        Ok(which)
    }

    /// The node of a volume dies with daemon and driver, and unmounts nothing. Returns how long it
    /// takes until all that was written can be read on another node.
    async fn dies(&mut self, kind: Kind) -> anyhow::Result<Duration> {
        let which = self.in_use(kind).await?;
        for _ in 0..3 {
            self.write(which).await?;
        }
        let before = self.volumes[which].clone();
        let begin = Instant::now();
        self.world.nodes[FROM].driver.kill().await?;
        self.world.nodes[FROM].daemon.kill().await?;
        self.come_again(&before, begin).await?;
        self.volumes[which].published.clear();
        self.volumes[which].staged = Some(TO);
        self.publish(which).await?;
        let took = begin.elapsed();
        self.world.nodes[FROM].daemon.start().await?;
        self.world.nodes[FROM].driver.start().await?;
        for target in before.published.clone() {
            self.unpublish_on(&before.id, FROM, target).await?;
        }
        self.unstage_on(&before, FROM).await?;
        self.verify(which).await?;
        self.remove_all().await?;
        Ok(took)
    }

    /// Stages a volume on the other node, again and again as a kubelet does.
    async fn come_again(&mut self, volume: &Volume, begin: Instant) -> anyhow::Result<()> {
        let request = volume.stage(&self.world.dir, TO);
        std::fs::create_dir_all(&request.staging_target_path)?;
        loop {
            let call = repeated(self.node(TO)?, request.clone(), |mut client, sent| async move {
                client.node_stage_volume(sent).await
            });
            match settled("NodeStageVolume", call).await? {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.note(&format!("  {}", status.message()));
                    ensure!(begin.elapsed() < 2 * LIMIT, "still refused: {}", status.message());
                }
                Err(status) => bail!("NodeStageVolume: {:?}: {}", status.code(), status.message()),
            }
            wait_a_moment().await;
        }
    }

    /// Another node asks for a volume that is being written: it is told who has it, and the writer
    /// notices nothing. Returns the longest write before, and meanwhile, in milliseconds.
    async fn is_asked_for(&mut self) -> anyhow::Result<(u64, u64)> {
        let which = self.in_use(Kind::Ext4).await?;
        let volume = self.volumes[which].clone();
        let target = volume.published.first().context("it is published")?.clone();
        let writer = Arc::new(Writer::default());
        let own = Arc::clone(&writer);
        let writing = tokio::spawn(blocking(move || own.run(&target, false)));
        while writer.writes.load(Ordering::Relaxed) < WRITES_BEFORE && !writing.is_finished() {
            wait_a_moment().await;
        }
        let before = writer.longest_ms.swap(0, Ordering::Relaxed);
        let request = volume.stage(&self.world.dir, TO);
        std::fs::create_dir_all(&request.staging_target_path)?;
        for _ in 0..ASKED {
            let call = repeated(self.node(TO)?, request.clone(), |mut client, sent| async move {
                client.node_stage_volume(sent).await
            });
            let stolen = settled("NodeStageVolume elsewhere", call).await?;
            self.refused("NodeStageVolume elsewhere", Code::FailedPrecondition, &stolen);
            if let Err(status) = stolen
                && !status.message().contains("n1")
            {
                self.violation(&format!("who has it is not told: {}", status.message()));
            }
        }
        let (at, begin) = (writer.writes.load(Ordering::Relaxed), Instant::now());
        // What was under way when the last one was refused counts too.
        while writer.writes.load(Ordering::Relaxed) < at + 2 && !writing.is_finished() {
            ensure!(begin.elapsed() < LIMIT, "the writer stands still");
            wait_a_moment().await;
        }
        writer.stop.store(true, Ordering::Relaxed);
        match writing.await?? {
            Ok(None) => {}
            Ok(Some(wrong)) => self.violation(&format!("the writer reads something else: {wrong}")),
            Err(error) => self.violation(&format!("the writer is disturbed: {error}")),
        }
        let meanwhile = writer.longest_ms.load(Ordering::Relaxed);
        if meanwhile > 4 * before + STALL_MS {
            self.violation(&format!("a write took {meanwhile} ms, and {before} ms before"));
        }
        self.unstage_on(&volume, TO).await?;
        self.volumes[which].legal = vec![Some(writer.writes.load(Ordering::Relaxed))];
        self.verify(which).await?;
        Ok((before, meanwhile))
    }
}
