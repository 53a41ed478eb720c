//! Control groups: they are global to the machine, so those of a run are in a directory of its own.

use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};

const ALL: &str = "/sys/fs/cgroup";

/// The directory of a run, in each hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    name: String,
}

impl Root {
    /// Named after the directory of the run, since `tests/kube/run` removes it at the end.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let name = dir.file_name().context("the directory of a run has a name")?;
        Ok(Self { name: name.to_string_lossy().into_owned() })
    }

    /// Makes the group of a node; returns what a kubelet calls it.
    pub(crate) fn make(&self, node: &str) -> anyhow::Result<String> {
        for hierarchy in hierarchies() {
            let mut group = hierarchy.clone();
            for name in [self.name.as_str(), node] {
                let parent = group.clone();
                group.push(name);
                fs::create_dir_all(&group).with_context(|| format!("{}", group.display()))?;
                hand_down(&parent, &group)?;
            }
        }
        Ok(format!("/{}/{node}", self.name))
    }
}

/// Where groups are made: once for each controller, or in one place for all of them.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ALL).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(ALL)];
    }
    let entries = fs::read_dir(ALL).into_iter().flatten().flatten();
    let dirs = entries.map(|entry| entry.path()).filter(|path| !path.is_symlink());
    // In a hybrid there is one of the second version too, without controllers.
    let is_first = |path: &PathBuf| {
        path.join("cgroup.procs").exists() && !path.join("cgroup.controllers").exists()
    };
    dirs.filter(is_first).collect()
}

/// Lets a new group have what its parent has.
fn hand_down(parent: &Path, group: &Path) -> anyhow::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), group.join(name));
        if from.exists() && fs::read_to_string(&to).is_ok_and(|set| set.trim().is_empty()) {
            fs::write(&to, fs::read_to_string(&from)?)?;
        }
    }
    if let Ok(controllers) = fs::read_to_string(parent.join("cgroup.controllers")) {
        let all: Vec<String> = controllers.split_whitespace().map(|c| format!("+{c}")).collect();
        fs::write(parent.join("cgroup.subtree_control"), all.join(" "))?;
    }
    Ok(())
}
