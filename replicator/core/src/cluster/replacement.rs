//! When a lost copy is replaced, where the new one goes, and when one is too many.

#[cfg(test)]
pub(super) mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::copysets::Copysets;
use super::placement::{self, Candidate, PlacementError, Want};
use crate::id::{NodeId, ReplicaId, Tick};
use crate::limits::MAX_REPLICA_ENTRIES;
use crate::range::BLOCK_SIZE;
use crate::record::{Record, ReplicaEntry, ReplicaState};

/// Everything that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The volume.
    pub record: &'a Record,
    /// Every node of the cluster; one that is missing here was deleted.
    pub nodes: &'a [NodeState],
    /// Every pool of every node.
    pub candidates: &'a [Candidate],
    /// Which nodes hold copies together, of all volumes.
    pub sets: &'a Copysets,
    /// The time.
    pub now: Tick,
    /// How long a silent node may take to come back, in milliseconds.
    pub grace_ms: u64,
    /// A copy goes where the volume is served.
    pub follow: bool,
}

/// A node, as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// The node.
    pub node: NodeId,
    /// Since when it does not answer, or its copy of the volume is not reached, if so.
    pub silent_since: Option<Tick>,
    /// It answers, whatever may be with its copy.
    pub answers: bool,
    /// It answers, and says that it has no such copy, in a pool that it has.
    pub lacks_copy: bool,
    /// It is being drained: its copies are replaced at once, and it gets no new ones.
    pub leaving: bool,
}

/// A new copy to be made (T9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replace {
    /// On this node.
    pub node: NodeId,
    /// In this pool.
    pub pool: String,
    /// The copies that are missed.
    pub lost: Vec<ReplicaId>,
}

/// What to do about a volume's copies, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There are as many copies as wanted, or they are coming.
    Enough,
    /// Copies are missed whose nodes may still come back.
    Wait {
        /// When to look again.
        until: Tick,
    },
    /// A new copy is needed, but too many nodes are silent: the network is more likely to be
    /// broken than they are, and copying would make it worse.
    Braked {
        /// Nodes that do not answer.
        silent: usize,
        /// Nodes in all.
        nodes: usize,
    },
    /// A new copy is needed, but no copy with all data answers to make it from.
    NoSource,
    /// A new copy is needed, but the record has no room for another entry.
    RecordFull,
    /// A new copy is needed, but no node fits.
    NoRoom(PlacementError),
    /// A new copy is needed, and here is where.
    Replace(Replace),
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has all data, or will have: its node answers.
    Present,
    /// Its node is silent, but may come back until then.
    Missed(Tick),
    /// It does not count any more.
    Lost,
}

/// The new copy that the volume needs now, if any: [`assess`] without the reasons.
#[must_use]
pub fn decide(view: &View<'_>) -> Option<Replace> {
    match assess(view) {
        Verdict::Replace(replace) => Some(replace),
        Verdict::Enough
        | Verdict::Wait { .. }
        | Verdict::Braked { .. }
        | Verdict::NoSource
        | Verdict::RecordFull
        | Verdict::NoRoom(_) => None,
    }
}

/// What to do about a volume's copies, and why. At most one copy is added at a time; once it is
/// in the record it counts as coming, so the next look decides about the next.
#[must_use]
pub fn assess(view: &View<'_>) -> Verdict {
    let record = view.record;
    let fates: Vec<(&ReplicaEntry, Fate)> =
        record.replicas.iter().map(|entry| (entry, view.fate(entry))).collect();
    let wanted = usize::from(record.repl);
    let count = |keep: fn(Fate) -> bool| fates.iter().filter(|(_, fate)| keep(*fate)).count();
    if count(|fate| fate == Fate::Present) >= wanted {
        return Verdict::Enough;
    }
    if count(|fate| fate != Fate::Lost) >= wanted {
        let ends = fates.iter().filter_map(|(_, fate)| match fate {
            Fate::Missed(until) => Some(*until),
            Fate::Present | Fate::Lost => None,
        });
        return ends.min().map_or(Verdict::Enough, |until| Verdict::Wait { until });
    }
    let (silent, nodes) = view.silent_nodes();
    if silent * 3 > nodes {
        return Verdict::Braked { silent, nodes };
    }
    if !record.in_sync().any(|entry| view.answers(&entry.node)) {
        return Verdict::NoSource;
    }
    if record.replicas.len() >= MAX_REPLICA_ENTRIES {
        return Verdict::RecordFull;
    }
    place(view, &fates)
}

/// Chooses the node for a new copy.
fn place(view: &View<'_>, fates: &[(&ReplicaEntry, Fate)]) -> Verdict {
    let record = view.record;
    let is_lost = |(_, fate): &&(&ReplicaEntry, Fate)| *fate == Fate::Lost;
    let lost: Vec<&ReplicaEntry> = fates.iter().filter(is_lost).map(|(entry, _)| *entry).collect();
    let kept = fates.iter().filter(|fate| !is_lost(fate)).map(|(entry, _)| entry.node.clone());
    let leaving = view.nodes.iter().filter(|n| n.leaving).map(|n| n.node.clone());
    let pool = lost.first().copied().or(record.replicas.first()).map(|entry| entry.pool.clone());
    let pool = pool.unwrap_or_default();
    let here = record.primary.as_ref().map(|p| &p.node);
    let want = Want {
        bytes: record.blocks.saturating_mul(u64::from(BLOCK_SIZE)),
        copies: 1,
        pool: pool.clone(),
        prefer: here.or(record.attach.as_ref().map(|a| &a.node)).cloned(),
        beside: kept.collect(),
        exclude: lost.iter().map(|entry| entry.node.clone()).chain(leaving).collect(),
    };
    match placement::choose(&want, view.candidates, view.sets) {
        Err(error) => Verdict::NoRoom(error),
        Ok(chosen) => match chosen.into_iter().next() {
            None => Verdict::Enough,
            Some(node) => {
                let lost = lost.iter().map(|entry| entry.rid).collect();
                Verdict::Replace(Replace { node, pool, lost })
            }
        },
    }
}

/// A copy that may be forgotten (T9): as many as wanted are in sync on nodes that answer, and
/// this one is not. Those on their way out come first, then the silent, then the others, by id:
/// so a returning copy and its replacement race, and the loser goes. For one on its way out as
/// many as needed suffice: it never comes back, and as long as it is listed its node gets no other
/// copy, which may be the only place left for one.
#[must_use]
pub fn surplus(view: &View<'_>) -> Option<ReplicaId> {
    let record = view.record;
    let good = record.in_sync().filter(|entry| view.fate(entry) == Fate::Present).count();
    let whole = record.in_sync().filter(|entry| view.answers(&entry.node)).count();
    let beside = |entry: &ReplicaEntry| {
        view.follow && record.primary.as_ref().is_some_and(|p| p.node == entry.node)
    };
    let may = |entry: &&ReplicaEntry| match entry.state {
        // It is to take the place of another.
        ReplicaState::New | ReplicaState::Out { .. } if beside(entry) => false,
        ReplicaState::InSync => false,
        ReplicaState::Leaving => whole >= usize::from(record.min_in_sync),
        ReplicaState::New | ReplicaState::Out { .. } => good >= usize::from(record.repl),
    };
    let others = record.replicas.iter().filter(may);
    let rank = |entry: &&ReplicaEntry| {
        (entry.state != ReplicaState::Leaving, view.answers(&entry.node), entry.rid)
    };
    others.min_by_key(rank).map(|entry| entry.rid)
}

/// A copy that is gone for good although its node answers: its disk was replaced, say. It may be
/// forgotten (T9), so that its node may get a new one; else the entries of vanished copies could
/// keep every node from holding one, and a volume with too few members suspended for good. Not
/// while no copy with all data answers: whoever repairs that by hand should see everything that
/// ever was.
#[must_use]
pub fn vanished(view: &View<'_>) -> Option<ReplicaId> {
    let record = view.record;
    if !record.in_sync().any(|entry| view.answers(&entry.node)) {
        return None;
    }
    let lacks = |entry: &&ReplicaEntry| view.node(&entry.node).is_some_and(|n| n.lacks_copy);
    let out = record.replicas.iter().filter(|entry| entry.state != ReplicaState::InSync);
    out.filter(lacks).find(|entry| view.fate(entry) == Fate::Lost).map(|entry| entry.rid)
}

impl View<'_> {
    fn node(&self, node: &NodeId) -> Option<&NodeState> {
        self.nodes.iter().find(|n| n.node == *node)
    }

    fn answers(&self, node: &NodeId) -> bool {
        self.node(node).is_some_and(|n| n.silent_since.is_none())
    }

    /// Does it count as a copy, now?
    pub(super) fn is_present(&self, entry: &ReplicaEntry) -> bool {
        self.fate(entry) == Fate::Present
    }

    /// Is the node being emptied, or was it removed?
    pub(super) fn is_emptied(&self, node: &NodeId) -> bool {
        self.node(node).is_none_or(|n| n.leaving)
    }

    fn fate(&self, entry: &ReplicaEntry) -> Fate {
        let Some(node) = self.node(&entry.node).filter(|n| !n.leaving) else { return Fate::Lost };
        match (entry.state, node.silent_since) {
            (ReplicaState::Leaving, _) => Fate::Lost,
            (_, None) => Fate::Present,
            (_, Some(since)) => {
                let until = since.plus_ms(self.grace_ms);
                if until <= self.now { Fate::Lost } else { Fate::Missed(until) }
            }
        }
    }

    /// How many nodes are silent, of how many. Those that are being drained may well be. One that
    /// lost its copy but answers is not: the network is not what ails it.
    fn silent_nodes(&self) -> (usize, usize) {
        let staying = || self.nodes.iter().filter(|n| !n.leaving);
        (staying().filter(|n| !n.answers).count(), staying().count())
    }
}

impl Verdict {
    /// Is a new copy needed that cannot be made?
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        match self {
            Self::Braked { .. } | Self::NoSource | Self::RecordFull | Self::NoRoom(_) => true,
            Self::Enough | Self::Wait { .. } | Self::Replace(_) => false,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough => write!(f, "there are as many copies as wanted, or they are coming"),
            Self::Wait { .. } => write!(f, "waiting for a silent node to come back"),
            Self::Braked { silent, nodes } => write!(
                f,
                "{silent} of {nodes} nodes are silent; no copy is replaced while more than a \
                 third are"
            ),
            Self::NoSource => write!(
                f,
                "no node with an in-sync copy answers; a new copy can be made when one is back"
            ),
            Self::RecordFull => {
                write!(f, "the volume has {MAX_REPLICA_ENTRIES} copies on record; forget one")
            }
            Self::NoRoom(error) => write!(f, "no node for a new copy: {error}"),
            Self::Replace(replace) => write!(f, "a new copy is made on {}", replace.node),
        }
    }
}
