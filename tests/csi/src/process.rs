//! A program that is started, killed and started again.

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a program may take to begin, and to end.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

/// A program; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    program: PathBuf,
    flags: Vec<String>,
    /// Is there once it serves.
    ready: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

/// Waits for a condition.
pub(crate) async fn wait_for(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !is_so() {
        if begin.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(PAUSE).await;
    }
    true
}

impl Process {
    pub(crate) fn new(program: PathBuf, flags: Vec<String>, ready: &Path, log: &Path) -> Self {
        let (ready, log) = (ready.to_owned(), log.to_owned());
        Self { program, flags, ready, log, child: None }
    }

    /// Starts it, and waits until it serves.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        // What the one before it left would be taken for its word.
        let _ = std::fs::remove_file(&self.ready);
        let log = File::options().append(true).create(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command.args(&self.flags).env_clear().process_group(0).kill_on_drop(true);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(Stdio::from(log));
        let shown = self.program.display();
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let ready = self.ready.clone();
        let mut ended = None;
        let began = wait_for(LIMIT, || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || ready.exists()
        });
        if !began.await || ended.is_some() {
            bail!("{shown} does not serve; see {}", self.log.display());
        }
        self.child = Some(child);
        Ok(())
    }

    /// `kill -9`; returns when it is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGKILL).await
    }

    /// SIGTERM; returns when it is gone.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGTERM).await
    }

    async fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), signal)?;
        }
        match tokio::time::timeout(LIMIT, child.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("{} outlives {signal}", self.program.display()),
        }
    }
}
