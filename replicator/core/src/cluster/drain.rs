//! Which nodes may go down now, to be rebooted or for good, without harm to a volume.
//!
//! Whoever drains a node is held up by a guard there. It is taken away when the node may go, and
//! from then on the node counts as down for all others that want to go as well.

#[cfg(test)]
mod tests;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::id::NodeId;

/// What holds up whoever drains a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Nothing does.
    #[default]
    None,
    /// A guard is there, but does not run, and so may be evicted as any pod.
    Pending,
    /// A guard does that came when the node was cordoned already: a drain may have ended before.
    Late,
    /// A guard does since before the node was cordoned.
    Stands,
}

/// A node that the orchestrator has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// It gets no new pods: somebody drains it, or is about to, or has.
    pub cordoned: bool,
    /// See there.
    pub guard: Guard,
    /// Its daemon does not answer.
    pub silent: bool,
    /// It is being emptied, so it goes for good.
    pub emptied: bool,
    /// Copies of snapshots that it has.
    pub snapshots: usize,
}

impl Node {
    /// Whether it is down, or may be at any moment.
    fn is_going(&self) -> bool {
        self.silent || (self.cordoned && !self.is_kept())
    }

    /// Whether whoever drains it from now on is held up.
    fn is_kept(&self) -> bool {
        self.guard == Guard::Stands
    }
}

/// A copy of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// It has all data.
    pub in_sync: bool,
    /// Whoever serves the volume reaches it.
    pub reached: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Copies wanted.
    pub wanted: usize,
    /// Fewest copies that a write may have.
    pub min_in_sync: usize,
    /// Nobody has used it for long. So nothing is written to it, and no copy is brought up to date.
    pub idle: bool,
    /// Its copies, except those on their way out.
    pub copies: BTreeMap<NodeId, Copy>,
}

impl Volume {
    /// How many copies must be left when a node with one goes: one less than wanted, and enough to
    /// write; of one that is not used, any.
    #[must_use]
    pub fn needs(&self) -> usize {
        if self.idle { 1 } else { self.wanted.saturating_sub(1).max(self.min_in_sync).max(1) }
    }
}

/// What to think of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has nothing that would be missed, and needs no guard.
    Free,
    /// Nobody wants it to go.
    InService,
    /// It may go now.
    MayGo,
    /// It may not go yet.
    Held(Vec<Hold>),
}

/// Why a node may not go yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Too few copies of a volume would be left.
    Few {
        /// The volume.
        volume: String,
        /// Copies that would be left and are good.
        has: usize,
        /// How many it needs.
        needs: usize,
        /// What is wrong with the others.
        others: Vec<(NodeId, Lack)>,
        /// Nobody uses it, so this does not get better by itself.
        idle: bool,
    },
    /// It is being emptied, and has a copy of a volume still.
    Copy {
        /// The volume.
        volume: String,
        /// Nobody uses it, so the copy is not moved.
        idle: bool,
    },
    /// It is being emptied, and has so many copies of snapshots still.
    Snapshots(usize),
}

/// Why a copy does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It has not all data yet.
    Behind,
    /// It is not reached, or its node does not answer.
    Unreached,
    /// Its node is cordoned, and nothing holds it up any more; or it was deleted.
    Going,
    /// Nothing would hold up whoever drained its node now.
    Unguarded,
}

/// What to think of each node. Of several that want to go, those whose names come first may, and
/// others beside them only if no volume suffers.
#[must_use]
pub fn decide(volumes: &[Volume], nodes: &BTreeMap<NodeId, Node>) -> BTreeMap<NodeId, Verdict> {
    let there: BTreeSet<&NodeId> = volumes.iter().flat_map(|v| v.copies.keys()).collect();
    let staying = nodes.iter().filter(|(_, node)| !node.is_going());
    let mut staying: BTreeSet<&NodeId> = staying.map(|(name, _)| name).collect();
    let mut verdicts = BTreeMap::new();
    for (name, node) in nodes {
        let is_needed = there.contains(name) || (node.emptied && node.snapshots > 0);
        let verdict = if !is_needed {
            Verdict::Free
        } else if !node.cordoned {
            Verdict::InService
        } else {
            let holds = holds(volumes, name, node, nodes, &staying);
            if holds.is_empty() { Verdict::MayGo } else { Verdict::Held(holds) }
        };
        if verdict == Verdict::MayGo {
            staying.remove(name);
        }
        verdicts.insert(name.clone(), verdict);
    }
    verdicts
}

/// Everything for which a node must not go.
fn holds(
    volumes: &[Volume],
    name: &NodeId,
    node: &Node,
    nodes: &BTreeMap<NodeId, Node>,
    staying: &BTreeSet<&NodeId>,
) -> Vec<Hold> {
    let here = volumes.iter().filter(|volume| volume.copies.contains_key(name));
    if node.emptied {
        let copy = |of: &Volume| Hold::Copy { volume: of.name.clone(), idle: of.idle };
        let mut holds: Vec<Hold> = here.map(copy).collect();
        holds.extend((node.snapshots > 0).then_some(Hold::Snapshots(node.snapshots)));
        return holds;
    }
    let lack = |other: &NodeId, copy: &Copy| {
        let is_silent = nodes.get(other).is_some_and(|node| node.silent);
        if !copy.in_sync {
            Some(Lack::Behind)
        } else if !copy.reached || is_silent {
            Some(Lack::Unreached)
        } else if !staying.contains(other) {
            Some(Lack::Going)
        } else {
            let is_kept = nodes.get(other).is_some_and(Node::is_kept);
            (!is_kept).then_some(Lack::Unguarded)
        }
    };
    let few = |volume: &Volume| {
        let others = volume.copies.iter().filter(|(other, _)| *other != name);
        let others = others.map(|(other, copy)| (other.clone(), lack(other, copy)));
        let (good, bad): (Vec<_>, Vec<_>) = others.partition(|(_, lack)| lack.is_none());
        let (has, needs) = (good.len(), volume.needs());
        let others = bad.into_iter().filter_map(|(node, lack)| Some((node, lack?))).collect();
        let (name, idle) = (volume.name.clone(), volume.idle);
        (has < needs).then_some(Hold::Few { volume: name, has, needs, others, idle })
    };
    here.filter_map(few).collect()
}

/// What is said of a volume whose copies nobody brings up to date.
const UNUSED: &str = " (nobody uses the volume, and its copies are made and brought up to date \
    only while it is attached: have a pod use it, and uncordon the node until then)";

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Few { volume, has: 0, others, .. } if others.is_empty() => {
                write!(f, "volume {volume} has no other copy")
            }
            Self::Few { volume, has, needs, others, idle } => {
                write!(f, "volume {volume} has {has} of {needs} copies that it needs elsewhere")?;
                for (n, (node, lack)) in others.iter().enumerate() {
                    let before = if n == 0 { ": " } else { ", " };
                    write!(f, "{before}{lack} {node}")?;
                }
                let is_behind = others.iter().any(|(_, lack)| *lack == Lack::Behind);
                f.write_str(if *idle && is_behind { UNUSED } else { "" })
            }
            Self::Copy { volume, idle } => {
                let more = if *idle { UNUSED } else { "" };
                write!(f, "a copy of volume {volume} is still there{more}")
            }
            Self::Snapshots(count) => write!(f, "{count} copies of snapshots are still there"),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Behind => "not in sync on",
            Self::Unreached => "not reached on",
            Self::Going => "down at any moment, since it is cordoned or deleted, on",
            Self::Unguarded => "no guard runs, which would hold up its drain, on",
        })
    }
}
