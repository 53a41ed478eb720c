//! What is kept of each device while it exists: one file, in a directory that the machine's next
//! start empties.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use lockstep_attach::device::{Choice, Token};
use lockstep_core::id::VolumeId;
use lockstep_core::record::Claimed;
use serde::{Deserialize, Serialize};

use super::{DevicesError, WantedDevice};

/// Version of the files that this build writes. A higher one is not touched.
const VERSION: u32 = 1;

/// A device as the next daemon needs to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub(super) version: u32,
    /// Which daemon's it is.
    pub(super) owner: String,
    /// Of which volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// What the kernel knows it by.
    pub token: Token,
    /// The claim under which it was made, or last taken over. What an older build wrote lacks it.
    #[serde(default)]
    pub claimed: Option<Claimed>,
    /// Where it was mounted, or was to be.
    pub mount: Option<Mounted>,
    /// It was blank, and then a file system was begun on it. Noted before the first write of that,
    /// and until it is finished, or somebody else may have written to the device.
    #[serde(default)]
    pub(super) making: bool,
    /// What is mounted may be frozen, as it is while it grows. Noted before it is.
    #[serde(default)]
    pub(super) growing: bool,
}

/// A mount made along with a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// Where.
    pub dir: PathBuf,
    /// Type of the file system.
    pub fs: String,
    /// Options.
    pub options: Vec<String>,
    /// The directory was made for it.
    pub(super) made_dir: bool,
}

impl Kept {
    pub(super) fn new(
        files: &Files,
        volume: VolumeId,
        name: &str,
        token: Token,
        claimed: Option<Claimed>,
    ) -> Self {
        let (owner, name) = (files.owner.clone(), name.to_owned());
        Self {
            version: VERSION,
            owner,
            volume,
            name,
            token,
            claimed,
            mount: None,
            making: false,
            growing: false,
        }
    }

    /// Whether it is what is wanted.
    pub(super) fn check(&self, wanted: &WantedDevice) -> Result<(), DevicesError> {
        let kind = self.token.kind();
        let mut differs = Vec::new();
        if wanted.door != Choice::Auto && wanted.door != Choice::Only(kind) {
            differs.push(format!("through {kind}"));
        }
        if wanted.read_only != self.token.read_only {
            differs.push(if self.token.read_only { "read-only" } else { "writable" }.to_owned());
        }
        if let (Some(mount), Some(dir)) = (&self.mount, &wanted.mount_dir) {
            if mount.dir != *dir {
                differs.push(format!("mounted at {}", mount.dir.display()));
            } else if mount.options != wanted.mount_options {
                // Which ones is not told: there may be secrets among them.
                differs.push("mounted with other options".to_owned());
            }
        }
        if let (Some(mount), Some(fs)) = (&self.mount, &wanted.fs)
            && mount.fs != *fs
            && !wanted.any_fs
        {
            differs.push(format!("with {} on it", mount.fs));
        }
        match differs.as_slice() {
            [] => Ok(()),
            some => Err(DevicesError::Differs(some.join(", "))),
        }
    }
}

/// The directory of these files.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    owner: String,
}

impl Files {
    pub(super) fn new(dir: PathBuf, owner: &str) -> Self {
        Self { dir, owner: owner.to_owned() }
    }

    pub(super) fn path(&self, volume: VolumeId) -> PathBuf {
        self.dir.join(format!("{volume}.json"))
    }

    /// What the daemons before this one left. Files of others and of later versions stay as they
    /// are.
    pub(super) fn read_all(&self) -> Result<Vec<Kept>, DevicesError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("cannot read", &self.dir, error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| failed("cannot read", &self.dir, e))?.path();
            if self.is_unfinished(&path) {
                fs::remove_file(&path).map_err(|e| failed("cannot remove", &path, e))?;
            }
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(|e| failed("cannot read", &path, e))?;
            match serde_json::from_slice::<Kept>(&text) {
                Ok(kept) if kept.owner != self.owner => {}
                Ok(kept) if kept.version <= VERSION => all.push(kept),
                Ok(kept) => {
                    let version = kept.version;
                    tracing::error!(path = %path.display(), version, "from a later version");
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "cannot be understood");
                }
            }
        }
        Ok(all)
    }

    /// How files that are being written are called. Others may be at work in the same directory.
    fn unfinished(&self) -> String {
        format!(".{}~", self.owner.replace('/', "~"))
    }

    /// Whether a daemon of this node died while it wrote a file.
    fn is_unfinished(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&self.unfinished()) && path.extension().is_none()
    }

    /// The names of all devices that are noted, whosever they are: a file is called as its device.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let paths = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    }

    /// Writes the file anew, whole or not at all; durable, as far as its directory is.
    pub(super) fn write(&self, kept: &Kept) -> Result<(), DevicesError> {
        let path = self.path(kept.volume);
        let write = || -> io::Result<()> {
            fs::create_dir_all(&self.dir)?;
            let mut file =
                tempfile::Builder::new().prefix(&self.unfinished()).tempfile_in(&self.dir)?;
            file.write_all(&serde_json::to_vec_pretty(kept)?)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            fs::File::open(&self.dir)?.sync_all()
        };
        write().map_err(|e| failed("cannot write", &path, e))
    }

    /// Removes the file, if it is there.
    pub(super) fn remove(&self, volume: VolumeId) -> Result<(), DevicesError> {
        let path = self.path(volume);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove", &path, e)),
            _ => Ok(()),
        }
    }
}

pub(super) fn failed(what: &str, path: &Path, source: io::Error) -> DevicesError {
    DevicesError::Files { what: format!("{what} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    use lockstep_attach::device::{Kind, Place};
    use lockstep_core::id::{Epoch, Lineage};
    use uuid::Uuid;

    use super::*;

    fn kept(files: &Files) -> Kept {
        let token = Token {
            name: "n".to_owned(),
            device: "/dev/ublkb3".into(),
            size_bytes: 1 << 30,
            read_only: false,
            write_through: false,
            queues: 2,
            place: Place::Ublk { id: 3, mark: 7 },
        };
        let claimed = Claimed { lineage: Lineage(Uuid::from_u128(6)), epoch: Epoch(7) };
        Kept::new(files, VolumeId(Uuid::from_u128(5)), "v", token, Some(claimed))
    }

    #[test]
    fn what_is_written_is_found_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("devices"), "a");
        assert_eq!(files.read_all().unwrap(), []);
        let kept = kept(&files);
        files.write(&kept).unwrap();
        assert_eq!(files.read_all().unwrap(), std::slice::from_ref(&kept));
        assert_eq!(Files::new(dir.path().join("devices"), "b").read_all().unwrap(), []);
        files.remove(kept.volume).unwrap();
        files.remove(kept.volume).unwrap();
        assert_eq!(files.read_all().unwrap(), []);
    }

    #[test]
    fn what_an_older_build_wrote_tells_of_no_claim() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned(), "a");
        let kept = kept(&files);
        let mut older = serde_json::to_value(&kept).unwrap();
        assert!(older.as_object_mut().unwrap().remove("claimed").is_some());
        fs::write(files.path(kept.volume), older.to_string()).unwrap();
        assert_eq!(files.read_all().unwrap(), [Kept { claimed: None, ..kept }]);
    }

    #[test]
    fn what_a_daemon_left_half_written_is_removed_by_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned(), "c/a");
        let names = [files.unfinished() + "x", Files::new("/".into(), "c/a-b").unfinished() + "x"];
        for name in &names {
            fs::write(dir.path().join(name), "{").unwrap();
        }
        assert_eq!(files.read_all().unwrap(), []);
        assert_eq!(names.map(|name| dir.path().join(name).exists()), [false, true]);
    }

    #[test]
    fn files_that_are_torn_or_from_the_future_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().to_owned(), "a");
        let later = Kept { version: VERSION + 1, ..kept(&files) };
        files.write(&later).unwrap();
        fs::write(dir.path().join("x.json"), "{").unwrap();
        assert_eq!(files.read_all().unwrap(), []);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_device_that_is_not_as_wanted_is_told() {
        let files = Files::new("/nowhere".into(), "a");
        let kept = kept(&files);
        let wanted = WantedDevice::default();
        assert!(kept.check(&wanted).is_ok());
        let nbd = WantedDevice { door: Choice::Only(Kind::Nbd), read_only: true, ..wanted };
        let told = kept.check(&nbd).unwrap_err().to_string();
        assert!(told.contains("through ublk, writable"), "{told}");
    }
}
