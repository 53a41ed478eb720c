//! A run directory with a keeper, and what tests need around it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockstep_attach::Backend;
use lockstep_attach::device::fuse::FuseDoor;
use lockstep_attach::device::{Device, DeviceError, Door, Shape};
use lockstep_attach::keeper::KeeperClient;
use lockstep_attach::memory::MemoryBackend;
use tempfile::TempDir;

/// How long anything may take before a test fails; generous, for machines under load.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const MIB: u64 = 1 << 20;

/// Whether this machine has what the test needs; if not, it is skipped aloud.
pub(crate) fn possible(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        |program: &&&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let device = |path: &str| std::fs::File::options().read(true).write(true).open(path).is_ok();
    let why = if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        "needs root".to_owned()
    } else if !device("/dev/fuse") || !device("/dev/loop-control") {
        "needs FUSE and loop devices".to_owned()
    } else if let Some(program) = programs.iter().find(|program| !found(program)) {
        format!("{program} not installed")
    } else {
        return true;
    };
    // Not `eprintln!`, which the test harness would keep to itself.
    std::io::stderr().write_all(format!("SKIPPED {test}: {why}\n").as_bytes()).unwrap();
    false
}

/// The program that serves devices, and can be a keeper.
pub(crate) fn server() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().unwrap().with_file_name("examples").join("device-memory");
    assert!(program.is_file(), "build {}: cargo build --examples", program.display());
    program
}

/// A run directory of its own. When it goes, all its devices are ended.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) keeper: KeeperClient,
    pub(crate) door: FuseDoor,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let run_dir = dir.path().to_owned();
        let keeper = KeeperClient::new(&run_dir, Some(server()));
        let door = FuseDoor::new(run_dir, keeper.clone(), server());
        Self { dir, keeper, door }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory to mount on.
    pub(crate) fn mount_point(&self) -> PathBuf {
        let dir = self.path("mnt");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    pub(crate) async fn open<B: Backend>(
        &self,
        backend: &Arc<B>,
        change: impl FnOnce(&mut Shape),
    ) -> Result<Box<dyn Device>, DeviceError> {
        let mut shape = Shape {
            name: "disk".to_owned(),
            size_bytes: backend.info().size_bytes,
            read_only: false,
            write_through: false,
            queues: 2,
        };
        change(&mut shape);
        self.door.open(shape, Arc::clone(backend)).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let (door, keeper) = (self.door.clone(), self.keeper.clone());
        let mounted = self.path("mnt");
        let work = move || {
            for name in keeper.list().unwrap() {
                // As if this process had died.
                let kept = keeper.fetch(&name).unwrap().unwrap();
                keeper.keep(&name, "served 0 0", kept.fd.as_fd()).unwrap();
            }
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let swept = <_ as Door<MemoryBackend>>::sweep(&door, BTreeSet::new());
            runtime.block_on(swept).unwrap();
            // What a failed test left mounted; its device is gone by now.
            let _ = nix::mount::umount2(&mounted, nix::mount::MntFlags::MNT_DETACH);
        };
        std::thread::spawn(work).join().unwrap();
    }
}

/// Runs a program away from the tasks, and returns what it printed; it must succeed.
pub(crate) async fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    let output = outcome(program, arguments).await;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {}\n{printed}\n{complaints}", output.status);
    printed
}

/// Runs a program away from the tasks.
pub(crate) async fn outcome(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments.iter().map(|argument| argument.as_ref().to_owned()));
    away(move || command.output().unwrap()).await
}

/// Does what blocks, such as touching a device, away from the tasks that serve it.
pub(crate) async fn away<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work);
    tokio::time::timeout(PATIENCE, done).await.expect("it takes too long").unwrap()
}

/// Waits for a condition.
pub(crate) async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the kernel tells of a block device.
pub(crate) fn sys(device: &Path, name: &str) -> String {
    let device = device.file_name().unwrap();
    let path = Path::new("/sys/block").join(device).join(name);
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Whether a loop device is bound to a file.
pub(crate) fn is_bound(device: &Path) -> bool {
    !sys(device, "loop/backing_file").is_empty()
}

/// Bytes that look random and are the same each time.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        u8::try_from(state >> 56).unwrap()
    };
    (0..len).map(next).collect()
}
