//! The loop device over the file.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lockstep_kernel::loopback;
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::backend::BLOCK_BYTES;
use crate::device::DeviceError;
use crate::filesystem::users;

/// Major number of loop devices.
const MAJOR: u64 = 7;
/// Others may take the number that we were told was free.
const TRIES_MAX: u32 = 64;
/// Programs that look at new devices have them open for a moment.
const PASSERS_BY: Duration = Duration::from_secs(1);
/// How long the kernel may take to unbind a device that nobody has open.
const UNBINDING: Duration = Duration::from_secs(10);
/// How long the kernel may go on missing the new size of a file that is used meanwhile.
const GROWING: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The path of a loop device.
pub(crate) fn path(index: u32) -> PathBuf {
    format!("/dev/loop{index}").into()
}

/// Binds the file at `place` to a free loop device and returns its number.
pub(crate) fn bind(place: &Path, read_only: bool) -> Result<u32, DeviceError> {
    let failed = |what: String, source: io::Error| DeviceError::Refused { what, source };
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(nix::libc::O_DIRECT)
        .open(place)
        .map_err(|error| failed(format!("opening {}", place.display()), error))?;
    // Older kernels take the size that they know of, which is 0 until somebody asks for it.
    let size = file.metadata().map(|metadata| metadata.len());
    if size.is_err() || size.is_ok_and(|bytes| bytes == 0) {
        let source = io::Error::from(Errno::EIO);
        return Err(failed(format!("asking {} for its size", place.display()), source));
    }
    let name = place.to_string_lossy();
    let shape = loopback::Shape {
        block_bytes: BLOCK_BYTES,
        read_only,
        direct_io: true,
        autoclear: false,
        name: &name,
    };
    let (index, device) = bind_free(file.as_fd(), shape)?;
    check(index, &device)
}

/// A loop device over a block device, which is read and written through the page cache. It ends
/// when nobody has it open any more.
pub(crate) fn through_page_cache(file: &File, of: &Path) -> Result<(File, PathBuf), DeviceError> {
    let name = of.to_string_lossy();
    let shape = loopback::Shape {
        block_bytes: BLOCK_BYTES,
        read_only: false,
        direct_io: false,
        autoclear: true,
        name: &name,
    };
    let (index, device) = bind_free(file.as_fd(), shape)?;
    Ok((device, path(index)))
}

/// Binds a file to a loop device that is free.
fn bind_free(file: BorrowedFd<'_>, shape: loopback::Shape<'_>) -> Result<(u32, File), DeviceError> {
    let failed = |what: String, source: io::Error| DeviceError::Refused { what, source };
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
    let control = control.map_err(|error| {
        failed("opening /dev/loop-control; load the module loop".to_owned(), error)
    })?;
    for _ in 0..TRIES_MAX {
        let index = loopback::free_index(&control)
            .map_err(|error| failed("asking for a free loop device".to_owned(), error))?;
        let device = open(index, shape.read_only)
            .map_err(|error| failed(format!("opening {}", path(index).display()), error))?;
        match loopback::configure(&device, file, shape) {
            Ok(()) => return Ok((index, device)),
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {}
            Err(error) => {
                let what =
                    format!("binding {}; that takes Linux 5.8 or newer", path(index).display());
                return Err(failed(what, error));
            }
        }
    }
    let source = io::Error::from(Errno::EBUSY);
    Err(failed("finding a loop device that is free; others take them too".to_owned(), source))
}

/// Through the page cache, the device would need memory to free memory.
fn check(index: u32, device: &File) -> Result<u32, DeviceError> {
    let status = loopback::status(device).ok().flatten();
    if status.is_some_and(|status| status.direct_io) {
        return Ok(index);
    }
    let _ = loopback::clear(device);
    let source = io::Error::from(Errno::EOPNOTSUPP);
    Err(DeviceError::Refused { what: format!("direct I/O on /dev/loop{index}"), source })
}

/// Opens a loop device, and makes its node first where nobody else does.
fn open(index: u32, read_only: bool) -> io::Result<File> {
    let path = path(index);
    let attempt = || OpenOptions::new().read(true).write(!read_only).open(&path);
    match attempt() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = Mode::from_bits_truncate(0o660);
            match mknod(&path, SFlag::S_IFBLK, mode, makedev(MAJOR, u64::from(index))) {
                Ok(()) | Err(Errno::EEXIST) => attempt(),
                Err(errno) => Err(errno.into()),
            }
        }
        outcome => outcome,
    }
}

fn sys(index: u32, name: &str) -> PathBuf {
    Path::new("/sys/block").join(format!("loop{index}")).join(name)
}

/// Whether it is bound to anything.
fn is_bound(index: u32) -> bool {
    sys(index, "loop").exists()
}

/// Whether the file that it is bound to is the one that was at `place`, by its name. Asks nobody.
fn has_file(index: u32, place: &Path) -> bool {
    let name = std::fs::read_to_string(sys(index, "loop/backing_file")).unwrap_or_default();
    Path::new(name.trim_end_matches('\n')) == place
}

/// Whether it is bound to the file of this connection. May ask that for attributes, so somebody
/// must serve it, or it must have been ended.
pub(crate) fn is_over(index: u32, connection: u32) -> bool {
    let device = open(index, true);
    let status = device.and_then(|device| loopback::status(&device));
    let number = |status: loopback::Status| nix::sys::stat::minor(status.file_device);
    status.ok().flatten().is_some_and(|status| number(status) == u64::from(connection))
}

/// Its size in bytes; 0 if it cannot be told.
pub(crate) fn size_bytes(index: u32) -> u64 {
    let text = std::fs::read_to_string(sys(index, "size")).unwrap_or_default();
    text.trim().parse::<u64>().unwrap_or(0).saturating_mul(512)
}

/// Makes it as large as its file has become, which was mounted at `place`: `wanted_bytes`.
///
/// A kernel that asks for the size throws the answer away if a request of the file has ended
/// meanwhile, and tells nobody: it goes by the size before, or shows one and goes by the other. It
/// has not got the new one then, so it asks again as soon as somebody wants it again.
pub(crate) fn grow(index: u32, place: &Path, wanted_bytes: u64) -> Result<(), DeviceError> {
    let what = format!(
        "showing the new size of /dev/loop{index}; until that is done it is used as it was: do it \
         once more"
    );
    take_size(index, place, wanted_bytes).map_err(|source| DeviceError::Refused { what, source })
}

fn take_size(index: u32, place: &Path, wanted_bytes: u64) -> io::Result<()> {
    let device = open(index, true)?;
    let file = file_of(&device, place);
    let begun = Instant::now();
    loop {
        let known = match &file {
            // Tells what the kernel goes by, not what it was told.
            Some(file) => (&*file).seek(SeekFrom::End(0))?,
            // This asks for all attributes, unless it has them.
            None => loopback::status(&device).map(|_| wanted_bytes)?,
        };
        loopback::take_size_of_file(&device)?;
        if known.min(size_bytes(index)) >= wanted_bytes {
            return Ok(());
        }
        if begun.elapsed() > GROWING {
            return Err(Errno::ETIMEDOUT.into());
        }
        // Requests may go on ending all the time: it has to fall between two.
        std::thread::yield_now();
    }
}

/// The file that it is bound to, if that is at `place`: not where the mount is not seen.
fn file_of(device: &File, place: &Path) -> Option<File> {
    let file = File::open(place).ok()?;
    let bound = loopback::status(device).ok()??;
    let is_it = nix::sys::stat::minor(bound.file_device)
        == nix::sys::stat::minor(file.metadata().ok()?.dev());
    is_it.then_some(file)
}

fn users_of(device: &Path) -> String {
    let users: Vec<_> = users(device).iter().map(ToString::to_string).collect();
    if users.is_empty() { "by somebody who cannot be seen".to_owned() } else { users.join(", ") }
}

/// Unbinds a device that nobody uses.
pub(crate) fn unbind(index: u32) -> Result<(), DeviceError> {
    let path = path(index);
    let device = path.display().to_string();
    let busy = || DeviceError::Busy { device: device.clone(), by: users_of(&path) };
    let refused = |source| DeviceError::Refused { what: format!("unbinding {device}"), source };
    // Nobody else mounts it meanwhile. Whoever has merely opened it is noticed below.
    let begun = Instant::now();
    let claimed = loop {
        match OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(&path) {
            // A mount that has just gone holds it until all is written.
            Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                if begun.elapsed() > PASSERS_BY {
                    return Err(busy());
                }
            }
            outcome => break outcome.map_err(refused)?,
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let begun = Instant::now();
    while loopback::clear(&claimed).map_err(refused)? {
        // It would go when the others close it: until then it is in use, and is served as before.
        loopback::keep_bound(&claimed).map_err(refused)?;
        if begun.elapsed() > PASSERS_BY {
            return Err(busy());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    drop(claimed);
    if is_unbound_within(index, UNBINDING) {
        return Ok(());
    }
    Err(refused(Errno::ETIMEDOUT.into()))
}

/// Unbinds the device over the file of this connection, which has been ended: as soon as nobody
/// has it open. `named` is what [`is_named`] said before that.
pub(crate) fn unbind_when_unused(index: u32, connection: u32, named: bool) {
    if !is_bound(index) || !(named || is_over(index, connection)) {
        return;
    }
    let outcome = open(index, true).and_then(|device| loopback::clear(&device));
    match outcome {
        Ok(true) => tracing::info!("/dev/loop{index} goes as soon as nobody has it open"),
        Ok(false) => {
            is_unbound_within(index, PASSERS_BY);
        }
        Err(error) => tracing::warn!(%error, "/dev/loop{index} cannot be unbound"),
    }
}

/// The devices that are bound to the file that was mounted at `place`, by its name.
pub(crate) fn over(place: &Path) -> Vec<u32> {
    let names = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let indices = names
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("loop")?.parse::<u32>().ok());
    indices.filter(|index| is_named(*index, place)).collect()
}

/// Whether the device is bound to the file that was mounted at `place`.
pub(crate) fn is_named(index: u32, place: &Path) -> bool {
    is_bound(index) && has_file(index, place)
}

fn is_unbound_within(index: u32, limit: Duration) -> bool {
    let begun = Instant::now();
    while is_bound(index) {
        if begun.elapsed() > limit {
            return false;
        }
        std::thread::sleep(LOOK_EVERY);
    }
    true
}
