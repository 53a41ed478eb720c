//! Connections between machines: dialling, frames, ends.

use bytes::Bytes;
use lockstep_core::id::{Conn, Tick};
use lockstep_core::link::{Effect as LinkEffect, Event as LinkEvent, Link, LinkParams, Role};
use lockstep_core::message::{Header, Message, Refusal, Reply};
use lockstep_core::wire::{self, Encoded, Frame};
use lockstep_core::{primary, replica};

use super::{Event, MS, World};
use crate::fault::Fault;
use crate::net::{ACCEPTOR, DIALER, End, Packet, Wire};

impl World {
    fn tick_of(&self, node: usize) -> Tick {
        self.nodes[node].tick(self.now())
    }

    /// A primary's node dials another, or itself.
    pub(crate) fn dial(&mut self, node: usize, seat: u64, to: usize) {
        let conn = self.nodes[node].fresh_conn();
        let wire = self.net.dial((node, conn), to);
        let Some(s) = self.nodes[node].seat(seat) else { return };
        s.wires.insert(to, wire);
        if node != to {
            let link = self.new_link(node, Role::Initiator, Some(to));
            if let Some(end) = self.net.end(wire, DIALER) {
                end.link = Some(link);
            }
            self.post(wire, ACCEPTOR, Packet::Dial);
            self.arm_link(wire, DIALER);
            return;
        }
        let other = self.nodes[node].fresh_conn();
        if let Some(c) = self.net.connections.get_mut(&wire) {
            c.ends[DIALER].up = true;
            c.ends[ACCEPTOR].conn = other;
            (c.ends[ACCEPTOR].open, c.ends[ACCEPTOR].up) = (true, true);
        }
        self.tell_primary_connected(wire);
    }

    pub(crate) fn redial(&mut self, node: usize, seat: u64, to: usize) {
        let Some(s) = self.nodes[node].seat(seat) else { return };
        if s.wanted.contains(&to) && !s.wires.contains_key(&to) {
            self.dial(node, seat, to);
        }
    }

    /// The node at the other end of a connection.
    pub(crate) fn other_end(&self, node: usize, conn: Conn) -> Option<usize> {
        let (wire, side) = self.net.find(node, conn)?;
        self.net.connections.get(&wire).map(|c| c.ends[1 - side].node)
    }

    /// Sends `packet` to `side`.
    pub(super) fn post(&mut self, wire: Wire, side: usize, packet: Packet) {
        let Some(c) = self.net.connections.get(&wire) else { return };
        let (from, to) = (c.ends[1 - side].node, c.ends[side].node);
        let far = || self.plan.distance * self.plan.detours[from][to];
        let distance = if c.is_loopback() { 5 } else { far() };
        let delay = self.rng.latency(distance);
        let open_at = match self.net.blocked_until(from, to) {
            0 => 0,
            until => until + self.rng.below(300 * MS),
        };
        let when = (self.now() + delay).max(open_at);
        if let Some(at) = self.net.post(wire, side, when, packet) {
            self.schedule.at(at, Event::Arrive(wire, side));
        }
    }

    /// A machine of `node` sends a frame on `conn`.
    pub(crate) fn send(&mut self, node: usize, conn: Conn, frame: &Frame) {
        let Some((wire, side)) = self.net.find(node, conn) else { return };
        self.transmit(wire, side, frame);
    }

    fn transmit(&mut self, wire: Wire, from: usize, frame: &Frame) {
        let version = self.net.end(wire, from).map_or(wire::MAX_VERSION, |e| e.version);
        let Encoded { head, data } = wire::encode_as(frame, version);
        let mut packet = Packet::Frame { head, data, garbled: false };
        let loopback = self.net.connections.get(&wire).is_none_or(|c| c.is_loopback());
        if self.garbles_next && !loopback {
            self.garbles_next = false;
            self.count(Fault::GarbledFrame);
            packet = self.garble(packet);
        } else if self.mangles_next && !loopback {
            packet = self.mangle(packet);
        }
        self.post(wire, 1 - from, packet);
    }

    fn garble(&mut self, packet: Packet) -> Packet {
        let Packet::Frame { head, data, .. } = packet else { return packet };
        let flip = |bytes: &Bytes, rng: &mut crate::rng::Rng| {
            let mut bytes = bytes.to_vec();
            let at = rng.index(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
            Bytes::from(bytes)
        };
        if data.is_empty() || self.rng.chance(300) {
            let head = flip(&head, &mut self.rng);
            return Packet::Frame { head, data, garbled: true };
        }
        let data = flip(&data, &mut self.rng);
        Packet::Frame { head, data, garbled: true }
    }

    pub(crate) fn arrive(&mut self, wire: Wire, side: usize) {
        let now = self.now();
        let Some(packet) = self.net.take(wire, side, now) else { return };
        let open = self.net.end(wire, side).is_some_and(|e| e.open);
        match packet {
            Packet::Dial => self.accept(wire),
            Packet::Accept if open => self.link_event(wire, side, LinkEvent::Opened),
            Packet::Frame { head, data, garbled } if open => {
                self.receive(wire, side, head, data, garbled);
            }
            Packet::Gone if open => self.close_end(wire, side, false),
            Packet::Accept | Packet::Frame { .. } | Packet::Gone => {}
        }
        self.net.prune(wire);
    }

    fn accept(&mut self, wire: Wire) {
        let Some(node) = self.net.end(wire, ACCEPTOR).map(|e| e.node) else { return };
        if !self.nodes[node].up {
            self.post(wire, DIALER, Packet::Gone);
            return;
        }
        let conn = self.nodes[node].fresh_conn();
        let link = self.new_link(node, Role::Acceptor, None);
        if let Some(end) = self.net.end(wire, ACCEPTOR) {
            (end.open, end.conn, end.link) = (true, conn, Some(link));
        }
        self.post(wire, DIALER, Packet::Accept);
        self.link_event(wire, ACCEPTOR, LinkEvent::Opened);
    }

    pub(super) fn new_link(&self, node: usize, role: Role, expect: Option<usize>) -> Link {
        let params = LinkParams {
            role,
            cluster: self.cluster_id,
            node: self.nodes[node].name.clone(),
            process: self.nodes[node].process,
            expect: expect.map(|n| self.nodes[n].name.clone()),
            min_version: wire::MIN_VERSION,
            max_version: self.nodes[node].speaks,
        };
        Link::new(self.mistaken(node, params), self.tick_of(node))
    }

    pub(crate) fn link_wake(&mut self, wire: Wire, side: usize) {
        let now = self.now();
        let Some(end) = self.net.end(wire, side) else { return };
        if !end.open || end.armed.is_none_or(|at| at > now) {
            return;
        }
        end.armed = None;
        self.link_event(wire, side, LinkEvent::Wake);
    }

    pub(super) fn link_event(&mut self, wire: Wire, side: usize, event: LinkEvent) {
        let Some(node) = self.net.end(wire, side).map(|e| e.node) else { return };
        let tick = self.tick_of(node);
        let mut out = Vec::new();
        let Some(link) = self.net.end(wire, side).and_then(|e| e.link.as_mut()) else { return };
        link.step(tick, event, &mut out);
        for effect in out {
            match effect {
                LinkEffect::Send(frame) => self.transmit(wire, side, &Frame::Link(frame)),
                LinkEffect::Up { version, .. } => {
                    if let Some(end) = self.net.end(wire, side) {
                        (end.up, end.version) = (true, version);
                    }
                    if side == DIALER && self.fetcher_of(wire).is_some() {
                        self.send_fetches(wire);
                    } else if side == DIALER {
                        self.tell_primary_connected(wire);
                    }
                }
                LinkEffect::Close(why) => {
                    let name = self.nodes[node].name.clone();
                    self.say(|| format!("{name}: closes wire {wire}: {why}"));
                    self.note_close(&why);
                    self.close_end(wire, side, true);
                }
            }
        }
        self.arm_link(wire, side);
    }

    pub(crate) fn arm_link(&mut self, wire: Wire, side: usize) {
        let now = self.now();
        let Some(node) = self.net.end(wire, side).map(|e| e.node) else { return };
        let clock = self.nodes[node].clock;
        let Some(end) = self.net.end(wire, side).filter(|e| e.open) else { return };
        let Some((tick, _)) = end.link.as_ref().and_then(Link::deadline) else { return };
        let when = clock.when(tick, now);
        if end.armed != Some(when) {
            end.armed = Some(when);
            self.schedule.at(when, Event::LinkWake(wire, side));
        }
    }

    fn tell_primary_connected(&mut self, wire: Wire) {
        let Some(c) = self.net.connections.get(&wire) else { return };
        let (node, to, conn) = (c.ends[DIALER].node, c.ends[ACCEPTOR].node, c.ends[DIALER].conn);
        let name = self.nodes[to].name.clone();
        let Some(seat) = self.nodes[node].seat.as_ref().map(|s| s.id) else { return };
        let event = Box::new(primary::Event::Connected { node: name, conn });
        self.schedule.after(0, Event::Primary { node, seat, event });
    }

    fn receive(&mut self, wire: Wire, side: usize, head: Bytes, data: Bytes, garbled: bool) {
        let frame = match (Encoded { head, data }).decode() {
            Ok(_) if garbled => {
                self.fail("garbled", "a garbled frame was taken for a good one".to_owned());
                return;
            }
            Ok(frame) => frame,
            Err(why) => {
                self.say(|| format!("a frame is refused: {why}"));
                if garbled {
                    self.outcome.coverage.garbled_frames_noticed += 1;
                } else {
                    self.fail("wire", format!("an intact frame is refused: {why}"));
                }
                self.close_end(wire, side, true);
                return;
            }
        };
        let event = match &frame {
            Frame::Link(frame) => LinkEvent::Received(frame.clone()),
            Frame::Request(_) | Frame::Reply(_) => LinkEvent::Heard,
        };
        self.link_event(wire, side, event);
        let usable = |e: &&mut End| e.open && e.up;
        let Some(end) = self.net.end(wire, side).filter(usable) else { return };
        let (node, conn) = (end.node, end.conn);
        match frame {
            Frame::Request(message) => self.request(node, conn, message),
            Frame::Reply(message) if self.fetcher_of(wire).is_some() => {
                self.fetch_answered(node, message);
            }
            Frame::Reply(message) => {
                let Some(seat) = self.nodes[node].seat.as_mut() else { return };
                let judged = seat.flows.entry(conn).or_default().is_answered(&message);
                let id = seat.id;
                let other = seat.wires.iter().find(|(_, w)| **w == wire).map(|(to, _)| *to);
                match message.body {
                    Reply::Promised(_) => {
                        let now = self.schedule.now();
                        seat.answered.extend(other.map(|to| (to, now)));
                    }
                    Reply::Refused(Refusal::Epoch { .. }) => seat.refused_by.extend(other),
                    _ => {}
                }
                self.judge("honest", judged);
                self.primary_event(node, id, primary::Event::Reply { conn, message });
            }
            Frame::Link(_) => {}
        }
    }

    fn request(
        &mut self,
        node: usize,
        conn: Conn,
        message: Message<lockstep_core::message::Request>,
    ) {
        let host = self.nodes[node].copy.as_ref().and_then(|c| c.host.as_ref());
        let Some(open) = host.map(|h| h.open) else {
            let header = Header { ..message.header };
            let body = Reply::Refused(Refusal::NoSuchReplica);
            self.send(node, conn, &Frame::Reply(Message { header, body }));
            return;
        };
        self.replica_event(node, open, replica::Event::Request { conn, message });
    }

    /// Closes one end; tells its own machines and, if `tells`, the other end.
    pub(crate) fn close_end(&mut self, wire: Wire, side: usize, tells: bool) {
        let Some(end) = self.net.end(wire, side).filter(|e| e.open) else { return };
        end.open = false;
        end.inbox.clear();
        let (node, conn, up) = (end.node, end.conn, end.up);
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: wire {wire} is gone"));
        if side == DIALER && self.fetcher_of(wire).is_some() {
            self.fetcher_lost(node, wire);
        } else if side == DIALER {
            self.dialer_lost(wire, node, conn, up);
        } else if up
            && let Some(host) = self.nodes[node].copy.as_ref().and_then(|c| c.host.as_ref())
        {
            let event = Box::new(replica::Event::Disconnected(conn));
            let event = Event::Replica { node, open: host.open, event };
            self.schedule.after(0, event);
        }
        if tells {
            self.tell_gone(wire, 1 - side);
        }
        self.net.prune(wire);
    }

    fn dialer_lost(&mut self, wire: Wire, node: usize, conn: Conn, up: bool) {
        let Some(seat) = self.nodes[node].seat.as_mut() else { return };
        let Some(to) = seat.wires.iter().find(|(_, w)| **w == wire).map(|(to, _)| *to) else {
            return;
        };
        seat.wires.remove(&to);
        seat.flows.remove(&conn);
        seat.answered.remove(&to);
        let id = seat.id;
        if up {
            let event = Box::new(primary::Event::Disconnected(conn));
            self.schedule.after(0, Event::Primary { node, seat: id, event });
        }
        let delay = self.rng.between(MS, 300 * MS);
        self.schedule.after(delay, Event::Redial { node, seat: id, to });
    }

    /// The news that it is over travel to `side`; sometimes they overtake what is under way.
    fn tell_gone(&mut self, wire: Wire, side: usize) {
        if self.rng.chance(300)
            && let Some(end) = self.net.end(wire, side)
        {
            end.inbox.clear();
        }
        self.post(wire, side, Packet::Gone);
    }

    /// All connections of a process end with it; after a loss of power nobody is told.
    pub(crate) fn drop_connections(&mut self, node: usize, tells: bool) {
        let ends = self.net.ends_of(node);
        for (wire, side) in ends {
            if let Some(end) = self.net.end(wire, side) {
                end.open = false;
                end.inbox.clear();
            }
            if tells {
                self.tell_gone(wire, 1 - side);
            }
            self.net.prune(wire);
        }
    }

    /// The connections that a primary dialled end with it.
    pub(crate) fn drop_wires(&mut self, wires: impl IntoIterator<Item = Wire>) {
        for wire in wires {
            if let Some(end) = self.net.end(wire, DIALER).filter(|e| e.open) {
                end.open = false;
                end.inbox.clear();
                self.tell_gone(wire, ACCEPTOR);
                self.net.prune(wire);
            }
        }
    }
}
