//! File operations with errors that name the file, and durable ones.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::PoolError;

/// Wraps an I/O error with the verb and the file.
pub(crate) fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> PoolError + 'a {
    move |source| PoolError::Io { what, path: path.to_owned(), source }
}

/// Makes the names in a directory durable.
pub(crate) fn flush_dir(dir: &Path) -> Result<(), PoolError> {
    let file = File::open(dir).map_err(failed("open", dir))?;
    file.sync_all().map_err(failed("flush", dir))
}

/// Makes a directory and what is missing above it; durable when it returns.
pub(crate) fn create_dirs(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
    fs::create_dir_all(dir)?;
    for made in missing {
        let parent = made.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// Writes a whole file so that after a crash it is either the old one or the new one.
pub(crate) fn replace_file(dir: &Path, name: &str, content: &[u8]) -> Result<(), PoolError> {
    let new = dir.join(format!(".{name}.new"));
    let write = |path: &Path| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write(&new).map_err(failed("write", &new))?;
    let path = dir.join(name);
    fs::rename(&new, &path).map_err(failed("rename", &new))?;
    flush_dir(dir)
}

/// Is it the error of a medium that can't be written, rather than of one that failed?
pub(crate) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied)
}
