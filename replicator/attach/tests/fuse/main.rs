//! The FUSE door on the kernel of this machine: file systems, a server that is killed, failing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test, a panic is how a failure is told; helpers count as tests"
)]

mod keeper;
mod lifecycle;
mod programs;
mod world;
