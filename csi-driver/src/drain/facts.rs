//! What daemons say, as far as a decision about drains needs it.

use crate::views;
use lockstep_core::cluster::drain::{Copy, Volume};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// A volume that nobody has used for so long does not get its copies brought up to date either, so
/// nobody waits for that. Less than that is a pod on its way to another node.
const UNUSED: Duration = Duration::from_secs(60);

/// Since when volumes are not used, by their ids.
pub(super) type Unused = BTreeMap<String, Instant>;

/// The volumes that count.
pub(super) fn volumes(told: &[v1::VolumeStatus], unused: &mut Unused, now: Instant) -> Vec<Volume> {
    unused.retain(|uid, _| told.iter().any(|volume| volume.uid == *uid));
    let ready = i32::from(v1::VolumeStage::Ready);
    // A view ends with the pod that reads it.
    let counts = |volume: &&v1::VolumeStatus| volume.stage == ready && views::is_none(volume);
    let mut volume = |told: &v1::VolumeStatus| {
        let idle = if told.primary_node.is_some() {
            unused.remove(&told.uid);
            false
        } else {
            now - *unused.entry(told.uid.clone()).or_insert(now) >= UNUSED
        };
        let leaving = i32::from(v1::ReplicaState::Leaving);
        let stays = told.replicas.iter().filter(|copy| copy.state != leaving);
        let copy = |copy: &v1::VolumeReplica| {
            let in_sync = copy.state == i32::from(v1::ReplicaState::InSync);
            Some((NodeId::new(&copy.node)?, Copy { in_sync, reached: copy.connected }))
        };
        Volume {
            name: told.name.clone(),
            wanted: usize::try_from(told.repl).unwrap_or(usize::MAX),
            min_in_sync: usize::try_from(told.min_in_sync).unwrap_or(usize::MAX),
            idle,
            copies: stays.filter_map(copy).collect(),
        }
    };
    told.iter().filter(counts).map(&mut volume).collect()
}

/// How many copies of snapshots nodes have.
pub(super) fn snapshots(told: &[v1::Snapshot]) -> BTreeMap<NodeId, usize> {
    let mut counts = BTreeMap::new();
    for node in told.iter().flat_map(|snapshot| &snapshot.nodes) {
        if let Some(node) = NodeId::new(node) {
            *counts.entry(node).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(node: &str, state: v1::ReplicaState, connected: bool) -> v1::VolumeReplica {
        let (node, state) = (node.to_owned(), i32::from(state));
        v1::VolumeReplica { node, state, connected, ..Default::default() }
    }

    fn volume() -> v1::VolumeStatus {
        v1::VolumeStatus {
            name: "v".to_owned(),
            uid: "u".to_owned(),
            repl: 3,
            min_in_sync: 2,
            stage: v1::VolumeStage::Ready.into(),
            primary_node: Some("a".to_owned()),
            replicas: vec![
                copy("a", v1::ReplicaState::InSync, true),
                copy("b", v1::ReplicaState::InSync, false),
                copy("c", v1::ReplicaState::New, true),
                copy("d", v1::ReplicaState::Leaving, true),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_copy_on_its_way_out_is_none() {
        let seen = volumes(&[volume()], &mut Unused::new(), Instant::now());
        let [seen] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!((seen.wanted, seen.min_in_sync, seen.idle), (3, 2, false));
        let copies = seen.copies.iter().map(|(node, c)| (node.as_str(), c.in_sync, c.reached));
        let wanted = [("a", true, true), ("b", true, false), ("c", false, true)];
        assert_eq!(copies.collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn a_view_and_what_is_unfinished_do_not_count() {
        let mut view = volume();
        view.annotations.insert("csi.lockstep.dev/view-of".to_owned(), "x".to_owned());
        let deleting = v1::VolumeStatus { stage: v1::VolumeStage::Deleting.into(), ..volume() };
        let seen = volumes(&[view, deleting], &mut Unused::new(), Instant::now());
        assert!(seen.is_empty(), "{seen:?}");
    }

    #[test]
    fn a_volume_is_idle_once_it_is_unused_for_long() {
        let (mut unused, begin) = (Unused::new(), Instant::now());
        let mut idle = |used: bool, seconds| {
            let primary_node = used.then(|| "a".to_owned());
            let told = v1::VolumeStatus { primary_node, ..volume() };
            volumes(&[told], &mut unused, begin + Duration::from_secs(seconds))[0].idle
        };
        assert!(!idle(false, 0) && !idle(false, 59) && idle(false, 60));
        assert!(!idle(true, 61) && !idle(false, 62) && idle(false, 122));
        volumes(&[], &mut unused, begin);
        assert!(unused.is_empty());
    }

    #[test]
    fn copies_of_snapshots_are_counted() {
        let snapshot = |nodes: &[&str]| v1::Snapshot {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..Default::default()
        };
        let counts = snapshots(&[snapshot(&["a", "b"]), snapshot(&["b"])]);
        let counts: Vec<_> = counts.iter().map(|(node, n)| (node.as_str(), *n)).collect();
        assert_eq!(counts, [("a", 1), ("b", 2)]);
    }
}
