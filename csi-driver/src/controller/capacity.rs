//! GetCapacity: what the pools have room for, counted in volumes with all their copies.

use super::Controller;
use crate::capability::Capability;
use crate::parameters::Parameters;
use crate::size::{MAX, signed};
use crate::topology;
use lockstep_proto::csi;
use lockstep_proto::v1;
use tonic::Status;

/// Room in the pool of a node; none if the node gets no copies.
fn room(node: &v1::NodeStatus, pool: &str) -> u64 {
    let Some(info) = node.info.as_ref().filter(|info| info.ready && !node.evacuating) else {
        return 0;
    };
    let found = info.pools.iter().find(|found| found.name == pool && found.free_bytes > 0);
    found.map_or(0, |found| found.room_bytes)
}

/// The largest volume of so many copies, one of which is in the place; and how much there is for
/// several volumes.
fn largest(
    nodes: &[v1::NodeStatus],
    place: Option<&csi::Topology>,
    pool: &str,
    repl: usize,
) -> (u64, u64) {
    let is_there = |node: &v1::NodeStatus| place.is_none_or(|place| topology::is_in(node, place));
    let mut rooms: Vec<(u64, bool)> =
        nodes.iter().map(|node| (room(node, pool), is_there(node))).collect();
    rooms.sort_by(|a, b| b.cmp(a));
    let best_there = rooms.iter().position(|(_, there)| *there);
    let Some(best_there) = best_there else { return (0, 0) };
    // The largest ones, of which one has to be there.
    let mut chosen: Vec<u64> = rooms.iter().take(repl).map(|(room, _)| *room).collect();
    if best_there >= repl
        && let Some(last) = chosen.last_mut()
    {
        *last = rooms.get(best_there).map_or(0, |(room, _)| *room);
    }
    let single = if chosen.len() < repl { 0 } else { chosen.iter().copied().min().unwrap_or(0) };
    if single == 0 {
        return (0, 0);
    }
    let there: u64 = rooms.iter().filter(|(_, there)| *there).map(|(room, _)| room).sum();
    let everywhere: u64 = rooms.iter().map(|(room, _)| room).sum();
    let copies = u64::try_from(repl).unwrap_or(1).max(1);
    let several =
        if place.is_some() { there.min(everywhere / copies) } else { everywhere / copies };
    (single.min(MAX), several.max(single))
}

impl Controller {
    pub(super) async fn capacity(
        &self,
        request: &csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, Status> {
        for capability in &request.volume_capabilities {
            Capability::new(capability)?;
        }
        let parameters = Parameters::new(&request.parameters, &Default::default())?;
        let nodes = self.daemons.nodes().await?;
        let repl = if parameters.allow_degraded { parameters.min_in_sync } else { parameters.repl };
        let repl = usize::try_from(repl).unwrap_or(1);
        let place = request.accessible_topology.as_ref();
        // A volume that is reached from everywhere may have its copies anywhere.
        let place = place.filter(|_| parameters.local);
        let (single, several) = largest(&nodes, place, &parameters.pool, repl);
        Ok(csi::GetCapacityResponse {
            available_capacity: signed(several),
            maximum_volume_size: Some(signed(single)),
            minimum_volume_size: Some(signed(1 << 20)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, room_bytes: u64) -> v1::NodeStatus {
        let pool =
            v1::Pool { name: "p".to_owned(), free_bytes: 1, room_bytes, ..Default::default() };
        let info = v1::Node { ready: true, pools: vec![pool], ..Default::default() };
        v1::NodeStatus { name: name.to_owned(), info: Some(info), ..Default::default() }
    }

    #[test]
    fn every_copy_needs_room() {
        let nodes = [node("a", 10), node("b", 30), node("c", 20)];
        let at = |name| Some(topology::of_node(name));
        let of = |place: Option<csi::Topology>, repl| largest(&nodes, place.as_ref(), "p", repl);
        assert_eq!(of(None, 1), (30, 60));
        assert_eq!(of(None, 2), (20, 30));
        assert_eq!(of(None, 3), (10, 20));
        assert_eq!(of(None, 4), (0, 0));
        assert_eq!(of(at("a"), 2), (10, 10));
        assert_eq!(of(at("b"), 2), (20, 30));
        assert_eq!(of(at("d"), 1), (0, 0));
        assert_eq!(largest(&nodes, None, "other", 1), (0, 0));
    }

    #[test]
    fn silent_and_emptied_nodes_do_not_count() {
        let silent = v1::NodeStatus { info: None, ..node("a", 10) };
        let emptied = v1::NodeStatus { evacuating: true, ..node("b", 10) };
        assert_eq!(largest(&[silent, emptied, node("c", 5)], None, "p", 1), (5, 5));
    }
}
