use super::*;
use crate::id::{Epoch, Gen, InstanceId, Lineage, VolumeId};
use crate::record::{NewVolume, PrimaryRef};
use alloc::string::ToString;
use alloc::vec;
use uuid::Uuid;

pub(in crate::cluster) const GRACE_MS: u64 = 600_000;
/// Long after the start, so that nodes can have fallen silent before.
pub(in crate::cluster) const NOW: Tick = Tick(3_600_000_000);

pub(in crate::cluster) const IN: ReplicaState = ReplicaState::InSync;
pub(in crate::cluster) const NEW: ReplicaState = ReplicaState::New;
pub(in crate::cluster) const OUT: ReplicaState =
    ReplicaState::Out { since: Gen(5), promised: Epoch(0) };
pub(in crate::cluster) const LEAVING: ReplicaState = ReplicaState::Leaving;

/// What it is about, copies wanted, copies, nodes, and what is decided.
pub(in crate::cluster) type Row<T> = (&'static str, u8, &'static [ReplicaState], &'static str, T);

pub(in crate::cluster) fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a legal name")
}

pub(in crate::cluster) fn rid(at: usize) -> ReplicaId {
    ReplicaId(Uuid::from_u128(at as u128))
}

/// A volume of 1 GiB whose copies, on nodes a, b, c and so on, are in these states.
pub(in crate::cluster) fn record(repl: u8, states: &[ReplicaState]) -> Record {
    let copies = (0..states.len()).map(|at| (rid(at), name(at), "default".into())).collect();
    let new = NewVolume {
        uid: VolumeId(Uuid::from_u128(1)),
        lineage: Lineage(Uuid::from_u128(2)),
        blocks: 1 << 18,
        repl,
        min_in_sync: 1,
        replicas: copies,
    };
    let mut record = Record::create(new, Uuid::nil()).expect("a legal record");
    for (entry, state) in record.replicas.iter_mut().zip(states) {
        entry.state = *state;
    }
    record
}

pub(in crate::cluster) fn name(at: usize) -> NodeId {
    node(["a", "b", "c", "d", "e", "f", "g", "h"][at])
}

/// A cluster of nodes a, b, c and so on: `.` answers, `s` fell silent just now, `S` longer ago
/// than the grace, `G` answers but lost its copy as long ago, `l` is being drained, `-` was
/// deleted.
pub(in crate::cluster) struct World {
    pub(in crate::cluster) nodes: Vec<NodeState>,
    pub(in crate::cluster) candidates: Vec<Candidate>,
    sets: Copysets,
}

pub(in crate::cluster) fn world(nodes: &str) -> World {
    let (mut states, mut candidates) = (Vec::new(), Vec::new());
    for (at, state) in nodes.bytes().enumerate().filter(|(_, state)| *state != b'-') {
        let silent_since = match state {
            b's' => Some(Tick(NOW.0 - 1_000_000)),
            b'S' | b'G' => Some(Tick(NOW.0 - GRACE_MS * 1000)),
            _ => None,
        };
        let (lacks_copy, leaving) = (state == b'G', state == b'l');
        let answers = silent_since.is_none() || lacks_copy;
        let node = name(at);
        states.push(NodeState { node, silent_since, answers, lacks_copy, leaving });
        candidates.push(Candidate {
            node: name(at),
            pool: "default".into(),
            free_bytes: 10 << 30,
            total_bytes: 100 << 30,
            zone: None,
            live: answers,
            replicas: 0,
            cordoned: false,
        });
    }
    World { nodes: states, candidates, sets: Copysets::default() }
}

impl World {
    pub(in crate::cluster) fn view<'a>(&'a self, record: &'a Record) -> View<'a> {
        let (nodes, candidates, sets) = (&self.nodes, &self.candidates, &self.sets);
        View { record, nodes, candidates, sets, now: NOW, grace_ms: GRACE_MS, follow: false }
    }
}

fn on(at: usize, lost: &[usize]) -> Verdict {
    let lost = lost.iter().map(|at| rid(*at)).collect();
    Verdict::Replace(Replace { node: name(at), pool: "default".into(), lost })
}

#[test]
fn a_copy_is_replaced_when_it_is_lost_and_not_before() {
    let wait = Verdict::Wait { until: Tick(NOW.0 + GRACE_MS * 1000 - 1_000_000) };
    let braked = |silent, nodes| Verdict::Braked { silent, nodes };
    let table: &[Row<Verdict>] = &[
        ("all is well", 3, &[IN, IN, IN], "....", Verdict::Enough),
        ("one is resynced", 3, &[IN, IN, OUT], "....", Verdict::Enough),
        ("one is filled", 3, &[IN, IN, NEW], "....", Verdict::Enough),
        ("one is silent for a while", 3, &[IN, IN, OUT], "..s.", wait.clone()),
        ("in sync and silent for a while", 3, &[IN, IN, IN], "..s.", wait),
        ("silent for the whole grace", 3, &[IN, IN, OUT], "..S.", on(3, &[2])),
        ("a detached volume, too", 3, &[IN, IN, IN], "..S.", on(3, &[2])),
        ("silent, but there is one more", 2, &[IN, IN, OUT], "..S.", Verdict::Enough),
        ("a replacement is coming", 3, &[IN, IN, OUT, NEW], "..S.", Verdict::Enough),
        ("the node was deleted", 3, &[IN, IN, OUT], "..-.", on(3, &[2])),
        ("the node is being drained", 3, &[IN, IN, IN], "..l.", on(3, &[2])),
        ("the copy is on its way out", 3, &[IN, IN, LEAVING], "....", on(3, &[2])),
        ("more copies are wanted now", 3, &[IN, IN], "...", on(2, &[])),
        ("two are lost, one at a time", 3, &[IN, OUT, OUT], ".SS....", on(3, &[1, 2])),
        ("the replacement was lost as well", 3, &[IN, IN, OUT, NEW], "..SS..", on(4, &[2, 3])),
        ("more than a third is silent", 3, &[IN, IN, OUT], "..Ss.", braked(2, 5)),
        ("two copies are gone from nodes that answer", 3, &[IN, OUT, OUT], ".GG.", on(3, &[1, 2])),
        ("one of two is silent", 2, &[IN, OUT], ".S", braked(1, 2)),
        ("nothing to copy from", 2, &[IN, OUT], "-....", Verdict::NoSource),
        ("the source is drained, but answers", 1, &[IN], "l..", on(1, &[0])),
    ];
    for (what, repl, states, nodes, verdict) in table {
        let (record, world) = (record(*repl, states), world(nodes));
        let view = world.view(&record);
        assert_eq!(assess(&view), *verdict, "{what}");
        let replace = decide(&view);
        assert_eq!(replace.is_some(), matches!(verdict, Verdict::Replace(_)), "{what}");
        if let Some(Replace { node, pool, .. }) = replace {
            let next = record.add_new(rid(99), node, pool, Uuid::nil()).expect("one per node");
            assert!(next.replicas.len() > record.replicas.len(), "{what}");
        }
    }
}

#[test]
fn the_end_of_the_wait_is_the_moment_of_the_replacement() {
    let (record, world) = (record(3, &[IN, IN, OUT]), world("..s."));
    let Verdict::Wait { until } = assess(&world.view(&record)) else {
        panic!("a second of silence is no loss");
    };
    let at = |now| assess(&View { now, ..world.view(&record) });
    assert_eq!(at(Tick(until.0 - 1)), Verdict::Wait { until });
    assert_eq!(at(until), on(3, &[2]));
}

#[test]
fn a_full_cluster_says_why_there_is_no_node() {
    let record = record(3, &[IN, IN, OUT]);
    let mut world = world("..S.");
    world.candidates[3].free_bytes = 1 << 29;
    let verdict = assess(&world.view(&record));
    assert!(verdict.is_blocked() && !on(3, &[2]).is_blocked() && !Verdict::Enough.is_blocked());
    let text = verdict.to_string();
    let why = "d: pool default has 512 MiB free, 1.0 GiB needed";
    assert!(text.starts_with("no node for a new copy: 1 copy is wanted"), "{text}");
    assert!(text.ends_with(why), "{text}");
}

#[test]
fn a_record_without_room_gets_no_further_copy() {
    let mut states = vec![OUT; 8];
    states[0] = IN;
    let mut record = record(3, &states);
    for at in 8..MAX_REPLICA_ENTRIES {
        let elsewhere = node(&alloc::format!("gone-{at}"));
        record = record
            .add_new(rid(at), elsewhere, "default".into(), Uuid::nil())
            .expect("still a legal record");
    }
    assert_eq!(assess(&world(".-------").view(&record)), Verdict::RecordFull);
}

#[test]
fn the_node_of_the_pod_gets_the_new_copy_if_it_has_none() {
    let primary = PrimaryRef { node: node("f"), instance: InstanceId(Uuid::nil()) };
    let mut record = record(3, &[IN, IN, OUT]).claim(primary, Uuid::nil());
    let world = world("..S....");
    assert_eq!(assess(&world.view(&record)), on(5, &[2]));
    record.primary = None;
    assert_eq!(assess(&world.view(&record)), on(5, &[2]), "where it is attached");
    record.attach = None;
    assert_eq!(assess(&world.view(&record)), on(3, &[2]));
}

#[test]
fn the_zones_of_the_copies_that_stay_are_avoided() {
    let record = record(3, &[IN, IN, OUT]);
    let mut world = world("..S...");
    let zones = ["x", "y", "z", "x", "y", "z"];
    for (candidate, zone) in world.candidates.iter_mut().zip(zones) {
        candidate.zone = Some(zone.into());
    }
    assert_eq!(assess(&world.view(&record)), on(5, &[2]), "zone z is free again");
}

#[test]
fn a_copy_that_its_node_lacks_is_forgotten_if_another_has_all_data() {
    let table: &[Row<Option<usize>>] = &[
        ("all is well", 3, &[IN, IN, OUT], "...", None),
        ("its node is silent", 3, &[IN, IN, OUT], "..S", None),
        ("gone", 3, &[IN, IN, OUT], "..G", Some(2)),
        ("gone, but by the record it has all data", 3, &[IN, IN, IN], "..G", None),
        ("gone before it was filled", 3, &[IN, IN, NEW], "..G", Some(2)),
        ("gone, and nobody has all data", 3, &[IN, IN, OUT], "SSG", None),
        ("all members but one are gone too", 3, &[IN, IN, OUT], ".GG", Some(2)),
        ("one after the other", 3, &[IN, IN, OUT, OUT], "..GG", Some(2)),
    ];
    for (what, repl, states, nodes, expected) in table {
        let (mut record, world) = (record(*repl, states), world(nodes));
        // Too few members: a volume that can't be served is what needs a new copy most.
        record.min_in_sync = 2.min(record.in_sync().count().try_into().unwrap_or(1));
        let found = vanished(&world.view(&record));
        assert_eq!(found, expected.map(rid), "{what}");
        if let Some(rid) = found {
            assert!(record.forget(rid, Uuid::nil()).is_ok(), "{what}");
        }
    }
}

#[test]
fn a_copy_too_many_is_named() {
    let table: &[Row<Option<usize>>] = &[
        ("none is", 3, &[IN, IN, IN], "...", None),
        ("the race is not over", 3, &[IN, IN, OUT, NEW], "....", None),
        ("the returning copy lost", 3, &[IN, IN, OUT, IN], "....", Some(2)),
        ("the replacement lost", 3, &[IN, IN, IN, NEW], "....", Some(3)),
        ("the silent one goes first", 2, &[IN, IN, NEW, OUT], "...s", Some(3)),
        ("what is on its way out goes first", 2, &[IN, IN, OUT, LEAVING], "..S.", Some(3)),
        ("its node may be needed for a new one", 3, &[IN, IN, LEAVING], "...", Some(2)),
        ("nobody else answers", 3, &[IN, IN, LEAVING], "SS.", None),
        ("an in-sync copy is silent", 3, &[IN, IN, IN, NEW], "..s.", None),
        ("an in-sync copy is drained", 3, &[IN, IN, IN, NEW], "..l.", None),
    ];
    for (what, repl, states, nodes, expected) in table {
        let (record, world) = (record(*repl, states), world(nodes));
        let found = surplus(&world.view(&record));
        assert_eq!(found, expected.map(rid), "{what}");
        if let Some(rid) = found {
            assert!(record.forget(rid, Uuid::nil()).is_ok(), "{what}");
        }
    }
}
