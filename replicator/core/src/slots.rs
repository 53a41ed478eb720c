//! How many resyncs run on one node at a time: more would only slow each other down, and the
//! guests with them. Volumes with the fewest copies come first.

use alloc::collections::{BTreeMap, BTreeSet};

use crate::id::{Tick, VolumeId};
use crate::limits;

/// What a volume's primary wants of the slots of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// None.
    Nothing,
    /// One, to start a resync; it has so many copies in sync.
    Wants {
        /// Copies in sync.
        copies: usize,
    },
    /// To keep the one it has.
    Keeps,
}

/// The slots of one node. Whoever wants one asks again and again.
#[derive(Clone, Debug, Default)]
pub struct Slots {
    held: BTreeSet<VolumeId>,
    /// Copies in sync of those that want one, and when each asked last.
    waiting: BTreeMap<VolumeId, (usize, Tick)>,
}

impl Slots {
    /// Tells what a volume's primary wants. True if it has a slot from now on, or still.
    pub fn tell(&mut self, now: Tick, volume: VolumeId, wish: Wish) -> bool {
        match wish {
            Wish::Nothing => {
                self.leave(volume);
                false
            }
            Wish::Keeps => {
                self.waiting.remove(&volume);
                self.held.insert(volume);
                true
            }
            Wish::Wants { copies } => self.ask(now, volume, copies),
        }
    }

    /// The volume wants nothing any more.
    pub fn leave(&mut self, volume: VolumeId) {
        self.held.remove(&volume);
        self.waiting.remove(&volume);
    }

    /// Slots taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.held.len()
    }

    fn ask(&mut self, now: Tick, volume: VolumeId, copies: usize) -> bool {
        self.held.remove(&volume);
        self.waiting.insert(volume, (copies, now));
        self.waiting.retain(|_, (_, at)| now.ms_since(*at) <= limits::RESYNC_SLOT_PATIENCE_MS);
        let before =
            |(other, (n, _)): &(&VolumeId, &(usize, Tick))| (*n, **other) < (copies, volume);
        let ahead = self.waiting.iter().filter(before).count();
        let granted = self.held.len() + ahead < limits::RESYNC_SLOTS;
        if granted {
            self.waiting.remove(&volume);
            self.held.insert(volume);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn volume(n: u128) -> VolumeId {
        VolumeId(Uuid::from_u128(n))
    }

    fn wants(slots: &mut Slots, ms: u64, n: u128, copies: usize) -> bool {
        slots.tell(Tick(ms * 1000), volume(n), Wish::Wants { copies })
    }

    #[test]
    fn there_are_only_so_many_and_they_come_back() {
        let mut slots = Slots::default();
        assert!(wants(&mut slots, 0, 1, 2) && wants(&mut slots, 0, 2, 2));
        assert!(!wants(&mut slots, 0, 3, 2));
        assert!(slots.tell(Tick(0), volume(1), Wish::Keeps));
        assert!(!slots.tell(Tick(0), volume(1), Wish::Nothing));
        assert!(wants(&mut slots, 1, 3, 2));
        assert_eq!(slots.taken(), limits::RESYNC_SLOTS);
        slots.leave(volume(2));
        assert_eq!(slots.taken(), 1);
    }

    #[test]
    fn who_has_the_fewest_copies_comes_first() {
        let mut slots = Slots::default();
        assert!(wants(&mut slots, 0, 1, 2) && wants(&mut slots, 0, 2, 2));
        assert!(!wants(&mut slots, 1, 3, 2) && !wants(&mut slots, 1, 4, 1));
        slots.leave(volume(1));
        assert!(!wants(&mut slots, 2, 3, 2), "volume 4 has but one copy");
        assert!(wants(&mut slots, 3, 4, 1));
    }

    #[test]
    fn who_does_not_ask_again_is_not_waited_for() {
        let mut slots = Slots::default();
        assert!(wants(&mut slots, 0, 1, 2) && wants(&mut slots, 0, 2, 2));
        assert!(!wants(&mut slots, 1, 4, 1));
        slots.leave(volume(1));
        assert!(!wants(&mut slots, 2, 3, 2));
        assert!(wants(&mut slots, 2 + 2 * limits::RESYNC_SLOT_PATIENCE_MS, 3, 2));
    }
}
