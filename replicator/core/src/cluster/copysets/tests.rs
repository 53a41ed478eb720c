use super::*;
use crate::cluster::placement;
use alloc::format;
use proptest::prelude::*;

fn node(index: usize) -> NodeId {
    NodeId::new(&format!("n{index:03}")).expect("a legal name")
}

fn cluster(nodes: usize, zones: usize) -> Vec<Candidate> {
    let one = |index| Candidate {
        node: node(index),
        pool: "default".into(),
        free_bytes: 1 << 40,
        total_bytes: 1 << 40,
        zone: (zones > 0).then(|| format!("z{}", index % zones)),
        live: true,
        cordoned: false,
        replicas: 0,
    };
    (0..nodes).map(one).collect()
}

fn want(copies: usize, prefer: Option<NodeId>) -> Want {
    Want { bytes: 1 << 30, copies, pool: "default".into(), prefer, ..Want::default() }
}

fn at(all: &[Candidate], node: &NodeId) -> usize {
    all.iter().position(|c| c.node == *node).expect("a node of the cluster")
}

/// Places a volume and takes note of it, as the cluster would.
fn place(all: &mut [Candidate], sets: &mut Copysets, want: &Want) -> Vec<NodeId> {
    let chosen = placement::choose(want, all, sets).expect("there is room");
    for node in &chosen {
        let candidate = &mut all[at(all, node)];
        candidate.free_bytes -= want.bytes;
        candidate.replicas += 1;
    }
    sets.note(&chosen);
    chosen
}

/// Repeatable numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }

    fn set(&mut self, size: usize, of: usize) -> Vec<NodeId> {
        let mut set = BTreeSet::new();
        while set.len() < size {
            set.insert(node(self.below(of)));
        }
        set.into_iter().collect()
    }
}

/// How often, of `rounds`, all nodes of some set are among ten that die at once.
fn losses(sets: &Copysets, nodes: usize, rounds: usize) -> usize {
    let mut dice = Dice(4711);
    let mut lost = 0;
    for _ in 0..rounds {
        let dead: BTreeSet<NodeId> = dice.set(10, nodes).into_iter().collect();
        lost += usize::from(sets.iter().any(|set| set.iter().all(|n| dead.contains(n))));
    }
    lost
}

#[test]
fn far_fewer_simultaneous_losses_lose_a_volume_than_with_copies_anywhere() {
    const NODES: usize = 200;
    const VOLUMES: usize = 6000;
    let (mut all, mut sets) = (cluster(NODES, 0), Copysets::default());
    let (mut anywhere, mut dice) = (Copysets::default(), Dice(1));
    for _ in 0..VOLUMES {
        let prefer = (dice.below(2) == 0).then(|| node(dice.below(NODES)));
        place(&mut all, &mut sets, &want(3, prefer));
        anywhere.note(&dice.set(3, NODES));
    }
    let widest = (0..NODES).map(|n| sets.scatter(&node(n))).max().unwrap_or(0);
    assert!(widest <= SCATTER_WIDTH, "a node shares volumes with {widest} others");
    let (few, many) = (sets.iter().count(), anywhere.iter().count());
    assert!(few <= NODES * SCATTER_WIDTH / 6 + NODES, "{few} sets");
    assert!(many > 5 * few, "{few} sets, {many} if anywhere");
    let (with, without) = (losses(&sets, NODES, 2000), losses(&anywhere, NODES, 2000));
    assert!(without >= 3 * with, "{with} losses, {without} if anywhere");
    let most = all.iter().map(|c| c.replicas).max().unwrap_or(0);
    let mean = u32::try_from(3 * VOLUMES / NODES).expect("small");
    assert!(most <= 2 * mean, "a node has {most} copies, {mean} is the mean");
}

#[test]
fn a_node_that_joins_a_cluster_whose_width_is_used_up_gets_copies_too() {
    let (mut all, mut sets) = (cluster(60, 0), Copysets::default());
    for _ in 0..1500 {
        place(&mut all, &mut sets, &want(3, None));
    }
    all.extend(cluster(61, 0).pop());
    let chosen = place(&mut all, &mut sets, &want(3, Some(node(60))));
    assert!(chosen.contains(&node(60)), "{chosen:?}");
}

#[test]
fn a_replacement_stays_within_the_width() {
    let (mut all, mut sets) = (cluster(60, 0), Copysets::default());
    let mut last = Vec::new();
    for _ in 0..1500 {
        last = place(&mut all, &mut sets, &want(3, None));
    }
    let lost = last.pop().expect("three copies");
    let want = Want { beside: last.clone(), exclude: [lost].into(), ..want(1, None) };
    let chosen = placement::choose(&want, &all, &sets).expect("there is room");
    last.extend(chosen);
    sets.note(&last);
    let widest = (0..60).map(|n| sets.scatter(&node(n))).max().unwrap_or(0);
    assert!(widest <= SCATTER_WIDTH, "a node shares volumes with {widest} others");
}

proptest! {
    /// Whatever the cluster: never two copies on a node, as many zones as can be, never more than
    /// fits, the same again for the same question, and within the width if anybody is.
    #[test]
    fn what_is_chosen_keeps_all_promises(
        nodes in 3_usize..50,
        zones in 0_usize..5,
        copies in 1_usize..4,
        volumes in 1_usize..120,
        room in 40_u64..200,
        seed in any::<u64>(),
    ) {
        let (mut all, mut sets) = (cluster(nodes, zones), Copysets::default());
        for candidate in &mut all {
            (candidate.free_bytes, candidate.total_bytes) = (room << 30, room << 30);
        }
        let mut dice = Dice(seed);
        for _ in 0..volumes {
            let prefer = (dice.below(3) == 0).then(|| node(dice.below(nodes)));
            let want = want(copies, prefer.clone());
            let fits: Vec<Candidate> =
                all.iter().filter(|c| c.free_bytes >= want.bytes).cloned().collect();
            let Ok(chosen) = placement::choose(&want, &all, &sets) else {
                prop_assert!(fits.len() < copies);
                break;
            };
            prop_assert_eq!(&chosen, &placement::choose(&want, &all, &sets).expect("as before"));
            let distinct: BTreeSet<&NodeId> = chosen.iter().collect();
            prop_assert_eq!(distinct.len(), copies);
            let zone = |n: &NodeId| all[at(&all, n)].zone.clone();
            let used: BTreeSet<_> = chosen.iter().map(zone).collect();
            let there: BTreeSet<_> = fits.iter().map(|c| c.zone.clone()).collect();
            prop_assert_eq!(used.len(), copies.min(there.len()));
            if let Some(prefer) = prefer.filter(|p| fits.iter().any(|c| c.node == *p)) {
                prop_assert!(chosen.contains(&prefer));
            }
            place(&mut all, &mut sets, &want);
        }
    }
}
