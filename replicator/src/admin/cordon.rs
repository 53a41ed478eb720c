//! Nodes that are about to go down, as the orchestrator says: they get new copies last.

use std::collections::BTreeSet;

use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use tonic::Status;

use super::survey::Survey;
use super::{Admin, names};

impl Admin {
    /// Notes that a node is cordoned, or is not any more.
    pub(super) async fn cordon_node(&self, request: v1::CordonNodeRequest) -> Result<(), Status> {
        let node = names::node(&request.node)?;
        self.inner.catalog.known_node(&node).await?;
        if request.undo {
            self.inner.catalog.delete_cordon(&node).await?;
            tracing::info!(%node, "it is not cordoned any more");
        } else {
            self.inner.catalog.put_cordon(&node).await?;
            tracing::info!(%node, "it is cordoned: it gets new copies only where no other can");
        }
        Ok(())
    }
}

/// Which nodes are cordoned, marked in what the nodes said.
pub(super) fn mark(survey: &mut Survey, cordoned: &BTreeSet<NodeId>) {
    for node in cordoned {
        if let Some(status) = survey.get_mut(node.as_str()) {
            status.cordoned = true;
        }
    }
}
