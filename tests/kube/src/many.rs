//! More records than the API server sends at a time.

use crate::cluster::{Cluster, PATIENT, User};
use anyhow::ensure;
use bytes::Bytes;
use lockstep_meta::{Expect, Meta, list_all};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::task::JoinSet;

/// More than twice what the API server is asked for at a time.
const VOLUMES: usize = 600;
const NODES: usize = 3;
const NAMESPACE: &str = "many";

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    let store: Arc<dyn Meta> = Arc::new(cluster.store(User::Admin, NAMESPACE, PATIENT).await?);
    let keys: BTreeSet<String> = (0..VOLUMES)
        .map(|n| format!("volume/pvc-{n}"))
        .chain((0..NODES).map(|n| format!("node/n{n}")))
        .collect();
    let mut makers = JoinSet::new();
    for part in 0..8 {
        let keys: Vec<String> = keys.iter().skip(part).step_by(8).cloned().collect();
        let store = Arc::clone(&store);
        makers.spawn(async move {
            for key in keys {
                store.put_if(&key, Expect::Absent, Bytes::from(key.clone())).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(made) = makers.join_next().await {
        made??;
    }
    for prefix in ["", "volume/", "volume/pvc-1", "node/", "node/n1", "none/"] {
        let wanted: Vec<&String> = keys.iter().filter(|key| key.starts_with(prefix)).collect();
        let listed = list_all(&*store, prefix).await?;
        let seen: Vec<&String> = listed.iter().map(|entry| &entry.key).collect();
        ensure!(seen == wanted, "under {prefix:?}: {} keys of {}", seen.len(), wanted.len());
        ensure!(listed.iter().all(|e| e.value == e.key.as_bytes()), "a value is another key's");
    }
    let page = store.list("volume/", Some("volume/pvc-2"), 7).await?;
    let rest = keys.iter().filter(|key| key.as_str() > "volume/pvc-2").take(7);
    ensure!(
        page.entries.iter().map(|entry| &entry.key).eq(rest),
        "a page from the midst: {page:?}"
    );
    Ok(format!("{} records in chunks, in order", keys.len()))
}
