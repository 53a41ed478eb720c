//! What is mounted, by `/proc/…/mountinfo`: proc(5), Linux 2.6.26 and later.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// A mount, as one process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Number of its device, major and minor.
    pub device: (u64, u64),
    /// What of the file system is mounted: `/`, or a directory in it for a bind mount.
    pub root: PathBuf,
    /// Where.
    pub dir: PathBuf,
    /// Options of this mount.
    pub options: String,
    /// Type of the file system.
    pub fs: String,
    /// What was named as its device.
    pub source: PathBuf,
}

/// All mounts that this process sees. Of several at one directory, the last is the one seen there.
///
/// # Errors
/// If the kernel does not tell.
pub fn mounts() -> io::Result<Vec<MountPoint>> {
    read(Path::new("/proc/self/mountinfo"))
}

/// Those that a process sees whose table this is. A line that cannot be understood is left out.
pub(super) fn read(table: &Path) -> io::Result<Vec<MountPoint>> {
    let text = std::fs::read(table)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<MountPoint> {
    let mut words = line.split(|byte| *byte == b' ');
    // The ids of the mount and of the one that it is in.
    words.nth(1)?;
    let number = std::str::from_utf8(words.next()?).ok()?;
    let (major, minor) = number.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let (root, dir) = (path(words.next()?), path(words.next()?));
    let options = text(words.next()?);
    // Optional words, as many as there are, up to a dash.
    words.find(|word| *word == b"-")?;
    let fs = text(words.next()?);
    let source = path(words.next()?);
    Some(MountPoint { device, root, dir, options, fs, source })
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(&plain(word)).into_owned()
}

fn path(word: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(plain(word)))
}

/// Blanks, line ends and backslashes are written as a backslash and three octal digits.
pub(super) fn plain(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, tail)) = rest.split_first() {
        if let (b'\\', Some((octal, after))) = (first, tail.split_at_checked(3))
            && let Some(byte) = digits(octal)
        {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}

fn digits(octal: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(octal).ok()?;
    if !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_understood() {
        let line = br"36 35 98:0 /mnt1 /mnt/a\040b\011c\134d rw,noatime shared:1 - ext4 /dev/r rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.device, (98, 0));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.dir, Path::new("/mnt/a b\tc\\d"));
        assert_eq!(mount.options, "rw,noatime");
        assert_eq!((mount.fs.as_str(), mount.source.as_path()), ("ext4", Path::new("/dev/r")));
        let plain = parse(b"1 0 0:23 / / rw - tmpfs none rw").unwrap();
        assert_eq!(plain.dir, Path::new("/"));
        let more = parse(b"1 0 0:2 / /a rw master:1 propagate_from:2 - xfs /dev/q rw").unwrap();
        assert_eq!(more.fs, "xfs");
    }

    #[test]
    fn lines_that_are_something_else_are_left_out() {
        for line in ["", "1", "1 0 x / / rw - a b", "1 0 1:2 / / rw", "1 0 1:2 / / rw - ext4"] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_backslash_that_begins_no_number_stays() {
        for word in [r"a\", r"\04", r"\0x1", r"\999", r"\+12"] {
            assert_eq!(plain(word.as_bytes()), word.as_bytes(), "{word}");
        }
    }

    #[test]
    fn the_table_of_this_process_has_a_root() {
        let all = mounts().unwrap();
        assert!(all.iter().any(|mount| mount.dir == Path::new("/")), "{all:?}");
    }
}
