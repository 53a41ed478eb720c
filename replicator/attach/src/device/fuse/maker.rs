//! Who serves a device, as the keeper notes it: `served PID BEGUN`.

/// Note on a device that this process serves: requests of it may have been read.
pub(crate) fn served() -> String {
    let pid = std::process::id();
    format!("served {pid} {}", begun(pid).unwrap_or(0))
}

/// Whether the process that a note names lives.
pub(crate) fn lives(note: &str) -> bool {
    let mut words = note.split(' ').skip(1).map(str::parse);
    let (Some(Ok(pid)), Some(Ok(since))) = (words.next(), words.next()) else { return false };
    u32::try_from(pid).is_ok_and(|pid| begun(pid) == Some(since))
}

/// When a process began, in ticks since the machine did: field 22 of `/proc/PID/stat`, which tells
/// it from another of the same number.
fn begun(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_others_of_its_number_do_not() {
        assert!(lives(&served()));
        let begun = begun(std::process::id()).unwrap();
        assert!(!lives(&format!("served {} {}", std::process::id(), begun + 1)));
        for note in ["", "released", "served", "served x y", "served 4294967297 0"] {
            assert!(!lives(note), "{note}");
        }
    }
}
