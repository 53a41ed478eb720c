//! Decisions about the cluster as functions of what is known: where copies go, when a lost copy is
//! replaced, and which copy is one too many. Nothing here keeps state; asked twice, they answer the
//! same.

pub mod copysets;
pub mod placement;
pub mod replacement;
pub mod trim;
