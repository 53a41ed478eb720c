//! Whether a node that was away is again what it was: the next one may be restarted then.

use std::time::{Duration, Instant};

use lockstep_core::record::{ReplicaEntry, ReplicaState as InRecord};
use tonic::Status;

use super::Admin;
use super::liveness::Liveness;
use crate::engine::ReplicaState;

/// Pause between two looks, and when that has taken for so long: a resync may take hours.
const PAUSE: Duration = Duration::from_secs(1);
const LATER: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(60);

impl Admin {
    /// Returns when the devices that the daemon before this one left are served, and the copies
    /// here of all volumes in use are in sync. Says in the log what it waits for.
    pub async fn wait_until_settled(&self) {
        let (mut told, begin) = (Vec::new(), Instant::now());
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
            tokio::time::sleep(pause(begin.elapsed())).await;
        }
    }

    /// What is not as it was, in words.
    pub(super) async fn unsettled(&self) -> Result<Vec<String>, Status> {
        let left = self.inner.devices.left();
        let mut waits: Vec<String> =
            left.iter().map(|kept| format!("the device of {}", kept.name)).collect();
        let (mut names, mut late) = (Vec::new(), Vec::new());
        for replica in self.inner.engine.list_replicas().await {
            let ReplicaState::Open(open) = &replica.state else { continue };
            let Some(stored) = self.inner.catalog.record(replica.volume).await? else { continue };
            if stored.value.replica(open.replica).is_some_and(is_late) {
                names.push(replica.volume_name);
                late.push(stored.value);
            }
        }
        // Nobody brings the copy of a volume up to date that is not in use. Its record does not
        // tell: it may name a node that is dead.
        for (name, primary) in names.iter().zip(self.liveness_of_all(&late).await?) {
            if !matches!(primary, Liveness::None | Liveness::Gone) {
                waits.push(format!("the copy of {name}"));
            }
        }
        Ok(waits)
    }
}

fn is_late(entry: &ReplicaEntry) -> bool {
    matches!(entry.state, InRecord::New | InRecord::Out { .. })
}

/// How long to wait for the next look.
fn pause(waited: Duration) -> Duration {
    if waited < LONG { PAUSE } else { LATER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_looked_at_less_often() {
        assert_eq!([Duration::ZERO, LONG].map(pause), [PAUSE, LATER]);
    }
}
