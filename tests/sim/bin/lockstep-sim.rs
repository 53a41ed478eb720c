//! `lockstep-sim`: runs seeds of the simulator, tells the story of one, hunts planted bugs.

use clap::Parser;
use lockstep_core::planted::{Bug, Planted};
use lockstep_tests::fault::Fault;
use lockstep_tests::plan::{Options, Profile};
use lockstep_tests::report::{Coverage, Outcome};
use lockstep_tests::run;
use lockstep_tests::world::Sink;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

#[path = "../../scenarios/play.rs"]
mod play;
#[expect(clippy::expect_used, clippy::panic, reason = "a scene without sense ends the run")]
#[path = "../../scenarios/stage.rs"]
mod stage;
#[expect(clippy::expect_used, reason = "a scene without sense ends the run")]
#[path = "../../scenarios/twin.rs"]
mod twin;
#[path = "../../scenarios/words.rs"]
mod words;

#[path = "lockstep-sim/minimise.rs"]
mod minimise;
#[path = "lockstep-sim/mutants.rs"]
mod mutants;

/// Runs Lockstep's replication in simulated clusters and checks what it promises.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Run this many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// Run only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Tell the story of the seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant this bug (a name from docs/protocol.md).
    #[arg(long)]
    mutant: Option<String>,
    /// Plant every bug in turn and look for a seed that finds it.
    #[arg(long)]
    mutants: bool,
    /// With --mutants: run only the seeds recorded in tests/sim/killing-seeds.txt.
    #[arg(long, requires = "mutants")]
    recorded: bool,
    /// With --mutants: most seeds to try for each bug.
    #[arg(long, default_value_t = 20_000)]
    budget: u64,
    /// Make every world of this kind (any, promotion, return, swap, late-change,
    /// away, cut-off, power-cuts, cluster, disaster, tasks).
    #[arg(long)]
    profile: Option<String>,
    /// Leave these faults out (names as printed, with commas between).
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// End the faults after so many virtual milliseconds.
    #[arg(long)]
    until_ms: Option<u64>,
    /// Most requests of the guest under way.
    #[arg(long)]
    depth: Option<usize>,
    /// Look for the smallest world that shows what the seed finds.
    #[arg(long, requires = "seed")]
    minimise: bool,
    /// With --mutants: print the table of docs/verification.md.
    #[arg(long, requires = "mutants")]
    table: bool,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
    /// Seeds run at the same time; as many as there are processors if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
}

impl Args {
    fn jobs(&self) -> usize {
        let available = || thread::available_parallelism().map_or(1, usize::from);
        self.jobs.unwrap_or_else(available).max(1)
    }
}

/// Writes a line to standard output; a reader that has gone away is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
}

/// What is called `name`.
fn named<T: Copy>(what: &str, name: &str, all: &[(T, &str)]) -> Result<T, String> {
    let found = all.iter().find(|(_, n)| *n == name).map(|(found, _)| *found);
    let known = || all.iter().map(|(_, n)| *n).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("no {what} is called {name}; there are {}", known()))
}

/// What the arguments say of a world.
fn options(args: &Args) -> Result<Options, String> {
    let faults: Vec<(Fault, &str)> = Fault::ALL.iter().map(|(f, name, _)| (*f, *name)).collect();
    let bug = args.mutant.as_deref().map(|name| named("bug", name, Bug::ALL)).transpose()?;
    let profile = args.profile.as_deref().map(|n| named("profile", n, Profile::ALL));
    let without = args.without.iter().map(|name| named("fault", name, &faults));
    Ok(Options {
        seed: args.seed.unwrap_or(args.first_seed),
        planted: bug.map_or(Planted::NONE, Planted::with),
        profile: profile.transpose()?,
        without: without.collect::<Result<_, _>>()?,
        chaos_ms: args.until_ms,
        depth: args.depth,
    })
}

/// The arguments that make this world.
fn arguments(options: &Options, mutant: Option<&str>) -> String {
    let mut out = format!("--seed {}", options.seed);
    let mut add = |text: String| out.push_str(&text);
    if let Some(profile) = options.profile {
        add(format!(" --profile {}", profile.name()));
    }
    if !options.without.is_empty() {
        let names: Vec<&str> = options.without.iter().map(|f| f.name()).collect();
        add(format!(" --without {}", names.join(",")));
    }
    if let Some(ms) = options.chaos_ms {
        add(format!(" --until-ms {ms}"));
    }
    if let Some(depth) = options.depth {
        add(format!(" --depth {depth}"));
    }
    if let Some(mutant) = mutant {
        add(format!(" --mutant {mutant}"));
    }
    out
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Panics of the code under test are caught and reported as violations of their seed.
    std::panic::set_hook(Box::new(|_| {}));
    let options = match options(&args) {
        Ok(options) => options,
        Err(why) => {
            say(&why);
            return ExitCode::from(2);
        }
    };
    let good = if args.mutants {
        mutants::run_all(&args, &options)
    } else if args.minimise {
        minimise::smallest(&args, &options)
    } else if args.trace {
        trace(&args, &options)
    } else {
        batch(&args, &options)
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells the story of one seed.
fn trace(args: &Args, options: &Options) -> bool {
    let sink: Sink = Box::new(say);
    // The place of a panic belongs to the story.
    std::panic::set_hook(Box::new(|info| say(&info.to_string())));
    let outcome = run(options, Some(sink));
    say(&verdict(options, &outcome, args.mutant.as_deref()));
    outcome.violation.is_none()
}

fn verdict(options: &Options, outcome: &Outcome, mutant: Option<&str>) -> String {
    let seed = options.seed;
    let Some(violation) = &outcome.violation else {
        return format!(
            "seed {seed}: good ({} steps, {} ms)",
            outcome.steps,
            outcome.virtual_us / 1000
        );
    };
    format!(
        "seed {seed}: VIOLATION after {} ms, {}: {}\n  \
         replay: lockstep-sim {} --trace",
        violation.at_us / 1000,
        violation.checker,
        violation.what,
        arguments(options, mutant)
    )
}

/// What came of many seeds.
#[derive(Default, serde::Serialize)]
struct Totals {
    seeds: u64,
    violations: u64,
    steps: u64,
    virtual_seconds: u64,
    faults: BTreeMap<&'static str, u64>,
    coverage: Coverage,
    states: BTreeMap<String, u64>,
    #[serde(skip)]
    virtual_us: u64,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.violations += u64::from(outcome.violation.is_some());
        self.steps += outcome.steps;
        self.virtual_us += outcome.virtual_us;
        self.virtual_seconds = self.virtual_us / 1_000_000;
        self.coverage.add(&outcome.coverage);
        for (name, count) in &outcome.states {
            *self.states.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &outcome.faults {
            *self.faults.entry(name).or_default() += count;
        }
    }
}

fn batch(args: &Args, options: &Options) -> bool {
    let (first, count) = args.seed.map_or((args.first_seed, args.seeds), |seed| (seed, 1));
    let mut totals = Totals::default();
    for_each_seed(first, count, args.jobs(), options, |seed, outcome| {
        totals.add(outcome);
        if outcome.violation.is_some() {
            let options = Options { seed, ..options.clone() };
            say(&verdict(&options, outcome, args.mutant.as_deref()));
        }
        args.keep_going || outcome.violation.is_none()
    });
    if args.json {
        say(&serde_json::to_string(&totals).unwrap_or_default());
    } else {
        say(&format!(
            "{} seeds, {} steps, {} virtual seconds, {} violations",
            totals.seeds, totals.steps, totals.virtual_seconds, totals.violations
        ));
        say(&format!("faults: {:?}", totals.faults));
        say(&format!("{:?}", totals.coverage));
    }
    totals.violations == 0
}

/// Runs seeds on `jobs` threads, each world on one. Stops when `each` answers false.
fn for_each_seed(
    first: u64,
    count: u64,
    jobs: usize,
    options: &Options,
    mut each: impl FnMut(u64, &Outcome) -> bool,
) {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let (results, incoming) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (results, next, stop) = (results.clone(), &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = seed >= first.saturating_add(count);
                    let options = Options { seed, ..options.clone() };
                    if over || results.send((seed, run(&options, None))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(results);
        for (seed, outcome) in incoming {
            if !stop.load(Ordering::Relaxed) && !each(seed, &outcome) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}
