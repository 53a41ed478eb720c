//! Where a node listens for peers, asked of the record store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use lockstep_core::id::NodeId;

use super::catalog::Catalog;
use crate::engine::Resolver;

/// Asks the record store, and remembers: while the store is down, known nodes stay reachable.
#[derive(Debug)]
pub struct CatalogResolver {
    catalog: Catalog,
    known: Mutex<BTreeMap<NodeId, String>>,
}

impl CatalogResolver {
    /// A resolver that knows nothing yet.
    #[must_use]
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog, known: Mutex::new(BTreeMap::new()) }
    }

    async fn address(&self, node: &NodeId) -> Result<String, String> {
        let found = self.catalog.node(node).await;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(Some(object)) => {
                known.insert(node.clone(), object.peer_address.clone());
                Ok(object.peer_address)
            }
            Ok(None) => Err(format!("the record store does not know node {node}")),
            Err(status) => known.get(node).cloned().ok_or_else(|| status.message().to_owned()),
        }
    }
}

#[async_trait]
impl Resolver for CatalogResolver {
    async fn peer_addr(&self, node: &NodeId) -> Result<SocketAddr, String> {
        let address = self.address(node).await?;
        let mut found = tokio::net::lookup_host(&address)
            .await
            .map_err(|e| format!("address {address} of node {node}: {e}"))?;
        found.next().ok_or_else(|| format!("address {address} of node {node} names no host"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockstep_meta::memory::Memory;
    use uuid::Uuid;

    use super::super::catalog::NodeObject;
    use super::*;

    #[tokio::test]
    async fn known_nodes_are_found_and_others_are_named() {
        let catalog = Catalog::new(Arc::new(Memory::default()));
        let name = NodeId::new("n1").unwrap();
        let node =
            NodeObject::new(name.clone(), "127.0.0.1:7".into(), "127.0.0.1:8".into(), Uuid::nil());
        catalog.put_node(&node).await.unwrap();
        let resolver = CatalogResolver::new(catalog);
        assert_eq!(resolver.peer_addr(&name).await, Ok("127.0.0.1:7".parse().unwrap()));
        let other = NodeId::new("n2").unwrap();
        assert!(resolver.peer_addr(&other).await.is_err_and(|why| why.contains("n2")));
    }
}
