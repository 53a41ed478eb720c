//! What other nodes ask of this one.

use std::sync::Arc;

use lockstep_core::id::Conn;
use lockstep_core::message::{Message, Request};

use super::path::ReplyPath;
use super::primary::Input;
use super::replicas::Replicas;
use super::{Primaries, locked};
use crate::net::{Connection, Service};

/// Requests of primaries on other nodes, for the replicas of this one.
pub(super) struct Incoming {
    pub(super) replicas: Arc<Replicas>,
    pub(super) primaries: Primaries,
}

impl Service for Incoming {
    fn request(&self, from: &Arc<Connection>, message: Message<Request>) {
        if matches!(message.body, Request::Promise { .. })
            && let Some(primary) = locked(&self.primaries).get(&message.header.volume)
        {
            // Another primary's claim stands in the record before it asks for a promise. One here
            // whose every request is under way would hear nothing of it until it gives its sessions
            // up; its guest must not wait for that to get its errors.
            primary.send(Input::RecordChanged);
        }
        self.replicas.submit(ReplyPath::Remote(Arc::clone(from)), message);
    }

    fn disconnected(&self, conn: Conn) {
        self.replicas.disconnected(conn);
    }
}
