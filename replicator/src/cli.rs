//! The command `lockstep`: a client of a daemon's admin API, for people and for scripts.

mod args;
mod attach;
mod connect;
mod explain;
mod failure;
mod json;
mod leave;
mod node;
mod output;
mod pod;
mod pods;
mod recover;
mod scrub;
mod snapshot;
mod status;
mod table;
mod volume;
mod whatif;
mod words;

pub use args::Args;
pub use failure::{EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_STATE, EXIT_UNAVAILABLE, EXIT_USAGE};

use std::process::ExitCode;

use lockstep_proto::v1;

use args::{Command, ExplainCommand, NodeCommand, VolumeCommand, WhatIfCommand};
use connect::Server;
use failure::Failure;
use output::Output;

/// Runs one command; what it prints goes to standard output, complaints to standard error.
pub async fn run(args: Args) -> ExitCode {
    let out = Output { json: args.json };
    match dispatch(args, &out).await {
        Ok(code) => code,
        Err(failure) => {
            out.complain(&failure);
            failure.exit_code()
        }
    }
}

async fn dispatch(args: Args, out: &Output) -> Result<ExitCode, Failure> {
    let server = Server::new(&args.server);
    match args.command {
        Command::Node { command } => match command {
            NodeCommand::List => node::list(&server, out).await?,
            NodeCommand::Show { name } => node::show(&server, out, name).await?,
            NodeCommand::Evacuate { name, undo, wait } => {
                leave::evacuate(&server, out, name, undo, wait).await?;
            }
            NodeCommand::ForgetPool { node, pool } => {
                leave::forget_pool(&server, out, node, pool).await?;
            }
            NodeCommand::Remove { name, force } => {
                leave::remove(&server, out, name, force).await?;
            }
        },
        Command::Volume { command } => match command {
            VolumeCommand::Create(wanted) => volume::create(&server, out, wanted).await?,
            VolumeCommand::List => volume::list(&server, out).await?,
            VolumeCommand::Show { name } => volume::show(&server, out, name).await?,
            VolumeCommand::Delete { name } => volume::delete(&server, out, name).await?,
            VolumeCommand::Set { name, repl, min_in_sync, max_iops, max_bandwidth } => {
                let max_bytes_per_s = max_bandwidth;
                let wanted =
                    v1::SetVolumeRequest { name, repl, min_in_sync, max_iops, max_bytes_per_s };
                volume::set(&server, out, wanted).await?;
            }
            VolumeCommand::Recover { name, replica, force, yes, acknowledge } => {
                let replica = replica.unwrap_or_default();
                let wanted = v1::RecoverVolumeRequest { name, replica, force, acknowledge };
                recover::recover(&server, out, wanted, yes).await?;
            }
            VolumeCommand::Scrub { name, wait } => {
                return scrub::scrub(&server, out, name, wait).await;
            }
            VolumeCommand::Resize { name, size } => {
                snapshot::resize(&server, out, name, size).await?;
            }
            VolumeCommand::AddReplica { name, node } => {
                volume::add_replica(&server, out, name, node).await?;
            }
        },
        Command::Explain { command } => match command {
            ExplainCommand::Volume { name } => explain::volume(&server, out, name).await?,
            ExplainCommand::Pod { name, namespace } => {
                pod::explain(&server, out, namespace.as_deref(), &name).await?;
            }
        },
        Command::WhatIf { command: WhatIfCommand::NodeDown { node, rate } } => {
            whatif::node_down(&server, out, node, rate).await?;
        }
        Command::Snapshot { command } => snapshot::run(&server, out, command).await?,
        Command::Attach(wanted) => attach::attach(&server, out, wanted).await?,
        Command::Detach { name, force } => attach::detach(&server, out, name, force).await?,
        Command::Demo(mut wanted) => {
            wanted.json = out.json;
            return Ok(crate::demo::main(wanted).await);
        }
        Command::Status { watch, interval_ms } => {
            status::status(&server, out, watch, interval_ms).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
