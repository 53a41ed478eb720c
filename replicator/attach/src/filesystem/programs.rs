//! Programs of others: found, run, and what they said.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{FileSystemError, failed};

/// Longest end of what a program said that is told, in characters.
const SAID_CHARS_MAX: usize = 400;
/// Where programs for administrators are, beyond the search path of whoever started us.
const ALSO: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// A program.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    package: &'static str,
}

impl Program {
    fn file(&self) -> Result<PathBuf, FileSystemError> {
        let Self { name: program, package } = *self;
        let found = find(program, std::env::var_os("PATH").as_deref());
        found.ok_or(FileSystemError::Missing { program, package })
    }
}

pub(super) const BLKID: Program = Program { name: "blkid", package: "util-linux" };
pub(super) const MKFS_EXT4: Program = Program { name: "mkfs.ext4", package: "e2fsprogs" };
pub(super) const MKFS_XFS: Program = Program { name: "mkfs.xfs", package: "xfsprogs" };
pub(super) const E2FSCK: Program = Program { name: "e2fsck", package: "e2fsprogs" };
pub(super) const XFS_REPAIR: Program = Program { name: "xfs_repair", package: "xfsprogs" };
pub(super) const XFS_LOGPRINT: Program = Program { name: "xfs_logprint", package: "xfsprogs" };

pub(super) const RESIZE2FS: Program = Program { name: "resize2fs", package: "e2fsprogs" };
pub(super) const XFS_GROWFS: Program = Program { name: "xfs_growfs", package: "xfsprogs" };

/// How a program ended.
#[derive(Debug)]
pub(super) struct Ended {
    program: &'static str,
    device: PathBuf,
    /// Its exit status; none if a signal ended it.
    pub(super) code: Option<i32>,
    status: String,
    /// What it wrote to standard output.
    pub(super) output: String,
    /// The end of what it said, in one line.
    pub(super) said: String,
}

impl Ended {
    /// It must have ended well.
    pub(super) fn success(self) -> Result<(), FileSystemError> {
        if self.code == Some(0) {
            return Ok(());
        }
        Err(self.failed())
    }

    /// As an error.
    pub(super) fn failed(self) -> FileSystemError {
        let Self { program, device, status, said, .. } = self;
        FileSystemError::Failed { program, device, status, said }
    }
}

/// The file of a program, in the directories of `path` and those of administrators.
fn find(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let path = path.map(OsStr::as_bytes).unwrap_or_default();
    let listed = path.split(|byte| *byte == b':').filter(|dir| !dir.is_empty());
    let listed = listed.map(|dir| Path::new(OsStr::from_bytes(dir)));
    let is_program = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    listed.chain(ALSO.iter().map(Path::new)).map(|dir| dir.join(name)).find(is_program)
}

/// Runs a program on a device and returns how it ended.
pub(super) fn run(
    program: &Program,
    options: &[&str],
    more: &[&str],
    device: &Path,
) -> Result<Ended, FileSystemError> {
    let name = program.name;
    let file = program.file()?;
    let output = Command::new(&file)
        .args(options)
        .args(more)
        .arg(device)
        .env("LC_ALL", "C")
        // Else questions would be asked of whoever started us.
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed("cannot run", &file, e))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    Ok(Ended {
        program: name,
        device: device.to_owned(),
        code: output.status.code(),
        status: output.status.to_string(),
        said: last_words(if stderr.trim().is_empty() { &stdout } else { &stderr }),
        output: stdout,
    })
}

/// The first bytes, `len_max` at most, of what a program tells of a device. It does not live to
/// tell more.
pub(super) fn first_words(
    program: &Program,
    options: &[&str],
    device: &Path,
    len_max: u64,
) -> Result<String, FileSystemError> {
    let file = program.file()?;
    let mut child = Command::new(&file)
        .args(options)
        .arg(device)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed("cannot run", &file, e))?;
    let mut told = Vec::new();
    let read = child.stdout.take().map_or(Ok(0), |out| out.take(len_max).read_to_end(&mut told));
    // It has ended by itself, or waits for somebody to read on.
    let _ = child.kill();
    let ended = child.wait();
    read.and(ended).map_err(|e| failed("cannot run", &file, e))?;
    Ok(String::from_utf8_lossy(&told).into_owned())
}

/// The end of what was said, in one line.
fn last_words(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.join("; ");
    let over = line.chars().count().saturating_sub(SAID_CHARS_MAX);
    match over {
        0 if line.is_empty() => "it said nothing".to_owned(),
        0 => line,
        _ => format!("…{}", line.chars().skip(over).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_search_path_and_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mkfs.none");
        std::fs::write(&file, "").unwrap();
        let path = format!("/nowhere::{}", dir.path().display());
        assert_eq!(find("mkfs.none", Some(path.as_ref())), None, "it cannot be run");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("mkfs.none", Some(path.as_ref())), Some(file));
        assert_eq!(find("mkfs.none", None), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let nothing = Program { name: "mkfs.none", package: "nonefsprogs" };
        let error = run(&nothing, &[], &[], Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("mkfs.none") && error.contains("nonefsprogs"), "{error}");
    }

    #[test]
    fn what_a_program_said_last_is_told_in_a_line() {
        assert_eq!(last_words("\n a\n\nb \n"), "a; b");
        assert_eq!(last_words(" \n"), "it said nothing");
        let long = last_words(&"é".repeat(SAID_CHARS_MAX + 5));
        assert_eq!(long.chars().count(), SAID_CHARS_MAX + 1);
    }

    #[test]
    fn how_it_ended_is_told() {
        let falsehood = Program { name: "false", package: "coreutils" };
        let ended = run(&falsehood, &[], &[], Path::new("/dev/null")).unwrap();
        assert_eq!(ended.code, Some(1));
        let told = ended.success().unwrap_err().to_string();
        assert!(told.contains("false /dev/null ended with exit status: 1"), "{told}");
    }
}
