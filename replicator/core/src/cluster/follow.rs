//! When a copy goes where the volume is served.

#[cfg(test)]
mod tests;

use super::placement::{self, Want};
use super::replacement::{Replace, Verdict, View, assess};
use crate::id::{NodeId, Tick};
use crate::limits::MAX_REPLICA_ENTRIES;
use crate::range::BLOCK_SIZE;
use crate::record::ReplicaState;

/// The copy to be made beside the primary of a volume that wants one there: it has none, has been
/// served there since so long that it is likely to stay, and nothing else is to be done about its
/// copies. Once it is in sync there is one copy too many, and another one
/// [leaves](super::trim::spare).
#[must_use]
pub fn follow(view: &View<'_>, since: Tick) -> Option<Replace> {
    let record = view.record;
    let here = record.primary.as_ref().map(|primary| &primary.node)?;
    let quiet = record.replicas.iter().all(|entry| entry.state == ReplicaState::InSync);
    if !view.follow
        || !quiet
        || since.plus_ms(view.grace_ms) > view.now
        || record.replicas.iter().any(|entry| entry.node == *here)
        || record.replicas.len() >= MAX_REPLICA_ENTRIES
        || assess(view) != Verdict::Enough
    {
        return None;
    }
    let pool = record.replicas.first()?.pool.clone();
    let leaving = view.nodes.iter().filter(|node| node.leaving);
    let want = Want {
        bytes: record.blocks.saturating_mul(u64::from(BLOCK_SIZE)),
        copies: 1,
        pool: pool.clone(),
        exclude: leaving.map(|node| node.node.clone()).collect(),
        ..Want::default()
    };
    let is_here =
        |(node, misfit): &(NodeId, Option<placement::Misfit>)| node == here && misfit.is_none();
    let fits = placement::fits(&want, view.candidates).iter().any(is_here);
    // Where the volume is to leave soon, nothing is gained by a copy.
    let is_leaving = view.candidates.iter().any(|c| c.node == *here && c.cordoned);
    (fits && !is_leaving).then(|| Replace {
        node: here.clone(),
        pool,
        lost: alloc::vec::Vec::new(),
    })
}
