//! The guest's reads: from one member, from another if it can't or is late, and what was bad is
//! mended.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::guests::PieceId;
use super::{Primary, Purpose};
use crate::guest::GuestError;
use crate::id::{ReplicaId, Tick};
use crate::limits;
use crate::lock::Mode;
use crate::message::{Refusal, Reply, Request};
use crate::planted::Bug;
use crate::range::BlockRange;

/// Reads in flight; together with half the credit for operations it stays within the credit.
const MAX_READS: usize = 128;
/// How often a read that no member could do waits until what is bad is mended: members come and
/// go meanwhile, and other blocks go bad.
const READ_ROUNDS: u32 = 3;

/// Whom a piece was asked of.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct ReadState {
    /// Members that could not read it.
    tried: BTreeSet<ReplicaId>,
    /// Members that owe an answer.
    asked: BTreeSet<ReplicaId>,
    /// When another one is asked too.
    hedge_at: Option<Tick>,
    /// How often every member was tried, and what was bad then mended as far as possible.
    rounds: u32,
}

/// Reads under way.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Reads {
    in_flight: usize,
    /// They hold their lock and wait for a member.
    parked: BTreeSet<PieceId>,
    /// They gave their lock back and wait until what was bad is mended.
    deferred: BTreeSet<PieceId>,
    /// When another member is asked.
    hedges: BTreeSet<(Tick, PieceId)>,
}

impl Reads {
    /// A piece is over.
    pub(super) fn forget(&mut self, id: PieceId, read: &ReadState) {
        if let Some(at) = read.hedge_at {
            self.hedges.remove(&(at, id));
        }
        self.parked.remove(&id);
        self.deferred.remove(&id);
    }
}

impl Primary {
    /// Reads from one member: the one on this node if it can, else another; each is tried once.
    /// `false` if it has to wait until fewer reads are in flight.
    pub(super) fn start_read(&mut self, id: PieceId, range: BlockRange) -> bool {
        if self.guests.reads.in_flight >= MAX_READS {
            return false;
        }
        // Late reads come here at any time. While it claims anew, what is reached may have lost
        // what was acknowledged (G4): only the promotion can tell.
        let open = self.is_open() || self.has(Bug::LateReadInClaim);
        if !open || !self.may_read() {
            self.guests.reads.parked.insert(id);
            return true;
        }
        let Some(record) = self.cas.record() else { return true };
        let Some(read) = self.guests.pieces.get(&id).map(|p| &p.read) else { return true };
        let tried = |rid: &ReplicaId| read.tried.contains(rid);
        let members = || record.in_sync().filter(|r| !tried(&r.rid));
        let local = |r: &&crate::record::ReplicaEntry| r.node == self.params.node;
        let free = |rid| self.is_serving(rid) && !read.asked.contains(&rid);
        let serving = || members().filter(|r| free(r.rid));
        let chosen = serving().find(local).or_else(|| serving().next()).map(|r| r.rid);
        let (none_left, waits) = (members().next().is_none(), !read.asked.is_empty());
        match chosen {
            Some(rid) => self.ask_read(rid, id, range),
            None if waits => {}
            None if none_left => self.read_exhausted(id),
            None => {
                self.guests.reads.parked.insert(id);
            }
        }
        true
    }

    fn ask_read(&mut self, rid: ReplicaId, id: PieceId, range: BlockRange) {
        let hedge_at = self.now.plus_ms(limits::READ_HEDGE_MS);
        let Some(piece) = self.guests.pieces.get_mut(&id) else { return };
        piece.read.asked.insert(rid);
        if let Some(at) = piece.read.hedge_at.replace(hedge_at) {
            self.guests.reads.hedges.remove(&(at, id));
        }
        self.guests.reads.hedges.insert((hedge_at, id));
        self.guests.reads.in_flight += 1;
        self.call(rid, Purpose::Read(id), false, Request::Read { blocks: range.into() });
    }

    /// When the next late read is asked of another member too.
    pub(super) fn hedge_due(&self) -> Option<Tick> {
        self.guests.reads.hedges.first().map(|(at, _)| *at)
    }

    /// Asks another member for what is late; whoever answers first is heard.
    pub(super) fn hedge_reads(&mut self) {
        while let Some((at, id)) = self.guests.reads.hedges.first().copied() {
            if at > self.now {
                return;
            }
            self.guests.reads.hedges.remove(&(at, id));
            let Some(piece) = self.guests.pieces.get_mut(&id) else { continue };
            piece.read.hedge_at = None;
            if let Some(range) = piece.range {
                self.start_read(id, range);
            }
        }
    }

    pub(super) fn on_read(&mut self, rid: ReplicaId, id: PieceId, reply: Reply) {
        self.unask_read(rid, id);
        match reply {
            Reply::Data(payload) if self.read_fits(id, payload.blocks()) => {
                if let Some(piece) = self.guests.pieces.get(&id)
                    && let Some(guest) = self.guests.requests.get_mut(&piece.request)
                {
                    guest.data.insert(piece.offset, payload.data);
                }
                self.piece_done(id);
                self.release_piece(id);
            }
            // Another member was faster.
            Reply::Data(_) if !self.guests.pieces.contains_key(&id) => {}
            // The copy can't read it, or not this block: another one may.
            Reply::Refused(refusal @ (Refusal::Io | Refusal::Checksum { .. })) => {
                let piece = self.guests.pieces.get_mut(&id);
                let range = piece.and_then(|piece| {
                    piece.read.tried.insert(rid);
                    piece.range
                });
                if let Some(range) = range {
                    self.mend_later(rid, range, refusal);
                }
                self.read_again(id);
            }
            Reply::Refused(refusal) => {
                self.read_again(id);
                self.on_refused(rid, refusal);
            }
            _ => {
                self.read_again(id);
                self.fail_peer(rid);
            }
        }
    }

    fn unask_read(&mut self, rid: ReplicaId, id: PieceId) {
        self.guests.reads.in_flight = self.guests.reads.in_flight.saturating_sub(1);
        if let Some(piece) = self.guests.pieces.get_mut(&id) {
            piece.read.asked.remove(&rid);
        }
    }

    fn read_fits(&self, id: PieceId, blocks: usize) -> bool {
        let range = self.guests.pieces.get(&id).and_then(|p| p.range);
        range.is_some_and(|r| r.count as usize == blocks)
    }

    /// The member that was reading is gone.
    pub(super) fn park_read(&mut self, rid: ReplicaId, id: PieceId) {
        self.unask_read(rid, id);
        self.read_again(id);
    }

    /// If nobody else was asked for it, somebody will be.
    fn read_again(&mut self, id: PieceId) {
        if self.guests.pieces.get(&id).is_some_and(|p| p.read.asked.is_empty()) {
            self.guests.reads.parked.insert(id);
        }
    }

    pub(super) fn retry_parked(&mut self) {
        if self.guests.reads.parked.is_empty() || !self.may_read() {
            return;
        }
        for id in core::mem::take(&mut self.guests.reads.parked) {
            let range = self.guests.pieces.get(&id).and_then(|p| p.range);
            if range.is_some_and(|range| !self.start_read(id, range)) {
                self.guests.reads.parked.insert(id);
            }
        }
    }

    /// No member could read all of it. Perhaps each block is good somewhere: what is bad is mended
    /// first, which needs the lock, then each member is tried again. After that it is EIO, for
    /// this request only.
    fn read_exhausted(&mut self, id: PieceId) {
        let Some(piece) = self.guests.pieces.get_mut(&id) else { return };
        let request = piece.request;
        if piece.read.rounds < READ_ROUNDS {
            piece.read.rounds += 1;
            let tried = core::mem::take(&mut piece.read.tried);
            let range = piece.range;
            // Without its lock it must not be sent, to nobody.
            if let Some(at) = piece.read.hedge_at.take() {
                self.guests.reads.hedges.remove(&(at, id));
            }
            self.guests.reads.deferred.insert(id);
            // Each told of one bad block; there may be more.
            for (rid, range) in tried.into_iter().filter_map(|rid| Some((rid, range?))) {
                self.mend_later(rid, range, Refusal::Io);
            }
            return self.release_lock(id);
        }
        if let Some(guest) = self.guests.requests.get_mut(&request) {
            guest.error.get_or_insert(GuestError::Io);
        }
        self.piece_done(id);
        self.release_piece(id);
    }

    /// Reads that waited until what was bad is mended go on.
    pub(super) fn resume_deferred(&mut self) {
        let range = |id: &PieceId| self.guests.pieces.get(id).and_then(|p| p.range);
        let waiting = self.guests.reads.deferred.iter().filter_map(|id| Some((*id, range(id)?)));
        let free: Vec<(PieceId, BlockRange)> =
            waiting.filter(|(_, range)| !self.mending.concerns(*range)).collect();
        for (id, range) in free {
            self.guests.reads.deferred.remove(&id);
            if self.locks.acquire(id, range, Mode::Shared) {
                self.guests.ready.push_back(id);
            }
        }
    }
}
