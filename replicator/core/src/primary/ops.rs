//! Mutations and flushes: fanned out to every member and the resync target at once, acknowledged
//! by the ack rule, retired when every target has them (rule R5).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::hash::{Hash, Hasher};

use super::guests::PieceId;
use super::{Phase, Primary};
use crate::alike::{self, Kind};
use crate::id::{ReplicaId, Seq, Tick};
use crate::limits;
use crate::message::{Payload, Request};
use crate::planted::Bug;
use crate::range::BlockRange;
use crate::record::Record;

/// What an operation does on every replica.
#[derive(Clone, Debug, Hash)]
pub(super) enum Action {
    Write { range: BlockRange, fua: bool, payload: Payload },
    Zero { range: BlockRange, fua: bool, deallocate: bool },
    Flush,
}

impl Action {
    fn request(&self) -> Request {
        match self.clone() {
            Self::Write { range, fua, payload } => Request::Write { range, fua, payload },
            Self::Zero { range, fua, deallocate } => Request::Zero { range, fua, deallocate },
            Self::Flush => Request::Flush,
        }
    }

    fn mutates(&self) -> bool {
        !matches!(self, Self::Flush)
    }

    /// The same, durable when it is acknowledged.
    fn through(self) -> Self {
        match self {
            Self::Write { range, payload, .. } => Self::Write { range, fua: true, payload },
            Self::Zero { range, deallocate, .. } => Self::Zero { range, fua: true, deallocate },
            Self::Flush => Self::Flush,
        }
    }

    /// What it takes of a replica's credit in bytes.
    fn bytes(&self) -> u64 {
        match self {
            Self::Write { range, .. } => range.bytes(),
            Self::Zero { .. } | Self::Flush => 0,
        }
    }
}

/// An operation in flight.
#[derive(Clone, Debug, Hash)]
struct Op {
    piece: PieceId,
    action: Action,
    /// Who got it on a session that still lives.
    sent: BTreeSet<ReplicaId>,
    /// Who has done it.
    acked: BTreeSet<ReplicaId>,
    /// The guest has its answer.
    done: bool,
}

/// Operations in flight, by sequence number.
#[derive(Clone, Debug, Default)]
pub(super) struct Ops {
    ops: BTreeMap<Seq, Op>,
    bytes: u64,
    /// Of these, operations that the guest has its answer to: a resync's target has not. How many,
    /// and their bytes.
    lagging: (usize, u64),
    commit_due: Option<Tick>,
    /// The last mutation issued; the watermark needs to go no further.
    last_mutation: Seq,
    /// Last watermark worked out while the record was settled.
    watermark: Seq,
}

impl Hash for Ops {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { ops, bytes, lagging, commit_due, last_mutation, watermark } = self;
        (ops, bytes, lagging).hash(state);
        alike::hash_due(*commit_due, state);
        Kind::Bound.hash(last_mutation.0, state);
        Kind::Bound.hash(watermark.0, state);
    }
}

impl Ops {
    /// When the watermark has to be sent on its own.
    pub(super) fn commit_due(&self) -> Option<Tick> {
        self.commit_due
    }

    /// Operations in flight.
    pub(super) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Does a resync's target lag so far behind that the guest has to wait for it soon? A quarter
    /// of the credit is there for it alone.
    fn is_target_behind(&self, (ops, bytes): (usize, u64)) -> bool {
        self.lagging.0 >= ops / 4 || self.lagging.1 >= bytes / 4
    }

    /// A mutation was sent to one replica.
    pub(super) fn note_mutation(&mut self, seq: Seq) {
        self.last_mutation = seq;
    }

    /// Is it in flight?
    pub(super) fn contains(&self, seq: Seq) -> bool {
        self.ops.contains_key(&seq)
    }

    /// Has `rid` done everything before `barrier` that it was sent?
    pub(super) fn has_acked_before(&self, rid: ReplicaId, barrier: Seq) -> bool {
        self.ops.range(..barrier).all(|(_, op)| op.acked.contains(&rid))
    }
}

impl Primary {
    /// The ack rule's set: members of every record version that may be in force, and a catching
    /// target.
    pub(super) fn required(&self) -> Vec<ReplicaId> {
        let mut required = self.members_in_force();
        if self.has(Bug::AckBeforeRemoval)
            && let Some(proposed) = self.cas.proposed()
        {
            required = proposed.in_sync().map(|r| r.rid).collect();
        }
        if let Some(rid) = self.catching().filter(|_| !self.has(Bug::NoCatching)) {
            required.push(rid);
        }
        required
    }

    pub(super) fn is_required(&self, rid: ReplicaId) -> bool {
        self.required().contains(&rid)
    }

    /// Who gets an operation issued now.
    fn targets(&self) -> Vec<ReplicaId> {
        let mut targets = self.members_in_force();
        let late = self.has(Bug::NoForward) && self.catching().is_none();
        targets.extend(self.resync_target().filter(|_| !late));
        targets.sort_unstable();
        targets.dedup();
        targets.retain(|rid| self.is_serving(*rid));
        targets
    }

    /// Has it a session on which operations may be sent?
    pub(super) fn is_serving(&self, rid: ReplicaId) -> bool {
        self.peers.get(&rid).is_some_and(|p| p.is_up() && !p.has_failed())
    }

    /// May another operation of `bytes` be issued? Those that members still work on take half of
    /// the credit of every target at most, so that reads and resync keep theirs; those that only
    /// a resync's target still works on take another quarter.
    pub(super) fn has_credit(&self, bytes: u64) -> bool {
        let (ops, most) = self.credit();
        let (late, late_bytes) = self.ops.lagging;
        let (all, all_bytes) = (self.ops.len(), self.ops.bytes + bytes);
        let members = all - late < ops / 2 && all_bytes - late_bytes <= most / 2;
        members && all < ops / 4 * 3 && all_bytes <= most / 4 * 3
    }

    /// Operations and bytes that every replica lets us have in flight.
    fn credit(&self) -> (usize, u64) {
        let sessions = || self.peers.values().filter_map(|p| p.session());
        let ops = sessions().map(|s| s.credit_ops).min().unwrap_or(limits::CREDIT_OPS);
        let bytes = sessions().map(|s| s.credit_bytes).min().unwrap_or(limits::CREDIT_BYTES);
        (ops as usize, bytes)
    }

    /// Does the resync's target keep the guest's requests from being issued? (S3)
    pub(super) fn is_target_behind(&self) -> bool {
        self.ops.is_target_behind(self.credit())
    }

    /// Issues an operation for a piece that holds its lock.
    pub(super) fn issue(&mut self, piece: PieceId, action: Action) {
        let action = if self.writes_through() { action.through() } else { action };
        let seq = self.take_seq();
        let targets = self.targets();
        self.ops.bytes += action.bytes();
        if action.mutates() {
            self.ops.last_mutation = seq;
        }
        let op = Op {
            piece,
            action: action.clone(),
            sent: BTreeSet::new(),
            acked: BTreeSet::new(),
            done: false,
        };
        self.ops.ops.insert(seq, op);
        for rid in targets {
            self.send_op(rid, seq);
        }
    }

    fn send_op(&mut self, rid: ReplicaId, seq: Seq) {
        let Some(op) = self.ops.ops.get_mut(&seq) else { return };
        op.sent.insert(rid);
        let request = op.action.request();
        self.send(rid, seq, request, true);
        // A flush too: as long as it is open here, the session can't be taken for a new one.
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.soil();
        }
    }

    /// Sends everything in flight that `rid` has not done: a member that came back, or a target
    /// whose resync starts (rule S3).
    pub(super) fn send_unacked(&mut self, rid: ReplicaId) {
        let missing = |op: &Op| !op.acked.contains(&rid) && !op.sent.contains(&rid);
        let seqs: Vec<Seq> =
            self.ops.ops.iter().filter(|(_, op)| missing(op)).map(|(seq, _)| *seq).collect();
        for seq in seqs {
            self.send_op(rid, seq);
        }
    }

    /// A member is back with everything it had: it is told where things stand and goes on.
    pub(super) fn resume(&mut self, rid: ReplicaId) {
        let member = self.cas.record().is_some_and(|r| r.is_in_sync(rid));
        let seq = self.take_seq();
        self.send(rid, seq, Request::Commit { member }, false);
        self.send_unacked(rid);
    }

    /// After a promotion of a live device: everything in flight is done anew, by everyone.
    pub(super) fn reissue_all(&mut self) {
        for op in self.ops.ops.values_mut() {
            op.sent.clear();
            // What the guest was told is part of what was opened with.
            if !op.done {
                op.acked.clear();
            }
        }
        self.sweep_ops();
        for rid in self.targets() {
            self.send_unacked(rid);
        }
    }

    /// What `rid` did as a member counts for nothing once it is brought back as a target.
    pub(super) fn forget_acks(&mut self, rid: ReplicaId) {
        for op in self.ops.ops.values_mut() {
            op.acked.remove(&rid);
        }
    }

    pub(super) fn on_ack(&mut self, rid: ReplicaId, seq: Seq) {
        if let Some(op) = self.ops.ops.get_mut(&seq) {
            op.acked.insert(rid);
            self.advance(seq);
        }
    }

    /// The session of `rid` is gone: it won't answer, and it may be sent everything again.
    pub(super) fn ops_lost(&mut self, rid: ReplicaId) {
        for op in self.ops.ops.values_mut() {
            op.sent.remove(&rid);
        }
        self.sweep_ops();
    }

    /// Completes and retires whatever can be, after the sets have changed.
    pub(super) fn sweep_ops(&mut self) {
        let seqs: Vec<Seq> = self.ops.ops.keys().copied().collect();
        for seq in seqs {
            self.advance(seq);
        }
        self.note_watermark();
    }

    /// Answers the guest if every required replica has done the operation; retires it if every
    /// target has.
    fn advance(&mut self, seq: Seq) {
        if !self.is_open() {
            return;
        }
        let required = self.required();
        let (hasty, unlocks) = (self.has(Bug::AckFirst), self.has(Bug::EarlyUnlock));
        let Some(op) = self.ops.ops.get_mut(&seq) else { return };
        let mut complete = required.iter().all(|rid| op.acked.contains(rid));
        complete |= hasty && required.iter().any(|rid| op.acked.contains(rid));
        if complete && !op.done {
            op.done = true;
            self.ops.lagging.0 += 1;
            self.ops.lagging.1 += op.action.bytes();
            let piece = op.piece;
            self.assert_enough_copies();
            self.piece_done(piece);
            if unlocks {
                self.release_piece(piece);
            }
        }
        let Some(op) = self.ops.ops.get(&seq) else { return };
        if op.done && op.sent.is_subset(&op.acked) {
            self.retire(seq);
        }
    }

    fn retire(&mut self, seq: Seq) {
        if let Some(op) = self.ops.ops.remove(&seq) {
            self.ops.bytes -= op.action.bytes();
            if op.done {
                self.ops.lagging.0 -= 1;
                self.ops.lagging.1 -= op.action.bytes();
            }
            self.release_piece(op.piece);
        }
    }

    /// I9: no acknowledgement with fewer members than promised.
    fn assert_enough_copies(&self) {
        let enough = |r: &Record| r.in_sync().count() >= usize::from(r.min_in_sync);
        let enough = self.cas.record().is_some_and(enough);
        assert!(enough, "acknowledging with fewer copies than min_in_sync");
    }

    /// Every mutation up to here is retired on all targets. It does not move while a change of
    /// the record is undecided, nor before the volume is open (rule R5).
    pub(super) fn watermark(&self) -> Seq {
        if self.has(Bug::EarlyCommit) && self.is_open() {
            return Seq(self.next_seq.0 - 1);
        }
        self.ops.watermark
    }

    /// Every mutation up to here is retired.
    fn retired(&self) -> Seq {
        let op = self.ops.ops.iter().find(|(_, op)| op.action.mutates()).map(|(seq, _)| *seq);
        let call = self.calls.iter().find(|(_, c)| c.mutates).map(|(seq, _)| *seq);
        let last = self.ops.last_mutation;
        op.into_iter().chain(call).min().map_or(last, |s| last.min(Seq(s.0 - 1)))
    }

    /// Numbers between two mutations count for the watermark too: will it rise once more when
    /// nothing is retired?
    pub(super) fn watermark_gaps(&self) -> (bool, bool) {
        let next = self.next_seq.0 - 1 > self.ops.last_mutation.0;
        (self.retired() > self.ops.watermark, next)
    }

    pub(super) fn note_watermark(&mut self) {
        if !self.is_open() || self.cas.proposed().is_some() {
            return;
        }
        let watermark = self.retired();
        assert!(watermark >= self.ops.watermark, "the commit watermark went backwards");
        self.ops.watermark = watermark;
        let behind = |p: &super::Peer| p.is_up() && p.commit_sent < watermark;
        if self.ops.commit_due.is_none() && self.peers.values().any(behind) {
            self.ops.commit_due = Some(self.now.plus_ms(limits::COMMIT_IDLE_MS));
        }
    }

    /// Sends the watermark on its own to those that got no message with it in time.
    pub(super) fn send_idle_commits(&mut self) {
        if self.ops.commit_due.is_none_or(|at| at > self.now) {
            return;
        }
        self.ops.commit_due = None;
        let watermark = self.watermark();
        let behind: Vec<ReplicaId> = self
            .peers
            .iter()
            .filter(|(_, p)| p.is_up() && !p.has_failed() && p.commit_sent < watermark)
            .map(|(rid, _)| *rid)
            .collect();
        for rid in behind {
            let seq = self.take_seq();
            self.send(rid, seq, Request::Commit { member: false }, false);
        }
    }

    /// Tells every session the generation in force; members settle what older epochs left.
    pub(super) fn announce_gen(&mut self) {
        let rids: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for rid in rids.into_iter().filter(|rid| self.is_serving(*rid)).collect::<Vec<_>>() {
            let member = self.cas.record().is_some_and(|r| r.is_in_sync(rid));
            let seq = self.take_seq();
            self.send(rid, seq, Request::Commit { member }, false);
        }
    }

    pub(super) fn check_ops(&self) {
        let bytes: u64 = self.ops.ops.values().map(|op| op.action.bytes()).sum();
        assert_eq!(bytes, self.ops.bytes, "bytes in flight are miscounted");
        let done = || self.ops.ops.values().filter(|op| op.done);
        let lagging = (done().count(), done().map(|op| op.action.bytes()).sum());
        assert_eq!(lagging, self.ops.lagging, "what a target lacks is miscounted");
        let recovering = matches!(self.phase, Phase::Claiming | Phase::Recovering);
        for op in self.ops.ops.values().filter(|_| !recovering) {
            let stuck = op.done && op.sent.is_subset(&op.acked);
            assert!(!stuck, "an operation that every target has was not retired");
        }
    }
}
