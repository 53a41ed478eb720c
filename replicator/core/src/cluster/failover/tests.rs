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

const WELL: Witness = Witness { silent_ms: None, refused: false, word: Word::Well };

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

fn pod(volumes: &[Used]) -> Pod {
    let volumes = volumes.to_vec();
    Pod { ignored: false, ended: false, maker: Maker::Controller, volumes }
}

#[test]
fn a_pod_moves_with_all_its_volumes_or_stays() {
    let ours = |name: &str| Used::Ours(String::from(name));
    let (v, w, data) = (ours("v"), ours("w"), || String::from("data"));
    let both = pod(&[v.clone(), w, Used::Shared(data())]);
    assert_eq!(moves(&both), Ok(BTreeSet::from(["v", "w"])));
    assert_eq!(moves(&pod(&[])), Err(Stays::NotOurs));
    assert_eq!(moves(&pod(&[Used::Foreign(data())])), Err(Stays::NotOurs));
    let beside = |other| moves(&pod(&[v.clone(), other])).unwrap_err();
    assert_eq!(beside(Used::Foreign(data())), Stays::Foreign(data()));
    assert_eq!(beside(Used::Unknown(data())), Stays::Unknown(data()));
    let one = pod(&[v]);
    assert_eq!(moves(&Pod { ignored: true, ..one.clone() }), Err(Stays::Ignored));
    assert_eq!(moves(&Pod { maker: Maker::Nobody, ..one.clone() }), Err(Stays::NoMaker));
    assert_eq!(moves(&Pod { maker: Maker::Node, ..one.clone() }), Err(Stays::OfNode));
    assert_eq!(moves(&Pod { ended: true, ..one }), Err(Stays::NotOurs));
}

fn witness() -> impl Strategy<Value = Witness> {
    let word = prop_oneof![
        4 => Just(Word::Well),
        1 => Just(Word::NotReady),
        1 => Just(Word::OutOfService),
        1 => Just(Word::Deleted),
    ];
    (proptest::option::of(0u64..40_000), any::<bool>(), word)
        .prop_map(|(silent_ms, refused, word)| Witness { silent_ms, refused, word })
}

proptest! {
    #[test]
    fn nobody_is_suspected_without_a_reason_of_its_own(
        all in proptest::collection::vec(witness(), 1..9),
    ) {
        let silent = all.iter().filter(|w| w.silent_ms.is_some() && !w.refused).count();
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
                    prop_assert!(long && silent > 1 && silent * 3 > all.len());
                    prop_assert_eq!(witness.word, Word::Well);
                }
                Verdict::Suspect(Reason::Said(word)) => {
                    prop_assert!(word == witness.word && word != Word::Well);
                }
                Verdict::Suspect(Reason::NoDaemon) => prop_assert!(long && witness.refused),
                Verdict::Suspect(Reason::Silent) => {
                    prop_assert!(long && !witness.refused);
                    prop_assert!(silent == 1 || silent * 3 <= all.len());
                }
            }
        }
    }
}
