//! Our programs in the cluster: a daemon and a driver on each node, and beside the control plane
//! the controller with the programs of the Kubernetes CSI project that ask it. All are processes.

use super::node::{BEGINNING, Node};
use crate::cluster::{Cluster, User};
use crate::process::{Process, wait_for};
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// The namespace of the records.
pub(crate) const NAMESPACE: &str = "lockstep-system";
const DAEMON: &str = "lockstepd";
const PLUGIN: &str = "lockstep-csi";
const REGISTRAR: &str = "csi-node-driver-registrar";
const ENDPOINT: &str = "/var/lib/kubelet/plugins/csi.lockstep.dev/csi.sock";
const READY: &str = "/run/lockstep/ready";
/// Name of the budget of guards; with that of a node, of each of them.
pub(crate) const GUARD: &str = "lockstep-drain-guard";

/// After how long a node is forgotten that is deleted and does not answer.
const FORGET_MS: u32 = 1000;

/// What runs beside the control plane.
#[derive(Debug)]
pub(crate) struct Driver {
    own: PathBuf,
    socket: PathBuf,
    controller: Process,
    sidecars: Vec<Process>,
}

impl Driver {
    /// Starts it all, and waits until the daemons are ready and the kubelets know the driver.
    pub(crate) async fn install(
        cluster: &Cluster,
        nodes: &mut [Node],
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        cluster.make_namespace(NAMESPACE).await?;
        cluster.grant(NAMESPACE).await?;
        for entry in fs::read_dir(cluster.programs().join("crds"))? {
            let path = entry?.path();
            // Not an object, but a list of files.
            if !path.ends_with("kustomization.yaml") {
                cluster.apply(&fs::read_to_string(path)?).await?;
            }
        }
        cluster.kubectl(&["apply", "-f", "-"], &classes().to_string()).await?;
        cluster.kubectl(&["apply", "-f", "-"], &budget().to_string()).await?;
        let own = std::env::current_exe().context("finding this program's file")?;
        let own = own.parent().map(PathBuf::from).unwrap_or_default();
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        for node in nodes.iter_mut() {
            let flags = [&["--cluster", uuid.trim()], flags].concat();
            add_daemon(cluster, node, &own, &flags)?;
            add_plugin(node, &own)?;
        }
        for node in nodes.iter() {
            wait_for_driver(node).await?;
        }
        let socket = cluster.dir().join("csi.sock");
        let controller = controller(cluster, nodes, &own, &socket);
        let sidecars = sidecars(cluster, &socket);
        let mut driver = Self { own, socket, controller, sidecars };
        driver.start().await?;
        Ok(driver)
    }

    /// Where our programs are.
    pub(crate) fn programs(&self) -> &PathBuf {
        &self.own
    }

    /// Kills the controller and who asks it.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        for process in self.sidecars.iter_mut().chain([&mut self.controller]) {
            process.kill().await?;
        }
        Ok(())
    }

    /// Starts what was killed.
    pub(crate) async fn start(&mut self) -> anyhow::Result<()> {
        self.controller.start(&[])?;
        let serves = async || tokio::net::UnixStream::connect(&self.socket).await.is_ok();
        ensure!(wait_for(BEGINNING, serves).await, "the controller does not serve; see csi.log");
        self.sidecars.iter_mut().try_for_each(|sidecar| sidecar.start(&[]))
    }
}

/// Waits until a node's daemon is ready and its kubelet knows the driver.
pub(crate) async fn wait_for_driver(node: &Node) -> anyhow::Result<()> {
    let is_ready = async || node.seen(READY).is_some_and(|file| file.exists());
    let name = node.name();
    ensure!(wait_for(BEGINNING, is_ready).await, "the daemon of {name} does not begin");
    let is_known = async || node.has_said(REGISTRAR, "the kubelet has registered");
    ensure!(wait_for(BEGINNING, is_known).await, "the kubelet of {name} does not know the driver");
    Ok(())
}

fn add_daemon(cluster: &Cluster, node: &mut Node, own: &Path, more: &[&str]) -> anyhow::Result<()> {
    let (name, address) = (node.name(), Node::address(node.number()));
    let (peers, admin) = (format!("{address}:7170"), format!("{address}:7171"));
    let meta = format!("kubernetes:{NAMESPACE}");
    let flags: [&[&str]; 4] = [
        &["--node", &name, "--peer-listen", &peers],
        &["--admin-listen", &admin, "--pool", "default=/var/lib/lockstep", "--meta", &meta],
        // What is in /dev is every node's.
        &["--device-dir", "/run/lockstep/dev", "--ready-file", READY],
        more,
    ];
    let user = cluster.kubeconfig(User::Lockstep);
    node.add(DAEMON, &own.join(DAEMON), &flags.concat(), Some(&user));
    node.start(DAEMON)
}

fn add_plugin(node: &mut Node, own: &Path) -> anyhow::Result<()> {
    let (name, endpoint) = (node.name(), format!("unix://{ENDPOINT}"));
    let daemon = "unix:///run/lockstep/lockstepd.sock";
    let flags = ["node", "--endpoint", &endpoint, "--node-id", &name, "--daemon", daemon];
    node.add(PLUGIN, &own.join(PLUGIN), &flags, None);
    node.start(PLUGIN)?;
    let flags = [
        &format!("--csi-address={ENDPOINT}"),
        &format!("--kubelet-registration-path={ENDPOINT}"),
        "--plugin-registration-path=/var/lib/kubelet/plugins_registry",
    ];
    node.add(REGISTRAR, Path::new(REGISTRAR), &flags, None);
    node.start(REGISTRAR)
}

fn controller(cluster: &Cluster, nodes: &[Node], own: &Path, socket: &Path) -> Process {
    let daemons: Vec<String> =
        nodes.iter().map(|node| format!("http://{}:7171", Node::address(node.number()))).collect();
    let flags = vec![
        "controller".to_owned(),
        "--kubernetes".to_owned(),
        format!("--endpoint=unix://{}", socket.display()),
        format!("--daemon={}", daemons.join(",")),
        "--labels-every-ms=1000".to_owned(),
        format!("--lease-namespace={NAMESPACE}"),
        format!("--drain-guard={}", guard()),
        format!("--forget-ms={FORGET_MS}"),
    ];
    let log = cluster.dir().join("csi.log");
    Process::new(own.join(PLUGIN), flags, log)
        .with("KUBECONFIG", &cluster.kubeconfig(User::Lockstep))
}

/// The programs that turn claims, snapshots and growth into calls.
fn sidecars(cluster: &Cluster, socket: &Path) -> Vec<Process> {
    let address = format!("--csi-address={}", socket.display());
    let all: [(&str, &[&str]); 4] = [
        (
            "csi-provisioner",
            &[&address, "--feature-gates=Topology=true", "--extra-create-metadata"],
        ),
        ("csi-resizer", &[&address]),
        ("csi-snapshotter", &[&address]),
        ("snapshot-controller", &[]),
    ];
    let sidecar = |(name, flags): (&str, &[&str])| {
        let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig(User::Admin).display());
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        flags.extend([kubeconfig, "--leader-election=false".to_owned(), "--v=4".to_owned()]);
        let log = cluster.dir().join(format!("{name}.log"));
        Process::new(cluster.programs().join(name), flags, log)
    };
    all.into_iter().map(sidecar).collect()
}

/// What guards are like, as the chart has it, with an image that is there.
fn guard() -> serde_json::Value {
    json!({
        "metadata": {"name": GUARD},
        "spec": {
            "automountServiceAccountToken": false,
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
            "containers": [{
                "name": "guard",
                "image": super::images::BUSYBOX,
                "imagePullPolicy": "Never",
                "command": ["sleep", "2147483647"],
            }],
        },
    })
}

/// What keeps them from being evicted.
fn budget() -> serde_json::Value {
    let guards = json!([{"key": "lockstep.dev/drain-guard", "operator": "Exists"}]);
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": GUARD, "namespace": NAMESPACE},
        "spec": {"selector": {"matchExpressions": guards}},
    })
}

/// What people make claims with.
fn classes() -> serde_json::Value {
    let class = |copies: &str| {
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": format!("lockstep-{copies}")},
            "provisioner": "csi.lockstep.dev",
            "parameters": {"repl": copies},
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": true,
        })
    };
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": "csi.lockstep.dev"},
        "spec": {"attachRequired": false, "fsGroupPolicy": "File"},
    });
    let snapshots = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotClass",
        "metadata": {"name": "lockstep"},
        "driver": "csi.lockstep.dev",
        "deletionPolicy": "Delete",
    });
    let items = [driver, class("2"), class("3"), snapshots];
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
