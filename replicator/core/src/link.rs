//! One connection between two nodes.
