//! Serves memory, or a file, as a block device through any door: to try doors and to measure them.
//!
//! `device-memory --door ublk|nbd|fuse --size BYTES [--file PATH | --null] [--queues N]
//! [--read-only] [--write-through] [--name NAME] [--token FILE] [--resume FILE] [--run-dir DIR]
//! [--delay-us N]`
//!
//! - Prints the path of the device once it serves. `--token` is where it writes what another such
//!   process needs to take the device over with `--resume`.
//! - `--file` keeps the content in a file, which another process can go on with.
//! - `--null` keeps nothing and does everything at once, so that only the door costs anything.
//! - SIGTERM closes the device, SIGUSR1 releases it; both end the process, with status 0 if that
//!   went well.
//! - On standard input it takes lines: `close`, `release`, `fail`, `resize BYTES`, `counts`, `hold`
//!   (requests wait) and `go`. Each is answered with a line.
//! - `device-memory keeper --run-dir DIR` is a keeper, as `lockstepd keeper` is one.

mod backend;
mod options;

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use backend::{Place, TestBackend};
use lockstep_attach::device::fuse::{BINDER, FuseDoor, bind};
use lockstep_attach::device::nbd::{NbdDoor, NbdOptions};
use lockstep_attach::device::ublk::UblkDoor;
use lockstep_attach::device::{Device, Door, Kind, Shape, Token};
use lockstep_attach::keeper::{self, KeeperClient};
use options::Options;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::signal::unix::{SignalKind, signal};

/// This program, also when its file has been replaced meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    let outcome = if arguments.next_if(|first| first == BINDER).is_some() {
        bind().map_err(Into::into)
    } else if arguments.next_if(|first| first == "keeper").is_some() {
        keeper::command(arguments, |_| std::future::ready(())).map_err(Into::into)
    } else {
        Options::parse(arguments).map_err(Into::into).and_then(|options| serve(&options))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "device-memory: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Outcome<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let outcome = runtime.block_on(run(options));
    // Somebody may still be waiting for a line of standard input, which has no end.
    runtime.shutdown_background();
    outcome
}

async fn run(options: &Options) -> Outcome<()> {
    let place = match &options.file {
        Some(file) => Place::File(file),
        None if options.null => Place::Null,
        None => Place::Memory,
    };
    let backend = Arc::new(TestBackend::new(options.size_bytes, &place, options.delay)?);
    let device = open(options, &backend).await?;
    if let Some(path) = &options.token {
        // Whole or not at all: it is read by others at any moment.
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(device.token())?)?;
        std::fs::rename(new, path)?;
    }
    say(&device.path().display().to_string());
    let mut term = signal(SignalKind::terminate())?;
    let mut usr1 = signal(SignalKind::user_defined1())?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut listening = true;
    loop {
        let line = tokio::select! {
            _ = term.recv() => "close".to_owned(),
            _ = usr1.recv() => "release".to_owned(),
            line = lines.next_line(), if listening => match line? {
                Some(line) => line,
                None => {
                    listening = false;
                    continue;
                }
            },
        };
        if obey(&line, device.as_ref(), &backend).await? {
            return Ok(());
        }
    }
}

async fn open(options: &Options, backend: &Arc<TestBackend>) -> Outcome<Box<dyn Device>> {
    let door: Box<dyn Door<TestBackend>> = match options.door {
        Kind::Fuse => {
            let keeper = KeeperClient::new(&options.run_dir, Some(OWN_PROGRAM.into()));
            Box::new(FuseDoor::new(options.run_dir.clone(), keeper, OWN_PROGRAM.into()))
        }
        Kind::Ublk => Box::new(UblkDoor::new("device-memory")),
        Kind::Nbd => Box::new(NbdDoor::new(NbdOptions::default())),
    };
    let probe = door.probe();
    if !probe.usable {
        return Err(format!("the {} door cannot be had: {}", options.door, probe.why).into());
    }
    if let Some(path) = &options.resume {
        let token: Token = serde_json::from_slice(&std::fs::read(path)?)?;
        return Ok(door.resume(token, Arc::clone(backend)).await?);
    }
    let shape = Shape {
        name: options.name.clone(),
        size_bytes: options.size_bytes,
        read_only: options.read_only,
        write_through: options.write_through,
        queues: options.queues,
    };
    Ok(door.open(shape, Arc::clone(backend)).await?)
}

/// Does what a line says. Returns whether that was the last thing to do.
async fn obey(line: &str, device: &dyn Device, backend: &TestBackend) -> Outcome<bool> {
    let mut words = line.split_whitespace();
    match words.next() {
        Some("close") => match device.close().await {
            Ok(()) => return Ok(true),
            Err(error) => say(&error.to_string()),
        },
        Some("release") => {
            device.release().await;
            return Ok(true);
        }
        Some("fail") => {
            device.fail().await;
            say("failed");
        }
        Some("resize") => {
            let size_bytes = words.next().ok_or("resize BYTES")?.parse()?;
            backend.resize(size_bytes)?;
            match device.resize(size_bytes).await {
                Ok(()) => say("resized"),
                Err(error) => say(&error.to_string()),
            }
        }
        Some("counts") => say(&backend.counts()),
        Some("hold") => {
            backend.hold(true);
            say("holding");
        }
        Some("go") => {
            backend.hold(false);
            say("going");
        }
        _ => say("close, release, fail, resize BYTES, counts, hold, go"),
    }
    Ok(false)
}

fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{line}");
    let _ = output.flush();
}
