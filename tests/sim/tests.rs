use lockstep_core::planted::{Bug, Planted};

use super::run_seed;

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in [3, 14] {
        let run = || format!("{:?}", run_seed(seed, Planted::NONE, None));
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn a_few_seeds_are_good() {
    for seed in 0..40 {
        let outcome = run_seed(seed, Planted::NONE, None);
        assert_eq!(outcome.violation, None, "lockstep-sim --seed {seed} --trace");
        assert!(outcome.coverage.promotions > 0, "seed {seed} never opened");
    }
}

/// Three bugs that break most worlds; `lockstep-sim --mutants` hunts all of them.
#[test]
fn coarse_bugs_are_found_at_once() {
    for bug in [Bug::FlushWithoutSync, Bug::NoRangeLock, Bug::NoPromotionFlush] {
        let finds = |seed| run_seed(seed, Planted::with(bug), None).violation.is_some();
        assert!((0..20).any(finds), "{bug:?} went unnoticed");
    }
}
