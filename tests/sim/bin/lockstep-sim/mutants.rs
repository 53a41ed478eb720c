//! Planted bugs: each must be found by some seed.

use lockstep_core::planted::{Bug, Planted};
use lockstep_tests::plan::{Options, Profile};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use super::play::play;
use super::{Args, named, run, say};

/// Where the seeds that found each bug are kept.
fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sim/killing-seeds.txt")
}

/// Where a bug is found.
#[derive(Clone, Debug)]
enum Place {
    /// In the world of a seed, of the seed's own kind or of this one.
    Seed(u64, Option<Profile>),
    /// In a scene of tests/scenarios, whose dialogue changes.
    Scene(String),
}

/// What finds a bug.
#[derive(Clone, Debug)]
struct Killer {
    place: Place,
    /// The checker, and what it said.
    how: String,
}

impl Place {
    /// As it stands in the file.
    fn line(&self) -> String {
        match self {
            Self::Seed(seed, None) => seed.to_string(),
            Self::Seed(seed, Some(profile)) => format!("{seed} {}", profile.name()),
            Self::Scene(name) => format!("scene {name}"),
        }
    }

    fn read(line: &str) -> Option<Self> {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        if first == "scene" {
            return Some(Self::Scene(rest.to_owned()));
        }
        let profile = named("profile", rest, Profile::ALL).ok();
        Some(Self::Seed(first.parse().ok()?, profile))
    }

    fn finds(&self, bug: Bug) -> Option<Killer> {
        match self {
            Self::Seed(seed, profile) => kills(bug, *seed, *profile).map(|(killer, _)| killer),
            Self::Scene(name) => plays_otherwise(bug, name),
        }
    }
}

fn recorded() -> BTreeMap<String, Place> {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let line = |line: &str| {
        let (name, place) = line.split_once(' ')?;
        Some((name.to_owned(), Place::read(place.trim())?))
    };
    text.lines().filter(|l| !l.starts_with('#')).filter_map(line).collect()
}

fn scenes() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// Does the scene's dialogue change with the bug, and only with it?
fn plays_otherwise(bug: Bug, name: &str) -> Option<Killer> {
    let script = std::fs::read_to_string(scenes().join(format!("{name}.txt"))).ok()?;
    let as_written = play(&script, Planted::NONE) == script;
    let now = play(&script, Planted::with(bug));
    let changed = now.lines().zip(script.lines()).find(|(now, written)| now != written);
    let how = format!("scene: {}", changed.filter(|_| as_written)?.0.trim());
    Some(Killer { place: Place::Scene(name.to_owned()), how })
}

/// The scene that was written for a bug that chance hardly ever finds.
fn scene_for(bug: Bug) -> Option<&'static str> {
    match bug {
        Bug::OutsiderCommit => Some("11-void-repair-is-kept"),
        Bug::KeepProposal => Some("50-removal-taken-back"),
        Bug::LatePull => Some("71-late-pull"),
        Bug::PullAnyEpoch => Some("72-pull-of-a-deposed-primary"),
        Bug::CountStandstill => Some("52-standstill"),
        Bug::ShunOneOfTwo => Some("66-slow-member-of-two"),
        Bug::ResumeUnproven => Some("23-put-back-under-an-old-primary"),
        Bug::LossyUntilTold => Some("32-whole-before-it-is-told"),
        Bug::ServePutBack => Some("24-put-back-store-before-an-old-primary"),
        Bug::LateReadInClaim => Some("68-no-late-read-while-claiming"),
        Bug::HealedAsWhole => Some("69-what-a-source-got-may-be-torn"),
        Bug::HastyGap => Some("82-lost-block-found"),
        Bug::SkippingScrub => Some("83-scrub-comes-back"),
        Bug::StretchLease => Some("53-standstill-of-a-reader"),
        _ => None,
    }
}

/// Does this world find the bug? One that finds something without the bug as well proves nothing.
fn kills(bug: Bug, seed: u64, profile: Option<Profile>) -> Option<(Killer, bool)> {
    let options = |planted| Options { profile, ..Options::new(seed, planted) };
    let violation = run(&options(Planted::with(bug)), None).violation?;
    if run(&options(Planted::NONE), None).violation.is_some() {
        return None;
    }
    let how = format!("{}: {}", violation.checker, violation.what);
    let place = Place::Seed(seed, profile);
    Some((Killer { place, how }, violation.checker != "converge"))
}

/// The first of `count` seeds from `first` that finds the bug. A breach of safety is preferred to
/// a world that only does not come right.
fn hunt(bug: Bug, first: u64, count: u64, profile: Option<Profile>) -> Option<Killer> {
    let (mut stuck, mut patience) = (None, 500);
    for seed in first..first.saturating_add(count) {
        match kills(bug, seed, profile) {
            Some((killer, true)) => return Some(killer),
            Some((killer, false)) => stuck = stuck.or(Some(killer)),
            None => {}
        }
        if stuck.is_some() {
            patience -= 1;
        }
        if patience == 0 {
            break;
        }
    }
    stuck
}

/// Looks where the bug was found before, then everywhere.
fn find(args: &Args, options: &Options, bug: Bug, name: &str) -> Option<Killer> {
    let known = recorded().remove(name).filter(|_| options.profile.is_none());
    let found = known.and_then(|place| place.finds(bug));
    if found.is_some() || args.recorded {
        return found;
    }
    if let Some(scene) = scene_for(bug) {
        return plays_otherwise(bug, scene);
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
                        Some(k) => {
                            say(&format!("{name:<22} seed {:<14} {}", k.place.line(), k.how))
                        }
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
        .map(|(name, place)| (name, place.line()))
        .filter(|(name, _)| Bug::ALL.iter().any(|(_, known)| known == name))
        .collect();
    lines.extend(found.iter().map(|(name, killer)| ((*name).to_owned(), killer.place.line())));
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
        let seeds = match &killer.place {
            Place::Seed(seed, None) => (seed + 1).to_string(),
            Place::Seed(seed, Some(profile)) => format!("{} of `{}`", seed + 1, profile.name()),
            Place::Scene(name) => format!("scene {name}"),
        };
        let checker = killer.how.split(':').next().unwrap_or_default();
        let _ = write!(out, "\n| `{name}` | {rule} | {breach} | {seeds} | {checker} |");
    }
    out
}
