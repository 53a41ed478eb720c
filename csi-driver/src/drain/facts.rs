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

/// How volumes were used, by their ids.
pub(super) type Uses = BTreeMap<String, Use>;

/// How a volume was used.
#[derive(Debug, Default)]
pub(super) struct Use {
    /// The node that had it last.
    last: Option<String>,
    /// Since when nobody uses it.
    unused: Option<Instant>,
}

/// The volumes that count.
pub(super) fn volumes(
    told: &[v1::VolumeStatus],
    nodes: &[v1::NodeStatus],
    uses: &mut Uses,
    now: Instant,
) -> Vec<Volume> {
    uses.retain(|uid, _| told.iter().any(|volume| volume.uid == *uid));
    let ready = i32::from(v1::VolumeStage::Ready);
    // A view ends with the pod that reads it.
    let counts = |volume: &&v1::VolumeStatus| volume.stage == ready && views::is_none(volume);
    let mut volume = |told: &v1::VolumeStatus| {
        let its = uses.entry(told.uid.clone()).or_default();
        if told.primary_node.is_some() {
            its.last.clone_from(&told.primary_node);
        }
        let is_used = is_used(told, its.last.as_deref(), nodes);
        its.unused = (!is_used).then(|| its.unused.unwrap_or(now));
        let idle = its.unused.is_some_and(|since| now - since >= UNUSED);
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

/// Whether somebody uses a volume, or may. A record names whoever had it last, be that one dead;
/// and nobody, while a daemon is replaced, although a pod has the device, which waits.
fn is_used(volume: &v1::VolumeStatus, last: Option<&str>, nodes: &[v1::NodeStatus]) -> bool {
    let is_served =
        volume.primary_node.is_some() && volume.phase != i32::from(v1::AttachPhase::Unspecified);
    let waits = |node: &v1::NodeStatus| {
        let waiting = node.info.iter().flat_map(|info| &info.waiting_devices);
        waiting.into_iter().any(|device| device.uid == volume.uid)
    };
    // Its machine is there, and no daemon: what devices it has, nobody can say.
    let may_have = |node: &v1::NodeStatus| {
        let mut had = volume.replicas.iter().map(|copy| copy.node.as_str()).chain(last);
        node.refused && node.info.is_none() && had.any(|name| name == node.name)
    };
    is_served || nodes.iter().any(|node| waits(node) || may_have(node))
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
            phase: v1::AttachPhase::Active.into(),
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
        let seen = volumes(&[volume()], &[], &mut Uses::new(), Instant::now());
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
        let seen = volumes(&[view, deleting], &[], &mut Uses::new(), Instant::now());
        assert!(seen.is_empty(), "{seen:?}");
    }

    #[test]
    fn a_volume_is_idle_once_it_is_unused_for_long() {
        let (mut uses, begin) = (Uses::new(), Instant::now());
        let mut idle = |used: bool, seconds| {
            let primary_node = used.then(|| "a".to_owned());
            let told = v1::VolumeStatus { primary_node, ..volume() };
            volumes(&[told], &[], &mut uses, begin + Duration::from_secs(seconds))[0].idle
        };
        assert!(!idle(false, 0) && !idle(false, 59) && idle(false, 60));
        assert!(!idle(true, 61) && !idle(false, 62) && idle(false, 122));
        volumes(&[], &[], &mut uses, begin);
        assert!(uses.is_empty());
    }

    /// Whether a volume that this node has, or that nobody has, counts as unused in the end, while
    /// node `a` is so.
    fn is_idle(primary: Option<&str>, phase: v1::AttachPhase, a: &v1::NodeStatus) -> bool {
        let (mut uses, begin) = (Uses::new(), Instant::now());
        let primary_node = primary.map(str::to_owned);
        let told = v1::VolumeStatus { primary_node, phase: phase.into(), ..volume() };
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut idle = |told: &v1::VolumeStatus, seconds| {
            let (told, nodes) = (std::slice::from_ref(told), std::slice::from_ref(a));
            volumes(told, nodes, &mut uses, at(seconds))[0].idle
        };
        assert!(!idle(&volume(), 0) && !idle(&told, 1));
        idle(&told, 61)
    }

    #[test]
    fn a_volume_is_unused_whose_primary_is_dead() {
        let named = v1::AttachPhase::Unspecified;
        let a = |name: &str| v1::NodeStatus { name: name.to_owned(), ..Default::default() };
        let dead = a("a");
        assert!(is_idle(Some("a"), named, &dead) && is_idle(None, named, &dead));
        let back = v1::NodeStatus { info: Some(v1::Node::default()), ..a("a") };
        assert!(is_idle(Some("a"), named, &back), "it has it no more");
        assert!(!is_idle(Some("a"), v1::AttachPhase::Active, &back));
    }

    #[test]
    fn a_volume_is_used_whose_device_waits_for_its_daemon() {
        let nobody = v1::AttachPhase::Unspecified;
        let a = |name: &str| v1::NodeStatus { name: name.to_owned(), ..Default::default() };
        let away = |name: &str| v1::NodeStatus { refused: true, ..a(name) };
        for primary in [None, Some("a")] {
            assert!(!is_idle(primary, nobody, &away("a")), "only its daemon is away");
        }
        assert!(!is_idle(None, nobody, &away("b")), "it has a copy");
        assert!(!is_idle(Some("x"), nobody, &away("x")), "it had it last");
        assert!(is_idle(None, nobody, &away("x")), "it has nothing to do with it");
        let device = v1::WaitingDevice { uid: "u".to_owned(), ..Default::default() };
        let info = v1::Node { waiting_devices: vec![device], ..v1::Node::default() };
        let waits = v1::NodeStatus { info: Some(info), ..a("x") };
        assert!(!is_idle(None, nobody, &waits), "a pod has it there");
        assert!(!is_idle(Some("a"), nobody, &waits), "a pod has it there");
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
