//! Images of containers from files of this machine: no registry, no other program that makes them.

use anyhow::{Context as _, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// What a pod's sandbox runs.
pub(crate) const PAUSE: &str = "localhost/pause:1";
/// A shell and the tools of busybox.
pub(crate) const BUSYBOX: &str = "localhost/busybox:1";

/// What is in an image, besides a static busybox with all of its names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image<'a> {
    /// What it is called.
    pub(crate) tag: &'a str,
    /// What is started in it, unless the pod says otherwise.
    pub(crate) entry: &'a [&'a str],
    /// Files and directories that are copied in, and where to.
    pub(crate) files: &'a [(&'a Path, &'a str)],
}

/// Makes the images that every node has.
pub(crate) async fn make_common(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let pause = Image { tag: PAUSE, entry: &["/bin/sleep", "2147483647"], ..Image::default() };
    let busybox = Image { tag: BUSYBOX, entry: &["/bin/sh"], ..Image::default() };
    Ok(vec![make(dir, &pause).await?, make(dir, &busybox).await?])
}

/// Makes an image, as the tar file that containerd imports; returns that.
pub(crate) async fn make(dir: &Path, image: &Image<'_>) -> anyhow::Result<PathBuf> {
    let name = image.tag.replace(['/', ':'], "-");
    let (work, root) = (dir.join(&name), dir.join(&name).join("root"));
    fs::create_dir_all(&work)?;
    busybox(&root).await?;
    for (from, to) in image.files {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
        run(Command::new("cp").arg("-a").arg(from).arg(to)).await?;
    }
    let layer = work.join("layer.tar");
    let tar = ["--owner=0", "--group=0", "--numeric-owner", "-cf"];
    run(Command::new("tar").arg("-C").arg(&root).args(tar).arg(&layer).arg(".")).await?;
    let sum = run(Command::new("sha256sum").arg(&layer)).await?;
    let sum = sum.split(' ').next().context("sha256sum prints a sum")?;
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": image.entry, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    fs::write(work.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": [image.tag], "Layers": ["layer.tar"],
    }]);
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let made = dir.join(format!("{name}.tar"));
    let members = ["manifest.json", "config.json", "layer.tar"];
    run(Command::new("tar").arg("-C").arg(&work).arg("-cf").arg(&made).args(members)).await?;
    fs::remove_dir_all(&work)?;
    Ok(made)
}

/// A root file system that is nothing but busybox.
async fn busybox(root: &Path) -> anyhow::Result<()> {
    for dir in ["bin", "etc", "mnt", "proc", "root", "sys", "tmp", "var"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let file = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|f| Path::new(f).exists());
    let file = file.context("busybox is not installed")?;
    fs::copy(file, root.join("bin/busybox"))?;
    let names = run(Command::new(file).arg("--list")).await?;
    for name in names.lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) async fn run(command: &mut Command) -> anyhow::Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = command.kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("cannot start {shown}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
