//! All nodes, as everybody uses them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use lockstep_proto::v1::VolumeStatus;
use lockstep_replicator::demo::control::Control;
use tokio::process::Command;
use tokio::time::timeout;
use uuid::Uuid;

use crate::board::{Board, wait_for};
use crate::net::{self, Net};
use crate::node::Node;
use crate::volume::NODES;

const PEER_PORT: u16 = 7170;
const ADMIN_PORT: u16 = 7171;
/// Space of a pool: enough for a copy of every volume.
const POOL_BYTES: &str = "1g";
/// How long a daemon may take to answer a simple question before another one is asked.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take until some node can write to the record store.
const FORGET_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The nodes.
    pub(crate) nodes: Vec<Node>,
    /// What connects them.
    pub(crate) net: Net,
    /// Where things are told.
    pub(crate) board: Arc<Board>,
    daemon: String,
    log_level: String,
    uuid: Uuid,
}

impl Cluster {
    /// Makes network, directories and pools; starts nothing.
    pub(crate) async fn make(
        dir: &Path,
        log_level: &str,
        board: Arc<Board>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program's file")?;
        let daemon = program.with_file_name("lockstepd");
        if !daemon.exists() {
            bail!("{} is needed; build it beside this program", daemon.display());
        }
        let net = Net::make(NODES).await?;
        let mut nodes = Vec::new();
        for index in 0..NODES {
            let node = Node::new(index, dir.join(format!("n{}", index + 1)), Arc::clone(&board));
            std::fs::create_dir_all(node.dir.join("nbd"))?;
            std::fs::create_dir_all(node.pool())?;
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={POOL_BYTES},mode=700"), "pool"]);
            net::must(mount.arg(node.pool())).await?;
            nodes.push(node);
        }
        let (daemon, log_level) = (daemon.display().to_string(), log_level.to_owned());
        Ok(Self { nodes, net, board, daemon, log_level, uuid: Uuid::new_v4() })
    }

    /// Starts a node's daemon; it is not waited for.
    pub(crate) fn launch(&self, node: &Node) -> anyhow::Result<()> {
        node.launch(&self.daemon, &self.flags(node))
    }

    fn flags(&self, node: &Node) -> Vec<String> {
        let ip = net::address(node.index);
        let meta = if node.index + 1 == NODES {
            format!("embedded:{}", node.dir.join("meta.redb").display())
        } else {
            format!("http://{}:{ADMIN_PORT}", net::address(NODES - 1))
        };
        let pairs = [
            ("node", node.name.clone()),
            ("cluster", self.uuid.to_string()),
            ("peer-listen", format!("{ip}:{PEER_PORT}")),
            ("admin-listen", format!("{ip}:{ADMIN_PORT}")),
            ("socket", node.dir.join("sock").display().to_string()),
            ("nbd-dir", node.dir.join("nbd").display().to_string()),
            ("pool", format!("default={}", node.pool().display())),
            ("meta", meta),
            ("ready-file", node.dir.join("ready").display().to_string()),
            ("rebuild-after-ms", "5000".to_owned()),
            ("forget-after-ms", "10000".to_owned()),
            ("log-level", self.log_level.clone()),
        ];
        pairs.into_iter().flat_map(|(key, value)| [format!("--{key}"), value]).collect()
    }

    /// The admin API of a node. Through a unix socket, so no partition is in its way.
    pub(crate) fn control(&self, index: usize) -> anyhow::Result<Control> {
        Control::new(&self.nodes[index].dir.join("sock"))
    }

    /// A volume as one node sees it, if it answers soon.
    pub(crate) async fn seen_by(&self, index: usize, volume: &str) -> Option<VolumeStatus> {
        let control = self.control(index).ok()?;
        timeout(ASK_LIMIT, control.volume(volume)).await.ok()?.ok()
    }

    /// A volume as the first node that answers sees it.
    pub(crate) async fn seen(&self, volume: &str) -> Option<VolumeStatus> {
        for index in (0..NODES).rev() {
            if let Some(seen) = self.seen_by(index, volume).await {
                return Some(seen);
            }
        }
        None
    }

    /// Forgets the pool of a node that has lost it, as soon as some node can.
    pub(crate) async fn forget_pool(&self, node: &str) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            for index in (0..NODES).rev() {
                let Ok(control) = self.control(index) else { continue };
                let asked = timeout(ASK_LIMIT, control.forget_pool(node, "default"));
                match asked.await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(why)) if begin.elapsed() > FORGET_LIMIT => return Err(why),
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            if begin.elapsed() > FORGET_LIMIT {
                bail!("no node could forget the pool of {node} within {FORGET_LIMIT:?}");
            }
            wait_for(PAUSE).await;
        }
    }

    /// The index of a node by its name.
    pub(crate) fn index(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Waits until all daemons say that they are ready.
    pub(crate) async fn until_ready(&self, limit: Duration) -> anyhow::Result<()> {
        let begin = Instant::now();
        while let Some(node) = self.nodes.iter().find(|node| !node.is_ready()) {
            if begin.elapsed() > limit {
                bail!("the daemon of {} is not ready after {limit:?}", node.name);
            }
            wait_for(PAUSE).await;
        }
        Ok(())
    }
}
