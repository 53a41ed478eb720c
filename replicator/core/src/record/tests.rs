//! The transitions and what they may not do.

use super::*;
use alloc::vec;

fn volume(min_in_sync: u8) -> Record {
    let copy = |i: u128| {
        let name = alloc::format!("n{i}");
        let node = NodeId::new(&name).expect("a name");
        (ReplicaId(Uuid::from_u128(i)), node, "default".into())
    };
    let new = NewVolume {
        uid: VolumeId(Uuid::from_u128(100)),
        lineage: Lineage(Uuid::from_u128(101)),
        blocks: 1000,
        repl: 3,
        min_in_sync,
        replicas: vec![copy(1), copy(2), copy(3)],
    };
    Record::create(new, Uuid::nil()).expect("a valid volume")
}

fn rid(i: u128) -> ReplicaId {
    ReplicaId(Uuid::from_u128(i))
}

fn txn() -> Uuid {
    Uuid::from_u128(7)
}

fn primary() -> PrimaryRef {
    PrimaryRef {
        node: NodeId::new("n1").expect("a name"),
        instance: InstanceId(Uuid::from_u128(8)),
    }
}

#[test]
fn a_claim_takes_the_next_epoch_and_generation() {
    let next = volume(2).claim(primary(), txn());
    assert_eq!((next.epoch, next.r#gen, next.clean), (Epoch(1), Gen(2), false));
    assert_eq!(next.attach.map(|a| a.seq), Some(1));
}

/// What may become of a record, as far as it matters who had the volume.
#[derive(Clone, Copy, Debug)]
enum Step {
    Claim(&'static str),
    Open,
    Close,
    TakeOut,
    Force,
}

fn after(record: &Record, step: Step) -> Record {
    let all: Vec<_> = record.in_sync().map(|r| r.rid).collect();
    match step {
        Step::Claim(name) => {
            let node = NodeId::new(name).expect("a name");
            record.claim(PrimaryRef { node, ..primary() }, txn())
        }
        Step::Open => record.open(&all, txn()),
        Step::Close => record.close(txn()),
        Step::TakeOut => Record { primary: None, ..record.clone() },
        Step::Force => {
            let (promised, r#gen) = (record.epoch, record.r#gen);
            let chosen = Chosen { replica: rid(1), lineage: record.lineage, promised, r#gen };
            let lineage = Lineage(Uuid::from_u128(200 + u128::from(record.epoch.0)));
            record.force(chosen, lineage, txn()).expect("a record")
        }
    }
}

/// Goes through all histories of some length, and asks at the end of each about every claim.
fn go_on(record: &Record, history: &mut Vec<(Claimed, Step)>, steps: u8, asked: &mut u32) {
    let claims = history.iter().enumerate().filter(|(_, (_, s))| matches!(s, Step::Claim(_)));
    for (at, (claimed, step)) in claims {
        let Step::Claim(name) = step else { continue };
        let alone = |(_, later): &(Claimed, Step)| match later {
            Step::Claim(other) => other == name,
            Step::Open | Step::Close | Step::TakeOut => true,
            Step::Force => false,
        };
        let node = NodeId::new(name).expect("a name");
        let truth = history[at..].iter().all(alone);
        assert_eq!(record.is_kept_by(&node, Some(*claimed)), truth, "{at} of {history:?}");
        *asked += 1;
    }
    if steps == 0 {
        return;
    }
    let (one, other) = (Step::Claim("n1"), Step::Claim("n2"));
    for step in [one, other, Step::Open, Step::Close, Step::TakeOut, Step::Force] {
        let next = after(record, step);
        history.push((next.claimed(), step));
        go_on(&next, history, steps - 1, asked);
        history.pop();
    }
}

#[test]
fn who_alone_had_the_volume_since_a_claim_is_known_after_every_history() {
    let mut asked = 0;
    go_on(&volume(1), &mut Vec::new(), 6, &mut asked);
    assert!(asked > 90_000, "{asked}");
}

#[test]
fn a_record_of_an_older_build_tells_only_who_had_the_volume_last() {
    let claimed = volume(1).claim(primary(), txn()).close(txn()).claim(primary(), txn());
    let text = alloc::string::String::from_utf8(claimed.to_bytes()).expect("JSON");
    let old = text.replace(",\"since\":1", "");
    assert_ne!(old, text);
    let (n1, n2) = (&primary().node, &NodeId::new("n2").expect("a name"));
    let read = Record::from_bytes(old.as_bytes()).expect("a record");
    let first = Claimed { epoch: Epoch(1), ..read.claimed() };
    assert!(read.is_kept_by(n1, Some(first)) && read.is_kept_by(n1, None));
    assert!(!read.is_kept_by(n2, None) && !volume(1).is_kept_by(n1, None));
    let elsewhere = PrimaryRef { node: n2.clone(), ..primary() };
    let back = read.claim(elsewhere, txn()).close(txn()).claim(primary(), txn());
    assert!(!back.is_kept_by(n1, Some(first)), "n2 had it");
    assert!(back.is_kept_by(n1, Some(back.claimed())));
}

#[test]
fn opening_excludes_whoever_is_no_member_from_this_generation_on() {
    let next = volume(2).claim(primary(), txn()).open(&[rid(2), rid(3)], txn());
    let state = |i| next.replica(rid(i)).map(|r| r.state);
    assert_eq!(state(1), Some(ReplicaState::Out { since: Gen(3), promised: Epoch(0) }));
    assert_eq!(state(2), Some(ReplicaState::InSync));
    assert_eq!(next.open_epoch, next.epoch);
}

#[test]
fn m22_since_is_not_raised_while_a_copy_stays_out() {
    let out = volume(1).remove(rid(3), txn()).expect("enough are left");
    let since = out.replica(rid(3)).map(|r| r.state);
    let again = out.claim(primary(), txn()).open(&[rid(1), rid(2)], txn());
    assert_eq!(again.replica(rid(3)).map(|r| r.state), since);
}

#[test]
fn too_few_members_are_never_left() {
    let two = volume(2).remove(rid(3), txn()).expect("two are left");
    assert_eq!(two.remove(rid(2), txn()), None, "min_in_sync is 2");
    let one = volume(1).remove(rid(3), txn()).and_then(|r| r.remove(rid(2), txn()));
    assert_eq!(one.expect("one is left").remove(rid(1), txn()), None, "never empty");
    assert_eq!(two.remove(rid(3), txn()), None, "it is no member any more");
}

#[test]
fn a_volume_has_at_least_its_minimum_from_the_start() {
    let mut few = volume(3);
    few.replicas.truncate(2);
    assert!(few.validate().is_err());
}

#[test]
fn a_swap_never_has_fewer_members() {
    let two = volume(2).remove(rid(3), txn()).expect("two are left");
    let next = two.swap(rid(2), rid(3), txn());
    assert_eq!(next.in_sync().count(), 2);
    assert_eq!(next.r#gen, two.r#gen.next());
}

#[test]
fn a_member_can_not_be_forgotten() {
    assert!(volume(1).forget(rid(1), txn()).is_err());
    let out = volume(1).remove(rid(1), txn()).expect("two are left");
    assert!(out.forget(rid(1), txn()).is_ok_and(|r| r.replicas.len() == 2));
}

#[test]
fn the_stored_form_reads_back() {
    let record = volume(2).claim(primary(), txn()).open(&[rid(1), rid(2)], txn());
    assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
}

#[test]
fn a_record_from_the_future_is_refused_before_its_fields_are_looked_at() {
    let bytes = br#"{"version": 9, "something": "new"}"#;
    let error = Record::from_bytes(bytes).expect_err("a newer version");
    assert_eq!(error, RecordError::FromTheFuture(9));
    assert!(alloc::format!("{error}").contains("upgrade"));
}

#[test]
fn garbage_is_no_record() {
    for bytes in [&b""[..], b"{", b"[]", b"{\"version\":1}", b"\xff\xfe"] {
        assert!(matches!(Record::from_bytes(bytes), Err(RecordError::Garbled(_))));
    }
}

#[test]
fn two_copies_on_one_node_are_refused() {
    let node = NodeId::new("n1").expect("a name");
    assert!(volume(1).add_new(rid(9), node, "default".into(), txn()).is_err());
}

#[test]
fn a_healthy_member_that_leaves_does_not_come_back() {
    let next = volume(2).release(rid(3), txn()).expect("two are left");
    assert_eq!(next.replica(rid(3)).map(|r| r.state), Some(ReplicaState::Leaving));
    assert_eq!(next.r#gen, volume(2).r#gen.next());
    assert_eq!(next.release(rid(2), txn()), None, "too few would be left");
    assert!(next.forget(rid(3), txn()).is_ok());
}

#[test]
fn other_numbers_of_copies_are_wanted_only_if_they_can_be_had() {
    let record = volume(1);
    let lowered = record.want(1, 1, txn()).expect("fewer copies are no problem");
    assert_eq!((lowered.repl, lowered.r#gen), (1, record.r#gen));
    let raised = record.want(5, 3, txn()).expect("three are in sync");
    assert_eq!((raised.repl, raised.min_in_sync), (5, 3));
    assert!(record.want(5, 4, txn()).is_err(), "only three are in sync");
    for (repl, min) in [(0, 1), (6, 1), (2, 3), (3, 0)] {
        assert!(record.want(repl, min, txn()).is_err(), "{repl} copies, {min} at least");
    }
}

#[test]
fn numbers_that_leave_no_room_to_count_on_are_refused() {
    let full = Record { epoch: Epoch(u64::MAX), ..volume(1) };
    assert!(full.validate().is_err());
    let mut attached = volume(1).claim(primary(), txn());
    assert!(attached.validate().is_ok());
    attached.attach.iter_mut().for_each(|a| a.seq = u64::MAX);
    assert!(attached.validate().is_err());
    let last = Record { r#gen: Gen(u32::MAX - 1), ..volume(1) };
    assert!(last.validate().is_ok());
    assert!(last.claim(primary(), txn()).validate().is_err());
}

#[test]
fn t11_a_forced_recovery_begins_a_new_history_above_all_that_was_promised() {
    let claimed = volume(2).claim(primary(), txn()).open(&[rid(2), rid(3)], txn());
    let older = Lineage(Uuid::from_u128(99));
    let chosen = Chosen { replica: rid(1), lineage: older, promised: Epoch(9), r#gen: Gen(2) };
    let next = claimed.force(chosen, Lineage(Uuid::from_u128(102)), txn()).expect("a record");
    let members: Vec<_> = next.replicas.iter().map(|r| (r.rid, r.state)).collect();
    assert_eq!(members, [(rid(1), ReplicaState::InSync)]);
    assert_eq!((next.min_in_sync, next.primary.clone(), next.clean), (1, None, false));
    assert!(next.epoch > Epoch(9) && next.r#gen > claimed.r#gen);
    assert_eq!(next.promised_by(rid(1)), Epoch(0), "it may have missed the last opening");
    let forced = next.forced.clone().expect("a mark");
    assert_eq!((forced.parent, forced.since), (older, Gen(3)));
    assert_eq!(forced.lost.iter().map(|(rid, _)| *rid).collect::<Vec<_>>(), [rid(2), rid(3)]);
    assert_eq!(Record::from_bytes(&next.to_bytes()), Ok(next.clone()));
    assert!(next.acknowledge_loss(txn()).forced.is_some_and(|f| f.acknowledged));
}

#[test]
fn what_was_never_filled_cannot_be_chosen() {
    let node = NodeId::new("n4").expect("a name");
    let record = volume(2).add_new(rid(4), node, "default".into(), txn()).expect("a record");
    let choose = |replica| {
        let lineage = Lineage(Uuid::nil());
        let chosen = Chosen { replica, lineage, promised: Epoch(0), r#gen: Gen(0) };
        record.force(chosen, Lineage(Uuid::nil()), txn())
    };
    assert!(choose(rid(4)).is_err() && choose(rid(5)).is_err());
}

#[test]
fn what_a_copy_says_of_itself_may_be_out_of_range() {
    let lineage = Lineage(Uuid::nil());
    let (promised, r#gen) = (Epoch(u64::MAX), Gen(u32::MAX));
    let nonsense = Chosen { replica: rid(1), lineage, promised, r#gen };
    assert!(volume(1).force(nonsense, Lineage(Uuid::nil()), txn()).is_err());
    let marked = volume(1).mark_put_back(Epoch(u64::MAX), txn());
    let chosen = Chosen { promised: Epoch(1), r#gen: Gen(1), ..nonsense };
    assert!(marked.force(chosen, Lineage(Uuid::nil()), txn()).is_err());
}

#[test]
fn a_record_of_version_1_is_read() {
    let out = volume(2).claim(primary(), txn()).open(&[rid(2), rid(3)], txn());
    let text = alloc::string::String::from_utf8(out.to_bytes()).expect("JSON");
    let old = text.replace("\"version\":2", "\"version\":1").replace(",\"promised\":0", "");
    assert_ne!(old, text);
    let read = Record::from_bytes(old.as_bytes()).expect("a record");
    assert_eq!(Record { version: 2, ..read }, out);
}
