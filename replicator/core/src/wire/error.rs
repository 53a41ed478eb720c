//! What can be wrong with a frame.

use core::fmt;

use super::{Kind, MAX_VERSION, MIN_VERSION};

/// Why bytes are not a frame. After any of these the stream has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// The stream does not carry frames of Lockstep.
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// The header was damaged on its way.
    HeaderChecksum,
    /// A kind of frame that this build does not know.
    Kind {
        /// Its number.
        found: u8,
        /// The header's version.
        version: u16,
    },
    /// A version that was not agreed on.
    Version {
        /// Of which frame.
        kind: Kind,
        /// The header's version.
        found: u16,
    },
    /// Flags that the kind does not have.
    Flags {
        /// Of which frame.
        kind: Kind,
        /// All its flags.
        found: u8,
    },
    /// A field that must be zero is not.
    NotZero {
        /// In which frame.
        kind: Kind,
    },
    /// The body is longer than the kind allows.
    BodyLength {
        /// Of which frame.
        kind: Kind,
        /// Bytes announced.
        found: u32,
    },
    /// The data is longer than the kind allows, or not whole blocks.
    DataLength {
        /// Of which frame.
        kind: Kind,
        /// Bytes announced.
        found: u32,
    },
    /// Fewer or more bytes were handed in than the header announced.
    Length {
        /// Bytes announced.
        expected: usize,
        /// Bytes handed in.
        found: usize,
    },
    /// The body was damaged on its way.
    BodyChecksum {
        /// Of which frame.
        kind: Kind,
    },
    /// A block of data was damaged on its way, or before its checksum was made.
    BlockChecksum {
        /// Of which frame.
        kind: Kind,
        /// Which block of the frame's data, from 0.
        index: usize,
    },
    /// The body is intact but breaks the format.
    Body {
        /// Of which frame.
        kind: Kind,
        /// How.
        what: &'static str,
    },
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { found } => {
                write!(f, "the peer does not speak the Lockstep protocol (magic {found:08x})")
            }
            Self::HeaderChecksum => write!(f, "a frame header was damaged on its way"),
            Self::Kind { found, version } => {
                write!(f, "unknown kind of frame {found:#04x} in wire version {version}")
            }
            Self::Version { kind, found } => write!(
                f,
                "{kind} frame in wire version {found}; this build speaks \
                 {MIN_VERSION} to {MAX_VERSION}"
            ),
            Self::Flags { kind, found } => {
                write!(f, "{kind} frame with unknown flags {found:#04x}")
            }
            Self::NotZero { kind } => write!(f, "{kind} frame uses a field that must be zero"),
            Self::BodyLength { kind, found } => {
                write!(f, "{kind} frame with a body of {found} bytes; at most {}", kind.max_body())
            }
            Self::DataLength { kind, found } => write!(
                f,
                "{kind} frame with {found} bytes of data; whole blocks and at most {} are allowed",
                kind.max_data()
            ),
            Self::Length { expected, found } => {
                write!(f, "a part of a frame has {found} bytes instead of {expected}")
            }
            Self::BodyChecksum { kind } => write!(f, "the body of a {kind} frame was damaged"),
            Self::BlockChecksum { kind, index } => {
                write!(f, "block {index} of a {kind} frame does not match its checksum")
            }
            Self::Body { kind, what } => write!(f, "malformed {kind} frame: {what}"),
        }
    }
}

impl core::error::Error for WireError {}
