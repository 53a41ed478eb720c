//! Daemons on this machine, each with a loopback address and a directory of its own.

use std::fs::{DirBuilder, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::RngExt as _;
use tokio::process::{Child, Command};
use uuid::Uuid;

use super::control::Control;
use super::janitor::{DIR_PREFIX, Janitor};

const PEER_PORT: u16 = 7170;
const ADMIN_PORT: u16 = 7171;
/// How long a daemon may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long daemons may take to end when asked to.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a copy may be lost until a new one is built: short, so that it can be seen.
const REBUILD_AFTER_MS: &str = "1000";
/// Longest directory in which the sockets' addresses still fit.
const DIR_BYTES_MAX: usize = 50;

/// One daemon.
#[derive(Debug)]
struct Node {
    name: String,
    ip: Ipv4Addr,
    dir: PathBuf,
    child: Option<Child>,
}

/// All daemons.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    daemon: PathBuf,
    uuid: Uuid,
    nodes: Vec<Node>,
}

/// Where daemons run, chosen but not made yet.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory.
    pub(super) dir: PathBuf,
    /// The daemon's program.
    pub(super) daemon: PathBuf,
}

impl Place {
    /// Chooses a directory in `parent`, and finds the daemon beside this program.
    pub(super) fn choose(parent: Option<&Path>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's file")?;
        let daemon = program.with_file_name("lockstepd");
        let daemon = daemon.canonicalize().with_context(|| {
            format!("the daemon {} is needed; build it beside this program", daemon.display())
        })?;
        let system = std::env::temp_dir();
        let parent = parent.unwrap_or(&system);
        let parent = parent
            .canonicalize()
            .with_context(|| format!("cannot use the directory {}", parent.display()))?;
        let number: u32 = rand::rng().random();
        let dir = parent.join(format!("{DIR_PREFIX}{number:08x}"));
        if dir.as_os_str().len() > DIR_BYTES_MAX {
            bail!(
                "--dir {}: too long for the paths of sockets; give a shorter one",
                parent.display()
            );
        }
        Ok(Self { dir, daemon })
    }
}

impl Cluster {
    /// Makes the directories of `count` nodes n1, n2, …; starts nothing.
    pub(super) fn make(place: Place, count: u8) -> anyhow::Result<Self> {
        let Place { dir, daemon } = place;
        let net = free_net(count)?;
        let mut nodes = Vec::new();
        let make = |dir: &Path| {
            let made = DirBuilder::new().mode(0o700).create(dir);
            made.with_context(|| format!("cannot make {}", dir.display()))
        };
        make(&dir)?;
        for number in 1..=count {
            let [a, b, c, _] = net.octets();
            let name = format!("n{number}");
            let node_dir = dir.join(&name);
            make(&node_dir)?;
            make(&node_dir.join("pool"))?;
            make(&node_dir.join("nbd"))?;
            let ip = Ipv4Addr::new(a, b, c, number);
            nodes.push(Node { name, ip, dir: node_dir, child: None });
        }
        Ok(Self { dir, daemon, uuid: Uuid::new_v4(), nodes })
    }

    /// Where everything is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a janitor for this place; to be done before anything is made there.
    pub(super) async fn janitor(place: &Place) -> anyhow::Result<Janitor> {
        Janitor::start(&place.dir, &place.daemon).await
    }

    /// The names of the nodes.
    pub(super) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|n| n.name.clone()).collect()
    }

    /// Name of the `index`th node, from 0.
    pub(super) fn name(&self, index: usize) -> &str {
        &self.nodes[index].name
    }

    /// The admin API of the `index`th node.
    pub(super) fn control(&self, index: usize) -> anyhow::Result<Control> {
        Control::new(&self.nodes[index].dir.join("sock"))
    }

    /// How to ask the daemon that stays from the first to the last moment.
    pub(super) fn server(&self) -> String {
        let last = self.nodes.last().map(|n| n.dir.join("sock"));
        format!("unix://{}", last.unwrap_or_default().display())
    }

    /// The file that holds the data of a volume's copy on a node.
    pub(super) fn data_file(&self, node: &str, uid: &str) -> anyhow::Result<PathBuf> {
        let node = self.nodes.iter().find(|n| n.name == node);
        let node = node.ok_or_else(|| anyhow!("a copy is on an unknown node"))?;
        Ok(node.dir.join("pool/replicas").join(uid).join("data"))
    }

    /// Where the volume is mounted on a node.
    pub(super) fn mount_dir(&self, index: usize) -> PathBuf {
        self.nodes[index].dir.join("mnt")
    }

    /// Starts all daemons and waits until they are ready.
    pub(super) async fn start_all(&mut self) -> anyhow::Result<()> {
        for index in (0..self.nodes.len()).rev() {
            self.launch(index)?;
        }
        for index in (0..self.nodes.len()).rev() {
            self.until_ready(index).await?;
        }
        Ok(())
    }

    /// Starts one daemon; [`Cluster::until_ready`] waits for it.
    pub(super) fn launch(&mut self, index: usize) -> anyhow::Result<()> {
        let flags = self.flags(index);
        let node = &mut self.nodes[index];
        let ready = node.dir.join("ready");
        if ready.exists() {
            std::fs::remove_file(&ready).context("cannot remove the mark of the last start")?;
        }
        let log = File::options().append(true).create(true).open(node.dir.join("log"))?;
        let mut command = Command::new(&self.daemon);
        // What is set for the user's own daemons is not for these.
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("LOCKSTEP_") {
                command.env_remove(key);
            }
        }
        command.args(flags).current_dir(&node.dir).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        node.child = Some(command.spawn().context("cannot start lockstepd")?);
        Ok(())
    }

    fn flags(&self, index: usize) -> Vec<String> {
        let node = &self.nodes[index];
        let owner = self.nodes.last().unwrap_or(node);
        let meta = if owner.name == node.name {
            format!("embedded:{}", node.dir.join("meta.redb").display())
        } else {
            format!("http://{}:{ADMIN_PORT}", owner.ip)
        };
        let pairs = [
            ("node", node.name.clone()),
            ("cluster", self.uuid.to_string()),
            ("peer-listen", format!("{}:{PEER_PORT}", node.ip)),
            ("admin-listen", format!("{}:{ADMIN_PORT}", node.ip)),
            ("socket", node.dir.join("sock").display().to_string()),
            ("nbd-dir", node.dir.join("nbd").display().to_string()),
            ("pool", format!("default={}", node.dir.join("pool").display())),
            ("meta", meta),
            ("run-dir", node.dir.join("run").display().to_string()),
            ("device-dir", node.dir.join("dev").display().to_string()),
            ("ready-file", node.dir.join("ready").display().to_string()),
            ("rebuild-after-ms", REBUILD_AFTER_MS.to_owned()),
        ];
        pairs.into_iter().flat_map(|(key, value)| [format!("--{key}"), value]).collect()
    }

    /// Waits until a daemon says that it is ready.
    pub(super) async fn until_ready(&mut self, index: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        let node = &mut self.nodes[index];
        let ready = node.dir.join("ready");
        while !ready.exists() {
            let ended = node.child.as_mut().and_then(|child| child.try_wait().transpose());
            if let Some(status) = ended {
                bail!("the daemon of {} ended: {}", node.name, status?);
            }
            if begin.elapsed() > READY_LIMIT {
                bail!("the daemon of {} is not ready after {READY_LIMIT:?}", node.name);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Ends a daemon at once, as a crash would.
    pub(super) fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        let child = node.child.as_mut().ok_or_else(|| anyhow!("{} does not run", node.name))?;
        child.start_kill().with_context(|| format!("cannot kill the daemon of {}", node.name))
    }

    /// Waits for the end of a daemon that was killed.
    pub(super) async fn reap(&mut self, index: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.nodes[index].child.take() {
            child.wait().await.context("waiting for the end of a daemon")?;
        }
        Ok(())
    }

    /// Asks all daemons to end, the record store's owner last. Names those that did not.
    pub(super) async fn stop_all(&mut self) -> Vec<String> {
        let mut stuck = Vec::new();
        let Some((owner, others)) = self.nodes.split_last_mut() else { return stuck };
        for nodes in [others, std::slice::from_mut(owner)] {
            let running = nodes.iter_mut().filter_map(|n| Some((&n.name, n.child.as_mut()?)));
            let ends = running.map(async |(name, child)| {
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    // It may just have ended by itself.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
                let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
                ended.is_err().then(|| name.clone())
            });
            stuck.extend(futures::future::join_all(ends).await.into_iter().flatten());
        }
        stuck
    }

    /// The last lines of each daemon's log.
    pub(super) fn log_ends(&self) -> Vec<String> {
        let ends = self.nodes.iter().map(|node| {
            let end = log_end(&node.dir.join("log")).unwrap_or_default();
            format!("--- end of the log of {}:\n{end}", node.name)
        });
        ends.collect()
    }
}

/// The last lines of a file.
fn log_end(path: &Path) -> std::io::Result<String> {
    const LINES: usize = 12;
    const BYTES: u64 = 16 << 10;
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

/// A network within 127.0.0.0/8 whose first addresses nobody listens on.
fn free_net(count: u8) -> anyhow::Result<Ipv4Addr> {
    let mut refused = None;
    for _ in 0..50 {
        let net = Ipv4Addr::new(127, rand::rng().random_range(16..250), rand::rng().random(), 0);
        let [a, b, c, _] = net.octets();
        let ips = (1..=count).map(|n| Ipv4Addr::new(a, b, c, n));
        let mut all = ips.flat_map(|ip| [PEER_PORT, ADMIN_PORT].map(|p| SocketAddrV4::new(ip, p)));
        match all.try_for_each(|address| TcpListener::bind(address).map(drop)) {
            Ok(()) => return Ok(net),
            Err(e) => refused = Some(e),
        }
    }
    Err(refused.map_or_else(|| anyhow!("none tried"), anyhow::Error::new))
        .context("no free loopback addresses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_node_owns_the_record_store_and_no_address_is_shared() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("lockstep-demo-flags");
        let place = Place { dir, daemon: PathBuf::from("/bin/true") };
        let cluster = Cluster::make(place, 3).unwrap();
        let value = |index: usize, key: &str| {
            let flags = cluster.flags(index);
            let at = flags.iter().position(|f| f == key).unwrap();
            flags[at + 1].clone()
        };
        assert!(value(2, "--meta").starts_with("embedded:/"));
        assert_eq!(value(0, "--meta"), format!("http://{}", value(2, "--admin-listen")));
        assert_ne!(value(0, "--peer-listen"), value(1, "--peer-listen"));
        assert!(cluster.server().ends_with("/n3/sock"));
        assert!(cluster.data_file("n2", "uid").unwrap().ends_with("n2/pool/replicas/uid/data"));
        assert!(cluster.data_file("n9", "uid").is_err());
    }

    #[tokio::test]
    async fn a_daemon_that_ends_early_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("lockstep-demo-early");
        let place = Place { dir, daemon: PathBuf::from("/bin/false") };
        let error = Cluster::make(place, 1).unwrap().start_all().await.unwrap_err();
        assert!(error.to_string().contains("n1 ended"), "{error}");
    }

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<String> = (0..5000).map(|n| format!("line {n}")).collect();
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let end = log_end(file.path()).unwrap();
        assert_eq!(end.lines().count(), 12);
        assert!(end.ends_with("line 4999"));
    }
}
