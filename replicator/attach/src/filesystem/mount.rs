//! Mounting and unmounting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use super::alone::alone;
use super::grow::{grow_as_it_is, is_small};
use super::table::{self, MountPoint};
use super::{FileSystemError, Options, User, failed, repair, users, write_out};

/// How many mounts of one device at one directory are taken away at most.
const STACKED_MAX: usize = 16;
/// How long somebody who is not to be seen may use a mount that is to be unmounted.
const PASSING_LIMIT: Duration = Duration::from_secs(1);
const PASSING_PAUSE: Duration = Duration::from_millis(20);

/// A mount as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Of what.
    pub device: PathBuf,
    /// Where.
    pub dir: PathBuf,
    /// Type of the file system.
    pub fs: String,
    /// Options, as people write them.
    pub options: Vec<String>,
    /// Also if the options do not say so.
    pub read_only: bool,
}

impl Mount {
    fn options(&self) -> Result<Options, FileSystemError> {
        let mut options = Options::parse(self.options.iter().map(String::as_str))?;
        if self.read_only {
            options.flags |= MsFlags::MS_RDONLY;
        }
        // A volume that was made from a snapshot has a file system of the same id as its source's,
        // and both may be mounted on one node. That no device is mounted twice is seen to here.
        if self.fs == "xfs" && !options.data.split(',').any(|option| option == "nouuid") {
            let comma = if options.data.is_empty() { "" } else { "," };
            options.data.push_str(&format!("{comma}nouuid"));
        }
        Ok(options)
    }

    /// Sees to it that it can be mounted there: the directory is made if it is missing, then this
    /// returns true. One that is there must be empty, unless this very mount is there already.
    ///
    /// # Errors
    /// Options that cannot be given, and a directory that is in use.
    pub fn prepare(&self) -> Result<bool, FileSystemError> {
        self.options()?;
        if mounted_at(&self.device, &self.dir)? {
            return Ok(false);
        }
        let unfit = |what: &str| {
            let words = format!("cannot mount at {}: {what}", self.dir.display());
            FileSystemError::Unfit(words)
        };
        match fs::symlink_metadata(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir).map_err(|e| failed("cannot make", &self.dir, e))?;
                return Ok(true);
            }
            Err(e) => return Err(failed("cannot look at", &self.dir, e)),
            Ok(facts) if !facts.is_dir() => return Err(unfit("it is not a directory")),
            Ok(_) => {}
        }
        if let Some(other) = top(&self.dir)? {
            return Err(unfit(&format!("{} is mounted there", other.source.display())));
        }
        let mut entries =
            fs::read_dir(&self.dir).map_err(|e| failed("cannot read", &self.dir, e))?;
        match entries.next() {
            None => Ok(false),
            Some(_) => Err(unfit("it is not empty, and what is in it would be hidden")),
        }
    }
}

/// Directories as the kernel tells them. The last part is not looked at: the file system that is
/// mounted there may not answer.
fn real(dir: &Path) -> PathBuf {
    match (dir.parent().map(fs::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => dir.to_owned(),
    }
}

/// What is mounted at a directory, as it is seen there.
fn top(dir: &Path) -> Result<Option<MountPoint>, FileSystemError> {
    let dir = real(dir);
    let all = table::mounts().map_err(|e| failed("cannot read the mounts for", &dir, e))?;
    Ok(all.into_iter().rfind(|mount| mount.dir == dir))
}

/// Whether a device is what is seen at a directory. One that is gone is known by its name.
///
/// # Errors
/// If the kernel does not tell.
pub fn mounted_at(device: &Path, dir: &Path) -> Result<bool, FileSystemError> {
    let number = users::number(device);
    let is_it = |m: &MountPoint| number.map_or(m.source == device, |number| m.device == number);
    Ok(top(dir)?.is_some_and(|mount| is_it(&mount)))
}

/// Mounts a file system, having brought it into order if the device may be written, and lets it
/// grow if the device has grown. If it is mounted there already, all is well. Returns why it is
/// mounted and has not grown, if that is so.
///
/// # Errors
/// As [`Mount::prepare`] and [`repair`], and what the kernel says.
pub fn mount(mount: &Mount) -> Result<Option<FileSystemError>, FileSystemError> {
    mount.options()?;
    let _alone = alone(&mount.device)?;
    mount_alone(mount)
}

/// As [`mount`], by whoever has kept others off the device.
fn mount_alone(mount: &Mount) -> Result<Option<FileSystemError>, FileSystemError> {
    let Mount { device, dir, fs, .. } = mount;
    let options = mount.options()?;
    if mounted_at(device, dir)? {
        return Ok(None);
    }
    mount.prepare()?;
    if !mount.read_only {
        repair(device, fs)?;
    }
    let grows = !options.is_read_only() && is_small(device, fs)?;
    let data = Some(options.data.as_str()).filter(|data| !data.is_empty());
    let outcome = nix::mount::mount(Some(device), dir, Some(fs.as_str()), options.flags, data);
    outcome.map_err(|errno| refusal(mount, errno))?;
    Ok(if grows { grow_as_it_is(device, dir, fs).err() } else { None })
}

/// What a mount that the kernel refused means.
fn refusal(mount: &Mount, errno: Errno) -> FileSystemError {
    let Mount { device, dir, fs, .. } = mount;
    let (shown, at) = (device.display(), dir.display());
    let kernel = |what: String| FileSystemError::Kernel { what, source: errno.into() };
    match errno {
        Errno::EBUSY => {
            let by = users::words(&users::users(device));
            FileSystemError::Busy { what: device.clone(), by }
        }
        Errno::EROFS => FileSystemError::Unfit(format!(
            "the {fs} on {shown} was not unmounted cleanly, and its journal cannot be replayed on \
             a read-only device; attach the volume writable once and mount it, or give the mount \
             option {} to see it as it is",
            if fs == "xfs" { "norecovery" } else { "noload" },
        )),
        Errno::ENODEV => {
            kernel(format!("cannot mount {shown}: this kernel has no {fs}; load its module"))
        }
        Errno::EUCLEAN | Errno::EBADMSG => FileSystemError::Damaged {
            device: device.clone(),
            fs: fs.clone(),
            said: errno.desc().to_owned(),
            program: if fs == "xfs" { "xfs_repair" } else { "its own checker" },
        },
        _ => kernel(format!("cannot mount {shown} at {at} as {fs} (dmesg may tell more)")),
    }
}

/// Unmounts a device from a directory. If something else or nothing is mounted there, all is well.
///
/// # Errors
/// [`FileSystemError::Busy`] names who uses it, as far as that can be told.
pub fn unmount(device: &Path, dir: &Path) -> Result<(), FileSystemError> {
    if !mounted_at(device, dir)? {
        return Ok(());
    }
    let dir = real(dir);
    let begin = Instant::now();
    loop {
        match umount2(&dir, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => return Ok(()),
            Err(Errno::EBUSY) => {}
            Err(errno) => return Err(failed("cannot unmount", &dir, errno.into())),
        }
        let users = users::users_below(&dir);
        if !users.is_empty() || begin.elapsed() > PASSING_LIMIT {
            let by = users::words(&users);
            return Err(FileSystemError::Busy { what: dir, by });
        }
        wait_a_moment();
    }
}

/// Leaves a device with nothing mounted and nothing for the kernel to write to it: it can be
/// closed then. `mount` is what may be mounted of it; it is mounted again if this fails. One who
/// was told to do the same before, and whose daemon has died, is waited for: while he unmounts, the
/// device is in use though nobody is seen to use it.
///
/// # Errors
/// [`FileSystemError::Busy`] if somebody else uses the device.
pub fn settle(device: &Path, mount: Option<&Mount>) -> Result<(), FileSystemError> {
    let _alone = alone(device)?;
    // Programs that only look at all devices, as udev does, are none that use it.
    let counts = |user: &User| !matches!(user, User::Process { .. });
    let ours = mount.map(|mount| User::Mount(mount.dir.clone()));
    let mut others = users::users(device).into_iter().filter(counts);
    if let Some(other) = others.find(|user| Some(user) != ours.as_ref()) {
        let by = other.to_string();
        return Err(FileSystemError::Busy { what: device.to_owned(), by });
    }
    let Some(mount) = mount else { return write_out(device) };
    unmount(device, &mount.dir)?;
    let written = write_out(device);
    if written.is_err() {
        mount_alone(mount)?;
    }
    written
}

/// Whoever is not to be seen uses it for a moment only: a process that is just being made has the
/// files of its parent until it becomes its program.
fn wait_a_moment() {
    std::thread::sleep(PASSING_PAUSE);
}

/// Takes the mount of a device out of sight at once, whoever uses it and whatever the device does.
/// It ends when the last file is closed.
///
/// # Errors
/// If the kernel refuses.
pub fn detach(device: &Path, dir: &Path) -> Result<(), FileSystemError> {
    let real = real(dir);
    for _ in 0..STACKED_MAX {
        if !mounted_at(device, dir)? {
            break;
        }
        umount2(&real, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
            .map_err(|errno| failed("cannot detach", &real, errno.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(dir: &Path) -> Mount {
        Mount {
            device: "/dev/null".into(),
            dir: dir.to_owned(),
            fs: "ext4".to_owned(),
            options: Vec::new(),
            read_only: false,
        }
    }

    #[test]
    fn a_directory_is_made_and_one_that_is_in_use_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let mut mount = wanted(&dir);
        assert!(mount.prepare().unwrap(), "it was made");
        assert!(!mount.prepare().unwrap(), "it was there");
        fs::write(dir.join("file"), "").unwrap();
        let told = mount.prepare().unwrap_err().to_string();
        assert!(told.contains("not empty") && told.contains("a/b"), "{told}");
        let told = wanted(&dir.join("file")).prepare().unwrap_err().to_string();
        assert!(told.contains("not a directory"), "{told}");
        let told = wanted(Path::new("/proc")).prepare().unwrap_err().to_string();
        assert!(told.contains("is mounted there"), "{told}");
        mount.options = vec!["bind".to_owned()];
        assert!(mount.prepare().is_err());
    }

    #[test]
    fn what_is_not_mounted_needs_no_unmounting() {
        let dir = tempfile::tempdir().unwrap();
        unmount(Path::new("/dev/null"), dir.path()).unwrap();
        detach(Path::new("/dev/null"), &dir.path().join("none")).unwrap();
        unmount(Path::new("/dev/null"), Path::new("/proc")).unwrap();
        assert!(top(Path::new("/proc")).unwrap().is_some());
    }

    /// Whether somebody waits for a lock on a file.
    fn is_waited_for(file: &fs::File) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let inode = format!(":{} ", file.metadata().unwrap().ino());
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        locks.lines().any(|line| line.contains("->") && line.contains(&inode))
    }

    #[test]
    fn whoever_is_still_at_work_on_a_device_is_waited_for() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let (path, file) = (device.path().to_owned(), device.as_file());
        let at_work = alone(&path).unwrap();
        let settling = std::thread::spawn(move || settle(&path, None));
        while !settling.is_finished() && !is_waited_for(file) {
            std::thread::yield_now();
        }
        assert!(!settling.is_finished(), "it did not wait");
        drop(at_work);
        settling.join().unwrap().unwrap();
    }

    #[test]
    fn refusals_say_what_to_do() {
        let mount = Mount { fs: "xfs".to_owned(), ..wanted(Path::new("/mnt")) };
        for (errno, told) in [
            (Errno::EROFS, "norecovery"),
            (Errno::ENODEV, "no xfs"),
            (Errno::EUCLEAN, "xfs_repair"),
            (Errno::EBUSY, "in use"),
            (Errno::EINVAL, "dmesg"),
        ] {
            let words = refusal(&mount, errno).to_string();
            assert!(words.contains(told), "{words}");
        }
    }
}
