//! The guest's requests: cut into pieces, run under the range lock, answered once.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;

use super::ops::Action;
use super::reads::{ReadState, Reads};
use super::{Effect, Phase, Primary};
use crate::alike::Aside;
use crate::guest::{GuestError, GuestOp, GuestReply};
use crate::id::{RequestId, Tick};
use crate::limits::{MAX_GUEST_BLOCKS, MAX_OP_BLOCKS};
use crate::lock::{LockId, Mode};
use crate::planted::Bug;
use crate::range::BlockRange;

/// Names a piece; also the id of its lock.
pub(super) type PieceId = LockId;

/// Pieces of one request that run at once; bounds what a huge discard takes.
const PIECES_PER_REQUEST: usize = 32;

/// A request of the guest.
#[derive(Clone, Debug, Hash)]
pub(super) struct Guest {
    op: GuestOp,
    arrived: Aside<Tick>,
    /// Blocks handed out as pieces.
    issued: u32,
    /// Pieces that run.
    running: usize,
    /// What was read, by offset in blocks.
    pub(super) data: BTreeMap<u32, Bytes>,
    /// First error; sticky.
    pub(super) error: Option<GuestError>,
}

impl Guest {
    /// The range, except for a flush.
    fn range(&self) -> Option<BlockRange> {
        match &self.op {
            GuestOp::Read { range }
            | GuestOp::Write { range, .. }
            | GuestOp::Zero { range, .. } => Some(*range),
            GuestOp::Flush => None,
        }
    }

    fn is_issued(&self) -> bool {
        self.issued >= self.range().map_or(1, |r| r.count)
    }

    fn mutates(&self) -> bool {
        matches!(self.op, GuestOp::Write { .. } | GuestOp::Zero { .. })
    }
}

/// A piece of a request.
#[derive(Clone, Debug, Hash)]
pub(super) struct Piece {
    pub(super) request: RequestId,
    /// Its place within the request, in blocks.
    pub(super) offset: u32,
    pub(super) range: Option<BlockRange>,
    /// If it is a read: whom it was asked of.
    pub(super) read: ReadState,
}

/// Requests and their pieces.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Guests {
    pub(super) requests: BTreeMap<RequestId, Guest>,
    /// Requests with pieces still to hand out, in order of arrival.
    queue: VecDeque<RequestId>,
    pub(super) pieces: BTreeMap<PieceId, Piece>,
    /// Pieces that hold their lock and wait for credit.
    pub(super) ready: VecDeque<PieceId>,
    pub(super) reads: Reads,
    next_piece: Aside<u64>,
}

impl Guests {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Does a piece wait for credit?
    pub(super) fn is_held_back(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Primary {
    pub(super) fn on_guest(&mut self, request: RequestId, op: GuestOp) {
        let refused = match self.phase {
            Phase::Fenced => Some(GuestError::Fenced),
            Phase::Draining | Phase::Closed => Some(GuestError::Closing),
            _ if self.closing.is_some() => Some(GuestError::Closing),
            Phase::Claiming | Phase::Recovering | Phase::Active | Phase::Suspended => None,
        };
        if let Some(error) = refused {
            return self.answer(request, Err(error));
        }
        let (arrived, data) = (Aside(self.now), BTreeMap::new());
        let guest = Guest { op, arrived, issued: 0, running: 0, data, error: None };
        self.guests.requests.insert(request, guest);
        self.guests.queue.push_back(request);
    }

    fn answer(&mut self, request: RequestId, result: Result<GuestReply, GuestError>) {
        self.out.push(Effect::Reply { request, result });
    }

    /// Hands out pieces in order of arrival while there is credit.
    pub(super) fn drive_guests(&mut self) {
        if !self.is_open() || self.is_held() {
            return;
        }
        self.retry_parked();
        while let Some(piece) = self.guests.ready.front().copied() {
            if !self.start(piece) {
                return;
            }
            self.guests.ready.pop_front();
        }
        let mut held_back = VecDeque::new();
        while let Some(request) = self.guests.queue.pop_front() {
            if !self.cut(request) {
                held_back.push_back(request);
            }
            if !self.guests.ready.is_empty() {
                break;
            }
        }
        held_back.append(&mut self.guests.queue);
        self.guests.queue = held_back;
    }

    /// Hands out the request's pieces; `false` if some are left for later.
    fn cut(&mut self, request: RequestId) -> bool {
        if !self.is_valid(request) {
            self.guests.requests.remove(&request);
            self.answer(request, Err(GuestError::Invalid));
            return true;
        }
        while let Some(guest) = self.guests.requests.get_mut(&request) {
            if guest.is_issued() {
                return true;
            }
            if guest.running >= PIECES_PER_REQUEST {
                return false;
            }
            let offset = guest.issued;
            let range = guest.range().map(|r| {
                let count = (r.count - offset).min(MAX_OP_BLOCKS);
                BlockRange::new(r.start + u64::from(offset), count)
            });
            guest.issued += range.map_or(1, |r| r.count);
            guest.running += 1;
            self.begin_piece(Piece { request, offset, range, read: ReadState::default() });
        }
        true
    }

    fn is_valid(&self, request: RequestId) -> bool {
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        let Some(guest) = self.guests.requests.get(&request) else { return true };
        let fits = guest.range().is_none_or(|r| r.end() <= volume);
        fits && match &guest.op {
            GuestOp::Write { range, payload, .. } => {
                range.count <= MAX_GUEST_BLOCKS && payload.blocks() == range.count as usize
            }
            GuestOp::Read { range } => range.count <= MAX_GUEST_BLOCKS,
            GuestOp::Zero { .. } | GuestOp::Flush => true,
        }
    }

    /// An id for a lock that is no piece's.
    pub(super) fn guests_next_lock(&mut self) -> LockId {
        *self.guests.next_piece += 1;
        LockId(*self.guests.next_piece)
    }

    fn begin_piece(&mut self, piece: Piece) {
        *self.guests.next_piece += 1;
        let id = LockId(*self.guests.next_piece);
        let mode = match self.guests.requests.get(&piece.request).map(Guest::mutates) {
            Some(true) if !self.has(Bug::NoRangeLock) => Mode::Exclusive,
            Some(_) | None => Mode::Shared,
        };
        let unlocked = mode == Mode::Shared && self.has(Bug::UnlockedReads);
        let granted =
            unlocked || piece.range.is_none_or(|range| self.locks.acquire(id, range, mode));
        self.guests.pieces.insert(id, piece);
        if granted && !(self.guests.ready.is_empty() && self.start(id)) {
            self.guests.ready.push_back(id);
        }
    }

    /// Starts a piece that holds its lock; `false` if it has to wait for credit.
    fn start(&mut self, id: PieceId) -> bool {
        let Some(piece) = self.guests.pieces.get(&id) else { return true };
        let Some(guest) = self.guests.requests.get(&piece.request) else { return true };
        let (offset, range) = (piece.offset as usize, piece.range);
        let action = match (&guest.op, range) {
            (GuestOp::Write { fua, payload, .. }, Some(range)) => {
                let payload = payload.slice(offset, range.count as usize);
                Action::Write { range, fua: *fua, payload }
            }
            (GuestOp::Zero { fua, deallocate, .. }, Some(range)) => {
                let range = self.discarded(range);
                Action::Zero { range, fua: *fua, deallocate: *deallocate }
            }
            (GuestOp::Read { .. }, Some(range)) => return self.start_read(id, range),
            _ => Action::Flush,
        };
        if !self.has_credit(range.map_or(0, BlockRange::bytes)) {
            return false;
        }
        self.issue(id, action);
        true
    }

    /// What a discard of `range` discards.
    fn discarded(&self, range: BlockRange) -> BlockRange {
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        let longer = self.has(Bug::LongDiscard) && range.end() < volume;
        BlockRange::new(range.start, range.count + u32::from(longer))
    }

    /// A piece has its result; the request is answered with its last piece.
    pub(super) fn piece_done(&mut self, id: PieceId) {
        let Some(request) = self.guests.pieces.get(&id).map(|p| p.request) else { return };
        let hasty = self.has(Bug::FirstPiece);
        let Some(guest) = self.guests.requests.get_mut(&request) else { return };
        guest.running -= 1;
        if guest.running > 0 && !(hasty && guest.mutates()) || !guest.is_issued() {
            return;
        }
        let Some(guest) = self.guests.requests.remove(&request) else { return };
        self.guests.queue.retain(|r| *r != request);
        let result = match guest.error {
            Some(error) => Err(error),
            None => Ok(self.count(guest)),
        };
        self.answer(request, result);
    }

    fn count(&mut self, guest: Guest) -> GuestReply {
        let bytes = guest.range().map_or(0, BlockRange::bytes);
        match guest.op {
            GuestOp::Read { .. } => {
                self.counters.reads += 1;
                self.counters.read_bytes += bytes;
                GuestReply::Data(guest.data.into_values().collect())
            }
            GuestOp::Flush => {
                self.counters.acked_flushes += 1;
                GuestReply::Done
            }
            GuestOp::Write { .. } | GuestOp::Zero { .. } => {
                self.pace.note(self.now, self.now.0 - guest.arrived.0.0);
                self.counters.acked_writes += 1;
                self.counters.acked_write_bytes += bytes;
                GuestReply::Done
            }
        }
    }

    /// A piece is over: its lock goes to whoever waits.
    pub(super) fn release_piece(&mut self, id: PieceId) {
        let Some(piece) = self.guests.pieces.remove(&id) else { return };
        self.guests.reads.forget(id, &piece.read);
        if piece.range.is_some() {
            self.release_lock(id);
        }
    }

    /// Releases a lock and starts what was waiting for it.
    pub(super) fn release_lock(&mut self, id: LockId) {
        let mut granted = Vec::new();
        match self.locks.is_held(id) {
            Some(true) => self.locks.release(id, &mut granted),
            Some(false) => self.locks.cancel(id, &mut granted),
            None => {}
        }
        for id in granted {
            if self.guests.pieces.contains_key(&id) {
                self.guests.ready.push_back(id);
            } else if !self.mend_locked(id) {
                self.window_locked(id);
            }
        }
    }

    /// Answers everything that is open with `error`.
    pub(super) fn fail_all_guests(&mut self, error: GuestError) {
        let guests = core::mem::take(&mut self.guests);
        for request in guests.requests.into_keys() {
            self.answer(request, Err(error));
        }
    }
}
