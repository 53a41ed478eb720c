//! `/dev/ublk-control`: devices are made, started, stopped and removed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::uapi::{
    CONTROL_BYTES, FEATURES_BYTES, Features, INFO_BYTES, PARAMS_BYTES, command, get, put,
};

/// An open `/dev/ublk-control`. Some commands block until a server has done its part: use one of
/// these per thread.
pub struct Control {
    file: File,
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
}

/// What a device is to be like when it is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Queues; the driver gives at most one per processor.
    pub queues: u16,
    /// Requests of one queue under way.
    pub depth: u16,
    /// Largest payload in bytes.
    pub payload_bytes_max: u32,
    /// How it works.
    pub features: Features,
    /// A word for user space, which the driver keeps.
    pub mark: u64,
}

/// What the driver tells of a device: `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub id: u32,
    /// Queues that it has.
    pub queues: u16,
    /// Requests of one queue under way.
    pub depth: u16,
    /// What becomes of its requests.
    pub state: DeviceState,
    /// The process that serves or served it, −1 if none.
    pub server: i32,
    /// How it works.
    pub features: Features,
    /// The word for user space.
    pub mark: u64,
}

/// What becomes of the requests to a device: `UBLK_S_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Not started, or stopped: there is no block device.
    Dead,
    /// They are sent to its server.
    Live,
    /// They wait for the next server.
    Quiesced,
    /// Another, by its number.
    Other(u16),
}

/// `struct ublk_params`, its parts `basic` and `discard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Size of the device, in sectors of 512 bytes.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// It has a cache that a power cut empties: flushes are sent, and writes with FUA.
    pub volatile_cache: bool,
    /// Logarithm of the logical and the physical block size and of the least I/O.
    pub block_shift: u8,
    /// Logarithm of the best size of an I/O.
    pub best_shift: u8,
    /// Most sectors of one read or write.
    pub sectors_max: u32,
    /// Most sectors of one discard, and of one request that writes zeroes.
    pub discard_sectors_max: u32,
}

/// What the driver is told of the size of the parameters.
#[expect(clippy::cast_possible_truncation, reason = "it is 60")]
const PARAMS_LEN: u32 = PARAMS_BYTES as u32;
/// `UBLK_PARAM_TYPE_BASIC`, `UBLK_PARAM_TYPE_DISCARD`.
const PARTS: u32 = 1 | 2;
const ATTRIBUTE_READ_ONLY: u32 = 1 << 0;
const ATTRIBUTE_VOLATILE_CACHE: u32 = 1 << 2;
const ATTRIBUTE_FUA: u32 = 1 << 3;

impl Control {
    /// The device of the driver; it is there while the module is loaded.
    pub const PATH: &'static str = "/dev/ublk-control";

    /// Opens it.
    ///
    /// # Errors
    /// Those of `open` (`ENOENT` without the module), and of `io_uring_setup` (`EPERM` where
    /// `kernel.io_uring_disabled` forbids it).
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(Self::PATH)?;
        let ring = IoUring::builder().build(2)?;
        Ok(Self { file, ring })
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// `EOPNOTSUPP` or `EINVAL` before Linux 6.5.
    pub fn features(&mut self) -> io::Result<Features> {
        let mut bytes = [0; FEATURES_BYTES];
        self.command(command::GET_FEATURES, u32::MAX, &mut bytes, 0)?;
        Ok(Features(u64::from_ne_bytes(bytes)))
    }

    /// Adds a device under the next free number; it has no block device until it is started.
    ///
    /// # Errors
    /// Those of `UBLK_U_CMD_ADD_DEV`: `EPERM` without `CAP_SYS_ADMIN`, `ENOMEM`, `EINVAL`.
    pub fn add(&mut self, new: &NewDevice) -> io::Result<DeviceInfo> {
        let mut bytes = [0; INFO_BYTES];
        put(&mut bytes, 0, &new.queues.to_ne_bytes());
        put(&mut bytes, 2, &new.depth.to_ne_bytes());
        put(&mut bytes, 8, &new.payload_bytes_max.to_ne_bytes());
        put(&mut bytes, 12, &u32::MAX.to_ne_bytes());
        put(&mut bytes, 16, &own_pid().to_ne_bytes());
        put(&mut bytes, 24, &new.features.0.to_ne_bytes());
        put(&mut bytes, 32, &new.mark.to_ne_bytes());
        self.command(command::ADD_DEV, u32::MAX, &mut bytes, 0)?;
        Ok(DeviceInfo::decode(&bytes))
    }

    /// What the driver tells of a device.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that number.
    pub fn info(&mut self, id: u32) -> io::Result<DeviceInfo> {
        let mut bytes = [0; INFO_BYTES];
        self.command(command::GET_DEV_INFO, id, &mut bytes, 0)?;
        Ok(DeviceInfo::decode(&bytes))
    }

    /// Says what the block device will be like. Only before it is started.
    ///
    /// # Errors
    /// `EACCES` once it was started, `EINVAL` for values that do not go together.
    pub fn set_parameters(&mut self, id: u32, parameters: &Parameters) -> io::Result<()> {
        self.command(command::SET_PARAMS, id, &mut parameters.encode(), 0)
    }

    /// What the block device is like.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that number.
    pub fn parameters(&mut self, id: u32) -> io::Result<Parameters> {
        let mut bytes = [0; PARAMS_BYTES];
        put(&mut bytes, 0, &PARAMS_LEN.to_ne_bytes());
        self.command(command::GET_PARAMS, id, &mut bytes, 0)?;
        Ok(Parameters::decode(&bytes))
    }

    /// Makes the block device, served by this process. Waits until all requests of all queues are
    /// fetched.
    ///
    /// # Errors
    /// `EEXIST` when it was started before, `EINTR`, and those of adding a disk.
    pub fn start(&mut self, id: u32) -> io::Result<()> {
        self.command(command::START_DEV, id, &mut [], own_pid_word())
    }

    /// Removes the block device: waits until its server has answered what it was given, and fails
    /// what comes later with `EIO`. A device that waits for a server is removed as well.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that number.
    pub fn stop(&mut self, id: u32) -> io::Result<()> {
        self.command(command::STOP_DEV, id, &mut [], 0)
    }

    /// Removes a device, stopping it if need be; its number is free when nobody has the block
    /// device or `/dev/ublkcN` open any more. From Linux 6.9 on this does not wait for that.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that number.
    pub fn remove(&mut self, id: u32) -> io::Result<()> {
        match self.command(command::DEL_DEV_ASYNC, id, &mut [], 0) {
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
                self.command(command::DEL_DEV, id, &mut [], 0)
            }
            done => done,
        }
    }

    /// Begins to take over a device whose server is gone.
    ///
    /// # Errors
    /// `EBUSY` while the kernel is still putting away what the server left, `ENODEV` when there is
    /// none of that number, `EINVAL` when another began it and died before it had fetched, or when
    /// the device is not of the kind that can be taken over.
    pub fn start_recovery(&mut self, id: u32) -> io::Result<()> {
        self.command(command::START_USER_RECOVERY, id, &mut [], 0)
    }

    /// Ends taking over: waits until all requests of all queues are fetched, then requests flow.
    ///
    /// # Errors
    /// `EBUSY` when the device was not waiting for a server, `EINTR`.
    pub fn end_recovery(&mut self, id: u32) -> io::Result<()> {
        self.command(command::END_USER_RECOVERY, id, &mut [], own_pid_word())
    }

    /// Shows a new size, in sectors of 512 bytes.
    ///
    /// # Errors
    /// `EOPNOTSUPP` before Linux 6.16.
    pub fn update_size(&mut self, id: u32, sectors: u64) -> io::Result<()> {
        self.command(command::UPDATE_SIZE, id, &mut [], sectors)
    }

    /// Sends one command and waits for its end. `bytes` is what the driver reads and writes.
    fn command(&mut self, number: u32, id: u32, bytes: &mut [u8], word: u64) -> io::Result<()> {
        let mut payload = [0; 80];
        put(&mut payload, 0, &id.to_ne_bytes());
        put(&mut payload, 4, &u16::MAX.to_ne_bytes());
        if !bytes.is_empty() {
            let len = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            put(&mut payload, 6, &len.to_ne_bytes());
            put(&mut payload, 8, &(bytes.as_mut_ptr() as u64).to_ne_bytes());
        }
        put(&mut payload, 16, &word.to_ne_bytes());
        assert!(payload[CONTROL_BYTES..].iter().all(|&byte| byte == 0));
        let file = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd80::new(file, number).cmd(payload).build();
        // SAFETY: `bytes` outlives the command: this function does not return, and cannot unwind,
        // before the command has ended. The descriptor is open for as long as `self` is.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the ring for one command is full"))?;
        let result = loop {
            // What can fail here is the waiting; the command goes on, so it is waited for again.
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                std::thread::yield_now();
            }
            if let Some(end) = self.ring.completion().next() {
                break end.result();
            }
        };
        match -result {
            // An errno of the kernel's own, which older drivers give for commands they don't know.
            524 => Err(io::Error::from_raw_os_error(nix::libc::EOPNOTSUPP)),
            errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(i32::MAX)
}

fn own_pid_word() -> u64 {
    u64::from(std::process::id())
}

impl DeviceInfo {
    fn decode(bytes: &[u8; INFO_BYTES]) -> Self {
        Self {
            queues: u16::from_ne_bytes(get(bytes, 0)),
            depth: u16::from_ne_bytes(get(bytes, 2)),
            state: match u16::from_ne_bytes(get(bytes, 4)) {
                0 => DeviceState::Dead,
                1 => DeviceState::Live,
                2 => DeviceState::Quiesced,
                other => DeviceState::Other(other),
            },
            id: u32::from_ne_bytes(get(bytes, 12)),
            server: i32::from_ne_bytes(get(bytes, 16)),
            features: Features(u64::from_ne_bytes(get(bytes, 24))),
            mark: u64::from_ne_bytes(get(bytes, 32)),
        }
    }
}

impl Parameters {
    fn encode(&self) -> [u8; PARAMS_BYTES] {
        let cache = ATTRIBUTE_VOLATILE_CACHE | ATTRIBUTE_FUA;
        let attributes = if self.read_only { ATTRIBUTE_READ_ONLY } else { 0 }
            | if self.volatile_cache { cache } else { 0 };
        let mut bytes = [0; PARAMS_BYTES];
        put(&mut bytes, 0, &PARAMS_LEN.to_ne_bytes());
        put(&mut bytes, 4, &PARTS.to_ne_bytes());
        // struct ublk_param_basic
        put(&mut bytes, 8, &attributes.to_ne_bytes());
        put(&mut bytes, 12, &[self.block_shift, self.block_shift]);
        put(&mut bytes, 14, &[self.best_shift, self.block_shift]);
        put(&mut bytes, 16, &self.sectors_max.to_ne_bytes());
        put(&mut bytes, 24, &self.sectors.to_ne_bytes());
        // struct ublk_param_discard
        put(&mut bytes, 44, &(1u32 << self.block_shift).to_ne_bytes());
        put(&mut bytes, 48, &self.discard_sectors_max.to_ne_bytes());
        put(&mut bytes, 52, &self.discard_sectors_max.to_ne_bytes());
        put(&mut bytes, 56, &1u16.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8; PARAMS_BYTES]) -> Self {
        let attributes = u32::from_ne_bytes(get(bytes, 8));
        let [block_shift, _, best_shift, _] = get(bytes, 12);
        Self {
            sectors: u64::from_ne_bytes(get(bytes, 24)),
            read_only: attributes & ATTRIBUTE_READ_ONLY != 0,
            volatile_cache: attributes & ATTRIBUTE_VOLATILE_CACHE != 0,
            block_shift,
            best_shift,
            sectors_max: u32::from_ne_bytes(get(bytes, 16)),
            discard_sectors_max: u32::from_ne_bytes(get(bytes, 48)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_lie_where_the_driver_looks() {
        let parameters = Parameters {
            sectors: 0x0102_0304_0506,
            read_only: true,
            volatile_cache: true,
            block_shift: 12,
            best_shift: 16,
            sectors_max: 2048,
            discard_sectors_max: 1 << 17,
        };
        let bytes = parameters.encode();
        assert_eq!(get::<4>(&bytes, 0), 60u32.to_ne_bytes(), "len");
        assert_eq!(get::<4>(&bytes, 4), 3u32.to_ne_bytes(), "types");
        assert_eq!(get::<4>(&bytes, 8), 13u32.to_ne_bytes(), "basic.attrs");
        assert_eq!(get::<4>(&bytes, 12), [12, 12, 16, 12], "the four shifts");
        assert_eq!(get::<4>(&bytes, 20), [0; 4], "basic.chunk_sectors");
        assert_eq!(get::<8>(&bytes, 24), 0x0102_0304_0506u64.to_ne_bytes(), "dev_sectors");
        assert_eq!(get::<4>(&bytes, 44), 4096u32.to_ne_bytes(), "discard_granularity");
        assert_eq!(get::<2>(&bytes, 56), 1u16.to_ne_bytes(), "max_discard_segments");
        assert_eq!(Parameters::decode(&bytes), parameters);
    }

    #[test]
    fn a_device_that_writes_through_shows_no_cache() {
        let parameters = Parameters {
            sectors: 8,
            read_only: false,
            volatile_cache: false,
            block_shift: 12,
            best_shift: 16,
            sectors_max: 2048,
            discard_sectors_max: 8,
        };
        assert_eq!(get::<4>(&parameters.encode(), 8), [0; 4]);
    }

    #[test]
    fn what_is_told_of_a_device_is_read_from_its_place() {
        let mut bytes = [0; INFO_BYTES];
        put(&mut bytes, 0, &4u16.to_ne_bytes());
        put(&mut bytes, 2, &128u16.to_ne_bytes());
        put(&mut bytes, 4, &2u16.to_ne_bytes());
        put(&mut bytes, 12, &9u32.to_ne_bytes());
        put(&mut bytes, 16, &(-1i32).to_ne_bytes());
        put(&mut bytes, 24, &0xd8u64.to_ne_bytes());
        put(&mut bytes, 32, &77u64.to_ne_bytes());
        let info = DeviceInfo::decode(&bytes);
        assert_eq!((info.id, info.queues, info.depth), (9, 4, 128));
        assert_eq!((info.state, info.server, info.mark), (DeviceState::Quiesced, -1, 77));
        assert!(info.features.has(Features::USER_RECOVERY.and(Features::USER_COPY)));
        assert!(!info.features.has(Features::UPDATE_SIZE));
    }
}
