//! Labels that were put on nodes, as objects: `labels/<node>`.

use std::collections::BTreeMap;

use lockstep_core::id::{NodeId, Revision};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Catalog, OBJECT_VERSION, Stored, encode};

/// Labels that were put on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct PutLabels {
    version: u32,
    pub(in crate::admin) node: NodeId,
    pub(in crate::admin) labels: BTreeMap<String, String>,
}

impl Catalog {
    /// Labels that were put on nodes, by node.
    pub(in crate::admin) async fn labels(&self) -> Result<Vec<PutLabels>, Status> {
        Ok(self.list("labels/").await?.into_iter().map(|stored| stored.value).collect())
    }

    /// Labels that were put on a node, to change them.
    pub(in crate::admin) async fn labels_of(
        &self,
        node: &NodeId,
    ) -> Result<Option<Stored<PutLabels>>, Status> {
        self.get(&format!("labels/{node}")).await
    }

    /// Writes the labels of a node that are as expected.
    pub(in crate::admin) async fn put_labels(
        &self,
        node: &NodeId,
        expected: Option<Revision>,
        labels: BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let value = encode(&PutLabels { version: OBJECT_VERSION, node: node.clone(), labels })?;
        self.put(&format!("labels/{node}"), expected, value).await
    }

    /// A node has no labels that were put on it any more.
    pub(in crate::admin) async fn delete_labels(&self, node: &NodeId) -> Result<(), Status> {
        self.delete(&format!("labels/{node}")).await
    }
}
