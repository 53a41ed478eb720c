//! The chart: what it renders is taken by a real API server, what it refuses, and that the plain
//! manifests are what it renders.

use crate::accounts;
use crate::cluster::{Cluster, User};
use crate::rights;
use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;

/// Where the chart is installed.
pub(crate) const NAMESPACE: &str = "lockstep";

/// Values that are refused, each with what the refusal says.
const REFUSED: &[(&str, &[&str])] = &[
    ("door=fuse", &["additional properties 'door' not allowed"]),
    ("node.door=zfs", &["/node/door", "'auto', 'ublk', 'nbd', 'fuse'"]),
    ("pools[0].name=a,pools[0].path=relative", &["/pools/0/path", "relative"]),
    ("pools[0].name=a", &["/pools/0", "missing property 'path'"]),
    ("pools[0].name=a,pools[0].path=/a,pools[0].capacity=big", &["/pools/0/capacity", "big"]),
    ("ports.peer=70000", &["/ports/peer", "70,000"]),
    ("controller.replicas=0", &["/controller/replicas", "minimum"]),
    ("node.maxVolumes=many", &["/node/maxVolumes", "want integer"]),
    ("image.keeper.tag=", &["/image/keeper/tag"]),
    ("ipFamily=IPX", &["/ipFamily", "'IPv4', 'IPv6'"]),
    ("snapshots.enabled=true", &["/snapshots/enabled", "'auto', 'always', 'never'"]),
    ("storageClasses[0].name=a,storageClasses[0].parameters.repl=9", &["/parameters/repl"]),
    (
        "storageClasses[0].name=a,storageClasses[0].parameters.replicas=3",
        &["/parameters", "additional properties 'replicas' not allowed"],
    ),
    ("storageClasses[0].name=Big", &["/storageClasses/0/name", "Big"]),
];

/// What must be found in what all options render.
const ALL_OPTIONS: &[&str] = &[
    "fast=/srv/fast,capacity=500GiB,reserve=1GiB,overcommit=200%;slow=/srv/slow",
    "--labels-every-ms=778",
    "kubernetes:elsewhere",
    "$(HOST_IP):8170",
    "http://$(HOST_IP):8171,http://$(LOCKSTEP_DAEMONS_SERVICE_HOST):8171",
    "images.example/keeper:k1",
    "images.example/snapshotter:1",
    "kind: VolumeSnapshotClass",
    "maxBandwidth: \"100Mi\"",
    "storageclass.kubernetes.io/is-default-class: 'true'",
];

/// What must not be found there: it was switched off.
const NOT_THERE: &[&str] = &[
    "ValidatingAdmissionPolicy",
    "lockstep-csi-guard",
    "drain-guard",
    "--enable-capacity",
    "/var/lib/kubelet",
];

pub(crate) async fn run(cluster: &Cluster, project: &Path) -> anyhow::Result<String> {
    let helm = Helm::new(cluster, project)?;
    helm.run(&["lint", "--strict"], &[]).await?;
    let defaults = helm.template(NAMESPACE, &[]).await?;
    let values = project.join("tests/kube/chart-values.yaml");
    let values = values.to_str().context("the path of the project is text")?;
    let all = helm.template("elsewhere", &["--values", values]).await?;
    for wanted in ALL_OPTIONS {
        ensure!(all.contains(wanted), "with all options there is no {wanted}: {all}");
    }
    for unwanted in NOT_THERE {
        ensure!(!all.contains(unwanted), "with all options there is {unwanted}: {all}");
    }
    for (setting, parts) in REFUSED {
        let said = match helm.template(NAMESPACE, &["--set", setting]).await {
            Ok(_) => bail!("{setting} is not refused"),
            Err(error) => error.to_string(),
        };
        for part in *parts {
            ensure!(said.contains(part), "{setting}: no `{part}` in {said}");
        }
    }
    guards_harm_nobody(&accounts::guard(&defaults)?)?;
    let made = helm.manifests().await?;
    let kept = rights::read(&project.join("deploy/manifests/lockstep.yaml"))?;
    ensure!(
        made == kept,
        "the plain manifests are not what the chart renders: make them anew by \
         `deploy/manifests/make > deploy/manifests/lockstep.yaml`"
    );
    for namespace in [NAMESPACE, "elsewhere"] {
        cluster.make_namespace(namespace).await?;
    }
    let never = ["--values", values, "--set", "snapshots.enabled=never"];
    let without_snapshots = helm.template("elsewhere", &never).await?;
    let mut objects = 0;
    for manifest in [&kept, &without_snapshots, &defaults] {
        objects += taken(cluster, manifest).await?;
    }
    let (examples, refused) = (examples(cluster, project, &defaults).await?, REFUSED.len());
    Ok(format!(
        "{objects} objects taken by the API server, and {examples} of examples; {refused} bad \
         values refused"
    ))
}

/// No pod is killed to make room for a guard, and whoever removes nodes waits for guards.
fn guards_harm_nobody(guard: &str) -> anyhow::Result<()> {
    let guard: Value = serde_json::from_str(guard).context("guards are like no JSON")?;
    let containers = guard.pointer("/spec/containers").and_then(Value::as_array);
    let mut containers = containers.context("guards have no containers")?.iter();
    let requests = containers.find_map(|container| container.pointer("/resources/requests"));
    ensure!(requests.is_none(), "guards request {requests:?}: no scheduler looks for room");
    let wanted = json!([{"operator": "Exists", "effect": "NoExecute"}]);
    let tolerated = guard.pointer("/spec/tolerations");
    ensure!(tolerated == Some(&wanted), "guards tolerate {tolerated:?}: Karpenter leaves them out");
    Ok(())
}

/// The examples are taken, and want volumes of classes that the chart makes; how many objects they
/// have.
async fn examples(cluster: &Cluster, project: &Path, rendered: &str) -> anyhow::Result<usize> {
    let classes: BTreeSet<&str> = rendered
        .split("\n---\n")
        .filter(|object| object.lines().any(|line| line == "kind: StorageClass"))
        .flat_map(|object| object.lines().filter_map(|line| line.strip_prefix("  name: ")))
        .collect();
    let mut objects = 0;
    let dir = project.join("deploy/examples");
    for file in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = file?.path();
        let example = rights::read(&path)?;
        let named =
            example.lines().filter_map(|line| line.trim().strip_prefix("storageClassName: "));
        let named: BTreeSet<&str> = named.collect();
        let are_there = !named.is_empty() && named.is_subset(&classes);
        ensure!(
            are_there,
            "{} wants volumes of {named:?}, the chart makes {classes:?}",
            path.display()
        );
        let taken = taken(cluster, &example).await;
        objects += taken.with_context(|| path.display().to_string())?;
    }
    ensure!(objects > 0, "there are no examples in {}", dir.display());
    Ok(objects)
}

/// Has the API server look at a manifest as if it were to be applied; how many objects it has.
async fn taken(cluster: &Cluster, manifest: &str) -> anyhow::Result<usize> {
    let flags = ["apply", "--server-side", "--force-conflicts", "--dry-run=server"];
    let strict = ["--validate=strict", "-f", "-"];
    let said = cluster.kubectl(&[&flags[..], &strict[..]].concat(), manifest).await?;
    Ok(said.lines().count())
}

/// Helm, and the chart.
pub(crate) struct Helm<'a> {
    cluster: &'a Cluster,
    project: &'a Path,
}

impl<'a> Helm<'a> {
    pub(crate) fn new(cluster: &'a Cluster, project: &'a Path) -> anyhow::Result<Self> {
        let helm = cluster.programs().join("helm");
        ensure!(helm.exists(), "there is no {}; tests/kube/programs builds it", helm.display());
        Ok(Self { cluster, project })
    }

    /// Runs a command on the chart.
    async fn run(&self, command: &[&str], more: &[&str]) -> anyhow::Result<String> {
        let helm = self.cluster.programs().join("helm");
        let chart = self.project.join("deploy/chart");
        self.ask(Command::new(helm).args(command).arg(chart).args(more)).await
    }

    /// Runs a command on the chart, in the cluster.
    pub(crate) async fn on(&self, command: &[&str], more: &[&str]) -> anyhow::Result<String> {
        let chart = self.project.join("deploy/chart").display().to_string();
        self.ask_cluster(&[command, &[&chart]].concat(), more).await
    }

    /// Runs a command in the cluster, as its administrator.
    pub(crate) async fn ask_cluster(
        &self,
        command: &[&str],
        more: &[&str],
    ) -> anyhow::Result<String> {
        let helm = self.cluster.programs().join("helm");
        let admin = self.cluster.kubeconfig(User::Admin);
        let flags = ["--kubeconfig", &admin.display().to_string()];
        self.ask(Command::new(helm).args(command).args(more).args(flags)).await
    }

    /// What is installed in a namespace, with these flags.
    pub(crate) async fn template(&self, namespace: &str, more: &[&str]) -> anyhow::Result<String> {
        let command = ["template", NAMESPACE, "--namespace", namespace];
        self.run(&command, more).await
    }

    /// The plain manifests, made now.
    async fn manifests(&self) -> anyhow::Result<String> {
        let mut make = Command::new(self.project.join("deploy/manifests/make"));
        self.ask(make.env("HELM", self.cluster.programs().join("helm"))).await
    }

    async fn ask(&self, command: &mut Command) -> anyhow::Result<String> {
        // Nothing of who runs the test is read or written.
        command.env("HOME", self.cluster.dir()).env_remove("KUBECONFIG").kill_on_drop(true);
        let output = command.stdin(Stdio::null()).output().await.context("starting helm")?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
