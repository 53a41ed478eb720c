//! What is mounted where, and bind mounts. All here may wait for a device.

use lockstep_attach::filesystem::{self, MountPoint, mounts};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{major, minor};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::Status;

/// How many mounts at one place are taken away at most.
const STACKED_MAX: usize = 16;
/// A process that is just being made has the files of its parent for a moment.
const BUSY_LIMIT: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// What kernels call the block devices that a daemon makes.
const DEVICES: [&str; 3] = ["loop", "ublkb", "nbd"];

/// What is at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// The device asked for, or the file system on it.
    It {
        /// The device itself.
        block: bool,
        /// Of this mount; that the device is so is not told.
        read_only: bool,
    },
    /// Something else, by what was named as its device.
    Other(PathBuf),
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("{what} {}: {error}", path.display()))
}

fn table() -> Result<Vec<MountPoint>, Status> {
    mounts().map_err(|error| Status::internal(format!("cannot read what is mounted: {error}")))
}

/// A path as the kernel tells it. The last part is not looked at: what is mounted there may not
/// answer.
fn real(path: &Path) -> PathBuf {
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// What is seen at a place, if something is mounted there.
fn top(path: &Path) -> Result<Option<MountPoint>, Status> {
    let path = real(path);
    Ok(table()?.into_iter().rfind(|mount| mount.dir == path))
}

/// Major and minor number of a block device.
pub(super) fn of_device(device: &Path) -> Option<(u64, u64)> {
    let facts = fs::metadata(device).ok().filter(|facts| facts.file_type().is_block_device())?;
    Some((major(facts.rdev()), minor(facts.rdev())))
}

/// The number of the device whose file system is mounted at a place.
pub(super) fn at(path: &Path) -> Result<Option<(u64, u64)>, Status> {
    Ok(top(path)?.map(|mount| mount.device))
}

/// Whether a mount shows a device itself, and not what is on it.
fn is_node_of(mount: &MountPoint, device: &Path) -> bool {
    let same_name = mount.root.file_name() == device.file_name();
    same_name && ["devtmpfs", "tmpfs"].contains(&mount.fs.as_str())
}

/// What is at a place, seen from a device.
pub(super) fn found(device: &Path, path: &Path) -> Result<Found, Status> {
    let Some(mount) = top(path)? else { return Ok(Found::Nothing) };
    let read_only = mount.options.split(',').any(|option| option == "ro");
    if is_node_of(&mount, device) {
        return Ok(Found::It { block: true, read_only: false });
    }
    if of_device(device) == Some(mount.device) {
        return Ok(Found::It { block: false, read_only });
    }
    Ok(Found::Other(mount.source))
}

/// Whether a volume can be seen at a place.
pub(super) fn shows(device: &Path, path: &Path) -> Result<bool, Status> {
    Ok(matches!(found(device, path)?, Found::It { .. }))
}

/// A place where a device or its file system is mounted, other than these.
pub(super) fn elsewhere(device: &Path, besides: &[&Path]) -> Result<Option<PathBuf>, Status> {
    let besides: Vec<PathBuf> = besides.iter().map(|path| real(path)).collect();
    let number = of_device(device);
    let is_it = |mount: &MountPoint| Some(mount.device) == number || is_node_of(mount, device);
    let mut others = table()?.into_iter().filter(is_it).map(|mount| mount.dir);
    // The place where the kernel itself has its device nodes is none.
    Ok(others.find(|dir| !besides.contains(dir) && !dir.starts_with("/dev")))
}

/// Makes what is to be mounted on: a directory, or an empty file for a device.
fn make_target(target: &Path, block: bool) -> Result<(), Status> {
    let made = if block {
        let made = fs::OpenOptions::new().write(true).create_new(true).open(target);
        made.map(drop)
    } else {
        fs::DirBuilder::new().mode(0o750).create(target)
    };
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let facts = fs::symlink_metadata(target);
            let facts = facts.map_err(|error| failed("cannot look at", target, &error))?;
            let fits = if block { facts.is_file() } else { facts.is_dir() };
            if fits {
                return Ok(());
            }
            let what = if block { "an empty file" } else { "a directory" };
            let why = format!("{} is there and is not {what}; remove it", target.display());
            Err(Status::failed_precondition(why))
        }
        Err(error) => Err(failed("cannot make", target, &error)),
    }
}

/// Shows a device or directory at another place, which is made.
pub(super) fn bind(
    source: &Path,
    target: &Path,
    block: bool,
    read_only: bool,
) -> Result<(), Status> {
    make_target(target, block)?;
    if !read_only {
        return bind_writable(source, target);
    }
    match filesystem::bind_read_only(source, target) {
        // The kernel is older, or a filter of system calls knows none of these.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            bind_in_two_steps(source, target)
        }
        done => done.map_err(|error| failed("cannot mount at", target, &error)),
    }
}

fn bind_writable(source: &Path, target: &Path) -> Result<(), Status> {
    let nothing = None::<&str>;
    mount(Some(source), target, nothing, MsFlags::MS_BIND, nothing)
        .map_err(|errno| failed("cannot mount at", target, &errno.into()))
}

fn bind_in_two_steps(source: &Path, target: &Path) -> Result<(), Status> {
    bind_writable(source, target)?;
    let read_only = || {
        let options = top(target)?.map(|mount| mount.options).unwrap_or_default();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | kept(&options);
        let nothing = None::<&str>;
        mount(nothing, target, nothing, flags, nothing)
            .map_err(|errno| failed("cannot mount at", target, &errno.into()))
    };
    // Never leave it writable: the next call would take it for what is there.
    read_only().inspect_err(|_| take_back(target))
}

/// What a mount forbids, of that which it would allow again if it were not told anew.
fn kept(options: &str) -> MsFlags {
    let flag = |option: &str| match option {
        "nosuid" => MsFlags::MS_NOSUID,
        "nodev" => MsFlags::MS_NODEV,
        "noexec" => MsFlags::MS_NOEXEC,
        _ => MsFlags::empty(),
    };
    options.split(',').map(flag).collect()
}

/// Takes away what [`bind`] has just mounted and nobody was told of.
pub(super) fn take_back(target: &Path) {
    // If it fails, the next call finds it, and says so.
    let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
}

/// Whether a mount is of a device that a daemon may have made.
fn may_be_ours(mount: &MountPoint) -> bool {
    // So the kernel tells of a file that was removed since: a device that is gone.
    let root = mount.root.to_str().and_then(|root| root.strip_suffix("//deleted"));
    let root = root.map_or(mount.root.as_path(), Path::new);
    let of_a_device = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        DEVICES.iter().any(|device| name.starts_with(device))
    };
    of_a_device(&mount.source) || of_a_device(root)
}

fn foreign(mount: &MountPoint) -> Status {
    Status::invalid_argument(format!(
        "{} is mounted at {}, and no volume is: nothing was unmounted",
        mount.source.display(),
        mount.dir.display()
    ))
}

/// Takes away what [`bind`] has mounted, and what it was mounted on.
pub(super) fn unbind(target: &Path) -> Result<(), Status> {
    for _ in 0..STACKED_MAX {
        let Some(mount) = top(target)? else { break };
        if !may_be_ours(&mount) {
            return Err(foreign(&mount));
        }
        unmount(&mount.dir)?;
    }
    let facts = match fs::symlink_metadata(target) {
        Ok(facts) => facts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // The parent is none.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) => return Err(failed("cannot look at", target, &error)),
    };
    // Only what is empty: anything else was not made here, and may be somebody's data.
    let removed = if facts.is_dir() {
        fs::remove_dir(target)
    } else if facts.is_file() && facts.len() == 0 {
        fs::remove_file(target)
    } else {
        let why = format!("{} is not an empty file or directory; left alone", target.display());
        return Err(Status::failed_precondition(why));
    };
    match removed {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let why = format!("{} is not empty; left alone", target.display());
            Err(Status::failed_precondition(why))
        }
        Err(error) => Err(failed("cannot remove", target, &error)),
    }
}

fn unmount(dir: &Path) -> Result<(), Status> {
    let begin = Instant::now();
    loop {
        match umount2(dir, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL) => return Ok(()),
            Err(Errno::EBUSY) if begin.elapsed() < BUSY_LIMIT => {
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(Errno::EBUSY) => {
                let why = format!("{} is in use; end what uses it first", dir.display());
                return Err(Status::failed_precondition(why));
            }
            Err(errno) => return Err(failed("cannot unmount", dir, &errno.into())),
        }
    }
}

/// Takes mounts out of sight whose volume is not here any more.
pub(super) fn clear(dir: &Path) -> Result<(), Status> {
    for _ in 0..STACKED_MAX {
        let Some(mount) = top(dir)? else { return Ok(()) };
        if !may_be_ours(&mount) {
            return Err(foreign(&mount));
        }
        match umount2(&mount.dir, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(failed("cannot unmount", dir, &errno.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn what_is_not_ours_is_never_unmounted() {
        for place in ["/proc", "/dev", "/sys"] {
            if top(Path::new(place)).unwrap().is_none() {
                continue;
            }
            let refused = unbind(Path::new(place)).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{place}");
            assert!(clear(Path::new(place)).is_err());
        }
        assert!(top(Path::new("/proc")).unwrap().is_some());
    }

    #[test]
    fn only_empty_targets_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("full")).unwrap();
        fs::write(path("full/file"), "data").unwrap();
        assert!(unbind(&path("full")).is_err());
        assert!(unbind(&path("full/file")).is_err());
        assert!(path("full/file").exists());
        fs::create_dir(path("empty")).unwrap();
        fs::write(path("file"), "").unwrap();
        for name in ["empty", "file", "none", "none/none", "file/none"] {
            unbind(&path(name)).unwrap();
            assert!(!path(name).exists(), "{name}");
        }
    }

    #[test]
    fn a_target_is_made_once_and_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        for (name, block) in [("dir", false), ("file", true)] {
            let target = dir.path().join(name);
            make_target(&target, block).unwrap();
            make_target(&target, block).unwrap();
            let refused = make_target(&target, !block).unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
        }
        let nowhere = dir.path().join("none/target");
        assert_eq!(make_target(&nowhere, true).unwrap_err().code(), Code::Internal);
    }

    #[test]
    fn what_a_mount_forbids_stays_forbidden() {
        assert_eq!(kept("rw,relatime"), MsFlags::empty());
        let all = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        assert_eq!(kept("rw,nosuid,nodev,noexec,relatime"), all);
    }

    #[test]
    fn a_place_is_told_from_another() {
        let device = Path::new("/dev/loop7");
        let mount = |root: &str, fs: &str, source: &str| MountPoint {
            device: (0, 5),
            root: root.into(),
            dir: "/t".into(),
            options: String::new(),
            fs: fs.to_owned(),
            source: source.into(),
        };
        assert!(is_node_of(&mount("/loop7", "devtmpfs", "udev"), device));
        assert!(!is_node_of(&mount("/loop8", "devtmpfs", "udev"), device));
        assert!(!is_node_of(&mount("/loop7", "ext4", "/dev/sda"), device));
        assert!(may_be_ours(&mount("/", "ext4", "/dev/ublkb0")));
        assert!(may_be_ours(&mount("/nbd1", "devtmpfs", "udev")));
        let gone = mount("/loop7//deleted", "devtmpfs", "udev");
        assert!(may_be_ours(&gone), "a device that was removed can be unpublished");
        assert!(!is_node_of(&gone, device), "its name may be another one's by now");
        assert!(!may_be_ours(&mount("/", "ext4", "/dev/sda1")));
        assert_eq!(found(device, Path::new("/nowhere/at/all")).unwrap(), Found::Nothing);
    }
}
