//! What must not be left.

use std::fs;
use std::path::{Path, PathBuf};

/// What a node has of a volume, by its id, that is not staged there.
pub(crate) fn on_node(dir: &Path, node: usize, id: &str, staging: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_there = |line: &&str| line.split(' ').nth(4) == Some(staging);
    let mut left: Vec<String> =
        table.lines().filter(is_there).map(|line| format!("mount {line}")).collect();
    let device: PathBuf = dir.join(format!("n{}/dev", node + 1)).join(id);
    left.extend(device.symlink_metadata().is_ok().then(|| device.display().to_string()));
    left
}

/// Mounts, loop devices, notes, names, copies and snapshots below a directory, besides the pools
/// themselves.
pub(crate) fn of(dir: &Path) -> Vec<String> {
    let dir_text = dir.display().to_string();
    let mut left = Vec::new();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let pools = crate::world::pools(dir);
    let (mounted, image) = (format!(" {} ", pools.display()), crate::world::image(dir));
    let of_run = table.lines().filter(|line| line.contains(&dir_text) && !line.contains(&mounted));
    left.extend(of_run.map(|line| format!("mount {line}")));
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = entry.path().join("loop/backing_file");
        let backing = fs::read_to_string(file).unwrap_or_default();
        if backing.contains(&dir_text) && Path::new(backing.trim()) != image {
            left.push(format!("{} of {}", entry.file_name().display(), backing.trim()));
        }
    }
    for node in ["n1", "n2", "n3"] {
        let own = ["run/devices", "dev"].map(|part| dir.join(node).join(part));
        let kept = ["replicas", "snapshots", "trash"].map(|part| pools.join(node).join(part));
        for place in own.iter().chain(&kept) {
            let entries = fs::read_dir(place).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
    }
    let published = fs::read_dir(dir.join("pods")).into_iter().flatten().flatten();
    left.extend(published.map(|entry| entry.path().display().to_string()));
    left
}
