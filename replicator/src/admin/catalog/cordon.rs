//! Nodes that are cordoned, as objects: `cordon/<node>`.

use std::collections::BTreeSet;

use lockstep_core::id::NodeId;
use lockstep_meta::{Expect, PutError};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Catalog, OBJECT_VERSION, encode};
use crate::admin::refuse;

/// A node that is cordoned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cordon {
    version: u32,
    node: NodeId,
}

impl Catalog {
    /// The nodes that are cordoned.
    pub(in crate::admin) async fn cordons(&self) -> Result<BTreeSet<NodeId>, Status> {
        let found = self.list::<Cordon>("cordon/").await?;
        Ok(found.into_iter().map(|stored| stored.value.node).collect())
    }

    /// A node is cordoned.
    pub(in crate::admin) async fn put_cordon(&self, node: &NodeId) -> Result<(), Status> {
        let value = encode(&Cordon { version: OBJECT_VERSION, node: node.clone() })?;
        match self.meta.put_if(&format!("cordon/{node}"), Expect::Absent, value).await {
            Ok(_) | Err(PutError::Conflict { current: Some(_) }) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }

    /// A node is not cordoned any more.
    pub(in crate::admin) async fn delete_cordon(&self, node: &NodeId) -> Result<(), Status> {
        self.delete(&format!("cordon/{node}")).await
    }
}
