//! How many resyncs run on one node at a time: more would only slow each other down, and the
//! guests with them. Volumes with the fewest copies come first. A node counts twice: those that
//! its primaries run, and those that its replicas are the target of.

use alloc::collections::BTreeMap;

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
#[derive(Clone, Debug)]
pub struct Slots {
    /// How many there are.
    limit: usize,
    /// Is a slot lost whose holder does not say for long that it keeps it? Its primary, on
    /// another node, may be gone without anybody's noticing.
    leased: bool,
    /// Who has one, and when it was last said to be kept.
    held: BTreeMap<VolumeId, Tick>,
    /// Copies in sync of those that want one, and when each asked last.
    waiting: BTreeMap<VolumeId, (usize, Tick)>,
}

/// Those of a node's primaries.
impl Default for Slots {
    fn default() -> Self {
        let (held, waiting) = (BTreeMap::new(), BTreeMap::new());
        Self { limit: limits::RESYNC_SLOTS, leased: false, held, waiting }
    }
}

impl Slots {
    /// Those of a node's replicas, at most `limit` at a time. A slot that its holder has not said
    /// to keep for [`limits::RESYNC_ENTRY_MS`] is free for others.
    #[must_use]
    pub fn of_targets(limit: usize) -> Self {
        Self { limit, leased: true, ..Self::default() }
    }

    /// Tells what a volume's primary wants. True if it has a slot from now on, or still.
    pub fn tell(&mut self, now: Tick, volume: VolumeId, wish: Wish) -> bool {
        match wish {
            Wish::Nothing => {
                self.leave(volume);
                false
            }
            Wish::Keeps => {
                self.waiting.remove(&volume);
                self.expire(now);
                let lost = self.leased && !self.held.contains_key(&volume);
                if lost && self.held.len() >= self.limit {
                    return false;
                }
                self.held.insert(volume, now);
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

    /// Has this volume one?
    #[must_use]
    pub fn holds(&self, volume: VolumeId) -> bool {
        self.held.contains_key(&volume)
    }

    fn expire(&mut self, now: Tick) {
        if self.leased {
            self.held.retain(|_, at| now.ms_since(*at) <= limits::RESYNC_ENTRY_MS);
        }
    }

    fn ask(&mut self, now: Tick, volume: VolumeId, copies: usize) -> bool {
        self.held.remove(&volume);
        self.expire(now);
        self.waiting.insert(volume, (copies, now));
        self.waiting.retain(|_, (_, at)| now.ms_since(*at) <= limits::RESYNC_SLOT_PATIENCE_MS);
        let before =
            |(other, (n, _)): &(&VolumeId, &(usize, Tick))| (*n, **other) < (copies, volume);
        let ahead = self.waiting.iter().filter(before).count();
        let granted = self.held.len() + ahead < self.limit;
        if granted {
            self.waiting.remove(&volume);
            self.held.insert(volume, now);
        }
        granted
    }
}

#[cfg(test)]
mod tests;
