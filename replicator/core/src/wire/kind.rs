//! The kinds of frames and what each may be.

use core::fmt;

use crate::limits::{MAX_BODY_BYTES, MAX_DATA_BYTES};

/// In a write or zero: durable before the answer.
pub(super) const FLAG_FUA: u8 = 1;
/// In a zero: the space may be given back.
pub(super) const FLAG_DEALLOCATE: u8 = 2;
/// In a commit: the replica is a member of the in-sync set.
pub(super) const FLAG_MEMBER: u8 = 4;
/// Longest body of a handshake frame, present and future: a peer is not known yet.
const MAX_HANDSHAKE_BODY_BYTES: u32 = 1024;

/// Declares the kinds with their numbers in the header.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $byte:literal,)*) => {
        /// What a frame is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its number in the header.
            #[must_use]
            pub const fn byte(self) -> u8 {
                match self {
                    $(Self::$name => $byte,)*
                }
            }

            /// The kind with this number.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($byte => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name in `docs/wire.md` and in logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

kinds! {
    /// [`super::LinkFrame::Hello`].
    Hello = 0x01,
    /// [`super::LinkFrame::Welcome`].
    Welcome = 0x02,
    /// [`super::LinkFrame::Reject`].
    Reject = 0x03,
    /// [`super::LinkFrame::Ping`].
    Ping = 0x04,
    /// [`super::LinkFrame::Pong`].
    Pong = 0x05,
    /// [`crate::message::Request::Promise`].
    Promise = 0x10,
    /// [`crate::message::Request::Read`].
    Read = 0x11,
    /// [`crate::message::Request::Write`].
    Write = 0x12,
    /// [`crate::message::Request::Zero`].
    Zero = 0x13,
    /// [`crate::message::Request::Flush`].
    Flush = 0x14,
    /// [`crate::message::Request::Commit`].
    Commit = 0x15,
    /// [`crate::message::Request::Mark`].
    Mark = 0x16,
    /// [`crate::message::Request::Scan`].
    Scan = 0x17,
    /// [`crate::message::Request::Digest`].
    Digest = 0x18,
    /// [`crate::message::Request::Resync`].
    Resync = 0x19,
    /// [`crate::message::Request::Close`].
    Close = 0x1a,
    /// [`crate::message::Request::Renew`].
    Renew = 0x1b,
    /// [`crate::message::Request::Pull`].
    Pull = 0x1c,
    /// [`crate::message::Request::Fetch`].
    Fetch = 0x1d,
    /// [`crate::message::Request::Complete`].
    Complete = 0x1e,
    /// [`crate::message::Request::Enter`].
    Enter = 0x1f,
    /// [`crate::message::Request::Extend`].
    Extend = 0x30,
    /// [`crate::message::Request::Prepare`].
    Prepare = 0x31,
    /// [`crate::message::Request::Snapshot`].
    Snapshot = 0x32,
    /// [`crate::message::Request::DropSnapshot`].
    DropSnapshot = 0x33,
    /// [`crate::message::Request::Seal`].
    Seal = 0x34,
    /// [`crate::message::Request::ScanKept`].
    ScanKept = 0x38,
    /// [`crate::message::Request::DigestKept`].
    DigestKept = 0x39,
    /// [`crate::message::Request::ReadKept`].
    ReadKept = 0x3a,
    /// [`crate::message::Reply::Promised`].
    Promised = 0x20,
    /// [`crate::message::Reply::Data`].
    Data = 0x21,
    /// [`crate::message::Reply::Done`].
    Done = 0x22,
    /// [`crate::message::Reply::Regions`].
    Regions = 0x23,
    /// [`crate::message::Reply::Digests`].
    Digests = 0x24,
    /// [`crate::message::Reply::Refused`].
    Refused = 0x25,
}

impl Kind {
    /// Is it one of the frames that come before a version is agreed on?
    #[must_use]
    pub const fn is_handshake(self) -> bool {
        matches!(self, Self::Hello | Self::Welcome | Self::Reject)
    }

    /// The first version of the format that has it.
    #[must_use]
    pub const fn since(self) -> u16 {
        match self {
            Self::Renew => 2,
            Self::Pull | Self::Fetch | Self::Complete | Self::Enter => 3,
            Self::Extend | Self::Prepare | Self::Snapshot | Self::DropSnapshot | Self::Seal => 4,
            Self::ScanKept | Self::DigestKept | Self::ReadKept => 4,
            _ => super::MIN_VERSION,
        }
    }

    /// Is it about the connection, not about a volume?
    #[must_use]
    pub const fn is_link(self) -> bool {
        self.byte() < 0x10
    }

    /// Does it go to a replica?
    #[must_use]
    pub const fn is_request(self) -> bool {
        matches!(self.byte(), 0x10..=0x1f | 0x30..=0x3f)
    }

    /// The flags that it may have.
    #[must_use]
    pub(super) const fn flags(self) -> u8 {
        match self {
            Self::Write => FLAG_FUA,
            Self::Zero => FLAG_FUA | FLAG_DEALLOCATE,
            Self::Commit => FLAG_MEMBER,
            _ => 0,
        }
    }

    /// Most bytes that its body may have.
    #[must_use]
    pub(super) const fn max_body(self) -> u32 {
        if self.is_handshake() { MAX_HANDSHAKE_BODY_BYTES } else { MAX_BODY_BYTES }
    }

    /// Most bytes of data that may follow.
    #[must_use]
    pub(super) const fn max_data(self) -> u32 {
        match self {
            Self::Write | Self::Resync | Self::Data => MAX_DATA_BYTES,
            _ => 0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
