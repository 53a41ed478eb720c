//! Which cluster a record store is of, as an object: `cluster`. Made once, never changed.

use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Catalog, OBJECT_VERSION, encode};

const KEY: &str = "cluster";

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cluster {
    version: u32,
    cluster: Uuid,
}

impl Catalog {
    /// The cluster whose record store this is: `proposed`, if it is nobody's so far.
    ///
    /// # Errors
    /// The record store's; the same call again goes on from there.
    pub async fn cluster(&self, proposed: Uuid) -> Result<Uuid, Status> {
        if let Some(found) = self.get::<Cluster>(KEY).await? {
            return Ok(found.value.cluster);
        }
        let value = encode(&Cluster { version: OBJECT_VERSION, cluster: proposed })?;
        match self.put(KEY, None, value).await {
            Ok(()) => Ok(proposed),
            // Another daemon was first, or this one in a call before.
            Err(status) if status.code() == Code::Aborted => {
                match self.get::<Cluster>(KEY).await? {
                    Some(found) => Ok(found.value.cluster),
                    None => Err(status),
                }
            }
            Err(status) => Err(status),
        }
    }

    /// Sees to it that this is the record store of that cluster.
    ///
    /// # Errors
    /// FAILED_PRECONDITION if it is another one's; else the record store's.
    pub async fn check_cluster(&self, own: Uuid) -> Result<(), Status> {
        let theirs = self.cluster(own).await?;
        if theirs == own {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this daemon is of cluster {own}, by its pools or its setting `cluster`, but the \
             record store is of cluster {theirs}: they do not belong together; correct `meta`, or \
             `cluster`, or give pools that are empty or of {theirs}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_meta::memory::Memory;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_first_one_says_which_cluster_it_is() {
        let catalog = Catalog::new(Arc::new(Memory::default()));
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(catalog.cluster(first).await.unwrap(), first);
        assert_eq!(catalog.cluster(second).await.unwrap(), first);
        catalog.check_cluster(first).await.unwrap();
        let refused = catalog.check_cluster(second).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(&first.to_string()), "{refused}");
    }

    #[tokio::test]
    async fn of_many_at_once_all_find_the_same() {
        let catalog = Catalog::new(Arc::new(Memory::default()));
        let all = (1..=16).map(|n| {
            let catalog = catalog.clone();
            async move { catalog.cluster(Uuid::from_u128(n)).await.unwrap() }
        });
        let found = futures::future::join_all(all).await;
        assert!(found.iter().all(|uuid| Some(uuid) == found.first()), "{found:?}");
    }
}
