//! The daemon's inside: what does the sockets, files, timers and threads around the pure machines
//! of `lockstep-core` and `lockstep-store`.
//!
//! - [`engine`]: the data path of one node: its replicas, its primaries, the links between nodes.
//! - [`door`]: an attached volume as doors see it.
//! - [`pool`]: directories that hold replicas.
#![forbid(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod config;
pub mod door;
pub mod engine;
pub mod logging;
pub mod pool;
