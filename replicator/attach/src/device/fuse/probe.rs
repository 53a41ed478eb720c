//! What this kernel has for the door.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::device::{Kind, Probe};

/// `LOOP_CONFIGURE`.
const NEEDED: (u32, u32) = (5, 8);
/// `FUSE_NOTIFY_RESEND`.
const RESEND: (u32, u32) = (6, 9);

pub(crate) fn probe() -> Probe {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let missing = [("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")]
        .into_iter()
        .find_map(|(device, module)| missing(Path::new(device), module));
    judge(release.trim(), missing)
}

/// Why a control device cannot be had, if it cannot. Loads its module if that is all.
fn missing(device: &Path, module: &str) -> Option<String> {
    let open = || OpenOptions::new().read(true).write(true).open(device);
    if open().is_err() {
        // Where there are no modules there is no such program either; the second try tells.
        let mut load = Command::new("modprobe");
        let load = load.arg(module).stdin(Stdio::null()).stdout(Stdio::null());
        let _ = load.stderr(Stdio::null()).status();
    }
    open().err().map(|error| format!("{}: {error}; load the module {module}", device.display()))
}

/// The verdict, from what `uname -r` says and what is missing.
fn judge(release: &str, missing: Option<String>) -> Probe {
    let version = version(release);
    let restartable = version >= Some(RESEND);
    let wrong = match version {
        None => Some(format!("{release} is no version of Linux")),
        Some(version) if version < NEEDED => {
            Some(format!("it takes Linux 5.8 or newer, and this is {release}"))
        }
        Some(_) => missing,
    };
    let good = if restartable {
        "fuse and loop are there; a daemon that is replaced is a pause"
    } else {
        "fuse and loop are there; a daemon that dies is an error to the device: before Linux 6.9 \
         it cannot be taken over"
    };
    let usable = wrong.is_none();
    let why = wrong.unwrap_or_else(|| good.to_owned());
    Probe { kind: Kind::Fuse, usable, why, restartable: usable && restartable }
}

/// Major and minor version.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged() {
        let tried = |release: &str| {
            let probe = judge(release, None);
            (probe.usable, probe.restartable)
        };
        assert_eq!(tried("6.12.95+deb12-cloud-amd64"), (true, true));
        assert_eq!(tried("6.9.0-rc1"), (true, true));
        assert_eq!(tried("6.1.0-55-cloud-amd64"), (true, false));
        assert_eq!(tried("5.8"), (true, false));
        assert_eq!(tried("4.19.0"), (false, false));
        assert_eq!(tried("unknown"), (false, false));
        let without = judge("6.12.1", Some("no loop".to_owned()));
        assert!(!without.usable && !without.restartable && without.why == "no loop");
    }
}
