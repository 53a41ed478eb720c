//! Every bound of the NBD server, and how they relate.

use std::time::Duration;

/// Largest payload of one READ or WRITE: what the protocol tells clients they may rely on.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Most bytes of option data a client may send at once: a name of 4096 bytes and a few queries
/// of as much fit; nothing real comes near.
pub(crate) const OPTION_BYTES_MAX: u32 = 64 * 1024;

/// Longest string of the protocol: names, descriptions, queries and error messages.
pub(crate) const STRING_BYTES_MAX: usize = 4096;

/// Most metadata context queries in one option.
pub(crate) const QUERIES_MAX: usize = 64;

/// Most extents in one BLOCK_STATUS reply. The protocol's own ceiling is 2^20.
pub(crate) const EXTENTS_MAX: usize = 64 * 1024;

/// How much a connection receives per system call when requests are small.
pub(crate) const INBOX_BYTES: usize = 64 * 1024;

/// A payload whose missing part is at least this long is received straight into its own buffer;
/// for a shorter one, one more system call would cost more than the copy.
pub(crate) const DIRECT_BYTES_MIN: usize = 16 * 1024;

/// Most slices in one vectored write.
pub(crate) const SLICES_MAX: usize = 64;

const _: () = assert!(DIRECT_BYTES_MIN < INBOX_BYTES);
const _: () = assert!(STRING_BYTES_MAX < OPTION_BYTES_MAX as usize);
const _: () = assert!(EXTENTS_MAX < 1 << 20);

/// What the server allows its clients. [`Limits::default`] suits a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at once, handshakes included; more have to wait for the greeting.
    pub connections_max: usize,
    /// Time a client has to finish its handshake.
    pub handshake: Duration,
    /// Most options a client may send in one handshake.
    pub options_max: u32,
    /// Most requests of one connection being executed at once.
    pub requests_max: usize,
    /// Most payload bytes, received or waiting to be sent, held for one connection. At least
    /// 32 MiB, the size of the largest request.
    pub bytes_max: u64,
    /// Time that requests in flight get to finish when their export is removed or the server
    /// stops; after that they fail with `ESHUTDOWN`.
    pub drain: Duration,
    /// Time a departing client gets to take its last replies.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 512,
            handshake: Duration::from_secs(10),
            options_max: 128,
            requests_max: 128,
            bytes_max: 64 * 1024 * 1024,
            drain: Duration::from_millis(500),
            linger: Duration::from_secs(1),
        }
    }
}

impl Limits {
    /// These limits, raised to the least that lets every legal request through.
    pub(crate) fn at_least_one_request(mut self) -> Self {
        self.connections_max = self.connections_max.max(1);
        self.requests_max = self.requests_max.max(1);
        self.bytes_max = self.bytes_max.max(u64::from(PAYLOAD_BYTES_MAX));
        self
    }
}
