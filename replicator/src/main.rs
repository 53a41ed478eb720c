//! The daemon `lockstepd`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use lockstep_attach::device::fuse::{BINDER, bind};
use lockstep_attach::keeper;
use lockstep_kernel::memory;
use lockstep_replicator::config::{Config, Flags};
use lockstep_replicator::devices::{self, MOUNTER};
use lockstep_replicator::{daemon, logging};

/// Heaps of the allocator. Buffers of 1 MiB go from the network's threads to the disks': with the
/// allocator's own limit, 32 for four processors, a busy daemon held two to three times as much
/// memory, and was no faster.
const HEAPS: u8 = 2;
/// The configuration is wrong.
const EXIT_CONFIG: u8 = 2;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).peekable();
    if words.peek().is_some_and(|word| word == MOUNTER) {
        return mounter();
    }
    if words.peek().is_some_and(|word| word == BINDER) {
        return binder();
    }
    if words.next_if(|word| word == "keeper").is_some() {
        return keep(words);
    }
    let flags = Flags::parse();
    let config = match Config::load(&flags, &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if flags.check_config {
        complain(&format!("the configuration is good:\n{config:#?}"));
        return ExitCode::SUCCESS;
    }
    logging::start(config.log_format, &config.log_level);
    die_on_panic();
    hold_memory();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(daemon::run(config));
    // A disk that hangs must not keep a daemon that is done.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Binds a loop device for the daemon that started this process.
fn binder() -> ExitCode {
    match bind() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{BINDER}: {error}; it is for the daemon itself"));
            ExitCode::FAILURE
        }
    }
}

/// Keeps open files for the daemons of this node, one after the other.
fn keep(words: impl Iterator<Item = String>) -> ExitCode {
    let last_will = |run_dir: PathBuf| async move { devices::end_all(&run_dir).await };
    match keeper::command(words, last_will) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            complain(&why);
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Mounts for the daemon that started this process.
fn mounter() -> ExitCode {
    match devices::serve_mounter() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{MOUNTER}: {error}; it is for the daemon itself"));
            ExitCode::FAILURE
        }
    }
}

/// Says something to the person at the terminal, before there are logs.
fn complain(text: &str) {
    // Nobody is left to hear it if this fails.
    let _ = writeln!(std::io::stderr().lock(), "lockstepd: {text}");
}

/// When memory is full of pages that wait to be written through this daemon's devices, the daemon
/// must not wait for memory itself. Inherited by the threads that are started later.
fn hold_memory() {
    if !memory::limit_heaps(HEAPS) {
        tracing::debug!("the allocator has no limit of heaps");
    }
    if let Err(error) = memory::lock_memory() {
        tracing::info!(%error, "cannot keep the daemon's memory from being swapped out");
    }
    if let Err(error) = memory::never_kill_for_memory() {
        tracing::info!(%error, "cannot keep the daemon from being killed when memory is short");
    }
    if let Err(error) = memory::become_io_flusher() {
        tracing::info!(%error, "cannot tell the kernel that this daemon writes back for others");
    }
}

/// A broken invariant in one task must not leave a half-dead daemon that others wait for: its
/// peers handle a dead one.
fn die_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::abort();
    }));
}
