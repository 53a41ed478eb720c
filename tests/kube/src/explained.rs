//! What `lockstep explain pod` and `lockstep whatif` say of pods: where they are, where they can
//! be, why they wait. The pods are words; what they use is real.

use crate::cluster::{Cluster, User};
use crate::nodes::{LIMIT, Nodes};
use crate::objects;
use crate::process::wait_for;
use crate::shown::{clear, make_node};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const NAMESPACE: &str = "explained";
/// How the command ends.
const BAD_USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const UNAVAILABLE: i32 = 5;

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    cluster.grant(NAMESPACE).await?;
    clear(cluster).await?;
    let nodes = Nodes::start(cluster, NAMESPACE).await?;
    let stage = Stage { cluster, nodes: &nodes, admin: cluster.kubeconfig(User::Admin) };
    for node in ["n1", "n2", "n3"] {
        make_node(cluster, node).await?;
        stage.patch_status("node", node, &json!([{"type": "Ready", "status": "True"}])).await?;
    }
    let create = ["volume", "create", "v", "--size", "16MiB", "--repl", "2"];
    let places = ["--node", "n1", "--node", "n2"];
    nodes.lockstep(&[&create[..], &places[..]].concat()).await?;
    nodes.lockstep(&["attach", "v", "--node", "n1", "--wait", "60"]).await?;
    stage.claims().await?;
    for (pod, node, claim) in [
        ("db-0", Some("n1"), "data"),
        ("stray-0", Some("n3"), "data"),
        ("next-0", None, "data"),
        ("other-0", None, "disk"),
        ("new-0", None, "new"),
    ] {
        stage.pod(pod, node, claim).await?;
    }
    let nobody = ["no node has the label", "is a controller running?"];
    stage.explained("next-0", &nobody).await?;
    let _controller = nodes.controller(cluster)?;
    let mut said = stage.running().await?;
    said += stage.waiting().await?;
    said += stage.not_there().await?;
    said += stage.what_if().await?;
    Ok(format!("{said} answers for pods that run, that wait, that use other storage, or are not"))
}

struct Stage<'a> {
    cluster: &'a Cluster,
    nodes: &'a Nodes,
    admin: PathBuf,
}

impl Stage<'_> {
    async fn running(&self) -> anyhow::Result<usize> {
        let there = "claim data: the pod is on n1, where a copy is\nvolume v: ";
        let parts = ["pod explained/db-0: Running, on n1\n", there, "all copies are in sync"];
        self.explained("db-0", &parts).await?;
        let parts = ["Running, on n3", "n3, which has no copy that it is led to"];
        self.explained("stray-0", &parts).await?;
        let flags = ["--json", "explain", "pod", "-n", NAMESPACE, "db-0"];
        let told: Value = serde_json::from_str(&self.said(&flags, 0).await?)?;
        let claim = told.pointer("/claims/0").context("it uses a claim")?;
        ensure!(told["node"] == "n1" && claim["claim"] == "data", "{told}");
        ensure!(claim["place"] == "the pod is on n1, where a copy is", "{told}");
        Ok(3)
    }

    async fn waiting(&self) -> anyhow::Result<usize> {
        self.event("Pod", "next-0", "FailedScheduling", "0/3 nodes are available").await?;
        self.event("PersistentVolumeClaim", "new", "ProvisioningFailed", "too little room").await?;
        let why = "pod explained/next-0: Pending, on no node\n  FailedScheduling: 0/3 nodes are";
        self.explained("next-0", &[why, "claim data: the pod can run on n1, n2\n"]).await?;
        let shown = self.said(&["explain", "volume", "v"], 0).await?;
        ensure!(shown.contains("pods run on n1, n2, by the label lockstep."), "{shown}");
        self.cordon("n1", true).await?;
        let one = "claim data: the pod can run on n1 (it is cordoned), n2\n";
        self.explained("next-0", &[one]).await?;
        self.patch_status("node", "n2", &json!([{"type": "Ready", "status": "Unknown"}])).await?;
        let none = "could run on n1 (it is cordoned), n2 (it is not ready), and can't now";
        self.explained("next-0", &[none]).await?;
        self.cluster.kubectl(&["delete", "node", "n2"], "").await?;
        let gone = "can run on n1\n";
        self.cordon("n1", false).await?;
        self.explained("next-0", &[gone]).await?;
        let foreign = "claim disk: not Lockstep's, but volume explained-disk of other.example";
        self.explained("other-0", &[foreign]).await?;
        let unbound = "claim new: it has no volume yet\n  ProvisioningFailed: too little room";
        self.explained("new-0", &[unbound]).await?;
        Ok(7)
    }

    async fn not_there(&self) -> anyhow::Result<usize> {
        let flags = ["explain", "pod", "-n", NAMESPACE, "none-0"];
        let said = self.said(&flags, NOT_FOUND).await?;
        let why = "there is no pod `none-0` in namespace `explained`";
        ensure!(said.contains(why), "{said}");
        let stranger = self.cluster.kubeconfig_with("stranger", "no-token")?;
        let said = self.said_to(&stranger, &flags, UNAVAILABLE).await?;
        ensure!(said.contains("Kubernetes does not tell"), "{said}");
        let said = self.said_to(Path::new("/nowhere"), &flags, BAD_USAGE).await?;
        ensure!(said.contains("name a kubeconfig file in KUBECONFIG"), "{said}");
        Ok(3)
    }

    async fn what_if(&self) -> anyhow::Result<usize> {
        let said = self.said(&["whatif", "node-down", "n1"], 0).await?;
        for part in ["if node n1 died: 1 of 1 volumes go on", "explained/db-0", "n2"] {
            ensure!(said.contains(part), "no `{part}` in {said}");
        }
        let said = self.said(&["--json", "whatif", "node-down", "n1"], 0).await?;
        let told: Value = serde_json::from_str(&said)?;
        let volume = told.pointer("/volumes/0").context("a volume has a copy there")?;
        ensure!(volume["pods"] == json!(["explained/db-0"]), "{told}");
        ensure!(volume["left"] == json!(["n2"]) && volume["serves"] == true, "{told}");
        let said = self.said(&["whatif", "node-down", "n9"], NOT_FOUND).await?;
        ensure!(said.contains("n9"), "{said}");
        Ok(3)
    }

    /// Waits until these words are said of a pod.
    async fn explained(&self, pod: &str, parts: &[&str]) -> anyhow::Result<()> {
        let flags = ["explain", "pod", "--namespace", NAMESPACE, pod];
        let is_said = async || {
            let said = self.said(&flags, 0).await;
            said.is_ok_and(|said| parts.iter().all(|part| said.contains(part)))
        };
        if wait_for(LIMIT, is_said).await {
            return Ok(());
        }
        anyhow::bail!("wanted {parts:?} of {pod}, it is said: {}", self.said(&flags, 0).await?)
    }

    async fn said(&self, flags: &[&str], code: i32) -> anyhow::Result<String> {
        self.said_to(&self.admin, flags, code).await
    }

    /// What is said to somebody, by a command that ends so.
    async fn said_to(&self, who: &Path, flags: &[&str], code: i32) -> anyhow::Result<String> {
        let (ended, said) = self.nodes.lockstep_as(who, flags).await?;
        ensure!(ended == code, "lockstep {} ends with {ended}: {said}", flags.join(" "));
        Ok(said)
    }

    async fn kubectl(&self, flags: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], flags].concat(), input).await
    }

    async fn make(&self, object: &Value) -> anyhow::Result<()> {
        self.kubectl(&["create", "-f", "-"], &object.to_string()).await.map(drop)
    }

    /// One on our volume, one on a foreign one, one on nothing.
    async fn claims(&self) -> anyhow::Result<()> {
        for (claim, driver, handle) in
            [("data", "csi.lockstep.dev", "v"), ("disk", "other.example", "d")]
        {
            let (by, name) =
                (json!({"namespace": NAMESPACE, "name": claim}), format!("{NAMESPACE}-{claim}"));
            self.make(&objects::volume(&name, &by, driver, handle)).await?;
            self.make(&objects::claim(NAMESPACE, claim, Some(&name))).await?;
        }
        self.make(&objects::claim(NAMESPACE, "new", None)).await
    }

    /// One that runs, if it has a node.
    async fn pod(&self, name: &str, node: Option<&str>, claim: &str) -> anyhow::Result<()> {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": NAMESPACE}});
        self.cluster.kubectl(&["apply", "-f", "-"], &account.to_string()).await?;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "volumes": objects::uses(&[claim]),
                "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "none"}]}});
        self.make(&pod).await?;
        if node.is_some() {
            let patch = json!({"status": {"phase": "Running"}}).to_string();
            let flags = ["patch", "pod", name, "--subresource=status", "-p", &patch];
            self.kubectl(&flags, "").await?;
        }
        Ok(())
    }

    async fn patch_status(&self, kind: &str, name: &str, now: &Value) -> anyhow::Result<()> {
        let patch = json!({"status": {"conditions": now}}).to_string();
        let flags = ["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&flags, "").await.map(drop)
    }

    async fn cordon(&self, node: &str, is_so: bool) -> anyhow::Result<()> {
        let command = if is_so { "cordon" } else { "uncordon" };
        self.kubectl(&[command, node], "").await.map(drop)
    }

    /// A warning, as a scheduler or a provisioner gives it.
    async fn event(&self, kind: &str, of: &str, reason: &str, text: &str) -> anyhow::Result<()> {
        let about = json!({"apiVersion": "v1", "kind": kind, "name": of, "namespace": NAMESPACE});
        self.make(&json!({"apiVersion": "v1", "kind": "Event", "type": "Warning",
            "metadata": {"generateName": "event-"}, "involvedObject": about,
            "reason": reason, "message": text, "lastTimestamp": "2030-01-01T00:00:00Z"}))
            .await
    }
}
