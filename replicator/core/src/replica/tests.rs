//! Rules R1 to R6, one test each.

mod entry;
mod pull;

use super::*;
use crate::message::Payload;
use crate::range::{BLOCK_SIZE, BlockRange};
use alloc::vec;
use uuid::Uuid;

const ME: Identity = Identity {
    volume: VolumeId(Uuid::from_u128(1)),
    replica: ReplicaId(Uuid::from_u128(2)),
    lineage: Lineage(Uuid::from_u128(3)),
    incarnation: Incarnation(4),
};

fn recovered() -> Recovered {
    Recovered {
        promised: Epoch(0),
        attach_seq: 0,
        member_gen: Gen(0),
        blocks: 1024,
        unresolved: vec![],
        lossy: false,
        fresh: true,
    }
}

fn header(epoch: u64, r#gen: u32, seq: u64) -> Header {
    let (epoch, r#gen, seq) = (Epoch(epoch), Gen(r#gen), Seq(seq));
    Header { volume: ME.volume, epoch, r#gen, seq, commit: Seq(0) }
}

fn promise(instance: u128) -> Request {
    Request::Promise {
        replica: ME.replica,
        lineage: ME.lineage,
        parent: None,
        at_least: Epoch(0),
        instance: InstanceId(Uuid::from_u128(instance)),
        attach_seq: 1,
    }
}

fn write(start: u64) -> Request {
    let data = vec![7; BLOCK_SIZE as usize];
    let payload = Payload::checksummed(data.into());
    Request::Write { range: BlockRange::new(start, 1), fua: false, payload }
}

/// A replica and what it has asked its store.
struct Bench {
    replica: Replica,
    asked: Vec<(Token, StoreOp)>,
    notes: Vec<StoreNote>,
    sent: Vec<(Conn, Reply)>,
    fetches: Vec<(Token, NodeId, Message<Request>)>,
    wishes: Vec<Wish>,
}

impl Bench {
    fn new(recovered: Recovered) -> Self {
        let replica = Replica::open(ME, recovered, Planted::NONE).with_pulls();
        let (asked, notes, sent, fetches) = (vec![], vec![], vec![], vec![]);
        Self { replica, asked, notes, sent, fetches, wishes: vec![] }
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.replica.step(Tick(1), event, &mut out);
        self.replica.check();
        for effect in out {
            match effect {
                Effect::Send { conn, message } => self.sent.push((conn, message.body)),
                Effect::Store { token, op } => self.asked.push((token, op)),
                Effect::Note(note) => self.notes.push(note),
                Effect::Entry(wish) => self.wishes.push(wish),
                Effect::Fetch { token, node, message } => self.fetches.push((token, node, message)),
            }
        }
    }

    fn ask(&mut self, conn: u64, header: Header, body: Request) {
        self.step(Event::Request { conn: Conn(conn), message: Message { header, body } });
    }

    /// The store answers its oldest operation.
    fn answer(&mut self, result: Result<StoreReply, StoreError>) {
        let (token, _) = self.asked.remove(0);
        self.step(Event::Stored { token, result });
    }

    /// A session of `epoch` on `conn`.
    fn session(&mut self, conn: u64, epoch: u64) {
        self.ask(conn, header(epoch, 1, 1), promise(epoch.into()));
        self.answer(Ok(StoreReply::Done));
        assert!(matches!(self.sent.pop(), Some((_, Reply::Promised(_)))));
    }

    fn refused(&mut self) -> Option<Refusal> {
        match self.sent.pop() {
            Some((_, Reply::Refused(refusal))) => Some(refusal),
            _ => None,
        }
    }
}

#[test]
fn a_promise_is_answered_only_when_it_is_durable() {
    let mut bench = Bench::new(recovered());
    bench.ask(1, header(1, 1, 1), promise(1));
    assert!(bench.sent.is_empty());
    bench.answer(Ok(StoreReply::Done));
    assert!(matches!(bench.sent.as_slice(), [(Conn(1), Reply::Promised(_))]));
    assert_eq!(bench.replica.status().promised, Epoch(1));
}

#[test]
fn r1_an_old_epoch_is_refused_and_told_the_new_one() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 5);
    bench.ask(2, header(4, 1, 9), promise(4));
    assert_eq!(bench.refused(), Some(Refusal::Epoch { promised: Epoch(5) }));
    bench.ask(1, header(4, 1, 9), write(0));
    assert_eq!(bench.refused(), Some(Refusal::Epoch { promised: Epoch(5) }));
    assert!(bench.asked.is_empty());
}

#[test]
fn r2_a_promise_waits_for_what_older_sessions_have_in_flight() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), write(0));
    bench.ask(2, header(2, 2, 1), promise(2));
    assert_eq!(bench.asked.len(), 1, "persisting must wait for the write");
    bench.ask(1, header(1, 1, 3), write(1));
    assert_eq!(bench.refused(), Some(Refusal::NoSession), "the old session is closed at once");
    bench.answer(Ok(StoreReply::Done));
    assert!(matches!(bench.asked.as_slice(), [(_, StoreOp::Promise { epoch: Epoch(2), .. })]));
    bench.answer(Ok(StoreReply::Done));
    let Some((Conn(2), Reply::Promised(promised))) = bench.sent.pop() else { panic!("no promise") };
    assert_eq!(promised.ring, BlockRange::new(0, 1).into(), "the drained write is in the ring");
    assert!(bench.sent.is_empty(), "the old session's write is not answered any more");
}

#[test]
fn r2_the_same_epoch_is_promised_to_one_claim_only() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 3);
    bench.ask(2, header(3, 1, 1), promise(99));
    assert_eq!(bench.refused(), Some(Refusal::Epoch { promised: Epoch(3) }));
    bench.session(2, 3);
    assert_eq!(bench.replica.status().promised, Epoch(3));
}

#[test]
fn r2_a_newer_promise_replaces_one_that_is_being_persisted() {
    let mut bench = Bench::new(recovered());
    bench.ask(1, header(1, 1, 1), promise(1));
    bench.ask(2, header(2, 2, 1), promise(2));
    assert_eq!(bench.refused(), Some(Refusal::Epoch { promised: Epoch(2) }), "it is fenced");
    bench.answer(Ok(StoreReply::Done));
    assert!(bench.sent.is_empty(), "the older one must not be promised any more");
    bench.answer(Ok(StoreReply::Done));
    assert!(matches!(bench.sent.as_slice(), [(Conn(2), Reply::Promised(_))]));
}

/// A disk that takes longer than a primary waits before it asks again.
#[test]
fn r2_a_promise_that_is_asked_for_again_is_answered_once_it_is_durable() {
    let mut bench = Bench::new(recovered());
    bench.ask(1, header(1, 1, 1), promise(1));
    bench.ask(1, header(1, 1, 5), promise(1));
    bench.ask(2, header(1, 1, 9), promise(1));
    assert_eq!(bench.asked.len(), 1, "it is being persisted");
    bench.answer(Ok(StoreReply::Done));
    assert!(matches!(bench.sent.as_slice(), [(Conn(2), Reply::Promised(_))]), "the last one");
    assert!(bench.asked.is_empty());
    bench.ask(2, header(1, 1, 9), write(0));
    assert!(bench.refused().is_none() && bench.asked.len() == 1, "its session is open");
}

#[test]
fn a_promise_that_can_not_be_made_is_refused() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), write(0));
    bench.ask(2, header(2, 2, 1), promise(2));
    bench.answer(Err(StoreError::Io));
    assert_eq!(bench.sent, [(Conn(2), Reply::Refused(Refusal::Faulted))]);
}

#[test]
fn a_promise_that_the_disk_refuses_is_answered_once() {
    let mut bench = Bench::new(recovered());
    bench.ask(1, header(1, 1, 1), promise(1));
    bench.answer(Err(StoreError::Io));
    assert_eq!(bench.sent, [(Conn(1), Reply::Refused(Refusal::Faulted))]);
}

#[test]
fn r4_a_higher_generation_restamps_before_it_commits() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 2, 2), write(8));
    bench.answer(Ok(StoreReply::Done));
    bench.notes.clear();
    let commit = Header { commit: Seq(2), ..header(1, 3, 3) };
    bench.ask(1, commit, Request::Commit { member: true });
    let blocks: BlockSet = BlockRange::new(8, 1).into();
    let restamp = StoreNote::Restamp { blocks: blocks.clone(), stamp: Gen(3) };
    assert_eq!(bench.notes, [restamp, StoreNote::Release { blocks }]);
    assert_eq!(bench.replica.status().ring, 0);
}

#[test]
fn r4_a_write_that_was_overtaken_by_a_generation_is_restamped_when_done() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 2, 2), write(8));
    bench.ask(1, header(1, 3, 3), Request::Commit { member: false });
    bench.notes.clear();
    bench.answer(Ok(StoreReply::Done));
    let blocks = BlockRange::new(8, 1).into();
    assert_eq!(bench.notes, [StoreNote::Restamp { blocks, stamp: Gen(3) }]);
}

#[test]
fn r5_a_commit_drops_its_own_epoch_and_a_membership_all_older_ones() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 7), write(0));
    bench.answer(Ok(StoreReply::Done));
    bench.session(2, 2);
    let commit = Header { commit: Seq(9), ..header(2, 1, 10) };
    bench.ask(2, commit, Request::Commit { member: false });
    assert_eq!(bench.replica.status().ring, 1, "another epoch's numbers say nothing about it");
    bench.ask(2, header(2, 2, 11), Request::Commit { member: true });
    assert_eq!(bench.replica.status().ring, 0);
}

#[test]
fn an_unclean_replica_is_resolved_by_membership_alone() {
    let unresolved = vec![RegionIndex(1)];
    let mut bench = Bench::new(Recovered { unresolved, lossy: true, ..recovered() });
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Commit { member: false });
    assert!(bench.replica.status().unclean);
    bench.ask(1, header(1, 2, 3), Request::Commit { member: true });
    assert!(!bench.replica.status().unclean);
    assert_eq!(bench.notes.last(), Some(&StoreNote::Resolve));
}

#[test]
fn r6_a_failed_flush_ends_the_replica() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Flush);
    bench.answer(Err(StoreError::Io));
    assert_eq!(bench.refused(), Some(Refusal::Io));
    bench.ask(1, header(1, 1, 3), Request::Flush);
    assert_eq!(bench.refused(), Some(Refusal::Faulted));
    bench.ask(2, header(2, 1, 1), promise(2));
    assert_eq!(bench.refused(), Some(Refusal::Faulted));
}

#[test]
fn a_read_that_fails_leaves_the_replica_in_service() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Read { blocks: BlockRange::new(0, 1).into() });
    bench.answer(Err(StoreError::Checksum { block: 0 }));
    assert_eq!(bench.refused(), Some(Refusal::Checksum { block: 0 }));
    bench.ask(1, header(1, 1, 3), write(0));
    assert_eq!(bench.asked.len(), 1);
}

#[test]
fn a_replay_takes_one_place_in_the_ring_and_gives_its_extra_pin_back() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 2, 2), Request::Commit { member: true });
    bench.ask(1, header(1, 2, 3), write(0));
    bench.answer(Ok(StoreReply::Done));
    bench.session(2, 1);
    bench.ask(2, header(1, 2, 3), write(0));
    assert_eq!(bench.replica.status().ring, 1);
    let blocks = BlockRange::new(0, 1).into();
    assert_eq!(bench.notes.last(), Some(&StoreNote::Release { blocks }));
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    let beyond = write(1024);
    let short = Request::Write {
        range: BlockRange::new(0, 2),
        fua: false,
        payload: Payload::checksummed(vec![0; BLOCK_SIZE as usize].into()),
    };
    let huge = Request::Read { blocks: BlockRange::new(0, 257).into() };
    for request in [beyond, short, huge, Request::Read { blocks: BlockSet::new() }] {
        bench.ask(1, header(1, 1, 2), request);
        assert_eq!(bench.refused(), Some(Refusal::Malformed));
    }
    assert!(bench.asked.is_empty());
}

#[test]
fn more_than_the_credit_is_refused() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    for seq in 0..u64::from(limits::CREDIT_OPS) {
        bench.ask(1, header(1, 1, seq + 2), write(seq));
    }
    assert!(bench.sent.is_empty());
    bench.ask(1, header(1, 1, 9999), write(1000));
    assert_eq!(bench.refused(), Some(Refusal::Malformed));
}

#[test]
fn a_replica_of_another_id_or_lineage_does_not_promise() {
    let mut bench = Bench::new(recovered());
    let other = Request::Promise {
        replica: ReplicaId(Uuid::from_u128(77)),
        lineage: ME.lineage,
        parent: None,
        at_least: Epoch(0),
        instance: InstanceId(Uuid::from_u128(1)),
        attach_seq: 1,
    };
    bench.ask(1, header(1, 1, 1), other);
    assert_eq!(bench.refused(), Some(Refusal::NoSuchReplica));
}

#[test]
fn r5_what_is_no_member_keeps_its_writes_of_earlier_sessions() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), write(0));
    bench.answer(Ok(StoreReply::Done));
    bench.ask(2, header(1, 1, 5), promise(1));
    bench.answer(Ok(StoreReply::Done));
    bench.ask(2, header(1, 1, 6), write(1));
    bench.answer(Ok(StoreReply::Done));
    let commit = Header { commit: Seq(6), ..header(1, 1, 7) };
    bench.ask(2, commit, Request::Commit { member: false });
    assert_eq!(bench.replica.status().ring, 1, "the write of the first session may be void");
    bench.ask(2, Header { seq: Seq(8), ..commit }, Request::Commit { member: true });
    bench.ask(2, Header { seq: Seq(9), ..commit }, Request::Commit { member: true });
    assert_eq!(bench.replica.status().ring, 0);
}

#[test]
fn r5_what_a_target_keeps_of_ended_sessions_does_not_grow_with_their_number() {
    let mut bench = Bench::new(recovered());
    for session in 0..100 {
        bench.ask(session, header(1, 1, 10 * session + 1), promise(1));
        bench.answer(Ok(StoreReply::Done));
        // Two regions: each write pins one.
        for (seq, block) in [(2, session % 7), (3, 300 + session % 7)] {
            bench.ask(session, header(1, 1, 10 * session + seq), write(block));
            bench.answer(Ok(StoreReply::Done));
        }
    }
    assert_eq!(bench.replica.status().ring, 3, "what is left, and two writes");
    let released = |notes: &[StoreNote]| -> usize {
        let of = |note: &StoreNote| match note {
            StoreNote::Release { blocks } => blocks.regions().len(),
            _ => 0,
        };
        notes.iter().map(of).sum()
    };
    assert_eq!(released(&bench.notes), 2 * 98, "one pin each of what is left and of the present");
    bench.ask(99, header(1, 2, 999), Request::Commit { member: true });
    bench.ask(99, Header { commit: Seq(998), ..header(1, 2, 1000) }, Request::Renew);
    assert_eq!(bench.replica.status().ring, 0);
    assert_eq!(released(&bench.notes), 2 * 100, "all pins are given back");
}

fn promise_of(lineage: u128, parent: Option<u128>, at_least: u64) -> Request {
    let named = |id| Lineage(Uuid::from_u128(id));
    Request::Promise {
        replica: ME.replica,
        lineage: named(lineage),
        parent: parent.map(named),
        at_least: Epoch(at_least),
        instance: InstanceId(Uuid::from_u128(1)),
        attach_seq: 1,
    }
}

#[test]
fn r7_one_that_promised_less_than_is_proven_refuses_and_keeps_the_proof() {
    let mut bench = Bench::new(Recovered { promised: Epoch(3), ..recovered() });
    let lineage = ME.lineage.0.as_u128();
    bench.ask(1, header(9, 1, 1), promise_of(lineage, None, 4));
    assert_eq!(bench.refused(), Some(Refusal::PutBack { promised: Epoch(3) }));
    assert!(bench.asked.is_empty(), "nothing may be written over what proves it");
    bench.ask(1, header(9, 1, 2), promise_of(lineage, None, 3));
    assert_eq!(bench.asked.len(), 1);
}

#[test]
fn t11_a_replica_changes_over_to_the_lineage_that_goes_on_from_its_own() {
    let mut bench = Bench::new(recovered());
    let mine = ME.lineage.0.as_u128();
    bench.ask(1, header(1, 1, 1), promise_of(500, Some(501), 0));
    assert_eq!(bench.refused(), Some(Refusal::NoSuchReplica), "it goes on from another one");
    bench.ask(1, header(1, 1, 2), promise_of(500, Some(mine), 0));
    let changes =
        |op: &StoreOp| matches!(op, StoreOp::Promise { lineage, .. } if lineage.0.as_u128() == 500);
    assert!(bench.asked.iter().any(|(_, op)| changes(op)), "durable with the promise");
    bench.answer(Ok(StoreReply::Done));
    bench.sent.clear();
    bench.ask(2, header(2, 2, 1), promise_of(mine, None, 0));
    assert_eq!(bench.refused(), Some(Refusal::NoSuchReplica), "there is no way back");
}

#[test]
fn a_question_that_only_renews_is_answered_in_the_session_alone() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 2);
    bench.ask(1, header(2, 1, 2), Request::Renew);
    assert_eq!(bench.sent.pop(), Some((Conn(1), Reply::Done)));
    assert!(bench.asked.is_empty(), "without asking the disk");
    bench.ask(2, header(1, 1, 3), Request::Renew);
    assert_eq!(bench.refused(), Some(Refusal::Epoch { promised: Epoch(2) }));
}
