//! The keeper as a command: `keeper --run-dir DIR [--detach | --stay]`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::server;

/// Is the keeper, as the arguments after `keeper` say, until it is not needed. With `--detach` it
/// starts one that outlives the caller, and returns when that listens; with `--stay` it also waits
/// when nothing is to be kept, for a service manager. `last_will` is what is done
/// at a shutdown of the node: it is told the run directory.
///
/// # Errors
/// A sentence for people: wrong arguments, or a directory that cannot be used.
pub fn command<F: Future<Output = ()>>(
    arguments: impl Iterator<Item = String>,
    last_will: impl FnOnce(PathBuf) -> F,
) -> Result<(), String> {
    let Told { run_dir, detached, stays } = understand(arguments)?;
    if detached {
        return server::detach(Path::new(OWN_PROGRAM), &run_dir).map_err(|error| error.to_string());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    let will = last_will(run_dir.clone());
    let served = runtime.block_on(server::run(&run_dir, stays, say, will));
    // What the last will could not finish must not keep the node from going down.
    runtime.shutdown_background();
    served.map_err(|error| format!("{}: {error}", run_dir.display()))
}

/// Tells whoever started this, if anybody.
fn say(line: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(line.as_bytes());
    let _ = output.flush();
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    run_dir: PathBuf,
    detached: bool,
    stays: bool,
}

fn understand(mut arguments: impl Iterator<Item = String>) -> Result<Told, String> {
    let (mut run_dir, mut detached, mut stays) = (None, false, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--run-dir" => run_dir = arguments.next(),
            "--detach" => detached = true,
            "--stay" => stays = true,
            other => return Err(format!("{other} is no argument; {USAGE}")),
        }
    }
    let run_dir = run_dir.ok_or(USAGE)?;
    if !Path::new(&run_dir).is_absolute() {
        return Err(format!("{run_dir} is not an absolute path; {USAGE}"));
    }
    if detached && stays {
        return Err(format!("--detach and --stay exclude each other; {USAGE}"));
    }
    Ok(Told { run_dir: run_dir.into(), detached, stays })
}

/// The program of the process that starts it: also when its file has been replaced meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";

const USAGE: &str = "usage: keeper --run-dir DIR [--detach | --stay]";

#[cfg(test)]
mod tests {
    use super::*;

    fn told(line: &str) -> Result<Told, String> {
        understand(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_understood() {
        let is = |detached, stays| Ok(Told { run_dir: "/run/x".into(), detached, stays });
        assert_eq!(told("--run-dir /run/x"), is(false, false));
        assert_eq!(told("--detach --run-dir /run/x"), is(true, false));
        assert_eq!(told("--run-dir /run/x --stay"), is(false, true));
        let both = "--run-dir /run/x --stay --detach";
        for line in ["", "--run-dir", "--detach", "--run-dir run/x", "--run-dir /run/x now", both] {
            assert!(told(line).is_err(), "{line}");
        }
    }
}
