use super::super::view::tests::{attached, node, setting, survey};
use super::*;

/// Four nodes with room for one copy each; copies on the first three.
fn seen(object: &VolumeObject, record: &Record, live: &[u128]) -> Survey {
    let mut survey = survey(object.uid, live);
    for info in survey.values_mut().filter_map(|status| status.info.as_mut()) {
        info.pools = vec![v1::Pool {
            name: "default".to_owned(),
            free_bytes: 1 << 30,
            room_bytes: names::bytes(record.blocks),
            ..Default::default()
        }];
    }
    survey
}

fn scene(survey: &Survey, lost: u128) -> Scene<'_> {
    Scene { node: node(lost), survey, grace_ms: 600_000, promised: BTreeMap::new() }
}

#[test]
fn a_copy_is_made_where_there_is_room_for_it_and_no_second_one() {
    let (object, record) = setting();
    let survey = seen(&object, &record, &[1, 2, 3, 4]);
    let record = attached(&record, 1);
    let mut scene = scene(&survey, 1);
    let found = scene.volume(&object, &record).unwrap();
    assert!(found.served_there && found.copy_there && found.serves, "{found:?}");
    assert_eq!(found.left, ["n2", "n3"]);
    assert_eq!((found.rebuilt_on.as_str(), found.rebuild_bytes), ("n4", 4096));
    // Another one like it finds the room taken.
    let second = scene.volume(&object, &record).unwrap();
    assert_eq!(second.rebuilt_on, "");
    assert!(second.next.contains("n4: pool default has"), "{}", second.next);
}

#[test]
fn it_says_which_volumes_stop() {
    let (object, record) = setting();
    let survey = seen(&object, &record, &[1, 2, 4]);
    let found = scene(&survey, 2).volume(&object, &record).unwrap();
    assert!(!found.serves && !found.served_there, "{found:?}");
    assert_eq!((found.left, found.min_in_sync), (vec!["n1".to_owned()], 2));
}

#[test]
fn a_volume_elsewhere_is_left_out() {
    let (object, record) = setting();
    let survey = seen(&object, &record, &[1, 2, 3, 4]);
    assert_eq!(scene(&survey, 4).volume(&object, &record), None);
    let served = attached(&record, 4);
    let found = scene(&survey, 4).volume(&object, &served).unwrap();
    assert!(found.served_there && !found.copy_there, "{found:?}");
    assert_eq!(found.next, Verdict::Enough.to_string());
}
