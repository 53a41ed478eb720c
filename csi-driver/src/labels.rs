//! Labels of nodes, by which pods are led to where the copies of their volume are.

use crate::daemon::Daemons;
use lockstep_core::cluster::locality::{Changes, LABEL_VALUE, Labels as Labelled, PlacementId};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;
use tonic::{Status, async_trait};

/// Where labels of nodes are kept, so that whoever places pods sees them.
#[async_trait]
pub(crate) trait Labels: Debug + Send + Sync {
    /// Which nodes have which of our labels now.
    ///
    /// # Errors
    /// UNAVAILABLE if that cannot be told.
    async fn now(&self) -> Result<Now, Status>;

    /// Makes changes; returns when all are made. Making them twice is as good as once.
    ///
    /// # Errors
    /// If some may not have been made.
    async fn apply(&self, changes: &Changes) -> Result<(), Status>;
}

/// Labels of nodes at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// Our labels.
    pub(crate) labelled: Labelled,
    /// The nodes that can have labels; nothing: all that there are.
    pub(crate) nodes: Option<BTreeSet<NodeId>>,
}

/// Labels in the record store of the daemons: for clusters that have no other place for them, and
/// for tests. `lockstep node show` tells them.
#[derive(Debug)]
pub(crate) struct InRecordStore(pub(crate) Arc<Daemons>);

#[async_trait]
impl Labels for InRecordStore {
    async fn now(&self) -> Result<Now, Status> {
        let told = self.0.label(Vec::new()).await?;
        Ok(Now { labelled: read(&told), nodes: None })
    }

    async fn apply(&self, changes: &Changes) -> Result<(), Status> {
        let changes = written(changes);
        if changes.is_empty() {
            return Ok(());
        }
        self.0.label(changes).await.map(drop)
    }
}

/// Our labels among those that were put on nodes.
fn read(nodes: &[v1::NodeLabels]) -> Labelled {
    let mut labelled = Labelled::new();
    for told in nodes {
        let Some(node) = NodeId::new(&told.node) else { continue };
        let ours = told.labels.iter().filter(|(_, value)| *value == LABEL_VALUE);
        for placement in ours.filter_map(|(key, _)| PlacementId::of_label(key)) {
            labelled.entry(placement).or_default().insert(node.clone());
        }
    }
    labelled
}

fn written(changes: &Changes) -> Vec<v1::LabelChange> {
    let mut all = Vec::new();
    for (labels, value) in [(&changes.put, Some(LABEL_VALUE.to_owned())), (&changes.take, None)] {
        for (placement, nodes) in labels {
            all.extend(nodes.iter().map(|node| v1::LabelChange {
                node: node.to_string(),
                key: placement.label(),
                value: value.clone(),
            }));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn only_labels_of_ours_are_read() {
        let id = PlacementId::new("p-1").unwrap();
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = BTreeMap::from([
            label(&id.label(), LABEL_VALUE),
            label("rack", "7"),
            label(&PlacementId::new("p-2").unwrap().label(), "other"),
        ]);
        let a = NodeId::new("a").unwrap();
        let told = [v1::NodeLabels { node: "a".to_owned(), labels }];
        assert_eq!(read(&told), Labelled::from([(id, BTreeSet::from([a]))]));
    }

    #[test]
    fn changes_are_written_as_labels() {
        let at = |id: &str, node: &str| {
            let (id, node) = (PlacementId::new(id).unwrap(), NodeId::new(node).unwrap());
            Labelled::from([(id, BTreeSet::from([node]))])
        };
        let changes = Changes { put: at("p-1", "a"), take: at("p-2", "b") };
        let told: Vec<_> = written(&changes).into_iter().map(|c| (c.node, c.value)).collect();
        let value = Some(LABEL_VALUE.to_owned());
        assert_eq!(told, [("a".to_owned(), value), ("b".to_owned(), None)]);
    }
}
