//! The leave of the target's node that a resync needs (S1).

use alloc::vec::Vec;

use super::{Primary, Stage};
use crate::id::ReplicaId;
use crate::limits;
use crate::message::Request;
use crate::primary::Purpose;
use crate::primary::peer::Entry;

/// A leave that is not used for so long is asked for again before it is.
const STALE_MS: u64 = limits::RESYNC_ENTRY_MS / 3;

impl Primary {
    /// May a resync of this copy start?
    pub(super) fn has_entered(&self, target: ReplicaId) -> bool {
        let fresh = |at| self.now.ms_since(at) < STALE_MS;
        let entry = self.peers.get(&target).map(|peer| peer.entry);
        // A driver that does not count resyncs counts no targets either.
        self.resync.slot.is_uncounted() || matches!(entry, Some(Entry::Given(at)) if fresh(at))
    }

    pub(super) fn ask_to_enter(&mut self, target: ReplicaId) {
        let copies = u32::try_from(self.members().len()).unwrap_or(u32::MAX);
        if let Some(peer) = self.peers.get_mut(&target).filter(|p| p.entry != Entry::Asked) {
            peer.entry = Entry::Asked;
            self.call(target, Purpose::Enter, false, Request::Enter { copies });
        }
    }

    pub(in crate::primary) fn on_entered(&mut self, rid: ReplicaId) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.entry = Entry::Given(self.now);
        }
    }

    /// The slot on this node goes to others meanwhile, and other targets are tried first.
    pub(in crate::primary) fn on_busy(&mut self, rid: ReplicaId) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.entry = Entry::Unasked;
        }
        self.counters.resyncs_refused += 1;
        if self.resync.stage == Stage::Idle {
            self.resync.slot.give_back();
            self.hold_resync(self.now.plus_ms(limits::RESYNC_SLOT_RETRY_MS));
        }
        if !self.resync.failed.contains(&rid) {
            self.resync.failed.push(rid);
        }
    }

    /// A leave that is not going to be used is given back, with the session that it was given in.
    pub(super) fn leave_entries(&mut self) {
        if self.peers.values().all(|peer| peer.entry == Entry::Unasked) {
            return;
        }
        let next = if self.resync.stage == Stage::Idle { self.next_target() } else { None };
        let uses = self.resync_target().or(next);
        let members = self.members();
        let mut unused = Vec::new();
        for (rid, peer) in &mut self.peers {
            if members.contains(rid) {
                // It was given back when the copy learnt that it is a member.
                peer.entry = Entry::Unasked;
            } else if peer.entry != Entry::Unasked && uses != Some(*rid) {
                unused.push(*rid);
            }
        }
        for rid in unused {
            if !self.is_required(rid) {
                self.renew_session(rid);
            }
        }
    }
}
