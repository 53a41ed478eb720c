//! The NBD protocol's numbers and fixed-size messages. All integers are big-endian.

use crate::backend::Errno;

/// First eight bytes a server sends: `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes, and the start of every option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The port registered for NBD.
pub const DEFAULT_PORT: u16 = 10_809;

/// Handshake flag: fixed newstyle negotiation. The client's flag has the same bit.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: no padding after `EXPORT_NAME`. The client's flag has the same bit.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options: what a client asks for during negotiation.
pub mod opt {
    /// Choose an export, without a way to be refused politely.
    pub const EXPORT_NAME: u32 = 1;
    /// End the negotiation.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Start TLS.
    pub const STARTTLS: u32 = 5;
    /// Ask about an export.
    pub const INFO: u32 = 6;
    /// Choose an export.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 64-bit lengths; not supported by this server.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Reply types: how a server answers an option.
pub mod rep {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The bit that makes a reply an error.
    pub const ERROR: u32 = 1 << 31;
    /// Unknown option.
    pub const ERR_UNSUP: u32 = ERROR | 1;
    /// Forbidden by the server.
    pub const ERR_POLICY: u32 = ERROR | 2;
    /// Malformed option.
    pub const ERR_INVALID: u32 = ERROR | 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = ERROR | 7;
    /// Block sizes must be asked for.
    pub const ERR_BLOCK_SIZE_REQD: u32 = ERROR | 8;
    /// The option or its reply is too large.
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Information items of `INFO` and `GO`.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Description for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod tx {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The `FUA` flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The `DF` flag works.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The `FAST_ZERO` flag works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands: what a client asks for during transmission.
pub mod cmd {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows.
    pub const WRITE: u16 = 1;
    /// Disconnect; there is no reply.
    pub const DISC: u16 = 2;
    /// Make completed writes durable.
    pub const FLUSH: u16 = 3;
    /// Discard.
    pub const TRIM: u16 = 4;
    /// Hint that a range will be read.
    pub const CACHE: u16 = 5;
    /// Zero a range.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask what is allocated.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub mod flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Keep the space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Do not fragment the reply.
    pub const DF: u16 = 1 << 2;
    /// One extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zero only if it is fast.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunk types and flags of structured replies.
pub mod chunk {
    /// Flag: the last chunk of its reply.
    pub const DONE: u16 = 1 << 0;
    /// Nothing more to say.
    pub const NONE: u16 = 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The bit that makes a chunk an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// The metadata context that tells what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Bit of a `base:allocation` extent: nothing is allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// Bit of a `base:allocation` extent: it reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// The number that stands for an error on the wire.
#[must_use]
pub fn errno_code(errno: Errno) -> u32 {
    match errno {
        Errno::NotPermitted => 1,
        Errno::Io => 5,
        Errno::NoMemory => 12,
        Errno::Invalid => 22,
        Errno::NoSpace => 28,
        Errno::Overflow => 75,
        Errno::NotSupported => 95,
        Errno::Shutdown => 108,
    }
}

/// The error a number on the wire stands for; as the protocol wants it, unknown ones are
/// [`Errno::Invalid`].
#[must_use]
pub fn errno_from_code(code: u32) -> Errno {
    match code {
        1 => Errno::NotPermitted,
        5 => Errno::Io,
        12 => Errno::NoMemory,
        28 => Errno::NoSpace,
        75 => Errno::Overflow,
        95 => Errno::NotSupported,
        108 => Errno::Shutdown,
        _ => Errno::Invalid,
    }
}

/// Bytes of a [`RequestHeader`] on the wire.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply on the wire, without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a [`ChunkHeader`] on the wire.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of an [`OptionHeader`] on the wire.
pub const OPTION_BYTES: usize = 16;
/// Bytes of an [`OptionReplyHeader`] on the wire.
pub const OPTION_REPLY_BYTES: usize = 20;

/// A message did not start with the number that it must start with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad magic {found:#x} at the start of {message}: the peer does not speak NBD or lost step")]
pub struct BadMagic {
    /// Which message was expected.
    pub message: &'static str,
    /// What was found.
    pub found: u64,
}

/// A request, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags, of [`flag`].
    pub flags: u16,
    /// Command, of [`cmd`].
    pub command: u16,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Reads a header from its wire form.
    ///
    /// # Errors
    /// [`BadMagic`] if this is no request.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, BadMagic> {
        let mut fields = Fields(bytes);
        let magic = fields.u32();
        if magic != REQUEST_MAGIC {
            return Err(BadMagic { message: "a request", found: u64::from(magic) });
        }
        Ok(Self {
            flags: fields.u16(),
            command: fields.u16(),
            cookie: fields.u64(),
            offset: fields.u64(),
            length: fields.u32(),
        })
    }

    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut out = Packed::new();
        out.u32(REQUEST_MAGIC);
        out.u16(self.flags);
        out.u16(self.command);
        out.u64(self.cookie);
        out.u64(self.offset);
        out.u32(self.length);
        out.finish()
    }
}

/// The wire form of a simple reply; `error` is zero for success.
#[must_use]
pub fn encode_simple_reply(error: u32, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut out = Packed::new();
    out.u32(SIMPLE_REPLY_MAGIC);
    out.u32(error);
    out.u64(cookie);
    out.finish()
}

/// A chunk of a structured reply, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Flags, of [`chunk`].
    pub flags: u16,
    /// Type, of [`chunk`].
    pub kind: u16,
    /// The request's cookie.
    pub cookie: u64,
    /// Payload length in bytes.
    pub length: u32,
}

impl ChunkHeader {
    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> [u8; CHUNK_BYTES] {
        let mut out = Packed::new();
        out.u32(STRUCTURED_REPLY_MAGIC);
        out.u16(self.flags);
        out.u16(self.kind);
        out.u64(self.cookie);
        out.u32(self.length);
        out.finish()
    }

    /// Reads what follows the magic number.
    #[must_use]
    pub fn decode_after_magic(bytes: &[u8; CHUNK_BYTES - 4]) -> Self {
        let mut fields = Fields(bytes);
        Self { flags: fields.u16(), kind: fields.u16(), cookie: fields.u64(), length: fields.u32() }
    }
}

/// The start of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Option, of [`opt`].
    pub option: u32,
    /// Length of its data in bytes.
    pub length: u32,
}

impl OptionHeader {
    /// Reads a header from its wire form.
    ///
    /// # Errors
    /// [`BadMagic`] if this is no option.
    pub fn decode(bytes: &[u8; OPTION_BYTES]) -> Result<Self, BadMagic> {
        let mut fields = Fields(bytes);
        let magic = fields.u64();
        if magic != OPTION_MAGIC {
            return Err(BadMagic { message: "an option", found: magic });
        }
        Ok(Self { option: fields.u32(), length: fields.u32() })
    }

    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> [u8; OPTION_BYTES] {
        let mut out = Packed::new();
        out.u64(OPTION_MAGIC);
        out.u32(self.option);
        out.u32(self.length);
        out.finish()
    }
}

/// The start of a reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option replied to.
    pub option: u32,
    /// Reply type, of [`rep`].
    pub kind: u32,
    /// Length of the reply's data in bytes.
    pub length: u32,
}

impl OptionReplyHeader {
    /// Reads a header from its wire form.
    ///
    /// # Errors
    /// [`BadMagic`] if this is no reply to an option.
    pub fn decode(bytes: &[u8; OPTION_REPLY_BYTES]) -> Result<Self, BadMagic> {
        let mut fields = Fields(bytes);
        let magic = fields.u64();
        if magic != OPTION_REPLY_MAGIC {
            return Err(BadMagic { message: "a reply to an option", found: magic });
        }
        Ok(Self { option: fields.u32(), kind: fields.u32(), length: fields.u32() })
    }

    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> [u8; OPTION_REPLY_BYTES] {
        let mut out = Packed::new();
        out.u64(OPTION_REPLY_MAGIC);
        out.u32(self.option);
        out.u32(self.kind);
        out.u32(self.length);
        out.finish()
    }
}

/// Reads fields off the front of a message whose length is known to suffice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else {
            unreachable!("the caller's array has room for every field it reads")
        };
        self.0 = rest;
        *field
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }
}

/// Builds a message of exactly `N` bytes.
struct Packed<const N: usize> {
    bytes: [u8; N],
    used: usize,
}

impl<const N: usize> Packed<N> {
    fn new() -> Self {
        Self { bytes: [0; N], used: 0 }
    }

    fn put(&mut self, field: &[u8]) {
        let end = self.used + field.len();
        let Some(place) = self.bytes.get_mut(self.used..end) else {
            unreachable!("the message type is as long as the sum of its fields")
        };
        place.copy_from_slice(field);
        self.used = end;
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    fn finish(self) -> [u8; N] {
        assert!(self.used == N, "every field of the message was written");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            flags: u16, command: u16, cookie: u64, offset: u64, length: u32,
        ) {
            let header = RequestHeader { flags, command, cookie, offset, length };
            prop_assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn chunks_survive_the_wire(flags: u16, kind: u16, cookie: u64, length: u32) {
            let header = ChunkHeader { flags, kind, cookie, length };
            let bytes = header.encode();
            let (magic, rest) = bytes.split_first_chunk::<4>().unwrap();
            prop_assert_eq!(u32::from_be_bytes(*magic), STRUCTURED_REPLY_MAGIC);
            prop_assert_eq!(ChunkHeader::decode_after_magic(rest.try_into().unwrap()), header);
        }

        #[test]
        fn options_survive_the_wire(option: u32, kind: u32, length: u32) {
            let header = OptionHeader { option, length };
            prop_assert_eq!(OptionHeader::decode(&header.encode()), Ok(header));
            let reply = OptionReplyHeader { option, kind, length };
            prop_assert_eq!(OptionReplyHeader::decode(&reply.encode()), Ok(reply));
        }
    }

    #[test]
    fn a_request_has_the_bytes_the_protocol_names() {
        let header = RequestHeader {
            flags: flag::FUA,
            command: cmd::WRITE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            length: 0x2000,
        };
        let expected = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 0x20, 0,
        ];
        assert_eq!(header.encode(), expected);
    }

    #[test]
    fn a_wrong_start_is_named() {
        let error = RequestHeader::decode(&[0xff; REQUEST_BYTES]).unwrap_err();
        assert_eq!(error.found, 0xffff_ffff);
        assert!(error.to_string().contains("a request"), "{error}");
    }

    #[test]
    fn every_error_survives_the_wire() {
        let all = [
            Errno::NotPermitted,
            Errno::Io,
            Errno::NoMemory,
            Errno::Invalid,
            Errno::NoSpace,
            Errno::Overflow,
            Errno::NotSupported,
            Errno::Shutdown,
        ];
        for errno in all {
            assert_eq!(errno_from_code(errno_code(errno)), errno);
        }
        assert_eq!(errno_from_code(4711), Errno::Invalid);
    }
}
