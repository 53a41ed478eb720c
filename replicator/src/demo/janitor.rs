//! Nothing is left behind, whatever ends the demonstration: a process of its own waits for the end
//! of a pipe that only the demonstration holds, then ends the daemons and removes the directory.
//!
//! Daemons are known by where they run (in the directory) and what they run (the daemon's
//! program). So none escapes between its start and a registration, and no process that merely got
//! the number of a dead one is hit. The pipe has ended only after every child of the
//! demonstration has become its program, for until then a child holds the pipe too.

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

/// How the directories that a janitor may remove are called.
pub(super) const DIR_PREFIX: &str = "lockstep-demo-";
/// Said once the janitor listens.
const READY: &str = "ready";
/// Asks for the directory to be left.
const KEEP: &str = "keep";
/// How long ending the daemons may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Pause between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(20);
/// Looks in a row that must find no daemon.
const QUIET_LOOKS: u32 = 3;

/// The demonstration's side: cleaning begins when this is dropped.
#[derive(Debug)]
pub(super) struct Janitor {
    child: Child,
    pipe: ChildStdin,
    dir: PathBuf,
    daemon: PathBuf,
    keep: bool,
}

impl Janitor {
    /// Starts one. `dir` does not exist yet; the caller makes it afterwards.
    pub(super) async fn start(dir: &Path, daemon: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's file")?;
        let mut child = Command::new(program)
            .args(["demo".as_ref(), "--janitor".as_ref(), dir.as_os_str()])
            .args(["--daemon".as_ref(), daemon.as_os_str()])
            .current_dir("/")
            // A Ctrl-C of the terminal is not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the process that cleans up")?;
        let (Some(pipe), Some(words)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the process that cleans up has no pipes");
        };
        let mut line = String::new();
        let mut words = BufReader::new(words);
        words.read_line(&mut line).await.context("the process that cleans up says nothing")?;
        if line.trim_end() != READY {
            bail!("the process that cleans up did not start");
        }
        Ok(Self { child, pipe, dir: dir.to_owned(), daemon: daemon.to_owned(), keep: false })
    }

    /// The directory is to be left when everything has ended.
    pub(super) async fn keep_dir(&mut self) -> anyhow::Result<()> {
        self.keep = true;
        let order = format!("{KEEP}\n");
        self.pipe.write_all(order.as_bytes()).await.context("the process that cleans up is gone")
    }

    /// Cleans up, and returns when it is done.
    pub(super) async fn finish(self) -> anyhow::Result<()> {
        let Self { mut child, pipe, dir, daemon, keep } = self;
        drop(pipe);
        let ended = tokio::time::timeout(2 * LIMIT, child.wait()).await;
        let status = ended.context("cleaning up takes too long")?.context("cleaning up")?;
        if status.success() {
            return Ok(());
        }
        // Somebody ended the janitor, or it failed: then this says why, or mends it.
        let again = move || clean(&dir, &daemon, keep);
        tokio::task::spawn_blocking(again).await.context("cleaning up")?
    }
}

/// The janitor's side: waits for the end of standard input, then cleans up.
pub(super) async fn serve(dir: &Path, daemon: &Path) -> anyhow::Result<()> {
    let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or("");
    if !name.starts_with(DIR_PREFIX) || !dir.is_absolute() {
        bail!("--janitor {}: not a directory of a demonstration", dir.display());
    }
    // Having asked to be told of these signals, the process is not ended by them.
    let deaf_to = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
    ];
    let _deaf = deaf_to.map(signal);
    let keep = tokio::task::spawn_blocking(listen).await.context("listening")??;
    let (dir, daemon) = (dir.to_owned(), daemon.to_owned());
    tokio::task::spawn_blocking(move || clean(&dir, &daemon, keep)).await.context("cleaning")?
}

/// Returns when the demonstration is gone: whether the directory is to be kept.
fn listen() -> anyhow::Result<bool> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).context("the demonstration is gone")?;
    let orders: Vec<String> = std::io::stdin().lock().lines().map_while(Result::ok).collect();
    Ok(orders.iter().any(|order| order == KEEP))
}

fn clean(dir: &Path, daemon: &Path, keep: bool) -> anyhow::Result<()> {
    end_all(dir, daemon)?;
    if keep || !dir.exists() {
        return Ok(());
    }
    let failed = || format!("cannot remove {}", dir.display());
    // Large files take long to remove on some file systems: all nodes' at the same time.
    let entries: Vec<PathBuf> =
        std::fs::read_dir(dir).with_context(failed)?.flatten().map(|e| e.path()).collect();
    std::thread::scope(|scope| {
        for path in entries.iter().filter(|path| path.is_dir()) {
            // What is left of it fails the next step.
            scope.spawn(move || drop(std::fs::remove_dir_all(path)));
        }
    });
    std::fs::remove_dir_all(dir).with_context(failed)
}

fn end_all(dir: &Path, daemon: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        let found = running(dir, daemon);
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        for pid in found {
            // It may just have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
        if begin.elapsed() > LIMIT {
            bail!("daemons in {} do not end", dir.display());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Processes that run `program` in `dir` or below it.
fn running(dir: &Path, program: &Path) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let runs_here = |pid: &i32| {
        let link = |what: &str| std::fs::read_link(format!("/proc/{pid}/{what}")).ok();
        link("exe").is_some_and(|exe| is_same(&exe, program))
            && link("cwd").is_some_and(|cwd| cwd.starts_with(dir))
    };
    pids.filter(runs_here).map(Pid::from_raw).collect()
}

/// A program that was replaced since it was started is shown with a remark behind its name.
fn is_same(exe: &Path, program: &Path) -> bool {
    exe == program || exe == PathBuf::from(format!("{} (deleted)", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn processes_are_known_by_program_and_directory() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().canonicalize().unwrap().join("lockstep-demo-test");
        std::fs::create_dir_all(dir.join("n1")).unwrap();
        let program = PathBuf::from("/proc/self/exe").canonicalize().unwrap();
        assert_eq!(running(&dir, &program), []);

        let cat = |dir: &Path| {
            Command::new("cat").current_dir(dir).stdin(Stdio::piped()).spawn().unwrap()
        };
        let (mut inside, mut outside) = (cat(&dir.join("n1")), cat(parent.path()));
        let exe = std::fs::read_link(format!("/proc/{}/exe", inside.id())).unwrap();
        let pid = Pid::from_raw(i32::try_from(inside.id()).unwrap());
        assert_eq!(running(&dir, &exe), [pid]);
        assert_eq!(running(&dir, &program), []);

        clean(&dir, &exe, false).unwrap();
        assert!(!inside.wait().unwrap().success());
        assert!(!dir.exists() && parent.path().exists());
        assert!(outside.try_wait().unwrap().is_none(), "a process elsewhere must be left alone");
        drop(outside.stdin.take());
        assert!(outside.wait().unwrap().success());
    }

    #[test]
    fn kept_directories_are_kept_and_missing_ones_no_failure() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("lockstep-demo-kept");
        clean(&dir, Path::new("/no/such/program"), false).unwrap();
        std::fs::create_dir(&dir).unwrap();
        clean(&dir, Path::new("/no/such/program"), true).unwrap();
        assert!(dir.exists());
    }

    #[tokio::test]
    async fn no_other_directory_is_touched() {
        let parent = tempfile::tempdir().unwrap();
        assert!(serve(parent.path(), Path::new("/bin/cat")).await.is_err());
        assert!(serve(Path::new("lockstep-demo-x"), Path::new("/bin/cat")).await.is_err());
        assert!(parent.path().exists());
    }
}
