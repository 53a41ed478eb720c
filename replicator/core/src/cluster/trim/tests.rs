use super::*;
use crate::cluster::replacement::tests::{
    IN, LEAVING, NEW, OUT, Row, name, node, record, rid, world,
};
use crate::id::InstanceId;
use crate::record::PrimaryRef;
use proptest::prelude::*;
use uuid::Uuid;

#[test]
fn a_copy_in_good_order_goes_only_when_enough_others_stay() {
    let table: &[Row<Option<usize>>] = &[
        ("none is too many", 3, &[IN, IN, IN], "...", None),
        ("one is too many", 3, &[IN, IN, IN, IN], "....", Some(3)),
        ("too many, but one is silent", 3, &[IN, IN, IN, IN], "...s", None),
        ("others are not in sync", 3, &[IN, IN, OUT, NEW], "....", None),
        ("one on its way out is no help", 2, &[IN, LEAVING, IN], "...", None),
        ("a node is emptied, nothing is there yet", 3, &[IN, IN, IN], "..l.", None),
        ("its copy is being built", 3, &[IN, IN, IN, NEW], "..l.", None),
        ("its copy is built", 3, &[IN, IN, IN, IN], "..l.", Some(2)),
        ("another one is silent", 3, &[IN, IN, IN, IN], ".sl.", None),
        ("the node was removed", 2, &[IN, IN, IN], ".-.", Some(1)),
        ("two nodes are emptied, one at a time", 2, &[IN, IN, IN, IN], "l.l.", Some(0)),
    ];
    for (what, repl, states, nodes, expected) in table {
        let (record, world) = (record(*repl, states), world(nodes));
        let found = spare(&world.view(&record));
        assert_eq!(found, expected.map(rid), "{what}");
        if let Some(rid) = found {
            let next = record.release(rid, Uuid::nil()).expect("enough stay");
            assert!(next.in_sync().count() >= usize::from(*repl), "{what}");
        }
    }
}

#[test]
fn the_copy_that_is_missed_least_goes() {
    let mut record = record(2, &[IN, IN, IN]);
    let mut world = world("...");
    let mut zones = |zones: [&str; 3]| {
        for (candidate, zone) in world.candidates.iter_mut().zip(zones) {
            candidate.zone = Some(zone.into());
        }
        spare(&world.view(&record))
    };
    assert_eq!(zones(["x", "x", "y"]), Some(rid(1)), "a zone keeps its only copy");
    assert_eq!(zones(["x", "y", "y"]), Some(rid(2)));
    let primary = PrimaryRef { node: name(2), instance: InstanceId(Uuid::nil()) };
    record = record.claim(primary, Uuid::nil());
    assert_eq!(spare(&world.view(&record)), Some(rid(1)), "the one beside the primary stays");
    for candidate in &mut world.candidates {
        candidate.zone = None;
    }
    world.candidates[0].free_bytes /= 2;
    assert_eq!(spare(&world.view(&record)), Some(rid(0)), "the fullest pool gets room");
    assert_eq!(node("a"), name(0));
}

#[test]
fn fewer_copies_are_in_force_at_once_and_a_higher_minimum_when_it_can_be_had() {
    let mut now = record(2, &[IN, IN]);
    now.min_in_sync = 2;
    let settled = |repl, min_in_sync, at_hand| {
        settle(&now, Wanted { repl, min_in_sync }, at_hand).map(|w| (w.repl, w.min_in_sync))
    };
    assert_eq!(settled(2, 2, 0), None);
    assert_eq!(settled(2, 1, 0), Some((2, 1)));
    assert_eq!(settled(1, 1, 0), Some((1, 1)));
    assert_eq!(settled(4, 2, 0), Some((4, 2)));
    assert_eq!(settled(3, 3, 2), Some((3, 2)), "writes would wait for the third copy");
    assert_eq!(settled(3, 3, 3), Some((3, 3)));
    now.repl = 3;
    assert_eq!(settle(&now, Wanted { repl: 3, min_in_sync: 3 }, 2), None);
}

proptest! {
    /// What is to be in force is a legal record, and comes to rest.
    #[test]
    fn what_is_settled_is_legal_and_final(
        copies in 1_usize..6,
        repl in 1_u8..6,
        min in 1_u8..6,
        wanted in (1_u8..6, 1_u8..6),
        at_hand in 0_usize..6,
    ) {
        let states = [IN; 5];
        let mut record = record(repl, &states[..copies]);
        record.min_in_sync = min.min(repl).min(u8::try_from(copies).unwrap_or(1));
        let wanted = Wanted { repl: wanted.0, min_in_sync: wanted.1.min(wanted.0) };
        let at_hand = at_hand.min(copies);
        if let Some(next) = settle(&record, wanted, at_hand) {
            let after = record.want(next.repl, next.min_in_sync, Uuid::nil());
            let after = after.expect("a legal record");
            prop_assert_eq!(settle(&after, wanted, at_hand), None);
        }
        if at_hand == copies && usize::from(wanted.min_in_sync) <= copies {
            let after = settle(&record, wanted, at_hand).unwrap_or(Wanted::of(&record));
            prop_assert_eq!(after, wanted);
        }
    }
}
