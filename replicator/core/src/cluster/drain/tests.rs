use alloc::string::ToString;
use alloc::vec;
use core::slice;

use proptest::prelude::*;

use super::*;

const GOOD: Copy = Copy { in_sync: true, reached: true };
const SERVES: Node =
    Node { cordoned: false, guard: Guard::Stands, silent: false, emptied: false, snapshots: 0 };
const ASKS: Node = Node { cordoned: true, ..SERVES };

fn name(i: usize) -> NodeId {
    NodeId::new(&alloc::format!("n{i}")).unwrap()
}

fn nodes(all: &[Node]) -> BTreeMap<NodeId, Node> {
    all.iter().enumerate().map(|(i, node)| (name(i), *node)).collect()
}

/// A volume with so many copies wanted, and good ones on these nodes.
fn volume(wanted: usize, on: &[usize]) -> Volume {
    let copies = on.iter().map(|i| (name(*i), GOOD)).collect();
    Volume { name: "v".into(), wanted, min_in_sync: 1, idle: false, copies }
}

fn decided(volumes: &[Volume], all: &[Node]) -> Vec<Verdict> {
    decide(volumes, &nodes(all)).into_values().collect()
}

fn told(verdict: &Verdict) -> String {
    let Verdict::Held(holds) = verdict else { panic!("{verdict:?}") };
    holds.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn a_node_goes_when_all_other_copies_are_good() {
    let mut volume = volume(3, &[0, 1, 2]);
    let all = [ASKS, SERVES, SERVES, ASKS];
    let seen = decided(&[volume.clone()], &all);
    let wanted = [Verdict::MayGo, Verdict::InService, Verdict::InService, Verdict::Free];
    assert_eq!(seen, wanted);
    volume.copies.get_mut(&name(1)).unwrap().in_sync = false;
    let seen = decided(&[volume.clone()], &all);
    let why = "volume v has 1 of 2 copies that it needs elsewhere: not in sync on n1";
    assert_eq!(told(&seen[0]), why);
    volume.copies.insert(name(1), Copy { in_sync: true, reached: false });
    assert!(told(&decided(&[volume.clone()], &all)[0]).ends_with("not reached on n1"));
    let silent = Node { silent: true, ..SERVES };
    volume.copies.insert(name(1), GOOD);
    let seen = decided(&[volume], &[ASKS, silent, SERVES]);
    assert!(told(&seen[0]).ends_with("not reached on n1"));
}

#[test]
fn what_is_behind_on_the_node_itself_is_not_missed() {
    let mut volume = volume(3, &[0, 1, 2]);
    volume.copies.insert(name(0), Copy { in_sync: false, reached: true });
    assert_eq!(decided(&[volume], &[ASKS, SERVES, SERVES])[0], Verdict::MayGo);
}

#[test]
fn two_go_one_after_the_other() {
    let both = [volume(3, &[0, 1, 2])];
    let seen = decided(&both, &[ASKS, ASKS, SERVES]);
    assert_eq!(seen[0], Verdict::MayGo);
    assert!(told(&seen[1]).contains("since it is cordoned or deleted, on n0"));
    // The first is drained, whatever its name.
    for guard in [Guard::None, Guard::Pending, Guard::Late] {
        let gone = Node { guard, ..ASKS };
        let seen = decided(&both, &[ASKS, gone, SERVES]);
        assert!(told(&seen[0]).ends_with("on n1"), "{seen:?}");
        assert_eq!(seen[1], Verdict::MayGo, "it may go on being gone");
    }
    let seen = decided(&[volume(2, &[0, 1]), volume(2, &[2, 3])], &[ASKS, SERVES, ASKS, SERVES]);
    assert_eq!([&seen[0], &seen[2]], [&Verdict::MayGo; 2], "they share no volume");
    let seen = decided(&[volume(2, &[0, 1])], &[ASKS]);
    assert!(told(&seen[0]).ends_with("on n1"), "its Node was deleted");
}

#[test]
fn nobody_counts_on_a_node_that_nothing_holds_up() {
    let both = [volume(3, &[0, 1, 2])];
    for guard in [Guard::None, Guard::Pending, Guard::Late] {
        let lacks = Node { guard, ..SERVES };
        let seen = decided(&both, &[lacks, ASKS, SERVES]);
        let why = "no guard runs, which would hold up its drain, on n0";
        assert!(told(&seen[1]).ends_with(why), "{guard:?}: {seen:?}");
        assert_eq!(seen[0], Verdict::InService);
        // A drain of that one is not held up, so it may be down at any moment.
        let seen = decided(&both, &[Node { guard, ..ASKS }, ASKS, SERVES]);
        assert!(told(&seen[1]).ends_with("cordoned or deleted, on n0"), "{guard:?}: {seen:?}");
    }
}

#[test]
fn a_volume_that_would_stop_holds_its_node() {
    let one = volume(1, &[0]);
    assert_eq!(told(&decided(&[one], &[ASKS])[0]), "volume v has no other copy");
    let all = Volume { min_in_sync: 2, ..volume(2, &[0, 1]) };
    let seen = decided(&[all], &[ASKS, SERVES]);
    assert_eq!(told(&seen[0]), "volume v has 1 of 2 copies that it needs elsewhere");
    let unused = Volume { idle: true, ..volume(3, &[0, 1]) };
    assert_eq!(decided(&[unused], &[ASKS, SERVES])[0], Verdict::MayGo);
    let last = Volume { idle: true, ..volume(3, &[0]) };
    assert!(matches!(decided(&[last], &[ASKS])[0], Verdict::Held(_)));
}

#[test]
fn what_nobody_mends_is_said_to_need_somebody() {
    let hint = "nobody uses the volume";
    let mut unused = Volume { idle: true, ..volume(2, &[0, 1]) };
    unused.copies.insert(name(1), Copy { in_sync: false, reached: true });
    let used = Volume { idle: false, ..unused.clone() };
    let said = |volume: &Volume, node| told(&decided(slice::from_ref(volume), &[node, SERVES])[0]);
    let emptied = Node { emptied: true, ..ASKS };
    assert!(said(&unused, ASKS).contains(hint) && said(&unused, emptied).contains(hint));
    assert!(!said(&used, ASKS).contains(hint) && !said(&used, emptied).contains(hint));
    unused.copies.insert(name(1), Copy { in_sync: true, reached: false });
    assert!(!said(&unused, ASKS).contains(hint), "it gets better once the node is back");
}

#[test]
fn a_node_that_is_emptied_goes_when_it_is() {
    let emptied = Node { emptied: true, snapshots: 2, ..ASKS };
    let others = [SERVES, SERVES, SERVES];
    let all = |first| [&[first], &others[..]].concat();
    let seen = decided(&[volume(3, &[0, 1, 2])], &all(emptied));
    let why = "a copy of volume v is still there; 2 copies of snapshots are still there";
    assert_eq!(told(&seen[0]), why);
    let seen = decided(&[volume(3, &[1, 2, 3])], &all(emptied));
    assert_eq!(seen[0], Verdict::Held(vec![Hold::Snapshots(2)]));
    let seen = decided(&[volume(3, &[1, 2, 3])], &all(Node { snapshots: 0, ..emptied }));
    assert_eq!(seen[0], Verdict::Free);
    let seen = decided(&[volume(3, &[1, 2, 3])], &all(Node { emptied: false, ..emptied }));
    assert_eq!(seen[0], Verdict::Free, "snapshots wait for a reboot");
}

fn any_node() -> impl Strategy<Value = Node> {
    let guard = prop_oneof![
        1 => Just(Guard::None),
        1 => Just(Guard::Pending),
        1 => Just(Guard::Late),
        6 => Just(Guard::Stands),
    ];
    let rarely = || proptest::bool::weighted(0.15);
    (any::<bool>(), guard, rarely(), rarely(), 0usize..2).prop_map(
        |(cordoned, guard, silent, emptied, snapshots)| Node {
            cordoned,
            guard,
            silent,
            emptied,
            snapshots,
        },
    )
}

fn any_volume() -> impl Strategy<Value = Volume> {
    let often = || proptest::bool::weighted(0.85);
    let copy = (often(), often()).prop_map(|(in_sync, reached)| Copy { in_sync, reached });
    let copies = proptest::collection::btree_map((0usize..6).prop_map(name), copy, 0..5);
    (1usize..5, 1usize..3, any::<bool>(), copies).prop_map(|(wanted, min_in_sync, idle, copies)| {
        Volume { name: "v".into(), wanted, min_in_sync, idle, copies }
    })
}

proptest! {
    /// When all go that may, and all are down that may be, drained by somebody whom nothing holds
    /// up, every volume of one that was let go just now has what it needs.
    #[test]
    fn no_volume_suffers(
        volumes in proptest::collection::vec(any_volume(), 0..8),
        all in proptest::collection::vec(any_node(), 1..6),
    ) {
        let nodes = nodes(&all);
        let verdicts = decide(&volumes, &nodes);
        prop_assert_eq!(verdicts.len(), nodes.len());
        let may_go = |node: &NodeId| verdicts.get(node) == Some(&Verdict::MayGo);
        let is_held = |node: &Node| node.guard == Guard::Stands;
        let stays = |node: &NodeId| {
            !may_go(node) && nodes.get(node).is_some_and(|node| !node.silent && is_held(node))
        };
        for (name, node) in &nodes {
            prop_assert!(!may_go(name) || node.cordoned, "nobody asked for {}", name);
            for volume in volumes.iter().filter(|v| may_go(name) && v.copies.contains_key(name)) {
                prop_assert!(!node.emptied, "{} is not empty", name);
                let good = |(on, copy): &(&NodeId, &Copy)| {
                    stays(on) && copy.in_sync && copy.reached
                };
                let left = volume.copies.iter().filter(good).count();
                let fewest = 1.max(volume.wanted - 1).max(volume.min_in_sync);
                let fewest = if volume.idle { 1 } else { fewest };
                prop_assert!(left >= fewest, "{} left of {:?} without {}", left, volume, name);
            }
        }
    }

    /// While all is well, somebody can always go.
    #[test]
    fn the_first_is_not_held(
        sets in proptest::collection::vec(proptest::collection::btree_set(0usize..6, 2..5), 1..8),
        asks in proptest::collection::vec(any::<bool>(), 6),
    ) {
        let volume = |set: &BTreeSet<usize>| {
            volume(set.len(), &set.iter().copied().collect::<Vec<_>>())
        };
        let volumes: Vec<Volume> = sets.iter().map(volume).collect();
        let all: Vec<Node> =
            asks.iter().map(|asks| if *asks { ASKS } else { SERVES }).collect();
        let verdicts = decide(&volumes, &nodes(&all));
        let held = |verdict: &Verdict| matches!(verdict, Verdict::Held(_));
        let asked = verdicts.iter().find(|(_, v)| held(v) || **v == Verdict::MayGo);
        if let Some((name, verdict)) = asked {
            prop_assert_eq!(verdict, &Verdict::MayGo, "{} is the first", name);
        }
    }
}
