//! Where copies of a snapshot are missing, where they are made anew, and which are too many (D5).
//! A snapshot does not change, so there is nothing to fence: any of its copies is as good as any
//! other, however long its node was away.

#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::copysets::Copysets;
use super::placement::{self, Candidate, PlacementError, Want};
use super::replacement::NodeState;
use crate::id::{NodeId, Tick};

/// The volume that a snapshot was taken of, as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Nodes whose copies of it are in sync.
    pub in_sync: &'a [NodeId],
    /// It is attached: its own copies are replaced, and snapshots follow them.
    pub served: bool,
}

/// A node that cannot make its copy, for a reason of its own: another node may be able to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The node.
    pub node: NodeId,
    /// Since when each attempt has failed.
    pub since: Tick,
    /// When that was heard last.
    pub last: Tick,
}

/// Everything that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Copies wanted.
    pub wanted: usize,
    /// Nodes that have one.
    pub copies: &'a [NodeId],
    /// Nodes that make one.
    pub making: &'a [NodeId],
    /// A copy lacks blocks that others may have.
    pub gaps: bool,
    /// Nodes whose copies do, as far as that is known.
    pub gapped: &'a [NodeId],
    /// Nodes that made one in vain, or do.
    pub failing: &'a [Failing],
    /// Nodes whose pool is too full for another.
    pub full: &'a [NodeId],
    /// The volume; none if it was deleted.
    pub volume: Option<Source<'a>>,
    /// Every node of the cluster, with what is known of its copy of the snapshot.
    pub nodes: &'a [NodeState],
    /// Every pool of every node.
    pub candidates: &'a [Candidate],
    /// Which nodes hold copies together, of all volumes.
    pub sets: &'a Copysets,
    /// The snapshot's size in bytes.
    pub bytes: u64,
    /// Its pool on each node.
    pub pool: &'a str,
    /// The time.
    pub now: Tick,
    /// How long a silent node may take to come back, in milliseconds.
    pub grace_ms: u64,
}

/// What to do about a snapshot's copies, and why. One thing at a time: the next look decides about
/// the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are as many copies as wanted.
    Enough,
    /// They are being made.
    Coming,
    /// Copies are missed whose nodes may still come back.
    Wait {
        /// When to look again.
        until: Tick,
    },
    /// Too many nodes are silent, as in [`super::replacement::Verdict::Braked`].
    Braked {
        /// Nodes that do not answer.
        silent: usize,
        /// Nodes in all.
        nodes: usize,
    },
    /// No node that has it answers.
    NoSource,
    /// The volume is about to get a copy, and the snapshot one beside it.
    Follows,
    /// No node fits.
    NoRoom(PlacementError),
    /// A copy is to be made here.
    Make(NodeId),
    /// The making of this one is to be given up: it is not needed, or its node is lost.
    GiveUp(NodeId),
    /// This copy is to be removed: it is lost, or one too many.
    Forget(NodeId),
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Present,
    /// Its node may come back until then.
    Missed(Tick),
    Lost,
}

/// What to do about a snapshot's copies now.
#[must_use]
pub fn assess(view: &View<'_>) -> Verdict {
    if let Some(node) = view.making.iter().find(|node| view.fate(node) == Fate::Lost) {
        return Verdict::GiveUp(node.clone());
    }
    let fates: Vec<(&NodeId, Fate)> = view.copies.iter().map(|n| (n, view.fate(n))).collect();
    let present = fates.iter().filter(|(_, fate)| *fate == Fate::Present).count();
    if present >= view.wanted {
        return trim(view, &fates, present);
    }
    if let Some(node) = in_vain(view) {
        return Verdict::GiveUp(node.clone());
    }
    let coming = view.making.len();
    if present + coming >= view.wanted {
        return Verdict::Coming;
    }
    let missed: Vec<Tick> = fates.iter().filter_map(|(_, fate)| fate.until()).collect();
    if present + coming + missed.len() >= view.wanted
        && let Some(until) = missed.into_iter().min()
    {
        return Verdict::Wait { until };
    }
    let (silent, nodes) = view.silent_nodes();
    if silent * 3 > nodes {
        return Verdict::Braked { silent, nodes };
    }
    if !view.copies.iter().any(|node| view.has(node)) {
        return Verdict::NoSource;
    }
    place(view, &fates)
}

/// A node that does not get to make its copy, if there is another that may. Else it goes on trying:
/// it is the first to know when it can.
fn in_vain<'a>(view: &View<'a>) -> Option<&'a NodeId> {
    let node = view.making.iter().find(|node| view.fails(node))?;
    let others: Vec<NodeId> = view.making.iter().filter(|n| *n != node).cloned().collect();
    let without = View { making: &others, ..*view };
    matches!(assess(&without), Verdict::Make(_)).then_some(node)
}

/// There are enough: nothing is made any more, and what is lost or too many goes.
fn trim(view: &View<'_>, fates: &[(&NodeId, Fate)], present: usize) -> Verdict {
    if let Some(node) = view.making.first() {
        return Verdict::GiveUp(node.clone());
    }
    // One that is only silent may have what the others lack.
    let may_have = |node: &NodeId| view.gaps && view.node(node).is_some_and(|n| !n.answers);
    let lost = |(node, fate): &&(&NodeId, Fate)| *fate == Fate::Lost && !may_have(node);
    if let Some((node, _)) = fates.iter().find(lost) {
        return Verdict::Forget((*node).clone());
    }
    if present == view.wanted {
        return Verdict::Enough;
    }
    // While blocks are missed, any other copy may be the last one that has them.
    let may_go = |node: &NodeId| !view.gaps || view.gapped.contains(node);
    // The one that shares least with what is beside it.
    let apart = |node: &NodeId| !view.volume.is_some_and(|v| v.in_sync.contains(node));
    let present = |(node, fate): &&(&NodeId, Fate)| *fate == Fate::Present && may_go(node);
    let here = fates.iter().rev().filter(present);
    let spare = here.clone().find(|(node, _)| apart(node)).or_else(|| here.clone().next());
    spare.map_or(Verdict::Enough, |(node, _)| Verdict::Forget((*node).clone()))
}

/// Chooses the node for another copy: beside one of the volume's, or as for a volume.
fn place(view: &View<'_>, fates: &[(&NodeId, Fate)]) -> Verdict {
    let counts = |node: &NodeId| {
        let there = fates.iter().any(|(n, fate)| *n == node && *fate != Fate::Lost);
        there || view.making.contains(node)
    };
    if let Some(volume) = view.volume {
        let fits = |node: &&NodeId| {
            let state = view.node(node);
            let stays = state.is_some_and(|n| n.answers && !n.leaving);
            let is_open = |c: &Candidate| c.pool == view.pool && !c.cordoned;
            let pool = view.candidates.iter().any(|c| c.node == **node && is_open(c));
            stays && pool && !counts(node) && !view.is_unfit(node)
        };
        if let Some(node) = volume.in_sync.iter().find(fits) {
            return Verdict::Make(node.clone());
        }
        let stays = |node: &&NodeId| view.node(node).is_some_and(|n| n.answers && !n.leaving);
        if volume.served && volume.in_sync.iter().filter(stays).count() < view.wanted {
            return Verdict::Follows;
        }
    }
    let leaving = view.nodes.iter().filter(|n| n.leaving).map(|n| n.node.clone());
    let silent = view.nodes.iter().filter(|n| !n.answers).map(|n| n.node.clone());
    let unfit = view.nodes.iter().filter(|n| view.is_unfit(&n.node)).map(|n| n.node.clone());
    let beside = fates.iter().filter(|(node, _)| counts(node)).map(|(node, _)| (*node).clone());
    let want = Want {
        bytes: view.bytes,
        copies: 1,
        pool: String::from(view.pool),
        prefer: None,
        beside: beside.chain(view.making.iter().cloned()).collect(),
        exclude: leaving.chain(silent).chain(unfit).collect(),
    };
    match placement::choose(&want, view.candidates, view.sets) {
        Err(error) => Verdict::NoRoom(error),
        Ok(chosen) => chosen.into_iter().next().map_or(Verdict::Enough, Verdict::Make),
    }
}

impl Fate {
    fn until(self) -> Option<Tick> {
        match self {
            Self::Missed(until) => Some(until),
            Self::Present | Self::Lost => None,
        }
    }
}

impl View<'_> {
    fn node(&self, node: &NodeId) -> Option<&NodeState> {
        self.nodes.iter().find(|n| n.node == *node)
    }

    /// Can its copy be read now?
    fn has(&self, node: &NodeId) -> bool {
        self.node(node).is_some_and(|n| n.answers && !n.lacks_copy)
    }

    /// Has it failed to make a copy for as long as a lost node may take to come back, and not so
    /// long ago that it is worth another attempt?
    fn fails(&self, node: &NodeId) -> bool {
        let long = |f: &&Failing| f.last.ms_since(f.since) >= self.grace_ms;
        let mut failing = self.failing.iter().filter(|f| f.node == *node).filter(long);
        failing.any(|f| self.now.ms_since(f.last) < self.grace_ms)
    }

    /// Can it not make a copy now?
    fn is_unfit(&self, node: &NodeId) -> bool {
        self.full.contains(node) || self.fails(node)
    }

    fn fate(&self, node: &NodeId) -> Fate {
        let Some(state) = self.node(node).filter(|n| !n.leaving) else { return Fate::Lost };
        match state.silent_since.map(|since| since.plus_ms(self.grace_ms)) {
            None => Fate::Present,
            Some(until) if until <= self.now => Fate::Lost,
            Some(until) => Fate::Missed(until),
        }
    }

    fn silent_nodes(&self) -> (usize, usize) {
        let staying = || self.nodes.iter().filter(|n| !n.leaving);
        (staying().filter(|n| !n.answers).count(), staying().count())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough => write!(f, "there are as many copies as wanted"),
            Self::Coming => write!(f, "missing copies are being made"),
            Self::Wait { .. } => write!(f, "waiting for a silent node to come back"),
            Self::Braked { silent, nodes } => write!(
                f,
                "{silent} of {nodes} nodes are silent; no copy is made anew while more than a \
                 third are"
            ),
            Self::NoSource => write!(
                f,
                "no node that has the snapshot answers; copies can be made when one is back"
            ),
            Self::Follows => {
                write!(f, "the volume lacks a copy too; the snapshot's is made beside it")
            }
            Self::NoRoom(error) => write!(f, "no node for another copy: {error}"),
            Self::Make(node) => write!(f, "a copy is made on {node}"),
            Self::GiveUp(node) => write!(f, "the copy that {node} makes is given up"),
            Self::Forget(node) => write!(f, "the copy on {node} is forgotten"),
        }
    }
}
