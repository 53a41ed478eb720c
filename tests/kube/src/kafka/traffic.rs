//! What went from copy to copy of the brokers' volumes.

use super::brokers::{self, BROKERS};
use crate::lab::Lab;
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long copies may take to be built.
const LIMIT: Duration = Duration::from_secs(600);

/// Totals of a volume, as its primary counts them since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    epoch: u64,
    resync: u64,
    rebuild: u64,
}

/// Bytes that were moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// To copies that came back.
    pub(crate) resync: u64,
    /// To new copies.
    pub(crate) rebuild: u64,
}

/// The totals of all brokers' volumes at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Totals(BTreeMap<String, Total>);

/// The volumes of all brokers.
pub(crate) async fn volumes(lab: &Lab, space: &str) -> anyhow::Result<Vec<String>> {
    let mut volumes = Vec::new();
    for broker in 0..BROKERS {
        volumes.push(lab.volume_of(space, &brokers::claim(broker)).await?);
    }
    Ok(volumes)
}

/// A volume as a daemon tells it.
async fn shown(lab: &Lab, volume: &str) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&lab.lockstep(&["--json", "volume", "show", volume]).await?)?)
}

impl Totals {
    pub(crate) async fn now(lab: &Lab, volumes: &[String]) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for volume in volumes {
            let shown = shown(lab, volume).await?;
            let counted = |name: &str| shown["counters"][name].as_u64();
            let total = Total {
                epoch: shown["epoch"].as_u64().context("a volume has an epoch")?,
                resync: counted("resync_bytes").with_context(|| format!("not counted: {shown}"))?,
                rebuild: counted("rebuild_bytes").unwrap_or_default(),
            };
            all.insert(volume.clone(), total);
        }
        Ok(Self(all))
    }

    /// What was moved since an earlier moment. A new primary begins to count anew.
    pub(crate) fn since(&self, earlier: &Self) -> Moved {
        let mut moved = Moved::default();
        for (volume, now) in &self.0 {
            let before = earlier.0.get(volume).filter(|before| before.epoch == now.epoch);
            let before = before.copied().unwrap_or_default();
            moved.resync += now.resync - before.resync;
            moved.rebuild += now.rebuild - before.rebuild;
        }
        moved
    }
}

/// Which copies have to be in sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum All {
    /// Every one of which the record tells.
    Told,
    /// Those whose nodes are there: one whose node is dead is kept in mind until it is back.
    Reached,
}

/// Waits until every volume has three copies in sync, and no others.
pub(crate) async fn wait_until_whole(
    lab: &Lab,
    volumes: &[String],
    all: All,
) -> anyhow::Result<()> {
    for volume in volumes {
        let whole = async || shown(lab, volume).await.is_ok_and(|shown| is_whole(&shown, all));
        if !wait_for(LIMIT, whole).await {
            let seen = shown(lab, volume).await?;
            ensure!(false, "not every copy is in sync: {seen}");
        }
    }
    Ok(())
}

fn is_whole(shown: &Value, all: All) -> bool {
    let Some(replicas) = shown["replicas"].as_array() else { return false };
    let is_meant = |replica: &&Value| all == All::Told || replica["connected"] == true;
    let meant: Vec<&Value> = replicas.iter().filter(is_meant).collect();
    meant.len() == 3 && meant.iter().all(|replica| replica["state"] == "in_sync")
}
