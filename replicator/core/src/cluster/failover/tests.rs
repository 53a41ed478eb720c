use proptest::prelude::*;

use super::*;

const PATIENCE: Patience = Patience { silent_ms: 1000, restart_ms: 30_000 };

fn name(i: usize) -> NodeId {
    NodeId::new(&alloc::format!("n{i}")).unwrap()
}

fn judged(all: &[Witness]) -> Vec<Verdict> {
    let nodes = all.iter().enumerate().map(|(i, witness)| (name(i), *witness)).collect();
    judge(&nodes, PATIENCE).into_values().collect()
}

fn silent(ms: u64) -> Witness {
    Witness { silent_ms: Some(ms), ..Witness::default() }
}

const WELL: Witness = Witness { silent_ms: None, refused: false, word: Word::Well, unasked: false };

#[test]
fn one_of_three_that_is_silent_for_long_enough_is_suspected() {
    assert_eq!(judged(&[WELL, WELL, silent(999)])[2], Verdict::Well);
    assert_eq!(judged(&[WELL, WELL, silent(1000)])[2], Verdict::Suspect(Reason::Silent));
    assert_eq!(judged(&[WELL, silent(1000)])[1], Verdict::Suspect(Reason::Silent), "of two");
}

#[test]
fn a_machine_without_a_daemon_has_longer() {
    let refused = |ms| Witness { refused: true, ..silent(ms) };
    assert_eq!(judged(&[WELL, refused(29_999)])[1], Verdict::Well);
    assert_eq!(judged(&[WELL, refused(30_000)])[1], Verdict::Suspect(Reason::NoDaemon));
    let said = |word, ms| judged(&[WELL, Witness { word, ..refused(ms) }])[1];
    assert_eq!(said(Word::NotReady, 29_999), Verdict::Well, "its daemon is being replaced");
    for (word, ms) in [(Word::NotReady, 30_000), (Word::OutOfService, 1), (Word::Deleted, 1)] {
        assert_eq!(said(word, ms), Verdict::Suspect(Reason::Said(word)));
    }
    let all = judged(&[WELL, refused(5), refused(5), silent(1000)]);
    assert_eq!(all[3], Verdict::Suspect(Reason::Silent), "an upgrade is no broken network");
}

#[test]
fn many_that_are_silent_need_the_word_of_the_orchestrator() {
    let braked = Verdict::Braked { silent: 2, nodes: 3 };
    assert_eq!(judged(&[WELL, silent(1000), silent(1)]), [Verdict::Well, braked, Verdict::Well]);
    let said = Witness { word: Word::NotReady, ..silent(1000) };
    let suspect = Verdict::Suspect(Reason::Said(Word::NotReady));
    assert_eq!(judged(&[WELL, said, silent(1000)]), [Verdict::Well, suspect, braked]);
}

#[test]
fn a_node_that_is_known_to_be_gone_leaves_the_next_one_alone() {
    let suspect = Verdict::Suspect(Reason::Silent);
    for word in [Word::OutOfService, Word::Deleted] {
        let gone = Witness { word, ..silent(1_000_000) };
        assert_eq!(judged(&[WELL, silent(1000), gone])[1], suspect, "{word:?}");
        let many = judged(&[WELL, silent(1000), silent(1000), gone, gone, gone]);
        assert_eq!(many[1], Verdict::Braked { silent: 2, nodes: 3 }, "they are no majority");
    }
    let unasked = Witness { word: Word::NotReady, unasked: true, ..WELL };
    let many = judged(&[WELL, silent(1000), silent(1000), unasked, unasked, unasked]);
    assert_eq!(many[1], Verdict::Braked { silent: 2, nodes: 3 }, "nor are those of others");
    assert_eq!(many[3], Verdict::Suspect(Reason::Said(Word::NotReady)));
}

fn pod(volumes: &[Used]) -> Pod {
    let volumes = volumes.to_vec();
    Pod { ignored: false, ended: false, maker: Maker::Controller, volumes }
}

fn ours(name: &str) -> Used {
    Used::Ours(String::from(name))
}

fn leaving(pods: &[usize], volumes: &[&str]) -> Leaving {
    let volumes = volumes.iter().map(|name| String::from(*name)).collect();
    Leaving { pods: pods.iter().copied().collect(), volumes }
}

#[test]
fn a_pod_moves_with_all_its_volumes_or_stays() {
    let (v, data) = (ours("v"), || String::from("data"));
    let both = pod(&[v.clone(), ours("w"), Used::Shared(data())]);
    assert_eq!(plan(&[both]).leave, [leaving(&[0], &["v", "w"])]);
    assert_eq!(plan(&[pod(&[]), pod(&[Used::Foreign(data())])]), Plan::default());
    let stays = |pod: Pod| plan(&[pod]).stay.remove(&0);
    let beside = |other| stays(pod(&[v.clone(), other]));
    assert_eq!(beside(Used::Foreign(data())), Some(Stays::Foreign(data())));
    assert_eq!(beside(Used::Unknown(data())), Some(Stays::Unknown(data())));
    let one = pod(core::slice::from_ref(&v));
    assert_eq!(stays(Pod { ignored: true, ..one.clone() }), Some(Stays::Ignored));
    assert_eq!(stays(Pod { maker: Maker::Nobody, ..one.clone() }), Some(Stays::NoMaker));
    assert_eq!(stays(Pod { maker: Maker::Node, ..one.clone() }), Some(Stays::OfNode));
    assert_eq!(plan(&[Pod { ended: true, ..one }]), Plan::default());
}

#[test]
fn a_pod_that_stays_is_robbed_by_no_other() {
    let left = Pod { ignored: true, ..pod(&[ours("v")]) };
    let shares = pod(&[ours("v"), ours("w")]);
    let through = pod(&[ours("w"), ours("x")]);
    let alone = pod(&[ours("y")]);
    let found = plan(&[shares.clone(), through.clone(), alone.clone(), left.clone()]);
    assert_eq!(found.leave, [leaving(&[2], &["y"])]);
    let stay = [(0, Stays::Beside), (1, Stays::Beside), (3, Stays::Ignored)];
    assert_eq!(found.stay, BTreeMap::from(stay));
    let gone = Pod { ended: true, ..left };
    let found = plan(&[shares, through, alone, gone]);
    assert_eq!(found.leave, [leaving(&[0, 1], &["v", "w", "x"]), leaving(&[2], &["y"])]);
}

#[test]
fn what_nobody_would_make_again_or_is_to_be_left_alone_is_not_begun_anew() {
    let one = pod(&[ours("v")]);
    assert!(begins_anew(&one) && begins_anew(&Pod { maker: Maker::Node, ..one.clone() }));
    assert!(!begins_anew(&Pod { ignored: true, ..one.clone() }));
    assert!(!begins_anew(&Pod { ended: true, ..one.clone() }));
    assert!(!begins_anew(&Pod { maker: Maker::Nobody, ..one }));
}

fn some_pod() -> impl Strategy<Value = Pod> {
    let used = prop_oneof![
        8 => (0u8..6).prop_map(|i| ours(&alloc::format!("v{i}"))),
        1 => Just(Used::Foreign(String::from("f"))),
        1 => Just(Used::Shared(String::from("s"))),
    ];
    let maker = prop_oneof![6 => Just(Maker::Controller), 1 => Just(Maker::Nobody)];
    let volumes = proptest::collection::vec(used, 0..3);
    (proptest::bool::weighted(0.1), proptest::bool::weighted(0.1), maker, volumes)
        .prop_map(|(ignored, ended, maker, volumes)| Pod { ignored, ended, maker, volumes })
}

fn witness() -> impl Strategy<Value = Witness> {
    let word = prop_oneof![
        4 => Just(Word::Well),
        1 => Just(Word::NotReady),
        1 => Just(Word::OutOfService),
        1 => Just(Word::Deleted),
    ];
    (proptest::option::of(0u64..40_000), any::<bool>(), word)
        .prop_map(|(silent_ms, refused, word)| Witness { silent_ms, refused, word, unasked: false })
}

proptest! {
    #[test]
    fn nobody_is_suspected_without_a_reason_of_its_own(
        all in proptest::collection::vec(witness(), 1..9),
    ) {
        let is_gone = |w: &&Witness| matches!(w.word, Word::OutOfService | Word::Deleted);
        let counted = || all.iter().filter(|w| !is_gone(w));
        let silent = counted().filter(|w| w.silent_ms.is_some() && !w.refused).count();
        let count = counted().count();
        for (witness, verdict) in all.iter().zip(judged(&all)) {
            let ms = witness.silent_ms;
            let long = ms.is_some_and(|ms| {
                ms >= if witness.refused { PATIENCE.restart_ms } else { PATIENCE.silent_ms }
            });
            match verdict {
                Verdict::Well => {
                    let is_awaited = witness.refused && witness.word == Word::NotReady;
                    prop_assert!(!long && (witness.word == Word::Well || is_awaited));
                }
                Verdict::Braked { .. } => {
                    prop_assert!(long && silent > 1 && silent * 3 > count);
                    prop_assert_eq!(witness.word, Word::Well);
                }
                Verdict::Suspect(Reason::Said(word)) => {
                    prop_assert!(word == witness.word && word != Word::Well);
                }
                Verdict::Suspect(Reason::NoDaemon) => prop_assert!(long && witness.refused),
                Verdict::Suspect(Reason::Silent) => {
                    prop_assert!(long && !witness.refused);
                    prop_assert!(silent == 1 || silent * 3 <= count);
                }
            }
        }
    }

    #[test]
    fn what_is_fenced_is_used_by_those_who_leave_and_by_nobody_who_stays(
        pods in proptest::collection::vec(some_pod(), 0..8),
    ) {
        let found = plan(&pods);
        let uses = |pod: &Pod, name: &String| {
            !pod.ended && pod.volumes.contains(&Used::Ours(name.clone()))
        };
        for set in &found.leave {
            for (at, pod) in pods.iter().enumerate() {
                let shares = set.volumes.iter().any(|name| uses(pod, name));
                prop_assert_eq!(shares, set.pods.contains(&at), "{}", at);
            }
            for at in &set.pods {
                let is_foreign = |used: &Used| matches!(used, Used::Foreign(_));
                prop_assert!(!found.stay.contains_key(at) && !pods[*at].ignored);
                prop_assert!(!pods[*at].volumes.iter().any(is_foreign));
            }
        }
        let told = found.stay.len() + found.leave.iter().map(|set| set.pods.len()).sum::<usize>();
        let with_ours = |pod: &&Pod| {
            !pod.ended && pod.volumes.iter().any(|used| matches!(used, Used::Ours(_)))
        };
        prop_assert_eq!(told, pods.iter().filter(with_ours).count(), "each once");
    }
}
