//! Labels on the Node objects of the cluster, and what these say of their nodes.

use super::{CHUNK, is_not_found, refused};
use crate::keeper::Keeper;
use crate::labels::{Labels, Now};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, WatchEvent, WatchParams};
use lockstep_core::cluster::failover::Word;
use lockstep_core::cluster::locality::{Changes, LABEL_VALUE, Labels as Labelled, PlacementId};
use lockstep_core::id::NodeId;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;
use tonic::{Status, async_trait};

/// Pause before a watch that broke begins anew.
const PAUSE: Duration = Duration::from_secs(1);

/// The taint by which people declare that a node is shut down.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// The taints by which programs declare that they are about to empty a node, without cordoning it.
const LEAVING: [&str; 3] = [
    "node.kubernetes.io/unschedulable",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
];

/// The annotation by which people have all copies of a node moved elsewhere: `true`, or `false` to
/// stop that.
const EVACUATE: &str = "lockstep.dev/evacuate";

/// Labels where the scheduler looks for them. The nodes of Lockstep are called as those of
/// Kubernetes.
#[derive(Clone)]
pub(crate) struct OnNodes {
    nodes: Api<Node>,
    watched: Api<Node>,
    words: Arc<Mutex<Option<Words>>>,
    changed: Arc<Notify>,
}

/// A Node object, as far as drains are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) uid: String,
    /// It gets no new pods, so that it can be drained.
    pub(crate) cordoned: bool,
    pub(crate) wish: Wish,
}

/// What people want to become of a node's copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// They say nothing.
    None,
    /// All are moved elsewhere.
    Evacuate,
    /// They stay, and are no longer moved.
    Stay,
    /// Something that means nothing.
    Unclear(String),
}

/// What Kubernetes says of each node.
pub(crate) type Words = BTreeMap<NodeId, Word>;

impl fmt::Debug for OnNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnNodes")
    }
}

impl OnNodes {
    /// `watcher` waits longer for answers than `client`.
    pub(crate) fn new(client: Client, watcher: Client) -> Self {
        let (words, changed) = Default::default();
        Self { nodes: Api::all(client), watched: Api::all(watcher), words, changed }
    }

    /// All Node objects as they are now.
    pub(crate) async fn known(&self) -> Result<BTreeMap<NodeId, Known>, Status> {
        let mut all = BTreeMap::new();
        let mut wanted = ListParams::default().limit(CHUNK);
        loop {
            let chunk = self.nodes.list(&wanted).await;
            let chunk = chunk.map_err(|error| refused("nodes cannot be listed", &error))?;
            all.extend(chunk.items.iter().filter_map(|node| Some((name_of(node)?, known(node)))));
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(all);
            }
        }
    }

    /// Waits until something that concerns drains has changed on a Node object.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    async fn patch(&self, node: &NodeId, labels: &Value) -> Result<(), kube::Error> {
        let patch = json!({ "metadata": { "labels": labels } });
        let how = PatchParams::default();
        self.nodes.patch_metadata(node.as_str(), &how, &Patch::Merge(patch)).await.map(drop)
    }

    /// What Kubernetes says of each node that it has; nothing before it was heard.
    pub(crate) fn words(&self) -> Option<Words> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Words>> {
        // It is changed by single inserts and removals.
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, node: &Node) {
        if let (Some(words), Some(name)) = (self.lock().as_mut(), name_of(node)) {
            words.insert(name, word(node));
        }
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
        let mut words = Words::new();
        let mut wanted = ListParams::default().limit(CHUNK);
        let from = loop {
            let chunk = self.nodes.list(&wanted).await?;
            words.extend(chunk.items.iter().filter_map(|n| Some((name_of(n)?, word(n)))));
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                break chunk.metadata.resource_version.unwrap_or_default();
            }
        };
        *self.lock() = Some(words);
        keeper.look_soon();
        let mut seen = BTreeMap::new();
        let events = self.watched.watch(&WatchParams::default(), &from).await?;
        tokio::pin!(events);
        while let Some(event) = events.next().await {
            let (known, node) = match event? {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                    self.note(&node);
                    (known(&node), node.metadata)
                }
                WatchEvent::Deleted(node) => {
                    if let (Some(words), Some(name)) = (self.lock().as_mut(), name_of(&node)) {
                        words.remove(&name);
                    }
                    seen.remove(&node.metadata.name);
                    self.changed.notify_one();
                    continue;
                }
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(error) => return Err(kube::Error::Api(error)),
            };
            // Kubelets write to their Node every few seconds.
            let placements: Vec<PlacementId> = placements(&node).collect();
            let before = seen.get(&node.name);
            if before.is_none_or(|(seen, _)| *seen != placements) {
                keeper.look_soon();
            }
            if before.is_none_or(|(_, seen)| *seen != known) {
                self.changed.notify_one();
            }
            seen.insert(node.name, (placements, known));
        }
        Ok(())
    }
}

fn name_of(node: &Node) -> Option<NodeId> {
    NodeId::new(node.metadata.name.as_deref()?)
}

/// What Kubernetes says of a node.
fn word(node: &Node) -> Word {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    // One that has not said anything yet is no worse for it.
    let is_ready = conditions.filter(|c| c.type_ == "Ready").all(|c| c.status == "True");
    if taints.map(|taint| taint.key.as_str()).any(|key| key == OUT_OF_SERVICE) {
        Word::OutOfService
    } else if is_ready {
        Word::Well
    } else {
        Word::NotReady
    }
}

/// What drains have to know of a node.
fn known(node: &Node) -> Known {
    let spec = node.spec.as_ref();
    let taints = spec.into_iter().flat_map(|spec| spec.taints.iter().flatten());
    let is_tainted = taints.map(|taint| taint.key.as_str()).any(|key| LEAVING.contains(&key));
    let note = node.metadata.annotations.as_ref().and_then(|all| all.get(EVACUATE));
    Known {
        uid: node.metadata.uid.clone().unwrap_or_default(),
        cordoned: is_tainted || spec.is_some_and(|spec| spec.unschedulable == Some(true)),
        wish: match note.map(String::as_str) {
            None => Wish::None,
            Some("true") => Wish::Evacuate,
            Some("false") => Wish::Stay,
            Some(other) => Wish::Unclear(other.to_owned()),
        },
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
    async fn now(&self) -> Result<Now, Status> {
        let (mut labelled, mut nodes) = (Labelled::new(), BTreeSet::new());
        let mut wanted = ListParams::default().limit(CHUNK);
        loop {
            let chunk = self.nodes.list_metadata(&wanted).await;
            let chunk = chunk.map_err(|error| refused("nodes cannot be listed", &error))?;
            for node in &chunk.items {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                let Some(name) = NodeId::new(name) else { continue };
                nodes.insert(name.clone());
                for placement in placements(&node.metadata) {
                    labelled.entry(placement).or_default().insert(name.clone());
                }
            }
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(Now { labelled, nodes: Some(nodes) });
            }
        }
    }

    async fn apply(&self, changes: &Changes) -> Result<(), Status> {
        // First where pods may go, then where they may not: they should always find a place.
        for (node, labels) in patches(&changes.put, &json!(LABEL_VALUE)) {
            match self.patch(&node, &labels).await {
                // No pod can come there before it is made, and then it gets its labels.
                Err(error) if is_not_found(&error) => {
                    tracing::warn!(%node, "it has no Node object that could be labelled");
                }
                Err(error) => {
                    return Err(refused(&format!("node {node} cannot be labelled"), &error));
                }
                Ok(()) => {}
            }
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
    fn a_node_is_cordoned_by_itself_or_by_a_taint() {
        let of = |node| known(&serde_json::from_value(node).unwrap());
        assert!(!of(json!({})).cordoned);
        assert!(of(json!({"spec": {"unschedulable": true}})).cordoned);
        let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
        assert!(of(taint("karpenter.sh/disrupted")).cordoned && !of(taint("gpu")).cordoned);
        let wish = |value: &str| of(json!({"metadata": {"annotations": {EVACUATE: value}}})).wish;
        assert_eq!(of(json!({})).wish, Wish::None);
        assert_eq!([wish("true"), wish("false")], [Wish::Evacuate, Wish::Stay]);
        assert_eq!(wish("yes"), Wish::Unclear("yes".to_owned()));
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
