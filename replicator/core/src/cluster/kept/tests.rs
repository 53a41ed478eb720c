use super::*;
use crate::cluster::placement::Misfit;
use crate::cluster::replacement::tests::{GRACE_MS, NOW, World, name, world};
use alloc::string::ToString;

/// What it is about; copies, those being made and the volume's, as letters; nodes; the decision
/// for three copies.
type Row = (&'static str, &'static str, &'static str, Option<&'static str>, &'static str, Verdict);

fn nodes(letters: &str) -> Vec<NodeId> {
    letters.bytes().map(|letter| name(usize::from(letter - b'a'))).collect()
}

fn decide(world: &World, (copies, making): (&str, &str), volume: Option<Source<'_>>) -> Verdict {
    assess(&View {
        wanted: 3,
        copies: &nodes(copies),
        making: &nodes(making),
        gaps: false,
        gapped: &[],
        failing: &[],
        full: &[],
        volume,
        nodes: &world.nodes,
        candidates: &world.candidates,
        sets: &Copysets::default(),
        bytes: 1 << 30,
        pool: "default",
        now: NOW,
        grace_ms: GRACE_MS,
    })
}

fn make(at: usize) -> Verdict {
    Verdict::Make(name(at))
}

fn check(served: bool, table: &[Row]) {
    for (what, copies, making, volume, nodes_are, expected) in table {
        let in_sync = volume.map(nodes);
        let volume = in_sync.as_ref().map(|in_sync| Source { in_sync, served });
        assert_eq!(decide(&world(nodes_are), (copies, making), volume), *expected, "{what}");
    }
}

#[test]
fn a_missing_copy_is_made_where_the_volume_has_one() {
    let wait = Verdict::Wait { until: Tick(NOW.0 + GRACE_MS * 1000 - 1_000_000) };
    let forget = |at| Verdict::Forget(name(at));
    let give_up = |at| Verdict::GiveUp(name(at));
    let braked = Verdict::Braked { silent: 2, nodes: 5 };
    check(
        true,
        &[
            ("all is well", "abc", "", Some("abc"), "....", Verdict::Enough),
            ("one was out when it was taken", "ab", "", Some("abc"), "....", make(2)),
            ("one is silent for a while", "abc", "", Some("abd"), "..s.", wait),
            ("its replacement is not there yet", "abc", "", Some("ab"), "..S.", Verdict::Follows),
            ("now it is", "abc", "", Some("abd"), "..S.", make(3)),
            ("and makes one", "abc", "d", Some("abd"), "..S.", Verdict::Coming),
            ("which is lost as well", "abc", "d", Some("abe"), "..SS...", give_up(3)),
            ("the lost one is not needed any more", "abcd", "", Some("abd"), "..S.", forget(2)),
            ("nor if its node was deleted", "abcd", "", Some("abd"), "..-.", forget(2)),
            ("the silent one came back in time", "abc", "d", Some("abd"), "....", give_up(3)),
            (
                "or too late: that beside the volume stays",
                "abcd",
                "",
                Some("abd"),
                "....",
                forget(2),
            ),
            ("one too many beside the volume", "abcd", "", Some("abcd"), "....", forget(3)),
            ("a disk was replaced, the volume is back", "abc", "", Some("abc"), "..G.", make(2)),
            ("a node is being emptied", "abc", "", Some("abd"), "..l.", make(3)),
            ("and is not when there is another", "abcd", "", Some("abd"), "..l.", forget(2)),
            ("two are lost, one at a time", "abc", "", Some("ade"), ".SS....", make(3)),
            ("more than a third is silent", "abc", "", Some("ade"), ".SS..", braked),
            ("nothing to copy from", "ab", "", Some("cde"), "SS.....", Verdict::NoSource),
        ],
    );
}

#[test]
fn none_is_made_on_a_cordoned_node_that_could_be_made_elsewhere() {
    let mut world = world(".....");
    let volume = nodes("abc");
    let beside = Some(Source { in_sync: &volume, served: true });
    assert_eq!(decide(&world, ("ab", ""), beside), make(2));
    world.candidates[2].cordoned = true;
    assert_eq!(decide(&world, ("ab", ""), beside), make(3));
    world.candidates[3].cordoned = true;
    assert_eq!(decide(&world, ("ab", ""), beside), make(4));
    world.candidates[4].cordoned = true;
    assert_eq!(decide(&world, ("ab", ""), beside), make(2), "nothing else fits");
    assert_eq!(decide(&world, ("abc", ""), beside), Verdict::Enough, "and it stays");
}

#[test]
fn without_a_volume_that_is_served_nodes_are_chosen_as_for_one() {
    check(
        false,
        &[
            ("the volume was deleted", "abc", "", None, "..S.", make(3)),
            ("it is detached, its copy is lost", "abc", "", Some("abc"), "..S.", make(3)),
            ("it is detached and has another", "abc", "", Some("abe"), "..S..", make(4)),
            ("one that was deleted is enough", "abd", "", None, "..-.", Verdict::Enough),
        ],
    );
    let Verdict::NoRoom(error) = decide(&world("..S"), ("abc", ""), None) else {
        panic!("there is no fourth node");
    };
    assert!(error.misfits.contains(&(name(2), Misfit::Excluded)), "{error}");
}

#[test]
fn a_silent_copy_stays_on_record_while_the_others_lack_blocks() {
    let (world, back) = (world("..S."), world("...."));
    let (copies, in_sync) = (nodes("abcd"), nodes("abd"));
    let view = View {
        wanted: 3,
        copies: &copies,
        making: &[],
        gaps: true,
        gapped: &[],
        failing: &[],
        full: &[],
        volume: Some(Source { in_sync: &in_sync, served: true }),
        nodes: &world.nodes,
        candidates: &world.candidates,
        sets: &Copysets::default(),
        bytes: 1,
        pool: "default",
        now: NOW,
        grace_ms: GRACE_MS,
    };
    assert_eq!(assess(&view), Verdict::Enough);
    assert_eq!(assess(&View { gaps: false, ..view }), Verdict::Forget(name(2)));
    let view = View { nodes: &back.nodes, ..view };
    assert_eq!(assess(&view), Verdict::Enough, "it is back, and may be the last to have them");
    let gapped = nodes("b");
    assert_eq!(assess(&View { gapped: &gapped, ..view }), Verdict::Forget(name(1)));
    let apart = nodes("bc");
    assert_eq!(assess(&View { gapped: &apart, ..view }), Verdict::Forget(name(2)));
}

fn failing(at: usize, since_ms: u64, last_ms: u64) -> Failing {
    let before = |ms: u64| Tick(NOW.0 - ms * 1000);
    Failing { node: name(at), since: before(since_ms), last: before(last_ms) }
}

#[test]
fn a_copy_that_one_node_cannot_make_is_made_by_another_one() {
    let (more, none_else) = (world("...."), world("..."));
    let (copies, c, in_sync) = (nodes("ab"), nodes("c"), nodes("abc"));
    let view = View {
        wanted: 3,
        copies: &copies,
        making: &c,
        gaps: false,
        gapped: &[],
        failing: &[failing(2, GRACE_MS, 0)],
        full: &[],
        volume: Some(Source { in_sync: &in_sync, served: true }),
        nodes: &more.nodes,
        candidates: &more.candidates,
        sets: &Copysets::default(),
        bytes: 1,
        pool: "default",
        now: NOW,
        grace_ms: GRACE_MS,
    };
    assert_eq!(assess(&view), Verdict::GiveUp(name(2)));
    assert_eq!(assess(&View { failing: &[failing(2, GRACE_MS - 1, 0)], ..view }), Verdict::Coming);
    assert_eq!(assess(&View { failing: &[failing(1, GRACE_MS, 0)], ..view }), Verdict::Coming);
    let alone = View { nodes: &none_else.nodes, candidates: &none_else.candidates, ..view };
    assert_eq!(assess(&alone), Verdict::Coming, "nobody else could make it");

    let given_up = View { making: &[], ..view };
    assert_eq!(assess(&given_up), make(3), "not beside the volume, where it cannot be made");
    let lately = [failing(2, 2 * GRACE_MS, GRACE_MS - 1)];
    assert_eq!(assess(&View { failing: &lately, ..given_up }), make(3));
    let long_ago = [failing(2, 3 * GRACE_MS, GRACE_MS)];
    assert_eq!(assess(&View { failing: &long_ago, ..given_up }), make(2), "once more");
    assert_eq!(assess(&View { failing: &[], full: &c, ..given_up }), make(3));
    let full = nodes("cd");
    let nowhere = assess(&View { failing: &[], full: &full, ..given_up });
    assert!(matches!(nowhere, Verdict::NoRoom(_)), "{nowhere}");
}

#[test]
fn a_decision_is_told_in_words() {
    assert_eq!(make(3).to_string(), "a copy is made on d");
    let braked = Verdict::Braked { silent: 2, nodes: 5 }.to_string();
    assert!(braked.starts_with("2 of 5 nodes are silent"), "{braked}");
}
