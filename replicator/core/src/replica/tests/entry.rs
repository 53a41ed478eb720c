//! Being the target of a resync: asked for once, and given back however it ends.

use super::*;

fn counted() -> Bench {
    let mut bench = Bench::new(recovered());
    bench.replica = bench.replica.with_entries();
    bench
}

/// One that may be a target in its first session.
fn entered() -> Bench {
    let mut bench = counted();
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Enter { copies: 2 });
    assert_eq!(bench.wishes.pop(), Some(Wish::Wants { copies: 2 }));
    bench.step(Event::Entered { granted: true });
    assert_eq!(bench.sent.pop(), Some((Conn(1), Reply::Done)));
    bench
}

#[test]
fn a_replica_that_is_not_counted_may_always_be_a_target() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Enter { copies: 2 });
    assert_eq!((bench.sent.pop(), bench.wishes.len()), (Some((Conn(1), Reply::Done)), 0));
}

#[test]
fn a_busy_node_says_so() {
    let mut bench = counted();
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Enter { copies: 1 });
    bench.step(Event::Entered { granted: false });
    assert_eq!(bench.refused(), Some(Refusal::Busy));
    bench.ask(1, header(1, 1, 3), Request::Enter { copies: 1 });
    assert_eq!(bench.wishes, [Wish::Wants { copies: 1 }, Wish::Wants { copies: 1 }]);
}

#[test]
fn a_new_session_a_lost_one_and_membership_give_it_back() {
    let mut bench = entered();
    bench.ask(2, header(1, 1, 3), promise(1));
    assert_eq!(bench.wishes, [Wish::Nothing]);
    let mut bench = entered();
    bench.step(Event::Disconnected(Conn(1)));
    assert_eq!(bench.wishes, [Wish::Nothing]);
    let mut bench = entered();
    bench.ask(1, header(1, 2, 3), Request::Commit { member: true });
    assert_eq!(bench.wishes, [Wish::Nothing]);
    let mut bench = entered();
    bench.ask(1, header(1, 1, 3), write(0));
    bench.answer(Err(StoreError::Io));
    assert_eq!(bench.wishes, [Wish::Nothing]);
}

#[test]
fn what_is_given_too_late_goes_back() {
    let mut bench = counted();
    bench.session(1, 1);
    bench.ask(1, header(1, 1, 2), Request::Enter { copies: 1 });
    bench.step(Event::Disconnected(Conn(1)));
    bench.step(Event::Entered { granted: true });
    assert_eq!(bench.wishes, [Wish::Wants { copies: 1 }, Wish::Nothing, Wish::Nothing]);
    assert!(bench.sent.is_empty());
}

#[test]
fn it_is_kept_while_the_primary_asks_something() {
    let mut bench = entered();
    let mut out = Vec::new();
    for (seq, ms) in (3..).zip([1, 500, 1001, 1100, 1900, 2200]) {
        let message = Message { header: header(1, 1, seq), body: Request::Renew };
        let event = Event::Request { conn: Conn(1), message };
        bench.replica.step(Tick(ms * 1000), event, &mut out);
    }
    let kept = out.iter().filter(|effect| **effect == Effect::Entry(Wish::Keeps));
    assert_eq!(kept.count(), 2);
}
