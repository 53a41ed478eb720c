//! Our kinds of objects, and who may do what with them: as the chart has it, from its own files.

use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Manifests of the kinds, and of roles with the rules that the chart gives its service accounts.
/// The user `lockstep` may do in the whole cluster what the controller may.
pub(crate) fn manifests(project: &Path) -> anyhow::Result<Vec<String>> {
    let chart = project.join("deploy/chart");
    let mut kinds: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(chart.join("crds")).context("reading the chart's crds")? {
        kinds.push(entry?.path());
    }
    kinds.sort();
    let mut all: Vec<String> = kinds.iter().map(|path| read(path)).collect::<Result<_, _>>()?;
    let roles: [(&str, &[&str]); 3] = [
        ("lockstep-records", &["daemon.yaml"]),
        ("lockstep-controller", &["controller.yaml"]),
        ("lockstep-namespace", &["namespace.yaml", "drain.yaml"]),
    ];
    for (role, files) in roles {
        let rules = files.iter().map(|file| read(&chart.join("rules").join(file)));
        let rules: String = rules.collect::<Result<_, _>>()?;
        all.push(format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  \
             name: {role}\nrules:\n{rules}"
        ));
    }
    all.push(BINDING.to_owned());
    Ok(all)
}

/// A file of the project.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

// No name of the chart's own, which checks install beside this.
const BINDING: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: lockstep-tests
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: lockstep-controller
subjects:
  - apiGroup: rbac.authorization.k8s.io
    kind: User
    name: lockstep
---
# Where controllers keep the lease by which one of them acts, unless they are told otherwise.
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: lockstep-controller
  namespace: default
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: lockstep-namespace
subjects:
  - apiGroup: rbac.authorization.k8s.io
    kind: User
    name: lockstep
";
