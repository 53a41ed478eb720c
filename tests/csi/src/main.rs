//! `lockstep-csi-torture`: three daemons with a CSI driver each, a controller, and a client that
//! makes, stages, publishes, writes, reads, enlarges, snapshots, clones and removes volumes in
//! random order; calls come several at once, and drivers and daemons are killed in their midst.
//! What was written and acknowledged must be read again, also from what was made of a snapshot that
//! was asked for later; every call must come to its end, and nothing may be left.

mod calls;
mod data;
mod faults;
mod leaks;
mod model;
mod ops;
mod outer;
mod process;
mod world;

use clap::Parser as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// What a test ends with that cannot run here.
const SKIPPED: u8 = 77;
/// So many violations are enough.
const ENOUGH: usize = 5;

/// CSI calls in random order, with kills, an oracle and a leak check. Needs root.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "lockstep-csi-torture", version)]
struct Args {
    /// Which order, and which faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many operations
    #[arg(long, default_value_t = 200)]
    ops: u32,
    /// No chance: a node that has a volume dies, and another one asks for a volume that is in use.
    /// Tells how long that takes
    #[arg(long)]
    handover: bool,
    /// The last line of standard output is one JSON object
    #[arg(long)]
    json: bool,
    /// Print each operation
    #[arg(long)]
    verbose: bool,
    /// Keep the directory with data and logs also if all is well
    #[arg(long)]
    keep: bool,
    /// Given by the program to itself
    #[arg(long, hide = true)]
    stage: Option<Stage>,
    /// Given by the program to itself: the directory with data and logs
    #[arg(long, hide = true)]
    dir: Option<PathBuf>,
}

/// The program starts itself several times; see [`outer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    Outside,
    First,
    Player,
}

impl Stage {
    /// How to start it.
    fn flag(self) -> String {
        format!("--stage={self:?}").to_lowercase()
    }
}

#[expect(clippy::print_stdout, reason = "it is a program")]
fn say(line: &str) {
    println!("{line}");
}

fn main() -> ExitCode {
    let args = Args::parse();
    let dir = args.dir.clone().unwrap_or_default();
    let outcome = match args.stage {
        None => outer::enter(),
        Some(Stage::Outside) => wait_for(outer::run(&args)),
        Some(Stage::First) => outer::first(&dir),
        Some(Stage::Player) => wait_for(run(&args, &dir)),
    };
    outcome.unwrap_or_else(|error| {
        say(&format!("lockstep-csi-torture: {error:#}"));
        ExitCode::FAILURE
    })
}

fn wait_for<T>(what: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Runtime::new()?.block_on(what)
}

/// Where the programs are: beside this one.
fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().map(PathBuf::from).unwrap_or_default())
}

async fn run(args: &Args, dir: &Path) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    let world = world::World::start(dir, &programs()?).await?;
    let rng = SmallRng::seed_from_u64(args.seed);
    let mut run = ops::Run::new(world, rng, args.verbose);
    let outcome = if args.handover {
        run.scene().await
    } else {
        play(&mut run, args.ops).await.map(|()| String::new())
    };
    if let Err(error) = &outcome {
        run.violation(&format!("{error:#}"));
    }
    run.world.stop().await;
    for left in leaks::of(dir) {
        run.violation(&format!("left when all had ended: {left}"));
    }
    let bad = run.violations.len();
    match outcome {
        Ok(words) if args.handover => say(&format!("{words}; {bad} violations")),
        _ => tell(args, &run.told, bad, begin.elapsed().as_secs()),
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(args: &Args, told: &ops::Told, bad: usize, seconds: u64) {
    say(&format!(
        "seed {}: {} operations on {} volumes ({} of them clones) and {} snapshots in {seconds} s, \
         {} expansions, {} kills, {} calls at once, {} hand-overs (the longest {} ms), {bad} \
         violations",
        args.seed,
        told.operations,
        told.volumes,
        told.clones,
        told.snapshots,
        told.expansions,
        told.kills,
        told.at_once,
        told.handovers,
        told.longest_handover_ms,
    ));
    if args.json {
        say(&format!(
            "{{\"seed\":{},\"operations\":{},\"volumes\":{},\"clones\":{},\"snapshots\":{},\
             \"expansions\":{},\"kills\":{},\"at_once\":{},\"handovers\":{},\
             \"longest_handover_ms\":{},\"violations\":{bad}}}",
            args.seed,
            told.operations,
            told.volumes,
            told.clones,
            told.snapshots,
            told.expansions,
            told.kills,
            told.at_once,
            told.handovers,
            told.longest_handover_ms,
        ));
    }
}

async fn play(run: &mut ops::Run, operations: u32) -> anyhow::Result<()> {
    for _ in 0..operations {
        run.one().await?;
        if run.violations.len() >= ENOUGH {
            break;
        }
    }
    run.remove_all().await?;
    run.nothing_left().await
}
