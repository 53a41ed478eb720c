//! The range lock.
