use super::moving::without_numbers;
use super::silence::Silence;
use super::{FORGET, LONG, Watch};
use crate::daemon::{Answer, Answers};
use k8s_openapi::api::core::v1::ObjectReference;
use lockstep_core::cluster::failover::{Patience, Reason, Verdict, Witness, Word, judge};
use lockstep_core::id::NodeId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn look(live: bool, refused: bool) -> Answers {
    Answers::from([(name("a"), Answer { live, refused })])
}

#[test]
fn one_lost_answer_is_no_silence_and_an_answer_ends_it() {
    let (mut silence, begin) = (Silence::default(), Instant::now());
    let at = |ms| begin + Duration::from_millis(ms);
    let silent = |silence: &Silence, ms| {
        let seen = silence.witnesses(None, at(ms))[&name("a")];
        (seen.silent_ms, seen.refused)
    };
    silence.note(&look(false, false), at(0));
    assert_eq!(silent(&silence, 400), (None, false));
    silence.note(&look(false, true), at(500));
    assert_eq!(silent(&silence, 900), (Some(900), true), "since the first that got none");
    silence.note(&look(true, false), at(1000));
    silence.note(&look(false, false), at(1500));
    assert_eq!(silent(&silence, 1900), (None, false));
    silence.note(&Answers::new(), at(2000));
    assert!(silence.witnesses(None, at(2000)).is_empty(), "it was removed");
}

#[test]
fn a_node_that_kubernetes_does_not_have_was_deleted_once_it_was_heard() {
    let (mut silence, now) = (Silence::default(), Instant::now());
    silence.note(&look(true, false), now);
    let word = |words| silence.witnesses(words, now)[&name("a")].word;
    assert_eq!(word(None), Word::Well);
    assert_eq!(word(Some(BTreeMap::new())), Word::Deleted);
    assert_eq!(word(Some(BTreeMap::from([(name("a"), Word::NotReady)]))), Word::NotReady);
}

#[test]
fn a_node_of_which_no_daemon_tells_is_lost_if_kubernetes_says_so() {
    let (mut silence, now) = (Silence::default(), Instant::now());
    let words = BTreeMap::from([(name("a"), Word::NotReady), (name("b"), Word::Well)]);
    let seen = silence.witnesses(Some(words.clone()), now);
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&name("a")]);
    assert!(seen[&name("a")].unasked && seen[&name("a")].word == Word::NotReady);
    silence.note(&look(true, false), now);
    assert!(!silence.witnesses(Some(words), now)[&name("a")].unasked);
}

#[test]
fn a_node_that_was_suspected_is_looked_at_once_it_is_well() {
    let patience = Patience { silent_ms: 1000, restart_ms: 30_000 };
    let mut watch = Watch::default();
    let returned = |watch: &mut Watch, witness: Witness| {
        let seen = BTreeMap::from([(name("a"), witness)]);
        watch.returned(&judge(&seen, patience), &seen)
    };
    let well = Witness::default();
    assert!(returned(&mut watch, well).is_empty());
    let said = Reason::Said(Word::NotReady);
    watch.suspect(name("a"), said, None);
    let not_ready = Witness { word: Word::NotReady, ..well };
    assert!(returned(&mut watch, not_ready).is_empty(), "it is suspected still");
    let refuses = Witness { silent_ms: Some(500), refused: true, ..well };
    assert!(returned(&mut watch, refuses).is_empty(), "it does not answer");
    assert_eq!(returned(&mut watch, well), [name("a")], "it answered all the time");
    assert!(returned(&mut watch, well).is_empty(), "once");
}

#[test]
fn of_a_node_that_flaps_people_are_told_once_and_one_that_was_well_for_long_begins_anew() {
    let (mut watch, begin) = (Watch::default(), Instant::now());
    let pod = ObjectReference { name: Some("p".to_owned()), ..ObjectReference::default() };
    let ends = |watch: &mut Watch, at| {
        watch.clear(&BTreeMap::from([(name("a"), Verdict::Well)]), at);
        assert!(watch.suspects.is_empty());
    };
    let said = Reason::Said(Word::NotReady);
    let first = Arc::clone(&watch.suspect(name("a"), said, None).case);
    assert!(first.is_new(&pod, "it stays"));
    ends(&mut watch, begin);
    let flips = [(said, None), (Reason::Silent, Some(2000)), (said, None)];
    for (reason, silent_ms) in flips {
        let case = Arc::clone(&watch.suspect(name("a"), reason, silent_ms).case);
        assert!(!Arc::ptr_eq(&case, &first), "it is looked at now");
        assert!(!case.is_new(&pod, "it stays"), "that was told");
        let (lasts, at) = (first.lasts(begin + LONG), begin + LONG);
        assert_eq!(case.lasts(at) == lasts, reason == said, "what is new is tried often");
    }
    ends(&mut watch, begin);
    watch.clear(&BTreeMap::new(), begin + 2 * LONG);
    let later = Arc::clone(&watch.suspect(name("a"), said, None).case);
    assert!(later.lasts(begin + LONG) < first.lasts(begin + LONG), "it was well for a while");
    assert!(!later.is_new(&pod, "it stays"));
    ends(&mut watch, begin);
    watch.clear(&BTreeMap::new(), begin + FORGET);
    let anew = Arc::clone(&watch.suspect(name("a"), said, None).case);
    assert!(anew.is_new(&pod, "it stays"));
}

#[test]
fn that_a_node_was_heard_at_another_time_is_no_news() {
    let heard = |node, ms| without_numbers(&format!("{node} heard it {ms} ms ago"));
    assert_eq!(heard("n1", 80), heard("n1", 310));
    assert_ne!(heard("n1", 80), heard("n2", 80));
}
