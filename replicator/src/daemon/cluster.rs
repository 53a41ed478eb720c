//! Which cluster a daemon is of, where nobody told it.

use std::time::Duration;

use anyhow::ensure;
use uuid::Uuid;

use crate::admin::Catalog;
use crate::engine::PoolConfig;
use crate::pool;

/// Pause before the record store is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// The cluster: the one that was told, else the one of the pools, else the one of the record store.
/// A node that has data so needs no record store to serve it to others. Waits for the record store
/// if that is who knows.
pub(super) async fn find(
    told: Option<Uuid>,
    pools: &[PoolConfig],
    catalog: &Catalog,
) -> anyhow::Result<Uuid> {
    if let Some(cluster) = told {
        return Ok(cluster);
    }
    let pools = pools.to_vec();
    if let Some(cluster) = tokio::task::spawn_blocking(move || of_pools(&pools)).await?? {
        return Ok(cluster);
    }
    let proposed = Uuid::new_v4();
    let mut told = String::new();
    loop {
        match catalog.cluster(proposed).await {
            Ok(cluster) => {
                tracing::info!(%cluster, is_new = cluster == proposed, "found the cluster");
                return Ok(cluster);
            }
            Err(status) if status.message() == told => {}
            Err(status) => {
                status.message().clone_into(&mut told);
                tracing::warn!(why = told, "waiting for the record store, to know the cluster");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The cluster of which all pools are that were made already.
fn of_pools(pools: &[PoolConfig]) -> anyhow::Result<Option<Uuid>> {
    let mut found: Option<(Uuid, &PoolConfig)> = None;
    for config in pools {
        let Some(cluster) = pool::cluster_of(&config.dir)? else { continue };
        let (known, other) = *found.get_or_insert((cluster, config));
        ensure!(
            known == cluster,
            "pool {} in {} is of cluster {known}, and pool {} in {} of cluster {cluster}; a \
             daemon is of one cluster: leave one of them out",
            other.name,
            other.dir.display(),
            config.name,
            config.dir.display()
        );
    }
    Ok(found.map(|(cluster, _)| cluster))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_meta::memory::Memory;
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    fn config(name: &str, dir: &Path) -> PoolConfig {
        PoolConfig {
            name: name.to_owned(),
            dir: dir.join(name),
            capacity_bytes: None,
            overcommit_percent: 100,
            reserve_bytes: 0,
        }
    }

    fn make(config: &PoolConfig, cluster: Uuid) {
        fs::create_dir(&config.dir).unwrap();
        let identity = format!(
            r#"{{"version":1,"cluster":"{cluster}","node":"n","pool":"p","uuid":"{cluster}"}}"#
        );
        fs::write(config.dir.join("pool.json"), identity).unwrap();
    }

    #[tokio::test]
    async fn pools_know_it_before_the_record_store_does() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::new(Arc::new(Memory::default()));
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let pools = [config("new", dir.path()), config("old", dir.path())];
        let made = find(None, &pools, &catalog).await.unwrap();
        assert_eq!(find(None, &pools, &catalog).await.unwrap(), made);
        make(&pools[1], one);
        assert_eq!(find(None, &pools, &catalog).await.unwrap(), one);
        assert_eq!(find(Some(two), &pools, &catalog).await.unwrap(), two);
        make(&pools[0], two);
        let refused = find(None, &pools, &catalog).await.unwrap_err().to_string();
        assert!(refused.contains("one cluster") && refused.contains(&two.to_string()), "{refused}");
    }
}
