//! Frames as bytes. The format is laid down in `docs/wire.md`.
//!
//! A frame is a header of [`HEADER_BYTES`], a body (metadata, checksums of the data) and data
//! (whole 4 KiB blocks). A receiver reads the header, gives it to [`Prefix::parse`], reads as
//! many bytes of body and data as that allows, the data where it wants it to lie, and gives both
//! to [`Prefix::finish`]. Nothing that a peer sends makes this module panic, and nothing is
//! allocated for a peer before its header is known to be intact and within the limits.

mod codec;
mod error;
mod kind;
mod link;
mod reply;
mod request;

use alloc::vec::Vec;
use bytes::Bytes;
use uuid::Uuid;

use crate::block;
use crate::id::{Epoch, Gen, NodeId, Seq, VolumeId};
use crate::limits::{MAX_BODY_BYTES, MAX_DATA_BYTES};
use crate::message::{Header, Message, Payload, Reply, Request};
use crate::range::BLOCK_SIZE;
use codec::{Malformed, Reader, Writer};

pub use error::WireError;
pub use kind::Kind;

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 72;
/// What every frame begins with: `LKS1`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"LKS1");
/// Oldest version of the format that this build speaks.
pub const MIN_VERSION: u16 = 1;
/// Newest version of the format that this build speaks.
pub const MAX_VERSION: u16 = 4;
/// Version in the header of [`LinkFrame::Hello`], [`LinkFrame::Welcome`] and
/// [`LinkFrame::Reject`], which every version reads alike.
pub const HANDSHAKE_VERSION: u16 = 0;
/// Most entries in a list of blocks (digests, resync). 65,536 digests still fit in a body.
pub const MAX_LIST_BLOCKS: u32 = 1 << 16;
/// Most regions in an answer to a scan, and so in what a scan may ask for.
pub const MAX_SCAN_REGIONS: u32 = 1 << 18;

const _: () = assert!(MAX_LIST_BLOCKS * 29 + 4 <= MAX_BODY_BYTES);
const _: () = assert!(MAX_SCAN_REGIONS * 4 + 9 <= MAX_BODY_BYTES);

/// Anything that goes over a connection between two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// From a primary to a replica, or from a replica that pulls to another.
    Request(Message<Request>),
    /// From a replica to whoever asked.
    Reply(Message<Reply>),
    /// About the connection itself.
    Link(LinkFrame),
}

/// What the two ends of a connection say about it; see [`crate::link`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkFrame {
    /// First frame of the end that dialled.
    Hello {
        /// Oldest version it speaks.
        min_version: u16,
        /// Newest version it speaks.
        max_version: u16,
        /// The cluster it belongs to.
        cluster: Uuid,
        /// Its node.
        node: NodeId,
        /// Random per process: tells a restart from a second connection.
        process: u64,
    },
    /// Answer to a hello: the connection is up.
    Welcome {
        /// Of every later frame in both directions.
        version: u16,
        /// The node that answers.
        node: NodeId,
        /// Random per process.
        process: u64,
    },
    /// The connection will not be, or not stay, up. Nothing follows.
    Reject {
        /// Why.
        reason: RejectReason,
    },
    /// Asks for a [`LinkFrame::Pong`].
    Ping {
        /// Comes back in the answer.
        id: u64,
    },
    /// Answer to a ping.
    Pong {
        /// That of the ping.
        id: u64,
    },
}

/// Why an end refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// No version in common; this is what the refusing end speaks.
    Version {
        /// Its oldest.
        min: u16,
        /// Its newest.
        max: u16,
    },
    /// It belongs to another cluster.
    Cluster,
    /// It has another connection to the same process already.
    Duplicate,
    /// It is about to stop.
    Shutdown,
    /// The node is not the one it expected on this connection.
    WrongNode,
    /// Both ends say that they are the same node.
    SameNode,
    /// A reason that a newer version gave and this one does not know.
    Unknown(u8),
}

/// A frame ready to be sent: `head`, then `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Header and body.
    pub head: Bytes,
    /// The payload's own memory; empty if the frame has none.
    pub data: Bytes,
}

impl Encoded {
    /// Length on the wire in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.data.len()
    }

    /// Never true: there is always a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Reads the frame back, as its receiver would.
    ///
    /// # Errors
    /// As [`Prefix::parse`] and [`Prefix::finish`].
    pub fn decode(self) -> Result<Frame, WireError> {
        let found = self.head.len();
        let header: Option<&[u8; HEADER_BYTES]> = self.head.first_chunk();
        let header = header.ok_or(WireError::Length { expected: HEADER_BYTES, found })?;
        Prefix::parse(header)?.finish(self.head.slice(HEADER_BYTES..), self.data)
    }
}

/// The bytes of `frame` in the newest version. The payload is shared, not copied.
///
/// # Panics
/// As [`encode_as`].
#[must_use]
pub fn encode(frame: &Frame) -> Encoded {
    encode_as(frame, MAX_VERSION)
}

/// The bytes of `frame` in the version that was agreed on. What that version can't say is left
/// out, or asked for in its words. The payload is shared, not copied.
///
/// # Panics
/// If the frame breaks a limit of the format ([`MAX_BODY_BYTES`], [`MAX_DATA_BYTES`]), its
/// payload has not one checksum per block, or the version is none of ours; machines never build
/// such a frame.
#[must_use]
pub fn encode_as(frame: &Frame, version: u16) -> Encoded {
    assert!((MIN_VERSION..=MAX_VERSION).contains(&version), "no version {version} is spoken");
    let mut out = Writer::after_header(HEADER_BYTES);
    let (kind, flags, header, data) = match frame {
        Frame::Request(message) => {
            let (kind, flags, payload) = request::write(&message.body, version, &mut out);
            (kind, flags, message.header, payload)
        }
        Frame::Reply(message) => {
            let (kind, payload) = reply::write(&message.body, version, &mut out);
            (kind, 0, message.header, payload)
        }
        Frame::Link(frame) => (link::write(frame, &mut out), 0, NO_HEADER, None),
    };
    let data = data.map_or_else(Bytes::new, |payload| payload.data.clone());
    let mut bytes = out.into_bytes();
    let version = if kind.is_handshake() { HANDSHAKE_VERSION } else { version };
    assert!(kind.is_handshake() || kind.since() <= version, "{kind} in version {version}");
    write_header(&mut bytes, (kind, version, flags), &header, data.len());
    Encoded { head: Bytes::from(bytes), data }
}

/// The header fields of frames that are about no volume.
const NO_HEADER: Header = Header {
    volume: VolumeId(Uuid::nil()),
    epoch: Epoch(0),
    r#gen: Gen(0),
    seq: Seq(0),
    commit: Seq(0),
};

/// Fills in the header of a frame whose body is already in `bytes`.
fn write_header(
    bytes: &mut [u8],
    (kind, version, flags): (Kind, u16, u8),
    header: &Header,
    data_len: usize,
) {
    let body = bytes.get(HEADER_BYTES..).unwrap_or(&[]);
    let (body_len, body_crc) = (body.len(), crc32c::crc32c(body));
    assert!(body_len <= MAX_BODY_BYTES as usize, "{kind} with a body of {body_len} bytes");
    assert!(data_len <= MAX_DATA_BYTES as usize, "{kind} with {data_len} bytes of data");
    let mut out = Writer::with_capacity(HEADER_BYTES);
    out.u32(MAGIC);
    out.u16(version);
    out.u8(kind.byte());
    out.u8(flags);
    out.uuid(header.volume.0);
    out.u64(header.epoch.0);
    out.u64(header.seq.0);
    out.u64(header.commit.0);
    out.u32(header.r#gen.0);
    out.count(body_len);
    out.count(data_len);
    out.u32(body_crc);
    out.u32(0);
    let mut out = out.into_bytes();
    let header_crc = crc32c::crc32c(&out);
    out.extend_from_slice(&header_crc.to_le_bytes());
    assert_eq!(out.len(), HEADER_BYTES, "the header has another length than documented");
    for (to, from) in bytes.iter_mut().zip(out) {
        *to = from;
    }
}

/// A header that is intact and within the limits: how much to read, and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    kind: Kind,
    version: u16,
    flags: u8,
    header: Header,
    body_len: u32,
    data_len: u32,
    body_crc: u32,
}

impl Prefix {
    /// Reads a header.
    ///
    /// # Errors
    /// If it is no header of ours, was damaged, is of a version or kind that this build does not
    /// know, or announces more than the limits allow. The stream can't be used any more.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let (covered, crc) = bytes.split_at(HEADER_BYTES - 4);
        let mut reader = Reader::new(covered);
        let short = |_: Malformed| WireError::HeaderChecksum;
        let magic = reader.u32().map_err(short)?;
        if magic != MAGIC {
            return Err(WireError::Magic { found: magic });
        }
        if crc32c::crc32c(covered).to_le_bytes() != crc {
            return Err(WireError::HeaderChecksum);
        }
        Self::fields(&mut reader).map_err(short)?
    }

    /// What follows the magic number; the outer error is a header too short to be one.
    fn fields(reader: &mut Reader<'_>) -> Result<Result<Self, WireError>, Malformed> {
        let version = reader.u16()?;
        let kind = reader.u8()?;
        let flags = reader.u8()?;
        let volume = VolumeId(reader.uuid()?);
        let epoch = Epoch(reader.u64()?);
        let seq = Seq(reader.u64()?);
        let commit = Seq(reader.u64()?);
        let r#gen = Gen(reader.u32()?);
        let header = Header { volume, epoch, r#gen, seq, commit };
        let (body_len, data_len) = (reader.u32()?, reader.u32()?);
        let (body_crc, reserved) = (reader.u32()?, reader.u32()?);
        let Some(kind) = Kind::from_byte(kind) else {
            return Ok(Err(WireError::Kind { found: kind, version }));
        };
        let prefix = Self { kind, version, flags, header, body_len, data_len, body_crc };
        Ok(prefix.check(reserved).map(|()| prefix))
    }

    fn check(&self, reserved: u32) -> Result<(), WireError> {
        let (kind, version) = (self.kind, self.version);
        let versions = if kind.is_handshake() {
            HANDSHAKE_VERSION..=HANDSHAKE_VERSION
        } else {
            kind.since()..=MAX_VERSION
        };
        if !versions.contains(&version) {
            return Err(WireError::Version { kind, found: version });
        }
        if self.flags & !kind.flags() != 0 {
            return Err(WireError::Flags { kind, found: self.flags });
        }
        if reserved != 0 || (kind.is_link() && self.header != NO_HEADER) {
            return Err(WireError::NotZero { kind });
        }
        if self.body_len > kind.max_body() {
            return Err(WireError::BodyLength { kind, found: self.body_len });
        }
        let whole = self.data_len.is_multiple_of(BLOCK_SIZE);
        if !whole || self.data_len > kind.max_data() {
            return Err(WireError::DataLength { kind, found: self.data_len });
        }
        Ok(())
    }

    /// What kind of frame it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The version of the format that it is in; 0 for a handshake frame.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Bytes of body that follow the header.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.body_len as usize
    }

    /// Bytes of data that follow the body; a multiple of the block size.
    #[must_use]
    pub fn data_len(&self) -> usize {
        self.data_len as usize
    }

    /// The frame, given the bytes that followed. `data` is checked against its checksums and
    /// kept as it is.
    ///
    /// # Errors
    /// If a checksum does not match or a field breaks the format. The stream can't be used any
    /// more.
    pub fn finish(self, body: Bytes, data: Bytes) -> Result<Frame, WireError> {
        for (expected, found) in [(self.body_len(), body.len()), (self.data_len(), data.len())] {
            if expected != found {
                return Err(WireError::Length { expected, found });
            }
        }
        if crc32c::crc32c(&body) != self.body_crc {
            return Err(WireError::BodyChecksum { kind: self.kind });
        }
        let frame = self.decode_body(&body, data);
        let frame = frame.map_err(|Malformed(what)| WireError::Body { kind: self.kind, what })?;
        self.check_blocks(&frame)?;
        Ok(frame)
    }

    fn decode_body(&self, body: &[u8], data: Bytes) -> Result<Frame, Malformed> {
        let mut reader = Reader::new(body);
        let header = self.header;
        let frame = if self.kind.is_link() {
            Frame::Link(link::read(self.kind, &mut reader)?)
        } else if self.kind.is_request() {
            let about = (self.kind, self.version, self.flags);
            let body = request::read(about, &mut reader, data)?;
            Frame::Request(Message { header, body })
        } else {
            let body = reply::read((self.kind, self.version), &mut reader, data)?;
            Frame::Reply(Message { header, body })
        };
        // A newer version may append to a handshake frame what an older one need not know.
        if self.kind.is_handshake() { Ok(frame) } else { reader.end().map(|()| frame) }
    }

    /// Compares the data with its checksums, which the body's checksum has vouched for.
    fn check_blocks(&self, frame: &Frame) -> Result<(), WireError> {
        let Some(payload) = payload_of(frame) else { return Ok(()) };
        let blocks = payload.data.chunks_exact(BLOCK_SIZE as usize).zip(&payload.crcs);
        match blocks.enumerate().find(|(_, (block, crc))| block::crc(block) != **crc) {
            None => Ok(()),
            Some((index, _)) => Err(WireError::BlockChecksum { kind: self.kind, index }),
        }
    }
}

/// The data that a frame carries.
fn payload_of(frame: &Frame) -> Option<&Payload> {
    match frame {
        Frame::Request(Message { body: Request::Write { payload, .. }, .. })
        | Frame::Request(Message { body: Request::Resync { payload, .. }, .. })
        | Frame::Reply(Message { body: Reply::Data(payload), .. }) => Some(payload),
        Frame::Request(_) | Frame::Reply(_) | Frame::Link(_) => None,
    }
}

/// Writes the checksums of a payload.
fn write_crcs(payload: &Payload, out: &mut Writer) {
    let blocks = payload.data.len() / BLOCK_SIZE as usize;
    assert_eq!(payload.crcs.len() * BLOCK_SIZE as usize, payload.data.len(), "{blocks} blocks");
    payload.crcs.iter().for_each(|crc| out.u32(*crc));
}

/// Reads the checksums of `data`: one per block, nothing before them but what was read already.
fn read_crcs(reader: &mut Reader<'_>, data: Bytes) -> Result<Payload, Malformed> {
    let blocks = data.len() / BLOCK_SIZE as usize;
    reader.expect(blocks, 4, "fewer checksums than blocks of data")?;
    let crcs: Result<Vec<u32>, Malformed> = (0..blocks).map(|_| reader.u32()).collect();
    Ok(Payload { data, crcs: crcs? })
}
