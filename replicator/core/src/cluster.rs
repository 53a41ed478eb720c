//! Decisions about the cluster as functions of what is known: where copies go, when a lost copy is
//! replaced, which copy is one too many, on which nodes pods may run, which nodes may go down, what
//! it would cost to lose a node. Nothing here keeps state; asked twice, they answer the same.

pub mod copysets;
pub mod drain;
pub mod failover;
pub mod follow;
pub mod kept;
pub mod locality;
pub mod outage;
pub mod placement;
pub mod replacement;
pub mod trim;
