//! `lockstep demo`: shows on one machine that a volume survives the death of the daemon that serves
//! it, and proves it by comparing every block with what was acknowledged.

mod args;
mod cluster;
pub mod content;
pub mod control;
mod files;
mod janitor;
pub mod ledger;
mod report;
mod screen;
mod story;
pub mod verify;
mod watch;
pub mod workload;

pub use args::DemoArgs;
pub use report::DemoReport;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use rand::RngExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::{EXIT_STATE, EXIT_USAGE};
use cluster::{Cluster, Place};
use screen::Screen;
use story::Story;
use workload::Progress;

/// Runs the demonstration and says what came of it. Success only if everything is as it must be.
pub async fn main(args: DemoArgs) -> ExitCode {
    let json = args.json;
    if let Err(error) = args.check() {
        return fail(&error, json, ExitCode::from(EXIT_USAGE));
    }
    if let Err(error) = args.check_machine() {
        return fail(&error, json, ExitCode::from(EXIT_STATE));
    }
    let outcome = match (&args.janitor, &args.daemon) {
        (Some(dir), Some(daemon)) => {
            let cleaned = janitor::serve(dir, daemon).await;
            return if cleaned.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        _ => run(args).await,
    };
    match outcome {
        Ok(report) => {
            if json {
                say(std::io::stderr(), report.words().trim_end());
                say(std::io::stdout(), &serde_json::to_string(&report).unwrap_or_default());
            } else {
                say(std::io::stdout(), report.words().trim_end());
            }
            if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(interrupted) => fail(&error, json, interrupted.exit_code()),
            None => fail(&error, json, ExitCode::FAILURE),
        },
    }
}

/// Says why it did not come to its end.
fn fail(error: &anyhow::Error, json: bool, code: ExitCode) -> ExitCode {
    say(std::io::stderr(), &format!("lockstep demo: {error:#}"));
    if json {
        let line = serde_json::json!({ "ok": false, "error": format!("{error:#}") });
        say(std::io::stdout(), &line.to_string());
    }
    code
}

/// Nobody is left to hear it if writing fails.
fn say(mut to: impl std::io::Write, words: &str) {
    let _ = writeln!(to, "{words}");
}

/// Runs the demonstration. Whatever happens, its processes have ended and, unless kept, its files
/// are gone when this returns.
///
/// # Errors
/// Bad arguments, and whatever kept the demonstration from its end. A volume that is not as it must
/// be is no error but told in the report.
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
    if let Err(error) = &cleaned {
        screen.say(&format!("{error:#}"));
    }
    let mut report = outcome?;
    cleaned?;
    report.ok = report.complaints().is_empty();
    Ok(report)
}

/// The demonstration was asked to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
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
