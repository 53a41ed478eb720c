//! The NBD protocol, as little of it as a client can do with. Between door and copies goes the same
//! without the negotiation: requests are forwarded as they came.

use std::io::{self, ErrorKind, Read, Write};

use anyhow::{Context as _, bail, ensure};

use crate::file::Room;

/// The longest request that is served; the benchmark's longest has 1 MiB.
pub(crate) const MAX_BYTES: usize = 4 << 20;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes after an export's description.
const HANDSHAKE_FLAGS: u16 = 3;
/// The flags are valid, and there is a flush.
const EXPORT_FLAGS: u16 = 5;

/// What a request asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// A request without its data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: usize,
    /// As it came.
    pub(crate) bytes: [u8; 28],
}

impl Request {
    /// The next request, with its data in the room; nothing if the client is done.
    pub(crate) fn read(from: &mut impl Read, room: &mut Room) -> anyhow::Result<Option<Request>> {
        let mut bytes = [0; 28];
        match from.read_exact(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other.context("a request could not be read")?,
        }
        let mut rest = &bytes[..];
        ensure!(u32::from_be_bytes(take(&mut rest)?) == REQUEST_MAGIC, "no NBD request");
        let _flags: [u8; 2] = take(&mut rest)?;
        let kind = match u16::from_be_bytes(take(&mut rest)?) {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => return Ok(None),
            3 => Kind::Flush,
            other => bail!("the client asks for command {other}, which was not offered"),
        };
        let cookie = u64::from_be_bytes(take(&mut rest)?);
        let offset = u64::from_be_bytes(take(&mut rest)?);
        let len = usize::try_from(u32::from_be_bytes(take(&mut rest)?))?;
        ensure!(len <= MAX_BYTES, "a request of {len} bytes; at most {MAX_BYTES} are served");
        let request = Request { kind, cookie, offset, len, bytes };
        from.read_exact(room.data(request.payload_bytes()))?;
        Ok(Some(request))
    }

    /// How much data comes with the request.
    pub(crate) fn payload_bytes(&self) -> usize {
        if self.kind == Kind::Write { self.len } else { 0 }
    }
}

/// The head of the answer that a request was carried out.
pub(crate) fn done(cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Whose request was carried out; nothing if nobody answers any more.
pub(crate) fn read_done(from: &mut impl Read) -> io::Result<Option<u64>> {
    let mut bytes = [0; 16];
    match from.read_exact(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut cookie = [0; 8];
    cookie.copy_from_slice(&bytes[8..]);
    Ok(Some(u64::from_be_bytes(cookie)))
}

/// Settles with a client on the one export. Whether it wants to use it.
pub(crate) fn negotiate(
    from: &mut impl Read,
    to: &mut impl Write,
    size_bytes: u64,
) -> anyhow::Result<bool> {
    let mut hello = [0; 18];
    hello[..8].copy_from_slice(b"NBDMAGIC");
    hello[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello[16..].copy_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
    to.write_all(&hello)?;
    let _client_flags: [u8; 4] = take(from)?;
    loop {
        ensure!(u64::from_be_bytes(take(from)?) == OPTION_MAGIC, "no NBD option");
        let option = u32::from_be_bytes(take(from)?);
        let len = u32::from_be_bytes(take(from)?);
        let mut data = Vec::new();
        from.take(u64::from(len.min(1 << 16))).read_to_end(&mut data)?;
        match option {
            2 => {
                option_reply(to, option, 1, &[])?;
                return Ok(false);
            }
            6 | 7 => {
                let mut export = vec![0, 0];
                export.extend(size_bytes.to_be_bytes());
                export.extend(EXPORT_FLAGS.to_be_bytes());
                option_reply(to, option, 3, &export)?;
                option_reply(to, option, 1, &[])?;
                if option == 7 {
                    return Ok(true);
                }
            }
            // Not supported: the client does without.
            _ => option_reply(to, option, 1 << 31 | 1, &[])?,
        }
    }
}

fn option_reply(to: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> anyhow::Result<()> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len())?.to_be_bytes());
    bytes.extend(data);
    Ok(to.write_all(&bytes)?)
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
