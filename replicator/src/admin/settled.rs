//! Whether a node that was away is again what it was: the next one may be restarted then.

use std::time::Duration;

use lockstep_core::record::ReplicaState as InRecord;
use tonic::Status;

use super::Admin;
use super::liveness::{LOOK_LIMIT, Liveness};
use crate::engine::ReplicaState;

const PAUSE: Duration = Duration::from_secs(1);

impl Admin {
    /// Returns when the devices that the daemon before this one left are served, and the copies
    /// here of all volumes in use are in sync. Says in the log what it waits for.
    pub async fn wait_until_settled(&self) {
        let mut told = Vec::new();
        loop {
            let waits = match self.unsettled().await {
                Ok(waits) if waits.is_empty() => return,
                Ok(waits) => waits,
                Err(status) => vec![status.message().to_owned()],
            };
            if waits != told {
                tracing::info!(?waits, "not settled yet");
                told = waits;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What is not as it was, in words.
    pub(super) async fn unsettled(&self) -> Result<Vec<String>, Status> {
        let left = self.inner.devices.left();
        let mut waits: Vec<String> =
            left.iter().map(|kept| format!("the device of {}", kept.name)).collect();
        for replica in self.inner.engine.list_replicas().await {
            let ReplicaState::Open(open) = &replica.state else { continue };
            let Some(stored) = self.inner.catalog.record(replica.volume).await? else { continue };
            let record = stored.value;
            let is_late = |entry: &lockstep_core::record::ReplicaEntry| {
                matches!(entry.state, InRecord::New | InRecord::Out { .. })
            };
            // Nobody brings the copy of a volume up to date that is not in use. Its record does not
            // tell: it may name a node that is dead.
            if record.replica(open.replica).is_some_and(is_late)
                && !matches!(
                    self.liveness(&record, LOOK_LIMIT).await?,
                    Liveness::None | Liveness::Gone
                )
            {
                waits.push(format!("the copy of {}", replica.volume_name));
            }
        }
        Ok(waits)
    }
}
