//! Keeps one replica running: opens its files again after it failed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_core::id::Incarnation;
use lockstep_core::message::Refusal;
use lockstep_core::planted::Planted;
use lockstep_core::replica::{self, Replica};
use lockstep_store::Identity;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::fetcher::Fetcher;
use super::opening::{self, OpenedFiles};
use super::replica::{Driver, Input, Outcome, Parts, Snapshot, refusal};
use super::slots::NodeSlots;
use crate::clock::Clock;
use crate::disk::{Home, Threads};

/// Pause before a failed replica's files are opened again.
const REOPEN_MIN: Duration = Duration::from_secs(1);
/// Longest such pause.
const REOPEN_MAX: Duration = Duration::from_secs(60);
/// A replica that ran for so long starts with the shortest pause again.
const HEALTHY_MS: u64 = 60_000;

/// What all replicas of a node share.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) clock: Clock,
    pub(super) direct_io: bool,
    pub(super) boot_id: [u8; 16],
    pub(super) threads: Arc<Threads>,
    pub(super) fetcher: Arc<Fetcher>,
    /// Its slots for resyncs that its replicas are the target of.
    pub(super) entries: Arc<NodeSlots>,
}

/// Keeps one replica running.
pub(super) struct Keeper {
    context: Context,
    dir: PathBuf,
    home: Home,
    identity: Identity,
    own: mpsc::UnboundedSender<Input>,
    inputs: mpsc::UnboundedReceiver<Input>,
    /// How the replica was when it last ran.
    last: Option<Snapshot>,
    /// Did a flush fail then?
    lost_cache: bool,
}

impl Keeper {
    /// `own` is the sending end of `inputs`.
    pub(super) fn new(
        context: Context,
        (dir, home): (PathBuf, Home),
        identity: Identity,
        own: mpsc::UnboundedSender<Input>,
        inputs: mpsc::UnboundedReceiver<Input>,
    ) -> Self {
        Self { context, dir, home, identity, own, inputs, last: None, lost_cache: false }
    }

    /// Runs the replica until it is told to stop.
    pub(super) async fn run(mut self, first: OpenedFiles) {
        let mut files = first;
        let mut pause = REOPEN_MIN;
        loop {
            let began = self.context.clock.now();
            let mut driver = Driver::new(self.parts(files), self.own.clone());
            let outcome = driver.run(&mut self.inputs).await;
            self.last = Some(driver.snapshot());
            self.lost_cache = driver.lost_cache();
            drop(driver);
            if let Outcome::Stopped(done) = outcome {
                // Whoever asked may have gone.
                let _ = done.send(());
                return;
            }
            if self.context.clock.ms_since(began) > HEALTHY_MS {
                pause = REOPEN_MIN;
            }
            let Some(opened) = self.reopen(&mut pause).await else { return };
            files = opened;
        }
    }

    fn parts(&self, files: OpenedFiles) -> Parts {
        let (incarnation, _) = Uuid::new_v4().as_u64_pair();
        let identity = replica::Identity {
            volume: self.identity.volume,
            replica: self.identity.replica,
            // A forced recovery may have changed it since the files were made (T11).
            lineage: files.opened.store.superblock().identity.lineage,
            incarnation: Incarnation(incarnation),
        };
        let recovered = files.opened.recovered;
        Parts {
            volume: self.identity.volume,
            clock: self.context.clock,
            lossy: recovered.lossy,
            incarnation: identity.incarnation,
            replica: Replica::open(identity, recovered, Planted::NONE).with_pulls().with_entries(),
            store: files.opened.store,
            files: files.files,
            threads: Arc::clone(&self.context.threads),
            fetcher: Arc::clone(&self.context.fetcher),
            entries: Arc::clone(&self.context.entries),
        }
    }

    /// Opens the files again after a pause, as often as needed; `None` when told to stop.
    async fn reopen(&mut self, pause: &mut Duration) -> Option<OpenedFiles> {
        loop {
            self.wait(*pause).await?;
            *pause = (*pause * 2).min(REOPEN_MAX);
            let (dir, home, volume) = (self.dir.clone(), self.home.clone(), self.identity.volume);
            let (direct_io, boot_id) = (self.context.direct_io, self.context.boot_id);
            let lost_cache = self.lost_cache;
            let open = move || opening::open(&dir, &home, direct_io, boot_id, lost_cache);
            match tokio::task::spawn_blocking(open).await {
                Ok(Ok(files)) => {
                    tracing::info!(%volume, "failed replica opened again");
                    return Some(files);
                }
                Ok(Err(e)) => self.note_fault(e.to_string()),
                Err(e) => self.note_fault(e.to_string()),
            }
        }
    }

    fn note_fault(&mut self, why: String) {
        tracing::warn!(volume = %self.identity.volume, %why, "failed replica can't be opened");
        if let Some(last) = &mut self.last {
            last.fault = Some(why);
        }
    }

    /// Refuses everything for a while; `None` when told to stop.
    async fn wait(&mut self, pause: Duration) -> Option<()> {
        let end = tokio::time::sleep(pause);
        tokio::pin!(end);
        loop {
            let input = tokio::select! {
                input = self.inputs.recv() => input?,
                () = &mut end => return Some(()),
            };
            match input {
                Input::Request { path, message } => {
                    path.send(refusal(&message.header, Refusal::Faulted));
                    path.flush();
                }
                Input::Status(asker) => {
                    if let Some(last) = self.last.clone() {
                        // An asker that is gone needs no answer.
                        let _ = asker.send(last);
                    }
                }
                Input::Stop(done) => {
                    // Whoever asked may have gone.
                    let _ = done.send(());
                    return None;
                }
                // Nobody has a session, and no disk operation is under way.
                Input::Disconnected(_) | Input::Disk { .. } | Input::Fetched { .. } => {}
            }
        }
    }
}
