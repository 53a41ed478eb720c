//! Which pools a node has: one that is suddenly another one is refused, since its disk may just not
//! be mounted.

use std::collections::BTreeMap;

use lockstep_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use super::catalog::NodeObject;
use super::peers::ASK_LIMIT;
use super::{Admin, names};
use crate::engine::PoolInfo;

/// Attempts against the node, which introduces itself meanwhile.
const ATTEMPTS: usize = 10;

/// The pools that a node is known to have from now on: those that it had, and those that it has.
/// Fails with DATA_LOSS if one of them is another one than before.
pub(super) fn known_pools(
    before: Option<&NodeObject>,
    now: &[PoolInfo],
) -> Result<BTreeMap<String, Uuid>, Status> {
    let mut known = before.map(|node| node.pool_uuids.clone()).unwrap_or_default();
    for PoolInfo { name, dir, uuid, .. } in now {
        let had = *known.entry(name.clone()).or_insert(*uuid);
        if had != *uuid {
            let node = before.map(|node| node.name.to_string()).unwrap_or_default();
            return Err(Status::data_loss(format!(
                "pool {name} in {} is not the one that node {node} had (it had {had}, this is \
                 {uuid}): nothing of it is used. If its disk is not mounted, mount it and restart \
                 the daemon. If what was in it is lost for good: \
                 lockstep node forget-pool {node} {name}",
                dir.display()
            )));
        }
    }
    Ok(known)
}

impl Admin {
    /// Forgets a pool that a node has lost. Returns whether it was known.
    pub(super) async fn forget_pool(
        &self,
        request: &v1::ForgetPoolRequest,
    ) -> Result<bool, Status> {
        let name = names::node(&request.node)?;
        let pool = &request.pool;
        for _ in 0..ATTEMPTS {
            let mut node = self.inner.catalog.known_node(&name).await?;
            let before = node.clone();
            let Some(uuid) = node.pool_uuids.remove(pool) else { return Ok(false) };
            let status = self.ask_one(&node, ASK_LIMIT).await;
            let pools = status.info.iter().flat_map(|info| &info.pools);
            if pools.clone().any(|p| p.uuid == uuid.to_string()) {
                return Err(Status::failed_precondition(format!(
                    "node {name} has pool {pool}: nothing is lost; to give the pool up, start its \
                     daemon without it first"
                )));
            }
            match self.inner.catalog.replace_node(&before, &node).await {
                Ok(()) => {
                    tracing::info!(node = %name, pool, %uuid, "the pool is forgotten");
                    return Ok(true);
                }
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::aborted(format!("node {name} keeps changing; try again")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::id::NodeId;

    fn info(name: &str, uuid: u128) -> PoolInfo {
        PoolInfo {
            name: name.to_owned(),
            dir: "/p".into(),
            uuid: Uuid::from_u128(uuid),
            capacity_bytes: 0,
            free_bytes: 0,
            reserved_bytes: 0,
            room_bytes: 0,
            replicas: 0,
        }
    }

    #[test]
    fn a_pool_that_is_another_one_is_refused_and_new_ones_are_not() {
        let first = known_pools(None, &[info("a", 1)]).unwrap();
        let name = NodeId::new("n1").unwrap();
        let mut node = NodeObject::new(name, String::new(), String::new(), Uuid::nil());
        node.pool_uuids = first;
        let both = known_pools(Some(&node), &[info("a", 1), info("b", 2)]).unwrap();
        assert_eq!(both.len(), 2);
        let kept = known_pools(Some(&node), &[info("b", 2)]).unwrap();
        assert_eq!(kept, both, "one that is not there now is remembered");
        let refused = known_pools(Some(&node), &[info("a", 3)]).unwrap_err();
        assert_eq!(refused.code(), Code::DataLoss);
        assert!(refused.message().contains("forget-pool n1 a"), "{}", refused.message());
    }
}
