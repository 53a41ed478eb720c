//! File systems for tests that need one of their own.

use std::path::Path;
use tempfile::TempDir;

/// A file system of its own, unmounted when dropped; `None` where mounting is not allowed.
pub(crate) struct Mount(TempDir);

impl Mount {
    pub(crate) fn tmpfs(options: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path());
        mount.status().ok().filter(std::process::ExitStatus::success).map(|_| Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn remount(&self, options: &str) {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-o", &format!("remount,{options}")]).arg(self.0.path());
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
