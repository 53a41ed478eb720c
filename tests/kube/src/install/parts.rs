//! The images that the chart wants, made of files of this machine, and the values that name them.

use super::image;
use crate::cluster::Cluster;
use crate::lab::images::{Image, make, run};
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use tokio::process::Command;

const NODE: &str = "lockstep-node";
const CONTROLLER: &str = "lockstep-controller";
const REGISTRAR: &str = "csi-node-driver-registrar";
const SIDECARS: [&str; 4] = ["csi-provisioner", "csi-resizer", "csi-snapshotter", REGISTRAR];
/// As in deploy/Dockerfile.
const OF_NODE: [&str; 4] = ["lockstepd", "lockstep", "lockstep-csi", "lockstep-csi-probe"];
const OF_CONTROLLER: [&str; 4] =
    ["lockstep-csi", "lockstep-csi-guard", "lockstep-csi-probe", "lockstep"];
const TOOLS: [&str; 10] = [
    "blkid",
    "mke2fs",
    "mkfs.ext4",
    "e2fsck",
    "resize2fs",
    "mkfs.xfs",
    "xfs_repair",
    "xfs_growfs",
    "xfs_logprint",
    "xfs_io",
];

/// Values with images of this tag.
pub(super) fn values(tag: &str) -> Value {
    let sidecar = |name: &str| format!("localhost/{name}:1");
    json!({
        "image": {
            "node": image(NODE, tag),
            "controller": image(CONTROLLER, tag),
            "keeper": image(NODE, "1"),
            "pullPolicy": "Never",
        },
        "sidecars": {
            "provisioner": sidecar("csi-provisioner"),
            "resizer": sidecar("csi-resizer"),
            "snapshotter": sidecar("csi-snapshotter"),
            "registrar": sidecar(REGISTRAR),
        },
        "pools": [{"name": "default", "path": "/var/lib/lockstep/pool"}],
        // What is in /dev is every node's here.
        "node": {"deviceDir": "/run/lockstep/dev", "modulesDir": ""},
    })
}

/// Makes all images; the ones that an upgrade replaces twice.
pub(super) async fn images(cluster: &Cluster) -> anyhow::Result<Vec<PathBuf>> {
    let own = std::env::current_exe().context("finding this program's file")?;
    let own = own.parent().map(PathBuf::from).unwrap_or_default();
    let small = cluster.dir().join("small");
    fs::create_dir_all(&small)?;
    let mut of_node = Vec::new();
    for name in OF_NODE {
        of_node.push(stripped(&own.join(name), &small).await?);
    }
    for name in TOOLS {
        of_node.extend(find(name));
    }
    let mut of_controller = Vec::new();
    for name in OF_CONTROLLER {
        of_controller.push(stripped(&own.join(name), &small).await?);
    }
    let mut made = Vec::new();
    for tag in ["1", "2"] {
        for (name, entry, programs) in
            [(NODE, "lockstepd", &of_node), (CONTROLLER, "lockstep-csi", &of_controller)]
        {
            made.push(
                image_of(cluster, &format!("localhost/{name}:{tag}"), entry, programs).await?,
            );
        }
    }
    for name in SIDECARS {
        let program = cluster.programs().join(name);
        let tag = format!("localhost/{name}:1");
        made.push(image_of(cluster, &tag, name, &[program]).await?);
    }
    Ok(made)
}

/// A copy of a program without what debuggers want.
async fn stripped(program: &Path, dir: &Path) -> anyhow::Result<PathBuf> {
    let to = dir.join(program.file_name().context("a program has a name")?);
    if !to.exists() {
        run(Command::new("strip").args(["--strip-debug", "-o"]).arg(&to).arg(program)).await?;
    }
    Ok(to)
}

fn find(name: &str) -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    dirs.into_iter().map(|dir| Path::new(dir).join(name)).find(|file| file.exists())
}

/// An image of programs, and of the libraries that they need.
async fn image_of(
    cluster: &Cluster,
    tag: &str,
    entry: &str,
    programs: &[PathBuf],
) -> anyhow::Result<PathBuf> {
    let mut files: BTreeSet<(PathBuf, String)> = BTreeSet::new();
    for program in programs {
        let name = program.file_name().context("a program has a name")?.to_string_lossy();
        files.insert((program.canonicalize()?, format!("/usr/sbin/{name}")));
        // It fails for static programs, which need nothing.
        let said = run(Command::new("ldd").arg(program)).await.unwrap_or_default();
        for word in said.split_whitespace().filter(|word| word.starts_with('/')) {
            files.insert((Path::new(word).canonicalize()?, word.to_owned()));
        }
    }
    let files: Vec<(&Path, &str)> =
        files.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
    let entry = format!("/usr/sbin/{entry}");
    make(cluster.dir(), &Image { tag, entry: &[&entry], files: &files }).await
}
