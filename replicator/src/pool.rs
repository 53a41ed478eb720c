//! Pools: directories that hold replicas.

mod error;

pub use error::PoolError;
