//! The replica store, pure: it turns a replica's operations into disk operations with barriers,
//! owns the formats of the four files of a replica, and recovers from their bytes.
//!
//! Nothing here does I/O or reads a clock. A driver owns the files and executes what
//! [`Store::poll_disk`] gives it, in any order and all at once: where one disk operation must wait
//! for another, the store does not hand it out before [`Store::done`] was told of the other.
//!
//! ```text
//! StoreOp, StoreNote -> submit, note -> poll_disk -> DiskOp -> (driver: files)
//!        StoreReply <- poll_done    <- done       <- result <-
//! ```
//!
//! - [`layout`]: the files, their sizes, where things are in them.
//! - [`Superblock`]: identity and promise of a replica.
//! - [`Store`]: the machine. [`format`] makes the files of an empty replica, [`Store::open`]
//!   recovers one.
//!
//! The formats, their invariants and what is assumed of the medium: `docs/ondisk.md`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod activity;
mod ahead;
mod clean;
mod codec;
mod error;
mod extend;
mod flush;
mod kept;
pub mod layout;
mod log;
mod mutate;
mod op;
mod open;
mod promise;
mod read;
mod recover;
mod regions;
mod snapshot;
mod stamps;
mod store;
mod superblock;
mod tags;
mod tuning;
mod unwritten;

pub use error::OpenError;
pub use kept::{KeptTags, written_regions};
pub use layout::{File, file_bytes};
pub use op::{DiskError, DiskOp, DiskOpId, DiskOpKind};
pub use open::{OpenParams, Opened, format, format_clone};
pub use store::{Status, Store};
pub use superblock::{CopyFault, Identity, Superblock};
pub use tuning::{Tuning, blake3_digest};
pub use unwritten::{Patch, Unwritten};
