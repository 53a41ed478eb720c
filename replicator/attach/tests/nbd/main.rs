//! The NBD door from outside: real sockets, real clients, and clients that misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test, a panic is how a failure is told; helpers count as tests"
)]

mod client;
mod gated;
mod handshake;
mod lifecycle;
mod malformed;
mod programs;
mod raw;
mod transmission;
mod world;
