//! Daemons whose record store is in Kubernetes objects, with the rights that they need there.

use crate::cluster::{Cluster, User};
use crate::process::{Process, wait_a_moment};
use anyhow::{Context as _, ensure};
use lockstep_attach::nbd::{Client, NbdUri};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::time::timeout;

/// How many.
pub(crate) const NODES: usize = 3;
/// How long a daemon may take to begin, and a volume to move.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// The daemons.
#[derive(Debug)]
pub(crate) struct Nodes {
    dir: PathBuf,
    programs: PathBuf,
    daemons: Vec<Process>,
}

impl Nodes {
    pub(crate) async fn start(cluster: &Cluster, namespace: &str) -> anyhow::Result<Self> {
        let everybody = cluster.kubeconfig(User::Lockstep);
        Self::start_as(cluster, namespace, &|_| everybody.clone()).await
    }

    /// The same, each with a kubeconfig of its own, and finding out itself which cluster it is of.
    pub(crate) async fn start_as(
        cluster: &Cluster,
        namespace: &str,
        kubeconfig: &dyn Fn(usize) -> PathBuf,
    ) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("finding this program's file")?;
        let programs = own.parent().map(PathBuf::from).unwrap_or_default();
        let dir = cluster.dir().join(namespace);
        let mut nodes = Self { dir, programs, daemons: Vec::new() };
        for node in 1..=NODES {
            let mut daemon = nodes.daemon(node, namespace, &kubeconfig(node))?;
            daemon.start(&[])?;
            nodes.daemons.push(daemon);
        }
        let begin = Instant::now();
        for node in 1..=NODES {
            while !nodes.node_dir(node).join("ready").exists() {
                let is_well =
                    begin.elapsed() < LIMIT && nodes.daemons.iter_mut().all(Process::is_running);
                ensure!(is_well, "n{node} does not begin; see {}", nodes.dir.display());
                wait_a_moment().await;
            }
        }
        Ok(nodes)
    }

    /// Starts a CSI controller that asks these daemons, and tells Kubernetes.
    pub(crate) fn controller(&self, cluster: &Cluster) -> anyhow::Result<Process> {
        self.controller_named(cluster, "csi", &[])
    }

    /// The same with a name for its files, and more flags.
    pub(crate) fn controller_named(
        &self,
        cluster: &Cluster,
        name: &str,
        more: &[&str],
    ) -> anyhow::Result<Process> {
        self.controller_as(&cluster.kubeconfig(User::Lockstep), name, more)
    }

    /// The same as somebody.
    pub(crate) fn controller_as(
        &self,
        kubeconfig: &Path,
        name: &str,
        more: &[&str],
    ) -> anyhow::Result<Process> {
        let sockets: Vec<String> = (1..=NODES).map(|node| self.server(node)).collect();
        let endpoint = format!("unix://{}", self.dir.join(format!("{name}.sock")).display());
        let flags = ["controller", "--kubernetes", "--labels-every-ms", "200", "--endpoint"];
        let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
        flags.extend([endpoint, "--daemon".to_owned(), sockets.join(",")]);
        let log = self.dir.join(format!("{name}.log"));
        let mut controller = Process::new(self.programs.join("lockstep-csi"), flags, log)
            .with("KUBECONFIG", kubeconfig);
        controller.start(more)?;
        Ok(controller)
    }

    fn server(&self, node: usize) -> String {
        format!("unix://{}", self.node_dir(node).join("sock").display())
    }

    fn node_dir(&self, node: usize) -> PathBuf {
        self.dir.join(format!("n{node}"))
    }

    fn daemon(&self, node: usize, namespace: &str, kubeconfig: &Path) -> anyhow::Result<Process> {
        let own = self.node_dir(node);
        fs::create_dir_all(own.join("pool"))?;
        fs::create_dir_all(own.join("nbd"))?;
        let path = |name: &str| own.join(name).display().to_string();
        let flags = [
            ("--node", format!("n{node}")),
            ("--peer-listen", format!("127.0.1.{node}:7170")),
            ("--admin-listen", format!("127.0.1.{node}:7171")),
            ("--socket", path("sock")),
            ("--nbd-dir", path("nbd")),
            ("--pool", format!("default={}", path("pool"))),
            ("--meta", format!("kubernetes:{namespace}")),
            ("--ready-file", path("ready")),
            ("--run-dir", path("run")),
            ("--device-dir", path("dev")),
        ];
        let flags = flags.into_iter().flat_map(|(key, value)| [key.to_owned(), value]).collect();
        let daemon = Process::new(self.programs.join("lockstepd"), flags, own.join("log"));
        Ok(daemon.with("KUBECONFIG", kubeconfig))
    }

    pub(crate) async fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        self.daemons.get_mut(index).context("no such node")?.kill().await
    }

    /// Starts one that was killed; it is not waited for.
    pub(crate) fn start_again(&mut self, index: usize) -> anyhow::Result<()> {
        self.daemons.get_mut(index).context("no such node")?.start(&[])
    }

    /// Runs `lockstep` at the second node, which lives to the end.
    pub(crate) async fn lockstep(&self, flags: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.programs.join("lockstep"));
        command.env("LOCKSTEP_SERVER", self.server(2)).args(flags).kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await.context("lockstep does not end")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lockstep {}: {}", flags.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `lockstep` as somebody of a Kubernetes cluster; how it ends, and what it prints.
    pub(crate) async fn lockstep_as(
        &self,
        kubeconfig: &Path,
        flags: &[&str],
    ) -> anyhow::Result<(i32, String)> {
        let mut command = Command::new(self.programs.join("lockstep"));
        command.env("LOCKSTEP_SERVER", self.server(2)).env("KUBECONFIG", kubeconfig);
        command.args(flags).kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await.context("lockstep does not end")??;
        let said = [output.stdout, output.stderr].concat();
        let code = output.status.code().context("lockstep was killed")?;
        Ok((code, String::from_utf8_lossy(&said).into_owned()))
    }

    /// Attaches the volume on a node, and connects to it.
    pub(crate) async fn attach(&self, node: &str) -> anyhow::Result<Client> {
        let said = self.lockstep(&["attach", "v", "--node", node, "--wait", "60"]).await?;
        let uri: NbdUri = said.trim().parse().with_context(|| format!("attach printed {said}"))?;
        Ok(Client::connect(&uri).await?)
    }
}
