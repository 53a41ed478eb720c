use lockstep_core::planted::{Bug, Planted};

use crate::runs::{self, RUNS};
use crate::search::{Found, Plan, search};
use crate::story;
use crate::world::Setup;

fn setup(name: &str) -> Setup {
    let found = RUNS.iter().find(|run| run.name == name);
    assert!(found.is_some(), "no run is called {name}");
    found.map_or(RUNS[0].setup, |run| run.setup)
}

fn explore(setup: &Setup, compare: bool) -> Found {
    let start = runs::start(setup);
    assert!(start.is_ok(), "the first primary opens: {start:?}");
    let plan = Plan {
        jobs: 2,
        table_bits: 22,
        most: u64::MAX,
        breadth_first: false,
        compare,
        progress: false,
    };
    start.map_or_else(|_| Found::default(), |start| search(start, plan))
}

#[test]
fn two_copies_and_a_write_hold_in_every_order_of_steps() {
    let short = explore(&setup("two-writes"), false);
    let full = explore(&Setup { full: true, ..setup("two-writes") }, false);
    for found in [&short, &full] {
        assert!(found.violation.is_none(), "{:?}", found.violation);
        assert!(found.complete, "cut short");
    }
    assert!(full.states > short.states, "no order was left out");
}

#[test]
fn a_run_has_the_same_states_whoever_goes_through_them() {
    let first = explore(&setup("three"), false);
    let again = explore(&setup("three"), false);
    assert_eq!((first.states, first.transitions), (again.states, again.transitions));
}

#[test]
fn a_planted_bug_is_found_and_its_story_told_with_and_without_a_choice_of_orders() {
    for full in [false, true] {
        for bug in [Bug::NoRepair, Bug::NoEpochFence, Bug::NoPromotionFlush] {
            let setup = Setup { planted: Planted::with(bug), full, ..setup("two-kill") };
            let found = explore(&setup, false);
            let Some((what, way)) = found.violation else { panic!("{bug:?} survives") };
            let story = story::tell(&setup, &way);
            assert!(story.iter().any(|line| line.contains(&what)), "{what} is not in {story:?}");
        }
    }
}

/// Whatever is left out of what a state is recognised by must decide nothing.
#[test]
fn states_that_count_as_the_same_are_followed_by_the_same() {
    for name in ["two", "two-writes", "two-kill", "two-unknown", "two-detach", "three-death"] {
        let found = explore(&setup(name), true);
        assert!(found.violation.is_none(), "{name}: {:?}", found.violation);
        assert!(found.compared > found.states, "{name}: nothing was compared");
    }
}
