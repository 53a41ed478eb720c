//! Labels on the Node objects of the cluster.

use super::{CHUNK, is_not_found, refused};
use crate::keeper::Keeper;
use crate::labels::Labels;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, WatchEvent, WatchParams};
use lockstep_core::cluster::locality::{Changes, LABEL_VALUE, Labels as Labelled, PlacementId};
use lockstep_core::id::NodeId;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use tokio_stream::StreamExt as _;
use tonic::{Status, async_trait};

/// Pause before a watch that broke begins anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Labels where the scheduler looks for them. The nodes of Lockstep are called as those of
/// Kubernetes.
#[derive(Clone)]
pub(crate) struct OnNodes {
    nodes: Api<Node>,
    watched: Api<Node>,
}

impl fmt::Debug for OnNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnNodes")
    }
}

impl OnNodes {
    /// `watcher` waits longer for answers than `client`.
    pub(crate) fn new(client: Client, watcher: Client) -> Self {
        Self { nodes: Api::all(client), watched: Api::all(watcher) }
    }

    async fn patch(&self, node: &NodeId, labels: &Value) -> Result<(), kube::Error> {
        let patch = json!({ "metadata": { "labels": labels } });
        let how = PatchParams::default();
        self.nodes.patch_metadata(node.as_str(), &how, &Patch::Merge(patch)).await.map(drop)
    }

    /// Has labels looked at as soon as a node loses or gains one of ours, or comes anew: a Node
    /// object that is made again has none.
    pub(crate) async fn watch(self, keeper: Keeper) {
        loop {
            if let Err(error) = self.follow(&keeper).await {
                tracing::debug!(%error, "the watch of nodes broke");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self, keeper: &Keeper) -> Result<(), kube::Error> {
        let begin = self.nodes.list_metadata(&ListParams::default().limit(1)).await?;
        keeper.look_soon();
        let mut seen = BTreeMap::new();
        let from = begin.metadata.resource_version.unwrap_or_default();
        let events = self.watched.watch_metadata(&WatchParams::default(), &from).await?;
        tokio::pin!(events);
        while let Some(event) = events.next().await {
            let node = match event? {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => node.metadata,
                WatchEvent::Deleted(node) => {
                    seen.remove(&node.metadata.name);
                    continue;
                }
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(error) => return Err(kube::Error::Api(error)),
            };
            // Kubelets write to their Node every few seconds.
            let placements: Vec<PlacementId> = placements(&node).collect();
            if seen.get(&node.name) != Some(&placements) {
                seen.insert(node.name, placements);
                keeper.look_soon();
            }
        }
        Ok(())
    }
}

/// The placements of which a node has the label.
fn placements(node: &ObjectMeta) -> impl Iterator<Item = PlacementId> {
    let ours = node.labels.iter().flatten().filter(|(_, value)| *value == LABEL_VALUE);
    ours.filter_map(|(key, _)| PlacementId::of_label(key))
}

/// By node, what a merge is to do with its labels.
fn patches(labels: &Labelled, value: &Value) -> BTreeMap<NodeId, Value> {
    let mut patches = BTreeMap::<NodeId, serde_json::Map<String, Value>>::new();
    for (placement, nodes) in labels {
        for node in nodes {
            patches.entry(node.clone()).or_default().insert(placement.label(), value.clone());
        }
    }
    patches.into_iter().map(|(node, labels)| (node, Value::Object(labels))).collect()
}

#[async_trait]
impl Labels for OnNodes {
    async fn now(&self) -> Result<Labelled, Status> {
        let mut labelled = Labelled::new();
        let mut wanted = ListParams::default().limit(CHUNK);
        loop {
            let chunk = self.nodes.list_metadata(&wanted).await;
            let chunk = chunk.map_err(|error| refused("nodes cannot be listed", &error))?;
            for node in &chunk.items {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                let Some(name) = NodeId::new(name) else { continue };
                for placement in placements(&node.metadata) {
                    labelled.entry(placement).or_default().insert(name.clone());
                }
            }
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(labelled);
            }
        }
    }

    async fn apply(&self, changes: &Changes) -> Result<(), Status> {
        // First where pods may go, then where they may not: they should always find a place.
        for (node, labels) in patches(&changes.put, &json!(LABEL_VALUE)) {
            let put = self.patch(&node, &labels).await;
            put.map_err(|error| refused(&format!("node {node} cannot be labelled"), &error))?;
        }
        for (node, labels) in patches(&changes.take, &Value::Null) {
            match self.patch(&node, &labels).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(refused(&format!("a label of node {node} stays"), &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_patch_a_node_with_all_its_labels() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let id = |id: &str| PlacementId::new(id).unwrap();
        let labels = Labelled::from([
            (id("p-1"), BTreeSet::from([node("a"), node("b")])),
            (id("p-2"), BTreeSet::from([node("a")])),
        ]);
        let label = |id: &str| format!("lockstep.node-restriction.kubernetes.io/{id}");
        let wanted = BTreeMap::from([
            (node("a"), json!({ label("p-1"): null, label("p-2"): null })),
            (node("b"), json!({ label("p-1"): null })),
        ]);
        assert_eq!(patches(&labels, &Value::Null), wanted);
    }

    #[test]
    fn only_labels_of_ours_are_seen() {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = BTreeMap::from([
            label("lockstep.node-restriction.kubernetes.io/p-1", LABEL_VALUE),
            label("lockstep.node-restriction.kubernetes.io/p-2", "other"),
            label("kubernetes.io/hostname", LABEL_VALUE),
        ]);
        let node = ObjectMeta { labels: Some(labels), ..ObjectMeta::default() };
        let seen: Vec<_> = placements(&node).map(|id| id.to_string()).collect();
        assert_eq!(seen, ["p-1"]);
    }
}
