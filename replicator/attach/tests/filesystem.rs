//! File systems on real devices: loop devices over files of the tests' own. As root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "in a test, a panic is how a failure is told; helpers count as tests"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_attach::filesystem::{
    Content, FileSystem, FileSystemError, Mount, User, content, detach, make, mount, mounted_at,
    mounts, remake, repair, settle, unmount, users,
};
use nix::fcntl::{Flock, FlockArg};

const MIB: u64 = 1 << 20;

/// A loop device, and a directory for mounts of it. Ends with the test.
struct Device {
    dir: tempfile::TempDir,
    path: PathBuf,
}

fn losetup(arguments: &[&OsStr]) -> String {
    let output = Command::new("losetup")
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "losetup {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

impl Device {
    fn new(size_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("image")).unwrap().set_len(size_bytes).unwrap();
        Self::over(dir, &[])
    }

    /// Over the image in a directory.
    fn over(dir: tempfile::TempDir, more: &[&str]) -> Self {
        let image = dir.path().join("image");
        let mut arguments: Vec<&OsStr> = vec!["--find".as_ref(), "--show".as_ref()];
        arguments.extend(["--sector-size", "4096"].iter().chain(more).map(OsStr::new));
        arguments.push(image.as_os_str());
        let path = losetup(&arguments).into();
        Self { dir, path }
    }

    fn mount(&self, fs: &str) -> Mount {
        Mount {
            device: self.path.clone(),
            // With a blank and a backslash, as the kernel writes them in its own way.
            dir: self.dir.path().join("m o\\nt"),
            fs: fs.to_owned(),
            options: vec!["noatime".to_owned()],
            read_only: false,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Only ever those of this device.
        for dir in mounts().unwrap_or_default().into_iter().filter(|m| m.source == self.path) {
            let _ = detach(&self.path, &dir.dir);
        }
        losetup(&["--detach".as_ref(), self.path.as_os_str()]);
    }
}

/// Whether these tests can run, or says why not.
fn is_possible(test: &str) -> bool {
    let is_root = fs::metadata("/proc/self")
        .is_ok_and(|facts| std::os::unix::fs::MetadataExt::uid(&facts) == 0);
    if !is_root || !Path::new("/dev/loop-control").exists() {
        println!("SKIPPED {test}: needs root and loop devices");
        return false;
    }
    for tool in ["mkfs.ext4", "mkfs.xfs", "blkid", "losetup"] {
        let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
        if !dirs.iter().any(|dir| Path::new(dir).join(tool).exists()) {
            println!("SKIPPED {test}: {tool} is not installed");
            return false;
        }
    }
    true
}

/// The users of a device without such as may have it for a moment: programs that look at all loop
/// devices, and such as got all mounts with a mount namespace of their own.
fn own_users(device: &Device) -> Vec<User> {
    let own = |user: &User| match user {
        User::Process { pid, .. } => *pid == std::process::id(),
        User::Elsewhere(..) => false,
        User::Mount(_) | User::Swap | User::Holder(_) => true,
    };
    users(&device.path).into_iter().filter(own).collect()
}

fn round_trip(fs: FileSystem) {
    let device = Device::new(320 * MIB);
    assert_eq!(content(&device.path).unwrap(), Content::Blank);
    assert!(make(&device.path, fs).unwrap(), "it was blank");
    assert!(!make(&device.path, fs).unwrap(), "it has been made already");
    assert_eq!(content(&device.path).unwrap(), Content::FileSystem(fs.name().to_owned()));

    let wanted = device.mount(fs.name());
    assert!(wanted.prepare().unwrap(), "the directory was made");
    mount(&wanted).unwrap();
    mount(&wanted).unwrap();
    assert!(mounted_at(&device.path, &wanted.dir).unwrap());
    let listed: Vec<_> =
        mounts().unwrap().into_iter().filter(|m| m.source == device.path).collect();
    let [listed] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((listed.dir.as_path(), listed.fs.as_str()), (wanted.dir.as_path(), fs.name()));
    assert!(listed.options.contains("noatime"), "{}", listed.options);

    let file = fs::File::create(wanted.dir.join("file")).unwrap();
    file.write_all_at(b"content", 0).unwrap();
    let told = unmount(&device.path, &wanted.dir).unwrap_err();
    let FileSystemError::Busy { by, .. } = &told else { panic!("{told}") };
    assert!(by.contains(&std::process::id().to_string()) && by.contains("/file"), "{by}");
    assert!(users(&device.path).contains(&User::Mount(wanted.dir.clone())));
    let told = settle(&device.path, None).unwrap_err().to_string();
    assert!(told.contains("in use: it is mounted"), "{told}");
    drop(file);
    unmount(&device.path, &wanted.dir).unwrap();
    settle(&device.path, None).unwrap();
    unmount(&device.path, &wanted.dir).unwrap();
    assert!(!mounted_at(&device.path, &wanted.dir).unwrap());
    assert_eq!(own_users(&device), []);

    let read_only = Mount { read_only: true, ..wanted };
    mount(&read_only).unwrap();
    assert_eq!(fs::read(read_only.dir.join("file")).unwrap(), b"content");
    assert!(fs::write(read_only.dir.join("other"), "").is_err());
    detach(&device.path, &read_only.dir).unwrap();
    assert!(!mounted_at(&device.path, &read_only.dir).unwrap());
}

#[test]
fn ext4_is_made_mounted_used_and_unmounted() {
    if is_possible("ext4_is_made_mounted_used_and_unmounted") {
        round_trip(FileSystem::Ext4);
    }
}

#[test]
fn xfs_is_made_mounted_used_and_unmounted() {
    if is_possible("xfs_is_made_mounted_used_and_unmounted") {
        round_trip(FileSystem::Xfs);
    }
}

#[test]
fn two_who_mount_it_at_once_mount_it_once() {
    if !is_possible("two_who_mount_it_at_once_mount_it_once") {
        return;
    }
    let device = Device::new(32 * MIB);
    make(&device.path, FileSystem::Ext4).unwrap();
    let wanted = device.mount("ext4");
    for _ in 0..10 {
        std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| mount(&wanted)));
            for one in both {
                one.join().unwrap().unwrap();
            }
        });
        assert_eq!(mounts().unwrap().iter().filter(|m| m.source == device.path).count(), 1);
        unmount(&device.path, &wanted.dir).unwrap();
    }
}

#[test]
fn nothing_is_made_over_anything() {
    if !is_possible("nothing_is_made_over_anything") {
        return;
    }
    let device = Device::new(320 * MIB);
    let writes = fs::OpenOptions::new().write(true).open(&device.path).unwrap();
    for at in [0, 5000, 320 * MIB - 1] {
        writes.write_all_at(&[9], at).unwrap();
        writes.sync_all().unwrap();
        let told = make(&device.path, FileSystem::Ext4).unwrap_err();
        assert!(matches!(told, FileSystemError::NotBlank { .. }), "{told}");
        assert!(told.to_string().contains(&format!("at byte {at}")), "{told}");
        writes.write_all_at(&[0], at).unwrap();
    }
    // The signature of a disk that is encrypted.
    writes.write_all_at(b"LUKS\xba\xbe\x00\x02", 0).unwrap();
    writes.sync_all().unwrap();
    let told = make(&device.path, FileSystem::Xfs).unwrap_err();
    assert!(matches!(told, FileSystemError::NotBlank { .. }), "{told}");
    writes.write_all_at(&[0; 8], 0).unwrap();
    writes.sync_all().unwrap();
    drop(writes);

    assert!(make(&device.path, FileSystem::Xfs).unwrap());
    let told = make(&device.path, FileSystem::Ext4).unwrap_err().to_string();
    assert!(told.contains("type xfs"), "{told}");
    assert_eq!(content(&device.path).unwrap(), Content::FileSystem("xfs".to_owned()));
}

/// What the first half of making a file system may leave: its journal, say, and no superblock.
fn spoil(device: &Path) {
    let writes = fs::OpenOptions::new().write(true).open(device).unwrap();
    writes.write_all_at(&[0xa5; 65536], 8 * 65536).unwrap();
    writes.sync_all().unwrap();
}

fn made_again(fs: FileSystem, other: FileSystem) {
    let device = Device::new(320 * MIB);
    spoil(&device.path);
    assert!(matches!(make(&device.path, fs), Err(FileSystemError::NotBlank { .. })));
    remake(&device.path, fs).unwrap();
    let wanted = device.mount(fs.name());
    mount(&wanted).unwrap();
    fs::write(wanted.dir.join("file"), "content").unwrap();
    unmount(&device.path, &wanted.dir).unwrap();

    // One that is whole is left alone, whoever made it.
    remake(&device.path, fs).unwrap();
    let told = remake(&device.path, other).unwrap_err();
    assert!(matches!(told, FileSystemError::NotBlank { .. }), "{told}");
    mount(&wanted).unwrap();
    assert_eq!(fs::read(wanted.dir.join("file")).unwrap(), b"content");
    unmount(&device.path, &wanted.dir).unwrap();

    // Its superblock is there, and what it tells of is not.
    let writes = fs::OpenOptions::new().write(true).open(&device.path).unwrap();
    writes.write_all_at(&[0; 65536], 8192).unwrap();
    writes.sync_all().unwrap();
    drop(writes);
    assert_eq!(content(&device.path).unwrap(), Content::FileSystem(fs.name().to_owned()));
    remake(&device.path, other).unwrap();
    assert_eq!(content(&device.path).unwrap(), Content::FileSystem(other.name().to_owned()));
    mount(&device.mount(other.name())).unwrap();
}

#[test]
fn ext4_that_was_cut_short_is_made_again() {
    if is_possible("ext4_that_was_cut_short_is_made_again") {
        made_again(FileSystem::Ext4, FileSystem::Xfs);
    }
}

#[test]
fn xfs_that_was_cut_short_is_made_again() {
    if is_possible("xfs_that_was_cut_short_is_made_again") {
        made_again(FileSystem::Xfs, FileSystem::Ext4);
    }
}

#[test]
fn who_makes_one_again_waits_for_who_makes_it_still() {
    if !is_possible("who_makes_one_again_waits_for_who_makes_it_still") {
        return;
    }
    let device = Device::new(64 * MIB);
    spoil(&device.path);
    let file = fs::File::open(&device.path).unwrap();
    let maker = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
    let path = device.path.clone();
    let again = std::thread::spawn(move || remake(&path, FileSystem::Ext4));
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&device.path).unwrap());
    let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&format!(":{inode} "));
    while !fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        assert!(!again.is_finished(), "it did not wait");
        std::thread::yield_now();
    }
    // A block that would be gone if anything had been made.
    assert!(matches!(content(&device.path).unwrap(), Content::Other(_)));
    drop(maker);
    again.join().unwrap().unwrap();
    assert_eq!(content(&device.path).unwrap(), Content::FileSystem("ext4".to_owned()));
}

#[test]
fn a_device_that_is_too_small_for_xfs_is_told_so() {
    if !is_possible("a_device_that_is_too_small_for_xfs_is_told_so") {
        return;
    }
    let device = Device::new(64 * MIB);
    let told = make(&device.path, FileSystem::Xfs).unwrap_err().to_string();
    assert!(told.contains("300 MiB") && told.contains("has 64 MiB"), "{told}");
    assert_eq!(content(&device.path).unwrap(), Content::Blank);
}

/// What was on a device while it was mounted, as a machine that loses power leaves it: in a
/// directory, for a device over it.
fn unclean(fs: FileSystem, files: u32) -> tempfile::TempDir {
    let device = Device::new(320 * MIB);
    make(&device.path, fs).unwrap();
    let wanted = device.mount(fs.name());
    mount(&wanted).unwrap();
    for number in 0..files {
        let file = fs::File::create(wanted.dir.join(number.to_string())).unwrap();
        file.write_all_at(&[7; 9000], 0).unwrap();
        file.sync_all().unwrap();
    }
    let after = tempfile::tempdir().unwrap();
    fs::copy(device.dir.path().join("image"), after.path().join("image")).unwrap();
    after
}

/// On a read-only device its journal cannot be replayed, and that is said; on a writable one it is.
fn returns_to_order(fs: FileSystem) {
    let device = Device::over(unclean(fs, 20), &["--read-only"]);
    let mut wanted = Mount { read_only: true, ..device.mount(fs.name()) };
    let told = mount(&wanted).unwrap_err().to_string();
    let option = if fs == FileSystem::Xfs { "norecovery" } else { "noload" };
    assert!(told.contains("not unmounted cleanly") && told.contains(option), "{told}");
    wanted.options = vec![option.to_owned()];
    mount(&wanted).unwrap();
    detach(&device.path, &wanted.dir).unwrap();
    drop(device);

    let device = Device::over(unclean(fs, 20), &[]);
    let wanted = device.mount(fs.name());
    repair(&device.path, fs.name()).unwrap();
    mount(&wanted).unwrap();
    for number in 0..20 {
        assert_eq!(fs::read(wanted.dir.join(number.to_string())).unwrap(), [7; 9000], "{number}");
    }
}

#[test]
fn ext4_that_was_not_unmounted_returns_to_order() {
    if is_possible("ext4_that_was_not_unmounted_returns_to_order") {
        returns_to_order(FileSystem::Ext4);
    }
}

#[test]
fn xfs_that_was_not_unmounted_returns_to_order() {
    if is_possible("xfs_that_was_not_unmounted_returns_to_order") {
        returns_to_order(FileSystem::Xfs);
    }
}

/// Requests to read that a device has got so far.
fn reads(device: &Device) -> u64 {
    let name = device.path.file_name().unwrap();
    let stat = fs::read_to_string(Path::new("/sys/block").join(name).join("stat")).unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

/// The kernel reads each transaction several times, which takes long where a request does.
#[test]
fn the_log_of_xfs_is_replayed_in_few_requests() {
    if !is_possible("the_log_of_xfs_is_replayed_in_few_requests") {
        return;
    }
    let files = 300;
    // The kernel by itself, for comparison.
    let device = Device::over(unclean(FileSystem::Xfs, files), &[]);
    let wanted = device.mount("xfs");
    fs::create_dir(&wanted.dir).unwrap();
    let before = reads(&device);
    let flags = nix::mount::MsFlags::empty();
    let none = None::<&str>;
    nix::mount::mount(Some(&device.path), &wanted.dir, Some("xfs"), flags, none).unwrap();
    let by_kernel = reads(&device) - before;
    drop(device);

    let device = Device::over(unclean(FileSystem::Xfs, files), &[]);
    let before = reads(&device);
    repair(&device.path, "xfs").unwrap();
    mount(&device.mount("xfs")).unwrap();
    let by_us = reads(&device) - before;
    println!("{by_us} requests to read, and {by_kernel} by the kernel");
    assert!(by_us * 2 < by_kernel, "{by_us} requests, and {by_kernel} by the kernel");
    assert_eq!(fs::read_dir(device.dir.path().join("m o\\nt")).unwrap().count(), files as usize);
    assert!(own_users(&device).iter().all(|user| matches!(user, User::Mount(_))));
}

#[test]
fn damage_is_left_to_people() {
    if !is_possible("damage_is_left_to_people") {
        return;
    }
    let device = Device::new(64 * MIB);
    make(&device.path, FileSystem::Ext4).unwrap();
    let writes = fs::OpenOptions::new().read(true).write(true).open(&device.path).unwrap();
    // The first inodes, the root among them, become noise.
    let table = 4096 * u64::from(first_inode_table(&writes));
    writes.write_all_at(&[0xa5; 8192], table).unwrap();
    writes.sync_all().unwrap();
    drop(writes);
    let told = repair(&device.path, "ext4").unwrap_err();
    assert!(matches!(told, FileSystemError::Damaged { program: "e2fsck", .. }), "{told}");
}

/// Where the inodes begin, by the first group's descriptor of ext4: 4 bytes at 8 of block 1.
fn first_inode_table(device: &fs::File) -> u32 {
    let mut number = [0; 4];
    device.read_exact_at(&mut number, 4096 + 8).unwrap();
    u32::from_le_bytes(number)
}
