//! The range lock: no two overlapping mutations are in flight at once, and a read waits for an
//! overlapping write (`docs/protocol.md` §Write path).
//!
//! It is fair: a request waits while it conflicts with any that came before it, held or waiting,
//! so a stream of readers can't starve a writer and overlapping operations run in the order in
//! which they arrived. Overlapping means "shares a block"; a conflict is an overlap in which at
//! least one side is exclusive.

#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::hash::{Hash, Hasher};

use crate::alike::{Aside, Kind};
use crate::limits::MAX_OP_BLOCKS;
use crate::range::BlockRange;

/// Names one request for the lock; chosen by the caller, unique among those present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockId(pub u64);

impl Hash for LockId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Kind::Lock.hash(self.0, state);
    }
}

impl fmt::Display for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Who else may hold the same blocks at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Others that are shared: reads.
    Shared,
    /// Nobody: writes, and resync windows.
    Exclusive,
}

impl Mode {
    fn conflicts(self, other: Self) -> bool {
        self == Self::Exclusive || other == Self::Exclusive
    }
}

/// Where a request is kept: by first block, then by order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    start: u64,
    ticket: u64,
}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.start.hash(state);
        Kind::Ticket.hash(self.ticket, state);
    }
}

/// A request that is held or waits.
#[derive(Clone, Copy, Debug, Hash)]
struct Claim {
    id: LockId,
    range: BlockRange,
    mode: Mode,
    /// Conflicting requests that came earlier and are still here. The lock is held exactly if
    /// there are none.
    blockers: usize,
}

/// Locks on ranges of at most [`MAX_OP_BLOCKS`] blocks. An operation costs O(log n + k) for n
/// requests of which k start within [`MAX_OP_BLOCKS`] of the range.
#[derive(Clone, Debug, Default, Hash)]
pub struct RangeLock {
    claims: BTreeMap<Place, Claim>,
    places: BTreeMap<LockId, Place>,
    /// Of the next request; grows by one each time, so it orders requests by arrival.
    next_ticket: Aside<u64>,
}

impl RangeLock {
    /// Asks for `range`. True if it is held at once; otherwise `id` waits and is reported by the
    /// [`Self::release`] or [`Self::cancel`] that lets it in.
    ///
    /// # Panics
    /// If `id` is present already, or `range` is longer than [`MAX_OP_BLOCKS`].
    #[must_use]
    pub fn acquire(&mut self, id: LockId, range: BlockRange, mode: Mode) -> bool {
        assert!(range.count > 0 && range.count <= MAX_OP_BLOCKS, "range {range:?} is too long");
        let blockers = self.neighbours(range).filter(|(_, c)| c.mode.conflicts(mode)).count();
        let place = Place { start: range.start, ticket: *self.next_ticket };
        *self.next_ticket += 1;
        assert!(self.places.insert(id, place).is_none(), "lock {id} is present already");
        let before = self.claims.insert(place, Claim { id, range, mode, blockers });
        assert!(before.is_none(), "two requests in one place: {place:?}");
        blockers == 0
    }

    /// Gives back what `id` holds. Pushes those that hold their range from now on, in order of
    /// arrival.
    ///
    /// # Panics
    /// If `id` is not held.
    pub fn release(&mut self, id: LockId, granted: &mut Vec<LockId>) {
        let was_held = self.take_out(id, granted);
        assert!(was_held == Some(true), "release of lock {id}, which is not held");
    }

    /// Withdraws `id`, which waits. Pushes those that waited for it alone, in order of arrival.
    ///
    /// # Panics
    /// If `id` does not wait: a held lock is released, not cancelled.
    pub fn cancel(&mut self, id: LockId, granted: &mut Vec<LockId>) {
        let was_held = self.take_out(id, granted);
        assert!(was_held == Some(false), "cancel of lock {id}, which does not wait");
    }

    /// Does `id` hold its range? `None` if it is not present.
    #[must_use]
    pub fn is_held(&self, id: LockId) -> Option<bool> {
        let place = self.places.get(&id)?;
        self.claims.get(place).map(|claim| claim.blockers == 0)
    }

    /// Asserts every internal invariant; costs O(n k).
    pub fn check(&self) {
        assert_eq!(self.claims.len(), self.places.len(), "an id or a claim is lost");
        for (place, claim) in &self.claims {
            assert_eq!(self.places.get(&claim.id), Some(place), "lock {} is misplaced", claim.id);
            let earlier = self
                .neighbours(claim.range)
                .filter(|(p, other)| p.ticket < place.ticket && other.mode.conflicts(claim.mode));
            assert_eq!(earlier.count(), claim.blockers, "lock {} miscounts", claim.id);
        }
    }

    /// Those that share a block with `range`.
    fn neighbours(&self, range: BlockRange) -> impl Iterator<Item = (&Place, &Claim)> {
        let (first, end) = reach(range);
        self.claims.range(first..end).filter(move |(_, claim)| claim.range.overlaps(range))
    }

    /// Removes `id` and lets in whom only it kept out. `None` if it was not present, else
    /// whether it was held.
    fn take_out(&mut self, id: LockId, granted: &mut Vec<LockId>) -> Option<bool> {
        let place = self.places.remove(&id)?;
        let gone = self.claims.remove(&place);
        assert!(gone.is_some_and(|claim| claim.id == id), "lock {id} is misplaced");
        let gone = gone?;
        let (first, end) = reach(gone.range);
        let mut freed: Vec<(u64, LockId)> = Vec::new();
        for (other_place, other) in self.claims.range_mut(first..end) {
            let waits_for_it = other_place.ticket > place.ticket
                && other.range.overlaps(gone.range)
                && other.mode.conflicts(gone.mode);
            if waits_for_it {
                assert!(other.blockers > 0, "lock {} did not count lock {id}", other.id);
                other.blockers -= 1;
                if other.blockers == 0 {
                    freed.push((other_place.ticket, other.id));
                }
            }
        }
        freed.sort_unstable();
        granted.extend(freed.into_iter().map(|(_, id)| id));
        Some(gone.blockers == 0)
    }
}

/// Every place from which a claim can reach into `range`, as a half-open interval.
fn reach(range: BlockRange) -> (Place, Place) {
    let look_back = u64::from(MAX_OP_BLOCKS) - 1;
    let first = Place { start: range.start.saturating_sub(look_back), ticket: 0 };
    (first, Place { start: range.end(), ticket: 0 })
}
