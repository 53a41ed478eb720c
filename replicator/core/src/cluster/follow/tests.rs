use super::*;
use crate::cluster::replacement::surplus;
use crate::cluster::replacement::tests::{IN, NEW, OUT, name, record, rid, world};
use crate::cluster::trim::spare;
use crate::id::InstanceId;
use crate::record::{PrimaryRef, Record};
use uuid::Uuid;

const LONG_AGO: Tick = Tick(0);

/// A volume of two copies on a and b, and whatever comes after, served by d.
fn served_by_d(states: &[ReplicaState]) -> Record {
    let primary = PrimaryRef { node: name(3), instance: InstanceId(Uuid::nil()) };
    record(2, states).claim(primary, Uuid::nil())
}

#[test]
fn a_copy_follows_a_volume_that_stays_and_is_well() {
    for (what, states, nodes, expected) in [
        ("it has none there", &[IN, IN][..], "....", true),
        ("one is silent", &[IN, IN], ".s..", false),
        ("one is resynced", &[IN, OUT], "....", false),
        ("one is being built", &[IN, IN, NEW], "....", false),
        ("it has one there", &[IN, IN, IN, IN], "....", false),
        ("its node is being emptied", &[IN, IN], "...l", false),
    ] {
        let (record, world) = (served_by_d(states), world(nodes));
        let view = View { follow: true, ..world.view(&record) };
        let found = follow(&view, LONG_AGO).map(|replace| replace.node);
        assert_eq!(found, expected.then(|| name(3)), "{what}");
        assert_eq!(follow(&View { follow: false, ..view }, LONG_AGO), None, "{what}");
        assert_eq!(follow(&view, view.now), None, "{what}: it came just now");
    }
}

#[test]
fn it_gets_none_where_there_is_no_room() {
    let (record, mut world) = (served_by_d(&[IN, IN]), world("...."));
    world.candidates[3].free_bytes = 1;
    assert_eq!(follow(&View { follow: true, ..world.view(&record) }, LONG_AGO), None);
}

#[test]
fn it_gets_none_on_a_cordoned_node() {
    let (record, mut world) = (served_by_d(&[IN, IN]), world("...."));
    world.candidates[3].cordoned = true;
    assert_eq!(follow(&View { follow: true, ..world.view(&record) }, LONG_AGO), None);
    world.candidates[3].cordoned = false;
    world.candidates[2].cordoned = true;
    assert!(follow(&View { follow: true, ..world.view(&record) }, LONG_AGO).is_some());
}

#[test]
fn the_copy_that_came_stays_and_another_one_goes() {
    let world = world("....");
    let mut record = served_by_d(&[IN, IN]);
    record = record.add_new(rid(9), name(3), "default".into(), Uuid::nil()).expect("a legal copy");
    let follows = View { follow: true, ..world.view(&record) };
    assert_eq!(surplus(&follows), None, "it is not one too many while it is built");
    assert_eq!(surplus(&View { follow: false, ..follows }), Some(rid(9)));
    record.replicas.last_mut().expect("the new one").state = IN;
    let follows = View { follow: true, ..world.view(&record) };
    let goes = spare(&follows).expect("one is too many");
    assert_ne!(goes, rid(9));
}
