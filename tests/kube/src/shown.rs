//! What people and the scheduler are shown: an object for each volume, events on its claim, labels
//! on nodes.

use crate::cluster::Cluster;
use crate::nodes::{LIMIT, Nodes};
use crate::objects;
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use serde_json::json;
use std::collections::BTreeSet;

const NAMESPACE: &str = "shown";
const LABEL: &str = "lockstep.node-restriction.kubernetes.io/";

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    cluster.grant(NAMESPACE).await?;
    clear(cluster).await?;
    for node in ["n1", "n2", "n3", "n4"] {
        make_node(cluster, node).await?;
    }
    let mut nodes = Nodes::start(cluster, NAMESPACE).await?;
    let mut controller = nodes.controller(cluster)?;
    nodes.lockstep(&["volume", "create", "v", "--size", "64MiB", "--repl", "2"]).await?;
    let claim = claim(cluster).await?;
    row(cluster, &["v", "64Mi", "2/2", "Healthy"]).await?;
    let copies = copies(cluster).await?;
    ensure!(copies.len() == 2, "two copies are on {copies:?}");
    labelled(cluster, &copies).await?;

    // A kubelet that registers anew makes a Node without our labels.
    let made_anew = copies.first().context("a copy is somewhere")?;
    cluster.kubectl(&["delete", "node", made_anew], "").await?;
    make_node(cluster, made_anew).await?;
    labelled(cluster, &copies).await?;

    // One that is not made again keeps no other volume from its labels.
    cluster.kubectl(&["delete", "node", made_anew], "").await?;
    let others = ["n1", "n2", "n3"].into_iter().filter(|name| name != made_anew);
    let others: BTreeSet<String> = others.map(str::to_owned).collect();
    let mut flags = vec!["volume", "create", "w", "--size", "64MiB", "--repl", "2"];
    flags.extend(others.iter().flat_map(|node| ["--node", node.as_str()]));
    nodes.lockstep(&flags).await?;
    labelled(cluster, &others).await?;
    nodes.lockstep(&["volume", "delete", "w"]).await?;
    make_node(cluster, made_anew).await?;
    labelled(cluster, &copies).await?;

    let client = nodes.attach("n2").await?;
    row(cluster, &["v", "64Mi", "2/2", "n2", "Healthy"]).await?;
    // The second node has the client and answers `lockstep`.
    let lost = copies.iter().find(|name| *name != "n2").context("another copy")?.clone();
    let index = lost.trim_start_matches('n').parse::<usize>()? - 1;
    nodes.kill(index).await?;
    row(cluster, &["v", "64Mi", "1/2", "n2", "Degraded"]).await?;
    let left: BTreeSet<String> = copies.into_iter().filter(|name| *name != lost).collect();
    labelled(cluster, &left).await?;
    let flags = ["get", "lsv", "v", "-o", "jsonpath={.status.conditions[*].status}"];
    let conditions = cluster.kubectl(&flags, "").await?;
    ensure!(conditions.starts_with("True False"), "available and redundant: {conditions}");

    let warned = ["Warning CopiesMissing volume v has 1 of 2 copies in sync: "];
    told(cluster, &claim, &warned).await?;
    // Another controller finds what this one has told.
    controller.kill().await?;
    let _other = nodes.controller_named(cluster, "other", &[])?;
    nodes.start_again(index)?;
    row(cluster, &["v", "64Mi", "2/2", "n2", "Healthy"]).await?;
    let all_well = "Normal Redundant volume v has all 2 copies in sync again";
    told(cluster, &claim, &[all_well, warned[0]]).await?;

    drop(client);
    nodes.lockstep(&["detach", "v"]).await?;
    nodes.lockstep(&["volume", "delete", "v"]).await?;
    let is_gone = async || {
        let left = cluster.kubectl(&["get", "lsv", "-o", "name"], "").await;
        left.is_ok_and(|names| names.is_empty())
    };
    ensure!(wait_for(LIMIT, is_gone).await, "a deleted volume is still shown");
    labelled(cluster, &BTreeSet::new()).await?;
    told(cluster, &claim, &[all_well, warned[0]]).await?;
    Ok("columns, conditions, events and labels follow a volume through its life".to_owned())
}

/// Makes a claim of volume `v`, as if it were bound to it; returns its UID.
async fn claim(cluster: &Cluster) -> anyhow::Result<String> {
    let claim = objects::claim(NAMESPACE, "data", Some("v"));
    let flags = ["create", "-o", "jsonpath={.metadata.uid}", "-f", "-"];
    let uid = cluster.kubectl(&flags, &claim.to_string()).await?;
    let by = json!({"namespace": NAMESPACE, "name": "data", "uid": uid});
    let volume = objects::volume("v", &by, "csi.lockstep.dev", "v");
    cluster.kubectl(&["create", "-f", "-"], &volume.to_string()).await?;
    Ok(uid)
}

/// Waits until there are so many events about the claim, which begin so, in their order as text.
async fn told(cluster: &Cluster, uid: &str, wanted: &[&str]) -> anyhow::Result<()> {
    let of = format!("involvedObject.uid={uid}");
    let line = "jsonpath={range .items[*]}{.type} {.reason} {.message}{\"\\n\"}{end}";
    let flags = ["-n", NAMESPACE, "get", "events", "--field-selector", &of, "-o", line];
    let seen = async || -> anyhow::Result<Vec<String>> {
        let said = cluster.kubectl(&flags, "").await?;
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    };
    let is_so = |seen: &[String]| {
        let begins = |(seen, wanted): (&String, &&str)| seen.starts_with(wanted);
        seen.len() == wanted.len() && seen.iter().zip(wanted).all(begins)
    };
    let is_told = async || seen().await.is_ok_and(|seen| is_so(&seen));
    ensure!(wait_for(LIMIT, is_told).await, "wanted {wanted:?}, told is {:?}", seen().await?);
    Ok(())
}

/// Removes the nodes and shown volumes of other checks: they are the cluster's, not a namespace's.
pub(crate) async fn clear(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&["delete", "nodes,volumes.lockstep.dev", "--all"], "").await.map(drop)
}

pub(crate) async fn make_node(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    cluster.kubectl(&["create", "-f", "-"], &node.to_string()).await.map(drop)
}

/// Waits until `kubectl get` shows one volume, and these of its columns, in this order.
async fn row(cluster: &Cluster, wanted: &[&str]) -> anyhow::Result<()> {
    let table = async || cluster.kubectl(&["get", "volumes.lockstep.dev"], "").await;
    let is_shown = async || {
        table().await.is_ok_and(|table| {
            let rows: Vec<Vec<&str>> =
                table.lines().map(|row| row.split_whitespace().collect()).collect();
            let [head, row] = rows.as_slice() else { return false };
            let columns = ["NAME", "SIZE", "COPIES", "PRIMARY", "STATE", "AGE"];
            head.as_slice() == columns && row.starts_with(wanted)
        })
    };
    let shown = wait_for(LIMIT, is_shown).await;
    ensure!(shown, "wanted {wanted:?}, kubectl shows: {}", table().await?);
    Ok(())
}

/// The nodes with a copy, as the volume's object says.
async fn copies(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let flags = ["get", "lsv", "v", "-o", "jsonpath={.status.nodes[*]}"];
    let said = cluster.kubectl(&flags, "").await?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

/// Waits until exactly these nodes have a label of ours.
async fn labelled(cluster: &Cluster, wanted: &BTreeSet<String>) -> anyhow::Result<()> {
    let seen = async || -> anyhow::Result<BTreeSet<String>> {
        let nodes = cluster.kubectl(&["get", "nodes", "-o", "json"], "").await?;
        let nodes: serde_json::Value = serde_json::from_str(&nodes)?;
        let items = nodes.get("items").and_then(|items| items.as_array());
        let mut seen = BTreeSet::new();
        for metadata in items.into_iter().flatten().filter_map(|node| node.get("metadata")) {
            let labels = metadata.get("labels").and_then(|labels| labels.as_object());
            if labels.is_some_and(|labels| labels.keys().any(|key| key.starts_with(LABEL))) {
                let name = metadata.get("name").and_then(|name| name.as_str());
                seen.insert(name.context("a node has a name")?.to_owned());
            }
        }
        Ok(seen)
    };
    let is_so = async || seen().await.is_ok_and(|seen| seen == *wanted);
    ensure!(
        wait_for(LIMIT, is_so).await,
        "wanted labels on {wanted:?}, they are on {:?}",
        seen().await?
    );
    Ok(())
}
