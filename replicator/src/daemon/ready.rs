//! Tells whoever started the daemon that it is ready.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

/// Creates the ready file, and writes `READY` to the descriptor, as far as they were asked for.
pub(super) fn announce(file: Option<&Path>, descriptor: Option<u32>) -> anyhow::Result<()> {
    if let Some(path) = file {
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot create ready_file {}", path.display()))?;
    }
    if let Some(number) = descriptor {
        // The descriptor was inherited; its name under /proc opens the same pipe or file.
        let told = fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/self/fd/{number}"))
            .and_then(|mut pipe| pipe.write_all(b"READY\n"));
        told.with_context(|| format!("cannot write to ready_fd {number}"))?;
    }
    Ok(())
}

/// Removes the ready file.
pub(super) fn withdraw(file: Option<&Path>) {
    if let Some(path) = file
        && let Err(error) = fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "cannot remove ready_file");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_while_the_daemon_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        announce(Some(&path), None).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
        withdraw(Some(&path));
        assert!(!path.exists());
        withdraw(Some(&path));
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_an_error() {
        let error = announce(None, Some(9999)).unwrap_err().to_string();
        assert!(error.contains("ready_fd 9999"), "{error}");
    }
}
