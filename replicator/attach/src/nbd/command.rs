//! Requests: which are legal, and what they make the back end do.

use bytes::Bytes;

use super::limits::PAYLOAD_BYTES_MAX;
use super::proto::{RequestHeader, cmd, flag};
use crate::backend::{BLOCK_BYTES, Backend, Errno, ExportInfo, Extent, ReadData, ZeroMode};

/// What the client agreed to use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    pub(crate) structured: bool,
    pub(crate) base_allocation: bool,
}

/// A request that may be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Nothing to do: the range is empty.
    Nothing,
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        data: Bytes,
        fua: bool,
    },
    Flush,
    Discard {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        mode: ZeroMode,
    },
    Cache {
        offset: u64,
        len: u64,
    },
    BlockStatus {
        offset: u64,
        len: u64,
    },
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    Data(ReadData),
    Extents(Vec<Extent>),
}

/// Why a request is not executed, for the client and for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) why: &'static str,
}

fn refuse<T>(errno: Errno, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, why })
}

/// Whether the client must send a payload of `header.length` bytes behind the header.
pub(crate) fn has_payload(header: &RequestHeader) -> bool {
    header.command == cmd::WRITE
}

/// Bytes that the request will hold in memory until its reply is sent.
pub(crate) fn weight(header: &RequestHeader) -> u64 {
    let carries = matches!(header.command, cmd::READ | cmd::WRITE);
    if carries && header.length <= PAYLOAD_BYTES_MAX { u64::from(header.length) } else { 0 }
}

/// Checks a request without its payload.
pub(crate) fn check(
    header: &RequestHeader,
    agreed: Agreed,
    facts: &ExportInfo,
) -> Result<(), Refusal> {
    check_flags(header, agreed)?;
    let changes = matches!(header.command, cmd::WRITE | cmd::TRIM | cmd::WRITE_ZEROES);
    if changes && facts.read_only {
        return refuse(Errno::NotPermitted, "the export is read-only");
    }
    match header.command {
        cmd::FLUSH if header.offset != 0 || header.length != 0 => {
            return refuse(Errno::Invalid, "a flush takes no range");
        }
        cmd::BLOCK_STATUS if !agreed.base_allocation => {
            return refuse(Errno::Invalid, "no metadata context was negotiated");
        }
        cmd::BLOCK_STATUS if header.length == 0 => {
            return refuse(Errno::Invalid, "an empty range has no status");
        }
        cmd::WRITE if header.length > PAYLOAD_BYTES_MAX => {
            return refuse(Errno::Invalid, "the write is larger than 32 MiB");
        }
        cmd::READ if header.length > PAYLOAD_BYTES_MAX => {
            let errno = if agreed.structured { Errno::Overflow } else { Errno::Invalid };
            return refuse(errno, "the read is larger than 32 MiB");
        }
        _ => {}
    }
    check_range(header, facts)
}

fn check_flags(header: &RequestHeader, agreed: Agreed) -> Result<(), Refusal> {
    let own = match header.command {
        cmd::READ if agreed.structured => flag::DF,
        cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM | cmd::CACHE => 0,
        cmd::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
        cmd::BLOCK_STATUS => flag::REQ_ONE,
        _ => return refuse(Errno::Invalid, "unknown command"),
    };
    // The protocol wants FUA accepted everywhere, since clients set it on reads too.
    if header.flags & !(own | flag::FUA) == 0 {
        Ok(())
    } else {
        refuse(Errno::Invalid, "a flag does not belong to this command or was not negotiated")
    }
}

fn check_range(header: &RequestHeader, facts: &ExportInfo) -> Result<(), Refusal> {
    let block = u64::from(BLOCK_BYTES);
    let length = u64::from(header.length);
    if !header.offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return refuse(Errno::Invalid, "offset or length is not a multiple of 4096");
    }
    match header.offset.checked_add(length) {
        Some(end) if end <= facts.size_bytes => Ok(()),
        _ if matches!(header.command, cmd::WRITE | cmd::WRITE_ZEROES) => {
            refuse(Errno::NoSpace, "the range ends beyond the export")
        }
        _ => refuse(Errno::Invalid, "the range ends beyond the export"),
    }
}

/// The command a checked request stands for.
pub(crate) fn command(header: &RequestHeader, payload: Bytes) -> Command {
    let RequestHeader { flags, offset, length, .. } = *header;
    let len = u64::from(length);
    let fua = flags & flag::FUA != 0;
    match header.command {
        cmd::FLUSH => Command::Flush,
        _ if length == 0 => Command::Nothing,
        cmd::READ => Command::Read { offset, len: length },
        cmd::WRITE => Command::Write { offset, data: payload, fua },
        cmd::TRIM => Command::Discard { offset, len, fua },
        cmd::CACHE => Command::Cache { offset, len },
        cmd::WRITE_ZEROES => {
            let no_hole = flags & flag::NO_HOLE != 0;
            let fast = flags & flag::FAST_ZERO != 0;
            Command::Zero { offset, len, mode: ZeroMode { fua, no_hole, fast } }
        }
        cmd::BLOCK_STATUS => Command::BlockStatus { offset, len },
        other => unreachable!("command {other} has passed the check"),
    }
}

/// Has the back end do it.
pub(crate) async fn execute<B: Backend>(backend: &B, command: Command) -> Result<Answer, Errno> {
    let done = match command {
        Command::Nothing => Ok(()),
        Command::Read { offset, len } => return read(backend, offset, len).await,
        Command::Write { offset, data, fua } => backend.write(offset, data, fua).await,
        Command::Flush => backend.flush().await,
        Command::Discard { offset, len, fua } => backend.discard(offset, len, fua).await,
        Command::Zero { offset, len, mode } => backend.zero(offset, len, mode).await,
        Command::Cache { offset, len } => backend.cache(offset, len).await,
        Command::BlockStatus { offset, len } => {
            return backend.block_status(offset, len).await.map(Answer::Extents);
        }
    };
    done.map(|()| Answer::Done)
}

async fn read<B: Backend>(backend: &B, offset: u64, len: u32) -> Result<Answer, Errno> {
    let data = backend.read(offset, len).await?;
    if data.len() == u64::from(len) {
        return Ok(Answer::Data(data));
    }
    // A reply of the wrong length would put the client out of step for good.
    tracing::error!(offset, len, got = data.len(), "the back end read a wrong number of bytes");
    Err(Errno::Io)
}

#[cfg(test)]
#[path = "command/tests.rs"]
mod tests;
