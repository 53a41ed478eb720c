//! Planted bugs: each must be found by some seed.

use lockstep_core::planted::{Bug, Planted};
use lockstep_tests::plan::{Options, Profile};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use super::{Args, named, run, say};

/// Where the seeds that found each bug are kept.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sim/killing-seeds.txt")
}

/// A world that finds a bug.
#[derive(Clone, Debug)]
struct Killer {
    seed: u64,
    profile: Option<Profile>,
    /// The checker, and what it said.
    how: String,
}

impl Killer {
    /// As it stands in the file.
    fn line(&self) -> String {
        let profile = self.profile.map_or(String::new(), |p| format!(" {}", p.name()));
        format!("{}{profile}", self.seed)
    }
}

fn recorded() -> BTreeMap<String, (u64, Option<Profile>)> {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, seed) = (words.next()?, words.next()?.parse().ok()?);
        let profile = words.next().and_then(|name| named("profile", name, Profile::ALL).ok());
        Some((name.to_owned(), (seed, profile)))
    };
    text.lines().filter(|l| !l.starts_with('#')).filter_map(line).collect()
}

/// Does this world find the bug? One that finds something without the bug as well proves nothing.
fn kills(bug: Bug, seed: u64, profile: Option<Profile>) -> Option<(Killer, bool)> {
    let options = |planted| Options { profile, ..Options::new(seed, planted) };
    let violation = run(&options(Planted::with(bug)), None).violation?;
    if run(&options(Planted::NONE), None).violation.is_some() {
        return None;
    }
    let how = format!("{}: {}", violation.checker, violation.what);
    Some((Killer { seed, profile, how }, violation.checker != "converge"))
}

/// The first of `count` seeds from `first` that finds the bug. A breach of safety is preferred to
/// a world that only does not come right.
fn hunt(bug: Bug, first: u64, count: u64, profile: Option<Profile>) -> Option<Killer> {
    let mut stuck = None;
    for seed in first..first.saturating_add(count) {
        match kills(bug, seed, profile) {
            Some((killer, true)) => return Some(killer),
            Some((killer, false)) => stuck = stuck.or(Some(killer)),
            None => {}
        }
        if stuck.as_ref().is_some_and(|s: &Killer| seed > s.seed + 500) {
            break;
        }
    }
    stuck
}

/// Looks where the bug was found before, then everywhere.
fn find(args: &Args, options: &Options, bug: Bug, name: &str) -> Option<Killer> {
    let known = recorded().get(name).copied();
    if let Some((seed, profile)) = known.filter(|_| options.profile.is_none())
        && let Some((killer, _)) = kills(bug, seed, profile)
    {
        return Some(killer);
    }
    if args.recorded {
        return None;
    }
    hunt(bug, args.first_seed, args.budget, options.profile)
}

/// Runs all, or the one that was named; answers whether each was found.
pub(crate) fn run_all(args: &Args, options: &Options) -> bool {
    let wanted = |(_, name): &&(Bug, &str)| args.mutant.as_deref().is_none_or(|m| m == *name);
    let bugs: VecDeque<(Bug, &str)> = Bug::ALL.iter().filter(wanted).copied().collect();
    let mutants = bugs.len();
    let (left, found) = (Mutex::new(bugs), Mutex::new(BTreeMap::new()));
    let next = || left.lock().ok().and_then(|mut left| left.pop_front());
    thread::scope(|scope| {
        for _ in 0..args.jobs() {
            scope.spawn(|| {
                while let Some((bug, name)) = next() {
                    let killer = find(args, options, bug, name);
                    match &killer {
                        Some(k) => say(&format!("{name:<22} seed {:<14} {}", k.line(), k.how)),
                        None => say(&format!("{name:<22} SURVIVES")),
                    }
                    if let (Some(killer), Ok(mut found)) = (killer, found.lock()) {
                        found.insert(name, killer);
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_default();
    let killed = found.len();
    if !args.recorded {
        save(&found);
    }
    if args.table {
        say(&table(&found));
    }
    if args.json {
        say(&format!("{{\"mutants\":{mutants},\"killed\":{killed}}}"));
    } else {
        say(&format!("{killed} of {mutants} planted bugs found"));
    }
    killed == mutants
}

/// What is found anew replaces what was recorded.
fn save(found: &BTreeMap<&str, Killer>) {
    let mut lines: BTreeMap<String, String> = recorded()
        .into_iter()
        .map(|(name, (seed, profile))| {
            let line = Killer { seed, profile, how: String::new() }.line();
            (name, line)
        })
        .filter(|(name, _)| Bug::ALL.iter().any(|(_, known)| known == name))
        .collect();
    lines.extend(found.iter().map(|(name, killer)| ((*name).to_owned(), killer.line())));
    let mut text =
        "# A seed that finds each planted bug, with the kind of world if the search was for one;\n\
         # made by `lockstep-sim --mutants`.\n"
            .to_owned();
    for (name, line) in lines {
        let _ = writeln!(text, "{name} {line}");
    }
    if let Err(why) = std::fs::write(file(), text) {
        say(&format!("can't write {}: {why}", file().display()));
    }
}

/// The table of docs/verification.md.
fn table(found: &BTreeMap<&str, Killer>) -> String {
    let mut out = "| Mutant | Rule | The breach | Seeds needed | Found by |\n\
                   |---|---|---|---|---|"
        .to_owned();
    for (bug, name) in Bug::ALL {
        let Some(killer) = found.get(name) else { continue };
        let (rule, breach) = bug.breach();
        let kind = killer.profile.map_or("any", Profile::name);
        let checker = killer.how.split(':').next().unwrap_or_default();
        let seeds = killer.seed + 1;
        let _ = write!(out, "\n| `{name}` | {rule} | {breach} | {seeds} ({kind}) | {checker} |");
    }
    out
}
