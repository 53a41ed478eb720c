//! Random operations and crashes against a naive twin.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lockstep_core::planted::{Bug, Planted};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::world::{BLOCKS, Step, World};

/// Few places, so that operations meet: ends and borders of regions.
fn start() -> impl Strategy<Value = u64> {
    prop_oneof![0..8_u64, 250..258_u64, 506..514_u64, BLOCKS - 4..BLOCKS]
}

fn step() -> impl Strategy<Value = Step> {
    let count = || 1..10_u32;
    prop_oneof![
        8 => (start(), count(), any::<bool>())
            .prop_map(|(start, count, durable)| Step::Write { start, count, durable }),
        3 => (start(), count(), any::<bool>())
            .prop_map(|(start, count, durable)| Step::Zero { start, count, durable }),
        4 => (start(), count(), any::<u64>())
            .prop_map(|(start, count, mask)| Step::Resync { start, count, mask }),
        2 => (start(), 1..300_u32).prop_map(|(start, count)| Step::Mark { start, count }),
        3 => Just(Step::Flush),
        3 => (start(), count()).prop_map(|(start, count)| Step::Read { start, count }),
        2 => (start(), 1..40_u32, 0..9_u32)
            .prop_map(|(start, count, since)| Step::Digest { start, count, since }),
        1 => (0..9_u32).prop_map(|since| Step::Scan { since }),
        1 => Just(Step::Promise),
        10 => any::<usize>().prop_map(|which| Step::Release { which }),
        2 => any::<usize>().prop_map(|which| Step::Restamp { which }),
        1 => Just(Step::CleanAll),
        6 => prop_oneof![1..20_u64, 90..200_u64].prop_map(|ms| Step::Wait { ms }),
        40 => any::<usize>().prop_map(|which| Step::Disk { which }),
        3 => Just(Step::Settle),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(which, seed)| Step::Fail { which, seed }),
        1 => any::<u64>().prop_map(|seed| Step::Kill { seed }),
        1 => any::<u64>().prop_map(|seed| Step::PowerLoss { seed }),
        1 => Just(Step::Resolve),
    ]
}

fn run(steps: &[Step], planted: Planted) -> Result<(), String> {
    let mut world = World::new(planted);
    for step in steps {
        world.step(*step)?;
    }
    world.finish()
}

proptest! {
    /// Whatever happens: what was made durable is there, what is in doubt is in the activity log,
    /// what is outside of it has right tags, and no promise is forgotten.
    #[test]
    fn a_store_equals_its_naive_twin_through_crashes(
        steps in proptest::collection::vec(step(), 1..300)
    ) {
        prop_assert_eq!(run(&steps, Planted::NONE), Ok(()));
    }
}

/// The test above is worth something only if it sees broken rules.
#[test]
fn each_planted_bug_of_the_store_is_found() {
    let bugs = [Bug::DataBeforeLog, Bug::EarlyClean, Bug::FlushWithoutSync, Bug::VolatilePromise];
    for bug in bugs {
        let mut runner = TestRunner::deterministic();
        let strategy = proptest::collection::vec(step(), 100..300);
        let found = (0..3000).find(|_| {
            let steps = strategy.new_tree(&mut runner).expect("a strategy").current();
            let run = || run(&steps, Planted::with(bug));
            !matches!(catch_unwind(AssertUnwindSafe(run)), Ok(Ok(())))
        });
        assert!(found.is_some(), "{bug:?} was not found");
    }
}
