//! Rule R2: a promise closes older sessions, waits for their work, is durable, then answered.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Effect, InFlight, Replica, Role, Session};
use crate::id::{Conn, Epoch, InstanceId, Lineage, ReplicaId, Tick};
use crate::limits;
use crate::message::{Header, Promised, Refusal, Reply};
use crate::planted::Bug;
use crate::store::{StoreNote, StoreOp};

/// What a promise asks for.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Wanted {
    pub(super) replica: ReplicaId,
    pub(super) lineage: Lineage,
    pub(super) parent: Option<Lineage>,
    pub(super) at_least: Epoch,
    pub(super) instance: InstanceId,
    pub(super) attach_seq: u64,
}

/// A promise under way.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct PendingPromise {
    pub(super) conn: Conn,
    /// Is the asking connection still there?
    pub(super) connected: bool,
    header: Header,
    wanted: Wanted,
    /// As what it was handed to the store (older work is drained): itself, or the same promise as
    /// it was asked for before.
    submitted: Option<Header>,
}

impl PendingPromise {
    /// Is it being persisted under this header?
    pub(super) fn is_for(&self, header: &Header) -> bool {
        self.submitted == Some(*header)
    }

    /// Is it the same promise, asked for anew?
    fn is_same(&self, header: &Header, wanted: &Wanted) -> bool {
        let of = |w: &Wanted| (w.instance, w.lineage, w.attach_seq);
        self.header.epoch == header.epoch && of(&self.wanted) == of(wanted)
    }
}

impl Replica {
    pub(super) fn on_promise(
        &mut self,
        now: Tick,
        conn: Conn,
        header: Header,
        wanted: Wanted,
        out: &mut Vec<Effect>,
    ) {
        if let Err(refusal) = self.may_promise(&header, &wanted) {
            return self.reply(conn, &header, Reply::Refused(refusal), out);
        }
        self.heard = Some(now);
        // From here on nothing of an older session is admitted; what it has in the store drains.
        self.end_session();
        let running = self.promising.filter(|p| p.submitted.is_some());
        if self.promising.is_some_and(|p| p.header.epoch < header.epoch) {
            // The newer claim is in the record already: the older one is fenced.
            self.refuse_promise(Refusal::Epoch { promised: header.epoch }, out);
        }
        // Who asks again gets the answer as soon as the promise is durable, however slow the disk.
        let same = running.filter(|p| p.is_same(&header, &wanted));
        let submitted = same.and_then(|p| p.submitted);
        self.promising = Some(PendingPromise { conn, connected: true, header, wanted, submitted });
        if running.is_some() {
            // An earlier promise is being persisted; another one follows when it is answered.
            return;
        }
        self.try_promise(out);
    }

    /// Whoever waits for a promise that will not be made is told so.
    pub(super) fn refuse_promise(&mut self, refusal: Refusal, out: &mut Vec<Effect>) {
        if let Some(pending) = self.promising.take().filter(|p| p.connected) {
            self.reply(pending.conn, &pending.header, Reply::Refused(refusal), out);
        }
    }

    fn may_promise(&self, header: &Header, wanted: &Wanted) -> Result<(), Refusal> {
        let me = (self.identity.volume, self.identity.replica);
        let mine = self.identity.lineage;
        let related = wanted.lineage == mine || wanted.parent == Some(mine);
        if (header.volume, wanted.replica) != me || !related {
            return Err(Refusal::NoSuchReplica);
        }
        if self.role == Role::Faulted {
            return Err(Refusal::Faulted);
        }
        // R7, and before anything is made durable: what proves it must not be overwritten.
        if wanted.at_least > self.promised && !self.planted.has(Bug::NoImageCheck) {
            return Err(Refusal::PutBack { promised: self.promised });
        }
        let promised = self.promised.max(self.promising.map_or(Epoch(0), |p| p.header.epoch));
        let same_claim = self.instance.is_none_or(|i| i == wanted.instance);
        let newer = header.epoch > promised;
        if newer || (header.epoch == promised && (same_claim || promised > self.promised)) {
            Ok(())
        } else {
            Err(Refusal::Epoch { promised })
        }
    }

    /// Persists the pending promise once the older work has drained.
    pub(super) fn try_promise(&mut self, out: &mut Vec<Effect>) {
        let drained = self.in_flight.is_empty() || self.planted.has(Bug::NoDrain);
        let waits = |p: &&mut PendingPromise| p.submitted.is_none() && drained;
        let Some(pending) = self.promising.as_mut().filter(waits) else { return };
        pending.submitted = Some(pending.header);
        let (conn, header) = (pending.conn, pending.header);
        let op = StoreOp::Promise {
            epoch: header.epoch,
            attach_seq: self.attach_seq.max(pending.wanted.attach_seq),
            member_gen: self.member_gen,
            lineage: pending.wanted.lineage,
        };
        self.submit(
            InFlight { conn, header, mutation: None, fatal: true, gives: false, extends: None },
            op,
            out,
        );
    }

    /// The store has persisted the promise under way.
    pub(super) fn on_promise_durable(&mut self, now: Tick, out: &mut Vec<Effect>) {
        let Some(pending) = self.promising.take() else { return };
        let header = pending.header;
        assert!(header.epoch >= self.promised, "a promise went backwards");
        self.past.on_promised(now, header.epoch > self.promised);
        self.promised = header.epoch;
        self.instance = Some(pending.wanted.instance);
        // T11: durable with the promise, like all of it.
        self.identity.lineage = pending.wanted.lineage;
        self.attach_seq = self.attach_seq.max(pending.wanted.attach_seq);
        if self.role != Role::Member {
            for blocks in self.ring.join_left(self.promised) {
                out.push(Effect::Note(StoreNote::Release { blocks }));
            }
        }
        self.role = Role::Promised;
        if pending.connected {
            self.session = Some(Session { conn: pending.conn, first: header.seq });
            let promised = Promised {
                incarnation: self.identity.incarnation,
                unclean: self.is_unclean(),
                lossy: self.lossy,
                fresh: self.fresh && self.ring.len() == 0,
                member_gen: self.member_gen,
                ring: self.ring.to_tell(self.blocks),
                unresolved: self.unresolved.clone(),
                credit_ops: limits::CREDIT_OPS,
                credit_bytes: limits::CREDIT_BYTES,
                silent_ms: Some(self.past.silent_ms(now)),
                pulls: self.fetches,
                blocks: Some(self.blocks),
            };
            self.reply(pending.conn, &header, Reply::Promised(Box::new(promised)), out);
        }
    }
}
