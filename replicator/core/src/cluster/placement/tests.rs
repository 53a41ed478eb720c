use super::*;
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a legal name")
}

/// A pool of 100 GiB.
fn candidate(name: &str, zone: &str, free_gib: u64, replicas: u32) -> Candidate {
    Candidate {
        node: node(name),
        pool: "default".into(),
        free_bytes: free_gib * GIB,
        total_bytes: 100 * GIB,
        zone: (!zone.is_empty()).then(|| zone.into()),
        live: true,
        replicas,
        cordoned: false,
    }
}

fn want(copies: usize) -> Want {
    Want { bytes: 4 * GIB, copies, pool: "default".into(), ..Want::default() }
}

fn none() -> Copysets {
    Copysets::default()
}

fn choose(want: &Want, all: &[Candidate]) -> Result<Vec<NodeId>, PlacementError> {
    super::choose(want, all, &none())
}

fn names(chosen: Result<Vec<NodeId>, PlacementError>) -> Vec<String> {
    chosen.expect("enough nodes fit").iter().map(|n| n.as_str().into()).collect()
}

#[test]
fn each_criterion_decides_when_those_before_it_are_equal() {
    let chosen = |want: &Want, all: &[Candidate]| names(choose(want, all));
    let by_name = [candidate("b", "", 50, 0), candidate("a", "", 50, 0)];
    assert_eq!(chosen(&want(2), &by_name), ["a", "b"]);
    let by_copies = [candidate("a", "", 50, 1), candidate("b", "", 51, 0)];
    assert_eq!(chosen(&want(1), &by_copies), ["b"]);
    let by_room = [candidate("a", "", 50, 0), candidate("b", "", 60, 9)];
    assert_eq!(chosen(&want(1), &by_room), ["b"]);
    let by_zone =
        [candidate("a", "x", 90, 0), candidate("b", "x", 80, 0), candidate("c", "y", 10, 9)];
    assert_eq!(chosen(&want(2), &by_zone), ["a", "c"]);
    let preferring = Want { prefer: Some(node("b")), ..want(2) };
    assert_eq!(chosen(&preferring, &by_zone), ["b", "c"]);
}

#[test]
fn a_cordoned_node_gets_a_copy_only_if_no_other_can() {
    let cordoned = |c: Candidate| Candidate { cordoned: true, ..c };
    let all = [
        cordoned(candidate("a", "x", 90, 0)),
        candidate("b", "y", 20, 9),
        candidate("c", "y", 10, 9),
    ];
    let preferring = |copies| Want { prefer: Some(node("a")), ..want(copies) };
    assert_eq!(names(choose(&preferring(1), &all)), ["b"], "though it is preferred");
    assert_eq!(names(choose(&preferring(2), &all)), ["b", "c"], "though its zone is another");
    assert_eq!(names(choose(&preferring(3), &all)), ["b", "c", "a"]);
    let two = [cordoned(candidate("a", "x", 90, 0)), cordoned(candidate("d", "y", 5, 9))];
    let beside = Want { beside: vec![node("b")], ..want(1) };
    let all = [&all[..2], &two[1..]].concat();
    assert_eq!(names(choose(&beside, &all)), ["a"], "of several as ever: by zone");
    let full = Candidate { free_bytes: 0, ..all[1].clone() };
    assert_eq!(names(choose(&want(1), &[two[0].clone(), full])), ["a"]);
}

#[test]
fn zones_repeat_only_when_there_are_too_few() {
    let all = [
        candidate("a", "x", 90, 0),
        candidate("b", "x", 80, 0),
        candidate("c", "y", 10, 0),
        candidate("d", "y", 20, 0),
    ];
    assert_eq!(names(choose(&want(3), &all)), ["a", "d", "b"]);
    let beside = Want { beside: vec![node("a")], ..want(1) };
    assert_eq!(names(choose(&beside, &all)), ["d"], "zone x is used by a");
}

#[test]
fn a_preferred_node_that_does_not_fit_is_passed_over() {
    let all = [candidate("a", "", 1, 0), candidate("b", "", 50, 0)];
    for prefer in ["a", "elsewhere"] {
        let preferring = Want { prefer: Some(node(prefer)), ..want(1) };
        assert_eq!(names(choose(&preferring, &all)), ["b"]);
    }
}

#[test]
fn too_few_nodes_are_explained_one_by_one() {
    let all = [
        candidate("node-1", "", 50, 0),
        Candidate { live: false, ..candidate("node-2", "", 50, 0) },
        candidate("node-3", "", 1, 0),
        Candidate { pool: "nvme".into(), ..candidate("node-4", "", 50, 0) },
        candidate("node-5", "", 50, 0),
        candidate("node-6", "", 50, 0),
        Candidate { free_bytes: 4 * GIB - 1, ..candidate("node-7", "", 0, 0) },
        Candidate { free_bytes: 9 << 20, ..candidate("node-8", "", 0, 0) },
    ];
    let want = Want { beside: vec![node("node-5")], exclude: vec![node("node-6")], ..want(3) };
    let error = choose(&want, &all).expect_err("one node fits");
    let text = "3 copies are wanted, but 1 node fits: \
        node-2: does not answer; \
        node-3: pool default has 1.0 GiB free, 4.0 GiB needed; \
        node-4: has no pool default; \
        node-5: has a copy already; \
        node-6: takes no copies; \
        node-7: pool default has 3.9 GiB free, 4.0 GiB needed; \
        node-8: pool default has 9 MiB free, 4.0 GiB needed";
    assert_eq!(error.to_string(), text);
    let none = choose(&super::Want { copies: 1, ..Want::default() }, &[]).expect_err("no node");
    assert_eq!(none.to_string(), "1 copy is wanted, but 0 nodes fit");
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0_u8..8, "[xyz]?", 0_u64..=100, 0_u32..4, any::<[bool; 3]>()).prop_map(
        |(name, zone, free, replicas, [live, nvme, cordoned])| Candidate {
            live,
            cordoned,
            pool: if nvme { "nvme" } else { "default" }.into(),
            ..candidate(&alloc::format!("n{name}"), &zone, free, replicas)
        },
    );
    proptest::collection::vec(one, 0..12)
}

proptest! {
    /// Whatever is known: each node once, each of them fit, and the order of the list is
    /// without meaning as long as a node says one thing of a pool. A cordoned one only if all
    /// others that fit have one.
    #[test]
    fn a_choice_holds_what_was_asked(
        mut all in candidates(),
        copies in 0_usize..6,
        marks in any::<[u8; 3]>(),
    ) {
        all.sort_by(|a, b| (&a.node, &a.pool).cmp(&(&b.node, &b.pool)));
        all.dedup_by(|a, b| (&a.node, &a.pool) == (&b.node, &b.pool));
        let mark = |at: usize| node(&alloc::format!("n{}", marks[at] % 16));
        let want = Want {
            prefer: Some(mark(0)),
            beside: vec![mark(1)],
            exclude: vec![mark(2)],
            ..want(copies)
        };
        let fits = |c: &&Candidate| {
            let marked = c.node == mark(1) || c.node == mark(2);
            c.live && c.pool == "default" && c.free_bytes >= want.bytes && !marked
        };
        let fitting: BTreeSet<NodeId> = all.iter().filter(fits).map(|c| c.node.clone()).collect();
        let open = all.iter().filter(fits).filter(|c| !c.cordoned);
        let open: BTreeSet<NodeId> = open.map(|c| c.node.clone()).collect();
        let first = choose(&want, &all);
        all.reverse();
        prop_assert_eq!(&first, &choose(&want, &all));
        match first {
            Ok(chosen) => {
                let distinct: BTreeSet<NodeId> = chosen.iter().cloned().collect();
                prop_assert_eq!(distinct.len(), copies);
                prop_assert!(distinct.is_subset(&fitting));
                // First of those that are not cordoned, or of those that are.
                let at = if open.contains(&mark(0)) { 0 } else { open.len() };
                let preferred = at < copies && fitting.contains(&mark(0));
                prop_assert!(!preferred || chosen[at] == mark(0));
                prop_assert!(distinct.is_subset(&open) || open.is_subset(&distinct));
            }
            Err(error) => {
                prop_assert!(fitting.len() < copies);
                prop_assert_eq!(error.fits, fitting.len());
                let nodes: BTreeSet<&NodeId> = all.iter().map(|c| &c.node).collect();
                prop_assert_eq!(error.misfits.len() + error.fits, nodes.len());
            }
        }
    }
}
