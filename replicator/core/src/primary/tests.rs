//! What scenes can't tell: answers that come in another order than they were asked for.

use super::*;
use crate::guest::GuestOp;
use crate::id::{Gen, Incarnation, Lineage, RequestId};
use crate::limits;
use crate::message::{BlockDigest, Digest, Payload, Promised, Refusal, Wholeness};
use crate::range::{BlockRange, BlockSet};
use crate::record::{NewVolume, ReplicaState};
use crate::slots::Wish;
use alloc::boxed::Box;
use alloc::vec;
use uuid::Uuid;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(1));

/// The primary's surroundings: a record store that always answers, and replicas on the connections
/// 1, 2 and 3 that answer when the test says so.
struct Desk {
    primary: Primary,
    now: Tick,
    record: Record,
    /// What replicas have in their rings when they promise.
    rings: BTreeMap<Conn, BlockSet>,
    /// Not answered yet.
    asked: Vec<(Conn, Message<Request>)>,
    resets: usize,
}

fn node(n: u64) -> NodeId {
    NodeId::new(["", "n1", "n2", "n3"][usize::try_from(n).unwrap()]).unwrap()
}

impl Desk {
    /// A primary on n1 that has reached all copies; none has answered yet.
    fn new(copies: u64, min_in_sync: u8, rings: &[(u64, BlockSet)]) -> Self {
        let replica = |n: u64| (ReplicaId(Uuid::from_u128(n.into())), node(n), "default".into());
        let new = NewVolume {
            uid: VOLUME,
            lineage: Lineage(Uuid::from_u128(2)),
            blocks: limits::MAX_VOLUME_BLOCKS,
            repl: 3,
            min_in_sync,
            replicas: (1..=copies).map(replica).collect(),
        };
        let record = Record::create(new, Uuid::from_u128(3)).unwrap();
        let instance = InstanceId(Uuid::from_u128(4));
        let planted = Planted::NONE;
        let params = Params { volume: VOLUME, node: node(1), instance, planted };
        let mut desk = Self {
            primary: Primary::new(params),
            now: Tick(0),
            record,
            rings: rings.iter().map(|(n, ring)| (Conn(*n), ring.clone())).collect(),
            asked: Vec::new(),
            resets: 0,
        };
        desk.step(Event::Wake);
        for n in 1..=copies {
            desk.step(Event::Connected { node: node(n), conn: Conn(n) });
        }
        desk
    }

    /// Of two members the second one was removed. It is back as the third connection, and waits
    /// for a slot to be brought up.
    fn with_one_back() -> Self {
        let mut desk = Self::new(2, 1, &[]);
        desk.primary = desk.primary.with_slots();
        desk.answer_all_but(0, is_flush);
        desk.lose(2);
        desk.step(Event::Connected { node: node(2), conn: Conn(3) });
        desk.answer_all_but(0, is_flush);
        desk
    }

    fn step(&mut self, event: Event) {
        let mut out = Vec::new();
        self.primary.step(self.now, event, &mut out);
        self.primary.check();
        for effect in out {
            match effect {
                Effect::Send { message: Message { body: Request::Commit { .. }, .. }, .. } => {}
                Effect::Send { conn, message } => self.asked.push((conn, message)),
                Effect::Meta { token, op } => {
                    let result = match op {
                        MetaOp::Get => MetaResult::Read(Some((self.record.clone(), Revision(1)))),
                        MetaOp::PutIf { record, .. } => {
                            self.record = record;
                            MetaResult::Written(Revision(1))
                        }
                    };
                    self.step(Event::Meta { token, result });
                }
                Effect::Reset(_) => self.resets += 1,
                _ => {}
            }
        }
    }

    /// A copy is lost for so long that it is removed.
    fn lose(&mut self, conn: u64) {
        self.step(Event::Disconnected(Conn(conn)));
        // In steps: one long jump would be a standstill of the primary itself.
        (0..8).for_each(|_| self.wait_ms(limits::MEMBER_GRACE_MS / 4));
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        self.step(Event::Wake);
    }

    /// What a replica in good order says.
    fn usual(&self, conn: Conn, request: &Request) -> Reply {
        let digest = |block| BlockDigest {
            block,
            stamp: Gen(1),
            zero: false,
            digest: Digest([u8::try_from(conn.0).unwrap(); 16]),
            wholeness: Wholeness::Whole,
        };
        match request {
            Request::Promise { .. } => Reply::Promised(Box::new(Promised {
                incarnation: Incarnation(conn.0),
                unclean: false,
                lossy: false,
                fresh: false,
                member_gen: Gen(1),
                ring: self.rings.get(&conn).cloned().unwrap_or_default(),
                unresolved: Vec::new(),
                credit_ops: limits::CREDIT_OPS,
                credit_bytes: limits::CREDIT_BYTES,
                silent_ms: Some(0),
                pulls: true,
                blocks: Some(limits::MAX_VOLUME_BLOCKS),
            })),
            Request::Read { blocks } => {
                let bytes = usize::try_from(blocks.len()).unwrap() * 4096;
                Reply::Data(Payload::checksummed(vec![7; bytes].into()))
            }
            Request::Digest { blocks, .. } => Reply::Digests(blocks.blocks().map(digest).collect()),
            Request::Scan { .. } => Reply::Regions { regions: Vec::new(), next: None },
            _ => Reply::Done,
        }
    }

    fn reply(&mut self, at: usize, reply: Option<Reply>) {
        let (conn, Message { header, body }) = self.asked.remove(at);
        let body = reply.unwrap_or_else(|| self.usual(conn, &body));
        self.step(Event::Reply { conn, message: Message { header, body } });
    }

    /// The oldest question of this kind to this replica.
    fn find(&self, conn: u64, kind: fn(&Request) -> bool) -> Option<usize> {
        self.asked.iter().position(|(to, m)| *to == Conn(conn) && kind(&m.body))
    }

    /// Everything is answered as usual, but for this kind of question to this replica.
    fn answer_all_but(&mut self, conn: u64, kind: fn(&Request) -> bool) {
        let held = |(to, m): &(Conn, Message<Request>)| *to == Conn(conn) && kind(&m.body);
        while let Some(at) = self.asked.iter().position(|asked| !held(asked)) {
            self.reply(at, None);
        }
    }
}

fn is_flush(request: &Request) -> bool {
    matches!(request, Request::Flush)
}

fn is_mark(request: &Request) -> bool {
    matches!(request, Request::Mark { .. })
}

fn is_promise(request: &Request) -> bool {
    matches!(request, Request::Promise { .. })
}

fn is_read(request: &Request) -> bool {
    matches!(request, Request::Read { .. })
}

fn is_write(request: &Request) -> bool {
    matches!(request, Request::Write { .. })
}

fn is_scan(request: &Request) -> bool {
    matches!(request, Request::Scan { .. })
}

fn is_digest(request: &Request) -> bool {
    matches!(request, Request::Digest { .. })
}

/// P6: n2 is being flushed when a block of the source turns out bad, and gets the one that took its
/// place. Only a flush that began after that makes it durable.
#[test]
fn a_flush_covers_only_what_was_there_when_it_began() {
    let mut desk = Desk::new(3, 3, &[(3, BlockRange::new(9, 1).into())]);
    for conn in [1, 2, 3] {
        let at = desk.find(conn, is_promise).unwrap();
        desk.reply(at, None);
    }
    let at = desk.find(1, is_mark).unwrap();
    desk.reply(at, None);
    let at = desk.find(1, is_digest).unwrap();
    desk.reply(at, Some(Reply::Refused(Refusal::Checksum { block: 9 })));
    desk.answer_all_but(2, is_flush);
    assert_eq!(desk.asked.len(), 2, "n2 is flushed before and after it got the block");
    desk.reply(0, None);
    assert_eq!(desk.primary.status().phase, Phase::Recovering);
    desk.reply(0, None);
    assert_eq!(desk.primary.status().phase, Phase::Active);
    assert_eq!(desk.record.in_sync().count(), 3);
}

/// P5: all of it is logged on the source before any of it is copied, however much it is.
#[test]
fn nothing_is_copied_before_all_of_it_is_logged_on_the_source() {
    let scattered = (0..40_000).map(|i| BlockRange::new(3 * i, 1)).collect();
    let mut desk = Desk::new(2, 2, &[(2, scattered)]);
    desk.answer_all_but(1, is_mark);
    let marks = desk.asked.len();
    assert!(marks > 1, "too much for one frame");
    for _ in 1..marks {
        desk.reply(0, None);
        assert_eq!(desk.find(1, is_digest), None);
    }
    desk.reply(0, None);
    assert!(desk.find(1, is_digest).is_some());
}

/// A replica that waits for its disk answers only the last of the promises it was asked for.
#[test]
fn a_promise_that_was_asked_for_twice_is_owed_once() {
    let mut desk = Desk::new(2, 1, &[]);
    desk.wait_ms(limits::OP_FAIL_MS);
    let first = desk.find(2, is_promise).unwrap();
    desk.asked.remove(first);
    let second = desk.find(2, is_promise).unwrap();
    desk.reply(second, None);
    desk.answer_all_but(2, is_promise);
    assert_eq!((desk.primary.status().phase, desk.resets), (Phase::Active, 0));
}

/// A resync needs a source as well as a target: a volume without one leaves its node's slots to
/// others, also a slot that is given to it too late.
#[test]
fn no_slot_is_kept_while_no_member_serves() {
    let mut desk = Desk::with_one_back();
    assert_eq!(desk.primary.slot_wish(), Wish::Wants { copies: 1 });
    desk.step(Event::Disconnected(Conn(1)));
    assert_eq!(desk.primary.slot_wish(), Wish::Nothing);
    desk.step(Event::ResyncSlot);
    assert_eq!(desk.primary.slot_wish(), Wish::Nothing);
    desk.step(Event::Connected { node: node(1), conn: Conn(4) });
    desk.answer_all_but(0, is_flush);
    assert_eq!(desk.primary.slot_wish(), Wish::Wants { copies: 1 });
}

/// A resync waits for the leave of its target's node, without a slot of its own node meanwhile; a
/// leave that is not used is given back.
#[test]
fn a_busy_target_is_asked_again_and_keeps_no_slot() {
    let is_enter: fn(&Request) -> bool = |r| matches!(r, Request::Enter { copies: 1 });
    let mut desk = Desk::with_one_back();
    for _ in 0..2 {
        assert_eq!(desk.primary.slot_wish(), Wish::Wants { copies: 1 });
        desk.step(Event::ResyncSlot);
        assert_eq!(desk.primary.slot_wish(), Wish::Keeps);
        let enter = desk.find(3, is_enter).expect("it asks for leave");
        desk.reply(enter, Some(Reply::Refused(Refusal::Busy)));
        assert_eq!(desk.primary.slot_wish(), Wish::Nothing);
        desk.wait_ms(limits::RESYNC_SLOT_RETRY_MS);
    }
    desk.step(Event::ResyncSlot);
    desk.answer_all_but(3, is_scan);
    assert!(desk.find(3, is_enter).is_none() && desk.find(1, is_scan).is_none());
    desk.answer_all_but(0, is_flush);
    assert_eq!(desk.record.in_sync().count(), 2, "{:?}", desk.record);
    assert_eq!(desk.primary.slot_wish(), Wish::Nothing);
}

/// The last member goes before the leave comes: the session in which it was given ends.
#[test]
fn a_leave_that_is_not_used_is_given_back() {
    let mut desk = Desk::with_one_back();
    desk.step(Event::ResyncSlot);
    desk.step(Event::Disconnected(Conn(1)));
    assert!(desk.find(3, is_promise).is_some(), "{:?}", desk.asked);
}

/// S4: a bad block of the source is asked of a member that has failed. The resync can't go on, but
/// its window must not keep the guest's writes waiting.
#[test]
fn a_window_is_given_up_if_nobody_can_mend_its_source() {
    let mut desk = Desk::new(3, 1, &[]);
    desk.rings.insert(Conn(4), BlockRange::new(9, 1).into());
    desk.answer_all_but(0, is_flush);
    desk.lose(3);
    desk.answer_all_but(0, is_flush);
    desk.step(Event::Connected { node: node(3), conn: Conn(4) });
    desk.answer_all_but(1, is_digest);
    let at = desk.find(1, is_digest).unwrap();
    desk.reply(at, Some(Reply::Refused(Refusal::Checksum { block: 9 })));
    let at = desk.find(2, is_read).unwrap();
    desk.reply(at, Some(Reply::Refused(Refusal::Faulted)));
    let range = BlockRange::new(9, 1);
    let payload = Payload::checksummed(vec![1; 4096].into());
    let op = GuestOp::Write { range, fua: false, payload };
    desk.step(Event::Guest { request: RequestId(1), op });
    assert!(desk.find(1, is_write).is_some(), "the write waits for the window");
}

/// S10: n2 is being brought up when n3 returns, which missed less.
#[test]
fn a_copy_that_missed_less_is_brought_up_first() {
    let mut desk = Desk::new(3, 1, &[]);
    let ten_regions = (0..10).map(|i| BlockRange::new(256 * i, 1)).collect();
    desk.rings.insert(Conn(4), ten_regions);
    desk.answer_all_but(0, is_flush);
    for lost in [2, 3] {
        desk.lose(lost);
        desk.answer_all_but(0, is_flush);
    }
    let [n2, n3] = [2, 3].map(|n| ReplicaId(Uuid::from_u128(n)));
    desk.step(Event::Connected { node: node(2), conn: Conn(4) });
    desk.answer_all_but(1, is_digest);
    assert!(desk.primary.resync_progress(&n2).is_some());
    desk.step(Event::Connected { node: node(3), conn: Conn(5) });
    desk.answer_all_but(1, is_digest);
    assert!(desk.primary.resync_progress(&n2).is_none(), "n2 goes on although n3 is nearer");
    desk.answer_all_but(0, is_flush);
    desk.wait_ms(limits::RESYNC_BACKOFF_MS);
    assert!(desk.primary.resync_progress(&n3).is_some());
    desk.answer_all_but(0, is_flush);
    assert!(desk.record.replica(n3).is_some_and(|entry| entry.state == ReplicaState::InSync));
}
