//! `lockstep-explore`: goes through every state that a small cluster can reach, with the real
//! machines of `lockstep-core`, and checks what `docs/protocol.md` promises in each.

use clap::Parser;
use lockstep_core::planted::{Bug, Planted};
use std::io::Write as _;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

mod act;
mod disk;
mod eye;
mod focus;
mod judge;
mod runs;
mod search;
mod spare;
mod story;
#[path = "../scenarios/words.rs"]
mod words;
mod world;

use runs::{MUTANTS, RUNS, Run};
use search::{Found, Plan};
use world::Setup;

/// Goes through every state of small clusters of Lockstep's real state machines.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Names of runs, `quick`, or `all`.
    #[arg(long, default_value = "quick", value_delimiter = ',')]
    run: Vec<String>,
    /// Print the runs and stop.
    #[arg(long)]
    list: bool,
    /// Plant this bug (a name from docs/protocol.md).
    #[arg(long)]
    mutant: Option<String>,
    /// Plant every bug that the model can express, each in the run that notices it.
    #[arg(long)]
    mutants: bool,
    /// States looked at at the same time; as many as there are processors if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// The table of states that were seen has two to the power of this many places of 8 bytes.
    #[arg(long, default_value_t = 24)]
    table_bits: u32,
    /// Give up after about so many states.
    #[arg(long, default_value_t = u64::MAX)]
    states: u64,
    /// Look for the shortest way to a violation; takes more memory.
    #[arg(long)]
    shortest: bool,
    /// Go through every order of steps, also where it makes no difference.
    #[arg(long)]
    full: bool,
    /// See that whatever follows one of two states that count as the same follows the other.
    #[arg(long)]
    compare: bool,
    /// Say on standard error every ten seconds how far it is.
    #[arg(long)]
    progress: bool,
    /// One line of JSON for each run, and one for all.
    #[arg(long)]
    json: bool,
    /// The table of docs/model.md.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// Writes a line to standard output; a reader that has gone away is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
}

fn planted(name: Option<&str>) -> Result<Planted, String> {
    let Some(name) = name else { return Ok(Planted::NONE) };
    let found = Bug::ALL.iter().find(|(_, n)| *n == name);
    found.map(|(bug, _)| Planted::with(*bug)).ok_or_else(|| format!("no bug is called {name}"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    search::catch_panics();
    let planted = match planted(args.mutant.as_deref()) {
        Ok(planted) => planted,
        Err(why) => {
            say(&why);
            return ExitCode::from(2);
        }
    };
    if args.mutants {
        return if mutants(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let is_meant = |run: &Run, name: &str| match name {
        "all" => true,
        "quick" => run.quick,
        name => run.name == name,
    };
    if let Some(name) = args.run.iter().find(|name| !RUNS.iter().any(|run| is_meant(run, name))) {
        say(&format!("no run is called {name}; see --list"));
        return ExitCode::from(2);
    }
    let wanted = |run: &&Run| args.run.iter().any(|name| is_meant(run, name));
    let runs: Vec<&Run> = RUNS.iter().filter(wanted).collect();
    if args.list {
        runs.iter().for_each(|run| say(&format!("{:21} {}", run.name, run.setup)));
        return ExitCode::SUCCESS;
    }
    if args.markdown {
        say("| Run | What there is, and what may happen | States | Transitions | Longest way |");
        say("|---|---|---|---|---|");
    }
    let mut totals = Totals::default();
    for run in runs {
        totals.add(&explore(run, planted, &args));
    }
    if args.json {
        say(&serde_json::to_string(&totals).unwrap_or_default());
    }
    if totals.good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What came of all runs.
#[derive(Default, serde::Serialize)]
struct Totals {
    runs: u64,
    complete: u64,
    states: u64,
    transitions: u64,
    violations: u64,
}

impl Totals {
    fn add(&mut self, found: &Found) {
        self.runs += 1;
        self.complete += u64::from(found.complete);
        self.states += found.states;
        self.transitions += found.transitions;
        self.violations += u64::from(found.violation.is_some());
    }

    fn good(&self) -> bool {
        self.violations == 0 && self.complete == self.runs
    }
}

/// Plants each bug that the model can express; all must be noticed.
fn mutants(args: &Args) -> bool {
    let mut killed = 0;
    for (bug, name) in MUTANTS {
        let Some(run) = RUNS.iter().find(|run| run.name == *name) else { continue };
        let called = Bug::ALL.iter().find(|(b, _)| b == bug).map_or("", |(_, n)| *n);
        let found = find(run, Planted::with(*bug), args);
        let outcome = match &found.violation {
            Some((what, way)) => format!("noticed after {} steps: {what}", way.len()),
            None => "SURVIVES".to_owned(),
        };
        killed += usize::from(found.violation.is_some());
        say(&format!("{called:20} {name:15} {:>9} states, {outcome}", found.states));
    }
    if args.json {
        say(&serde_json::json!({ "mutants": MUTANTS.len(), "killed": killed }).to_string());
    }
    killed == MUTANTS.len()
}

fn find(run: &Run, planted: Planted, args: &Args) -> Found {
    let setup = Setup { planted, full: args.full, ..run.setup };
    let available = || thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        jobs: args.jobs.unwrap_or_else(available).max(1),
        table_bits: args.table_bits,
        most: args.states,
        breadth_first: args.shortest,
        compare: args.compare,
        progress: args.progress,
    };
    match runs::start(&setup) {
        Ok(start) => search::search(start, plan),
        Err(what) => Found { violation: Some((what, Vec::new())), ..Found::default() },
    }
}

fn explore(run: &Run, planted: Planted, args: &Args) -> Found {
    let begun = Instant::now();
    let found = find(run, planted, args);
    report(run, &found, begun.elapsed().as_secs_f64(), args);
    if let Some((_, way)) = &found.violation {
        let setup = Setup { planted, full: args.full, ..run.setup };
        story::tell(&setup, way).iter().for_each(|line| say(line));
    }
    found
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn report(run: &Run, found: &Found, seconds: f64, args: &Args) {
    let violation = found.violation.as_ref().map(|(what, _)| what.as_str());
    let Found { states, transitions, depth, complete, .. } = found;
    if args.markdown {
        let outcome = match (violation, complete) {
            (Some(what), _) => format!(" **{what}**"),
            (None, true) => String::new(),
            (None, false) => " (cut short)".to_owned(),
        };
        let (states, transitions) = (grouped(*states), grouped(*transitions));
        return say(&format!(
            "| `{}` | {} | {states}{outcome} | {transitions} | {depth} |",
            run.name, run.setup
        ));
    }
    if args.json {
        let line = serde_json::json!({
            "run": run.name, "setup": run.setup.to_string(), "states": states,
            "transitions": transitions, "depth": depth, "complete": complete,
            "seconds": seconds, "compared": found.compared, "violation": violation,
        });
        return say(&line.to_string());
    }
    let outcome = match (violation, complete) {
        (Some(what), _) => format!("VIOLATION: {what}"),
        (None, true) => "complete, no violation".to_owned(),
        (None, false) => "cut short, no violation".to_owned(),
    };
    say(&format!(
        "{:21} {states:>12} states {transitions:>13} transitions, depth {depth:>4}, \
         {seconds:>7.1} s: {outcome}",
        run.name
    ));
}

#[cfg(test)]
mod tests;
