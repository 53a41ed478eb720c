//! Requests of the session's primary become store operations, and their answers replies.

use alloc::vec::Vec;

use super::pull::Pull;
use super::{Effect, InFlight, Replica, Role};
use crate::id::{Conn, Gen, Tick, Token};
use crate::limits::{MAX_OP_BLOCKS, MAX_VOLUME_BLOCKS};
use crate::message::{Header, Payload, Refusal, Reply, Request, ResyncBlock, ResyncContent};
use crate::planted::Bug;
use crate::range::{BlockRange, BlockSet};
use crate::store::{StoreError, StoreNote, StoreOp, StoreReply};

impl Replica {
    pub(super) fn serve(
        &mut self,
        conn: Conn,
        header: Header,
        request: Request,
        out: &mut Vec<Effect>,
    ) {
        if !self.is_within_credit() || !self.is_well_formed(&request) {
            return self.reply(conn, &header, Reply::Refused(Refusal::Malformed), out);
        }
        let stamp = header.r#gen;
        match request {
            Request::Promise { .. }
            | Request::Fetch { .. }
            | Request::ScanKept { .. }
            | Request::DigestKept { .. }
            | Request::ReadKept { .. }
            | Request::Commit { member: false } => {}
            Request::Commit { member: true } => self.become_member(&header, out),
            Request::Read { blocks } => self.query(conn, header, StoreOp::Read { blocks }, out),
            Request::Scan { since, from, limit } => {
                self.query(conn, header, StoreOp::Scan { since, from, limit }, out);
            }
            Request::Digest { blocks, since } => {
                self.query(conn, header, StoreOp::Digest { blocks, since }, out);
            }
            Request::Write { range, fua, payload } => {
                let op = StoreOp::Write { range, stamp, durable: fua, payload };
                self.mutate(conn, header, range.into(), op, out);
            }
            Request::Zero { range, fua, deallocate } => {
                let op = StoreOp::Zero { range, stamp, durable: fua, deallocate };
                self.mutate(conn, header, range.into(), op, out);
            }
            Request::Resync { blocks, payload } => {
                if self.planted.has(Bug::EarlyTargetClean) {
                    self.settle(&header, out);
                }
                let set = blocks.iter().map(|b| BlockRange::new(b.block, 1)).collect();
                self.mutate(conn, header, set, StoreOp::Resync { blocks, payload }, out);
            }
            Request::Pull { node, source, blocks } => {
                self.on_pull(conn, header, node, Pull::new(source, blocks), out);
            }
            Request::Mark { blocks } => {
                self.mutate(conn, header, blocks.clone(), StoreOp::Mark { blocks }, out);
            }
            Request::Renew => self.reply(conn, &header, Reply::Done, out),
            Request::Enter { copies } => self.on_enter(conn, header, copies, out),
            Request::Flush => self.barrier(conn, header, StoreOp::Flush, out),
            Request::Complete => {
                // The next promise waits for the flush; if that fails, so does the replica.
                self.lossy = false;
                self.barrier(conn, header, StoreOp::Complete, out);
            }
            Request::Close => {
                self.role = Role::Idle;
                self.barrier(conn, header, StoreOp::CleanAll, out);
            }
            Request::Extend { blocks } => {
                self.favour(conn, header, StoreOp::Extend { blocks }, out);
            }
            Request::Prepare => self.favour(conn, header, StoreOp::Prepare, out),
            Request::Snapshot { id } => self.favour(conn, header, StoreOp::Snapshot { id }, out),
            Request::Seal { id } => self.favour(conn, header, StoreOp::Seal { id }, out),
            Request::DropSnapshot { id } => {
                self.favour(conn, header, StoreOp::DropSnapshot { id }, out);
            }
        }
    }

    fn query(&mut self, conn: Conn, header: Header, op: StoreOp, out: &mut Vec<Effect>) {
        self.submit(
            InFlight { conn, header, mutation: None, fatal: false, gives: false, extends: None },
            op,
            out,
        );
    }

    fn barrier(&mut self, conn: Conn, header: Header, op: StoreOp, out: &mut Vec<Effect>) {
        self.submit(
            InFlight { conn, header, mutation: None, fatal: true, gives: false, extends: None },
            op,
            out,
        );
    }

    /// What may fail for good reasons, and leaves the replica as it was then.
    fn favour(&mut self, conn: Conn, header: Header, op: StoreOp, out: &mut Vec<Effect>) {
        let extends = match op {
            StoreOp::Extend { blocks } => Some(blocks),
            _ => None,
        };
        let (mutation, fatal, gives) = (None, false, false);
        self.submit(InFlight { conn, header, mutation, fatal, gives, extends }, op, out);
    }

    /// A mutation enters the ring before it is issued.
    pub(super) fn mutate(
        &mut self,
        conn: Conn,
        header: Header,
        blocks: BlockSet,
        op: StoreOp,
        out: &mut Vec<Effect>,
    ) {
        self.fresh = false;
        let replayed = self.ring.insert(header.epoch, header.seq, blocks.clone());
        let mutation = Some((blocks, header.r#gen));
        self.submit(
            InFlight { conn, header, mutation, fatal: true, gives: false, extends: None },
            op,
            out,
        );
        if let Some(blocks) = replayed {
            out.push(Effect::Note(StoreNote::Release { blocks }));
        }
    }

    pub(super) fn on_stored(
        &mut self,
        now: Tick,
        token: Token,
        result: Result<StoreReply, StoreError>,
        out: &mut Vec<Effect>,
    ) {
        let Some(item) = self.in_flight.remove(&token) else { return };
        // A session that is gone gets no answer; its primary asks again in its next one.
        let waits = self.session.is_some_and(|s| s.conn == item.conn);
        if result.is_err() && item.fatal || result == Err(StoreError::Faulted) {
            self.fault(out);
        }
        if item.gives {
            self.on_given(&item, result, out);
            return self.try_promise(out);
        }
        let is_promise = self.promising.is_some_and(|p| p.is_for(&item.header));
        match result {
            Ok(StoreReply::Done) if is_promise => self.on_promise_durable(now, out),
            Ok(reply) => self.on_done(&item, reply, waits, out),
            Err(_) if !waits => {}
            Err(error) => {
                // Of what it can't do without, that it failed is all that matters.
                let why = if item.fatal { Refusal::Io } else { refusal(error) };
                let why = if error == StoreError::Faulted { Refusal::Faulted } else { why };
                self.reply(item.conn, &item.header, Reply::Refused(why), out);
            }
        }
        self.try_promise(out);
    }

    fn on_done(&mut self, item: &InFlight, reply: StoreReply, waits: bool, out: &mut Vec<Effect>) {
        self.blocks = self.blocks.max(item.extends.unwrap_or_default());
        if let Some((blocks, stamp)) = &item.mutation {
            self.restamp_if_overtaken(blocks, *stamp, out);
        }
        let body = match reply {
            StoreReply::Done => Reply::Done,
            StoreReply::Data(payload) => Reply::Data(payload),
            StoreReply::Regions { regions, next } => Reply::Regions { regions, next },
            StoreReply::Digests(digests) => Reply::Digests(digests),
        };
        if waits {
            self.reply(item.conn, &item.header, body, out);
        }
    }

    /// A write that was in the store while the generation rose gets the new stamp after all (R4).
    fn restamp_if_overtaken(&self, blocks: &BlockSet, stamp: Gen, out: &mut Vec<Effect>) {
        if stamp < self.view && !self.planted.has(Bug::NoRingRestamp) {
            let blocks = blocks.clone();
            out.push(Effect::Note(StoreNote::Restamp { blocks, stamp: self.view }));
        }
    }

    /// Rule R6: after a failed write or flush nothing is promised or retried.
    fn fault(&mut self, out: &mut Vec<Effect>) {
        self.role = Role::Faulted;
        self.end_session();
        self.refuse_promise(Refusal::Faulted, out);
    }

    fn is_well_formed(&self, request: &Request) -> bool {
        match request {
            Request::Write { range, payload, .. } => {
                self.fits(*range) && payload.blocks() == range.count as usize && sized(payload)
            }
            Request::Zero { range, .. } => self.fits(*range),
            Request::Read { blocks } | Request::Digest { blocks, .. } => {
                blocks.len() <= u64::from(MAX_OP_BLOCKS) && self.holds(blocks)
            }
            Request::Mark { blocks } => self.holds(blocks),
            Request::Extend { blocks } => (1..=MAX_VOLUME_BLOCKS).contains(blocks),
            // Only what a member has is worth keeping.
            Request::Prepare | Request::Snapshot { .. } => self.role == Role::Member,
            Request::Resync { blocks, payload } => self.is_resync_well_formed(blocks, payload),
            Request::Pull { blocks, .. } => self.is_pull_well_formed(blocks),
            // Not a replica's business: the node answers them.
            Request::ScanKept { .. } | Request::DigestKept { .. } | Request::ReadKept { .. } => {
                false
            }
            Request::Fetch { .. }
            | Request::Promise { .. }
            | Request::Flush
            | Request::Complete
            | Request::Commit { .. }
            | Request::Scan { .. }
            | Request::Close
            | Request::Enter { .. }
            | Request::Seal { .. }
            | Request::DropSnapshot { .. }
            | Request::Renew => true,
        }
    }

    fn is_resync_well_formed(&self, blocks: &[ResyncBlock], payload: &Payload) -> bool {
        self.is_list_well_formed(blocks) && sized(payload) && payload.blocks() == with_data(blocks)
    }

    pub(super) fn is_list_well_formed(&self, blocks: &[ResyncBlock]) -> bool {
        let ascending = blocks.windows(2).all(|pair| pair[0].block < pair[1].block);
        ascending && blocks.last().is_some_and(|last| last.block < self.blocks)
    }

    fn fits(&self, range: BlockRange) -> bool {
        range.count <= MAX_OP_BLOCKS && range.end() <= self.blocks
    }

    pub(super) fn holds(&self, blocks: &BlockSet) -> bool {
        blocks.ranges().last().is_some_and(|last| last.end() <= self.blocks)
    }
}

/// How many of them need data.
pub(super) fn with_data(blocks: &[ResyncBlock]) -> usize {
    blocks.iter().filter(|b| b.content == ResyncContent::Data).count()
}

pub(super) fn sized(payload: &Payload) -> bool {
    payload.data.len() == payload.blocks() * crate::range::BLOCK_SIZE as usize
}

pub(super) fn refusal(error: StoreError) -> Refusal {
    match error {
        StoreError::Io => Refusal::Io,
        StoreError::NoSpace => Refusal::NoRoom,
        StoreError::NoReflink => Refusal::NoReflink,
        StoreError::Checksum { block } => Refusal::Checksum { block },
        StoreError::Faulted => Refusal::Faulted,
    }
}
