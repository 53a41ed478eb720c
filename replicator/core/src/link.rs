//! One connection between two nodes, pure: agreeing on a version, heartbeats, and noticing
//! silence. `docs/wire.md` §A connection.
//!
//! ```text
//!  initiator: New -Opened-> sends Hello -> Greeting -Welcome-> Up
//!  acceptor:  New -Opened-> Listening -Hello-> sends Welcome -> Up
//!  any -bad frame, reject, handshake too long, silence, refusal-> Closed
//! ```

mod close;
mod handshake;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use uuid::Uuid;

use crate::id::{NodeId, Tick};
use crate::limits::{HEARTBEAT_MS, SESSION_DEAD_MS};
use crate::wire::{LinkFrame, RejectReason};

pub use close::CloseReason;

/// Time from the beginning of a connection, dialling included, until both ends have agreed.
pub const HANDSHAKE_MS: u64 = 2000;

const _: () = assert!(HANDSHAKE_MS >= SESSION_DEAD_MS, "else a handshake is more hasty than work");

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that dialled; it speaks first.
    Initiator,
    /// The one that was dialled.
    Acceptor,
}

/// What a link is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkParams {
    /// Which end this is.
    pub role: Role,
    /// The cluster that both must belong to.
    pub cluster: Uuid,
    /// This node.
    pub node: NodeId,
    /// Random per process.
    pub process: u64,
    /// The only node that may be at the other end: whom the initiator dialled, or whom the
    /// transport has identified.
    pub expect: Option<NodeId>,
    /// Oldest version of the wire format spoken here.
    pub min_version: u16,
    /// Newest version of the wire format spoken here.
    pub max_version: u16,
}

/// What happens to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The transport is there.
    Opened,
    /// A frame about the connection arrived.
    Received(LinkFrame),
    /// Any other frame arrived. If the link is closed after this step, drop the frame.
    Heard,
    /// This end does not want the connection (any more); the reason goes to the peer.
    Refuse(RejectReason),
    /// Time has passed.
    Wake,
}

/// What a link wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a frame.
    Send(LinkFrame),
    /// Both ends agree: other frames may be sent from now on.
    Up {
        /// The node at the other end.
        peer: NodeId,
        /// Its process: another one than before means that it restarted.
        peer_process: u64,
        /// Version of the wire format for every frame from now on.
        version: u16,
    },
    /// Close the transport once what was sent before has gone out. The link is dead.
    Close(CloseReason),
}

/// Why a link wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The handshake must be finished by then.
    Handshake,
    /// A ping is due.
    Heartbeat,
    /// The peer must have been heard by then.
    Silence,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// The transport is not there yet.
    New,
    /// Acceptor: waits for a hello.
    Listening,
    /// Initiator: waits for the answer to its hello.
    Greeting,
    Up(Heartbeat),
    Closed,
}

/// Of a link that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Heartbeat {
    /// When the next ping is due.
    next_ping: Tick,
    /// Number of the last ping; 0 before the first.
    last_ping: u64,
    /// When that was sent, until it is answered.
    sent: Option<Tick>,
}

/// One connection between two nodes.
#[derive(Clone, Debug)]
pub struct Link {
    params: LinkParams,
    state: State,
    /// When the link was made; the handshake's time runs from here.
    began: Tick,
    /// When the last frame arrived; `began` before the first. Never later than `now`.
    last_heard: Tick,
    /// The latest time that was given in.
    now: Tick,
    round_trip_us: Option<u64>,
}

impl Link {
    /// A link whose transport is being opened.
    ///
    /// # Panics
    /// If the oldest version spoken is above the newest.
    #[must_use]
    pub fn new(params: LinkParams, now: Tick) -> Self {
        assert!(params.min_version <= params.max_version, "no version to speak: {params:?}");
        let state = State::New;
        Self { params, state, began: now, last_heard: now, now, round_trip_us: None }
    }

    /// Handles one event. After [`Effect::Close`] every further event is ignored.
    pub fn step(&mut self, now: Tick, event: Event, out: &mut Vec<Effect>) {
        assert!(now >= self.now, "time went back from {} to {now}", self.now);
        self.now = now;
        if self.state == State::Closed {
            return;
        }
        match event {
            Event::Opened => self.on_opened(out),
            Event::Received(frame) => {
                self.last_heard = now;
                self.on_frame(frame, out);
            }
            Event::Heard => {
                self.last_heard = now;
                if !self.is_up() {
                    self.close(CloseReason::Protocol("a frame before the handshake"), out);
                }
            }
            Event::Refuse(reason) => self.refuse(reason, CloseReason::Refused(reason), out),
            Event::Wake => {}
        }
        self.on_time(out);
    }

    /// When and why to call [`Self::step`] with [`Event::Wake`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<(Tick, Reason)> {
        match &self.state {
            State::New | State::Listening | State::Greeting => {
                Some((self.began.plus_ms(HANDSHAKE_MS), Reason::Handshake))
            }
            State::Up(heartbeat) => {
                let silence = self.last_heard.plus_ms(SESSION_DEAD_MS);
                if silence <= heartbeat.next_ping {
                    Some((silence, Reason::Silence))
                } else {
                    Some((heartbeat.next_ping, Reason::Heartbeat))
                }
            }
            State::Closed => None,
        }
    }

    /// When the last frame arrived; when the link was made, if none did.
    #[must_use]
    pub fn last_heard(&self) -> Tick {
        self.last_heard
    }

    /// May frames about volumes be sent?
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Is the link dead?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Time from the last answered ping to its answer, in microseconds.
    #[must_use]
    pub fn round_trip_us(&self) -> Option<u64> {
        self.round_trip_us
    }

    fn on_frame(&mut self, frame: LinkFrame, out: &mut Vec<Effect>) {
        match frame {
            LinkFrame::Hello { min_version, max_version, cluster, node, process } => {
                let versions = (min_version, max_version);
                self.on_hello(handshake::Hello { versions, cluster, node, process }, out);
            }
            LinkFrame::Welcome { version, node, process } => {
                self.on_welcome(version, node, process, out);
            }
            LinkFrame::Reject { reason } => self.on_reject(reason, out),
            LinkFrame::Ping { id } if self.is_up() => {
                out.push(Effect::Send(LinkFrame::Pong { id }));
            }
            LinkFrame::Pong { id } if self.is_up() => self.on_pong(id, out),
            LinkFrame::Ping { .. } | LinkFrame::Pong { .. } => {
                self.close(CloseReason::Protocol("a heartbeat before the handshake"), out);
            }
        }
    }

    fn on_pong(&mut self, id: u64, out: &mut Vec<Effect>) {
        let State::Up(heartbeat) = &mut self.state else { return };
        if id == 0 || id > heartbeat.last_ping {
            self.close(CloseReason::Protocol("an answer to a ping that was not sent"), out);
        } else if id == heartbeat.last_ping
            && let Some(sent) = heartbeat.sent.take()
        {
            self.round_trip_us = Some(self.now.0.saturating_sub(sent.0));
        }
    }

    /// What is due by now, whatever the event was.
    fn on_time(&mut self, out: &mut Vec<Effect>) {
        let Some((at, reason)) = self.deadline() else { return };
        if at > self.now {
            return;
        }
        match reason {
            Reason::Handshake => self.close(CloseReason::HandshakeTimeout, out),
            Reason::Silence => self.close(self.silent(), out),
            Reason::Heartbeat if self.last_heard.plus_ms(SESSION_DEAD_MS) <= self.now => {
                self.close(self.silent(), out);
            }
            Reason::Heartbeat => self.ping(out),
        }
    }

    fn silent(&self) -> CloseReason {
        CloseReason::Silent { for_ms: self.now.ms_since(self.last_heard) }
    }

    /// Sends a ping; the next is due one interval from now, so a late wake makes no burst.
    fn ping(&mut self, out: &mut Vec<Effect>) {
        let State::Up(heartbeat) = &mut self.state else { return };
        heartbeat.last_ping += 1;
        heartbeat.sent = Some(self.now);
        heartbeat.next_ping = self.now.plus_ms(HEARTBEAT_MS);
        out.push(Effect::Send(LinkFrame::Ping { id: heartbeat.last_ping }));
    }

    /// Tells the peer why, then closes.
    fn refuse(&mut self, reason: RejectReason, close: CloseReason, out: &mut Vec<Effect>) {
        if self.state != State::New {
            out.push(Effect::Send(LinkFrame::Reject { reason }));
        }
        self.close(close, out);
    }

    fn close(&mut self, reason: CloseReason, out: &mut Vec<Effect>) {
        assert!(self.state != State::Closed, "closed twice; now for {reason}");
        self.state = State::Closed;
        out.push(Effect::Close(reason));
    }
}
