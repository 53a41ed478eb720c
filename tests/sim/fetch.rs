//! What a node's copy fetches from copies on other nodes: connections of its own, and questions
//! without an answer.

use lockstep_core::id::{Seq, Token};
use lockstep_core::message::{Message, Request};
use std::collections::BTreeMap;

use crate::net::Wire;

/// The fetching part of a node's process.
#[derive(Debug, Default)]
pub struct Fetcher {
    /// Connections, by node.
    pub wires: BTreeMap<usize, Wire>,
    /// Questions without an answer, by number.
    pub open: BTreeMap<Seq, Fetch>,
}

/// A question without an answer.
#[derive(Debug)]
pub struct Fetch {
    /// Which opened copy asks.
    pub by: u64,
    /// Its name for it.
    pub token: Token,
    /// The node that is asked.
    pub to: usize,
    /// The question, until it is sent.
    pub unsent: Option<Message<Request>>,
}

impl Fetcher {
    /// The node at the other end of a connection of this fetcher.
    #[must_use]
    pub fn other_end(&self, wire: Wire) -> Option<usize> {
        self.wires.iter().find(|(_, w)| **w == wire).map(|(to, _)| *to)
    }

    /// Takes out what was asked of a node.
    pub fn take_all(&mut self, to: usize) -> Vec<Fetch> {
        let asked: Vec<Seq> =
            self.open.iter().filter(|(_, f)| f.to == to).map(|(seq, _)| *seq).collect();
        asked.iter().filter_map(|seq| self.open.remove(seq)).collect()
    }
}
