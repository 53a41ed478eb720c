//! Three nodes on this machine, and a controller.

use crate::process::{Process, wait_for};
use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How many nodes.
pub(crate) const NODES: usize = 3;
/// How much there seems to be for the pools of all.
const POOLS_BYTES: u64 = 24 << 30;
/// How long what daemons left may take to end.
const KEEPER_LIMIT: Duration = Duration::from_secs(20);

/// One node: a daemon and its driver.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) daemon: Process,
    pub(crate) driver: Process,
    pub(crate) csi: Channel,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) nodes: Vec<Node>,
    pub(crate) controller: Process,
    pub(crate) csi: Channel,
}

/// A loopback address of this run, by the name of its directory, so that several can run at once.
fn address(dir: &Path, node: usize, port: u16) -> String {
    let bytes = dir.as_os_str().as_encoded_bytes();
    let number =
        bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    format!("127.{}.{}.{}:{port}", 100 + number % 100, number / 100 % 250, node + 1)
}

fn node_dir(dir: &Path, node: usize) -> PathBuf {
    dir.join(format!("n{}", node + 1))
}

/// Where all pools are: a file system that lets files share blocks.
pub(crate) fn pools(dir: &Path) -> PathBuf {
    dir.join("pools")
}

/// What that file system is on.
pub(crate) fn image(dir: &Path) -> PathBuf {
    dir.join("pools.xfs")
}

/// Makes and mounts the file system of the pools. It ends with the namespace.
fn make_pools(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(pools(dir))?;
    fs::File::create(image(dir))?.set_len(POOLS_BYTES)?;
    let run = |program: &str, args: &[&Path]| {
        let ended = Command::new(program).args(args).output();
        let ended = ended.with_context(|| format!("starting {program}"))?;
        let said = String::from_utf8_lossy(&ended.stderr);
        anyhow::ensure!(ended.status.success(), "{program}: {said}");
        Ok(())
    };
    run("mkfs.xfs", &[Path::new("-q"), &image(dir)])?;
    run("mount", &[Path::new("-o"), Path::new("loop,discard"), &image(dir), &pools(dir)])
}

fn socket(dir: &Path, node: usize) -> String {
    format!("unix://{}", node_dir(dir, node).join("sock").display())
}

fn daemon(dir: &Path, programs: &Path, cluster: &str, node: usize) -> anyhow::Result<Process> {
    let own = node_dir(dir, node);
    let pool = pools(dir).join(format!("n{}", node + 1));
    fs::create_dir_all(&pool)?;
    fs::create_dir_all(own.join("nbd"))?;
    let path = |name: &str| own.join(name).display().to_string();
    let last = NODES - 1;
    let meta = if node == last {
        format!("embedded:{}", path("meta.redb"))
    } else {
        format!("http://{}", address(dir, last, 7171))
    };
    let flags = [
        ("--node", format!("n{}", node + 1)),
        ("--cluster", cluster.to_owned()),
        ("--peer-listen", address(dir, node, 7170)),
        ("--admin-listen", address(dir, node, 7171)),
        ("--nbd-listen", address(dir, node, 10809)),
        ("--socket", path("sock")),
        ("--nbd-dir", path("nbd")),
        ("--pool", format!("default={}", pool.display())),
        ("--meta", meta),
        ("--ready-file", path("ready")),
        ("--run-dir", path("run")),
        ("--device-dir", path("dev")),
    ];
    let flags = flags.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect();
    Ok(Process::new(programs.join("lockstepd"), flags, &own.join("ready"), &own.join("log")))
}

/// A driver that serves `role`, and a client of it.
fn driver(
    dir: &Path,
    programs: &Path,
    role: &str,
    daemons: &[usize],
) -> anyhow::Result<(Process, Channel)> {
    let name = daemons.first().map_or(0, |node| node + 1);
    let (own, log) =
        (dir.join(format!("{role}-{name}.sock")), dir.join(format!("{role}-{name}.log")));
    let daemons: Vec<_> = daemons.iter().map(|node| socket(dir, *node)).collect();
    let mut flags: Vec<String> = [role, "--endpoint"].map(str::to_owned).to_vec();
    flags.push(format!("unix://{}", own.display()));
    flags.extend(["--daemon".to_owned(), daemons.join(",")]);
    if role == "node" {
        flags.extend(["--node-id".to_owned(), format!("n{name}")]);
    }
    let channel = Endpoint::from_shared(format!("unix://{}", own.display()))?.connect_lazy();
    Ok((Process::new(programs.join("lockstep-csi"), flags, &own, &log), channel))
}

impl World {
    /// Starts it, and waits until it serves.
    pub(crate) async fn start(dir: &Path, programs: &Path) -> anyhow::Result<Self> {
        make_pools(dir)?;
        let cluster = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let mut nodes = Vec::new();
        for node in 0..NODES {
            let daemon = daemon(dir, programs, cluster.trim(), node)?;
            let (driver, csi) = driver(dir, programs, "node", &[node])?;
            nodes.push(Node { daemon, driver, csi });
        }
        // The last one owns the record store, which the others need to begin.
        for node in nodes.iter_mut().rev() {
            node.daemon.start().await?;
            node.driver.start().await?;
        }
        let (mut controller, csi) = driver(dir, programs, "controller", &[0, 1, 2])?;
        controller.start().await?;
        Ok(Self { dir: dir.to_owned(), nodes, controller, csi })
    }

    /// Stops it.
    pub(crate) async fn stop(&mut self) {
        let _ = self.controller.stop().await;
        for node in &mut self.nodes {
            let _ = node.driver.stop().await;
            let _ = node.daemon.stop().await;
        }
        // Told to end, they end all devices that are left; else they end by themselves.
        let keepers = self.keepers();
        for pid in &keepers {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
        }
        wait_for(KEEPER_LIMIT, || self.keepers().is_empty()).await;
    }

    /// The processes that keep devices for the daemons of this cluster.
    fn keepers(&self) -> Vec<i32> {
        let ours = format!("{}/", self.dir.display());
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
        let is_keeper = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
            words.iter().any(|word| word == "keeper") && words.iter().any(|w| w.starts_with(&ours))
        };
        pids.filter(is_keeper).collect()
    }
}
