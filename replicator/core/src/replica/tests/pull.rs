//! Rule S8, at both ends of a pull.

use super::*;
use crate::message::{ResyncBlock, ResyncContent};

fn entries() -> Vec<ResyncBlock> {
    let entry = |block, content| ResyncBlock { block, stamp: Gen(2), content };
    vec![entry(3, ResyncContent::Data), entry(4, ResyncContent::Same)]
}

fn source() -> ReplicaId {
    ReplicaId(Uuid::from_u128(9))
}

fn pull() -> Request {
    let node = NodeId::new("n2").expect("a node's name");
    Request::Pull { node, source: source(), blocks: entries() }
}

fn content() -> Payload {
    Payload::checksummed(vec![5; BLOCK_SIZE as usize].into())
}

/// A target in a session of epoch 7 that was told to pull, and what it asks.
fn pulling() -> (Bench, Token, Header) {
    let mut bench = Bench::new(recovered());
    bench.session(1, 7);
    bench.ask(1, header(7, 1, 2), pull());
    let (token, _, message) = bench.fetches.pop().expect("a question");
    let blocks = BlockRange::new(3, 1).into();
    assert_eq!(message.body, Request::Fetch { source: source(), blocks });
    assert!(bench.asked.is_empty(), "something is written before it is there");
    (bench, token, message.header)
}

fn answer(bench: &mut Bench, token: Token, header: Header, body: Reply) {
    bench.step(Event::Fetched { token, answer: Some(Message { header, body }) });
}

#[test]
fn what_was_pulled_is_a_resync_write_with_the_stamps_that_were_told() {
    let (mut bench, token, header) = pulling();
    answer(&mut bench, token, header, Reply::Data(content()));
    assert_eq!(bench.replica.status().ring, 1);
    let expected = StoreOp::Resync { blocks: entries(), payload: content() };
    assert_eq!(bench.asked[0].1, expected);
    bench.answer(Ok(StoreReply::Done));
    assert_eq!(bench.sent.pop(), Some((Conn(1), Reply::Done)));
}

#[test]
fn what_cannot_be_pulled_changes_nothing() {
    let wrong = Header { epoch: Epoch(6), ..header(7, 1, 2) };
    let two = Payload::checksummed(vec![5; 2 * BLOCK_SIZE as usize].into());
    let right = header(7, 1, 2);
    let answers = [
        None,
        Some((right, Reply::Refused(Refusal::NoSession))),
        Some((right, Reply::Data(two))),
        Some((wrong, Reply::Data(content()))),
    ];
    for case in answers {
        let (mut bench, token, _) = pulling();
        let answer = case.map(|(header, body)| Message { header, body });
        bench.step(Event::Fetched { token, answer });
        assert_eq!(bench.refused(), Some(Refusal::NotPulled));
        assert!(bench.asked.is_empty() && bench.replica.status().ring == 0);
    }
}

#[test]
fn an_answer_after_the_session_is_for_nobody() {
    let ends: [fn(&mut Bench); 3] = [
        |bench| bench.step(Event::Disconnected(Conn(1))),
        |bench| bench.session(1, 7),
        |bench| bench.session(2, 8),
    ];
    for end in ends {
        let (mut bench, token, header) = pulling();
        end(&mut bench);
        answer(&mut bench, token, header, Reply::Data(content()));
        assert!(bench.asked.is_empty(), "written after its session");
        assert!(bench.sent.is_empty() && bench.replica.status().ring == 0);
    }
}

#[test]
fn a_promise_waits_for_what_was_pulled_and_is_being_written() {
    let (mut bench, token, old) = pulling();
    answer(&mut bench, token, old, Reply::Data(content()));
    bench.ask(2, header(8, 1, 1), promise(8));
    assert_eq!(bench.asked.len(), 1, "the promise does not wait");
    bench.answer(Ok(StoreReply::Done));
    assert!(matches!(bench.asked[0].1, StoreOp::Promise { .. }));
    bench.answer(Ok(StoreReply::Done));
    let Some((_, Reply::Promised(promised))) = bench.sent.pop() else { panic!("no promise") };
    assert_eq!(promised.ring, BlockRange::new(3, 2).into());
}

fn fetch(epoch: u64) -> (Header, Request) {
    let blocks = BlockRange::new(3, 1).into();
    (header(epoch, 1, 1 << 40), Request::Fetch { source: ME.replica, blocks })
}

#[test]
fn only_in_a_session_of_its_epoch_does_a_source_give() {
    let mut bench = Bench::new(Recovered { promised: Epoch(7), ..recovered() });
    let (asked, body) = fetch(7);
    bench.ask(5, asked, body.clone());
    assert_eq!(bench.refused(), Some(Refusal::NoSession), "it may have lost what was not flushed");
    bench.session(1, 8);
    bench.ask(5, asked, body);
    assert_eq!(bench.refused(), Some(Refusal::Epoch { promised: Epoch(8) }));
    let (asked, body) = fetch(8);
    bench.ask(5, asked, body);
    bench.answer(Ok(StoreReply::Data(content())));
    assert_eq!(bench.sent.pop(), Some((Conn(5), Reply::Data(content()))));
    // A read that was under way when the session ended may be of a later time.
    let (asked, body) = fetch(8);
    bench.ask(5, asked, body);
    bench.step(Event::Disconnected(Conn(1)));
    bench.answer(Ok(StoreReply::Data(content())));
    assert_eq!(bench.refused(), Some(Refusal::NoSession));
}

#[test]
fn a_source_gives_to_so_many_at_a_time() {
    let mut bench = Bench::new(recovered());
    bench.session(1, 8);
    for _ in 0..limits::FETCHES {
        let (asked, body) = fetch(8);
        bench.ask(5, asked, body);
    }
    assert_eq!(bench.asked.len(), limits::FETCHES);
    let (asked, body) = fetch(8);
    bench.ask(5, asked, body);
    assert_eq!(bench.refused(), Some(Refusal::NotPulled));
}
