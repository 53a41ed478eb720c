//! What `linux/ublk_cmd.h` says, as far as it is used here.

use std::fmt;

/// Encoding of `_IOC` in `asm-generic/ioctl.h`, with the type that all commands of ublk carry.
const fn ioc(direction: u32, number: u32, size: u32) -> u32 {
    (direction << 30) | (size << 16) | ((b'u' as u32) << 8) | number
}

const READ: u32 = 2;
const READ_WRITE: u32 = 3;
/// Size of `struct ublksrv_ctrl_cmd`.
pub(super) const CONTROL_BYTES: usize = 32;
/// Size of `struct ublksrv_io_cmd`.
pub(super) const IO_BYTES: usize = 16;

/// Commands to `/dev/ublk-control`. All are encoded as ioctls are, from Linux 6.4 on.
pub(super) mod command {
    use super::{READ, READ_WRITE, ioc};

    /// Linux 6.0.
    pub(in super::super) const GET_DEV_INFO: u32 = ioc(READ, 0x02, 32);
    pub(in super::super) const ADD_DEV: u32 = ioc(READ_WRITE, 0x04, 32);
    pub(in super::super) const DEL_DEV: u32 = ioc(READ_WRITE, 0x05, 32);
    pub(in super::super) const START_DEV: u32 = ioc(READ_WRITE, 0x06, 32);
    pub(in super::super) const STOP_DEV: u32 = ioc(READ_WRITE, 0x07, 32);
    pub(in super::super) const SET_PARAMS: u32 = ioc(READ_WRITE, 0x08, 32);
    pub(in super::super) const GET_PARAMS: u32 = ioc(READ, 0x09, 32);
    /// Linux 6.1.
    pub(in super::super) const START_USER_RECOVERY: u32 = ioc(READ_WRITE, 0x10, 32);
    pub(in super::super) const END_USER_RECOVERY: u32 = ioc(READ_WRITE, 0x11, 32);
    /// Linux 6.5.
    pub(in super::super) const GET_FEATURES: u32 = ioc(READ, 0x13, 32);
    /// Linux 6.9.
    pub(in super::super) const DEL_DEV_ASYNC: u32 = ioc(READ, 0x14, 32);
    /// Linux 6.16.
    pub(in super::super) const UPDATE_SIZE: u32 = ioc(READ_WRITE, 0x15, 32);
}

/// Commands to `/dev/ublkcN`.
pub(super) mod io_command {
    use super::{READ_WRITE, ioc};

    pub(in super::super) const FETCH_REQ: u32 = ioc(READ_WRITE, 0x20, 16);
    pub(in super::super) const COMMIT_AND_FETCH_REQ: u32 = ioc(READ_WRITE, 0x21, 16);
}

/// `UBLK_FEATURES_LEN`.
pub(super) const FEATURES_BYTES: usize = 8;
/// Size of `struct ublksrv_ctrl_dev_info`.
pub(super) const INFO_BYTES: usize = 64;
/// Size of `struct ublk_params` up to the end of `discard`.
pub(super) const PARAMS_BYTES: usize = 60;
/// Size of `struct ublksrv_io_desc`.
pub(super) const DESCRIPTOR_BYTES: usize = 24;

/// Most requests of one queue under way: `UBLK_MAX_QUEUE_DEPTH`.
pub const QUEUE_DEPTH_MAX: u16 = 4096;
/// Most queues that are asked for here; the driver's own limit is 4096.
pub const QUEUES_MAX: u16 = 64;

/// Where payloads begin in the file `/dev/ublkcN`: `UBLKSRV_IO_BUF_OFFSET`.
const PAYLOADS_AT: u64 = 0x8000_0000;
/// Bits of the offset within one payload: `UBLK_IO_BUF_BITS`.
const PAYLOAD_BITS: u32 = 25;
/// Bits of a tag: `UBLK_TAG_BITS`.
const TAG_BITS: u32 = 16;

/// Where the payload of a request lies in the file `/dev/ublkcN`.
pub(super) fn payload_at(queue: u16, tag: u16, offset: u32) -> u64 {
    assert!(offset < 1 << PAYLOAD_BITS, "a payload has at most 32 MiB");
    PAYLOADS_AT
        + (u64::from(queue) << (PAYLOAD_BITS + TAG_BITS))
        + (u64::from(tag) << PAYLOAD_BITS)
        + u64::from(offset)
}

/// Where the descriptors of a queue lie in the file `/dev/ublkcN`, given the size of a page: each
/// queue has room for as many as the deepest queue would need.
pub(super) fn descriptors_at(queue: u16, page_bytes: u64) -> u64 {
    let room = u64::from(QUEUE_DEPTH_MAX) * DESCRIPTOR_BYTES as u64;
    u64::from(queue) * room.next_multiple_of(page_bytes)
}

/// What a driver can do, and what is asked of a device: `UBLK_F_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The device outlives its server, Linux 6.1.
    pub const USER_RECOVERY: Self = Self(1 << 3);
    /// What a dead server had under way is sent to the next one, Linux 6.1.
    pub const USER_RECOVERY_REISSUE: Self = Self(1 << 4);
    /// Commands are encoded as ioctls are, Linux 6.4.
    pub const CMD_IOCTL_ENCODE: Self = Self(1 << 6);
    /// Payloads are read from and written to `/dev/ublkcN`, Linux 6.5.
    pub const USER_COPY: Self = Self(1 << 7);
    /// A device can grow while it is used, Linux 6.16.
    pub const UPDATE_SIZE: Self = Self(1 << 10);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in `self`.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a request wants: `UBLK_IO_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make durable what was answered before.
    Flush,
    /// The content is no longer needed.
    Discard,
    /// Make it read as zeroes.
    WriteZeroes,
    /// One that was not offered, by its number.
    Other(u8),
}

/// One request: `struct ublksrv_io_desc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// What is wanted.
    pub operation: Operation,
    /// `UBLK_IO_F_FUA`: durable when answered.
    pub fua: bool,
    /// `UBLK_IO_F_NOUNMAP`: zeroes that keep their space.
    pub no_unmap: bool,
    /// Length in sectors of 512 bytes.
    pub sectors: u32,
    /// Where it begins, in sectors of 512 bytes.
    pub first_sector: u64,
}

const FLAG_FUA: u32 = 1 << 13;
const FLAG_NO_UNMAP: u32 = 1 << 15;

impl Descriptor {
    /// From the three words that matter: `op_flags`, `nr_sectors`, `start_sector`.
    pub(super) fn decode(op_flags: u32, sectors: u32, first_sector: u64) -> Self {
        let [number, ..] = op_flags.to_le_bytes();
        let operation = match number {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Discard,
            5 => Operation::WriteZeroes,
            other => Operation::Other(other),
        };
        let (fua, no_unmap) = (op_flags & FLAG_FUA != 0, op_flags & FLAG_NO_UNMAP != 0);
        Self { operation, fua, no_unmap, sectors, first_sector }
    }
}

/// `struct ublksrv_io_cmd`.
pub(super) fn io_command_bytes(queue: u16, tag: u16, result: i32) -> [u8; IO_BYTES] {
    let mut bytes = [0; IO_BYTES];
    put(&mut bytes, 0, &queue.to_ne_bytes());
    put(&mut bytes, 2, &tag.to_ne_bytes());
    put(&mut bytes, 4, &result.to_ne_bytes());
    bytes
}

/// Writes one field into a structure.
pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// Reads one field of a structure whose size is fixed.
pub(super) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_header() {
        // As a C compiler gives them for the macros of linux/ublk_cmd.h.
        assert_eq!(command::GET_DEV_INFO, 0x8020_7502);
        assert_eq!(command::ADD_DEV, 0xc020_7504);
        assert_eq!(command::GET_FEATURES, 0x8020_7513);
        assert_eq!(command::DEL_DEV_ASYNC, 0x8020_7514);
        assert_eq!(command::UPDATE_SIZE, 0xc020_7515);
        assert_eq!(io_command::FETCH_REQ, 0xc010_7520);
        assert_eq!(io_command::COMMIT_AND_FETCH_REQ, 0xc010_7521);
    }

    #[test]
    fn payloads_and_descriptors_lie_where_the_driver_looks() {
        assert_eq!(payload_at(0, 0, 0), 1 << 31);
        assert_eq!(payload_at(0, 1, 4096), (1 << 31) + (1 << 25) + 4096);
        assert_eq!(payload_at(3, 0, 0), (1 << 31) + (3 << 41));
        assert_eq!(descriptors_at(0, 4096), 0);
        assert_eq!(descriptors_at(2, 4096), 2 * 98_304);
        assert_eq!(descriptors_at(1, 65_536), 131_072);
    }

    #[test]
    fn requests_are_read_as_they_are_written() {
        let zeroes = Descriptor::decode(5 | 1 << 13 | 1 << 15 | 1 << 11, 8, 64);
        assert_eq!(zeroes.operation, Operation::WriteZeroes);
        assert!(zeroes.fua && zeroes.no_unmap);
        assert_eq!((zeroes.sectors, zeroes.first_sector), (8, 64));
        let read = Descriptor::decode(0, 8, 0);
        assert_eq!(read.operation, Operation::Read);
        assert!(!read.fua && !read.no_unmap);
        assert_eq!(Descriptor::decode(13, 8, 0).operation, Operation::Other(13));
    }

    #[test]
    fn an_answer_is_sixteen_bytes() {
        let bytes = io_command_bytes(2, 7, -5);
        assert_eq!(get::<2>(&bytes, 0), 2u16.to_ne_bytes());
        assert_eq!(get::<2>(&bytes, 2), 7u16.to_ne_bytes());
        assert_eq!(get::<4>(&bytes, 4), (-5i32).to_ne_bytes());
        assert_eq!(get::<8>(&bytes, 8), [0; 8], "payloads travel by read and write");
    }
}
