//! Copies of snapshots that are to go.

use lockstep_core::id::{NodeId, SnapshotId};
use lockstep_meta::{Expect, PutError};
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{Catalog, OBJECT_VERSION, Stored, encode, refuse};

/// Attempts to write a note that others write and remove at the same time.
const ATTEMPTS: u32 = 5;

/// A copy of a snapshot that its node is to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::admin) struct Dropped {
    version: u32,
    pub(in crate::admin) uid: SnapshotId,
    pub(in crate::admin) snapshot_name: String,
    /// Since when, milliseconds since 1970.
    pub(in crate::admin) unix_ms: u64,
}

fn key(node: &NodeId, uid: SnapshotId) -> String {
    format!("dropped/{node}/{uid}")
}

impl Catalog {
    /// Asks a node to remove its copy of a snapshot, now or when it is back. A note that is there
    /// is written anew: the node may have judged it by what was so before this call.
    pub(in crate::admin) async fn put_dropped(
        &self,
        node: &NodeId,
        uid: SnapshotId,
        snapshot_name: &str,
        unix_ms: u64,
    ) -> Result<(), Status> {
        let key = key(node, uid);
        for _ in 0..ATTEMPTS {
            let found = self.get::<Dropped>(&key).await?;
            let mut note = Dropped {
                version: OBJECT_VERSION,
                uid,
                snapshot_name: snapshot_name.to_owned(),
                unix_ms,
            };
            let mut expected = Expect::Absent;
            if let Some(found) = found {
                // Never the same as before: a store may take that for no change.
                note.unix_ms = unix_ms.max(found.value.unix_ms.saturating_add(1));
                expected = Expect::Revision(found.revision);
            }
            match self.meta.put_if(&key, expected, encode(&note)?).await {
                // If there is another one, it was written since this call began.
                Ok(_) | Err(PutError::Conflict { current: Some(_) }) => return Ok(()),
                Err(PutError::Conflict { current: None }) => {}
                Err(error) => return Err(refuse::unwritten(&error)),
            }
        }
        Err(Status::aborted(format!("{key} changes all the time; try again")))
    }

    /// The copies of snapshots that a node is to remove.
    pub(in crate::admin) async fn dropped(
        &self,
        node: &NodeId,
    ) -> Result<Vec<Stored<Dropped>>, Status> {
        self.list(&format!("dropped/{node}/")).await
    }

    /// The note of one copy that a node is to remove.
    pub(in crate::admin) async fn dropped_note(
        &self,
        node: &NodeId,
        uid: SnapshotId,
    ) -> Result<Option<Stored<Dropped>>, Status> {
        self.get(&key(node, uid)).await
    }

    /// A node has done what a note says. One that was written anew meanwhile stays.
    pub(in crate::admin) async fn delete_dropped(
        &self,
        node: &NodeId,
        note: &Stored<Dropped>,
    ) -> Result<(), Status> {
        match self.meta.delete_if(&key(node, note.value.uid), note.revision).await {
            Ok(()) | Err(PutError::Conflict { .. }) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockstep_meta::memory::Memory;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn a_note_that_was_written_anew_is_not_removed_with_the_one_before() {
        let catalog = Catalog::new(Arc::new(Memory::default()));
        let (node, uid) = (NodeId::new("n1").unwrap(), SnapshotId(Uuid::from_u128(1)));
        let put = async || catalog.put_dropped(&node, uid, "s", 7).await.unwrap();
        put().await;
        // The node reads the note and that the snapshot names it; then the snapshot changes.
        let judged = catalog.dropped(&node).await.unwrap().remove(0);
        assert_eq!(judged.value.unix_ms, 7);
        put().await;
        catalog.delete_dropped(&node, &judged).await.unwrap();
        let left = catalog.dropped_note(&node, uid).await.unwrap().expect("the second note");
        assert!(left.value.unix_ms > 7, "no store takes it for the same: {left:?}");
        catalog.delete_dropped(&node, &left).await.unwrap();
        assert!(catalog.dropped(&node).await.unwrap().is_empty());
        catalog.delete_dropped(&node, &left).await.unwrap();
    }
}
