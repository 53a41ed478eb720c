//! The daemon's inside: what does the sockets, files, timers and threads around the pure machines
//! of `lockstep-core` and `lockstep-store`.
//!
//! - [`engine`]: the data path of one node: its replicas, its primaries, the links between nodes.
//! - [`door`]: an attached volume as doors see it.
//! - [`pool`]: directories that hold replicas.
//! - [`config`], [`logging`]: what the daemon is told, and how it tells.
//! - [`cli`]: the command `lockstep`.
#![forbid(unsafe_code)]

pub mod admin;
pub mod cli;
pub(crate) mod buf;
pub mod clock;
pub mod config;
pub(crate) mod disk;
pub mod daemon;
pub mod door;
pub mod engine;
pub mod logging;
pub(crate) mod net;
pub mod pool;
