//! A program that is started, killed and started again.

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// How long a program may take to end.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// A program; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    program: PathBuf,
    flags: Vec<String>,
    log: PathBuf,
    environment: Vec<(String, PathBuf)>,
    child: Option<Child>,
}

/// Waits for a condition, and says whether it came.
pub(crate) async fn wait_for(limit: Duration, is_so: impl AsyncFn() -> bool) -> bool {
    let begin = Instant::now();
    while !is_so().await {
        if begin.elapsed() > limit {
            return false;
        }
        wait_a_moment().await;
    }
    true
}

/// The processes that a process started and that live.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    listed.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A pause between two looks.
pub(crate) async fn wait_a_moment() {
    tokio::time::sleep(PAUSE).await;
}

impl Process {
    pub(crate) fn new(program: PathBuf, flags: Vec<String>, log: PathBuf) -> Self {
        Self { program, flags, log, environment: Vec::new(), child: None }
    }

    /// The same with a variable of the environment that names a file.
    pub(crate) fn with(mut self, name: &str, file: &Path) -> Self {
        self.environment.push((name.to_owned(), file.to_owned()));
        self
    }

    /// Starts it, with some more flags.
    pub(crate) fn start(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.flags).args(more);
        self.start_command(command)
    }

    /// Lets another program start it, as its child.
    pub(crate) fn start_in(&mut self, other: &str, flags: &[String]) -> anyhow::Result<()> {
        let mut command = Command::new(other);
        command.args(flags).arg(&self.program).args(&self.flags);
        self.start_command(command)
    }

    fn start_command(&mut self, mut command: Command) -> anyhow::Result<()> {
        let log = File::options().append(true).create(true).open(&self.log)?;
        command.env_clear().kill_on_drop(true);
        command.envs(self.environment.iter().map(|(name, file)| (name, file)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(Stdio::from(log));
        let shown = self.program.display();
        let child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        self.child = Some(child);
        Ok(())
    }

    /// Its number, while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Whether it was started and has not ended by itself.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The processes that it started and that live.
    pub(crate) fn children(&self) -> Vec<u32> {
        self.child.as_ref().and_then(Child::id).map(children).unwrap_or_default()
    }

    /// `kill -9` for what it started, and for what that started, which ends it too; returns when it
    /// is gone.
    pub(crate) async fn kill_inner(&mut self) -> anyhow::Result<()> {
        let inner = self.children();
        // Whoever would start it again goes first.
        let started: Vec<u32> = inner.iter().flat_map(|pid| children(*pid)).collect();
        for pid in inner.into_iter().chain(started) {
            match kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let Some(mut child) = self.child.take() else { return Ok(()) };
        match tokio::time::timeout(LIMIT, child.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("what {} started outlives its kill", self.program.display()),
        }
    }

    /// `kill -9`; returns when it is gone.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        match tokio::time::timeout(LIMIT, child.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => bail!("{} outlives its kill", self.program.display()),
        }
    }
}
