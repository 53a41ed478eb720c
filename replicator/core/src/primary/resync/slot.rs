//! The slot of its node that a resync needs.

use super::{Primary, Stage};
use crate::primary::Phase;
use crate::slots::Wish;

/// Whether a resync may start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// The driver counts no resyncs.
    #[default]
    Free,
    /// It has to be asked for.
    None,
    /// It was given.
    Given,
}

impl Slot {
    pub(super) fn is_uncounted(self) -> bool {
        self == Self::Free
    }

    pub(super) fn is_there(self) -> bool {
        self != Self::None
    }

    /// The resync is over.
    pub(super) fn give_back(&mut self) {
        if *self == Self::Given {
            *self = Self::None;
        }
    }
}

impl Primary {
    /// The same primary, whose resyncs wait for [`super::super::Event::ResyncSlot`]. Its driver
    /// asks for [`Self::slot_wish`] after each step.
    #[must_use]
    pub fn with_slots(mut self) -> Self {
        self.resync.slot = Slot::None;
        self
    }

    /// What it wants of its node's slots; see [`crate::slots::Slots`].
    #[must_use]
    pub fn slot_wish(&self) -> Wish {
        let serving = matches!(self.phase, Phase::Active | Phase::Suspended);
        let early = self.resync.not_before.is_some_and(|at| at > self.now);
        match (self.resync.slot, self.resync.stage) {
            _ if self.is_over() => Wish::Nothing,
            (Slot::Free, _) => Wish::Nothing,
            (_, Stage::Idle) if !serving || early || self.next_target().is_none() => Wish::Nothing,
            (Slot::None, Stage::Idle) => Wish::Wants { copies: self.members().len() },
            (Slot::Given, Stage::Idle) => Wish::Keeps,
            (_, Stage::Copying(_) | Stage::Catching { .. } | Stage::Flushing(_)) => Wish::Keeps,
            (_, Stage::Ready(_)) => Wish::Keeps,
        }
    }

    pub(in crate::primary) fn on_resync_slot(&mut self) {
        if self.resync.slot == Slot::None {
            self.resync.slot = Slot::Given;
        }
    }
}
