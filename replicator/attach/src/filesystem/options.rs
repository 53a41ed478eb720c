//! Options of mounts, as people write them.

use nix::mount::MsFlags;

use super::FileSystemError;

/// What a kernel takes as options of a file system: one page, with the zero at its end.
const DATA_BYTES_MAX: usize = 4095;

/// Options that every file system has: the name, what they set and what they clear.
const FLAGS: &[(&str, MsFlags, MsFlags)] = &[
    ("defaults", MsFlags::empty(), MsFlags::empty()),
    ("ro", MsFlags::MS_RDONLY, MsFlags::empty()),
    ("rw", MsFlags::empty(), MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID, MsFlags::empty()),
    ("suid", MsFlags::empty(), MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV, MsFlags::empty()),
    ("dev", MsFlags::empty(), MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC, MsFlags::empty()),
    ("exec", MsFlags::empty(), MsFlags::MS_NOEXEC),
    ("sync", MsFlags::MS_SYNCHRONOUS, MsFlags::empty()),
    ("async", MsFlags::empty(), MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC, MsFlags::empty()),
    ("noatime", MsFlags::MS_NOATIME, MsFlags::empty()),
    ("atime", MsFlags::empty(), MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME, MsFlags::empty()),
    ("diratime", MsFlags::empty(), MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME, MsFlags::empty()),
    ("norelatime", MsFlags::empty(), MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME, MsFlags::empty()),
    ("nostrictatime", MsFlags::empty(), MsFlags::MS_STRICTATIME),
    ("lazytime", MsFlags::MS_LAZYTIME, MsFlags::empty()),
    ("nolazytime", MsFlags::empty(), MsFlags::MS_LAZYTIME),
    ("iversion", MsFlags::MS_I_VERSION, MsFlags::empty()),
    ("noiversion", MsFlags::empty(), MsFlags::MS_I_VERSION),
    ("silent", MsFlags::MS_SILENT, MsFlags::empty()),
    ("loud", MsFlags::empty(), MsFlags::MS_SILENT),
];

/// Options for programs that read `/etc/fstab`: nothing to a mount.
const IDLE: &[&str] = &["auto", "noauto", "nofail", "_netdev"];

/// Options that would make something else of the mount than was asked for.
const REFUSED: &[&str] = &[
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "offset",
    "sizelimit",
    "encryption",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "uhelper",
    "helper",
    "shared",
    "private",
    "slave",
    "unbindable",
    "rshared",
    "rprivate",
    "rslave",
    "runbindable",
];

/// Options of a mount, as a kernel takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Those that every file system has.
    pub(super) flags: MsFlags,
    /// Those of the file system, with commas in between.
    pub(super) data: String,
}

impl Options {
    /// Reads options, several in one text with commas in between if need be. Later ones win.
    ///
    /// # Errors
    /// [`FileSystemError::Unfit`] names the option that cannot be given here.
    pub fn parse<'a>(all: impl IntoIterator<Item = &'a str>) -> Result<Self, FileSystemError> {
        let mut flags = MsFlags::empty();
        let mut data: Vec<&str> = Vec::new();
        for option in all.into_iter().flat_map(|text| text.split(',')) {
            let name = option.split('=').next().unwrap_or(option);
            // Its value is not told: it may be a secret.
            let unfit = |why: &str| FileSystemError::Unfit(format!("mount option {name:?}: {why}"));
            if let Some((_, set, clear)) = FLAGS.iter().find(|(flag, ..)| *flag == option) {
                flags = (flags | *set) & !*clear;
            } else if option.is_empty() || IDLE.contains(&option) || name.starts_with("x-") {
            } else if REFUSED.contains(&name) || name.starts_with("X-") {
                return Err(unfit("it cannot be given here; mount the device yourself for that"));
            } else if option.chars().any(|c| c.is_control() || c == '\\' || c == '"') {
                return Err(unfit("control characters, quotes and backslashes are not allowed"));
            } else {
                data.push(option);
            }
        }
        let data = data.join(",");
        if data.len() > DATA_BYTES_MAX {
            let why = format!("mount options: {} bytes are too many", data.len());
            return Err(FileSystemError::Unfit(why));
        }
        Ok(Self { flags, data })
    }

    /// Whether nothing may be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_apart() {
        let given = ["noatime,discard", "ro", "rw", "defaults", "nofail", "x-systemd.idle", ""];
        let options = Options::parse(given).unwrap();
        assert_eq!(options.flags, MsFlags::MS_NOATIME);
        assert_eq!(options.data, "discard");
        assert!(!options.is_read_only());
        let options = Options::parse(["rw,ro,data=journal", "logbsize=256k"]).unwrap();
        assert!(options.is_read_only());
        assert_eq!(options.data, "data=journal,logbsize=256k");
        assert_eq!(Options::parse([]).unwrap().data, "");
    }

    #[test]
    fn what_would_be_another_kind_of_mount_is_refused_by_name() {
        for option in ["bind", "loop=/dev/loop3", "remount,ro", "a\nb", "a\\040b", "X-mount.mkdir"]
        {
            let error = Options::parse([option]).unwrap_err().to_string();
            assert!(error.starts_with("mount option"), "{error}");
        }
        assert!(Options::parse(["a".repeat(5000).as_str()]).is_err());
    }

    #[test]
    fn no_flag_is_named_twice() {
        for (at, (name, ..)) in FLAGS.iter().enumerate() {
            assert!(FLAGS.iter().skip(at + 1).all(|(other, ..)| other != name), "{name}");
            assert!(!IDLE.contains(name) && !REFUSED.contains(name), "{name}");
        }
    }
}
