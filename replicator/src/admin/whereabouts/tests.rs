use lockstep_core::cluster::locality::LABEL_VALUE;
use lockstep_core::record::Record;

use super::super::view::tests::{attached, node, serve, setting, survey};
use super::*;

/// Four nodes with pools, in zones x and y; copies on the first three.
fn seen(object: &VolumeObject, live: &[u128]) -> Survey {
    let mut survey = survey(object.uid, live);
    for (at, status) in survey.values_mut().enumerate() {
        let zone = if at < 2 { "x" } else { "y" };
        status.labels.insert(object.spread.clone(), zone.to_owned());
        if let Some(info) = &mut status.info {
            info.pools = vec![v1::Pool {
                name: "default".to_owned(),
                free_bytes: 1 << 30,
                room_bytes: 1 << 30,
                ..Default::default()
            }];
        }
    }
    survey
}

fn explained(object: &VolumeObject, record: &Record, survey: &Survey) -> v1::ExplainVolumeResponse {
    let status = view::volume(object, Some(record), survey, 600_000);
    Scene { object, status: &status, survey }.explained()
}

fn why<'a>(found: &'a v1::ExplainVolumeResponse, name: &str) -> &'a str {
    &found.nodes.iter().find(|n| n.node == name).unwrap().why
}

#[test]
fn each_node_says_why_it_has_a_copy_or_none() {
    let (mut object, record) = setting();
    object.preferred = vec![node(2)];
    let mut survey = seen(&object, &[1, 2, 4]);
    let found = explained(&object, &attached(&record, 1), &survey);
    assert_eq!(why(&found, "n1"), "has a copy in sync; serves the volume");
    assert_eq!(why(&found, "n2"), "has a copy in sync; its owner preferred the node");
    assert_eq!(why(&found, "n3"), "has a copy in sync, which is not reached");
    assert_eq!(why(&found, "n4"), "could get a copy");
    assert!(found.nodes[3].fits && !found.nodes[0].fits);
    let said = found.placement.join(". ");
    for part in ["3 copies are wanted", "now on x, y; no node elsewhere", "preferred (n2), n2 has"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }

    let served = attached(&record, 4);
    assert_eq!(
        why(&explained(&object, &served, &survey), "n4"),
        "could get a copy; serves the volume, over the network"
    );
    survey.get_mut("n4").unwrap().cordoned = true;
    let found = explained(&object, &record, &survey);
    assert_eq!(why(&found, "n4"), "could get a copy if no other node can: it is cordoned");
    survey.get_mut("n4").unwrap().evacuating = true;
    assert_eq!(why(&explained(&object, &record, &survey), "n4"), "gets none: it is being emptied");
    let n4 = survey.get_mut("n4").unwrap();
    n4.evacuating = false;
    n4.info.as_mut().unwrap().pools[0].room_bytes = 4096;
    let found = explained(&object, &record, &survey);
    assert!(why(&found, "n4").starts_with("gets none: pool default has"), "{}", why(&found, "n4"));
    survey.get_mut("n4").unwrap().info = None;
    let found = explained(&object, &record, &survey);
    assert_eq!(why(&found, "n4"), "gets none: does not answer");
}

#[test]
fn it_tells_the_label_of_pods_and_who_has_it() {
    let (mut object, record) = setting();
    let mut survey = seen(&object, &[1, 2, 3, 4]);
    let older = explained(&object, &record, &survey);
    assert_eq!(older.label, "", "it is older than placements");
    let id = PlacementId::new("p-1").unwrap();
    object.placement_id = Some(id.clone());
    for name in ["n1", "n3"] {
        let labels = &mut survey.get_mut(name).unwrap().labels;
        labels.insert(id.label(), LABEL_VALUE.to_owned());
    }
    let found = explained(&object, &record, &survey);
    assert_eq!(found.label, id.label());
    let labelled = found.nodes.iter().filter(|node| node.labelled).map(|node| node.node.as_str());
    assert_eq!(labelled.collect::<Vec<_>>(), ["n1", "n3"]);
}

#[test]
fn it_says_what_happens_next_and_when() {
    let (object, record) = setting();
    let mut survey = seen(&object, &[1, 2, 3, 4]);
    let next = |record: &Record, survey: &Survey| {
        let found = explained(&object, record, survey);
        (found.next, found.next_ms)
    };
    assert!(next(&record, &survey).0.starts_with("nothing: all copies"));
    let attached = attached(&record, 1);
    serve(&mut survey, &attached, 1, &[1, 2, 3]);
    assert!(next(&attached, &survey).0.starts_with("nothing: all copies"));
    let info = survey.get_mut("n1").and_then(|n| n.info.as_mut()).unwrap();
    let primary = info.primaries.last_mut().unwrap();
    primary.connected_rids.pop();
    primary.copies_reason = "waiting for a silent node to come back".to_owned();
    primary.copies_wait_ms = Some(5000);
    let waits = next(&attached, &survey);
    assert_eq!(waits, ("waiting for a silent node to come back".to_owned(), Some(5000)));
    survey.get_mut("n3").unwrap().info = None;
    let detached = next(&record, &survey).0;
    assert!(detached.contains("lockstep attach vol"), "{detached}");
}
