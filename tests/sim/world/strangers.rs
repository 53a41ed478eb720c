//! Peers that should not be there, and peers with errors: nodes that were set up wrongly,
//! connections that are refused, programs that speak out of turn, frames that break the format.

use bytes::Bytes;
use lockstep_core::id::{Epoch, Gen, NodeId, Seq};
use lockstep_core::link::{CloseReason, Event as LinkEvent, LinkParams, Role};
use lockstep_core::message::{Header, Message, Request};
use lockstep_core::wire;
use lockstep_core::wire::{Encoded, Frame, LinkFrame, MAX_VERSION, MIN_VERSION, RejectReason};

use super::{MS, World};
use crate::fault::Fault;
use crate::net::{ACCEPTOR, DIALER, Packet, Wire};
use crate::rng::Rng;

/// What is wrong with the setting up of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// It has another cluster's id.
    Cluster,
    /// Its program is far too new.
    TooNew,
    /// It has another node's address for that of a third one.
    Address,
    /// It has the name of the node that it dials.
    Name,
}

/// In a header: where the fields are that are changed here.
const VERSION: usize = 4;
const FIELDS: [usize; 6] = [VERSION, 6, 7, 52, 56, 64];
const BODY_CRC: usize = 60;
const HEADER: usize = 72;

impl World {
    /// Makes one of these faults happen; answers whether it could. Those that wait for something
    /// are counted later.
    pub(super) fn disturb_peers(&mut self, fault: Fault, node: usize) -> bool {
        match fault {
            Fault::WrongPeer => self.misconfigure(node),
            Fault::BabblingPeer => self.babble(node),
            Fault::RefusedConnection => self.refuse_connection(),
            Fault::GarbledFrame => {
                self.garbles_next = true;
                false
            }
            _ => {
                self.mangles_next = true;
                false
            }
        }
    }

    /// A node is set up wrongly for a while: who it dials meanwhile refuses it.
    pub(crate) fn misconfigure(&mut self, node: usize) -> bool {
        let all = [Mistake::Cluster, Mistake::TooNew, Mistake::Address, Mistake::Name];
        let Some(mistake) = self.rng.pick(&all) else { return false };
        let until = self.now() + self.rng.latency(1500 * MS);
        self.nodes[node].mistake = Some((mistake, until));
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: is set up wrongly ({mistake:?})"));
        // Somebody has to dial for it to matter.
        let mine = |c: &crate::net::Connection| {
            c.ends[DIALER].open && c.ends[DIALER].node == node && !c.is_loopback()
        };
        let wires: Vec<Wire> =
            self.net.connections.iter().filter(|(_, c)| mine(c)).map(|(w, _)| *w).collect();
        wires.into_iter().for_each(|wire| self.close_end(wire, DIALER, true));
        // Counted when it is noticed.
        false
    }

    /// What a node believes of itself and of whom it dials.
    pub(super) fn mistaken(&self, node: usize, params: LinkParams) -> LinkParams {
        let now = self.now();
        let mistake = self.nodes[node].mistake.filter(|(_, until)| *until > now);
        let Some((mistake, _)) = mistake.filter(|_| params.role == Role::Initiator) else {
            return params;
        };
        match mistake {
            Mistake::Cluster => LinkParams { cluster: uuid::Uuid::nil(), ..params },
            Mistake::TooNew => {
                LinkParams { min_version: MAX_VERSION + 1, max_version: MAX_VERSION + 3, ..params }
            }
            Mistake::Address => LinkParams { expect: NodeId::new("elsewhere"), ..params },
            Mistake::Name => {
                let node = params.expect.clone().unwrap_or(params.node);
                LinkParams { node, expect: None, ..params }
            }
        }
    }

    /// A link closes: was that due to something here?
    pub(super) fn note_close(&mut self, why: &CloseReason) {
        match why {
            CloseReason::Version { .. } | CloseReason::WrongNode { .. } => {
                self.count(Fault::WrongPeer);
            }
            CloseReason::Rejected(reason) | CloseReason::Refused(reason) => match reason {
                RejectReason::Duplicate | RejectReason::Shutdown => {}
                _ => self.count(Fault::WrongPeer),
            },
            CloseReason::Protocol(_) => self.count(Fault::BabblingPeer),
            CloseReason::HandshakeTimeout | CloseReason::Silent { .. } => {}
        }
    }

    /// One end does not want a connection any more, and says why.
    pub(crate) fn refuse_connection(&mut self) -> bool {
        let up =
            |c: &crate::net::Connection| !c.is_loopback() && c.ends.iter().all(|e| e.open && e.up);
        let wires: Vec<Wire> =
            self.net.connections.iter().filter(|(_, c)| up(c)).map(|(w, _)| *w).collect();
        let Some(wire) = self.rng.pick(&wires) else { return false };
        let reasons = [RejectReason::Duplicate, RejectReason::Shutdown, RejectReason::Unknown(99)];
        let Some(reason) = self.rng.pick(&reasons) else { return false };
        let side = self.rng.index(2);
        self.link_event(wire, side, LinkEvent::Refuse(reason));
        true
    }

    /// A program that is no daemon of ours connects to a node, and speaks out of turn.
    pub(crate) fn babble(&mut self, node: usize) -> bool {
        let from = self.rng.index(self.nodes.len());
        if from == node || !self.nodes[from].up || !self.nodes[node].up {
            return false;
        }
        let conn = self.nodes[from].fresh_conn();
        let wire = self.net.dial((from, conn), node);
        self.post(wire, ACCEPTOR, Packet::Dial);
        let name = self.nodes[node].name.clone();
        let lines = self.nonsense();
        self.say(|| format!("{name}: a stranger says {lines:?}"));
        for frame in lines {
            let Encoded { head, data } = wire::encode_as(&frame, MIN_VERSION);
            self.post(wire, ACCEPTOR, Packet::Frame { head, data, garbled: false });
        }
        // Counted when it is noticed.
        false
    }

    fn nonsense(&mut self) -> Vec<Frame> {
        let stranger = NodeId::new("stranger").unwrap_or_else(|| self.nodes[0].name.clone());
        let hello = Frame::Link(LinkFrame::Hello {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            cluster: self.cluster_id,
            node: stranger.clone(),
            process: 1,
        });
        let welcome =
            Frame::Link(LinkFrame::Welcome { version: MAX_VERSION, node: stranger, process: 1 });
        let (ping, pong) = (LinkFrame::Ping { id: 1 }, LinkFrame::Pong { id: 77 });
        let reject = Frame::Link(LinkFrame::Reject { reason: RejectReason::Unknown(42) });
        let header = Header {
            volume: self.volume,
            epoch: Epoch(1 << 60),
            r#gen: Gen(1),
            seq: Seq(1),
            commit: Seq(0),
        };
        let flush = Frame::Request(Message { header, body: Request::Flush });
        match self.rng.below(8) {
            0 => vec![Frame::Link(ping)],
            1 => vec![flush],
            2 => vec![hello.clone(), hello],
            3 => vec![hello, welcome],
            4 => vec![hello, Frame::Link(pong)],
            5 => vec![welcome],
            6 => vec![reject],
            _ => vec![hello, flush, Frame::Link(pong)],
        }
    }

    /// A peer with an error sends a frame whose checksums are right, and whose form is not. What
    /// it becomes if it can still be read is not sent: peers are not malicious.
    pub(super) fn mangle(&mut self, packet: Packet) -> Packet {
        let Packet::Frame { head, data, .. } = packet else { return packet };
        for _ in 0..4 {
            let head = mangled(&head, &mut self.rng);
            let refused = Encoded { head: head.clone(), data: data.clone() }.decode();
            if let Err(why) = refused {
                self.mangles_next = false;
                self.count(Fault::MalformedFrame);
                self.say(|| format!("a peer sends a malformed frame: {why}"));
                return Packet::Frame { head, data, garbled: true };
            }
        }
        Packet::Frame { head, data, garbled: false }
    }
}

/// The same header and body, with one or two bytes that are wrong, and right checksums.
fn mangled(head: &Bytes, rng: &mut Rng) -> Bytes {
    let mut bytes = head.to_vec();
    for _ in 0..rng.between(1, 2) {
        let body = bytes.len() - HEADER;
        let at = match rng.below(8) {
            0 => FIELDS[rng.index(FIELDS.len())],
            // The first bytes of a body say how long it is.
            1..4 if body > 0 => HEADER + rng.index(body.min(12)),
            _ if body > 0 => HEADER + rng.index(body),
            _ => FIELDS[rng.index(FIELDS.len())],
        };
        bytes[at] = rng.pick(&[0, 1, 2, 0x7f, 0xff]).unwrap_or(0xff) ^ (bytes[at] & 1);
    }
    if rng.chance(100) {
        bytes[VERSION..VERSION + 2].copy_from_slice(&(MAX_VERSION + 1).to_le_bytes());
    }
    if rng.chance(20) {
        bytes[0] ^= 1;
    }
    let body_crc = crc32c(&bytes[HEADER..]);
    bytes[BODY_CRC..BODY_CRC + 4].copy_from_slice(&body_crc.to_le_bytes());
    let header_crc = crc32c(&bytes[..HEADER - 4]);
    bytes[HEADER - 4..HEADER].copy_from_slice(&header_crc.to_le_bytes());
    Bytes::from(bytes)
}

/// CRC32C, bit by bit: a second opinion on the one that frames are made with.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc));
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_checksum() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
