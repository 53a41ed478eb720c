//! Block devices: `/dev/something` on the node, whatever its kernel offers.
//!
//! Three doors make one, by one trait. [`Door`] makes a device for a volume, or takes over one
//! that a daemon before this one left; [`Device`] is a device while it is served. Between two
//! daemons the kernel holds the device, and its requests wait: nobody sees an error.
//!
//! | Door | In the kernel | A restarted daemon |
//! |---|---|---|
//! | [`Kind::Ublk`] | `ublk_drv`, from Linux 6.0 | `USER_RECOVERY` with `REISSUE` |
//! | [`Kind::Nbd`] | `nbd`, told over netlink, from Linux 5.14 | `RECONFIGURE` with a new socket |
//! | [`Kind::Fuse`] | `fuse` and `loop` | gets the connection from the keeper; `NOTIFY_RESEND` |
//!
//! `NOTIFY_RESEND` is there from Linux 6.9.
//!
//! # No stalled write
//!
//! A kernel may send a request twice: once to a server that died or seemed to, once to its
//! successor. All three doors keep one rule: **no request that the kernel has sent again is begun
//! by its first receiver any more**. Then a write that the guest was told of is never overwritten
//! by an older one that was on its way. What a dead daemon had begun is fenced by the epoch of its
//! successor, and what this daemon has begun is finished, or in the primary's queue of overlapping
//! requests, before a later one.

pub mod fuse;
mod kind;
mod known_bad;
pub mod nbd;
mod others;
mod probe;
mod shape;
mod token;
pub mod ublk;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::backend::Backend;

pub use kind::{Choice, Kind};
pub use known_bad::{kernel_release, known_bad};
pub use probe::Probe;
pub use shape::Shape;
pub use token::{Place, Token};

/// Why a device could not be made, found or removed; says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel has no such door.
    #[error("the {kind} door is not to be had: {why}")]
    Unavailable {
        /// Which.
        kind: Kind,
        /// What is missing.
        why: String,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Refused {
        /// What was tried, and what to do.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file system is mounted on it, or somebody has it open.
    #[error("{device} is in use: {by}; end that first, or force it")]
    Busy {
        /// The device.
        device: String,
        /// Who uses it, as far as it can be told.
        by: String,
    },
    /// The device that a token tells of is gone, or cannot be taken over.
    #[error("{device} cannot be taken over: {why}")]
    Lost {
        /// The device.
        device: String,
        /// What became of it.
        why: String,
    },
}

/// A way to make a block device. One value per kind and node.
pub trait Door<B: Backend>: Send + Sync {
    /// Which.
    fn kind(&self) -> Kind;

    /// Asks the kernel whether this door can be had, loading its module if that is all it lacks.
    fn probe(&self) -> Probe;

    /// Makes a device. It serves requests when this returns.
    fn open(
        &self,
        shape: Shape,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>>;

    /// Gets hold of a device that another daemon left, before anybody knows whether this one will
    /// have its volume: what was under way there may then come sooner once it has. Nothing is
    /// begun, and nobody is told if it cannot be had. It ends with [`Door::resume`],
    /// [`Door::end`] or the door.
    fn hold(&self, token: Token) -> BoxFuture<'_, ()> {
        drop(token);
        Box::pin(std::future::ready(()))
    }

    /// Takes over a device that another daemon left, by dying or by [`Device::release`]. Requests
    /// that wait are served; those that were under way are done once more.
    fn resume(
        &self,
        token: Token,
        backend: Arc<B>,
    ) -> BoxFuture<'_, Result<Box<dyn Device>, DeviceError>>;

    /// Ends a device that nobody serves: all its requests fail with `EIO`, and it is gone as soon
    /// as nobody has it open. One that is gone already is no error.
    fn end(&self, token: Token) -> BoxFuture<'_, Result<(), DeviceError>>;

    /// Ends what is left of devices whose maker died before it could note them anywhere: all of
    /// this node that nobody serves and that are not named in `known`. A door that cannot tell
    /// them from those of others leaves them alone.
    fn sweep(&self, known: BTreeSet<String>) -> BoxFuture<'_, Result<(), DeviceError>> {
        drop(known);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A device that is being served. Dropping it ends the service as a crash of the daemon would.
pub trait Device: Send + Sync {
    /// What is needed to find it again.
    fn token(&self) -> &Token;

    /// Where it is, such as `/dev/ublkb0`.
    fn path(&self) -> &Path {
        &self.token().device
    }

    /// Shows a new size, in bytes; a size only grows.
    fn resize(&self, size_bytes: u64) -> BoxFuture<'_, Result<(), DeviceError>>;

    /// Removes the device: it is gone when this returns. [`DeviceError::Busy`] while somebody has
    /// it open; it is then served as before.
    fn close(&self) -> BoxFuture<'_, Result<(), DeviceError>>;

    /// Stops serving without an error to anybody: what is under way is finished, what comes later
    /// waits for [`Door::resume`].
    fn release(&self) -> BoxFuture<'_, ()>;

    /// Has the keeper hold once more what it holds of this device, because the one before was
    /// killed. Most doors need no keeper.
    fn keep(&self) -> BoxFuture<'_, Result<(), DeviceError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Fails all requests with `EIO`, present and future, and removes the device as soon as nobody
    /// has it open. Returns when no request waits any more.
    fn fail(&self) -> BoxFuture<'_, ()>;
}
