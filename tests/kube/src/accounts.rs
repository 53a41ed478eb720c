//! The chart's service accounts: daemons and the controller do all that they do with the rights
//! that it gives them, each daemon with a token of its own node, and can do no more.

use crate::chart::{Helm, NAMESPACE};
use crate::cluster::Cluster;
use crate::nodes::{LIMIT, Nodes};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const OURS: &str = "lockstep.node-restriction.kubernetes.io/p-test";

pub(crate) async fn run(cluster: &Cluster, project: &Path) -> anyhow::Result<String> {
    let helm = Helm::new(cluster, project)?;
    if cluster.kubectl(&["get", "namespace", NAMESPACE], "").await.is_err() {
        cluster.make_namespace(NAMESPACE).await?;
    }
    let rendered = helm.template(NAMESPACE, &[]).await?;
    cluster.kubectl(&["apply", "-f", "-"], &rights(&rendered)).await?;
    // Which a real cluster makes by itself.
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": NAMESPACE}});
    cluster.kubectl(&["apply", "-f", "-"], &account.to_string()).await?;
    let mut daemons = Vec::new();
    for node in ["n1", "n2", "n3"] {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        cluster.kubectl(&["apply", "-f", "-"], &object.to_string()).await?;
        daemons.push(token(cluster, "node", Some(node)).await?);
    }
    let controller = token(cluster, "controller", None).await?;
    in_force(cluster, &controller).await?;

    let told = works(cluster, &daemons, &controller, &guard(&rendered)?).await?;
    let tries = Tries { cluster, daemons: &daemons, controller: &controller };
    let refused = tries.all().await?;
    Ok(format!("{told}; {refused} misuses refused"))
}

/// What the chart says of accounts, and what they may do.
fn rights(rendered: &str) -> String {
    let kinds = ["ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
    let policies = ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    let policies = [&policies[..], &["PodDisruptionBudget"]].concat();
    let wanted = |object: &&str| {
        let kind = object.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap_or_default();
        kinds.contains(&kind) || policies.contains(&kind)
    };
    rendered.split("\n---\n").filter(wanted).collect::<Vec<_>>().join("\n---\n")
}

/// What the chart tells the controller that guards are like.
pub(crate) fn guard(rendered: &str) -> anyhow::Result<String> {
    let mut lines = rendered.lines().skip_while(|line| !line.ends_with("- name: DRAIN_GUARD"));
    let line = lines.nth(1).and_then(|line| line.trim().strip_prefix("value: "));
    // Of YAML in double quotes it has nothing that JSON has not.
    serde_json::from_str(line.context("the controller is told of no guards")?)
        .context("reading what guards are like")
}

/// How somebody with a token of a service account reaches the cluster.
async fn token(cluster: &Cluster, part: &str, node: Option<&str>) -> anyhow::Result<PathBuf> {
    let account = format!("lockstep-{part}");
    let mut flags = vec!["-n", NAMESPACE, "create", "token", &account, "--duration=1h"];
    if let Some(node) = node {
        flags.extend(["--bound-object-kind=Node", "--bound-object-name", node]);
    }
    let token = cluster.kubectl(&flags, "").await?;
    let name = format!("{account}-{}", node.unwrap_or("any"));
    cluster.kubeconfig_with(&name, token.trim())
}

/// Waits until the API server follows the policies, which it learns of on its own.
async fn in_force(cluster: &Cluster, controller: &Path) -> anyhow::Result<()> {
    let is_refused = async || {
        let tried = cluster.kubectl_as(controller, &["label", "node", "n1", "early=x"], "").await;
        let took = tried.is_ok();
        if took {
            // As long as it is let through.
            let _ = cluster.kubectl(&["label", "node", "n1", "early-"], "").await;
        }
        !took
    };
    ensure!(wait_for(LIMIT, is_refused).await, "the policies do not come into force");
    let dry = ["-n", NAMESPACE, "create", "--dry-run=server", "-f", "-"];
    let bad = pod("lockstep-drain-guard-x", &json!({"hostNetwork": true}));
    let is_refused = async || cluster.kubectl_as(controller, &dry, &bad).await.is_err();
    ensure!(wait_for(LIMIT, is_refused).await, "the policy for pods does not come into force");
    Ok(())
}

/// A volume is made, served, guarded, shown, and taken over.
async fn works(
    cluster: &Cluster,
    daemons: &[PathBuf],
    at: &Path,
    guard: &str,
) -> anyhow::Result<String> {
    let kubeconfig = |node: usize| daemons.get(node - 1).cloned().unwrap_or_default();
    let mut nodes = Nodes::start_as(cluster, NAMESPACE, &kubeconfig).await?;
    let more = ["--lease-namespace", NAMESPACE, "--drain-guard", guard];
    let _controller = nodes.controller_as(at, "csi", &more)?;
    nodes.lockstep(&["volume", "create", "v", "--size", "64MiB", "--repl", "2"]).await?;
    let client = nodes.attach("n1").await?;
    client.write(0, vec![7; 4096].into(), true).await?;
    let shown = async || {
        let primary = ["get", "lsv", "v", "-o", "jsonpath={.status.primary}"];
        let labels = ["get", "nodes", "-o", "jsonpath={.items[*].metadata.labels}"];
        let primary = cluster.kubectl(&primary, "").await.unwrap_or_default();
        let labels = cluster.kubectl(&labels, "").await.unwrap_or_default();
        primary == "n1" && labels.contains("lockstep.node-restriction.kubernetes.io/")
    };
    ensure!(wait_for(LIMIT, shown).await, "the controller shows or labels nothing");
    let guarded = async || {
        let flags = ["-n", NAMESPACE, "get", "pods", "-l", "lockstep.dev/drain-guard=stands"];
        let named = cluster.kubectl(&[&flags[..], &["-o", "name"]].concat(), "").await;
        named.is_ok_and(|named| named.lines().count() == 2)
    };
    ensure!(wait_for(LIMIT, guarded).await, "no guards stand where the two copies are");
    // `lockstep` is answered by the second one.
    nodes.kill(0).await?;
    drop(client);
    let client = nodes.attach("n3").await?;
    let read = client.read(0, 4096).await?;
    ensure!(read.iter().all(|byte| *byte == 7), "what was written is gone");
    Ok("a volume made, served, guarded, shown and taken over with the chart's own accounts"
        .to_owned())
}

struct Tries<'a> {
    cluster: &'a Cluster,
    daemons: &'a [PathBuf],
    controller: &'a Path,
}

impl Tries<'_> {
    /// How many were refused: all.
    async fn all(&self) -> anyhow::Result<usize> {
        let [first, second, ..] = self.daemons else { anyhow::bail!("three daemons have tokens") };
        let unbound = token(self.cluster, "node", None).await?;
        let moved = self.changed("node/n1", |text| {
            text.replace("\"admin_address\":\"", "\"admin_address\":\"evil-")
        });
        let moved = moved.await?;
        let claimed = self.changed("record/", |text| {
            text.replace("\"primary\":{\"node\":\"n3\"", "\"primary\":{\"node\":\"n2\"")
        });
        let claimed = claimed.await?;
        let replace = ["-n", NAMESPACE, "replace", "-f", "-"];
        let elsewhere = "may not say where another node is reached";
        self.refused(second, &replace, &moved, elsewhere).await?;
        self.refused(first, &replace, &claimed, "may not claim a volume for another one").await?;
        self.refused(&unbound, &replace, &claimed, "is bound to its pod").await?;
        let foreign = record_of("node/stranger", "{}");
        let create = ["-n", NAMESPACE, "create", "-f", "-"];
        self.refused(first, &create, &foreign, elsewhere).await?;
        let hidden = self.changed("record/", |text| {
            text.replace("\"primary\":{\"node\":\"n3\"", "\"primary\" :{\"node\":\"n2\"")
        });
        let strange = "this is not how a daemon writes it";
        self.refused(first, &replace, &hidden.await?, strange).await?;
        let twice = self.changed("node/n1", |text| {
            let more = "{\"more\":{\"admin_address\":\"evil\"},";
            text.replacen('{', more, 1)
        });
        self.refused(second, &replace, &twice.await?, strange).await?;
        let bytes = in_base64(&self.changed("record/", |text| format!("{text} ")).await?)?;
        self.refused(first, &replace, &bytes, strange).await?;
        // The same by who it concerns, so that it is not refused for something else.
        self.cluster.kubectl_as(first, &replace, &moved).await.context("its own address")?;

        let no = "forbidden";
        self.refused(first, &["label", "node", "n1", &format!("{OURS}=replica")], "", no).await?;
        self.refused(first, &["get", "secrets", "-n", NAMESPACE], "", no).await?;
        self.refused(first, &["get", "pods", "-A"], "", no).await?;
        self.refused(first, &["get", "records", "-n", "default"], "", no).await?;
        self.refused(self.controller, &["get", "records", "-n", NAMESPACE], "", no).await?;
        self.refused(self.controller, &["get", "secrets", "-A"], "", no).await?;
        self.refused(self.controller, &["delete", "node", "n1"], "", no).await?;
        let only = "changes only labels";
        let stranger = ["label", "node", "n1", "kubernetes.io/os=plan9"];
        self.refused(self.controller, &stranger, "", only).await?;
        // `kubectl cordon` ends with 0 when it was refused.
        let cordon = ["patch", "node", "n1", "--patch", r#"{"spec": {"unschedulable": true}}"#];
        self.refused(self.controller, &cordon, "", only).await?;
        self.refused(self.controller, &["annotate", "node", "n1", "a=b"], "", only).await?;
        for (what, path) in [("owners", "ownerReferences"), ("finalizers", "finalizers")] {
            let patch = match what {
                "owners" => json!([{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "x"}]),
                _ => json!(["example.com/x"]),
            };
            let patch = json!({"metadata": {path: patch}}).to_string();
            let flags = ["patch", "node", "n1", "--type=merge", "--patch", &patch];
            self.refused(self.controller, &flags, "", &format!("changes no {what}")).await?;
        }
        let ours = ["label", "node", "n1", &format!("{OURS}=replica")];
        self.cluster.kubectl_as(self.controller, &ours, "").await.context("a label of its own")?;
        Ok(19 + self.pods().await? + self.guards().await?)
    }

    /// What the controller may do with somebody's pod.
    async fn pods(&self) -> anyhow::Result<usize> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "somebodys", "namespace": NAMESPACE, "labels": {"app": "x"}},
            "spec": {"automountServiceAccountToken": false, "serviceAccountName": "lockstep-node",
                "containers": [{"name": "main", "image": "localhost/x:1"}]}});
        self.cluster.kubectl(&["apply", "-f", "-"], &pod.to_string()).await?;
        let only = "changes only its annotations of pods";
        let image =
            json!({"spec": {"containers": [{"name": "main", "image": "localhost/evil:1"}]}});
        let tries = [
            (image, only),
            (json!({"metadata": {"labels": {"app": "y"}}}), only),
            (json!({"metadata": {"annotations": {"a": "b"}}}), only),
            (json!({"metadata": {"finalizers": ["example.com/x"]}}), "changes no finalizers"),
        ];
        let patch = ["-n", NAMESPACE, "patch", "pod", "somebodys", "--patch"];
        for (change, wanted) in &tries {
            let change = change.to_string();
            let flags = [&patch[..], &[&change]].concat();
            self.refused(self.controller, &flags, "", wanted).await?;
        }
        let nudge = json!({"metadata": {"annotations": {"lockstep.dev/nudged": "1"}}}).to_string();
        let flags = [&patch[..], &[&nudge]].concat();
        self.cluster.kubectl_as(self.controller, &flags, "").await.context("a nudge")?;
        self.cluster
            .kubectl(&["-n", NAMESPACE, "delete", "pod", "somebodys", "--force"], "")
            .await?;
        Ok(tries.len())
    }

    /// What the controller must not do to hold up drains; how much that is.
    async fn guards(&self) -> anyhow::Result<usize> {
        let (create, name) = (["-n", NAMESPACE, "create", "-f", "-"], "lockstep-drain-guard-x");
        let only = "makes only guards";
        let root = json!({"securityContext": {"runAsNonRoot": false}});
        let disk = json!({"volumes": [{"name": "root", "hostPath": {"path": "/"}}]});
        let bad = [pod(name, &json!({"hostPID": true})), pod(name, &root), pod(name, &disk)];
        for bad in bad.iter().chain([&pod("other", &json!({}))]) {
            self.refused(self.controller, &create, bad, only).await?;
        }
        let elsewhere = ["-n", "default", "create", "-f", "-"];
        let good = pod(name, &json!({}));
        self.refused(self.controller, &elsewhere, &good, "forbidden").await?;
        self.cluster.kubectl_as(self.controller, &create, &good).await.context("a guard")?;
        let patch = ["-n", NAMESPACE, "annotate", "pod", name];
        for note in ["lockstep.dev/held=why", "lockstep.dev/held-"] {
            let flags = [&patch[..], &[note]].concat();
            self.cluster.kubectl_as(self.controller, &flags, "").await.context("a reason")?;
        }
        let open = ["-n", NAMESPACE, "patch", "pdb", "lockstep-drain-guard", "--type=merge", "-p"];
        let open = [&open[..], &[r#"{"spec": {"maxUnavailable": 9}}"#]].concat();
        self.refused(self.controller, &open, "", "forbidden").await?;
        let create = ["create", "pdb", "any", "--selector=a", "--min-available=1", "-n", "default"];
        self.refused(self.controller, &create, "", "forbidden").await?;
        Ok(7)
    }

    /// Sees that somebody is refused something, and with these words.
    async fn refused(
        &self,
        who: &Path,
        flags: &[&str],
        input: &str,
        wanted: &str,
    ) -> anyhow::Result<()> {
        let tried = self.cluster.kubectl_as(who, flags, input).await;
        let said = tried.err().map(|error| error.to_string());
        let said =
            said.with_context(|| format!("{}: {flags:?} {input} is let through", who.display()))?;
        ensure!(said.contains(wanted), "{flags:?}: no `{wanted}` in {said}");
        Ok(())
    }

    /// A record whose key begins so, with another text.
    async fn changed(&self, key: &str, change: impl Fn(&str) -> String) -> anyhow::Result<String> {
        let flags = ["-n", NAMESPACE, "get", "records", "-o", "json"];
        let listed: Value = serde_json::from_str(&self.cluster.kubectl(&flags, "").await?)?;
        let all = listed["items"].as_array().cloned().unwrap_or_default();
        let is_it =
            |record: &Value| record["spec"]["key"].as_str().is_some_and(|k| k.starts_with(key));
        let mut record = all.into_iter().find(is_it).with_context(|| format!("no record {key}"))?;
        let before = record["spec"]["text"].as_str().unwrap_or_default().to_owned();
        let after = change(&before);
        ensure!(before != after, "{key} is not as expected: {before}");
        record["spec"]["text"] = json!(after);
        Ok(record.to_string())
    }
}

/// The same record with its value as bytes.
fn in_base64(record: &str) -> anyhow::Result<String> {
    let mut record: Value = serde_json::from_str(record)?;
    let text = record["spec"]["text"].as_str().unwrap_or_default().as_bytes().to_vec();
    record["spec"]["base64"] = json!(k8s_openapi::ByteString(text));
    let spec = record["spec"].as_object_mut().context("it has a specification")?;
    spec.remove("text");
    Ok(record.to_string())
}

/// A pod that the controller may make, but for these parts of its specification.
fn pod(name: &str, changes: &Value) -> String {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "nodeName": "n2",
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true},
            "containers": [{
                "name": "guard",
                "image": "none",
                "securityContext": {"allowPrivilegeEscalation": false},
            }],
        },
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        pod["spec"][key.as_str()] = value.clone();
    }
    pod.to_string()
}

/// A record as nobody has made it.
fn record_of(key: &str, text: &str) -> String {
    json!({
        "apiVersion": "lockstep.dev/v1alpha1",
        "kind": "Record",
        "metadata": {"name": "stranger", "namespace": NAMESPACE},
        "spec": {"key": key, "text": text, "change": "1"},
    })
    .to_string()
}
