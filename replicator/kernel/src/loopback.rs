//! Loop devices: a file as a block device. Facts are those of `linux/loop.h`; `LOOP_CONFIGURE` is
//! since Linux 5.8.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_SET_STATUS64: u64 = 0x4C04;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Longest name that a loop device can tell of its file, with the zero byte that ends it.
const NAME_BYTES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; NAME_BYTES],
    crypt_name: [u8; NAME_BYTES],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Info>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

impl Info {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        sizelimit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; NAME_BYTES],
        crypt_name: [0; NAME_BYTES],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// What a bound loop device tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Device number of the file system that its file is in, in the kernel's own coding for user
    /// space (`new_encode_dev`): the minor number of an anonymous one.
    pub file_device: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// It goes when nobody has it open any more.
    pub autoclear: bool,
    /// It reads and writes its file past the page cache.
    pub direct_io: bool,
}

/// What a loop device should be like.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Size of a sector, logical and physical, in bytes.
    pub block_bytes: u32,
    /// Refuse writes.
    pub read_only: bool,
    /// Read and write the file past the page cache.
    pub direct_io: bool,
    /// Unbind it when nobody has it open any more.
    pub autoclear: bool,
    /// What it tells as the name of its file; cut off after 63 bytes.
    pub name: &'a str,
}

/// The number of a loop device that is free now; another process may take it at any moment.
///
/// # Errors
/// As the kernel says.
pub fn free_index(control: &File) -> io::Result<u32> {
    // SAFETY: this command takes no argument and touches no memory of the process.
    let index = unsafe { nix::libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    let index = nix::errno::Errno::result(index)?;
    u32::try_from(index).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Binds `file` to the loop device.
///
/// # Errors
/// `EBUSY` if it is bound already, `EINVAL` if it is older than Linux 5.8 or refuses the block
/// size, else as the kernel says.
pub fn configure(device: &File, file: BorrowedFd<'_>, shape: Shape<'_>) -> io::Result<()> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut info = Info::EMPTY;
    let flags = [
        (shape.read_only, LO_FLAGS_READ_ONLY),
        (shape.direct_io, LO_FLAGS_DIRECT_IO),
        (shape.autoclear, LO_FLAGS_AUTOCLEAR),
    ];
    info.flags = flags.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, flag)| all | flag);
    // The last byte stays zero.
    let room = info.file_name.iter_mut().take(NAME_BYTES - 1);
    room.zip(shape.name.bytes()).for_each(|(place, byte)| *place = byte);
    let config = Config { fd, block_size: shape.block_bytes, info, reserved: [0; 8] };
    let config: *const Config = &raw const config;
    // SAFETY: the kernel reads a whole `struct loop_config` from this address, which our type
    // lays out alike, and keeps no reference to it.
    let outcome = unsafe { nix::libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, config) };
    nix::errno::Errno::result(outcome)?;
    Ok(())
}

/// What the loop device is bound to; `None` if to nothing.
///
/// # Errors
/// As the kernel says.
pub fn status(device: &File) -> io::Result<Option<Status>> {
    Ok(info(device)?.map(|info| Status {
        file_device: info.device,
        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
        autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
        direct_io: info.flags & LO_FLAGS_DIRECT_IO != 0,
    }))
}

fn info(device: &File) -> io::Result<Option<Info>> {
    let mut info = Info::EMPTY;
    let place: *mut Info = &raw mut info;
    // SAFETY: the kernel writes a whole `struct loop_info64` to this address, which our type lays
    // out alike and in which every bit pattern is valid.
    let outcome = unsafe { nix::libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, place) };
    match nix::errno::Errno::result(outcome) {
        Ok(_) => Ok(Some(info)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Unbinds the loop device as soon as nobody has it open: at the latest when this process closes
/// `device` if nobody else has. Returns whether somebody else has. One that is not bound is none
/// that anybody else has.
///
/// # Errors
/// As the kernel says.
pub fn clear(device: &File) -> io::Result<bool> {
    // SAFETY: this command takes no argument and touches no memory of the process.
    let outcome = unsafe { nix::libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _) };
    match nix::errno::Errno::result(outcome) {
        Ok(_) => Ok(info(device)?.is_some()),
        Err(nix::errno::Errno::ENXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes back what [`clear`] began while somebody else had the device open: it stays bound.
///
/// # Errors
/// As the kernel says: `ENXIO` if it is unbound by now.
pub fn keep_bound(device: &File) -> io::Result<()> {
    let mut info = info(device)?.ok_or(nix::errno::Errno::ENXIO)?;
    info.flags &= !LO_FLAGS_AUTOCLEAR;
    let place: *const Info = &raw const info;
    // SAFETY: the kernel reads a whole `struct loop_info64` from this address, which our type
    // lays out alike, and keeps no reference to it.
    let outcome = unsafe { nix::libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64 as _, place) };
    nix::errno::Errno::result(outcome)?;
    Ok(())
}

/// Makes the loop device as large as its file is now.
///
/// # Errors
/// As the kernel says.
pub fn take_size_of_file(device: &File) -> io::Result<()> {
    // SAFETY: this command takes no argument and touches no memory of the process.
    let outcome = unsafe { nix::libc::ioctl(device.as_fd().as_raw_fd(), LOOP_SET_CAPACITY as _) };
    nix::errno::Errno::result(outcome)?;
    Ok(())
}
