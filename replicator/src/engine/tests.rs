//! Whole nodes in one process: real files, real sockets, a record store in memory.

mod chaos;
mod cluster;
mod failover;
mod remake;
mod replicas;
mod resync;
