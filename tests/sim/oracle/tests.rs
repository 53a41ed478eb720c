use super::*;
use uuid::Uuid;

const BLOCK: u64 = 5;

fn instance(n: u128) -> InstanceId {
    InstanceId(Uuid::from_u128(n))
}

fn one() -> BlockRange {
    BlockRange::new(BLOCK, 1)
}

/// An oracle with one attachment open, `i`.
fn opened() -> (Oracle, InstanceId) {
    let mut oracle = Oracle::default();
    oracle.open(instance(1), Epoch(1), 0, &BTreeMap::new(), None).unwrap();
    (oracle, instance(1))
}

fn write(oracle: &mut Oracle, i: InstanceId, request: u64, value: u64) {
    oracle.write(i, RequestId(request), one(), Value(value), false, 10);
}

fn ack(oracle: &mut Oracle, i: InstanceId, request: u64) {
    oracle.acked(i, RequestId(request)).unwrap();
}

fn reads(oracle: &Oracle, i: InstanceId, value: u64) -> bool {
    let mut oracle = oracle.clone();
    oracle.read(i, RequestId(99), one());
    oracle.was_read(i, RequestId(99), &[Value(value)]).is_ok()
}

fn opens(oracle: &Oracle, value: u64, lost_until: Option<u64>) -> bool {
    let contents = BTreeMap::from([(BLOCK, Value(value))]);
    oracle.clone().open(instance(2), Epoch(2), 0, &contents, lost_until).is_ok()
}

#[test]
fn a_read_returns_the_last_acknowledged_write_or_one_under_way() {
    let (mut oracle, i) = opened();
    write(&mut oracle, i, 1, 11);
    assert!(reads(&oracle, i, 0) && reads(&oracle, i, 11));
    ack(&mut oracle, i, 1);
    assert!(!reads(&oracle, i, 0) && reads(&oracle, i, 11));
    write(&mut oracle, i, 2, 12);
    assert!(!reads(&oracle, i, 0) && reads(&oracle, i, 11) && reads(&oracle, i, 12));
}

#[test]
fn reads_never_go_backwards() {
    let (mut oracle, i) = opened();
    write(&mut oracle, i, 1, 11);
    write(&mut oracle, i, 2, 12);
    ack(&mut oracle, i, 1);
    ack(&mut oracle, i, 2);
    assert!(reads(&oracle, i, 11) && reads(&oracle, i, 12), "they were not ordered");
    oracle.read(i, RequestId(3), one());
    oracle.was_read(i, RequestId(3), &[Value(12)]).unwrap();
    assert!(!reads(&oracle, i, 11) && reads(&oracle, i, 12));
}

#[test]
fn an_opening_keeps_what_was_acknowledged_unless_power_was_lost() {
    let (mut oracle, i) = opened();
    write(&mut oracle, i, 1, 11);
    ack(&mut oracle, i, 1);
    oracle.flush(i, RequestId(2));
    ack(&mut oracle, i, 2);
    write(&mut oracle, i, 3, 13);
    assert!(opens(&oracle, 11, None) && opens(&oracle, 13, None));
    ack(&mut oracle, i, 3);
    assert!(!opens(&oracle, 11, None) && opens(&oracle, 13, None));
    assert!(opens(&oracle, 11, Some(10)) && opens(&oracle, 13, Some(10)));
    assert!(!opens(&oracle, 11, Some(9)), "submitted after the power loss");
    assert!(!opens(&oracle, 0, Some(10)), "what was flushed stays");
}

#[test]
fn a_deposed_primary_acknowledges_only_what_its_successor_opened_with() {
    let (mut oracle, i) = opened();
    write(&mut oracle, i, 1, 11);
    let contents = |value| BTreeMap::from([(BLOCK, Value(value))]);
    let mut without = oracle.clone();
    without.open(instance(2), Epoch(2), 0, &contents(0), None).unwrap();
    assert!(without.acked(i, RequestId(1)).is_err());
    let mut with = oracle.clone();
    with.open(instance(2), Epoch(2), 0, &contents(11), None).unwrap();
    assert!(with.acked(i, RequestId(1)).is_ok());
    assert!(!reads(&with, instance(2), 0), "what it opened with stays");
}

#[test]
fn a_request_is_answered_once() {
    let (mut oracle, i) = opened();
    write(&mut oracle, i, 1, 11);
    ack(&mut oracle, i, 1);
    assert!(oracle.acked(i, RequestId(1)).is_err());
    assert!(oracle.failed(i, RequestId(2)).is_err());
}

#[test]
fn a_disk_that_lacks_an_acknowledged_write_is_found_out() {
    let (mut oracle, i) = opened();
    write(&mut oracle, i, 1, 11);
    ack(&mut oracle, i, 1);
    assert!(oracle.lacks(BLOCK, Value(0), 1));
    assert!(!oracle.lacks(BLOCK, Value(11), 1));
    assert!(oracle.lacks(BLOCK, Value(u64::MAX), 1));
    assert!(!oracle.lacks_durable(BLOCK, Value(0)));
    oracle.flush(i, RequestId(2));
    assert_eq!(oracle.acked(i, RequestId(2)).unwrap().durable, [BLOCK]);
    assert!(oracle.lacks_durable(BLOCK, Value(0)));
}
