//! The file that says whose a pool is.

use std::fs;
use std::io;
use std::path::Path;

use lockstep_core::id::NodeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::PoolError;
use super::fs::{failed, replace_file};

/// Name of the file in the pool's directory.
pub(crate) const FILE: &str = "pool.json";
/// Newest format known.
const VERSION: u32 = 1;

/// Whose a pool is. Written once, when the pool is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub(crate) version: u32,
    pub(crate) cluster: Uuid,
    pub(crate) node: NodeId,
    pub(crate) pool: String,
    pub(crate) uuid: Uuid,
}

impl Identity {
    /// The identity of a pool that is made now.
    pub(crate) fn new(cluster: Uuid, node: &NodeId, pool: &str) -> Self {
        let (node, pool) = (node.clone(), pool.to_owned());
        Self { version: VERSION, cluster, node, pool, uuid: Uuid::new_v4() }
    }

    /// Reads the identity; `None` if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, PoolError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let file = dir.join(FILE);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("read", &file)(e)),
        };
        let bad = |e: serde_json::Error| PoolError::BadIdentity {
            file: file.clone(),
            why: e.to_string(),
        };
        let found = serde_json::from_slice::<Versioned>(&bytes).map_err(bad)?.version;
        if found > VERSION {
            let dir = dir.to_owned();
            return Err(PoolError::FromTheFuture { dir, found, known: VERSION });
        }
        serde_json::from_slice(&bytes).map(Some).map_err(bad)
    }

    /// Writes it, durably.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), PoolError> {
        let file = dir.join(FILE);
        let text = serde_json::to_vec(self)
            .map_err(|e| PoolError::BadIdentity { file, why: e.to_string() })?;
        replace_file(dir, FILE, &text)
    }

    /// Refuses a pool that was made for somebody else.
    pub(crate) fn check(
        &self,
        dir: &Path,
        cluster: Uuid,
        node: &NodeId,
        pool: &str,
    ) -> Result<(), PoolError> {
        let questions = [
            ("cluster", self.cluster.to_string(), cluster.to_string()),
            ("node", self.node.to_string(), node.to_string()),
            ("pool", self.pool.clone(), pool.to_owned()),
        ];
        for (what, theirs, ours) in questions {
            if theirs != ours {
                return Err(PoolError::Foreign { dir: dir.to_owned(), what, theirs, ours });
            }
        }
        Ok(())
    }
}
