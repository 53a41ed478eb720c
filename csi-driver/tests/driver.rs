//! The driver as Kubernetes meets it: a program and a socket. The daemon behind it is one of words.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may panic")]

#[path = "driver/fake.rs"]
mod fake;
#[path = "driver/identity.rs"]
mod identity;
#[path = "driver/locality.rs"]
mod locality;
#[path = "driver/malformed.rs"]
mod malformed;
#[path = "driver/program.rs"]
mod program;
#[path = "driver/secrets.rs"]
mod secrets;
#[path = "driver/snapshots.rs"]
mod snapshots;
#[path = "driver/views.rs"]
mod views;
#[path = "driver/volumes.rs"]
mod volumes;
