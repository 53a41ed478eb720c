//! Loop devices are global to the machine. One over a FUSE file of a node that lost its power stays
//! bound to nothing, where real power would have taken it along: it is given back here.

use super::images::run;
use crate::process::wait_for;
use anyhow::ensure;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(30);

/// The loop devices over FUSE files that processes of a node see mounted. `init` is its first one.
pub(crate) async fn of(init: u32) -> BTreeSet<String> {
    let mut mounted = BTreeSet::new();
    for process in family(init) {
        let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        mounted.extend(table.lines().filter_map(fuse_device));
    }
    let bound = bound().await;
    bound.into_iter().filter(|(_, device)| mounted.contains(device)).map(|(l, _)| l).collect()
}

/// The number of the device that a FUSE file system is, from a line of a table of mounts.
fn fuse_device(line: &str) -> Option<String> {
    let (about, kind) = line.split_once(" - ")?;
    kind.starts_with("fuse").then(|| about.split(' ').nth(2).map(str::to_owned))?
}

/// All loop devices that are bound, and the number of the file system that their file is in.
async fn bound() -> BTreeMap<String, String> {
    let flags = ["--list", "--raw", "--noheadings", "--output", "NAME,BACK-MAJ:MIN"];
    let table = run(Command::new("losetup").args(flags)).await.unwrap_or_default();
    // It pads its columns, and then writes the spaces so that they are no separators.
    let table = table.replace(r"\x20", " ");
    let rows = table.lines().filter_map(|row| row.split_once(' '));
    rows.map(|(name, device)| (name.to_owned(), device.trim().to_owned())).collect()
}

/// A process and all that descend from it.
fn family(first: u32) -> BTreeSet<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.file_name().to_string_lossy().parse::<u32>();
        let parent = process.ok().and_then(|process| Some((process, parent(process)?)));
        parents.extend(parent);
    }
    let mut all = BTreeSet::from([first]);
    loop {
        let more = parents.iter().filter(|(_, parent)| all.contains(parent));
        let more: Vec<u32> = more.map(|(p, _)| *p).filter(|p| !all.contains(p)).collect();
        if more.is_empty() {
            return all;
        }
        all.extend(more);
    }
}

fn parent(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name of the program, in brackets, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Unbinds devices whose node is dead, and waits until they are.
pub(crate) async fn give_back(devices: &BTreeSet<String>) -> anyhow::Result<()> {
    let none_left = async || {
        let left: Vec<String> =
            bound().await.into_keys().filter(|name| devices.contains(name)).collect();
        for name in &left {
            let _ = run(Command::new("losetup").args(["-d", name])).await;
        }
        left.is_empty()
    };
    ensure!(wait_for(LIMIT, none_left).await, "not all of {devices:?} can be given back");
    Ok(())
}

/// Writes down which there are, for the case that nobody is left to give them back.
pub(crate) fn note(dir: &Path, devices: &BTreeSet<String>) -> anyhow::Result<()> {
    let all: Vec<&str> = devices.iter().map(String::as_str).collect();
    Ok(fs::write(dir.join("loops"), all.join("\n") + "\n")?)
}
