//! The handshake: who is there, and which version both speak.

use alloc::vec::Vec;
use uuid::Uuid;

use super::{CloseReason, Effect, Heartbeat, Link, Role, State};
use crate::id::NodeId;
use crate::limits::HEARTBEAT_MS;
use crate::wire::{LinkFrame, RejectReason};

/// What a peer says of itself.
#[derive(Debug)]
pub(super) struct Hello {
    /// Oldest and newest version.
    pub(super) versions: (u16, u16),
    pub(super) cluster: Uuid,
    pub(super) node: NodeId,
    pub(super) process: u64,
}

/// The highest version in both ranges.
fn common_version(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let highest = ours.1.min(theirs.1);
    (highest >= ours.0.max(theirs.0)).then_some(highest)
}

impl Link {
    pub(super) fn on_opened(&mut self, out: &mut Vec<Effect>) {
        if self.state != State::New {
            return self.close(CloseReason::Protocol("opened twice"), out);
        }
        match self.params.role {
            Role::Acceptor => self.state = State::Listening,
            Role::Initiator => {
                self.state = State::Greeting;
                out.push(Effect::Send(LinkFrame::Hello {
                    min_version: self.params.min_version,
                    max_version: self.params.max_version,
                    cluster: self.params.cluster,
                    node: self.params.node.clone(),
                    process: self.params.process,
                }));
            }
        }
    }

    /// An acceptor checks the cluster first: of another one, nothing else is worth telling.
    pub(super) fn on_hello(&mut self, hello: Hello, out: &mut Vec<Effect>) {
        if self.state != State::Listening {
            return self.close(CloseReason::Protocol("a hello out of turn"), out);
        }
        if hello.cluster != self.params.cluster {
            let reason = RejectReason::Cluster;
            return self.refuse(reason, CloseReason::Refused(reason), out);
        }
        let ours = self.versions();
        let Some(version) = common_version(ours, hello.versions) else {
            let reason = RejectReason::Version { min: ours.0, max: ours.1 };
            let close = CloseReason::Version { ours, theirs: hello.versions };
            return self.refuse(reason, close, out);
        };
        if let Some((reason, close)) = self.wrong_node(&hello.node) {
            return self.refuse(reason, close, out);
        }
        out.push(Effect::Send(LinkFrame::Welcome {
            version,
            node: self.params.node.clone(),
            process: self.params.process,
        }));
        self.go_up(version, hello.node, hello.process, out);
    }

    pub(super) fn on_welcome(
        &mut self,
        version: u16,
        node: NodeId,
        process: u64,
        out: &mut Vec<Effect>,
    ) {
        let (min, max) = self.versions();
        if self.state != State::Greeting {
            self.close(CloseReason::Protocol("a welcome out of turn"), out);
        } else if version < min || version > max {
            self.close(CloseReason::Protocol("a version that was not offered"), out);
        } else if let Some((reason, close)) = self.wrong_node(&node) {
            self.refuse(reason, close, out);
        } else {
            self.go_up(version, node, process, out);
        }
    }

    pub(super) fn on_reject(&mut self, reason: RejectReason, out: &mut Vec<Effect>) {
        let close = match reason {
            RejectReason::Version { min, max } => {
                CloseReason::Version { ours: self.versions(), theirs: (min, max) }
            }
            RejectReason::Cluster
            | RejectReason::Duplicate
            | RejectReason::Shutdown
            | RejectReason::WrongNode
            | RejectReason::SameNode
            | RejectReason::Unknown(_) => CloseReason::Rejected(reason),
        };
        self.close(close, out);
    }

    fn versions(&self) -> (u16, u16) {
        (self.params.min_version, self.params.max_version)
    }

    /// Why `node` may not be at the other end, if so.
    fn wrong_node(&self, node: &NodeId) -> Option<(RejectReason, CloseReason)> {
        if *node == self.params.node {
            let reason = RejectReason::SameNode;
            return Some((reason, CloseReason::Refused(reason)));
        }
        let expected = self.params.expect.as_ref().filter(|expected| *expected != node)?;
        let close = CloseReason::WrongNode { expected: expected.clone(), found: node.clone() };
        Some((RejectReason::WrongNode, close))
    }

    fn go_up(&mut self, version: u16, peer: NodeId, peer_process: u64, out: &mut Vec<Effect>) {
        let next_ping = self.now.plus_ms(HEARTBEAT_MS);
        self.state = State::Up(Heartbeat { next_ping, last_ping: 0, sent: None });
        out.push(Effect::Up { peer, peer_process, version });
    }
}
