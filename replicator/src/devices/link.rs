//! Names of devices that stay: `/dev/lockstep/<volume>`, whatever the kernel calls them, and also
//! where nobody runs udev.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::DevicesError;
use super::kept::failed;

/// The directory of these names.
#[derive(Debug)]
pub(super) struct Links {
    dir: PathBuf,
}

impl Links {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Names a device. A name that leads elsewhere is an old one, and is replaced at once.
    pub(super) fn make(&self, name: &str, device: &Path) -> Result<(), DevicesError> {
        let path = self.path(name);
        let make = || -> io::Result<()> {
            fs::create_dir_all(&self.dir)?;
            // No volume's name begins with a dot.
            let new = self.dir.join(format!(".{name}"));
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(device, &new)?;
            fs::rename(&new, &path)
        };
        make().map_err(|e| failed("cannot make", &path, e))
    }

    /// Removes a name, if it leads to this device.
    pub(super) fn remove(&self, name: &str, device: &Path) {
        let path = self.path(name);
        if fs::read_link(&path).is_ok_and(|to| to == device)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "cannot remove a device's name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_the_newest_device_and_is_removed_with_that_one_only() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new(dir.path().join("lockstep"));
        let (old, new) = (Path::new("/dev/nbd1"), Path::new("/dev/ublkb2"));
        links.make("v", old).unwrap();
        links.make("v", new).unwrap();
        links.remove("v", old);
        assert_eq!(fs::read_link(links.path("v")).unwrap(), new);
        links.remove("v", new);
        assert!(fs::symlink_metadata(links.path("v")).is_err());
    }
}
