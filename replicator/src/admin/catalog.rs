//! What the cluster remembers of nodes and volumes: objects in the record store.
//!
//! - `cluster`: which cluster this is.
//! - `node/<name>`: a node and where it is reached.
//! - `volume/<name>`: a volume as its owner wanted it, and how far its making has come.
//! - `record/<uid>`: the volume's record, of which the core knows the rules.
//! - `evacuate/<node>`: a node that is being emptied.
//! - `cordon/<node>`: a node that the orchestrator has cordoned.
//! - `gone/<node>/<rid>`: a replica that its node is to remove if no record names it.
//! - `snapshot/<name>`: a snapshot, and where its copies are.
//! - `dropped/<node>/<uid>`: a copy of a snapshot that its node is to remove.
//! - `labels/<node>`: labels that were put on a node.

mod cluster;
mod cordon;
mod dropped;
mod gone;
mod labels;

pub(super) use dropped::Dropped;
pub(super) use labels::PutLabels;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use lockstep_core::cluster::locality::PlacementId;
use lockstep_core::id::{Gen, Lineage, NodeId, ReplicaId, Revision, SnapshotId, VolumeId};
use lockstep_core::record::Record;
use lockstep_core::throttle::RateLimits;
use lockstep_meta::{Expect, Meta, PutError, list_all};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::Status;
use uuid::Uuid;

use super::refuse;
use crate::engine::record_key;

/// Version of these objects that this build writes. A higher one is refused.
const OBJECT_VERSION: u32 = 1;

/// A node as it introduced itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObject {
    version: u32,
    /// Its name.
    pub name: NodeId,
    /// Where primaries reach its replicas: `host:port`.
    pub peer_address: String,
    /// Where its admin API is: `host:port`.
    pub admin_address: String,
    /// Names of its pools.
    pub pools: Vec<String>,
    /// The pools that it has had, by name.
    #[serde(default)]
    pub pool_uuids: BTreeMap<String, Uuid>,
    /// Where it stands, as far as copies are spread over zones.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its labels, as its daemon was told them; the zone is among them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Random per process: tells a restart.
    pub process: Uuid,
    /// Version of its daemon.
    pub daemon_version: String,
}

impl NodeObject {
    /// A node of the present version.
    pub fn new(name: NodeId, peer_address: String, admin_address: String, process: Uuid) -> Self {
        let daemon_version = env!("CARGO_PKG_VERSION").to_owned();
        let (version, pools) = (OBJECT_VERSION, Vec::new());
        Self {
            version,
            name,
            peer_address,
            admin_address,
            pools,
            pool_uuids: BTreeMap::new(),
            zone: None,
            labels: BTreeMap::new(),
            process,
            daemon_version,
        }
    }
}

/// How far a volume's making or unmaking has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Stage {
    Creating,
    Ready,
    Deleting,
}

/// One copy that a new volume is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) rid: ReplicaId,
    pub(super) node: NodeId,
}

/// A volume as its owner wanted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VolumeObject {
    version: u32,
    pub(super) name: String,
    pub(super) uid: VolumeId,
    pub(super) lineage: Lineage,
    pub(super) size_bytes: u64,
    pub(super) repl: u8,
    pub(super) min_in_sync: u8,
    pub(super) pool: String,
    /// Where its owner wanted the copies; empty: anywhere.
    pub(super) asked_nodes: Vec<NodeId>,
    pub(super) stage: Stage,
    /// Where the first copies are made. Kept, so that a retry makes the same.
    pub(super) placement: Vec<Place>,
    /// How its block devices are made.
    #[serde(default = "super::names::any_door")]
    pub(super) door: String,
    /// When a write is durable.
    #[serde(default = "super::names::volatile")]
    pub(super) write_cache: String,
    /// Of whoever made it.
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    /// What it begins with, if not empty.
    #[serde(default)]
    pub(super) origin: Option<Origin>,
    /// Label of nodes over whose values its copies are spread.
    #[serde(default = "super::names::zone_label")]
    pub(super) spread: String,
    /// A copy goes where it is served.
    #[serde(default)]
    pub(super) follow: bool,
    /// Its copies take all their space when they are made.
    #[serde(default)]
    pub(super) thick: bool,
    /// How fast it may be used.
    #[serde(default)]
    pub(super) limits: Limits,
    /// Nodes that its owner preferred, the best first.
    #[serde(default)]
    pub(super) preferred: Vec<NodeId>,
    /// Which label moves with its copies.
    #[serde(default)]
    pub(super) placement_id: Option<PlacementId>,
}

/// How fast a volume may be used: most requests, and bytes, in a second; 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    pub(super) iops: u64,
    pub(super) bytes_per_s: u64,
}

impl From<Limits> for RateLimits {
    fn from(limits: Limits) -> Self {
        Self { iops: limits.iops, bytes_per_s: limits.bytes_per_s }
    }
}

impl VolumeObject {
    /// A volume that is to be made.
    pub(super) fn new(wanted: &super::names::Wanted, placement: Vec<Place>) -> Self {
        Self {
            version: OBJECT_VERSION,
            name: wanted.name.clone(),
            uid: VolumeId(Uuid::new_v4()),
            lineage: Lineage(Uuid::new_v4()),
            size_bytes: wanted.size_bytes,
            repl: wanted.repl,
            min_in_sync: wanted.min_in_sync,
            pool: wanted.pool.clone(),
            asked_nodes: wanted.nodes.clone(),
            stage: Stage::Creating,
            placement,
            door: wanted.door.clone(),
            write_cache: wanted.write_cache.clone(),
            annotations: wanted.annotations.clone(),
            origin: None,
            spread: wanted.spread.clone(),
            follow: wanted.follow,
            thick: wanted.thick,
            limits: wanted.limits,
            preferred: wanted.prefer.clone(),
            placement_id: None,
        }
    }

    /// The same with other numbers of copies and other limits.
    pub(super) fn wanting(self, repl: u8, min_in_sync: u8, limits: Limits) -> Self {
        Self { repl, min_in_sync, limits, ..self }
    }

    /// The same at another stage.
    pub(super) fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

/// A snapshot of a volume, which may outlive it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotObject {
    version: u32,
    pub(super) name: String,
    /// Of this attempt; copies of another one are not this snapshot's.
    pub(super) uid: SnapshotId,
    pub(super) volume: String,
    pub(super) volume_uid: VolumeId,
    pub(super) stage: Stage,
    pub(super) pool: String,
    pub(super) size_bytes: u64,
    /// No block of it has a higher stamp.
    pub(super) r#gen: Gen,
    pub(super) created_unix_ms: u64,
    /// Where its copies are; while it is being taken, where they may be.
    pub(super) nodes: Vec<NodeId>,
    pub(super) pause_us: u64,
    /// The volume that it was taken for, to be made from it: it goes when that is made.
    #[serde(default)]
    pub(super) made_for: Option<String>,
    /// Copies that its volume was to have; 0: not told.
    #[serde(default)]
    pub(super) repl: u8,
    /// Nodes that are to make a copy anew, and may have some of it.
    #[serde(default)]
    pub(super) making: Vec<NodeId>,
    /// Blocks that no copy could give when one was made anew.
    #[serde(default)]
    pub(super) lost_blocks: u64,
    /// Nodes whose copies lack such blocks; it was not always written down.
    #[serde(default)]
    pub(super) gaps_on: Vec<NodeId>,
}

impl SnapshotObject {
    /// One that is to be taken.
    pub(super) fn new(name: &str, of: &VolumeObject, nodes: Vec<NodeId>) -> Self {
        Self {
            version: OBJECT_VERSION,
            name: name.to_owned(),
            uid: SnapshotId(Uuid::new_v4()),
            volume: of.name.clone(),
            volume_uid: of.uid,
            stage: Stage::Creating,
            pool: of.pool.clone(),
            size_bytes: 0,
            r#gen: Gen(0),
            created_unix_ms: 0,
            nodes,
            pause_us: 0,
            made_for: None,
            repl: of.repl,
            making: Vec::new(),
            lost_blocks: 0,
            gaps_on: Vec::new(),
        }
    }

    /// A node made a copy, in which so many blocks are missing.
    pub(super) fn enter(&mut self, node: &NodeId, gaps: u64) {
        self.making.retain(|n| n != node);
        self.nodes.push(node.clone());
        if gaps == 0 {
            return self.forget_gaps(node);
        }
        self.lost_blocks = self.lost_blocks.max(gaps);
        if !self.gaps_on.contains(node) {
            self.gaps_on.push(node.clone());
        }
    }

    /// A node is to have no copy, and to make none.
    pub(super) fn forget(&mut self, node: &NodeId) {
        // One that makes a copy had one once.
        self.nodes.retain(|n| n != node || self.making.contains(n));
        self.making.retain(|n| n != node);
        self.forget_gaps(node);
    }

    /// No copy on that node lacks blocks. If no other does, none are lost.
    fn forget_gaps(&mut self, node: &NodeId) {
        let had = self.gaps_on.len();
        self.gaps_on.retain(|n| n != node);
        if self.gaps_on.is_empty() && had > 0 {
            self.lost_blocks = 0;
        }
    }

    /// Every node that has a copy, or may have some of it.
    pub(super) fn whereabouts(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.iter().chain(&self.making)
    }

    /// The same at another stage.
    pub(super) fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

/// What a volume begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// What was asked for: a snapshot's or a volume's name.
    pub(super) name: String,
    /// The snapshot.
    pub(super) snapshot: SnapshotId,
    /// No block of it has a higher stamp.
    pub(super) r#gen: Gen,
}

/// A node that is being emptied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Evacuation {
    version: u32,
    node: NodeId,
}

/// A value and the revision to change it by.
#[derive(Clone, Debug)]
pub(super) struct Stored<T> {
    pub(super) value: T,
    pub(super) revision: Revision,
}

/// The record store, seen as these objects.
#[derive(Clone, Debug)]
pub struct Catalog {
    meta: Arc<dyn Meta>,
}

fn node_key(node: &NodeId) -> String {
    format!("node/{node}")
}

fn volume_key(name: &str) -> String {
    format!("volume/{name}")
}

fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Status> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let garbled = |e: serde_json::Error| {
        Status::internal(format!("object `{key}` of the record store cannot be read: {e}"))
    };
    let found = serde_json::from_slice::<Versioned>(value).map_err(garbled)?.version;
    if found > OBJECT_VERSION {
        return Err(Status::failed_precondition(format!(
            "object `{key}` is of version {found}, this daemon knows {OBJECT_VERSION}: upgrade it"
        )));
    }
    serde_json::from_slice(value).map_err(garbled)
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, Status> {
    let bytes = serde_json::to_vec(value).map_err(|e| Status::internal(e.to_string()))?;
    Ok(Bytes::from(bytes))
}

impl Catalog {
    /// Objects in this store.
    pub fn new(meta: Arc<dyn Meta>) -> Self {
        Self { meta }
    }

    async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<Stored<T>>, Status> {
        match self.meta.get(key).await.map_err(|e| refuse::unread(&e))? {
            None => Ok(None),
            Some(found) => {
                let value = decode(key, &found.value)?;
                Ok(Some(Stored { value, revision: found.revision }))
            }
        }
    }

    async fn list<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<Stored<T>>, Status> {
        let entries = list_all(self.meta.as_ref(), prefix).await.map_err(|e| refuse::unread(&e))?;
        let mut all = Vec::new();
        for entry in entries {
            match decode(&entry.key, &entry.value) {
                Ok(value) => all.push(Stored { value, revision: entry.revision }),
                // One bad object must not hide all others.
                Err(status) => tracing::warn!(key = entry.key, why = status.message(), "skipped"),
            }
        }
        Ok(all)
    }

    async fn put(&self, key: &str, expected: Option<Revision>, value: Bytes) -> Result<(), Status> {
        let expected = expected.map_or(Expect::Absent, Expect::Revision);
        match self.meta.put_if(key, expected, value).await {
            Ok(_) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), Status> {
        let Some(found) = self.meta.get(key).await.map_err(|e| refuse::unread(&e))? else {
            return Ok(());
        };
        match self.meta.delete_if(key, found.revision).await {
            Ok(()) | Err(PutError::Conflict { current: None }) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }

    /// Fails if the record store does not answer.
    pub async fn ping(&self) -> Result<(), Status> {
        self.meta.list("node/", None, 1).await.map(drop).map_err(|e| refuse::unread(&e))
    }

    /// All nodes, by name.
    pub(super) async fn nodes(&self) -> Result<Vec<NodeObject>, Status> {
        Ok(self.list("node/").await?.into_iter().map(|stored| stored.value).collect())
    }

    /// One node.
    pub async fn node(&self, name: &NodeId) -> Result<Option<NodeObject>, Status> {
        Ok(self.get(&node_key(name)).await?.map(|stored| stored.value))
    }

    /// One node, or NOT_FOUND.
    pub(super) async fn known_node(&self, name: &NodeId) -> Result<NodeObject, Status> {
        self.node(name).await?.ok_or_else(|| {
            Status::not_found(format!("there is no node `{name}`; `lockstep node list` shows them"))
        })
    }

    /// Introduces a node, or corrects what is known of it.
    pub(super) async fn put_node(&self, node: &NodeObject) -> Result<(), Status> {
        let key = node_key(&node.name);
        let found = self.get::<NodeObject>(&key).await?;
        if found.as_ref().is_some_and(|stored| stored.value == *node) {
            return Ok(());
        }
        self.put(&key, found.map(|stored| stored.revision), encode(node)?).await
    }

    /// Changes what is known of a node, if it is still as it was read.
    pub(super) async fn replace_node(
        &self,
        before: &NodeObject,
        after: &NodeObject,
    ) -> Result<(), Status> {
        let key = node_key(&before.name);
        match self.get::<NodeObject>(&key).await? {
            Some(found) if found.value == *before => {
                self.put(&key, Some(found.revision), encode(after)?).await
            }
            _ => Err(Status::aborted("the node has just changed; try again")),
        }
    }

    /// Forgets a node.
    pub(super) async fn delete_node(&self, name: &NodeId) -> Result<(), Status> {
        self.delete(&node_key(name)).await
    }

    /// The nodes that are being emptied.
    pub(super) async fn evacuations(&self) -> Result<BTreeSet<NodeId>, Status> {
        let found = self.list::<Evacuation>("evacuate/").await?;
        Ok(found.into_iter().map(|stored| stored.value.node).collect())
    }

    /// A node is to be emptied.
    pub(super) async fn put_evacuation(&self, node: &NodeId) -> Result<(), Status> {
        let value = encode(&Evacuation { version: OBJECT_VERSION, node: node.clone() })?;
        match self.meta.put_if(&format!("evacuate/{node}"), Expect::Absent, value).await {
            Ok(_) | Err(PutError::Conflict { current: Some(_) }) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }

    /// A node is not to be emptied any more.
    pub(super) async fn delete_evacuation(&self, node: &NodeId) -> Result<(), Status> {
        self.delete(&format!("evacuate/{node}")).await
    }

    /// All volumes, by name.
    pub(super) async fn volumes(&self) -> Result<Vec<VolumeObject>, Status> {
        Ok(self.list("volume/").await?.into_iter().map(|stored| stored.value).collect())
    }

    /// One volume.
    pub(super) async fn volume(&self, name: &str) -> Result<Option<Stored<VolumeObject>>, Status> {
        self.get(&volume_key(name)).await
    }

    /// Writes a volume that is as expected.
    pub(super) async fn put_volume(
        &self,
        expected: Option<Revision>,
        volume: &VolumeObject,
    ) -> Result<(), Status> {
        self.put(&volume_key(&volume.name), expected, encode(volume)?).await
    }

    /// Forgets a volume.
    pub(super) async fn delete_volume(&self, name: &str) -> Result<(), Status> {
        self.delete(&volume_key(name)).await
    }

    /// The record of a volume.
    pub(super) async fn record(&self, uid: VolumeId) -> Result<Option<Stored<Record>>, Status> {
        let key = record_key(uid);
        let Some(found) = self.meta.get(&key).await.map_err(|e| refuse::unread(&e))? else {
            return Ok(None);
        };
        let value = Record::from_bytes(&found.value)
            .map_err(|e| Status::internal(format!("{key} of the record store: {e}")))?;
        Ok(Some(Stored { value, revision: found.revision }))
    }

    /// Writes a record that is as expected.
    pub(super) async fn put_record(
        &self,
        expected: Option<Revision>,
        record: &Record,
    ) -> Result<(), Status> {
        self.put(&record_key(record.uid), expected, Bytes::from(record.to_bytes())).await
    }

    /// Forgets a record.
    pub(super) async fn delete_record(&self, uid: VolumeId) -> Result<(), Status> {
        self.delete(&record_key(uid)).await
    }

    /// All snapshots, by name.
    pub(super) async fn snapshots(&self) -> Result<Vec<SnapshotObject>, Status> {
        Ok(self.list("snapshot/").await?.into_iter().map(|stored| stored.value).collect())
    }

    /// One snapshot.
    pub(super) async fn snapshot(
        &self,
        name: &str,
    ) -> Result<Option<Stored<SnapshotObject>>, Status> {
        self.get(&format!("snapshot/{name}")).await
    }

    /// Writes a snapshot that is as expected.
    pub(super) async fn put_snapshot(
        &self,
        expected: Option<Revision>,
        snapshot: &SnapshotObject,
    ) -> Result<(), Status> {
        self.put(&format!("snapshot/{}", snapshot.name), expected, encode(snapshot)?).await
    }

    /// Forgets a snapshot that is as expected.
    pub(super) async fn delete_snapshot(
        &self,
        name: &str,
        expected: Revision,
    ) -> Result<(), Status> {
        match self.meta.delete_if(&format!("snapshot/{name}"), expected).await {
            Ok(()) | Err(PutError::Conflict { current: None }) => Ok(()),
            Err(error) => Err(refuse::unwritten(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_meta::memory::Memory;
    use tonic::Code;

    #[tokio::test]
    async fn nodes_are_introduced_corrected_and_listed() {
        let catalog = Catalog::new(Arc::new(Memory::default()));
        let name = NodeId::new("n1").unwrap();
        let mut node = NodeObject::new(name.clone(), "a:1".into(), "a:2".into(), Uuid::nil());
        catalog.put_node(&node).await.unwrap();
        node.peer_address = "b:1".to_owned();
        catalog.put_node(&node).await.unwrap();
        catalog.put_node(&node).await.unwrap();
        assert_eq!(catalog.nodes().await.unwrap(), [node.clone()]);
        assert_eq!(catalog.known_node(&name).await.unwrap(), node);
        let other = NodeId::new("n2").unwrap();
        assert_eq!(catalog.known_node(&other).await.unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_snapshot_lacks_blocks_for_as_long_as_one_of_its_copies_does() {
        let wanted = serde_json::json!({
            "version": 1, "name": "s", "uid": Uuid::nil(), "volume": "v", "volume_uid": Uuid::nil(),
            "stage": "ready", "pool": "default", "size_bytes": 4096, "gen": 1, "created_unix_ms": 0,
            "nodes": ["a"], "pause_us": 0, "making": ["b", "c"], "lost_blocks": 1,
        });
        let mut earlier: SnapshotObject = serde_json::from_value(wanted).unwrap();
        let node = |name| NodeId::new(name).unwrap();
        let (b, c) = (node("b"), node("c"));
        earlier.enter(&c, 0);
        assert_eq!(earlier.lost_blocks, 1, "nobody wrote down where");
        let mut object = SnapshotObject { making: vec![b.clone(), c.clone()], ..earlier };
        object.nodes = vec![node("a")];
        object.enter(&b, 3);
        object.enter(&c, 2);
        assert_eq!((object.lost_blocks, object.nodes.len(), object.making.len()), (3, 3, 0));
        object.forget(&b);
        assert_eq!((object.lost_blocks, &object.gaps_on[..]), (3, &[c.clone()][..]));
        // It lost its copy, and makes it anew, now of a node that had been away.
        object.nodes.retain(|n| *n != c);
        object.making.push(c.clone());
        object.enter(&c, 0);
        assert_eq!((object.lost_blocks, object.gaps_on.len(), object.nodes.len()), (0, 0, 2));
    }

    #[tokio::test]
    async fn an_object_from_the_future_is_refused_and_does_not_hide_others() {
        let meta: Arc<dyn Meta> = Arc::new(Memory::default());
        let future = Bytes::from_static(br#"{"version": 2}"#);
        meta.put_if("node/future", Expect::Absent, future).await.unwrap();
        let catalog = Catalog::new(meta);
        let name = NodeId::new("n1").unwrap();
        let node = NodeObject::new(name, "a:1".into(), "a:2".into(), Uuid::nil());
        catalog.put_node(&node).await.unwrap();
        assert_eq!(catalog.nodes().await.unwrap(), [node]);
        let future = NodeId::new("future").unwrap();
        let refused = catalog.node(&future).await.unwrap_err();
        assert!(refused.message().contains("upgrade"), "{}", refused.message());
    }
}
