//! `lockstep-floor`: the simplest replicator there can be, which the benchmark compares with. A
//! door speaks NBD and forwards each write to one process per copy; each writes it to its file past
//! the page cache. No checksums, no metadata, no order, no handling of failures: nobody should keep
//! data in it. Without copies elsewhere it is a single local file behind the same door.

mod copies;
mod door;
mod file;
mod wire;
mod workers;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use file::DirectFile;

/// The simplest replicator there can be. For benchmarks only.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keeps a copy in a file, for one door; prints its port of 127.0.0.1.
    Copy {
        /// Made if it is missing.
        file: PathBuf,
        /// Size of the file.
        size_bytes: u64,
    },
    /// Serves an NBD export, of any name, on a unix socket, to one client at a time.
    Door {
        /// Made; must not be there.
        socket: PathBuf,
        /// The local file: all reads come from it, and without ports all writes go to it.
        file: PathBuf,
        /// Size of the file.
        size_bytes: u64,
        /// Ports of 127.0.0.1 of the copies, that of the local file among them.
        ports: Vec<u16>,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Copy { file, size_bytes } => copy(&file, size_bytes),
        Command::Door { socket, file, size_bytes, ports } => {
            door(&socket, &file, size_bytes, &ports)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "lockstep-floor: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn copy(file: &Path, size_bytes: u64) -> anyhow::Result<()> {
    let file = Arc::new(DirectFile::open(file, size_bytes)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port on 127.0.0.1")?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    let (stream, _) = listener.accept()?;
    workers::serve_copy(stream, file)
}

fn door(socket: &Path, file: &Path, size_bytes: u64, ports: &[u16]) -> anyhow::Result<()> {
    let file = Arc::new(DirectFile::open(file, size_bytes)?);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}; is it there?", socket.display()))?;
    door::serve(listener, file, ports)
}
