//! The daemon's inside: what does the sockets, files, timers and threads around the pure machines
//! of `lockstep-core` and `lockstep-store`.
//!
//! - [`engine`]: the data path of one node: its replicas, its primaries, the links between nodes.
//! - [`door`]: an attached volume as doors see it.
//! - [`devices`]: block devices of attached volumes.
//! - [`pool`]: directories that hold replicas.
//! - [`admin`]: what the daemon answers people and other daemons, and does for the cluster.
//! - [`config`], [`logging`], [`daemon`]: what the daemon is told, how it tells, how it lives.
//! - [`cli`]: the command `lockstep`; [`demo`]: its demonstration.
#![forbid(unsafe_code)]

pub mod admin;
pub(crate) mod buf;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod devices;
pub(crate) mod disk;
pub mod door;
pub mod engine;
pub mod logging;
pub(crate) mod net;
mod pace;
pub mod pool;
