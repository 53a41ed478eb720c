//! The chart, installed with images made here in a cluster with nodes: a pod writes to a volume, an
//! upgrade under its load is a pause and no error, an uninstall is refused, and a new installation
//! finds the volume.

mod parts;

use crate::chart::Helm;
use crate::lab::{LIMIT, Lab, pods};
use crate::process::wait_for;
use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const SPACE: &str = "installed";
/// Where the pods of the check are.
const SHOP: &str = "shop";
const RELEASE: &str = "lockstep";
/// What other checks make, which may be called as the chart calls its own.
const MADE_OTHERWISE: [&str; 15] = [
    "clusterrole/lockstep-guard",
    "clusterrolebinding/lockstep-guard",
    "validatingadmissionpolicybinding/lockstep-controller-labels",
    "validatingadmissionpolicybinding/lockstep-controller-pods",
    "validatingadmissionpolicybinding/lockstep-daemon-records",
    "validatingadmissionpolicybinding/lockstep-controller-guards",
    "validatingadmissionpolicy/lockstep-controller-pods",
    "clusterrole/lockstep-controller",
    "clusterrolebinding/lockstep-controller",
    "csidriver/csi.lockstep.dev",
    "storageclass/lockstep-2",
    "volumesnapshotclass/lockstep",
    "validatingadmissionpolicy/lockstep-controller-labels",
    "validatingadmissionpolicy/lockstep-controller-guards",
    "validatingadmissionpolicy/lockstep-daemon-records",
];
/// How long all programs may take to be replaced on all nodes, one after the other.
const ROLLOUT: &str = "--timeout=6m";

/// So long may writes wait for a daemon to be replaced, in seconds, on a machine with all nodes.
const PAUSE: f64 = 30.0;

/// Writes numbers, each durable before the next, and says when. Goes on after an error, says so.
const WRITER: &str = "i=$(wc -l </data/log 2>/dev/null || echo 0); while :; do i=$((i+1)); \
     if echo $i | dd of=/data/log oflag=append conv=notrunc,fsync 2>/dev/null; \
     then read up idle </proc/uptime; echo $i $up; else echo ERROR $i; fi; usleep 20000; done";

pub(crate) async fn run(lab: &Lab, project: &Path) -> anyhow::Result<String> {
    let made = parts::images(&lab.cluster).await?;
    lab.import(&made).await?;
    for entry in std::fs::read_dir(lab.cluster.programs().join("crds"))? {
        let path = entry?.path();
        // Not an object, but a list of files.
        if !path.ends_with("kustomization.yaml") {
            lab.cluster.apply(&std::fs::read_to_string(path)?).await?;
        }
    }
    let values = lab.cluster.dir().join("values.json");
    std::fs::write(&values, parts::values("1").to_string())?;
    let installed = Installed { lab, helm: Helm::new(&lab.cluster, project)?, values };
    lab.make_namespace(SPACE).await?;
    // Other checks make some of its objects in other ways.
    for object in MADE_OTHERWISE {
        lab.kubectl(&["delete", object, "--ignore-not-found"]).await?;
    }
    installed.install().await?;
    lab.make_namespace(SHOP).await?;
    lab.apply(&pods::claim(SHOP, "data", "lockstep", "256Mi")).await?;
    installed.begin_to_write().await?;

    let pause = installed.upgrade().await?;
    installed.uninstall_is_refused().await?;
    let kept = installed.reinstall().await?;
    Ok(format!(
        "an upgrade of all nodes under load paused writes for {pause:.1} s at most, with no error; \
         an uninstall was refused; a new installation found {kept} numbers"
    ))
}

struct Installed<'a> {
    lab: &'a Lab,
    helm: Helm<'a>,
    values: PathBuf,
}

impl Installed<'_> {
    async fn install(&self) -> anyhow::Result<()> {
        let values = self.values.display().to_string();
        let more = ["--values", &values, "--take-ownership", "--wait", ROLLOUT];
        let flags = [&["--namespace", SPACE][..], &more].concat();
        if let Err(error) = self.helm.on(&["install", RELEASE], &flags).await {
            bail!("{error}; {}", self.told().await);
        }
        Ok(())
    }

    /// What Kubernetes says of the pods.
    async fn told(&self) -> String {
        let pods = self.lab.kubectl(&["-n", SPACE, "get", "pods", "-o", "wide"]).await;
        let flags = ["-n", SPACE, "get", "events", "--field-selector", "type=Warning"];
        let events = self.lab.kubectl(&flags).await;
        format!("{}\n{}", pods.unwrap_or_default(), events.unwrap_or_default())
    }

    async fn begin_to_write(&self) -> anyhow::Result<()> {
        self.lab.apply(&pods::pod(SHOP, "writer", "data", WRITER)).await?;
        let node = self.lab.wait_until_runs(SHOP, "writer").await?;
        let volume = self.lab.volume_of(SHOP, "data").await?;
        let copies = self.copies(&volume).await?;
        ensure!(copies.contains(&node), "the pod is on {node}, copies are on {copies:?}");
        let guarded = async || self.guarded().await.is_ok_and(|guarded| guarded == copies);
        let is_so = wait_for(LIMIT, guarded).await;
        ensure!(is_so, "copies on {copies:?}, guards on {:?}", self.guarded().await);
        Ok(())
    }

    /// The nodes where a guard runs.
    async fn guarded(&self) -> anyhow::Result<BTreeSet<String>> {
        let nodes = "jsonpath={.items[?(@.status.phase==\"Running\")].spec.nodeName}";
        let flags = ["-n", SPACE, "get", "pods", "-l", "lockstep.dev/drain-guard", "-o", nodes];
        let said = self.lab.kubectl(&flags).await?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }

    /// The nodes with a copy, as the object for people says.
    async fn copies(&self, volume: &str) -> anyhow::Result<BTreeSet<String>> {
        let flags = ["get", "lsv", volume, "-o", "jsonpath={.status.nodes[*]}"];
        let shown = async || self.lab.kubectl(&flags).await.is_ok_and(|nodes| !nodes.is_empty());
        ensure!(wait_for(LIMIT, shown).await, "no copies of {volume} are shown");
        Ok(self.lab.kubectl(&flags).await?.split_whitespace().map(str::to_owned).collect())
    }

    /// Replaces the daemons on all nodes while the pod writes. The longest pause, in seconds.
    async fn upgrade(&self) -> anyhow::Result<f64> {
        let keepers = self.keepers().await?;
        std::fs::write(&self.values, parts::values("2").to_string())?;
        let values = self.values.display().to_string();
        let flags = ["--namespace", SPACE, "--values", &values, "--wait", ROLLOUT];
        if let Err(error) = self.helm.on(&["upgrade", RELEASE], &flags).await {
            bail!("{error}; {}", self.told().await);
        }
        let part = "-lapp.kubernetes.io/component=node";
        let images = "jsonpath={.items[*].spec.containers[0].image}";
        let images = self.lab.kubectl(&["-n", SPACE, "get", "pods", part, "-o", images]).await?;
        ensure!(
            images.split(' ').all(|image| image.ends_with(":2")),
            "after the upgrade: {images}"
        );
        ensure!(self.keepers().await? == keepers, "the keepers were replaced or restarted");
        let written = self.written().await?;
        // It still writes, with all daemons replaced.
        let more = async || self.written().await.is_ok_and(|now| now.len() > written.len() + 10);
        ensure!(wait_for(LIMIT, more).await, "the pod writes no more: {}", self.told().await);
        let times = self.written().await?;
        let pauses = times.windows(2).filter_map(|pair| Some(pair.last()? - pair.first()?));
        let longest = pauses.fold(0.0, f64::max);
        ensure!(longest < PAUSE, "during the upgrade writes waited for {longest:.1} s");
        Ok(longest)
    }

    /// When each number was written, in seconds; none of them with an error.
    async fn written(&self) -> anyhow::Result<Vec<f64>> {
        let log = self.lab.kubectl(&["-n", SHOP, "logs", "writer"]).await?;
        ensure!(!log.contains("ERROR"), "the pod met an error: {log}");
        let time = |line: &str| line.split_once(' ').and_then(|(_, time)| time.parse().ok());
        Ok(log.lines().filter_map(time).collect())
    }

    /// The pods of the keepers, and how often they were restarted.
    async fn keepers(&self) -> anyhow::Result<String> {
        let part = "-lapp.kubernetes.io/component=keeper";
        let told = "jsonpath={range .items[*]}{.metadata.uid} \
                    {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
        let said = self.lab.kubectl(&["-n", SPACE, "get", "pods", part, "-o", told]).await?;
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    }

    async fn uninstall_is_refused(&self) -> anyhow::Result<()> {
        let flags = ["--namespace", SPACE, "--timeout=2m"];
        let outcome = self.helm.ask_cluster(&["uninstall", RELEASE], &flags).await;
        let said = outcome.err().context("an uninstall with volumes is not refused")?.to_string();
        let log = self.lab.kubectl(&["-n", SPACE, "logs", "job/lockstep-guard"]).await?;
        ensure!(log.contains("volumes in this cluster"), "helm: {said}; the guard: {log}");
        ensure!(log.contains("shop/data"), "the guard names no claim: {log}");
        let before = self.written().await?.len();
        let more = async || self.written().await.is_ok_and(|now| now.len() > before);
        ensure!(wait_for(LIMIT, more).await, "after the refusal the pod writes no more");
        // Helm takes it for half uninstalled; the way back that the guard names.
        ensure!(log.contains("helm rollback"), "the guard says no way back: {log}");
        self.helm.ask_cluster(&["rollback", RELEASE], &["--namespace", SPACE, "--wait"]).await?;
        let status = ["status", RELEASE, "--namespace", SPACE];
        let status = self.helm.ask_cluster(&status, &[]).await?;
        ensure!(status.contains("STATUS: deployed"), "after the rollback: {status}");
        Ok(())
    }

    /// Waits until no node serves the volume: a kubelet unstages it after its pod is gone, and
    /// takes it for staged if the driver goes before.
    async fn wait_until_closed(&self) -> anyhow::Result<()> {
        let volume = self.lab.volume_of(SHOP, "data").await?;
        let flags = ["get", "lsv", &volume, "-o", "jsonpath={.status.primary}"];
        let closed = async || self.lab.kubectl(&flags).await.is_ok_and(|node| node.is_empty());
        ensure!(wait_for(LIMIT, closed).await, "{volume} is served without a pod");
        Ok(())
    }

    /// Uninstalls without the guard, installs again; how many numbers the pod finds.
    async fn reinstall(&self) -> anyhow::Result<usize> {
        let last = self.written().await?.len();
        self.lab.kubectl(&["-n", SHOP, "delete", "pod", "writer", "--wait"]).await?;
        self.wait_until_closed().await?;
        let flags = ["--namespace", SPACE, "--no-hooks", "--wait", "--timeout=3m"];
        self.helm.ask_cluster(&["uninstall", RELEASE], &flags).await?;
        let gone = async || {
            let left = self.lab.kubectl(&["-n", SPACE, "get", "pods", "-o", "name"]).await;
            left.is_ok_and(|names| !names.contains("lockstep-node"))
        };
        ensure!(wait_for(LIMIT, gone).await, "pods stay: {}", self.told().await);
        let claim = self.lab.get(SHOP, "pvc", "data").await?;
        let phase = claim.pointer("/status/phase").and_then(Value::as_str);
        ensure!(phase == Some("Bound"), "the claim is {phase:?} after an uninstall");
        self.install().await?;
        self.lab.apply(&pods::pod(SHOP, "writer", "data", WRITER)).await?;
        self.lab.wait_until_runs(SHOP, "writer").await?;
        let count = self.lab.in_pod(SHOP, "writer", "wc -l </data/log").await?;
        let kept: usize = count.trim().parse().with_context(|| format!("wc says {count}"))?;
        ensure!(kept >= last, "{last} numbers were acknowledged, {kept} are there");
        Ok(kept)
    }
}

/// One image of a file that is in it.
fn image(name: &str, tag: &str) -> Value {
    json!({"repository": format!("localhost/{name}"), "tag": tag})
}
