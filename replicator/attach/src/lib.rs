//! Doors: how a kernel or a client reaches a volume.
//!
//! A door turns somebody's block protocol into calls on one trait, [`Backend`]. The daemon
//! implements that trait once; every door serves it.
//!
//! - [`device`]: block devices of the node's kernel: ublk, NBD, FUSE with loop.
//! - [`filesystem`]: file systems on such devices: made, checked, mounted.
//! - [`keeper`]: a process that keeps open files while the daemon is replaced.
//! - [`nbd`]: a complete NBD server over unix sockets and TCP, and a small NBD client.
//! - [`memory`]: a back end that lives in memory, for tests and measurements.

pub mod backend;
pub mod device;
pub mod filesystem;
pub mod keeper;
pub mod memory;
pub mod nbd;

pub use backend::{Backend, Errno, ExportInfo, Extent, ReadData, Segment, ZeroMode};
