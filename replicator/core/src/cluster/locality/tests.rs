use super::*;
use alloc::vec;
use proptest::prelude::*;

const GRACE_MS: u64 = 10_000;

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a legal name")
}

fn nodes(names: &str) -> BTreeSet<NodeId> {
    names.chars().map(|c| node(&alloc::string::ToString::to_string(&c))).collect()
}

fn id(text: &str) -> PlacementId {
    PlacementId::new(text).expect("a legal id")
}

/// Nodes a to e that answer; those named are silent for so long.
fn sites(silent: &str, ms: u64) -> BTreeMap<NodeId, Site> {
    let silent = nodes(silent);
    let site = |node: NodeId| {
        let silent_ms = silent.contains(&node).then_some(ms);
        (node, Site { silent_ms, emptied: false })
    };
    nodes("abcde").into_iter().map(site).collect()
}

/// Copies in sync: reached, and not.
fn volume(placement: &str, reached: &str, missed: &str, served: Option<&str>) -> Resident {
    let mut in_sync: BTreeMap<NodeId, bool> =
        nodes(reached).into_iter().map(|node| (node, true)).collect();
    in_sync.extend(nodes(missed).into_iter().map(|node| (node, false)));
    Resident { placement: id(placement), in_sync, served: served.map(node) }
}

fn apply(labelled: &mut Labels, changes: &Changes) {
    for (placement, put) in &changes.put {
        labelled.entry(placement.clone()).or_default().extend(put.iter().cloned());
    }
    for (placement, take) in &changes.take {
        let there = labelled.get_mut(placement).expect("what is taken is there");
        there.retain(|node| !take.contains(node));
        if there.is_empty() {
            labelled.remove(placement);
        }
    }
}

/// Labels of placement p after all changes, from those on `before`.
fn settled(volumes: &[Resident], sites: &BTreeMap<NodeId, Site>, before: &str) -> BTreeSet<NodeId> {
    let mut labelled = Labels::new();
    if !before.is_empty() {
        labelled.insert(id("p"), nodes(before));
    }
    for _ in 0..3 {
        let view = View { volumes, nodes: sites, labelled: &labelled, grace_ms: GRACE_MS };
        let changes = changes(&view);
        if changes.is_empty() {
            return labelled.remove(&id("p")).unwrap_or_default();
        }
        apply(&mut labelled, &changes);
    }
    panic!("it does not settle");
}

#[test]
fn an_id_is_the_same_for_the_same_nodes_and_wishes_only() {
    let derive = |names: &str, wishes: &str, n| PlacementId::derive(&nodes(names), wishes, n);
    let first = derive("abc", "default 3", 0);
    assert_eq!(first, derive("cba", "default 3", 0));
    for other in [derive("abd", "default 3", 0), derive("abc", "x 3", 0), derive("abc", "x 3", 1)] {
        assert_ne!(first, other);
    }
    assert_eq!(PlacementId::new(first.as_str()).as_ref(), Some(&first));
    assert_eq!(PlacementId::of_label(&first.label()).as_ref(), Some(&first));
    // Pinned: volumes that are there must find each other after an upgrade.
    assert_eq!(derive("ab", "default 2", 0).as_str(), "p-0686d4ddc9509479");
    assert!(first.as_str().len() <= LONGEST);
    for bad in ["", "-p", "p-", "P", "a/b", "a.b", &"a".repeat(64)] {
        assert_eq!(PlacementId::new(bad), None, "{bad:?}");
    }
    assert_eq!(PlacementId::of_label("kubernetes.io/hostname"), None);
    assert_eq!(PlacementId::of_label(LABEL_DOMAIN), None);
}

#[test]
fn only_volumes_on_the_same_nodes_share_a_placement() {
    assert!(is_shared_by(&nodes("abc"), []));
    assert!(is_shared_by(&nodes("abc"), [&nodes("cab")]));
    assert!(!is_shared_by(&nodes("abc"), [&nodes("abc"), &nodes("abd")]));
}

#[test]
fn where_a_label_is() {
    let all = sites("", 0);
    for (what, volumes, sites, before, after) in [
        ("a new one", vec![volume("p", "abc", "", None)], &all, "", "abc"),
        ("a copy has moved", vec![volume("p", "abd", "", None)], &all, "abc", "abd"),
        ("it is used there", vec![volume("p", "abd", "", Some("c"))], &all, "abc", "abcd"),
        ("it is used elsewhere", vec![volume("p", "ab", "", Some("e"))], &all, "", "ab"),
        ("no volume is left", vec![volume("q", "ab", "", None)], &all, "abc", ""),
        (
            "volumes have parted",
            vec![volume("p", "abd", "", None), volume("p", "abc", "", None)],
            &all,
            "abc",
            "ab",
        ),
        (
            "they have nothing in common",
            vec![volume("p", "ab", "", None), volume("p", "cd", "", None)],
            &all,
            "ab",
            "abcd",
        ),
        (
            "one is still being made",
            vec![volume("p", "ab", "", None), volume("p", "", "", None)],
            &all,
            "",
            "ab",
        ),
        ("no copy can be reached", vec![volume("p", "", "ab", None)], &all, "ab", "ab"),
        ("only one that is made", vec![volume("p", "", "", None)], &all, "ab", "ab"),
        ("a copy is broken", vec![volume("p", "ab", "c", None)], &all, "abc", "ab"),
    ] {
        assert_eq!(settled(&volumes, sites, before), nodes(after), "{what}");
    }
}

#[test]
fn a_silent_node_keeps_its_label_for_a_while() {
    let one = [volume("p", "ab", "c", None)];
    assert_eq!(settled(&one, &sites("c", GRACE_MS - 1), "abc"), nodes("abc"));
    assert_eq!(settled(&one, &sites("c", GRACE_MS), "abc"), nodes("ab"));
    assert_eq!(settled(&one, &sites("c", 0), "ab"), nodes("ab"), "and gets none");
    let used = [volume("p", "ab", "", Some("c"))];
    assert_eq!(settled(&used, &sites("c", GRACE_MS), "abc"), nodes("abc"), "it is not fenced");
    let fenced = [volume("p", "ab", "", Some("a"))];
    assert_eq!(settled(&fenced, &sites("c", 0), "abc"), nodes("ab"), "it is");
    let cut_off = [volume("p", "a", "bc", None)];
    assert_eq!(settled(&cut_off, &sites("bc", 1 << 40), "abc"), nodes("abc"), "the network is");
}

#[test]
fn a_node_that_is_emptied_or_gone_loses_it() {
    let mut seen = sites("", 0);
    seen.insert(node("a"), Site { silent_ms: None, emptied: true });
    let one = |served| [volume("p", "ab", "", served)];
    assert_eq!(settled(&one(None), &seen, "ab"), nodes("b"));
    assert_eq!(settled(&one(Some("a")), &seen, "ab"), nodes("ab"));
    assert_eq!(settled(&[volume("p", "a", "", None)], &seen, "a"), nodes("a"), "the only one");
    seen.remove(&node("a"));
    assert_eq!(settled(&one(Some("a")), &seen, "ab"), nodes("b"));
}

#[test]
fn the_new_node_has_it_before_the_old_one_loses_it() {
    let labelled = Labels::from([(id("p"), nodes("abc")), (id("q"), nodes("ab"))]);
    let volumes = [volume("p", "abd", "", None), volume("q", "a", "", None)];
    let nodes_seen = sites("", 0);
    let view =
        View { volumes: &volumes, nodes: &nodes_seen, labelled: &labelled, grace_ms: GRACE_MS };
    let found = changes(&view);
    assert_eq!(found.put, Labels::from([(id("p"), nodes("d"))]));
    assert_eq!(found.take, Labels::from([(id("q"), nodes("b"))]));
}

fn any_nodes() -> impl Strategy<Value = BTreeSet<NodeId>> {
    proptest::collection::btree_set(
        (0..5u8).prop_map(|i| node(&format!("{}", char::from(b'a' + i)))),
        0..5,
    )
}

prop_compose! {
    fn any_volume()(
        placement in prop_oneof![Just("p"), Just("q")],
        reached in any_nodes(),
        missed in any_nodes(),
        served in proptest::option::of(any_nodes()),
    ) -> Resident {
        let mut in_sync: BTreeMap<NodeId, bool> =
            missed.into_iter().map(|node| (node, false)).collect();
        in_sync.extend(reached.into_iter().map(|node| (node, true)));
        let served = served.and_then(|nodes| nodes.into_iter().next());
        Resident { placement: id(placement), in_sync, served }
    }
}

prop_compose! {
    fn any_sites()(
        known in any_nodes(),
        silent in any_nodes(),
        emptied in any_nodes(),
        ms in prop_oneof![Just(1), Just(GRACE_MS)],
    ) -> BTreeMap<NodeId, Site> {
        let site = |node: NodeId| {
            let silent_ms = silent.contains(&node).then_some(ms);
            let emptied = emptied.contains(&node);
            (node, Site { silent_ms, emptied })
        };
        known.into_iter().map(site).collect()
    }
}

proptest! {
    /// One change at a time, in any order, as a slow cluster would make them.
    #[test]
    fn at_no_moment_is_a_pod_kept_from_its_volume(
        volumes in proptest::collection::vec(any_volume(), 1..5),
        nodes in any_sites(),
        before in proptest::collection::btree_map(
            prop_oneof![Just(id("p")), Just(id("q"))], any_nodes(), 0..3),
        picks in proptest::collection::vec(any::<proptest::sample::Index>(), 60),
    ) {
        let mut labelled = before;
        labelled.retain(|_, nodes| !nodes.is_empty());
        let live = |placement: &PlacementId| -> BTreeSet<NodeId> {
            let of = volumes.iter().filter(|v| v.placement == *placement);
            let reached = of.flat_map(|v| v.in_sync.iter().filter(|(_, reached)| **reached));
            reached.map(|(node, _)| node.clone()).filter(|n| nodes.contains_key(n)).collect()
        };
        let mut picks = picks.into_iter();
        loop {
            let view = View { volumes: &volumes, nodes: &nodes, labelled: &labelled,
                grace_ms: GRACE_MS };
            let found = changes(&view);
            let puts = found.put.iter().flat_map(|(p, n)| n.iter().map(move |n| (true, p, n)));
            let takes = found.take.iter().flat_map(|(p, n)| n.iter().map(move |n| (false, p, n)));
            let all: Vec<_> = puts.chain(takes).collect();
            if all.is_empty() {
                break;
            }
            let pick = picks.next().expect("it settles");
            let (put, placement, node) = *pick.get(&all);
            let mut next = labelled.clone();
            if put {
                prop_assert!(live(placement).contains(node), "put where a copy is");
                next.entry(placement.clone()).or_default().insert(node.clone());
            } else {
                let there = next.get_mut(placement).expect("it is there");
                prop_assert!(there.remove(node));
                let served = volumes.iter().filter(|v| v.placement == *placement);
                let mut served = served.filter_map(|v| v.served.as_ref());
                prop_assert!(!nodes.contains_key(node) || served.all(|s| s != node));
                // A pod that could run beside a copy still can.
                let beside = |labels: &Labels| {
                    labels.get(placement).is_some_and(|n| !n.is_disjoint(&live(placement)))
                };
                prop_assert!(!beside(&labelled) || beside(&next));
            }
            labelled = next;
        }
        // In the end each placement with a copy that can be reached has its label beside one.
        for volume in &volumes {
            let live = live(&volume.placement);
            let there = labelled.get(&volume.placement).cloned().unwrap_or_default();
            prop_assert!(live.is_empty() || !there.is_disjoint(&live));
        }
        for (placement, nodes) in &labelled {
            let used = volumes.iter().any(|v| v.placement == *placement);
            prop_assert!(used || nodes.is_empty());
        }
    }
}
