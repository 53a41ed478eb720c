//! Replicas that are to go, and such that go unless a record comes to name them.

use lockstep_core::id::{NodeId, ReplicaId, VolumeId};
use lockstep_meta::{Expect, PutError};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Catalog, OBJECT_VERSION, encode, refuse};

/// A replica that its node is to remove if no record names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Gone {
    version: u32,
    pub(in crate::admin) uid: VolumeId,
    pub(in crate::admin) rid: ReplicaId,
    pub(in crate::admin) volume_name: String,
    /// When somebody began to make it, who may still be about to have a record name it; in
    /// milliseconds since 1970. 0: nobody is.
    #[serde(default)]
    pub(in crate::admin) begun_unix_ms: u64,
}

impl Catalog {
    /// Asks a node to remove a replica, now or when it is back.
    pub(in crate::admin) async fn put_gone(
        &self,
        node: &NodeId,
        uid: VolumeId,
        rid: ReplicaId,
        volume_name: &str,
    ) -> Result<(), Status> {
        self.put_begun(node, uid, rid, volume_name, 0).await
    }

    /// A node is to have a replica, which it is to remove if no record comes to name it.
    pub(in crate::admin) async fn put_begun(
        &self,
        node: &NodeId,
        uid: VolumeId,
        rid: ReplicaId,
        volume_name: &str,
        begun_unix_ms: u64,
    ) -> Result<(), Status> {
        let key = format!("gone/{node}/{rid}");
        let volume_name = volume_name.to_owned();
        let gone = Gone { version: OBJECT_VERSION, uid, rid, volume_name, begun_unix_ms };
        let value = encode(&gone)?;
        match self.meta.put_if(&key, Expect::Absent, value).await {
            Ok(_) | Err(PutError::Conflict { current: Some(_) }) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }

    /// The replicas that a node is to remove.
    pub(in crate::admin) async fn gone(&self, node: &NodeId) -> Result<Vec<Gone>, Status> {
        let found = self.list(&format!("gone/{node}/")).await?;
        Ok(found.into_iter().map(|stored| stored.value).collect())
    }

    /// A node removed a replica.
    pub(in crate::admin) async fn delete_gone(
        &self,
        node: &NodeId,
        rid: ReplicaId,
    ) -> Result<(), Status> {
        self.delete(&format!("gone/{node}/{rid}")).await
    }
}
