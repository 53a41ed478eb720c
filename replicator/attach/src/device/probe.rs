//! What the kernel of this node offers.

use super::kind::Kind;

/// Whether a door can be had here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Which.
    pub kind: Kind,
    /// It can be opened.
    pub usable: bool,
    /// Why, or why not: for people. Names what it can and cannot do on this kernel.
    pub why: String,
    /// A daemon that takes a device over gets the requests that were under way.
    pub restartable: bool,
}
