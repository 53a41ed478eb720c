//! Replication decisions of Lockstep, pure: events in, effects out.
//!
//! Nothing here reads a clock, does I/O, starts a thread or draws a random number: time is the
//! `now` given to `step`, ids are inputs, and iteration order is always defined. The daemon, the
//! simulator and the fuzzer drive the same machines.
//!
//! - [`primary::Primary`]: serves one attached volume and fans its writes out to replicas.
//! - [`replica::Replica`]: one copy of one volume, behind the epoch fence.
//! - [`link::Link`]: one connection between two nodes: version negotiation and heartbeats.
//! - [`record`]: the compare-and-swap object that says who is in force.
//! - [`wire`]: frames as bytes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod alike;
pub mod block;
pub mod cluster;
pub mod gap;
pub mod guest;
pub mod id;
pub mod limits;
pub mod link;
pub mod lock;
pub mod message;
pub mod planted;
pub mod primary;
pub mod range;
pub mod record;
pub mod replica;
pub mod slots;
pub mod store;
pub mod throttle;
pub mod wire;
