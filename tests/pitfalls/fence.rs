//! Two who believe that they are the primary.

use std::collections::VecDeque;

use bytes::Bytes;
use lockstep_core::id::{
    Conn, Epoch, Gen, Incarnation, InstanceId, Lineage, ReplicaId, Seq, Tick, Token, VolumeId,
};
use lockstep_core::message::{Header, Message, Payload, Request};
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::range::BlockRange;
use lockstep_core::replica::{Effect, Event, Identity, Replica};
use lockstep_core::store::{Recovered, StoreReply};
use uuid::Uuid;

use super::play::{Play, acknowledgements, is_acknowledgement, proves};

/// A replica whose store answers when the test says so.
struct Slow {
    replica: Replica,
    pending: VecDeque<Token>,
    seq: u64,
}

impl Slow {
    fn new(planted: Planted) -> Self {
        let recovered = Recovered {
            promised: Epoch(0),
            attach_seq: 0,
            member_gen: Gen(0),
            blocks: 1000,
            unresolved: Vec::new(),
            lossy: false,
            fresh: true,
        };
        let replica = Replica::open(identity(), recovered, planted);
        Self { replica, pending: VecDeque::new(), seq: 0 }
    }

    /// Returns how many operations the store was given.
    fn step(&mut self, event: Event) -> usize {
        let mut out = Vec::new();
        self.replica.step(Tick(0), event, &mut out);
        let before = self.pending.len();
        self.pending.extend(out.iter().filter_map(|effect| match effect {
            Effect::Store { token, .. } => Some(*token),
            Effect::Send { .. } | Effect::Note(_) | Effect::Fetch { .. } | Effect::Entry(_) => None,
        }));
        self.pending.len() - before
    }

    fn stored(&mut self) {
        let token = self.pending.pop_front().expect("an operation in the store");
        self.step(Event::Stored { token, result: Ok(StoreReply::Done) });
    }

    fn ask(&mut self, conn: Conn, body: Request) -> usize {
        self.seq += 1;
        let header = Header {
            volume: identity().volume,
            epoch: Epoch(1),
            r#gen: Gen(1),
            seq: Seq(self.seq),
            commit: Seq(0),
        };
        self.step(Event::Request { conn, message: Message { header, body } })
    }

    fn promise(&mut self, conn: Conn) -> usize {
        let (replica, lineage) = (identity().replica, identity().lineage);
        let body = Request::Promise {
            replica,
            lineage,
            parent: None,
            at_least: Epoch(0),
            instance: InstanceId(Uuid::from_u128(9)),
            attach_seq: 1,
        };
        self.ask(conn, body)
    }

    fn write(&mut self, conn: Conn) -> usize {
        let payload = Payload::checksummed(Bytes::from(vec![1; 4096]));
        self.ask(conn, Request::Write { range: BlockRange::new(0, 1), fua: false, payload })
    }
}

fn identity() -> Identity {
    Identity {
        volume: VolumeId(Uuid::from_u128(1)),
        replica: ReplicaId(Uuid::from_u128(2)),
        lineage: Lineage(Uuid::from_u128(3)),
        incarnation: Incarnation(1),
    }
}

/// Requests went to a replica that had connected again before what it had missed was replayed.
#[test]
fn pitfall_19_io_sent_between_reconnect_and_replay() {
    let mut play = Play::new(Planted::NONE);
    play.run(&["create n1 n2 min=1 repl=2", "claim n1", "advance 20"]);
    play.run(&["hold n2 n1", "write n1 7+1 a", "cut n1 n2", "release n2 n1"]);
    play.run(&["hold n2 n1"]);
    // Connected, but its promise is not answered yet: the new write waits behind the replay.
    let said = play.run(&["heal n1 n2", "write n1 8+1 b"]);
    let sent: Vec<&String> = said.iter().filter(|line| line.starts_with("n1 > n2")).collect();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(sent[0].contains("PROMISE"), "{sent:?}");
    let said = play.run(&["release n2 n1", "advance 100"]);
    let sent = said.iter().filter(|line| line.starts_with("n1 > n2") && line.contains("WRITE"));
    let sent: Vec<&String> = sent.collect();
    assert!(sent[0].contains("WRITE 7+1"), "what was missed goes first: {sent:?}");
    assert!(sent[1].contains("WRITE 8+1"), "{sent:?}");
    assert_eq!(acknowledgements(&said), 2);
    play.assert_all_hold("7=a 8=b");
}

/// A write that was stalled in the old session was carried out after the reconnect, over newer
/// data.
#[test]
fn pitfall_25_stalled_write_executes_after_reconnect() {
    // The write of the first session is in the store, and the disk is slow: the promise that
    // begins the next session waits for it. Else it could be carried out after what comes next.
    let promises_at_once = |planted| {
        let mut replica = Slow::new(planted);
        assert_eq!(replica.promise(Conn(1)), 1, "nothing to wait for");
        replica.stored();
        assert_eq!(replica.write(Conn(1)), 1);
        replica.step(Event::Disconnected(Conn(1)));
        let asked = replica.promise(Conn(2));
        if asked == 0 {
            replica.stored();
            assert!(!replica.pending.is_empty(), "drained, and the promise is not made");
        }
        asked == 1
    };
    assert!(!promises_at_once(Planted::NONE));
    assert!(promises_at_once(Planted::with(Bug::NoDrain)), "the test can not fail");
}

/// A primary that was stopped for a while went on, and acknowledged, after another had taken over.
#[test]
fn pitfall_26_stopped_primary_acks_after_its_successor_took_over() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=1", "claim n1", "write n1 3+1 a", "advance 20"]);
        // n1 sends a write and stands still; n2 takes over meanwhile.
        play.run(&["hold n1 n1", "hold n1 n2", "hold n1 n3", "write n1 3+1 b"]);
        play.run(&["stop n1", "claim n2", "advance 5000"]);
        assert!(play.at(&["n2 is Active"]).is_some(), "{}", play.said().join("\n"));
        let said = play.run(&["release n1 n1", "release n1 n2", "release n1 n3"]);
        play.assert_all_hold("3=a");
        play.run(&["continue n1", "advance 5000"]);
        let late = said.iter().find(|line| line.starts_with("n1 ") && is_acknowledgement(line));
        assert_eq!(late, None, "acknowledged by who was deposed");
        assert!(play.at(&["n1 guest", "Fenced"]).is_some(), "{}", play.said().join("\n"));
    }
    proves(scene, &[Bug::NoEpochFence]);
}

/// After a promotion the survivors disagreed about what had been in flight: two reads, two answers.
#[test]
fn pitfall_28_survivors_disagree_on_in_flight_ops() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=1", "claim n1", "write n1 5+1 a", "advance 20"]);
        play.run(&["hold n1 n1", "hold n1 n3", "write n1 5+1 b", "kill n1"]);
        play.run(&["release n1 n1", "release n1 n3", "claim n3", "advance 3000"]);
        let first = play.run(&["read n3 5+1"]);
        // The other survivor answers the same.
        play.run(&["kill n3", "claim n2", "advance 5000"]);
        let second = play.run(&["read n2 5+1"]);
        let answer = |lines: &[String]| {
            let line = lines.iter().find(|line| line.contains("guest #") && line.contains(": "));
            line.and_then(|line| line.rsplit(": ").next().map(str::to_owned))
        };
        assert!(
            answer(&first).is_some() && answer(&first) == answer(&second),
            "{first:?} {second:?}"
        );
    }
    proves(scene, &[Bug::NoRepair]);
}

/// The reads of a recovery were not fenced: the old writer committed after they had been made.
#[test]
fn pitfall_29_old_writer_commits_after_the_recovery_read() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=1", "claim n1", "write n1 3+1 a", "advance 20"]);
        play.run(&["hold n1 n1", "hold n1 n2", "hold n1 n3", "write n1 3+1 b"]);
        let said = play.run(&["stop n1", "claim n2", "advance 5000"]);
        // What the new primary first says to each copy asks for its promise.
        for copy in ["n1", "n2", "n3"] {
            let to = format!("n2 > {copy}  ");
            let first = said.iter().find(|line| line.starts_with(&to)).expect("a message");
            assert!(first.contains("PROMISE"), "{first}");
        }
        // And what the old one still had under way is applied nowhere.
        play.run(&["release n1 n1", "release n1 n2", "release n1 n3", "advance 3000"]);
        play.assert_all_hold("3=a");
    }
    proves(scene, &[Bug::NoEpochFence]);
}

/// After a partition one volume was in use on two nodes.
#[test]
fn pitfall_36_volume_in_use_on_two_nodes() {
    fn scene(play: &mut Play) {
        play.run(&["create n1 n2 n3 min=1", "claim n1", "write n1 3+1 a", "advance 20"]);
        // n1 and n3 no longer hear each other; n2 hears n3, and n1 does not notice.
        play.run(&["hold n1 n2", "hold n1 n3", "cut n3 n1", "advance 1000", "claim n3"]);
        play.run(&["advance 1700", "write n3 3+1 c"]);
        assert!(play.at(&["n3 is Active"]).is_some(), "{}", play.said().join("\n"));
        // Both would like to go on.
        let said = play.run(&["read n1 3+1", "write n1 4+1 x", "advance 10000"]);
        let old = said.iter().filter(|l| l.starts_with("n1 guest") && l.contains(": "));
        let old: Vec<&String> = old.filter(|l| !l.ends_with("Fenced")).collect();
        assert!(old.is_empty(), "{old:?}");
        play.run(&["release n1 n2", "release n1 n3", "heal n1 n3", "advance 20000"]);
        play.assert_all_hold("3=c");
    }
    proves(scene, &[Bug::NoReadLease]);
}
