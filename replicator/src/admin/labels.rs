//! Labels that are put on nodes: a cluster without another place for them keeps them in the record
//! store.

use std::collections::BTreeMap;

use lockstep_core::cluster::locality::{is_label_key, is_label_value};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use tonic::{Code, Status};

use super::survey::Survey;
use super::{Admin, names};

/// Attempts against others who change the labels of the same node.
const ATTEMPTS: usize = 10;
/// Changes in one call, and labels of one node: as many fit an object of the record store.
const MOST: usize = 10_000;

/// What is to become of a node's labels: absent values are taken off.
type Changes = BTreeMap<String, Option<String>>;

impl Admin {
    /// Puts labels on nodes and takes them off; tells all that were put.
    pub(super) async fn label_nodes(
        &self,
        request: &v1::LabelNodesRequest,
    ) -> Result<v1::LabelNodesResponse, Status> {
        for (node, changes) in sorted(&request.changes)? {
            self.label_node(&node, &changes).await?;
        }
        let all = self.inner.catalog.labels().await?.into_iter().filter(|n| !n.labels.is_empty());
        let told = |put: super::catalog::PutLabels| v1::NodeLabels {
            node: put.node.to_string(),
            labels: put.labels,
        };
        Ok(v1::LabelNodesResponse { nodes: all.map(told).collect() })
    }

    async fn label_node(&self, node: &NodeId, changes: &Changes) -> Result<(), Status> {
        if changes.values().any(Option::is_some) {
            let known = self.inner.catalog.known_node(node).await?;
            if let Some(key) = changes.keys().find(|key| known.labels.contains_key(*key)) {
                return Err(Status::failed_precondition(format!(
                    "label {key} of node {node} is one that its daemon was told; change it there"
                )));
            }
        }
        for _ in 0..ATTEMPTS {
            let found = self.inner.catalog.labels_of(node).await?;
            let revision = found.as_ref().map(|stored| stored.revision);
            let before = found.map(|stored| stored.value.labels).unwrap_or_default();
            let after = changed(before.clone(), changes);
            if after == before {
                return Ok(());
            }
            if after.len() > MOST {
                return Err(Status::resource_exhausted(format!(
                    "node {node} would have {} labels; {MOST} are possible",
                    after.len()
                )));
            }
            match self.inner.catalog.put_labels(node, revision, after).await {
                // Changed by others, or undecided: the next look tells.
                Err(status) if status.code() == Code::Aborted => {}
                outcome => return outcome,
            }
        }
        Err(Status::aborted(format!("others keep changing the labels of node {node}; try again")))
    }

    /// Adds the labels that were put on nodes to what the nodes said.
    pub(super) async fn mark_labels(&self, survey: &mut Survey) -> Result<(), Status> {
        for put in self.inner.catalog.labels().await? {
            if let Some(status) = survey.get_mut(put.node.as_str()) {
                for (key, value) in put.labels {
                    // What the node's daemon was told goes first.
                    status.labels.entry(key).or_insert(value);
                }
            }
        }
        Ok(())
    }
}

/// The changes of each node, checked; of several of one label the last counts.
fn sorted(changes: &[v1::LabelChange]) -> Result<BTreeMap<NodeId, Changes>, Status> {
    if changes.len() > MOST {
        let why = format!("changes: {}; at most {MOST} are made at once", changes.len());
        return Err(Status::invalid_argument(why));
    }
    let mut all: BTreeMap<NodeId, Changes> = BTreeMap::new();
    for change in changes {
        let refuse = |field: &str, value: &str, why: &str| {
            let value: String = value.chars().take(80).collect();
            Status::invalid_argument(format!("{field} = {value:?}: {why}"))
        };
        is_label_key(&change.key).map_err(|why| refuse("key", &change.key, why))?;
        if let Some(value) = &change.value {
            is_label_value(value).map_err(|why| refuse("value", value, why))?;
        }
        let node = names::node(&change.node)?;
        all.entry(node).or_default().insert(change.key.clone(), change.value.clone());
    }
    Ok(all)
}

fn changed(mut labels: BTreeMap<String, String>, changes: &Changes) -> BTreeMap<String, String> {
    for (key, value) in changes {
        match value {
            Some(value) => labels.insert(key.clone(), value.clone()),
            None => labels.remove(key),
        };
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(node: &str, key: &str, value: Option<&str>) -> v1::LabelChange {
        let value = value.map(str::to_owned);
        v1::LabelChange { node: node.to_owned(), key: key.to_owned(), value }
    }

    #[test]
    fn labels_are_put_and_taken_off() {
        let all = sorted(&[
            change("a", "x/p", Some("1")),
            change("b", "x/p", Some("1")),
            change("a", "x/q", None),
            change("a", "x/p", Some("2")),
        ])
        .unwrap();
        let of_a = &all[&NodeId::new("a").unwrap()];
        let before = BTreeMap::from([("x/q", "1"), ("k", "v")]);
        let before = before.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let after = changed(before, of_a);
        let told: Vec<_> = after.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(told, [("k", "v"), ("x/p", "2")]);
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            change("a b", "k", None),
            change("a", "", None),
            change("a", "a//b", None),
            change("a", "k", Some("a b")),
        ] {
            let refused = sorted(std::slice::from_ref(&bad)).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}");
        }
        let many = vec![change("a", "k", None); MOST + 1];
        assert_eq!(sorted(&many).unwrap_err().code(), Code::InvalidArgument);
    }
}
