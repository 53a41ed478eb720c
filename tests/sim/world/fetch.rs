//! Copies that fetch content from copies on other nodes (S8).

use lockstep_core::id::{Seq, Token};
use lockstep_core::limits;
use lockstep_core::link::Role;
use lockstep_core::message::{Message, Reply, Request};
use lockstep_core::replica;
use lockstep_core::wire::{Frame, Kind};

use super::{Event, MS, World};
use crate::fetch::Fetch;
use crate::net::{ACCEPTOR, DIALER, Packet, Wire};

impl World {
    /// The copy opened as `by` asks another node.
    pub(crate) fn fetch(
        &mut self,
        node: usize,
        by: u64,
        token: Token,
        to: Option<usize>,
        mut message: Message<Request>,
    ) {
        let seq = Seq(self.fresh_id());
        message.header.seq = seq;
        let to = to.filter(|to| *to != node);
        let fetch = |to, unsent| Fetch { by, token, to, unsent };
        let Some(to) = to else { return self.fetched(node, fetch(node, None), None) };
        if self.is_telling() {
            let (name, other) = (self.nodes[node].name.clone(), self.nodes[to].name.clone());
            let body = message.body.clone();
            self.say(|| format!("{name}: replica asks {other} #{seq}: {body:?}"));
        }
        self.delicate(self.plan.ambushes, Some((node, to)));
        self.nodes[node].fetcher.open.insert(seq, fetch(to, Some(message)));
        self.schedule.after(limits::FETCH_MS * MS, Event::FetchOver { node, seq, to });
        match self.nodes[node].fetcher.wires.get(&to).copied() {
            Some(wire) => self.send_fetches(wire),
            None => self.dial_to_fetch(node, to),
        }
    }

    fn dial_to_fetch(&mut self, node: usize, to: usize) {
        let conn = self.nodes[node].fresh_conn();
        let wire = self.net.dial((node, conn), to);
        self.nodes[node].fetcher.wires.insert(to, wire);
        let link = self.new_link(node, Role::Initiator, Some(to));
        if let Some(end) = self.net.end(wire, DIALER) {
            end.link = Some(link);
        }
        self.post(wire, ACCEPTOR, Packet::Dial);
        self.arm_link(wire, DIALER);
    }

    /// The node whose fetcher has dialled this connection.
    pub(crate) fn fetcher_of(&self, wire: Wire) -> Option<usize> {
        let node = self.net.connections.get(&wire)?.ends[DIALER].node;
        self.nodes[node].fetcher.other_end(wire).map(|_| node)
    }

    /// Sends what waits for this connection, if it is up.
    pub(crate) fn send_fetches(&mut self, wire: Wire) {
        let Some(node) = self.fetcher_of(wire) else { return };
        let Some(to) = self.nodes[node].fetcher.other_end(wire) else { return };
        let Some(end) = self.net.end(wire, DIALER).filter(|e| e.open && e.up) else { return };
        let (conn, version) = (end.conn, end.version);
        if version < Kind::Fetch.since() {
            let asked = self.nodes[node].fetcher.take_all(to);
            return asked.into_iter().for_each(|fetch| self.fetched(node, fetch, None));
        }
        let open = self.nodes[node].fetcher.open.values_mut().filter(|f| f.to == to);
        let messages: Vec<_> = open.filter_map(|f| f.unsent.take()).collect();
        for message in messages {
            self.send(node, conn, &Frame::Request(message));
        }
    }

    /// An answer arrives at a fetcher.
    pub(crate) fn fetch_answered(&mut self, node: usize, message: Message<Reply>) {
        if let Some(fetch) = self.nodes[node].fetcher.open.remove(&message.header.seq) {
            self.fetched(node, fetch, Some(message));
        }
    }

    fn fetched(&mut self, node: usize, fetch: Fetch, answer: Option<Message<Reply>>) {
        let event = Box::new(replica::Event::Fetched { token: fetch.token, answer });
        self.schedule.after(0, Event::Replica { node, open: fetch.by, event });
    }

    /// A connection of a fetcher is gone.
    pub(crate) fn fetcher_lost(&mut self, node: usize, wire: Wire) {
        let Some(to) = self.nodes[node].fetcher.other_end(wire) else { return };
        self.nodes[node].fetcher.wires.remove(&to);
        let asked = self.nodes[node].fetcher.take_all(to);
        asked.into_iter().for_each(|fetch| self.fetched(node, fetch, None));
    }

    /// The time for a question is over. A connection that did not bring the answer in time, or
    /// that nobody needs any more, is closed.
    pub(crate) fn fetch_over(&mut self, node: usize, seq: Seq, to: usize) {
        let late = self.nodes[node].fetcher.open.remove(&seq);
        let idle = !self.nodes[node].fetcher.open.values().any(|f| f.to == to);
        let wire = self.nodes[node].fetcher.wires.get(&to).copied();
        if let Some(wire) = wire.filter(|_| late.is_some() || idle) {
            self.close_end(wire, DIALER, true);
        }
        if let Some(fetch) = late {
            self.fetched(node, fetch, None);
        }
    }
}
