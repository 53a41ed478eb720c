//! Which nodes hold copies together. With copies spread at random over many nodes, nearly every
//! choice of nodes that die at once loses some volume. So a node shares volumes with a bounded
//! number of others (its scatter width): wide enough that many rebuild what one lost, and narrow
//! enough that few sets of nodes exist whose loss is a loss of data.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cmp::Reverse;

use super::placement::{Candidate, Want, twentieths_free};
use crate::id::NodeId;

/// Other nodes with which a node shares volumes, as far as that can be had. Twenty rebuild a lost
/// node in a couple of hours; with 1,000 nodes of which ten die at once, a volume of three copies
/// is lost thirty times less often than if copies were anywhere.
pub const SCATTER_WIDTH: usize = 20;

/// The sets of nodes that hold the copies of volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copysets {
    sets: BTreeSet<Vec<NodeId>>,
    peers: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Copysets {
    /// A volume has its copies on these nodes.
    pub fn note(&mut self, nodes: &[NodeId]) {
        let set: BTreeSet<&NodeId> = nodes.iter().collect();
        for node in &set {
            let others = set.iter().filter(|other| *other != node).map(|other| (*other).clone());
            self.peers.entry((*node).clone()).or_default().extend(others);
        }
        self.sets.insert(set.into_iter().cloned().collect());
    }

    /// Different sets.
    pub fn iter(&self) -> impl Iterator<Item = &[NodeId]> {
        self.sets.iter().map(Vec::as_slice)
    }

    /// Other nodes with which this one shares volumes.
    #[must_use]
    pub fn scatter(&self, node: &NodeId) -> usize {
        self.peers.get(node).map_or(0, BTreeSet::len)
    }

    fn are_peers(&self, a: &NodeId, b: &NodeId) -> bool {
        self.peers.get(a).is_some_and(|peers| peers.contains(b))
    }

    /// How far beyond the width `node` and those of `set` would be if they shared a volume.
    fn excess(&self, node: &NodeId, set: &[NodeId], width: usize) -> usize {
        let new: Vec<&NodeId> = set.iter().filter(|n| !self.are_peers(node, n)).collect();
        let own = (self.scatter(node) + new.len()).saturating_sub(width.max(self.scatter(node)));
        let theirs = new.iter().filter(|n| self.scatter(n) >= width).count();
        own + theirs
    }
}

/// Chooses among nodes that fit, in this order of importance: as many zones as there are; within
/// the scatter width; few sets. The first is chosen like anywhere; then, while its width lasts,
/// nodes that share nothing with it yet make a new set, later an existing set is used again.
pub(super) fn choose<'a>(
    want: &Want,
    fitting: &[&'a Candidate],
    beside: &[&Candidate],
    sets: &Copysets,
    width: usize,
) -> Vec<&'a Candidate> {
    let mut pick = Pick { want, sets, width, chosen: Vec::new(), beside, frugal: false };
    if want.copies == 0 {
        return Vec::new();
    }
    // Nobody can exceed the width: nothing is gained by using the same sets again.
    let nodes: BTreeSet<&NodeId> = fitting.iter().chain(beside).map(|c| &c.node).collect();
    if nodes.len() <= width + 1 {
        pick.fill(fitting, |_, _| true);
        return pick.chosen;
    }
    let mut plain = pick.clone();
    plain.fill(fitting, |_, _| true);
    let zones = plain.zones();
    if beside.is_empty() {
        pick.add_best(fitting, &|_, _| true);
    }
    let mut fresh = pick.clone();
    fresh.fill(fitting, |pick, c| pick.is_new(c));
    if fresh.is_full() && fresh.zones() >= zones {
        return fresh.chosen;
    }
    let again = pick.existing(fitting).filter(|again| again.zones() >= zones);
    if let Some(again) = again {
        return again.chosen;
    }
    pick.frugal = true;
    pick.fill(fitting, |_, _| true);
    pick.chosen
}

/// A choice under way.
#[derive(Clone)]
struct Pick<'a, 'b> {
    want: &'b Want,
    sets: &'b Copysets,
    width: usize,
    chosen: Vec<&'a Candidate>,
    beside: &'b [&'b Candidate],
    /// Does it prefer nodes that share volumes with each other already?
    frugal: bool,
}

impl<'a> Pick<'a, '_> {
    fn is_full(&self) -> bool {
        self.chosen.len() >= self.want.copies
    }

    /// All nodes of the set so far.
    fn nodes(&self) -> Vec<NodeId> {
        let beside = self.beside.iter().map(|c| c.node.clone());
        beside.chain(self.chosen.iter().map(|c| c.node.clone())).collect()
    }

    fn zones(&self) -> usize {
        let all = self.beside.iter().copied().chain(self.chosen.iter().copied());
        all.map(|c| c.zone.as_deref()).collect::<BTreeSet<_>>().len()
    }

    /// Shares it nothing with the set so far, and is there width left on both sides?
    fn is_new(&self, candidate: &Candidate) -> bool {
        let nodes = self.nodes();
        let strange = nodes.iter().all(|n| !self.sets.are_peers(n, &candidate.node));
        strange && self.sets.excess(&candidate.node, &nodes, self.width) == 0
    }

    fn fill(&mut self, fitting: &[&'a Candidate], may: impl Fn(&Self, &Candidate) -> bool) {
        while !self.is_full() && self.add_best(fitting, &may) {}
    }

    fn add_best(
        &mut self,
        fitting: &[&'a Candidate],
        may: &impl Fn(&Self, &Candidate) -> bool,
    ) -> bool {
        let nodes = self.nodes();
        let taken: BTreeSet<Option<&str>> = self
            .beside
            .iter()
            .copied()
            .chain(self.chosen.iter().copied())
            .map(|c| c.zone.as_deref())
            .collect();
        let open = fitting.iter().filter(|c| !nodes.contains(&c.node) && may(self, c));
        let best = open.min_by_key(|c| {
            let preferred = self.want.prefer.as_ref() == Some(&c.node);
            let zone_is_used = taken.contains(&c.zone.as_deref());
            let excess = self.sets.excess(&c.node, &nodes, self.width);
            let strange = nodes.iter().filter(|n| !self.sets.are_peers(n, &c.node)).count();
            let width = (excess, if self.frugal { strange } else { 0 });
            let free = Reverse(twentieths_free(c));
            (Reverse(preferred), zone_is_used, width, free, c.replicas, &c.node)
        });
        self.chosen.extend(best.copied());
        best.is_some()
    }

    /// The existing set around what is chosen whose fullest member has the most room.
    fn existing(&self, fitting: &[&'a Candidate]) -> Option<Self> {
        let core = self.nodes();
        let size = self.beside.len() + self.want.copies;
        let find = |node: &NodeId| fitting.iter().find(|c| c.node == *node).copied();
        let completed = self.sets.iter().filter_map(|set| {
            if set.len() != size || !core.iter().all(|n| set.contains(n)) {
                return None;
            }
            let mut pick = self.clone();
            let rest = set.iter().filter(|n| !core.contains(n));
            let rest: Option<Vec<&'a Candidate>> = rest.map(find).collect();
            pick.chosen.extend(rest?);
            Some(pick)
        });
        completed.max_by_key(|pick| {
            let least = pick.chosen.iter().map(|c| twentieths_free(c)).min();
            let most = pick.chosen.iter().map(|c| c.replicas).max();
            (pick.zones(), least, Reverse(most), Reverse(pick.nodes()))
        })
    }
}
