//! Requests to one replica that wait for an answer.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};
use core::ops::{Deref, DerefMut};

use super::{copy, guests};
use crate::alike::Kind;
use crate::id::{ReplicaId, Seq, SnapshotId};
use crate::lock::LockId;

/// A request to one replica.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) rid: ReplicaId,
    pub(super) purpose: Purpose,
    /// Does it put an entry into the replica's ring?
    pub(super) mutates: bool,
}

/// What a call is for.
#[derive(Clone, Debug, Hash)]
pub(super) enum Purpose {
    /// Opens the session.
    Promise,
    /// A piece of a guest's read.
    Read(guests::PieceId),
    /// A step of the copy job.
    Copy(copy::Step),
    /// A step in mending the range under this lock.
    Mend(LockId),
    /// A step of a copy job or of mending that was aborted; its lock is held until it is answered.
    Abandoned(LockId),
    /// Renews the lease for reads.
    Renew,
    /// S1: asks the target's node for leave.
    Enter,
    /// P5: the source logs what will be repaired.
    Mark,
    /// P6: makes the promotion's result durable.
    PromotionFlush,
    /// S5: makes a caught-up target durable.
    TargetFlush,
    /// Makes durable on a member what one that leaves has.
    ReleaseFlush(u64),
    /// S1: finds out whether a copy that can't say how long it is has as many blocks as this.
    Reach(u64),
    /// T10: makes a replica as long as this, in blocks.
    Extend(u64),
    /// D1: has a member write down what a snapshot needs.
    Prepare(SnapshotId),
    /// D1: has a member keep a copy.
    Snapshot(SnapshotId),
    /// D1: waits until a member's copy is durable.
    Seal(SnapshotId),
    /// Has a member drop the copy of a snapshot that was given up.
    DropSnapshot,
    /// T8: the last flush, or emptying the activity log, of this attempt.
    Close(u64),
}

/// All of them, by the number of their message.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls(BTreeMap<Seq, Call>);

impl Deref for Calls {
    type Target = BTreeMap<Seq, Call>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Calls {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// Which of two calls to different replicas came first decides nothing, unless both mutate: the
/// commit watermark waits for the first of those.
impl Hash for Calls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let mut calls: Vec<(&Seq, &Call)> = self.0.iter().collect();
        calls.sort_by_key(|(_, call)| call.rid);
        calls.len().hash(state);
        for (seq, Call { rid, purpose, mutates }) in calls {
            let kind = if *mutates { Kind::Seq } else { Kind::Call };
            kind.hash(seq.0, state);
            (rid, purpose, mutates).hash(state);
        }
    }
}
