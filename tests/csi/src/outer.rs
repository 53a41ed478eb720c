//! The outside: starts the program again in namespaces of its own for mounts and processes. So
//! whatever kills it, the kernel ends every process and undoes every mount of it. Only loop devices
//! know no namespaces; these are given back here, those of earlier runs that were killed too.
//!
//! Three programs: the outside, in a mount namespace of its own; the first process inside, in one
//! for processes too, which takes in orphans; and the player. Between the first two `unshare`
//! waits, and ends last whatever was killed: the last one undoes the mounts, and it must not be a
//! daemon whose own device would have to answer then.

use crate::{Args, SKIPPED, Stage, say};
use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How the directory of a run begins.
const PREFIX: &str = "lockstep-csi-torture-";
/// Held by the outside of a run as long as that lives.
const LOCK: &str = "lock";
/// The loop devices that a run which has not ended had. The name of a device's file is lost with
/// the mounts.
const LOOPS: &str = "loops";
/// How long the kernel may take to end what was in the namespaces.
const ENDING: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(50);
/// How often is looked which loop devices there are.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Programs without which nothing runs.
const TOOLS: [&str; 5] = ["unshare", "losetup", "mount", "mkfs.ext4", "mkfs.xfs"];
const SBIN: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Becomes the outside.
pub(crate) fn enter() -> anyhow::Result<ExitCode> {
    if let Some(reason) = missing() {
        say(&format!("skipped: {reason}"));
        return Ok(ExitCode::from(SKIPPED));
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).env("PATH", SBIN);
    let error = command.arg(own()?).args(arguments(Stage::Outside, None)).exec();
    Err(error).context("starting unshare")
}

/// The arguments that make this program another stage.
fn arguments(stage: Stage, dir: Option<&Path>) -> Vec<OsString> {
    let is_kept = |arg: &OsString| {
        let text = arg.to_string_lossy();
        !text.starts_with("--stage") && !text.starts_with("--dir")
    };
    let mut all: Vec<OsString> = std::env::args_os().skip(1).filter(is_kept).collect();
    all.push(stage.flag().into());
    all.extend(dir.map(|dir| format!("--dir={}", dir.display()).into()));
    all
}

fn own() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("finding this program's file")
}

/// Runs it all.
pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    leave_mounts();
    tidy_up();
    let dir = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let lock = File::create(dir.path().join(LOCK))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, errno)| errno)
        .context("taking a lock that nobody else can have")?;
    let code = inside(dir.path()).await;
    // Of the processes that are dead.
    let _ = umount2("/proc", MntFlags::MNT_DETACH);
    let left = give_back(dir.path()).await;
    for what in &left {
        say(&format!("LEFT BEHIND: {what}"));
    }
    let _ = fs::remove_file(dir.path().join(LOOPS));
    let is_well = matches!(code, Ok(0)) && left.is_empty();
    if !is_well || args.keep {
        say(&format!("kept: {}", dir.keep().display()));
    }
    code?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why it cannot run here, if so.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, to make devices and to mount".to_owned());
    }
    let dirs: Vec<PathBuf> = std::env::split_paths(SBIN).collect();
    let absent = |tool: &&&str| !dirs.iter().any(|dir| dir.join(tool).exists());
    TOOLS.iter().find(absent).map(|tool| format!("{tool} is not installed"))
}

/// Starts the inside and waits for it. It ends with this process.
async fn inside(dir: &Path) -> anyhow::Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--"]).env("PATH", SBIN).stdin(Stdio::piped());
    command.arg(own()?).args(arguments(Stage::First, Some(dir)));
    let mut child = tokio::process::Command::from(command).spawn().context("starting unshare")?;
    // The first process inside ends when this does.
    let mut alive = child.stdin.take();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.context("waiting for the inside")?,
            _ = interrupt.recv() => drop(alive.take()),
            _ = terminate.recv() => drop(alive.take()),
            _ = looks.tick() => note_loops(dir),
        }
    };
    Ok(status.code().unwrap_or(128))
}

/// Writes down which loop devices there are, for the case that nobody is left to give them back.
fn note_loops(dir: &Path) {
    let names: Vec<String> = loops(dir).iter().map(|d| d.display().to_string()).collect();
    let _ = fs::write(dir.join(LOOPS), names.join("\n"));
}

/// The first process inside.
pub(crate) fn first(dir: &Path) -> anyhow::Result<ExitCode> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let own = own()?;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>).context("mounting /proc")?;
    let mut command = Command::new(own);
    let player = command.args(arguments(Stage::Player, Some(dir))).stdin(Stdio::null()).spawn();
    let player = i32::try_from(player.context("starting the player")?.id())?;
    std::thread::spawn(move || {
        // Nothing is ever sent; it ends with the outside.
        let _ = std::io::stdin().read(&mut [0]);
        let _ = kill(Pid::from_raw(player), Signal::SIGKILL);
    });
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == player => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == player => {
                anyhow::bail!("the player was ended by {signal}");
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waiting for processes"),
        }
    }
}

/// Here every mount of the machine is mounted too, and would keep its device busy when whoever made
/// it unmounts it. So all that tests and others may be about to unmount is let go.
fn leave_mounts() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_others = table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let (dir, source) = (*words.get(4)?, *words.last_chunk::<2>()?.first()?);
        let is_device =
            ["/dev/loop", "/dev/ublkb", "/dev/nbd"].iter().any(|name| source.starts_with(name));
        let is_theirs = is_device || dir.contains("/lockstep-");
        (is_theirs && dir != "/").then_some(dir)
    });
    for dir in of_others.collect::<Vec<_>>().into_iter().rev() {
        // One that is below another one went with that.
        let _ = umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// The file that a loop device is bound to, by its name.
fn backing(device: &Path) -> Option<String> {
    let name = device.file_name()?;
    let file = Path::new("/sys/block").join(name).join("loop/backing_file");
    Some(fs::read_to_string(file).ok()?.trim_end().to_owned())
}

/// The loop devices over files below a directory.
fn loops(below: &Path) -> Vec<PathBuf> {
    let begin = format!("{}/", below.display());
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = entries.map(|entry| Path::new("/dev").join(entry.file_name()));
    devices.filter(|dev| backing(dev).is_some_and(|name| name.starts_with(&begin))).collect()
}

/// Those of these loop devices that were of a run, also if their mount is gone.
fn still(devices: &[PathBuf], run: &Path) -> Vec<PathBuf> {
    let begin = format!("{}/", run.display());
    let is_ours = |name: String| name == "/" || name.starts_with(&begin);
    devices.iter().filter(|device| backing(device).is_some_and(is_ours)).cloned().collect()
}

/// The places below a directory where something is mounted, the innermost last.
fn mounts(below: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let dirs = table.lines().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
    dirs.filter(|dir| dir.starts_with(below)).collect()
}

/// Unmounts and gives back what dead processes had; returns what stays.
async fn give_back(dir: &Path) -> Vec<String> {
    let begin = Instant::now();
    // One that is mounted ends with its mount, once it was told to end.
    let bound = loops(dir);
    clear(&bound);
    for place in mounts(dir).iter().rev() {
        let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    loop {
        let devices = still(&bound, dir);
        let left = mounts(dir).into_iter().chain(devices.clone());
        let left: Vec<String> = left.map(|path| path.display().to_string()).collect();
        if left.is_empty() || begin.elapsed() > ENDING {
            return left;
        }
        wait_a_moment().await;
        clear(&devices);
    }
}

async fn wait_a_moment() {
    tokio::time::sleep(PAUSE).await;
}

fn clear(devices: &[PathBuf]) {
    for device in devices {
        let mut command = Command::new("losetup");
        let _ = command.arg("-d").arg(device).env("PATH", SBIN).stderr(Stdio::null()).status();
    }
}

/// Gives back the loop devices of runs that were killed together with their outside, and removes
/// what else they left.
fn tidy_up() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let dir = entry.path();
        let Ok(noted) = fs::read_to_string(dir.join(LOOPS)) else { continue };
        let Ok(lock) = File::open(dir.join(LOCK)) else { continue };
        let is_dead = Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok();
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && is_dead {
            let noted: Vec<PathBuf> = noted.lines().map(PathBuf::from).collect();
            clear(&still(&noted, &dir));
            let _ = fs::remove_dir_all(&dir);
        }
    }
}
