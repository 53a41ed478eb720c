use std::collections::BTreeMap;

use lockstep_core::id::{InstanceId, Lineage, NodeId, ReplicaId, VolumeId};
use lockstep_core::record::{NewVolume, PrimaryRef};
use uuid::Uuid;

use super::super::catalog::Place;
use super::super::names::Wanted;
use super::*;

pub(in crate::admin) fn node(index: u128) -> NodeId {
    NodeId::new(&format!("n{index}")).unwrap()
}

fn rid(index: u128) -> ReplicaId {
    ReplicaId(Uuid::from_u128(index))
}

pub(in crate::admin) fn setting() -> (VolumeObject, Record) {
    let wanted = Wanted {
        name: "vol".to_owned(),
        size_bytes: 1 << 20,
        repl: 3,
        min_in_sync: 2,
        pool: "default".to_owned(),
        nodes: Vec::new(),
        allow_degraded: false,
        door: crate::admin::names::any_door(),
        write_cache: crate::admin::names::volatile(),
        prefer: Vec::new(),
        require_preferred: false,
        annotations: BTreeMap::new(),
        source: None,
        spread: crate::admin::names::zone_label(),
        follow: false,
        thick: false,
        limits: crate::admin::catalog::Limits::default(),
    };
    let places = (1..=3).map(|i| Place { rid: rid(i), node: node(i) }).collect();
    let mut object = VolumeObject::new(&wanted, places);
    object.stage = Stage::Ready;
    let new = NewVolume {
        uid: object.uid,
        lineage: Lineage(Uuid::nil()),
        blocks: 256,
        repl: 3,
        min_in_sync: 2,
        replicas: (1..=3).map(|i| (rid(i), node(i), "default".to_owned())).collect(),
    };
    (object, Record::create(new, Uuid::nil()).unwrap())
}

pub(in crate::admin) fn survey(uid: VolumeId, live: &[u128]) -> Survey {
    let status = |index: u128| {
        let replica = v1::LocalReplica {
            uid: uid.to_string(),
            rid: rid(index).to_string(),
            bytes_used: 4096,
            ..Default::default()
        };
        let info = v1::Node { replicas: vec![replica], ready: true, ..Default::default() };
        let live = live.contains(&index);
        let name = format!("n{index}");
        v1::NodeStatus { name, live, info: live.then_some(info), ..Default::default() }
    };
    (1..=4).map(|i| (format!("n{i}"), status(i))).collect()
}

pub(in crate::admin) fn attached(record: &Record, on: u128) -> Record {
    let primary = PrimaryRef { node: node(on), instance: InstanceId(Uuid::nil()) };
    record.claim(primary, Uuid::nil())
}

pub(in crate::admin) fn serve(survey: &mut Survey, record: &Record, on: u128, connected: &[u128]) {
    let info = survey.get_mut(&format!("n{on}")).and_then(|n| n.info.as_mut()).unwrap();
    info.primaries.push(v1::LocalPrimary {
        uid: record.uid.to_string(),
        phase: i32::from(v1::AttachPhase::Active),
        connected_rids: connected.iter().map(|i| rid(*i).to_string()).collect(),
        nbd_uri: "nbd+unix:///vol?socket=/x".to_owned(),
        ..Default::default()
    });
}

fn expect(status: &v1::VolumeStatus, health: v1::Health, parts: &[&str]) {
    assert_eq!(status.health, i32::from(health), "{}", status.health_reason);
    for part in parts {
        assert!(status.health_reason.contains(part), "`{part}`: {}", status.health_reason);
    }
}

#[test]
fn a_detached_volume_with_all_copies_is_healthy() {
    let (object, record) = setting();
    let seen = volume(&object, Some(&record), &survey(object.uid, &[1, 2, 3]), 1000);
    expect(&seen, v1::Health::Healthy, &["in sync"]);
    assert_eq!(seen.phase, i32::from(v1::AttachPhase::Detached));
    assert!(seen.replicas.iter().all(|r| r.connected && r.bytes_used == 4096));
}

#[test]
fn lost_copies_degrade_suspend_and_stop_it() {
    let (object, record) = setting();
    let record = attached(&record, 1);
    for (connected, health, parts) in [
        (&[1, 2, 3][..], v1::Health::Healthy, &["in sync"][..]),
        (&[1, 2], v1::Health::Degraded, &["n3 cannot be reached", "5 s is built anew"]),
        (&[1], v1::Health::BelowMin, &["1 of the 2", "n2, n3", "nothing is lost"]),
        (&[], v1::Health::Unavailable, &["no copy", "n1, n2, n3"]),
    ] {
        let mut survey = survey(object.uid, &[1, 2, 3]);
        serve(&mut survey, &record, 1, connected);
        let seen = volume(&object, Some(&record), &survey, 5000);
        expect(&seen, health, parts);
        assert_eq!(seen.primary_node.as_deref(), Some("n1"));
        assert!(seen.nbd_uri.is_some());
    }
}

#[test]
fn a_lost_primary_is_named_with_the_way_out() {
    let (object, record) = setting();
    let record = attached(&record, 1);
    let seen = volume(&object, Some(&record), &survey(object.uid, &[2, 3]), 5000);
    expect(&seen, v1::Health::Degraded, &["n1, which served it", "lockstep attach vol --node"]);
    assert_eq!(seen.phase, i32::from(v1::AttachPhase::Unspecified));
}

#[test]
fn a_resync_under_way_needs_no_action() {
    let (object, record) = setting();
    let record = attached(&record, 1).remove(rid(3), Uuid::nil()).unwrap();
    let mut survey = survey(object.uid, &[1, 2, 3]);
    serve(&mut survey, &record, 1, &[1, 2, 3]);
    let waits = volume(&object, Some(&record), &survey, 5000);
    expect(&waits, v1::Health::Degraded, &["n3 waits", "no action"]);
    let primary = survey.get_mut("n1").and_then(|n| n.info.as_mut()).unwrap();
    let progress = Some(v1::Resync { done_bytes: 1, total_bytes: 2, ..Default::default() });
    let resync = v1::ReplicaResync { rid: rid(3).to_string(), progress };
    primary.primaries.first_mut().unwrap().resyncs.push(resync);
    let runs = volume(&object, Some(&record), &survey, 5000);
    expect(&runs, v1::Health::Degraded, &["n3 is being brought up to date", "no action"]);
    assert_eq!(runs.replicas.get(2).and_then(|r| r.resync), progress);
}

#[test]
fn a_fenced_primary_and_unfinished_volumes_say_what_to_do() {
    let (mut object, record) = setting();
    let fenced = attached(&record, 1);
    let mut survey = survey(object.uid, &[1, 2, 3]);
    serve(&mut survey, &fenced, 1, &[]);
    let primary = survey.get_mut("n1").and_then(|n| n.info.as_mut()).unwrap();
    primary.primaries.first_mut().unwrap().phase = i32::from(v1::AttachPhase::Fenced);
    let seen = volume(&object, Some(&fenced), &survey, 5000);
    expect(&seen, v1::Health::Unavailable, &["took over", "lockstep detach vol"]);
    object.stage = Stage::Creating;
    expect(&volume(&object, None, &survey, 1), v1::Health::Unavailable, &["create it again"]);
    object.stage = Stage::Deleting;
    expect(&volume(&object, Some(&record), &survey, 1), v1::Health::Unavailable, &["deleted"]);
    object.stage = Stage::Ready;
    expect(&volume(&object, None, &survey, 1), v1::Health::Unavailable, &["record is missing"]);
}

#[test]
fn a_damaged_copy_is_told_with_what_is_wrong_though_it_cannot_tell_its_id() {
    let (object, record) = setting();
    let mut survey = survey(object.uid, &[1, 2, 3]);
    let info = survey.get_mut("n3").and_then(|n| n.info.as_mut()).unwrap();
    for damaged in &mut info.replicas {
        damaged.rid = String::new();
        damaged.role = i32::from(v1::ReplicaRole::Faulted);
        damaged.fault = "both superblocks are damaged".to_owned();
    }
    let seen = volume(&object, Some(&record), &survey, 5000);
    expect(&seen, v1::Health::Degraded, &["n3 cannot be used: both superblocks are damaged"]);
}

#[test]
fn a_volume_tells_that_a_copy_cannot_be_made_anew_as_its_primary_does() {
    let (object, record) = setting();
    let record = attached(&record, 1);
    let mut survey = survey(object.uid, &[1, 2]);
    serve(&mut survey, &record, 1, &[1, 2]);
    assert!(!volume(&object, Some(&record), &survey, 5000).copies_blocked);
    let info = survey.get_mut("n1").and_then(|n| n.info.as_mut()).unwrap();
    for primary in &mut info.primaries {
        primary.copies_blocked = true;
        primary.copies_reason = "no node for a new copy".to_owned();
    }
    let seen = volume(&object, Some(&record), &survey, 5000);
    assert!(seen.copies_blocked);
    expect(&seen, v1::Health::Degraded, &["no node for a new copy"]);
}
