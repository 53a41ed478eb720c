//! Nothing is left behind, whatever ends the demonstration: a process of its own waits for the end
//! of a pipe that only the demonstration holds, then ends the daemons and removes the directory.
//!
//! Devices are ended as soon as no daemon serves them: whoever still waits for one, such as a
//! writer of the demonstration, gets an error and can end. Then their mounts can go.
//!
//! Daemons are known by where they run (in the directory) and what they run (the daemon's
//! program). So none escapes between its start and a registration, and no process that merely got
//! the number of a dead one is hit. The pipe has ended only after every child of the
//! demonstration has become its program, for until then a child holds the pipe too.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{BufRead as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lockstep_attach::filesystem;
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
/// Pause between two looks at the demonstration.
const PARENT_PAUSE: Duration = Duration::from_millis(200);
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
        clean(&dir, &daemon, keep).await
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
    let keep = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&keep);
    let listening = tokio::task::spawn_blocking(move || listen(&told));
    tokio::select! {
        ended = listening => ended.context("listening")??,
        () = until_killed(std::os::unix::process::parent_id()) => {}
    }
    clean(dir, daemon, keep.load(Ordering::Relaxed)).await
}

/// Returns when the demonstration is gone; sets whether the directory is to be kept.
fn listen(keep: &AtomicBool) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).context("the demonstration is gone")?;
    for order in std::io::stdin().lock().lines().map_while(Result::ok) {
        keep.fetch_or(order == KEEP, Ordering::Relaxed);
    }
    Ok(())
}

/// Returns when a process was killed, though it may not have ended: its threads that wait for a
/// device cannot be killed, and hold the pipe until the device is ended here.
async fn until_killed(pid: u32) {
    let is_killed = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
    };
    while !is_killed() {
        tokio::time::sleep(PARENT_PAUSE).await;
    }
}

async fn clean(dir: &Path, daemon: &Path, keep: bool) -> anyhow::Result<()> {
    let blocking = async |step: fn(&Path, &Path) -> anyhow::Result<()>| {
        let (dir, daemon) = (dir.to_owned(), daemon.to_owned());
        tokio::task::spawn_blocking(move || step(&dir, &daemon)).await.context("cleaning up")?
    };
    blocking(|dir, daemon| end_all(dir, || running(dir, daemon), Signal::SIGKILL)).await?;
    // Told to end, keepers end all devices of their nodes.
    blocking(|dir, daemon| end_all(dir, || keepers(dir, daemon), Signal::SIGTERM)).await?;
    blocking(|dir, _| unmount_all(dir)).await?;
    if keep {
        return Ok(());
    }
    blocking(|dir, _| remove(dir)).await
}

/// Takes away what is mounted in the directory, the last mount first.
fn unmount_all(dir: &Path) -> anyhow::Result<()> {
    let mounts = filesystem::mounts().context("cannot read the mounts")?;
    for mount in mounts.iter().rev().filter(|mount| mount.dir.starts_with(dir)) {
        filesystem::detach(&mount.source, &mount.dir)?;
    }
    Ok(())
}

fn remove(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
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

/// Sends a signal to each process that is found, until none is found any more.
fn end_all(dir: &Path, find: impl Fn() -> Vec<Pid>, signal: Signal) -> anyhow::Result<()> {
    let begin = Instant::now();
    let (mut quiet, mut told) = (0, BTreeSet::new());
    while quiet < QUIET_LOOKS {
        let found = find();
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        for pid in found {
            if told.insert(pid) {
                // It may just have ended by itself.
                let _ = kill(pid, signal);
            }
        }
        if begin.elapsed() > LIMIT {
            bail!("processes in {} do not end", dir.display());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Processes that run `program` in `dir` or below it.
fn running(dir: &Path, program: &Path) -> Vec<Pid> {
    let is_here = |pid: i32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
    };
    processes(program, is_here)
}

/// Processes that run `program` to keep something for a daemon in `dir`.
fn keepers(dir: &Path, program: &Path) -> Vec<Pid> {
    let keeps_here = |pid: i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0).map(|w| Path::new(OsStr::from_bytes(w)));
        words.nth(1) == Some(Path::new("keeper")) && words.any(|word| word.starts_with(dir))
    };
    processes(program, keeps_here)
}

fn processes(program: &Path, is_wanted: impl Fn(i32) -> bool) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let runs = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| is_same(&exe, program))
    };
    pids.filter(runs).filter(|pid| is_wanted(*pid)).map(Pid::from_raw).collect()
}

/// A program that was replaced since it was started is shown with a remark behind its name.
fn is_same(exe: &Path, program: &Path) -> bool {
    exe == program || exe == PathBuf::from(format!("{} (deleted)", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn processes_are_known_by_program_and_directory() {
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

        clean(&dir, &exe, false).await.unwrap();
        assert!(!inside.wait().unwrap().success());
        assert!(!dir.exists() && parent.path().exists());
        assert!(outside.try_wait().unwrap().is_none(), "a process elsewhere must be left alone");
        drop(outside.stdin.take());
        assert!(outside.wait().unwrap().success());
    }

    #[tokio::test]
    async fn kept_directories_are_kept_and_missing_ones_no_failure() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("lockstep-demo-kept");
        clean(&dir, Path::new("/no/such/program"), false).await.unwrap();
        std::fs::create_dir(&dir).unwrap();
        clean(&dir, Path::new("/no/such/program"), true).await.unwrap();
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
