//! Who uses a device, as far as it can be told: for messages.
//!
//! Files of others are never opened or asked for here, only links read: a file system whose device
//! does not answer must not hold up who asks about it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::table;

/// How many users a message names.
const NAMED_MAX: usize = 4;

/// Somebody who uses a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// It is mounted here.
    Mount(PathBuf),
    /// It is mounted where this process does not see it, but the one of this number does.
    Elsewhere(PathBuf, u32),
    /// The kernel swaps to it.
    Swap,
    /// Another device stands on it, such as one of the device mapper.
    Holder(String),
    /// A process has it open, or a file on it, or works in a directory on it.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
        /// What it has open.
        what: PathBuf,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(dir) => write!(f, "it is mounted at {}", dir.display()),
            Self::Elsewhere(dir, pid) => {
                write!(f, "it is mounted at {} where process {pid} runs", dir.display())
            }
            Self::Swap => f.write_str("it is swap space"),
            Self::Holder(name) => write!(f, "the device {name} is on it"),
            Self::Process { pid, name, what } => {
                write!(f, "process {pid} ({name}) uses {}", what.display())
            }
        }
    }
}

/// Major and minor number of a block device; none if it is not there.
pub(super) fn number(device: &Path) -> Option<(u64, u64)> {
    let facts = fs::metadata(device).ok().filter(|facts| facts.file_type().is_block_device())?;
    Some((major(facts.rdev()), minor(facts.rdev())))
}

/// All who use a device, or a file system on it. A process counts if it has the device open; one
/// that uses a file on it is known by the mount.
#[must_use]
pub fn users(device: &Path) -> Vec<User> {
    let Some(number) = number(device) else { return Vec::new() };
    let mut found = Vec::new();
    let here = table::mounts().unwrap_or_default();
    let on_it = here.iter().filter(|mount| mount.device == number);
    found.extend(on_it.map(|mount| User::Mount(mount.dir.clone())));
    if found.is_empty() {
        found.extend(elsewhere(number));
    }
    if is_swap(number) {
        found.push(User::Swap);
    }
    found.extend(holders(number));
    let real = fs::canonicalize(device).unwrap_or_else(|_| device.to_owned());
    found.extend(processes(|path| path == real));
    found
}

/// All who use a file or a directory below `dir`, which may be a mount.
pub(super) fn users_below(dir: &Path) -> Vec<User> {
    let here = table::mounts().unwrap_or_default();
    let below = here.iter().filter(|mount| mount.dir != dir && mount.dir.starts_with(dir));
    let mut found: Vec<_> = below.map(|mount| User::Mount(mount.dir.clone())).collect();
    found.extend(processes(|path| path.starts_with(dir)));
    found
}

/// As many of them as a message can hold.
pub(super) fn words(users: &[User]) -> String {
    let mut words: Vec<_> = users.iter().take(NAMED_MAX).map(User::to_string).collect();
    match users.len().saturating_sub(NAMED_MAX) {
        0 if words.is_empty() => "it cannot be told by whom".to_owned(),
        0 => words.join(", "),
        more => {
            words.push(format!("and {more} more"));
            words.join(", ")
        }
    }
}

fn is_swap(wanted: (u64, u64)) -> bool {
    let text = fs::read("/proc/swaps").unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let mut names = lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    names.any(|name| {
        let name = table::plain(name);
        number(Path::new(std::ffi::OsStr::from_bytes(&name))) == Some(wanted)
    })
}

fn holders((major, minor): (u64, u64)) -> Vec<User> {
    let dir = format!("/sys/dev/block/{major}:{minor}/holders");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| User::Holder(entry.file_name().to_string_lossy().into_owned())).collect()
}

/// The numbers of all processes.
fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Mounts in namespaces that this process is not in.
fn elsewhere(number: (u64, u64)) -> Vec<User> {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut seen: BTreeSet<_> = space("self").into_iter().collect();
    let mut found = Vec::new();
    for pid in pids() {
        if space(&pid.to_string()).is_some_and(|space| seen.insert(space)) {
            let table = format!("/proc/{pid}/mountinfo");
            let mounts = table::read(Path::new(&table)).unwrap_or_default();
            let mut on_it = mounts.into_iter().filter(|mount| mount.device == number);
            found.extend(on_it.next().map(|mount| User::Elsewhere(mount.dir, pid)));
        }
    }
    found
}

/// Processes that use a path of this kind, each with the first one.
fn processes(is_wanted: impl Fn(&Path) -> bool) -> Vec<User> {
    let mut found = Vec::new();
    for pid in pids() {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let open = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
        let mapped = fs::read_dir(dir.join("map_files")).into_iter().flatten().flatten();
        let own = ["cwd", "root", "exe"].iter().map(|name| dir.join(name));
        let links = own.chain(open.chain(mapped).map(|entry| entry.path()));
        let mut used = links.filter_map(|link| fs::read_link(link).ok());
        if let Some(what) = used.find(|path| is_wanted(path)) {
            let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push(User::Process { pid, name: name.trim_end().to_owned(), what });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_the_files_it_has_open() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        assert_eq!(users_below(&dir), []);
        let _open = fs::File::create(dir.join("file")).unwrap();
        let found = users_below(&dir);
        let [User::Process { pid, what, .. }] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((*pid, what.as_path()), (std::process::id(), dir.join("file").as_path()));
        assert!(words(&found).contains("/file"), "{}", words(&found));
    }

    #[test]
    fn a_message_names_a_few() {
        let swaps = vec![User::Swap; NAMED_MAX + 2];
        assert!(words(&swaps).ends_with("and 2 more"));
        assert_eq!(words(&swaps[..1]), "it is swap space");
        assert!(!words(&[]).is_empty());
    }

    #[test]
    fn what_is_no_block_device_is_used_by_nobody() {
        assert_eq!(users(Path::new("/dev/null")), []);
        assert_eq!(users(Path::new("/nowhere")), []);
    }
}
