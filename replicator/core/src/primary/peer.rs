//! One replica as its primary sees it: connection, session, and what waits for its answer.

mod alike;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::copy::Step;
use super::resync::Reach;
use super::{Call, Effect, Phase, Primary, Purpose};
use crate::id::{Conn, Gen, Incarnation, NodeId, ReplicaId, Seq, Tick};
use crate::limits;
use crate::message::{Header, Message, Promised, Refusal, Reply, Request};
use crate::planted::Bug;
use crate::range::BlockRange;
use crate::record::Record;

/// A request without an answer.
#[derive(Clone, Copy, Debug)]
struct Owed {
    /// When it was sent. A lease hangs on this, so nothing ever changes it.
    sent: Tick,
    /// Since when the answer is waited for, not counting the time in which we stood still.
    since: Tick,
}

/// One replica as its primary sees it.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    node: NodeId,
    conn: Option<Conn>,
    /// What it answered to the promise of this epoch on this connection: the session.
    session: Option<Promised>,
    /// Its incarnation when it was last accepted: what it had then it has as long as it lives.
    known: Option<Incarnation>,
    /// What it promised, until the record proves that it has promised nothing newer (R7).
    held: Option<Promised>,
    /// Since when it has had no session.
    lost_at: Tick,
    /// It said that it can't go on, or came back without what it had: no grace.
    failed: bool,
    /// Why it would not promise, the last time it was asked.
    pub(super) refused: Option<Refusal>,
    /// Has it promised our epoch? Then it can't have promised less (R7).
    promised: bool,
    /// When to ask it again for a promise, after it refused or failed on a live connection.
    ask_again_at: Option<Tick>,
    /// Requests that it owes an answer to.
    owed: BTreeMap<Seq, Owed>,
    /// How often in a row its silence was excused by a standstill of ours.
    excused: u8,
    /// When the last request was sent that it has answered in this epoch.
    renewed: Option<Tick>,
    /// Is it being asked for nothing but an answer?
    pub(super) renewing: bool,
    /// Commit watermark last sent to it.
    pub(super) commit_sent: Seq,
    /// Was an operation sent in this session? Then what it promised with (ring, unresolved
    /// regions, being empty) is out of date, and a repair or resync needs a new session first.
    dirty: bool,
    /// To how many blocks it was asked to grow in this session.
    pub(super) extending: u64,
    /// How long it is, if it can't say so.
    pub(super) reach: Reach,
    /// Its node's leave to be the target of a resync in this session.
    pub(super) entry: Entry,
}

/// A node's leave for one of its replicas to be the target of a resync.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    /// It was not asked for.
    #[default]
    Unasked,
    /// It was asked for.
    Asked,
    /// It was given then, and is lost if it is not used for long.
    Given(Tick),
}

impl Peer {
    fn new(node: NodeId, conn: Option<Conn>, now: Tick) -> Self {
        Self {
            node,
            conn,
            session: None,
            known: None,
            held: None,
            lost_at: now,
            failed: false,
            refused: None,
            promised: false,
            ask_again_at: None,
            owed: BTreeMap::new(),
            excused: 0,
            renewed: None,
            renewing: false,
            commit_sent: Seq(0),
            dirty: false,
            extending: 0,
            reach: Reach::Unknown,
            entry: Entry::Unasked,
        }
    }

    pub(super) fn node(&self) -> &NodeId {
        &self.node
    }

    /// Is there a connection, with or without a session?
    pub(super) fn is_connected(&self) -> bool {
        self.conn.is_some()
    }

    /// Has it a session in this epoch?
    pub(super) fn is_up(&self) -> bool {
        self.session.is_some()
    }

    /// Since when it has no session.
    pub(super) fn lost_at(&self) -> Option<Tick> {
        (!self.is_up()).then_some(self.lost_at)
    }

    /// What it answered to the promise.
    pub(super) fn session(&self) -> Option<&Promised> {
        self.session.as_ref()
    }

    /// It can't go on as a member.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Does it have an older image than the record proves (R7)?
    pub(super) fn is_put_back(&self) -> bool {
        matches!(self.refused, Some(Refusal::PutBack { .. }))
    }

    /// When its absence or silence must have consequences.
    pub(super) fn fails_at(&self) -> Option<Tick> {
        // Within a session requests go out in the order of their numbers: the first is the oldest.
        let oldest = self.owes_since();
        match (self.failed, self.is_up()) {
            (true, _) => Some(Tick(0)),
            (false, false) => Some(self.lost_at.plus_ms(limits::MEMBER_GRACE_MS)),
            (false, true) => oldest.map(|at| at.plus_ms(limits::OP_FAIL_MS)),
        }
    }

    /// When the last request was sent that it has answered in this epoch: until then at least,
    /// it had promised no other.
    pub(super) fn renewed_at(&self) -> Option<Tick> {
        self.renewed
    }

    /// It answered a request; since when that was waited for, unless it refused.
    fn answered(&mut self, seq: Seq, refused: bool) -> Option<Tick> {
        let owed = self.owed.remove(&seq).filter(|_| !refused);
        self.renewed = self.renewed.max(owed.map(|owed| owed.sent));
        self.excused = 0;
        owed.map(|owed| owed.since)
    }

    /// We stood still for `ms`: that says nothing about it. `stretches` also stretches its lease.
    pub(super) fn excuse(&mut self, ms: u64, stretches: bool) {
        if self.excused >= limits::STANDSTILLS_EXCUSED {
            return;
        }
        self.excused += 1;
        self.lost_at = self.lost_at.plus_ms(ms);
        self.owed.values_mut().for_each(|owed| owed.since = owed.since.plus_ms(ms));
        if stretches {
            self.renewed = self.renewed.map(|at| at.plus_ms(ms));
        }
    }

    /// Since when it has owed the answer that it has owed for longest.
    pub(super) fn owes_since(&self) -> Option<Tick> {
        self.owed.first_key_value().map(|(_, owed)| owed.since)
    }

    /// Is it the one that was accepted last, with all that it had?
    pub(super) fn knows(&self, incarnation: Incarnation) -> bool {
        self.known == Some(incarnation)
    }

    /// Its session waits for a proof.
    pub(super) fn hold(&mut self, promised: Promised) {
        (self.held, self.ask_again_at) = (Some(promised), None);
    }

    /// What was held back, if the connection is still there.
    pub(super) fn take_held(&mut self) -> Option<Promised> {
        self.held.take()
    }

    /// A resync starts in this session.
    pub(super) fn begin_resync(&mut self) {
        self.known = self.session.as_ref().map(|s| s.incarnation);
    }

    /// What it promised with is out of date from now on.
    pub(super) fn soil(&mut self) {
        self.dirty = true;
    }

    /// Is what it promised with out of date?
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty && self.is_up()
    }

    /// It is at least so long now.
    pub(super) fn extended(&mut self, blocks: u64) {
        if let Some(session) = &mut self.session {
            session.blocks = session.blocks.map(|known| known.max(blocks));
        }
    }

    /// It is no member any more: if it has a session, it may come back as a target.
    pub(super) fn forgive(&mut self) {
        self.failed = self.failed && self.session.is_none();
    }

    fn lose_session(&mut self, now: Tick) {
        if self.session.take().is_some() {
            self.lost_at = now;
        }
        (self.held, self.ask_again_at) = (None, None);
        self.renewing = false;
        self.extending = 0;
        self.reach.end_session();
        self.entry = Entry::Unasked;
        self.owed.clear();
    }
}

impl Primary {
    /// Peers follow the record: one per copy in it.
    pub(super) fn update_peers(&mut self) {
        let Some(record) = self.cas.record() else { return };
        let wanted: Vec<_> = record.replicas.iter().map(|r| (r.rid, r.node.clone())).collect();
        let gone = |rid: &ReplicaId| !wanted.iter().any(|(w, _)| w == rid);
        let left: Vec<ReplicaId> = self.peers.keys().copied().filter(gone).collect();
        for rid in left {
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.conn = None;
            }
            self.end_session(rid);
            if let Some(peer) = self.peers.remove(&rid) {
                self.out.push(Effect::Disconnect(peer.node));
            }
        }
        for (rid, node) in wanted {
            if !self.peers.contains_key(&rid) {
                let conn = self.conns.get(&node).copied();
                self.peers.insert(rid, Peer::new(node.clone(), conn, self.now));
                self.out.push(Effect::Connect(node));
                self.send_promise(rid);
            }
        }
    }

    /// A new epoch: every session has to be opened again.
    pub(super) fn restart_sessions(&mut self) {
        let rids: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for rid in rids {
            self.end_session(rid);
            if let Some(peer) = self.peers.get_mut(&rid) {
                let conn = peer.conn;
                *peer = Peer::new(peer.node.clone(), conn, self.now);
            }
            self.send_promise(rid);
        }
    }

    pub(super) fn on_connected(&mut self, node: NodeId, conn: Conn) {
        if let Some(old) = self.conns.insert(node.clone(), conn) {
            self.drop_conn(old);
        }
        let rid = self.peers.iter().find(|(_, p)| p.node == node).map(|(rid, _)| *rid);
        let Some(rid) = rid else { return };
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.conn = Some(conn);
            // Another version may run there now.
            peer.reach = Reach::Unknown;
        }
        self.send_promise(rid);
    }

    pub(super) fn on_disconnected(&mut self, conn: Conn) {
        self.conns.retain(|_, c| *c != conn);
        self.drop_conn(conn);
    }

    fn drop_conn(&mut self, conn: Conn) {
        if let Some(rid) = self.peer_of(conn) {
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.conn = None;
            }
            self.end_session(rid);
        }
    }

    fn peer_of(&self, conn: Conn) -> Option<ReplicaId> {
        self.peers.iter().find(|(_, p)| p.conn == Some(conn)).map(|(rid, _)| *rid)
    }

    /// Opens a new session on the connection that is there; the replica drains the old one.
    pub(super) fn renew_session(&mut self, rid: ReplicaId) {
        self.end_session(rid);
        self.send_promise(rid);
    }

    /// P2: asks for the promise of this epoch; the answer opens the session.
    fn send_promise(&mut self, rid: ReplicaId) {
        let Some(record) = self.cas.claimed() else { return };
        let promised = self.peers.get(&rid).is_some_and(|p| p.promised);
        let request = Request::Promise {
            replica: rid,
            lineage: record.lineage,
            parent: record.forced.as_ref().map(|forced| forced.parent),
            at_least: if promised { record.epoch } else { record.promised_by(rid) },
            instance: self.params.instance,
            attach_seq: record.attach.as_ref().map_or(0, |a| a.seq),
        };
        let again = self.now.plus_ms(limits::OP_FAIL_MS);
        if let Some(peer) = self.peers.get_mut(&rid).filter(|p| p.conn.is_some()) {
            peer.ask_again_at = Some(again);
            // The replica answers the last one alone: the others are not owed any more.
            let before = |call: &Call| call.rid == rid && matches!(call.purpose, Purpose::Promise);
            self.calls.extract_if(.., |_, call| before(call)).for_each(|(seq, _)| {
                peer.owed.remove(&seq);
            });
            self.call(rid, Purpose::Promise, false, request);
        }
    }

    /// Sends a request to one replica and remembers what it was for.
    pub(super) fn call(
        &mut self,
        rid: ReplicaId,
        purpose: Purpose,
        mutates: bool,
        request: Request,
    ) {
        if !self.peers.get(&rid).is_some_and(Peer::is_connected) {
            // Its session is ending; whoever asks is about to be told.
            return;
        }
        let seq = self.take_seq();
        if mutates {
            self.ops.note_mutation(seq);
        }
        self.calls.insert(seq, Call { rid, purpose, mutates });
        self.send(rid, seq, request, true);
    }

    /// Sends a request under the record in force (rule R1).
    pub(super) fn send(&mut self, rid: ReplicaId, seq: Seq, body: Request, answered: bool) {
        let (epoch, r#gen) = self.cas.record().map_or_else(Default::default, epoch_and_gen);
        let commit = self.watermark();
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let Some(conn) = peer.conn else { return };
        if answered {
            peer.owed.insert(seq, Owed { sent: now, since: now });
        }
        peer.dirty |= body.mutates();
        peer.commit_sent = commit;
        let header = Header { volume: self.params.volume, epoch, r#gen, seq, commit };
        self.out.push(Effect::Send { conn, message: Message { header, body } });
    }

    pub(super) fn on_reply(&mut self, conn: Conn, message: Message<Reply>) {
        let Message { header, body } = message;
        let Some(rid) = self.peer_of(conn) else { return };
        // A promise of our own epoch to somebody else is as bad as one of a newer epoch.
        if let Reply::Refused(Refusal::Epoch { promised }) = body
            && let Some(epoch) = self.cas.record().map(|r| r.epoch)
            && (promised > epoch || (promised, header.epoch) == (epoch, epoch))
        {
            return self.on_outbid(promised);
        }
        if self.cas.record().is_none_or(|r| header.epoch != r.epoch) {
            return;
        }
        let refused = matches!(body, Reply::Refused(_));
        let peer = self.peers.get_mut(&rid);
        let since = peer.and_then(|peer| peer.answered(header.seq, refused));
        if let Some(since) = since.filter(|_| self.ops.contains(header.seq)) {
            self.note_time(rid, since);
        }
        match self.calls.get(&header.seq) {
            Some(call) if call.rid == rid => {
                let purpose = call.purpose.clone();
                self.calls.remove(&header.seq);
                self.on_answer(rid, purpose, body);
            }
            Some(_) => {}
            None => self.on_op_reply(rid, header.seq, body),
        }
        self.note_watermark();
    }

    fn on_op_reply(&mut self, rid: ReplicaId, seq: Seq, body: Reply) {
        match body {
            Reply::Done => self.on_ack(rid, seq),
            // The answer to a call of an earlier session says nothing about this one, unless
            // it says that the replica has failed or knows no session.
            Reply::Refused(refusal @ (Refusal::NoSession | Refusal::Faulted)) => {
                self.on_refused(rid, refusal);
            }
            Reply::Refused(refusal) if self.ops.contains(seq) => self.on_refused(rid, refusal),
            _ => {}
        }
    }

    fn on_answer(&mut self, rid: ReplicaId, purpose: Purpose, body: Reply) {
        match (purpose, body) {
            (Purpose::Promise, Reply::Promised(promised)) => self.on_promised(rid, *promised),
            (Purpose::Read(piece), body) => self.on_read(rid, piece, body),
            (Purpose::Mend(lock), body) => self.on_mend(rid, lock, body),
            (Purpose::Abandoned(lock), _) => self.release_lock(lock),
            (Purpose::Copy(step), Reply::Refused(refusal)) => {
                self.on_copy_refused(rid, &step, refusal);
            }
            (Purpose::Copy(step), body) => self.on_copied(rid, step, body),
            (Purpose::Promise, Reply::Refused(refusal)) => {
                if let Some(peer) = self.peers.get_mut(&rid) {
                    peer.refused = Some(refusal);
                }
                self.on_refused(rid, refusal);
            }
            (Purpose::Reach(blocks), body) if self.on_reach(rid, blocks, &body) => {}
            (Purpose::Enter, Reply::Refused(Refusal::Busy)) => self.on_busy(rid),
            (purpose, Reply::Refused(refusal)) => {
                if !self.on_favour_refused(rid, &purpose, refusal) {
                    self.on_refused(rid, refusal);
                }
            }
            (Purpose::Extend(blocks), _) => self.on_extended(rid, blocks),
            (Purpose::Prepare(id), _) => self.on_prepared(rid, id),
            (Purpose::Snapshot(id), _) => self.on_kept(rid, id),
            (Purpose::Seal(id), _) => self.on_sealed(rid, id),
            (Purpose::DropSnapshot, _) => {}
            (Purpose::Enter, _) => self.on_entered(rid),
            (Purpose::Renew, _) => self.on_renewed(rid),
            (Purpose::Mark, _) => self.on_marked(rid),
            (Purpose::PromotionFlush, _) => self.on_promotion_flushed(rid),
            (Purpose::TargetFlush, _) => self.on_target_flushed(rid),
            (Purpose::ReleaseFlush(step), _) => self.on_release_flushed(rid, step),
            (Purpose::Close(step), _) => self.on_close_step(rid, step),
            (Purpose::Promise | Purpose::Reach(_), _) => self.fail_peer(rid),
        }
    }

    /// The replica can't go on. Nothing is retried on this session (rule R6).
    pub(super) fn on_refused(&mut self, rid: ReplicaId, refusal: Refusal) {
        match refusal {
            // The session is gone at the other end; a new connection opens a new one.
            Refusal::NoSession => self.reset_peer(rid),
            Refusal::Epoch { .. }
            | Refusal::NoSuchReplica
            | Refusal::PutBack { .. }
            | Refusal::Faulted
            | Refusal::Io
            | Refusal::Checksum { .. }
            | Refusal::Malformed
            | Refusal::NotPulled
            | Refusal::NoRoom
            | Refusal::NoReflink
            | Refusal::Busy => self.fail_peer(rid),
        }
    }

    pub(super) fn reset_peer(&mut self, rid: ReplicaId) {
        let conn = self.peers.get_mut(&rid).and_then(|p| p.conn.take());
        self.end_session(rid);
        if let Some(conn) = conn {
            self.conns.retain(|_, c| *c != conn);
            self.out.push(Effect::Reset(conn));
        }
    }

    /// Its session ends and it counts as failed until it promises again.
    pub(super) fn fail_peer(&mut self, rid: ReplicaId) {
        self.end_session(rid);
        let again = self.now.plus_ms(limits::PROMISE_RETRY_MS);
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.failed = true;
            peer.ask_again_at = peer.conn.map(|_| again);
        }
    }

    /// When the next failed replica is asked whether it can go on by now.
    pub(super) fn promise_due(&self) -> Option<Tick> {
        self.peers.values().filter_map(|p| p.ask_again_at).min()
    }

    pub(super) fn retry_promises(&mut self) {
        let now = self.now;
        let due = |p: &Peer| p.ask_again_at.is_some_and(|at| at <= now);
        let rids: Vec<ReplicaId> =
            self.peers.iter().filter(|(_, p)| due(p)).map(|(rid, _)| *rid).collect();
        for rid in rids {
            self.send_promise(rid);
        }
    }

    /// The session is gone: nothing in flight to it will be answered.
    fn end_session(&mut self, rid: ReplicaId) {
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        peer.lose_session(self.now);
        self.cas.shake(rid);
        let lost: Vec<Seq> =
            self.calls.iter().filter(|(_, c)| c.rid == rid).map(|(seq, _)| *seq).collect();
        for seq in lost {
            match self.calls.remove(&seq).map(|call| call.purpose) {
                Some(Purpose::Read(piece)) => self.park_read(rid, piece),
                Some(Purpose::Mend(lock)) => self.mend_lost(lock),
                Some(Purpose::Copy(Step::HealRead(lock, block))) => self.heal_lost(lock, block),
                Some(Purpose::Abandoned(lock)) => self.release_lock(lock),
                _ => {}
            }
        }
        self.ops_lost(rid);
        self.promotion_lost(rid);
        self.resync_lost(rid);
        self.release_lost();
        if self.is_required(rid) {
            self.close_lost();
        }
    }

    fn on_promised(&mut self, rid: ReplicaId, mut promised: Promised) {
        if self.is_ahead_of_record(promised.member_gen) {
            return;
        }
        if self.is_cut_short(rid, &promised) {
            return;
        }
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        // It may have been extended when the volume was not: nobody wrote there.
        promised.ring = promised.ring.before(volume);
        promised.unresolved.retain(|region| BlockRange::of_region(*region, volume).is_some());
        self.note_promise(rid, &promised);
        if !self.holds_back(rid, &promised) {
            self.on_session(rid, promised);
        }
    }

    /// Is it a member that has fewer blocks than it had as one (T10)? Then it has an older image.
    fn is_cut_short(&mut self, rid: ReplicaId, promised: &Promised) -> bool {
        let record = self.cas.record().filter(|r| r.is_in_sync(rid));
        let Some(volume) = record.map(|r| r.blocks) else { return false };
        let epoch = self.cas.record().map(|r| r.epoch).unwrap_or_default();
        let short = promised.blocks.is_some_and(|blocks| blocks < volume);
        if short && let Some(peer) = self.peers.get_mut(&rid) {
            peer.refused = Some(Refusal::PutBack { promised: epoch });
            self.fail_peer(rid);
        }
        short
    }

    /// What it promised is accepted.
    pub(super) fn on_session(&mut self, rid: ReplicaId, promised: Promised) {
        let now = self.now;
        let as_member = self.is_open() && self.is_required(rid);
        let careless = self.has(Bug::ResumeUnclean);
        let forgets = self.has(Bug::SecondReconnect);
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        (peer.refused, peer.promised) = (None, true);
        let same = peer.knows(promised.incarnation);
        let acceptable = !as_member || same || !promised.unclean || careless;
        if acceptable || forgets {
            peer.known = Some(promised.incarnation);
        }
        peer.session = Some(promised);
        // m6: a member that lost what it can't know goes out and comes back as a target. Its new
        // incarnation stays unknown until then, so that a reconnect can't pass for a resumption.
        peer.failed = !acceptable;
        peer.dirty = false;
        peer.ask_again_at = None;
        peer.lost_at = now;
        if as_member && acceptable {
            self.resume(rid);
        } else if self.phase == Phase::Recovering {
            self.promotion_promised();
        }
    }
}

fn epoch_and_gen(record: &Record) -> (crate::id::Epoch, Gen) {
    (record.epoch, record.r#gen)
}
