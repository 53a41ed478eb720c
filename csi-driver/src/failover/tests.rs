use super::Watch;
use super::silence::Silence;
use crate::daemon::{Answer, Answers};
use lockstep_core::cluster::failover::{Patience, Reason, Witness, Word, judge};
use lockstep_core::id::NodeId;
use std::collections::BTreeMap;
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
