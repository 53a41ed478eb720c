//! Which copy in good order is one too many, and which numbers of copies may be in force.

#[cfg(test)]
mod tests;

use core::cmp::Reverse;

use super::placement::{Candidate, twentieths_free};
use super::replacement::View;
use crate::id::ReplicaId;
use crate::record::{Record, ReplicaEntry};

/// An in-sync copy that is to leave: as many others as wanted are in sync on nodes that stay and
/// answer. A copy on a node that is being emptied or was removed goes first; then, if there are
/// more copies than wanted, the one that is missed least: not the one beside the primary, one
/// whose zone has another, in the fullest pool. `None` while none may go.
#[must_use]
pub fn spare(view: &View<'_>) -> Option<ReplicaId> {
    let record = view.record;
    let wanted = usize::from(record.repl);
    let good = || record.in_sync().filter(|entry| view.is_present(entry));
    if good().count() < wanted {
        return None;
    }
    let emptied = record.in_sync().find(|entry| view.is_emptied(&entry.node));
    if let Some(entry) = emptied {
        return Some(entry.rid);
    }
    if good().count() <= wanted {
        return None;
    }
    let pool = |entry: &ReplicaEntry| {
        view.candidates.iter().find(|c| c.node == entry.node && c.pool == entry.pool)
    };
    let zone = |entry: &ReplicaEntry| pool(entry).and_then(|c| c.zone.as_deref());
    let crowd = |entry: &ReplicaEntry| good().filter(|e| zone(e) == zone(entry)).count();
    let here = record.primary.as_ref().map(|p| &p.node);
    let rank = |entry: &&ReplicaEntry| {
        let free = pool(entry).map_or(0, |c: &Candidate| twentieths_free(c));
        (here != Some(&entry.node), crowd(entry), Reverse(free), entry.rid)
    };
    good().max_by_key(rank).map(|entry| entry.rid)
}

/// How many copies a volume's owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Copies in all.
    pub repl: u8,
    /// Fewest copies that an acknowledged write may have.
    pub min_in_sync: u8,
}

impl Wanted {
    /// What a record has in force.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        Self { repl: record.repl, min_in_sync: record.min_in_sync }
    }
}

/// The numbers of copies to put in force now, if others than those of the record. Fewer are in
/// force at once; a higher minimum only once so many in-sync copies are `at_hand`, since writes
/// would wait for them.
#[must_use]
pub fn settle(record: &Record, wanted: Wanted, at_hand: usize) -> Option<Wanted> {
    let raises = wanted.min_in_sync > record.min_in_sync;
    let possible = !raises || usize::from(wanted.min_in_sync) <= at_hand;
    let min_in_sync = if possible { wanted.min_in_sync } else { record.min_in_sync };
    let next = Wanted { repl: wanted.repl.max(min_in_sync), min_in_sync };
    (next != Wanted::of(record)).then_some(next)
}
