//! The slots of this node for resyncs: one set shared by its primaries, one by its replicas.

use std::sync::{Mutex, MutexGuard, PoisonError};

use lockstep_core::id::{Tick, VolumeId};
use lockstep_core::limits;
use lockstep_core::slots::{Slots, Wish};

/// The slots of this node.
#[derive(Debug, Default)]
pub(super) struct NodeSlots(Mutex<Slots>);

impl NodeSlots {
    /// Changed by single calls: whole even after a panic.
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of its replicas, at most `limit` at a time.
    pub(super) fn of_targets(limit: usize) -> Self {
        Self(Mutex::new(Slots::of_targets(limit)))
    }

    /// Tells them what a volume wants; see [`Slots::tell`].
    pub(super) fn tell(&self, now: Tick, volume: VolumeId, wish: Wish) -> bool {
        self.slots().tell(now, volume, wish)
    }

    pub(super) fn leave(&self, volume: VolumeId) {
        self.slots().leave(volume);
    }
}

/// What one primary was last found to want.
#[derive(Debug)]
pub(super) struct Asking {
    wish: Wish,
    /// When to ask again.
    again: Option<Tick>,
}

impl Default for Asking {
    fn default() -> Self {
        Self { wish: Wish::Nothing, again: None }
    }
}

impl Asking {
    /// Tells the node's slots what is wanted, if that is news or it is time. True if a slot that
    /// was wanted is there.
    pub(super) fn tell(
        &mut self,
        slots: &NodeSlots,
        now: Tick,
        volume: VolumeId,
        wish: Wish,
    ) -> bool {
        if wish == self.wish && self.again.is_none_or(|at| at > now) {
            return false;
        }
        self.wish = wish;
        let wants = matches!(wish, Wish::Wants { .. });
        let has = slots.tell(now, volume, wish);
        self.again = (wants && !has).then(|| now.plus_ms(limits::RESYNC_SLOT_RETRY_MS));
        wants && has
    }

    /// When it has to be asked again.
    pub(super) fn due(&self) -> Option<Tick> {
        self.again
    }
}
