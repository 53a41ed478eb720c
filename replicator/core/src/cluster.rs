//! Decisions about the cluster as functions of what is known: where copies go, and when a lost
//! copy is replaced. Nothing here keeps state; asked twice, they answer the same.

pub mod placement;
pub mod replacement;
