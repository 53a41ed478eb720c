//! Where the copies of a volume go.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::copysets::{self, Copysets, SCATTER_WIDTH};
use crate::id::NodeId;

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Room that each copy needs, in bytes.
    pub bytes: u64,
    /// Number of copies to place now.
    pub copies: usize,
    /// The pool on each node.
    pub pool: String,
    /// The node that should have a copy, if one fits there: where the pod is.
    pub prefer: Option<NodeId>,
    /// Nodes that have a copy already: they get no other, and their zones count as used.
    pub beside: Vec<NodeId>,
    /// Nodes that get no copy for another reason, such as a drain.
    pub exclude: Vec<NodeId>,
}

/// A pool on a node, as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Name of the pool.
    pub pool: String,
    /// Room left for copies, in bytes, after reserve and over-provisioning.
    pub free_bytes: u64,
    /// Room in all, in bytes.
    pub total_bytes: u64,
    /// Value of the label over which copies are spread; without one, nodes are alike.
    pub zone: Option<String>,
    /// Does the node answer?
    pub live: bool,
    /// Copies in the pool.
    pub replicas: u32,
    /// People, or a program, are about to take the node down: it gets a copy only where no other
    /// node can have it. What it has stays.
    pub cordoned: bool,
}

/// Why a node gets no copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It has one already.
    HasCopy,
    /// It was excluded.
    Excluded,
    /// It does not answer.
    Silent,
    /// It has no pool of this name.
    NoPool(String),
    /// Its pool is too full.
    TooFull {
        /// The pool.
        pool: String,
        /// Room left, in bytes.
        free_bytes: u64,
        /// Room needed, in bytes.
        needed_bytes: u64,
    },
}

/// There are not enough nodes that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementError {
    /// Copies wanted.
    pub wanted: usize,
    /// Nodes that fit.
    pub fits: usize,
    /// Why each of the others does not, by name.
    pub misfits: Vec<(NodeId, Misfit)>,
}

/// Chooses a node for each copy wanted: the preferred one first, then, as far as possible, nodes
/// in zones not used yet, and within the [scatter width](SCATTER_WIDTH) of `sets`, which are those
/// of the volumes there are; among those the emptiest pool, then the fewest copies, then the name.
/// How empty a pool is counts in steps of 5 %: thin volumes take room only later, so pools about
/// as full as each other are told apart by their copies. Cordoned nodes come after all others,
/// whatever speaks for them.
///
/// # Errors
/// If fewer nodes fit than copies are wanted; says why the others do not.
pub fn choose(
    want: &Want,
    candidates: &[Candidate],
    sets: &Copysets,
) -> Result<Vec<NodeId>, PlacementError> {
    let mut fitting: Vec<&Candidate> = Vec::new();
    let mut misfits = Vec::new();
    let nodes: BTreeSet<&NodeId> = candidates.iter().map(|c| &c.node).collect();
    for node in nodes {
        match fit(want, node, candidates) {
            Ok(candidate) => fitting.push(candidate),
            Err(misfit) => misfits.push((node.clone(), misfit)),
        }
    }
    if fitting.len() < want.copies {
        return Err(PlacementError { wanted: want.copies, fits: fitting.len(), misfits });
    }
    let beside: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| want.beside.contains(&c.node) && c.pool == want.pool)
        .collect();
    let (cordoned, open): (Vec<&Candidate>, Vec<&Candidate>) =
        fitting.into_iter().partition(|c| c.cordoned);
    let first = Want { copies: want.copies.min(open.len()), ..want.clone() };
    let mut chosen = copysets::choose(&first, &open, &beside, sets, SCATTER_WIDTH);
    let rest = Want { copies: want.copies - first.copies, ..want.clone() };
    let beside: Vec<&Candidate> = beside.into_iter().chain(chosen.iter().copied()).collect();
    chosen.extend(copysets::choose(&rest, &cordoned, &beside, sets, SCATTER_WIDTH));
    let chosen: Vec<NodeId> = chosen.into_iter().map(|c| c.node.clone()).collect();
    assert_eq!(chosen.len(), want.copies, "nodes that fit were not chosen");
    Ok(chosen)
}

/// Whether a copy would fit on each node, and if not, why not, by name.
#[must_use]
pub fn fits(want: &Want, candidates: &[Candidate]) -> Vec<(NodeId, Option<Misfit>)> {
    let nodes: BTreeSet<&NodeId> = candidates.iter().map(|c| &c.node).collect();
    let fits = |node: &NodeId| (node.clone(), fit(want, node, candidates).err());
    nodes.into_iter().map(fits).collect()
}

/// The pool of `node` in which a copy fits.
fn fit<'a>(
    want: &Want,
    node: &NodeId,
    candidates: &'a [Candidate],
) -> Result<&'a Candidate, Misfit> {
    if want.beside.contains(node) {
        return Err(Misfit::HasCopy);
    }
    if want.exclude.contains(node) {
        return Err(Misfit::Excluded);
    }
    let pool = candidates.iter().find(|c| c.node == *node && c.pool == want.pool);
    let candidate = pool.ok_or_else(|| Misfit::NoPool(want.pool.clone()))?;
    if !candidate.live {
        return Err(Misfit::Silent);
    }
    if candidate.free_bytes < want.bytes {
        return Err(Misfit::TooFull {
            pool: want.pool.clone(),
            free_bytes: candidate.free_bytes,
            needed_bytes: want.bytes,
        });
    }
    Ok(candidate)
}

/// How much of a pool is free, in twentieths, 20 at most.
pub(super) fn twentieths_free(candidate: &Candidate) -> u64 {
    let free = candidate.free_bytes.min(candidate.total_bytes);
    // Divided first, so that it can't overflow; pools are far larger than 20 bytes.
    free / (candidate.total_bytes / 20).max(1)
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = if self.fits == 1 { "node fits" } else { "nodes fit" };
        let copies = if self.wanted == 1 { "copy is" } else { "copies are" };
        write!(f, "{} {copies} wanted, but {} {node}", self.wanted, self.fits)?;
        for (index, (node, misfit)) in self.misfits.iter().enumerate() {
            write!(f, "{} {node}: {misfit}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl core::error::Error for PlacementError {}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HasCopy => write!(f, "has a copy already"),
            Self::Excluded => write!(f, "takes no copies"),
            Self::Silent => write!(f, "does not answer"),
            Self::NoPool(pool) => write!(f, "has no pool {pool}"),
            Self::TooFull { pool, free_bytes, needed_bytes } => {
                let (free, needed) = (Size(*free_bytes, false), Size(*needed_bytes, true));
                write!(f, "pool {pool} has {free} free, {needed} needed")
            }
        }
    }
}

/// Bytes for people: GiB with one decimal, or MiB. Rounded up if so said, else down, so that what
/// is free never reads as if it were enough.
struct Size(u64, bool);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        let Self(bytes, up) = *self;
        let round = |unit: u64| if up { bytes.div_ceil(unit) } else { bytes / unit };
        if bytes >= 1024 * MIB {
            // A tenth of a GiB is no whole number of bytes; in MiB the error does not show.
            let mib = u128::from(round(MIB)) * 10;
            let tenths = if up { mib.div_ceil(1024) } else { mib / 1024 };
            write!(f, "{}.{} GiB", tenths / 10, tenths % 10)
        } else {
            write!(f, "{} MiB", round(MIB))
        }
    }
}
