//! The outside: starts the program again in namespaces of its own, and looks afterwards whether
//! anything was left behind.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::board::say;
use crate::{plan, volume};

/// Exit status of a test that could not run.
const SKIPPED: u8 = 77;
/// How long the kernel may take to end what was in the namespaces.
const ENDING_LIMIT: Duration = Duration::from_secs(20);
/// Programs without which there is no chaos.
const TOOLS: [&str; 10] = [
    "unshare",
    "nsenter",
    "ip",
    "nft",
    "fio",
    "mke2fs",
    "e2fsck",
    "mkfs.xfs",
    "xfs_repair",
    "losetup",
];

/// Runs it all.
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let steps =
        plan::plan(args.seed, args.length_ms(), volume::NODES, volume::ALL.len(), &args.only)?;
    if args.plan {
        steps.iter().for_each(|step| say(&step.to_string()));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(reason) = missing() {
        say(&format!("skipped: {reason}"));
        return Ok(ExitCode::from(SKIPPED));
    }
    let dir = make_dir(args)?;
    let before = traces();
    let code = inner(&dir).await;
    let left = left_behind(&dir, &before).await;
    left.iter().for_each(|what| say(&format!("LEFT BEHIND: {what}")));
    let clean = matches!(code, Ok(0)) && left.is_empty();
    if clean && !args.keep {
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    } else {
        let again = format!("tests/chaos/run --minutes {} --seed {}", args.minutes, args.seed);
        say(&format!("kept: {} (data and logs); to play the plan again: {again}", dir.display()));
    }
    if args.json
        && let Ok(line) = std::fs::read_to_string(dir.with_extension("json"))
    {
        say(line.trim_end());
    }
    let _ = std::fs::remove_file(dir.with_extension("json"));
    match code? {
        0 if left.is_empty() => Ok(ExitCode::SUCCESS),
        0 => Ok(ExitCode::FAILURE),
        code => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
    }
}

/// Why it cannot run here, if so.
fn missing() -> Option<String> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|facts| facts.uid() == 0);
    if !root {
        return Some("needs root, for network namespaces and mounts".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        std::env::split_paths(&path).chain(SBIN.iter().map(PathBuf::from)).collect();
    let absent = |tool: &&&str| !dirs.iter().any(|dir| dir.join(tool).exists());
    TOOLS.iter().find(absent).map(|tool| format!("{tool} is not installed"))
}

/// Where programs of the administrator are, on systems that keep them from others.
pub(crate) const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

fn make_dir(args: &Args) -> anyhow::Result<PathBuf> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let parent = parent.canonicalize().with_context(|| format!("using {}", parent.display()))?;
    let number = std::process::id();
    let dir = parent.join(format!("lockstep-chaos-{number}"));
    if dir.as_os_str().len() > 50 {
        bail!("--dir {}: too long for the paths of sockets; give a shorter one", parent.display());
    }
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Starts the inside and waits for it; it ends with this program.
async fn inner(dir: &Path) -> anyhow::Result<i32> {
    let listen = |kind| signal(kind).context("listening for signals");
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let program = std::env::current_exe().context("finding this program's file")?;
    let mut path = std::env::var("PATH").unwrap_or_default();
    SBIN.iter().for_each(|dir| path.extend([":", dir]));
    let mut child = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .arg("--inside")
        .arg(dir)
        .env("PATH", path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("starting unshare")?;
    let status = tokio::select! {
        status = child.wait() => status.context("waiting for the inside")?,
        _ = interrupt.recv() => { child.kill().await?; bail!("interrupted") }
        _ = terminate.recv() => { child.kill().await?; bail!("terminated") }
    };
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Loop devices in use and network namespaces with a name, before and after.
fn traces() -> Vec<String> {
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path().display().to_string()).collect()
    };
    let mut all = names("/run/netns");
    let loops = names("/sys/block").into_iter();
    all.extend(loops.filter(|path| Path::new(path).join("loop/backing_file").exists()));
    all
}

/// What is still there of the inside, after the kernel had time to clear it away.
async fn left_behind(dir: &Path, before: &[String]) -> Vec<String> {
    let begin = Instant::now();
    loop {
        let left = remains(dir, before);
        if left.is_empty() || begin.elapsed() > ENDING_LIMIT {
            return left;
        }
        crate::board::wait_for(Duration::from_millis(50)).await;
    }
}

fn remains(dir: &Path, before: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let named = dir.display().to_string();
    left.extend(mounts.lines().filter(|l| l.contains(&named)).map(|l| format!("mount {l}")));
    for trace in traces() {
        let backing = std::fs::read_to_string(format!("{trace}/loop/backing_file"));
        let ours = backing.is_ok_and(|file| file.contains(&named));
        if ours || (trace.starts_with("/run/netns") && !before.contains(&trace)) {
            left.push(trace);
        }
    }
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let name = process.file_name();
        let is_process = name.to_str().is_some_and(|n| n.parse::<u32>().is_ok());
        let cwd = std::fs::read_link(process.path().join("cwd"));
        if is_process && cwd.is_ok_and(|cwd| cwd.starts_with(dir)) {
            left.push(format!("process {}", name.display()));
        }
    }
    left
}
