//! `lockstep-vm`: what the tests in virtual machines need and no tool has. Each is a subcommand.

mod aligned;
mod disk;
mod door;
mod exercise;
mod files;
mod pattern;
mod probe;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Programs for tests of devices and file systems in virtual machines.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Random operations on a file, compared with a model of it.
    Exercise(exercise::Args),
    /// Writes files and tells of each that is durable, until it is stopped.
    Files(files::Args),
    /// Compares files with what was told of them.
    Check(files::CheckArgs),
    /// Writes one block again and again, and prints when.
    Probe(probe::Args),
    /// Serves a disk over NBD that loses what was not flushed.
    Disk(disk::Args),
    /// Takes devices of one door through all that a daemon can do to them.
    Door(door::Args),
}

/// Prints a line, also when nobody reads it any more.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Exercise(args) => exercise::run(&args),
        Command::Files(args) => files::run(&args),
        Command::Check(args) => files::check(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Disk(args) => disk::run(&args),
        Command::Door(args) => door::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("lockstep-vm: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
