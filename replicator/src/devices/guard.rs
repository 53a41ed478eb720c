//! Sees to it that there is a keeper while there are devices.

use std::collections::BTreeSet;
use std::time::Duration;

use lockstep_attach::device::Kind;
use lockstep_attach::keeper::{End, KeeperClient, KeeperError};

use super::{Devices, lock};

/// Pause before a keeper that cannot be called, or was killed, is called again.
const PAUSE: Duration = Duration::from_millis(200);

impl Devices {
    /// Notices when the keeper is killed, starts another one, and gives it everything again. Goes
    /// on for ever.
    pub async fn mind_keeper(&self) {
        let Some(keeper) = self.inner.keeper.clone() else { return };
        let mut told = String::new();
        loop {
            let again = if lock(&self.inner.open).is_empty() {
                false
            } else {
                match self.mind(&keeper).await {
                    Ok(again) => {
                        told.clear();
                        again
                    }
                    Err(why) => {
                        if why != told {
                            tracing::warn!(why, "block devices have no keeper");
                            told = why;
                        }
                        true
                    }
                }
            };
            if again {
                tokio::time::sleep(PAUSE).await;
            } else {
                self.inner.added.notified().await;
            }
        }
    }

    /// Gives the keeper what it lacks, and watches it. Returns whether it is wanted again at once.
    async fn mind(&self, keeper: &KeeperClient) -> Result<bool, String> {
        self.keep_missing(keeper).await?;
        tokio::select! {
            // Another device may have been kept by a keeper that was killed before this watched.
            () = self.inner.added.notified() => Ok(true),
            end = keeper.watch() => match end.map_err(|error| error.to_string())? {
                Some(End::Broken) => {
                    tracing::warn!("the keeper was killed; another one is started");
                    Ok(true)
                }
                None => Ok(true),
                // When the node shuts down no other is wanted.
                Some(End::Orderly) => Ok(false),
            },
        }
    }

    async fn keep_missing(&self, keeper: &KeeperClient) -> Result<(), String> {
        let kept = names(keeper.clone()).await.map_err(|error| error.to_string())?;
        let open: Vec<_> = {
            let open = lock(&self.inner.open);
            let missing = open.values().filter(|open| !kept.contains(&open.kept.token.name));
            missing.map(|open| (std::sync::Arc::clone(&open.device), open.kept.clone())).collect()
        };
        for (device, kept) in open {
            if kept.token.kind() == Kind::Fuse {
                device.keep().await.map_err(|error| error.to_string())?;
            } else {
                self.watch(&kept).await;
            }
        }
        Ok(())
    }
}

/// The names of all that a keeper has.
async fn names(keeper: KeeperClient) -> Result<BTreeSet<String>, KeeperError> {
    let listed = tokio::task::spawn_blocking(move || keeper.list()).await;
    // A call that panicked, or was cut off by the end of this process.
    let listed = listed.unwrap_or_else(|error| Err(KeeperError::Refused(error.to_string())))?;
    Ok(listed.into_iter().collect())
}
