//! `lockstep-chaos`: five real daemons, each in a network namespace of its own, four volumes under
//! real clients, and faults that follow from a seed. At the end nothing acknowledged may be lost,
//! all copies must be the same bytes, and nothing may be left behind.
//!
//! The program starts itself once more in namespaces of its own for processes, mounts and network
//! ([`outer`]). Whatever happens to it, the kernel ends every process in them and undoes every
//! mount; so nothing that runs elsewhere on the machine is ever touched.

mod args;
mod board;
mod cluster;
mod files;
mod finish;
mod fio;
mod inject;
mod net;
mod node;
mod outer;
mod plan;
mod report;
mod run;
mod seat;
mod volume;
mod writer;

use std::process::ExitCode;

use clap::Parser as _;

use args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let outcome =
        if args.inside.is_some() { run::run(&args).await } else { outer::run(&args).await };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            board::say(&format!("lockstep-chaos: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
