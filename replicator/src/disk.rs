//! Executes a replica store's disk operations on a few blocking threads.

mod files;
#[cfg(test)]
mod tests;
mod threads;
mod whole;

pub(crate) use files::{DirectIo, ReplicaFiles, class_of};
pub(crate) use threads::Threads;
pub(crate) use whole::{Home, Room, full_bytes};
