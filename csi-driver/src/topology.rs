//! From where a volume is reached: the nodes with the label that follows its copies.

use crate::controller::copies;
use lockstep_core::cluster::locality::{LABEL_VALUE, PlacementId};
use lockstep_proto::csi::{Topology, TopologyRequirement};
use lockstep_proto::v1;
use std::collections::BTreeMap;
use tonic::Status;

/// The label that each node has: its name, as the daemon knows it.
pub(crate) const NODE: &str = "csi.lockstep.dev/node";
/// The label that tells a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A place that is one node.
pub(crate) fn of_node(node: &str) -> Topology {
    Topology { segments: BTreeMap::from([(NODE.to_owned(), node.to_owned())]) }
}

/// From where a volume is reached. This never changes, though the copies may move: the label does.
pub(crate) fn of_volume(volume: &v1::VolumeStatus) -> Vec<Topology> {
    match PlacementId::new(&volume.placement_id) {
        Some(placement) => {
            let segments = BTreeMap::from([(placement.label(), LABEL_VALUE.to_owned())]);
            vec![Topology { segments }]
        }
        // It is older than placements.
        None => {
            let mut nodes = copies(volume);
            nodes.sort();
            nodes.iter().map(|node| of_node(node)).collect()
        }
    }
}

/// The zone of a node; empty: it has none.
fn zone(node: &v1::NodeStatus) -> &str {
    node.info.as_ref().map_or(&node.zone, |info| &info.zone)
}

/// Whether a node is in a place.
pub(crate) fn is_in(node: &v1::NodeStatus, place: &Topology) -> bool {
    place.segments.iter().all(|(key, value)| match key.as_str() {
        NODE => *value == node.name,
        ZONE => *value == zone(node),
        other => node.labels.get(other) == Some(value),
    })
}

/// Where a new volume's first copy is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preference {
    /// The best first.
    pub(crate) nodes: Vec<String>,
    /// Only on one of these.
    pub(crate) required: bool,
}

/// Which nodes are meant by a requirement.
///
/// # Errors
/// RESOURCE_EXHAUSTED if a node is required and none is meant.
pub(crate) fn preference(
    wanted: Option<&TopologyRequirement>,
    nodes: &[v1::NodeStatus],
) -> Result<Preference, Status> {
    let Some(wanted) = wanted else { return Ok(Preference::default()) };
    let allowed = |node: &v1::NodeStatus| {
        wanted.requisite.is_empty() || wanted.requisite.iter().any(|place| is_in(node, place))
    };
    let mut found: Vec<String> = Vec::new();
    for place in wanted.preferred.iter().chain(&wanted.requisite) {
        for node in nodes.iter().filter(|node| is_in(node, place) && allowed(node)) {
            if !found.contains(&node.name) {
                found.push(node.name.clone());
            }
        }
    }
    let required = !wanted.requisite.is_empty();
    if required && found.is_empty() {
        let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(Status::resource_exhausted(format!(
            "accessibility_requirements: no node is in any of the requisite places; nodes are {} \
             with the label {NODE}, zones have the label {ZONE}, and `lockstep node show` tells \
             the others",
            names.join(" ")
        )));
    }
    Ok(Preference { nodes: found, required })
}

/// Whether a volume with these places is reached from where it has to be.
pub(crate) fn satisfies(
    wanted: Option<&TopologyRequirement>,
    copies: &[String],
    nodes: &[v1::NodeStatus],
) -> bool {
    let Some(wanted) = wanted.filter(|wanted| !wanted.requisite.is_empty()) else { return true };
    let mut there = nodes.iter().filter(|node| copies.contains(&node.name));
    there.any(|node| wanted.requisite.iter().any(|place| is_in(node, place)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn node(name: &str, zone: &str) -> v1::NodeStatus {
        v1::NodeStatus { name: name.to_owned(), zone: zone.to_owned(), ..Default::default() }
    }

    fn in_zone(zone: &str) -> Topology {
        Topology { segments: BTreeMap::from([(ZONE.to_owned(), zone.to_owned())]) }
    }

    #[test]
    fn the_preferred_node_is_first_and_only_requisite_ones_are_taken() {
        let nodes = [node("a", "x"), node("b", "y"), node("c", "y")];
        let chosen = |requisite: &[Topology], preferred: &[Topology]| {
            let (requisite, preferred) = (requisite.to_vec(), preferred.to_vec());
            preference(Some(&TopologyRequirement { requisite, preferred }), &nodes)
        };
        let all = [of_node("a"), of_node("b"), of_node("c")];
        let found = chosen(&all, &[of_node("c"), of_node("a"), of_node("b")]).unwrap();
        assert_eq!((found.nodes.join(""), found.required), ("cab".to_owned(), true));
        assert_eq!(chosen(&[in_zone("y")], &[of_node("a")]).unwrap().nodes, ["b", "c"]);
        let only_preferred = chosen(&[], &[in_zone("x")]).unwrap();
        assert_eq!((only_preferred.nodes.join(""), only_preferred.required), ("a".into(), false));
        assert_eq!(preference(None, &nodes).unwrap(), Preference::default());
        for nowhere in [of_node("d"), in_zone("z"), {
            Topology { segments: BTreeMap::from([("rack".to_owned(), "1".to_owned())]) }
        }] {
            assert_eq!(chosen(&[nowhere], &[]).unwrap_err().code(), Code::ResourceExhausted);
        }
    }

    #[test]
    fn any_label_of_a_node_is_a_place() {
        let labels = BTreeMap::from([("rack".to_owned(), "7".to_owned())]);
        let node = v1::NodeStatus { labels, ..node("a", "x") };
        let place = |key: &str, value: &str| Topology {
            segments: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        };
        assert!(is_in(&node, &place("rack", "7")));
        assert!(!is_in(&node, &place("rack", "8")));
        assert!(!is_in(&node, &place("row", "7")));
    }

    #[test]
    fn a_volume_is_reached_by_its_label_or_by_its_nodes() {
        let copy = |node: &str| v1::VolumeReplica { node: node.to_owned(), ..Default::default() };
        let mut volume =
            v1::VolumeStatus { replicas: vec![copy("b"), copy("a")], ..Default::default() };
        assert_eq!(of_volume(&volume), [of_node("a"), of_node("b")]);
        volume.placement_id = "p-1".to_owned();
        let key = "lockstep.node-restriction.kubernetes.io/p-1".to_owned();
        let segments = BTreeMap::from([(key, "replica".to_owned())]);
        assert_eq!(of_volume(&volume), [Topology { segments }]);
    }

    #[test]
    fn a_volume_that_is_there_is_compared_with_what_is_required() {
        let nodes = [node("a", "x"), node("b", "y")];
        let wanted = TopologyRequirement { requisite: vec![of_node("a")], preferred: Vec::new() };
        assert!(satisfies(Some(&wanted), &["a".to_owned()], &nodes));
        assert!(!satisfies(Some(&wanted), &["b".to_owned()], &nodes));
        assert!(satisfies(None, &[], &nodes));
    }
}
