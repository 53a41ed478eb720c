//! How far a copy reaches that can't say how long it is, since its node speaks wire version 3 or
//! less. It was made as long as the volume was then, and nothing can make it longer: after an
//! expansion (T10) it can't be brought up before its node runs a newer version.

use crate::id::ReplicaId;
use crate::message::{Refusal, Reply, Request};
use crate::planted::Bug;
use crate::primary::{Primary, Purpose};
use crate::range::BlockRange;

/// What is known of the length of a copy that can't say it, by what it answered on this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(in crate::primary) enum Reach {
    /// Nothing.
    #[default]
    Unknown,
    /// It was asked for the last of so many blocks.
    Asked,
    /// It has so many blocks, at least.
    Has(u64),
    /// It has fewer.
    Lacks(u64),
}

impl Reach {
    /// What was asked in a session is not answered after it.
    pub(in crate::primary) fn end_session(&mut self) {
        if *self == Self::Asked {
            *self = Self::Unknown;
        }
    }
}

impl Primary {
    /// Is it known that this copy has all blocks of the volume, or can it be told to (S1)?
    pub(in crate::primary) fn is_within_reach(&self, rid: ReplicaId) -> bool {
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        let has = |reach| matches!(reach, Reach::Has(blocks) if blocks >= volume);
        self.size_of(rid).is_some()
            || self.peers.get(&rid).is_some_and(|peer| has(peer.reach))
            || self.has(Bug::AdmitShort)
    }

    /// Is it known that this copy has fewer blocks than the volume, and can't be given more?
    pub(in crate::primary) fn is_beyond_reach(&self, rid: ReplicaId) -> bool {
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        let lacks = |reach| matches!(reach, Reach::Lacks(blocks) if blocks <= volume);
        self.is_serving(rid)
            && self.size_of(rid).is_none()
            && self.peers.get(&rid).is_some_and(|peer| lacks(peer.reach))
    }

    /// Asks those that may be brought up, and can't say how long they are, for the last block.
    pub(in crate::primary) fn ask_reach(&mut self) {
        let Some(last) = self.cas.record().and_then(|r| r.blocks.checked_sub(1)) else { return };
        let unknown = |rid: &ReplicaId| {
            self.is_serving(*rid)
                && !self.is_within_reach(*rid)
                && !self.is_beyond_reach(*rid)
                && self.peers.get(rid).is_some_and(|peer| peer.reach != Reach::Asked)
                && !self.is_required(*rid)
        };
        let rids: alloc::vec::Vec<ReplicaId> = self.peers.keys().copied().filter(unknown).collect();
        for rid in rids {
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.reach = Reach::Asked;
                let blocks = BlockRange::new(last, 1).into();
                self.call(rid, Purpose::Reach(last + 1), false, Request::Read { blocks });
            }
        }
    }

    /// It has answered that. Returns `false` if the answer says something else.
    pub(in crate::primary) fn on_reach(
        &mut self,
        rid: ReplicaId,
        blocks: u64,
        reply: &Reply,
    ) -> bool {
        let reach = match reply {
            // Whatever is wrong with the block, it is there.
            Reply::Data(_) | Reply::Refused(Refusal::Checksum { .. } | Refusal::Io) => {
                Reach::Has(blocks)
            }
            Reply::Refused(Refusal::Malformed) => Reach::Lacks(blocks),
            _ => return false,
        };
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.reach = reach;
        }
        true
    }
}
