//! Planted bugs: each must be found by some seed.

use lockstep_core::planted::{Bug, Planted};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::{Args, for_each_seed, run_seed, say};

/// Where the seeds that found each bug are kept.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sim/killing-seeds.txt")
}

fn recorded() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let line = |line: &str| {
        let (name, seed) = line.split_once(' ')?;
        Some((name.to_owned(), seed.trim().parse().ok()?))
    };
    text.lines().filter(|l| !l.starts_with('#')).filter_map(line).collect()
}

/// The first of `count` seeds from `first` that finds the bug, with the checker that did. A seed
/// that finds something without the bug as well proves nothing. A breach of safety is preferred
/// to a world that only does not come right.
fn hunt(bug: Bug, first: u64, count: u64, jobs: usize) -> Option<(u64, String)> {
    let (mut breach, mut stuck) = (None, None);
    for_each_seed(first, count, jobs, Planted::with(bug), |seed, outcome| {
        if let Some(violation) = &outcome.violation
            && run_seed(seed, Planted::NONE, None).violation.is_none()
        {
            let found = Some((seed, format!("{}: {}", violation.checker, violation.what)));
            if violation.checker == "converge" {
                stuck = stuck.take().or(found);
            } else {
                breach = found;
            }
        }
        breach.is_none()
    });
    breach.or(stuck)
}

/// Runs all; answers whether each was found.
pub(crate) fn run(args: &Args) -> bool {
    let known = recorded();
    let mut seeds: BTreeMap<String, u64> = known.clone();
    let mut killed = 0;
    for (bug, name) in Bug::ALL {
        let first = known.get(name).copied();
        let mut found = first.and_then(|seed| hunt(bug, seed, 1, 1));
        if found.is_none() && !args.recorded {
            found = hunt(bug, args.first_seed, args.budget, args.jobs());
        }
        match found {
            Some((seed, how)) => {
                killed += 1;
                seeds.insert(name.to_owned(), seed);
                say(&format!("{name:<22} seed {seed:<8} {how}"));
            }
            None => say(&format!("{name:<22} SURVIVES")),
        }
    }
    if !args.recorded {
        save(&seeds);
    }
    let mutants = Bug::ALL.len();
    if args.json {
        say(&format!("{{\"mutants\":{mutants},\"killed\":{killed}}}"));
    } else {
        say(&format!("{killed} of {mutants} planted bugs found"));
    }
    killed == mutants
}

fn save(seeds: &BTreeMap<String, u64>) {
    let mut text =
        "# A seed that finds each planted bug; made by `lockstep-sim --mutants`.\n".to_owned();
    for (name, seed) in seeds {
        let _ = writeln!(text, "{name} {seed}");
    }
    if let Err(why) = std::fs::write(file(), text) {
        say(&format!("can't write {}: {why}", file().display()));
    }
}
