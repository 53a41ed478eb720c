//! Making a failing world smaller: fewer faults, fewer requests, an earlier end.

use lockstep_tests::fault::Fault;
use lockstep_tests::plan::Options;
use lockstep_tests::report::Violation;

use super::{Args, arguments, run, say};

/// Prints the smallest reproduction found; answers whether the seed is good.
pub(crate) fn smallest(args: &Args, options: &Options) -> bool {
    let Some(violation) = run_once(options) else {
        say(&format!("seed {}: good, there is nothing to minimise", options.seed));
        return true;
    };
    let (smallest, violation) = shrink(options.clone(), violation);
    say(&format!(
        "{} after {} ms: {}\nsmallest: lockstep-sim {} --trace",
        violation.checker,
        violation.at_us / 1000,
        violation.what,
        arguments(&smallest, args.mutant.as_deref())
    ));
    false
}

fn run_once(options: &Options) -> Option<Violation> {
    run(options, None).violation
}

/// Tries one change after the other and keeps those after which the same checker still finds
/// something. Leaving out a fault changes all that comes after, so a world may well be good then.
fn shrink(mut options: Options, mut violation: Violation) -> (Options, Violation) {
    let keeps = |candidate: &Options, violation: &Violation| {
        run_once(candidate).filter(|found| found.checker == violation.checker)
    };
    loop {
        let mut smaller = false;
        for (fault, _, _) in Fault::ALL {
            let mut candidate = options.clone();
            if !candidate.without.insert(*fault) {
                continue;
            }
            if let Some(found) = keeps(&candidate, &violation) {
                // What does not happen anyway need not be named: it only makes the line longer.
                smaller |= found != violation;
                (options, violation) = (candidate, found);
            }
        }
        let ends_ms = violation.at_us / 1000 + 1;
        let depths = [1, 2, 4, 8].map(|depth| Options { depth: Some(depth), ..options.clone() });
        let earlier = [ends_ms / 2, ends_ms * 3 / 4, ends_ms];
        let earlier = earlier.map(|ms| Options { chaos_ms: Some(ms), ..options.clone() });
        let wider = |o: &Options| options.depth.is_none_or(|now| o.depth < Some(now));
        let later = |o: &Options| options.chaos_ms.is_none_or(|now| o.chaos_ms < Some(now));
        let depths = depths.into_iter().filter(wider);
        for candidate in depths.chain(earlier.into_iter().filter(later)) {
            if let Some(found) = keeps(&candidate, &violation) {
                (options, violation, smaller) = (candidate, found, true);
                break;
            }
        }
        if !smaller {
            return (named_only(options, &violation), violation);
        }
    }
}

/// Leaves out of the list what the world does not draw anyway.
fn named_only(mut options: Options, violation: &Violation) -> Options {
    for fault in options.without.clone() {
        let mut candidate = options.clone();
        candidate.without.remove(&fault);
        if run_once(&candidate).as_ref() == Some(violation) {
            options = candidate;
        }
    }
    options
}
