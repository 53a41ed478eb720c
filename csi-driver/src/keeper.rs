//! Keeps the labels of nodes where the copies of volumes are. What is wanted is decided by the
//! core; this looks, and makes the changes. Several may do so at once: each change may be made
//! twice.

use crate::daemon::Daemons;
use crate::labels::{Labels, Now};
use crate::leader::Leader;
use lockstep_core::cluster::locality::{
    Changes, Labels as Labelled, PlacementId, Resident, Site, View, changes,
};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Status;

/// How long a label stays on a node that is silent. A node that restarts is back by then.
const GRACE_MS: u64 = 30_000;
/// Looks until what one look left to the next is done.
const LOOKS: u32 = 4;

/// Keeps labels. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    daemons: Arc<Daemons>,
    labels: Arc<dyn Labels>,
    nudge: Arc<Notify>,
}

/// Since when nodes are silent.
type Silence = BTreeMap<NodeId, Instant>;

impl Keeper {
    pub(crate) fn new(daemons: Arc<Daemons>, labels: Arc<dyn Labels>) -> Self {
        Self { daemons, labels, nudge: Arc::default() }
    }

    /// Puts the label of a new volume on the nodes with a copy; returns when it is there, so that
    /// whoever is told of the volume can place pods.
    pub(crate) async fn begin(&self, volume: &v1::VolumeStatus) -> Result<(), Status> {
        let Some(resident) = resident(volume) else { return Ok(()) };
        let nodes: BTreeSet<NodeId> = reached(&resident).cloned().collect();
        let mut put = Labelled::new();
        if !nodes.is_empty() {
            put.insert(resident.placement, nodes);
        }
        self.labels.apply(&Changes { put, ..Changes::default() }).await
    }

    /// Something has changed: looks now.
    pub(crate) fn look_soon(&self) {
        self.nudge.notify_one();
    }

    /// Takes labels off a node, or does what else is to be done at once.
    pub(crate) async fn apply(&self, changes: &Changes) -> Result<(), Status> {
        self.labels.apply(changes).await
    }

    /// Looks again and again, for ever, while it is this controller that acts.
    pub(crate) async fn keep(self, every: Duration, mut leader: Leader) {
        let mut silence = Silence::new();
        let mut told = None;
        loop {
            if !leader.acts() {
                silence.clear();
                leader.wait().await;
            }
            let outcome = self.look(&mut silence).await;
            let why = outcome.err().map(|status| status.message().to_owned());
            // Once for each reason: it is tried again and again.
            match &why {
                Some(why) if told.as_ref() != Some(why) => {
                    tracing::warn!(why, "labels of nodes cannot be kept now");
                }
                None if told.is_some() => tracing::info!("labels of nodes are kept again"),
                _ => {}
            }
            told = why;
            // Whichever is first.
            let _ = tokio::time::timeout(every, self.nudge.notified()).await;
        }
    }

    /// Makes what changes are needed now.
    async fn look(&self, silence: &mut Silence) -> Result<(), Status> {
        for _ in 0..LOOKS {
            // Asked first: what is put meanwhile is not taken off for being unknown.
            let Now { labelled, nodes: there } = self.labels.now().await?;
            let (nodes, volumes) = self.daemons.cluster().await?;
            let mut nodes = sites(&nodes, silence, Instant::now());
            if let Some(there) = there {
                nodes.retain(|node, _| there.contains(node));
            }
            let volumes: Vec<Resident> = volumes.iter().filter_map(resident).collect();
            let view =
                View { volumes: &volumes, nodes: &nodes, labelled: &labelled, grace_ms: GRACE_MS };
            let found = changes(&view);
            if found.is_empty() {
                return Ok(());
            }
            for (what, labels) in [("put", &found.put), ("taken off", &found.take)] {
                for (placement, nodes) in labels {
                    let nodes: Vec<_> = nodes.iter().map(NodeId::as_str).collect();
                    tracing::info!(%placement, nodes = nodes.join(" "), "labels are {what}");
                }
            }
            self.labels.apply(&found).await?;
        }
        Ok(())
    }
}

fn reached(resident: &Resident) -> impl Iterator<Item = &NodeId> {
    resident.in_sync.iter().filter(|(_, reached)| **reached).map(|(node, _)| node)
}

/// A volume as far as pods are concerned; nothing if no pod can name it, or it is older than
/// placements.
fn resident(volume: &v1::VolumeStatus) -> Option<Resident> {
    if !crate::views::is_none(volume) {
        // Pods are told where the volume is that it shows.
        return None;
    }
    let placement = PlacementId::new(&volume.placement_id)?;
    if volume.stage != i32::from(v1::VolumeStage::Ready) {
        return Some(Resident { placement, in_sync: BTreeMap::new(), served: None });
    }
    let in_sync = i32::from(v1::ReplicaState::InSync);
    let copies = volume.replicas.iter().filter(|copy| copy.state == in_sync);
    let node = |copy: &v1::VolumeReplica| Some((NodeId::new(&copy.node)?, copy.connected));
    let fenced = volume.phase == i32::from(v1::AttachPhase::Fenced);
    let served = volume.primary_node.as_deref().filter(|_| !fenced).and_then(NodeId::new);
    Some(Resident { placement, in_sync: copies.filter_map(node).collect(), served })
}

/// The nodes, with how long each is silent.
fn sites(nodes: &[v1::NodeStatus], silence: &mut Silence, now: Instant) -> BTreeMap<NodeId, Site> {
    let mut sites = BTreeMap::new();
    for status in nodes {
        let Some(node) = NodeId::new(&status.name) else { continue };
        let silent_ms = if status.info.is_some() {
            silence.remove(&node);
            None
        } else {
            let since = *silence.entry(node.clone()).or_insert(now);
            let silent = now.saturating_duration_since(since);
            Some(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX))
        };
        sites.insert(node, Site { silent_ms, emptied: status.evacuating });
    }
    silence.retain(|node, _| sites.contains_key(node));
    sites
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(node: &str, state: v1::ReplicaState, connected: bool) -> v1::VolumeReplica {
        let (node, state) = (node.to_owned(), i32::from(state));
        v1::VolumeReplica { node, state, connected, ..Default::default() }
    }

    #[test]
    fn a_volume_is_where_its_copies_are_in_sync() {
        let mut volume = v1::VolumeStatus {
            placement_id: "p-1".to_owned(),
            stage: i32::from(v1::VolumeStage::Ready),
            primary_node: Some("a".to_owned()),
            replicas: vec![
                copy("a", v1::ReplicaState::InSync, true),
                copy("b", v1::ReplicaState::InSync, false),
                copy("c", v1::ReplicaState::Out, true),
                copy("d", v1::ReplicaState::New, true),
            ],
            ..Default::default()
        };
        let seen = resident(&volume).unwrap();
        let told: Vec<_> = seen.in_sync.iter().map(|(n, r)| (n.as_str(), *r)).collect();
        assert_eq!(told, [("a", true), ("b", false)]);
        assert_eq!(seen.served.as_ref().map(NodeId::as_str), Some("a"));
        volume.phase = i32::from(v1::AttachPhase::Fenced);
        assert_eq!(resident(&volume).unwrap().served, None);
        volume.stage = i32::from(v1::VolumeStage::Deleting);
        assert!(resident(&volume).unwrap().in_sync.is_empty());
        volume.placement_id.clear();
        assert_eq!(resident(&volume), None);
    }

    #[test]
    fn silence_is_counted_until_a_node_answers() {
        let node = |live: bool| v1::NodeStatus {
            name: "a".to_owned(),
            info: live.then(v1::Node::default),
            ..Default::default()
        };
        let (mut silence, begin) = (Silence::new(), Instant::now());
        let mut silent_ms = |live, seconds| {
            let seen = sites(&[node(live)], &mut silence, begin + Duration::from_secs(seconds));
            seen[&NodeId::new("a").unwrap()].silent_ms
        };
        assert_eq!(silent_ms(true, 0), None);
        assert_eq!(silent_ms(false, 1), Some(0));
        assert_eq!(silent_ms(false, 3), Some(2000));
        assert_eq!(silent_ms(true, 4), None);
        assert_eq!(silent_ms(false, 5), Some(0));
        assert!(sites(&[], &mut silence, begin).is_empty() && silence.is_empty());
    }
}
