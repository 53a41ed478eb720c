//! What becomes of a volume if a node never comes back.

use alloc::vec::Vec;

use super::placement::Candidate;
use super::replacement::{NodeState, Verdict, View, assess};
use crate::id::NodeId;

/// What is left of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Nodes that answer and have a copy in sync.
    pub left: Vec<NodeId>,
    /// Are those enough to go on writing?
    pub serves: bool,
    /// What is done about its copies then.
    pub verdict: Verdict,
}

/// A volume as it would be without the node, and all else as it is now.
#[must_use]
pub fn without(view: &View<'_>, lost: &NodeId) -> Outage {
    let nodes: Vec<NodeState> = view.nodes.iter().filter(|n| n.node != *lost).cloned().collect();
    let stays = |candidate: &&Candidate| candidate.node != *lost;
    let candidates: Vec<Candidate> = view.candidates.iter().filter(stays).cloned().collect();
    let answers = |node: &NodeId| nodes.iter().any(|n| n.node == *node && n.silent_since.is_none());
    let in_sync = view.record.in_sync().map(|entry| &entry.node);
    let left: Vec<NodeId> = in_sync.filter(|node| answers(node)).cloned().collect();
    let serves = left.len() >= usize::from(view.record.min_in_sync);
    let verdict = assess(&View { nodes: &nodes, candidates: &candidates, ..*view });
    Outage { left, serves, verdict }
}

#[cfg(test)]
mod tests {
    use super::super::replacement::Replace;
    use super::super::replacement::tests::{IN, NEW, OUT, name, record, rid, world};
    use super::*;
    use alloc::vec;

    #[test]
    fn what_is_left_serves_while_it_is_enough() {
        let replaced = |at: usize| {
            let lost = vec![rid(0)];
            Verdict::Replace(Replace { node: name(at), pool: "default".into(), lost })
        };
        let table = [
            ("one of three", 2, vec![IN, IN, IN], "....", vec![1, 2], true, replaced(3)),
            ("and another is silent", 2, vec![IN, IN, IN], ".s....", vec![2], false, replaced(3)),
            ("the last one", 1, vec![IN, OUT], "...", vec![], false, Verdict::NoSource),
            ("one is being built", 1, vec![IN, IN, NEW], "...", vec![1], true, Verdict::Enough),
        ];
        for (what, min, states, nodes, left, serves, verdict) in table {
            let mut record = record(if states.len() == 3 { 3 } else { 2 }, &states);
            record.min_in_sync = min;
            if what == "one is being built" {
                record.repl = 2;
            }
            let world = world(nodes);
            let found = without(&world.view(&record), &name(0));
            let left: Vec<NodeId> = left.into_iter().map(name).collect();
            assert_eq!(found, Outage { left, serves, verdict }, "{what}");
        }
    }

    #[test]
    fn a_node_without_a_copy_is_missed_as_a_place_only() {
        let (record, world) = (record(3, &[IN, IN, OUT]), world("..S."));
        let found = without(&world.view(&record), &name(3));
        assert_eq!(found.left, [name(0), name(1)]);
        assert!(matches!(found.verdict, Verdict::NoRoom(_)), "{:?}", found.verdict);
    }
}
