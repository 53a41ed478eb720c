//! The command `lockstep`.

use std::process::ExitCode;

use clap::Parser as _;
use lockstep_replicator::cli;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(args)),
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            ExitCode::from(cli::EXIT_FAILURE)
        }
    }
}
