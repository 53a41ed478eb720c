//! One daemon.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::board::{Board, lock};
use crate::net;

/// How long a killed process may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// A node: its place, and its daemon while that runs.
#[derive(Debug)]
pub(crate) struct Node {
    /// From 0.
    pub(crate) index: usize,
    /// n1, n2, …
    pub(crate) name: String,
    /// Everything of it.
    pub(crate) dir: PathBuf,
    /// A fault is being carried out on it.
    pub(crate) busy: AtomicBool,
    running: Mutex<Option<Running>>,
    board: Arc<Board>,
}

#[derive(Clone, Debug)]
struct Running {
    pid: Pid,
    /// Its end was asked for.
    expected: Arc<AtomicBool>,
    ended: watch::Receiver<Option<ExitStatus>>,
}

impl Node {
    /// A node whose daemon does not run.
    pub(crate) fn new(index: usize, dir: PathBuf, board: Arc<Board>) -> Self {
        let name = format!("n{}", index + 1);
        Self { index, name, dir, busy: AtomicBool::new(false), running: Mutex::default(), board }
    }

    /// Where its replicas are.
    pub(crate) fn pool(&self) -> PathBuf {
        self.dir.join("pool")
    }

    /// Its daemon's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Whether the daemon says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.dir.join("ready").exists()
    }

    /// Starts the daemon; it is not waited for.
    pub(crate) fn launch(&self, program: &str, flags: &[String]) -> anyhow::Result<()> {
        if lock(&self.running).as_ref().is_some_and(|r| r.ended.borrow().is_none()) {
            bail!("the daemon of {} runs already", self.name);
        }
        let ready = self.dir.join("ready");
        if ready.exists() {
            std::fs::remove_file(&ready).context("removing the mark of the last start")?;
        }
        let log = std::fs::File::options().append(true).create(true).open(self.log())?;
        let mut command = net::command_in(self.index, program);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("LOCKSTEP_") {
                command.env_remove(key);
            }
        }
        command.args(flags).current_dir(&self.dir).process_group(0);
        command.stdout(log.try_clone()?).stderr(Stdio::from(log));
        let mut child = command.spawn().context("starting lockstepd")?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("no process id")?;
        let (sender, ended) = watch::channel(None);
        let expected = Arc::new(AtomicBool::new(false));
        let (wanted, board, name) =
            (Arc::clone(&expected), Arc::clone(&self.board), self.name.clone());
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => {
                    if !wanted.load(Ordering::SeqCst) {
                        let words = format!("the daemon of {name} ended by itself: {status}");
                        board.violation(&words);
                    }
                    sender.send_replace(Some(status));
                }
                Err(e) => board.violation(&format!("waiting for the daemon of {name}: {e}")),
            }
        });
        *lock(&self.running) = Some(Running { pid: Pid::from_raw(pid), expected, ended });
        Ok(())
    }

    /// Whether the daemon's process exists.
    pub(crate) fn is_running(&self) -> bool {
        lock(&self.running).as_ref().is_some_and(|r| r.ended.borrow().is_none())
    }

    /// `kill -9`; returns when the process is gone.
    pub(crate) async fn kill(&self) -> anyhow::Result<()> {
        match self.end(Signal::SIGKILL, KILL_LIMIT).await? {
            true => Ok(()),
            false => bail!("the daemon of {} outlives kill -9", self.name),
        }
    }

    /// SIGTERM; whether the daemon ended in time.
    pub(crate) async fn terminate(&self, limit: Duration) -> anyhow::Result<bool> {
        self.end(Signal::SIGTERM, limit).await
    }

    async fn end(&self, signal: Signal, limit: Duration) -> anyhow::Result<bool> {
        let running = lock(&self.running).clone();
        let Some(mut running) = running else { return Ok(true) };
        running.expected.store(true, Ordering::SeqCst);
        let ready = self.is_ready();
        if running.ended.borrow().is_none() {
            // It may end at this very moment.
            let _ = kill(running.pid, signal);
            let _ = kill(running.pid, Signal::SIGCONT);
        }
        let ended = timeout(limit, running.ended.wait_for(Option::is_some)).await;
        let Ok(ended) = ended else { return Ok(false) };
        let status = ended.context("nobody waits for the daemon's end")?.to_owned();
        // One that has only just begun may not listen for the signal yet; then it ends by it.
        let early = status.and_then(|s| s.signal()) == Some(signal as i32) && !ready;
        let clean = early || status.is_some_and(|s| s.success());
        if signal == Signal::SIGTERM && !clean {
            let words = format!("the daemon of {} was asked to end: {status:?}", self.name);
            self.board.violation(&words);
        }
        Ok(true)
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn pause(&self, paused: bool) {
        if let Some(running) = lock(&self.running).as_ref()
            && running.ended.borrow().is_none()
        {
            let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
            let _ = kill(running.pid, signal);
        }
    }
}
