//! Requests of the driver, checked, and what they make the back end do.

use bytes::Bytes;
use lockstep_kernel::ublk::{Descriptor, Operation};
use nix::libc;

use super::limits::{DISCARD_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::backend::{BLOCK_BYTES, Backend, Errno, ExportInfo, ReadData, ZeroMode};

/// Bytes of what the block layer calls a sector.
pub(super) const SECTOR_BYTES: u64 = 512;

/// A request that may be executed. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: u32 },
    Write { offset: u64, len: u32, fua: bool },
    Flush,
    Discard { offset: u64, len: u64, fua: bool },
    Zero { offset: u64, len: u64, mode: ZeroMode },
}

/// What came of a request.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Data(ReadData),
}

impl Request {
    /// Checks what the driver wrote. `write_through` makes every change durable at once.
    pub(super) fn new(
        descriptor: &Descriptor,
        facts: ExportInfo,
        write_through: bool,
    ) -> Result<Self, Errno> {
        if descriptor.operation == Operation::Flush {
            return Ok(Self::Flush);
        }
        let offset = descriptor.first_sector.checked_mul(SECTOR_BYTES).ok_or(Errno::Invalid)?;
        let len = u64::from(descriptor.sectors) * SECTOR_BYTES;
        let block = u64::from(BLOCK_BYTES);
        if len == 0 || !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(Errno::Invalid);
        }
        if offset.checked_add(len).is_none_or(|end| end > facts.size_bytes) {
            return Err(Errno::Io);
        }
        if facts.read_only && descriptor.operation != Operation::Read {
            return Err(Errno::NotPermitted);
        }
        let payload = || u32::try_from(len).ok().filter(|&len| len <= PAYLOAD_BYTES_MAX);
        let fua = descriptor.fua || write_through;
        match descriptor.operation {
            Operation::Read => Ok(Self::Read { offset, len: payload().ok_or(Errno::Overflow)? }),
            Operation::Write => {
                Ok(Self::Write { offset, len: payload().ok_or(Errno::Overflow)?, fua })
            }
            _ if len > DISCARD_BYTES_MAX => Err(Errno::Overflow),
            Operation::Discard => Ok(Self::Discard { offset, len, fua }),
            Operation::WriteZeroes => {
                let mode = ZeroMode { fua, no_hole: descriptor.no_unmap, fast: false };
                Ok(Self::Zero { offset, len, mode })
            }
            Operation::Flush | Operation::Other(_) => Err(Errno::NotSupported),
        }
    }

    /// Has the back end do it; `payload` is what a write carries.
    pub(super) async fn execute<B: Backend>(
        self,
        backend: &B,
        payload: Bytes,
    ) -> Result<Answer, Errno> {
        let done = match self {
            Self::Read { offset, len } => return read(backend, offset, len).await,
            Self::Write { offset, fua, .. } => backend.write(offset, payload, fua).await,
            Self::Flush => backend.flush().await,
            Self::Discard { offset, len, fua } => backend.discard(offset, len, fua).await,
            Self::Zero { offset, len, mode } => backend.zero(offset, len, mode).await,
        };
        done.map(|()| Answer::Done)
    }

    /// What the driver takes as success: the bytes of a read or write, otherwise nothing.
    pub(super) fn success(self) -> i32 {
        match self {
            Self::Read { len, .. } | Self::Write { len, .. } => len.cast_signed(),
            Self::Flush | Self::Discard { .. } | Self::Zero { .. } => 0,
        }
    }
}

async fn read<B: Backend>(backend: &B, offset: u64, len: u32) -> Result<Answer, Errno> {
    let data = backend.read(offset, len).await?;
    if data.len() == u64::from(len) {
        return Ok(Answer::Data(data));
    }
    // What is not written into the request's pages would be whatever was in them before.
    tracing::error!(offset, len, got = data.len(), "the back end read a wrong number of bytes");
    Err(Errno::Io)
}

/// What the driver takes as failure. The block layer knows few; the others are `EIO` to it.
pub(super) fn failure(errno: Errno) -> i32 {
    -match errno {
        Errno::NotPermitted => libc::EPERM,
        Errno::Io | Errno::Shutdown => libc::EIO,
        Errno::NoMemory => libc::ENOMEM,
        Errno::Invalid => libc::EINVAL,
        Errno::NoSpace => libc::ENOSPC,
        Errno::Overflow => libc::EOVERFLOW,
        Errno::NotSupported => libc::EOPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: ExportInfo = ExportInfo { size_bytes: 1 << 30, read_only: false };

    fn descriptor(operation: Operation, first_sector: u64, sectors: u32) -> Descriptor {
        Descriptor { operation, fua: false, no_unmap: false, sectors, first_sector }
    }

    fn check(operation: Operation, first_sector: u64, sectors: u32) -> Result<Request, Errno> {
        Request::new(&descriptor(operation, first_sector, sectors), FACTS, false)
    }

    #[test]
    fn sectors_become_bytes() {
        let read = check(Operation::Read, 16, 8).unwrap();
        assert_eq!(read, Request::Read { offset: 8192, len: 4096 });
        assert_eq!(read.success(), 4096);
        let end = FACTS.size_bytes / SECTOR_BYTES;
        assert!(check(Operation::Write, end - 8, 8).is_ok());
        assert_eq!(check(Operation::Flush, u64::MAX, 0), Ok(Request::Flush));
        assert_eq!(Request::Flush.success(), 0);
    }

    #[test]
    fn what_no_kernel_should_send_is_refused() {
        let end = FACTS.size_bytes / SECTOR_BYTES;
        let largest = u32::try_from(u64::from(PAYLOAD_BYTES_MAX) / SECTOR_BYTES).unwrap();
        assert_eq!(check(Operation::Read, 1, 8), Err(Errno::Invalid), "between blocks");
        assert_eq!(check(Operation::Read, 0, 7), Err(Errno::Invalid), "part of a block");
        assert_eq!(check(Operation::Read, 0, 0), Err(Errno::Invalid), "nothing");
        assert_eq!(check(Operation::Write, end, 8), Err(Errno::Io), "beyond the end");
        assert_eq!(check(Operation::Write, u64::MAX, 8), Err(Errno::Invalid));
        assert_eq!(check(Operation::Discard, u64::MAX / 512 - 7, 8), Err(Errno::Io));
        assert!(check(Operation::Write, 0, largest).is_ok());
        assert_eq!(check(Operation::Write, 0, largest + 8), Err(Errno::Overflow));
        assert_eq!(check(Operation::Other(13), 0, 8), Err(Errno::NotSupported));
        let facts = ExportInfo { read_only: true, ..FACTS };
        let write = descriptor(Operation::WriteZeroes, 0, 8);
        assert_eq!(Request::new(&write, facts, false), Err(Errno::NotPermitted));
        assert!(Request::new(&descriptor(Operation::Read, 0, 8), facts, false).is_ok());
    }

    #[test]
    fn writing_through_makes_every_change_durable() {
        for through in [false, true] {
            let write = Request::new(&descriptor(Operation::Write, 0, 8), FACTS, through);
            assert_eq!(write, Ok(Request::Write { offset: 0, len: 4096, fua: through }));
            let discard = Request::new(&descriptor(Operation::Discard, 0, 8), FACTS, through);
            assert_eq!(discard, Ok(Request::Discard { offset: 0, len: 4096, fua: through }));
        }
        let mut zeroes = descriptor(Operation::WriteZeroes, 0, 8);
        (zeroes.fua, zeroes.no_unmap) = (true, true);
        let mode = ZeroMode { fua: true, no_hole: true, fast: false };
        let request = Request::new(&zeroes, FACTS, false);
        assert_eq!(request, Ok(Request::Zero { offset: 0, len: 4096, mode }));
    }
}
