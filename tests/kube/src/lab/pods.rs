//! What checks make of Kubernetes and ask it.

use super::{LIMIT, Lab};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

impl Lab {
    /// Makes a namespace for a check.
    pub(crate) async fn make_namespace(&self, name: &str) -> anyhow::Result<()> {
        self.cluster.make_namespace(name).await?;
        // Pods are refused before it has one.
        let flags = ["-n", name, "get", "serviceaccount", "default"];
        let has_account = async || self.kubectl(&flags).await.is_ok();
        ensure!(wait_for(LIMIT, has_account).await, "the namespace {name} gets no service account");
        Ok(())
    }

    /// An object of Kubernetes.
    pub(crate) async fn get(&self, space: &str, kind: &str, name: &str) -> anyhow::Result<Value> {
        let said = self.kubectl(&["-n", space, "get", kind, name, "-o", "json"]).await?;
        Ok(serde_json::from_str(&said)?)
    }

    /// Waits until a pod runs and is ready; returns the node that it is on.
    pub(crate) async fn wait_until_runs(&self, space: &str, pod: &str) -> anyhow::Result<String> {
        let runs = async || {
            let found = self.get(space, "pod", pod).await;
            found.is_ok_and(|pod| is_ready(&pod))
        };
        if !wait_for(LIMIT, runs).await {
            let told = self.kubectl(&["-n", space, "describe", "pod", pod]).await;
            anyhow::bail!("{pod} does not run: {}", told.unwrap_or_default());
        }
        let found = self.get(space, "pod", pod).await?;
        let node = found.pointer("/spec/nodeName").and_then(Value::as_str);
        Ok(node.context("it runs nowhere")?.to_owned())
    }

    /// Runs a command of a shell in a pod.
    pub(crate) async fn in_pod(
        &self,
        space: &str,
        pod: &str,
        script: &str,
    ) -> anyhow::Result<String> {
        self.kubectl(&["-n", space, "exec", pod, "--", "sh", "-euc", script]).await
    }

    /// The volume that a claim is bound to.
    pub(crate) async fn volume_of(&self, space: &str, claim: &str) -> anyhow::Result<String> {
        let found = self.get(space, "pvc", claim).await?;
        let name = found.pointer("/spec/volumeName").and_then(Value::as_str);
        Ok(name.with_context(|| format!("{claim} is bound to nothing"))?.to_owned())
    }

    /// The nodes with a copy of a volume that is in sync, as daemons say.
    pub(crate) async fn in_sync(&self, volume: &str) -> anyhow::Result<BTreeSet<String>> {
        let said = self.lockstep(&["--json", "volume", "show", volume]).await?;
        let shown: Value = serde_json::from_str(&said)?;
        let replicas = shown.get("replicas").and_then(Value::as_array);
        let replicas = replicas.with_context(|| format!("no replicas are told: {shown}"))?;
        let in_sync = replicas.iter().filter(|replica| is_in_sync(replica));
        let nodes = in_sync.filter_map(|replica| replica.get("node").and_then(Value::as_str));
        Ok(nodes.map(str::to_owned).collect())
    }
}

fn is_in_sync(replica: &Value) -> bool {
    replica.get("state").and_then(Value::as_str) == Some("in_sync")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let is_set = |condition: &Value| {
        let part = |name| condition.get(name).and_then(Value::as_str);
        part("type") == Some("Ready") && part("status") == Some("True")
    };
    let is_ending = pod.pointer("/metadata/deletionTimestamp").is_some();
    !is_ending && conditions.is_some_and(|all| all.iter().any(is_set))
}

/// A claim.
pub(crate) fn claim(space: &str, name: &str, class: &str, size: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": space, "name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "resources": {"requests": {"storage": size}},
        },
    })
}

/// A container of busybox that runs a script, with a volume called `data` at /data.
pub(crate) fn container(script: &str) -> Value {
    json!({
        "name": "main",
        "image": super::images::BUSYBOX,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    })
}

/// A pod with a claim's volume.
pub(crate) fn pod(space: &str, name: &str, claim: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": space, "name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container(script)],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    })
}

/// A stateful set of pods with a claim each, and the service that it needs.
pub(crate) fn stateful_set(
    space: &str,
    name: &str,
    pods: usize,
    class: &str,
    script: &str,
) -> Value {
    let mut claim = claim(space, "data", class, "256Mi");
    claim["metadata"] = json!({"name": "data"});
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"namespace": space, "name": name},
        "spec": {
            "serviceName": name,
            "replicas": pods,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [container(script)],
                },
            },
            "volumeClaimTemplates": [claim],
        },
    });
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": space, "name": name},
        "spec": {"clusterIP": "None", "selector": {"app": name}},
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [service, set]})
}
