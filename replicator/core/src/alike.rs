//! Which states of a machine are alike: how machines are hashed.
//!
//! An explorer that goes through every state has to tell states that differ from states that
//! behave alike. All state is hashed, with two exceptions. What decides nothing (statistics,
//! sources of fresh names) is kept [`Aside`]. Numbers that mean something only in comparison with
//! others of their kind (sequence numbers, times, names of connections) are passed to the hasher
//! by [`Kind::hash`], so that it can rename them.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::ops::{Deref, DerefMut};

use crate::id::Tick;

/// Numbers that mean something only in comparison with others of their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// [`crate::id::Seq`]; compared within one epoch.
    Seq,
    /// A `Seq` that an answer is known by. Where it is not met as a [`Self::Seq`] too, it is not
    /// compared with any other, but for being the same.
    Call,
    /// A `Seq` up to which something goes, compared only with those met as [`Self::Seq`]: how many
    /// of them are not above it counts.
    Bound,
    /// [`crate::id::Tick`]; compared within one process.
    Tick,
    /// A time that only a read asks about, compared like any other.
    Lease,
    /// A time at which something is to be done, if time passes; `u64::MAX` if nothing is. Nothing
    /// else depends on it.
    Due,
    /// [`crate::id::Conn`].
    Conn,
    /// [`crate::id::Token`].
    Token,
    /// [`crate::lock::LockId`].
    Lock,
    /// Order of arrival at a [`crate::lock::RangeLock`].
    Ticket,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Seq,
        Self::Call,
        Self::Bound,
        Self::Tick,
        Self::Lease,
        Self::Due,
        Self::Conn,
        Self::Token,
        Self::Lock,
        Self::Ticket,
    ];

    /// Hashes `value`. Nothing else in a machine uses the hasher's method for `i128`.
    pub fn hash<H: Hasher>(self, value: u64, state: &mut H) {
        state.write_i128(i128::from(self as u8) << 64 | i128::from(value));
    }

    /// What was given to the hasher as `hashed`.
    #[must_use]
    pub fn of(hashed: i128) -> Option<(Self, u64)> {
        let kind = usize::try_from(hashed >> 64).ok()?;
        let value = u64::try_from(hashed & i128::from(u64::MAX)).ok()?;
        Some((*Self::ALL.get(kind)?, value))
    }
}

/// Hashes when something is to be done.
pub(crate) fn hash_due<H: Hasher>(due: Option<Tick>, state: &mut H) {
    Kind::Due.hash(due.map_or(u64::MAX, |at| at.0), state);
}

/// State that decides nothing.
#[derive(Clone, Copy, Default)]
pub struct Aside<T>(pub T);

impl<T> Hash for Aside<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl<T> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Aside<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Aside<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_known_by_what_it_hashes() {
        struct Last(i128);
        impl Hasher for Last {
            fn write(&mut self, _: &[u8]) {}
            fn write_i128(&mut self, value: i128) {
                self.0 = value;
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        for kind in Kind::ALL {
            for value in [0, 1, u64::MAX] {
                let mut last = Last(-1);
                kind.hash(value, &mut last);
                assert_eq!(Kind::of(last.0), Some((kind, value)));
            }
        }
    }
}
