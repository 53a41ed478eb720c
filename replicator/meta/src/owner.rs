//! Who holds the lock of a file: asked only to say so in an error message.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The process that holds a lock on `path`, as "process 42 (lockstepd)"; `None` if the kernel does
/// not tell, e.g. because that process is in another container.
pub(crate) fn of_lock(path: &Path) -> Option<String> {
    let file = fs::metadata(path).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = holder(&locks, &lock_id(file.dev(), file.ino()))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim();
    Some(if name.is_empty() { format!("process {pid}") } else { format!("process {pid} ({name})") })
}

/// How the kernel names a file in its list of locks: `major:minor:inode`, the device in hex.
fn lock_id(dev: u64, ino: u64) -> String {
    let major = ((dev >> 8) & 0xfff) | ((dev >> 32) & !0xfff);
    let minor = (dev & 0xff) | ((dev >> 12) & 0xffff_ff00);
    format!("{major:02x}:{minor:02x}:{ino}")
}

/// Finds the process in lines such as `1: FLOCK  ADVISORY  WRITE 4242 08:01:1234 0 EOF`.
fn holder(locks: &str, id: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|w| *w == id)?;
        let pid: u32 = words.get(at.checked_sub(1)?)?.parse().ok()?;
        // Zero: it lives where this process cannot see.
        (pid != 0).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_found_by_its_file() {
        let locks = "1: FLOCK  ADVISORY  WRITE 77 08:01:5 0 EOF\n\
                     2: POSIX  ADVISORY  READ 0 08:01:6 0 EOF\n\
                     2: -> POSIX  ADVISORY  WRITE 9 08:01:7 0 EOF\n";
        assert_eq!(holder(locks, "08:01:5"), Some(77));
        assert_eq!(holder(locks, "08:01:6"), None);
        assert_eq!(holder(locks, "08:01:7"), Some(9));
        assert_eq!(holder(locks, "08:01:8"), None);
    }

    #[test]
    fn devices_are_written_as_the_kernel_does() {
        assert_eq!(lock_id(0x0801, 5), "08:01:5");
        assert_eq!(lock_id(0x31_03e8, 6), "103:3e8:6");
    }
}
