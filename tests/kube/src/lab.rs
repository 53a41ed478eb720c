//! A whole cluster on this machine: the control plane, nodes with real kubelets, our driver there.
//!
//! A check gets a [`Lab`] and does with it what happens to clusters: nodes lose their power and
//! boot again, are cut off and come back, programs are killed. What it asks of Kubernetes it asks
//! with [`Lab::kubectl`], or as a client ([`Cluster::client`](crate::cluster::Cluster::client)).

mod cgroups;
mod driver;
pub(crate) mod images;
mod loops;
mod node;
pub(crate) mod pods;

pub(crate) use driver::{GUARD, NAMESPACE};
pub(crate) use node::Node;

use crate::cluster::{Cluster, User};
use crate::process::{Process, wait_a_moment, wait_for};
use anyhow::{Context as _, ensure};
use driver::Driver;
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

/// How many nodes there are.
pub(crate) const NODES: usize = 5;
/// How long the cluster may take for what is asked of it.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// The cluster. Its nodes lose their power when this is dropped; [`Lab::finish`] also gives back
/// what they had of the machine.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) cluster: OwnedMutexGuard<Cluster>,
    nodes: Vec<Node>,
    cgroups: cgroups::Root,
    managers: Vec<Process>,
    driver: Option<Driver>,
    images: Vec<PathBuf>,
    noting: JoinHandle<()>,
}

impl Lab {
    /// Starts the controller manager, the scheduler and the nodes, and waits until all are ready.
    pub(crate) async fn start(cluster: OwnedMutexGuard<Cluster>) -> anyhow::Result<Self> {
        forget_what_was_made_by_hand(&cluster).await?;
        let managers = start_managers(&cluster)?;
        let images = images::make_common(cluster.dir()).await?;
        let noting = tokio::spawn(note_loops(cluster.dir().to_owned()));
        let cgroups = cgroups::Root::new(cluster.dir())?;
        let nodes = Vec::new();
        let mut lab = Self { cluster, nodes, cgroups, managers, driver: None, images, noting };
        for number in 1..=NODES {
            let mut node = Node::make(&lab.cluster, number).await?;
            node.boot(&lab.cgroups).await?;
            lab.nodes.push(node);
        }
        for node in &lab.nodes {
            node.import(&lab.images).await?;
        }
        for number in 1..=NODES {
            lab.wait_until_ready(number).await?;
        }
        Ok(lab)
    }

    /// Starts our daemons and driver on all nodes and the controller beside the control plane, as
    /// processes, and makes our classes of storage. Where a chart is installed, it is not called.
    pub(crate) async fn install_driver(&mut self) -> anyhow::Result<()> {
        self.install_driver_with(&[]).await
    }

    /// The same with more flags for the daemons.
    pub(crate) async fn install_driver_with(&mut self, flags: &[&str]) -> anyhow::Result<()> {
        self.driver = Some(Driver::install(&self.cluster, &mut self.nodes, flags).await?);
        Ok(())
    }

    /// What runs beside the control plane for the driver.
    pub(crate) fn driver(&mut self) -> anyhow::Result<&mut Driver> {
        self.driver.as_mut().context("the driver was not installed")
    }

    /// A node, by its number: the first is 1 and is called n1.
    pub(crate) fn node(&self, number: usize) -> anyhow::Result<&Node> {
        let found = self.nodes.iter().find(|node| node.number() == number);
        found.with_context(|| format!("there is no node {number}"))
    }

    /// The same, to change it.
    pub(crate) fn node_mut(&mut self, number: usize) -> anyhow::Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.number() == number);
        found.with_context(|| format!("there is no node {number}"))
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// The number of the node that Kubernetes calls so.
    pub(crate) fn number_of(&self, name: &str) -> anyhow::Result<usize> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        Ok(found.with_context(|| format!("there is no node {name:?}"))?.number())
    }

    /// A node's power is gone.
    pub(crate) async fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        self.node_mut(number)?.kill().await
    }

    /// Its power is back, and it works again.
    pub(crate) async fn boot(&mut self, number: usize) -> anyhow::Result<()> {
        self.power(number).await?;
        self.wait_until_back(number).await
    }

    /// Its power is back; what is on it begins.
    pub(crate) async fn power(&mut self, number: usize) -> anyhow::Result<()> {
        let cgroups = self.cgroups.clone();
        self.node_mut(number)?.boot(&cgroups).await
    }

    /// Waits until Kubernetes says that a node is ready, and it has the driver.
    pub(crate) async fn wait_until_back(&self, number: usize) -> anyhow::Result<()> {
        self.wait_until_ready(number).await?;
        match &self.driver {
            Some(_) => driver::wait_for_driver(self.node(number)?).await,
            None => Ok(()),
        }
    }

    /// Gives an image to all nodes.
    pub(crate) async fn import(&self, images: &[PathBuf]) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.import(images).await?;
        }
        Ok(())
    }

    /// Asks Kubernetes as its administrator.
    pub(crate) async fn kubectl(&self, flags: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(flags, "").await
    }

    /// Asks a daemon of ours that answers.
    pub(crate) async fn lockstep(&self, flags: &[&str]) -> anyhow::Result<String> {
        let program = self.driver.as_ref().context("the driver was not installed")?.programs();
        let mut told = anyhow::anyhow!("no node is up");
        for node in self.nodes.iter().filter(|node| node.is_up()) {
            let server = format!("http://{}:7171", Node::address(node.number()));
            let mut command = Command::new(program.join("lockstep"));
            match images::run(command.args(flags).env("LOCKSTEP_SERVER", server)).await {
                Ok(said) => return Ok(said),
                Err(error) => told = error,
            }
        }
        Err(told)
    }

    /// Makes objects.
    pub(crate) async fn apply(&self, objects: &serde_json::Value) -> anyhow::Result<()> {
        self.cluster.kubectl(&["apply", "-f", "-"], &objects.to_string()).await.map(drop)
    }

    /// Waits until Kubernetes says that a node is ready.
    pub(crate) async fn wait_until_ready(&self, number: usize) -> anyhow::Result<()> {
        let is_ready = async || self.is_ready(number).await.unwrap_or(false);
        ensure!(wait_for(LIMIT, is_ready).await, "n{number} does not get ready");
        Ok(())
    }

    /// Whether Kubernetes says that a node is ready.
    pub(crate) async fn is_ready(&self, number: usize) -> anyhow::Result<bool> {
        let name = self.node(number)?.name();
        let flags = ["get", "node", &name, "-o"];
        let status = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        Ok(self.kubectl(&[&flags[..], &[status]].concat()).await? == "True")
    }

    /// Ends it, and gives back what it had of the machine.
    pub(crate) async fn finish(mut self) -> anyhow::Result<()> {
        let mut ended = Ok(());
        for node in &mut self.nodes {
            ended = node.kill().await.and(ended);
        }
        self.noting.abort();
        for manager in &mut self.managers {
            manager.kill().await?;
        }
        ended
    }
}

/// Checks that need no kubelets make nodes and volumes that are none, and pods that would begin to
/// live on real nodes, or hold up their drains.
async fn forget_what_was_made_by_hand(cluster: &Cluster) -> anyhow::Result<()> {
    const KINDS: &str = "pods,persistentvolumeclaims,persistentvolumes";
    const NAMES: &str = "jsonpath={range .items[*]}{.kind}/{.metadata.name} \
                         {.metadata.namespace}{\"\\n\"}{end}";
    let all = ["--all-namespaces", "-o", NAMES];
    let made = cluster.kubectl(&[&["get", KINDS], &all[..]].concat(), "").await?;
    for (object, namespace) in made.lines().filter_map(|line| line.split_once(' ')) {
        let nothing_keeps_it = r#"{"metadata": {"finalizers": null}}"#;
        let patch = ["patch", object, "-n", namespace, "--type=merge", "-p", nothing_keeps_it];
        cluster.kubectl(&patch, "").await?;
    }
    cluster.kubectl(&["delete", KINDS, "--all", "--all-namespaces", "--force"], "").await?;
    cluster.kubectl(&["delete", "nodes", "--all"], "").await.map(drop)
}

/// Keeps a list of the loop devices in use, for `tests/kube/run`.
async fn note_loops(dir: PathBuf) {
    while loops::note(&dir, &loops::of(std::process::id()).await).is_ok() {
        wait_a_moment().await;
    }
}

fn start_managers(cluster: &Cluster) -> anyhow::Result<Vec<Process>> {
    let file = |user| cluster.kubeconfig(user).display().to_string();
    let own = |name: &str| cluster.dir().join(name).display().to_string();
    let manager = vec![
        format!("--kubeconfig={}", file(User::ControllerManager)),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        "--authentication-skip-lookup".to_owned(),
        format!("--service-account-private-key-file={}", own("accounts.key")),
        format!("--root-ca-file={}", crate::cluster::certificate(cluster.dir()).display()),
        "--use-service-account-credentials".to_owned(),
        "--node-monitor-period=1s".to_owned(),
        "--node-monitor-grace-period=6s".to_owned(),
        "--node-startup-grace-period=20s".to_owned(),
    ];
    let scheduler = vec![
        format!("--kubeconfig={}", file(User::Scheduler)),
        "--bind-address=127.0.0.1".to_owned(),
        "--leader-elect=false".to_owned(),
        "--authentication-skip-lookup".to_owned(),
    ];
    let mut all = Vec::new();
    for (name, flags) in [("kube-controller-manager", manager), ("kube-scheduler", scheduler)] {
        let log = cluster.dir().join(format!("{name}.log"));
        let mut process = Process::new(cluster.programs().join(name), flags, log);
        process.start(&[])?;
        all.push(process);
    }
    Ok(all)
}
