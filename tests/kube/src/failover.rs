//! A node that is lost: its volumes are fenced, its label goes, its pods are deleted, in this
//! order, whichever controller does it and wherever the one before it was killed.
//!
//! There are no kubelets here: the pods are words.

use crate::cluster::Cluster;
use crate::nodes::{LIMIT, Nodes};
use crate::objects;
use crate::process::{Process, wait_for};
use crate::shown::{clear, make_node};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const NAMESPACE: &str = "failover";
const LABEL: &str = "lockstep.node-restriction.kubernetes.io/";
/// Machines here say when a daemon is gone: they are all one.
const FLAGS: &[&str] = &["--restart-ms", "1000"];
/// How long another controller may take to act when one is killed, its first look included.
const SUCCESSION: Duration = Duration::from_secs(7);

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    cluster.grant(NAMESPACE).await?;
    clear(cluster).await?;
    let stage = Stage { cluster };
    stage
        .make(json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default"}}))
        .await
        .or_else(is_there)?;
    for node in ["n1", "n2", "n3"] {
        make_node(cluster, node).await?;
    }
    let mut nodes = Nodes::start(cluster, NAMESPACE).await?;
    for volume in ["v", "w", "x", "y", "z", "q", "only", "u", "late"] {
        let create = ["volume", "create", volume, "--size", "16MiB"];
        let copies: &[&str] = match volume {
            "only" => &["--repl", "1", "--node", "n1"],
            _ => &["--repl", "3"],
        };
        nodes.lockstep(&[&create, copies].concat()).await?;
        let on = if volume == "z" { "n3" } else { "n1" };
        nodes.lockstep(&["attach", volume, "--node", on, "--wait", "60"]).await?;
        stage.volume(volume, "csi.lockstep.dev").await?;
    }
    stage.volume("disk", "other.example").await?;
    let pods = [
        ("web-0", "n1", &["v", "w"][..]),
        ("left-0", "n1", &["x"]),
        ("mixed-0", "n1", &["y", "disk"]),
        ("other-0", "n1", &["disk"]),
        ("far-0", "n3", &["z"]),
        ("half-0", "n1", &["q", "only"]),
        ("kept-0", "n1", &["u"]),
    ];
    for (pod, node, volumes) in pods {
        stage.pod(pod, node, volumes, pod == "left-0").await?;
    }
    alive(&stage, &nodes).await?;
    let at = step_by_step(&stage, &mut nodes).await?;
    stage.gone("left-0", false).await?;
    stage.told("left-0", "NotFailedOver", "annotated to be left alone").await?;
    stage.told("mixed-0", "NotFailedOver", "claim disk is of another storage system").await?;
    for pod in ["mixed-0", "other-0", "far-0"] {
        stage.gone(pod, false).await?;
    }
    nodes.start_again(0)?;
    for volume in ["v", "w"] {
        nodes.lockstep(&["attach", volume, "--node", "n2", "--wait", "60"]).await?;
    }
    returned(&stage, &mut nodes).await?;
    let took = succession(&stage, &mut nodes).await?;
    Ok(format!(
        "fenced, label off, pod deleted, with a controller killed at each step; {:.1} s from a \
         kill with nothing in the way, {:.1} s with the controller killed as well",
        at.as_secs_f64(),
        took.as_secs_f64()
    ))
}

/// A node that Kubernetes calls not ready, but that serves its volumes.
async fn alive(stage: &Stage<'_>, nodes: &Nodes) -> anyhow::Result<()> {
    let mut controller = nodes.controller_named(stage.cluster, "alive", FLAGS)?;
    wait(async || stage.labelled("n1").await, "no label comes").await?;
    let before = stage.epoch(nodes, "v").await?;
    // So it looks while its daemon is being replaced: closed in good order, and wanted again.
    for volume in ["v", "w"] {
        nodes.lockstep(&["detach", volume]).await?;
    }
    stage.say_ready("n1", "Unknown").await?;
    stage.told("web-0", "NotFailedOver", "and may be about to serve volume").await?;
    ensure!(stage.epoch(nodes, "v").await? == before, "a volume was taken from a live node");
    for volume in ["v", "w"] {
        nodes.lockstep(&["attach", volume, "--node", "n1", "--wait", "60"]).await?;
    }
    let before = stage.epoch(nodes, "v").await?;
    stage.told("web-0", "NotFailedOver", "attached elsewhere").await?;
    ensure!(stage.epoch(nodes, "v").await? == before, "a live primary was robbed");
    ensure!(stage.labelled("n1").await, "a live node lost its label");
    stage.say_ready("n1", "True").await?;
    stage.gone("web-0", false).await?;
    controller.kill().await
}

/// Each controller comes one step further, and is killed. Returns how long the rest took.
async fn step_by_step(stage: &Stage<'_>, nodes: &mut Nodes) -> anyhow::Result<Duration> {
    let before = stage.epoch(nodes, "v").await?;
    let whole = stage.epoch(nodes, "q").await?;
    nodes.kill(0).await?;
    // Fenced, and no further.
    stage.forbid("nodes", "patch", true).await?;
    let mut controller = nodes.controller_named(stage.cluster, "fences", FLAGS)?;
    stage.told("web-0", "NotFailedOver", "a label of node n1 stays").await?;
    controller.kill().await?;
    ensure!(stage.epoch(nodes, "v").await? > before, "it is not fenced");
    stage.told("v", "Fenced", "is fenced with epoch").await?;
    ensure!(stage.labelled("n1").await, "the label was taken off in spite of all");
    stage.gone("web-0", false).await?;

    // The label is off, and no more.
    stage.forbid("nodes", "patch", false).await?;
    stage.forbid("pods", "delete", true).await?;
    let mut controller = nodes.controller_named(stage.cluster, "unlabels", FLAGS)?;
    stage.told("web-0", "NotFailedOver", "pod web-0 cannot be deleted").await?;
    controller.kill().await?;
    ensure!(!stage.labelled("n1").await, "a pod was to be deleted with the label still there");
    stage.gone("web-0", false).await?;

    stage.told("half-0", "NotFailedOver", "no other node than n1 has all data").await?;
    ensure!(stage.epoch(nodes, "q").await? == whole, "a pod that stays lost one of two volumes");

    let uid = stage.uid("web-0").await?;
    stage.keep("kept-0", "example.com/kept").await?;
    stage.forbid("pods", "delete", false).await?;
    let begin = Instant::now();
    let mut controller = nodes.controller_named(stage.cluster, "deletes", FLAGS)?;
    stage.gone("web-0", true).await?;
    let took = begin.elapsed();
    stage.told("web-0", "FailedOver", "node n1 is lost").await?;
    stage.pod("web-0", "n2", &["v", "w"], false).await?;
    ensure!(stage.uid("web-0").await? != uid, "it is the same pod");
    let nudged = async || {
        let pod = stage.get("pod", "web-0").await;
        pod.is_ok_and(|pod| pod.pointer("/metadata/annotations/lockstep.dev~1nudged").is_some())
    };
    wait(nudged, "a successor that does not begin is not nudged").await?;
    stage.gone("web-0", false).await?;
    ensure!(!stage.labelled("n1").await, "the label is back on a node that is silent");
    stage.told("kept-0", "NotFailedOver", "set finalizer example.com/kept").await?;
    let times = stage.times("kept-0", "FailedOver").await?;
    ensure!(times == 1, "a pod that a finalizer keeps was deleted {times} times");
    controller.kill().await?;
    Ok(took)
}

/// A node that was away for a while, and lost the volume of a pod of which nobody got further.
async fn returned(stage: &Stage<'_>, nodes: &mut Nodes) -> anyhow::Result<()> {
    let attach = ["attach", "late", "--node", "n1", "--wait", "60"];
    wait(async || nodes.lockstep(&attach).await.is_ok(), "its daemon does not come back").await?;
    stage.pod("late-0", "n1", &["late"], false).await?;
    stage.say_runs("late-0").await?;
    let mut controller = nodes.controller_named(stage.cluster, "mends", FLAGS)?;
    wait(async || stage.labelled("n1").await, "the node is back and has no label").await?;
    stage.forbid("nodes", "patch", true).await?;
    nodes.kill(0).await?;
    stage.told("late-0", "NotFailedOver", "a label of node n1 stays").await?;
    nodes.lockstep(&["attach", "late", "--node", "n2", "--wait", "60"]).await?;
    nodes.start_again(0)?;
    stage.told("late-0", "VolumeTaken", "volume late was taken from node n1").await?;
    let pod = stage.get("pod", "late-0").await?;
    let grace = pod.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    ensure!(grace == Some(30), "it is not deleted as it asks to be: {grace:?}");
    stage.forbid("nodes", "patch", false).await?;
    controller.kill().await
}

/// Two controllers, and the one that acts is killed together with a node.
async fn succession(stage: &Stage<'_>, nodes: &mut Nodes) -> anyhow::Result<Duration> {
    let mut both = vec![
        nodes.controller_named(stage.cluster, "one", FLAGS)?,
        nodes.controller_named(stage.cluster, "two", FLAGS)?,
    ];
    wait(async || stage.labelled("n1").await, "the node is back and has no label").await?;
    let found = async || stage.leader(&both).await.is_some();
    wait(found, "none of two controllers acts").await?;
    let which = stage.leader(&both).await.context("one acts")?;
    let begin = Instant::now();
    both.get_mut(which).context("one of two")?.kill().await?;
    nodes.kill(2).await?;
    stage.gone("far-0", true).await?;
    let took = begin.elapsed();
    ensure!(stage.leader(&both).await == Some(1 - which), "who deleted the pod does not lead");
    // A lease of 5 s, one renewal before it, and a failover.
    let most = SUCCESSION + Duration::from_secs(5);
    ensure!(took < most, "it took {took:?} for the other controller to act");
    Ok(took)
}

/// Makes the objects, and looks at them.
struct Stage<'a> {
    cluster: &'a Cluster,
}

/// Waits for a condition.
async fn wait(is_so: impl AsyncFn() -> bool, what: &str) -> anyhow::Result<()> {
    ensure!(wait_for(LIMIT, is_so).await, "{what}");
    Ok(())
}

/// The API server may have made it by itself.
fn is_there(error: anyhow::Error) -> anyhow::Result<()> {
    if error.to_string().contains("AlreadyExists") { Ok(()) } else { Err(error) }
}

impl Stage<'_> {
    async fn kubectl(&self, flags: &[&str], input: &str) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], flags].concat(), input).await
    }

    async fn make(&self, object: Value) -> anyhow::Result<()> {
        self.kubectl(&["create", "-f", "-"], &object.to_string()).await.map(drop)
    }

    async fn get(&self, kind: &str, name: &str) -> anyhow::Result<Value> {
        let said = self.kubectl(&["get", kind, name, "-o", "json"], "").await?;
        Ok(serde_json::from_str(&said)?)
    }

    /// A volume and the claim that has it.
    async fn volume(&self, name: &str, driver: &str) -> anyhow::Result<()> {
        let (by, volume) =
            (json!({"name": name, "namespace": NAMESPACE}), format!("{NAMESPACE}-{name}"));
        self.make(objects::volume(&volume, &by, driver, name)).await?;
        self.make(objects::claim(NAMESPACE, name, Some(&volume))).await
    }

    async fn pod(&self, name: &str, on: &str, uses: &[&str], left: bool) -> anyhow::Result<()> {
        let note = if left { json!({"lockstep.dev/ignore-failover": "true"}) } else { json!({}) };
        let set = name.trim_end_matches("-0");
        self.make(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "annotations": note, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set, "uid": set,
                    "controller": true}]},
            "spec": {"nodeName": on, "volumes": objects::uses(uses),
                "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": "none"}]}}))
            .await
    }

    async fn uid(&self, pod: &str) -> anyhow::Result<String> {
        let pod = self.get("pod", pod).await?;
        let uid = pod.pointer("/metadata/uid").and_then(Value::as_str);
        uid.map(str::to_owned).context("a pod has a uid")
    }

    /// Waits until a pod is gone; or finds that it is there.
    async fn gone(&self, pod: &str, is_gone: bool) -> anyhow::Result<()> {
        let there = async || {
            let pods = self.kubectl(&["get", "pods", "-o", "name"], "").await;
            pods.map(|pods| pods.lines().any(|line| line == format!("pod/{pod}")))
        };
        if !is_gone {
            ensure!(there().await?, "pod {pod} is gone");
            return Ok(());
        }
        wait(async || there().await.is_ok_and(|there| !there), &format!("pod {pod} stays")).await
    }

    /// Waits until an event says something of a pod or a claim.
    async fn told(&self, of: &str, reason: &str, note: &str) -> anyhow::Result<()> {
        let has = |event: &Value| event.as_str().is_some_and(|told| told.contains(note));
        let told = async || self.notes(of, reason).await.is_ok_and(|all| all.iter().any(has));
        wait(told, &format!("no event {reason} of {of} says: {note}")).await
    }

    /// How many events of this reason there are.
    async fn times(&self, of: &str, reason: &str) -> anyhow::Result<usize> {
        Ok(self.notes(of, reason).await?.len())
    }

    /// What events of this reason say.
    async fn notes(&self, of: &str, reason: &str) -> anyhow::Result<Vec<Value>> {
        let is = |event: &Value, path: &str, text: &str| {
            event.pointer(path).and_then(Value::as_str) == Some(text)
        };
        let is_it =
            |event: &&Value| is(event, "/regarding/name", of) && is(event, "/reason", reason);
        let said = self.kubectl(&["get", "events.events.k8s.io", "-o", "json"], "").await?;
        let events: Value = serde_json::from_str(&said)?;
        let items = events.get("items").and_then(Value::as_array).context("no list of events")?;
        Ok(items.iter().filter(is_it).filter_map(|event| event.get("note").cloned()).collect())
    }

    async fn patch(&self, flags: &[&str], patch: &Value) -> anyhow::Result<()> {
        let patch = patch.to_string();
        let merge = ["--type=merge", "-p", patch.as_str()];
        self.kubectl(&[&["patch"], flags, &merge].concat(), "").await.map(drop)
    }

    async fn say_runs(&self, pod: &str) -> anyhow::Result<()> {
        let running = json!({"status": {"phase": "Running"}});
        self.patch(&["pod", pod, "--subresource=status"], &running).await
    }

    /// Has a finalizer keep a pod that is deleted.
    async fn keep(&self, pod: &str, finalizer: &str) -> anyhow::Result<()> {
        self.patch(&["pod", pod], &json!({"metadata": {"finalizers": [finalizer]}})).await
    }

    /// Whether a node has a label of volumes that have copies on the second one as well.
    async fn labelled(&self, node: &str) -> bool {
        let labels = async |node: &str| {
            let node = self.get("node", node).await.unwrap_or_default();
            let labels = node.pointer("/metadata/labels").and_then(Value::as_object).cloned();
            let keys = labels.unwrap_or_default().into_iter().map(|(key, _)| key);
            keys.filter(|key| key.starts_with(LABEL)).collect::<BTreeSet<_>>()
        };
        !labels(node).await.is_disjoint(&labels("n2").await)
    }

    async fn say_ready(&self, node: &str, status: &str) -> anyhow::Result<()> {
        let conditions = json!([{"type": "Ready", "status": status}]);
        let patch = json!({"status": {"conditions": conditions}});
        self.patch(&["node", node, "--subresource=status"], &patch).await
    }

    async fn epoch(&self, nodes: &Nodes, volume: &str) -> anyhow::Result<u64> {
        let said = nodes.lockstep(&["volume", "show", volume, "--json"]).await?;
        let shown: Value = serde_json::from_str(&said)?;
        let epoch = shown.get("epoch").and_then(Value::as_u64);
        epoch.with_context(|| format!("volume show tells no epoch: {said}"))
    }

    /// Takes a right away from the controllers, or gives it back.
    async fn forbid(&self, what: &str, verb: &str, is_forbidden: bool) -> anyhow::Result<()> {
        let mut role = self.get("clusterrole", "lockstep-controller").await?;
        let rules = role.get_mut("rules").and_then(Value::as_array_mut).context("no rules")?;
        for rule in rules {
            let is_it = rule.get("resources") == Some(&json!([what]));
            let Some(verbs) = rule.get_mut("verbs").and_then(Value::as_array_mut) else { continue };
            if is_it {
                verbs.retain(|it| it != verb);
                verbs.extend((!is_forbidden).then(|| json!(verb)));
            }
        }
        self.kubectl(&["replace", "-f", "-"], &role.to_string()).await?;
        let resource = format!("{what}.");
        let resource = resource.trim_end_matches('.');
        let flags = ["auth", "can-i", verb, resource, "--as=lockstep"];
        let is_so = async || {
            let said = self.kubectl(&flags, "").await;
            // It fails when the answer is no.
            said.is_ok_and(|said| said.trim() == "yes") != is_forbidden
        };
        wait(is_so, &format!("{verb} {what} is not as it should be")).await
    }

    /// Which of the controllers has the lease.
    async fn leader(&self, controllers: &[Process]) -> Option<usize> {
        let flags = ["-n", "default", "get", "lease", "lockstep-controller", "-o", "json"];
        let lease: Value =
            serde_json::from_str(&self.cluster.kubectl(&flags, "").await.ok()?).ok()?;
        let holder = lease.pointer("/spec/holderIdentity")?.as_str()?;
        let is_it = |process: &Process| {
            process.id().is_some_and(|id| holder.ends_with(&format!("-{id:x}")))
        };
        controllers.iter().position(is_it)
    }
}
