//! `lockstep demo`: shows on one machine that a volume survives the death of the daemon that serves
//! it, and proves it by comparing every block with what was acknowledged.

mod args;
mod cluster;
mod content;
mod control;
mod janitor;
mod ledger;
mod report;
mod screen;
mod story;
mod verify;
mod watch;
mod workload;

pub use args::DemoArgs;
pub use report::DemoReport;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use rand::RngExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use cluster::{Cluster, Place};
use screen::Screen;
use story::Story;
use workload::Progress;

/// Runs the demonstration and says what came of it. Success only if everything is as it must be.
pub async fn main(args: DemoArgs) -> ExitCode {
    let (json, keep) = (args.json, args.keep);
    let outcome = match (&args.janitor, &args.daemon) {
        (Some(dir), Some(daemon)) => {
            let cleaned = janitor::serve(dir, daemon).await;
            return if cleaned.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        _ => run(args).await,
    };
    let mut aside = std::io::stderr().lock();
    match outcome {
        // Nobody is left to hear it if writing fails.
        Ok(report) => {
            let _ = match json {
                true => write!(aside, "{}", report.words()),
                false => write!(std::io::stdout().lock(), "{}", report.words()),
            };
            if json && let Ok(line) = serde_json::to_string(&report) {
                let _ = writeln!(std::io::stdout().lock(), "{line}");
            }
            if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(aside, "lockstep demo: {error:#}");
            if !keep {
                let _ = writeln!(aside, "--keep leaves the daemons' data and logs to look at");
            }
            error.downcast_ref::<Interrupted>().map_or(ExitCode::FAILURE, |i| i.exit_code())
        }
    }
}

/// Runs the demonstration. Whatever happens, its processes have ended and, unless kept, its files
/// are gone when this returns.
///
/// # Errors
/// Whatever kept the demonstration from its end. A volume that is not as it must be is no error but
/// told in the report.
pub async fn run(args: DemoArgs) -> anyhow::Result<DemoReport> {
    args.check()?;
    let mut stop = Stop::listen()?;
    let seed = args.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let progress = Arc::new(Progress::default());
    let screen = Screen::new(args.json, Arc::clone(&progress));
    let place = Place::choose(args.dir.as_deref())?;
    let (dir, keep) = (place.dir.clone(), args.keep);
    let mut janitor = Cluster::janitor(&place).await?;
    if keep {
        janitor.keep_dir().await?;
    }
    let outcome = tokio::select! {
        outcome = async { Story::new(args, place, seed, screen.clone(), progress)?.tell().await } =>
            outcome,
        signal = stop.wait() => Err(Interrupted { signal }.into()),
    };
    screen.clear();
    let cleaned = janitor.finish().await;
    if keep {
        screen.say(&format!("kept: {}", dir.display()));
    }
    let mut report = outcome?;
    cleaned?;
    report.ok = report.complaints().is_empty();
    Ok(report)
}

/// The demonstration was asked to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; everything was cleaned up")]
struct Interrupted {
    signal: u8,
}

impl Interrupted {
    fn exit_code(&self) -> ExitCode {
        ExitCode::from(128 + self.signal)
    }
}

/// The signals that ask for the end.
struct Stop {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Returns the number of the signal that came.
    async fn wait(&mut self) -> u8 {
        tokio::select! {
            _ = self.hangup.recv() => 1,
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}
