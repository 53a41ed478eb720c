//! What tells one peer from another: all that can still decide something.

use core::hash::{Hash, Hasher};

use super::{Owed, Peer};
use crate::alike::{self, Kind};
use crate::message::Promised;

impl Hash for Owed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { sent, since } = self;
        Kind::Lease.hash(sent.0, state);
        since.hash(state);
    }
}

impl Peer {
    /// `spent`: what it promised with counts no more once it is out of date, since the volume is
    /// open: whoever resyncs it asks for a new promise first (S1), and so does a promotion in
    /// place. `behind`: was it sent less than the commit watermark, if that is all that counts?
    pub(in crate::primary) fn hash_as<H: Hasher>(
        &self,
        spent: bool,
        behind: Option<bool>,
        state: &mut H,
    ) {
        let Self {
            node,
            conn,
            session,
            known,
            lost_at,
            failed,
            refused,
            promised,
            ask_again_at,
            owed,
            excused,
            renewed,
            renewing,
            commit_sent,
            dirty,
            extending,
            reach,
            entry,
            held,
        } = self;
        (node, conn, known, failed, refused, promised, excused, renewing, dirty, entry).hash(state);
        (extending, reach).hash(state);
        session.is_some().hash(state);
        if let Some(session) = session {
            hash_promised(session, spent && *dirty, state);
        }
        held.is_some().hash(state);
        if let Some(held) = held {
            hash_promised(held, false, state);
        }
        alike::hash_due(*ask_again_at, state);
        match behind {
            Some(behind) => behind.hash(state),
            None => commit_sent.hash(state),
        }
        // Set anew before it counts: when the session ends, or when the next one begins.
        (!failed && session.is_none()).then_some(lost_at).hash(state);
        match renewed {
            Some(at) => Kind::Lease.hash(at.0, state),
            None => state.write_u8(0),
        }
        owed.len().hash(state);
        for (seq, owed) in owed {
            Kind::Call.hash(seq.0, state);
            owed.hash(state);
        }
    }
}

fn hash_promised<H: Hasher>(promised: &Promised, spent: bool, state: &mut H) {
    let Promised {
        incarnation,
        unclean,
        lossy,
        fresh,
        // Looked at when the promise arrives.
        member_gen: _,
        ring,
        unresolved,
        credit_ops,
        credit_bytes,
        silent_ms: _,
        pulls,
        blocks,
    } = promised;
    (incarnation, unclean, lossy, credit_ops, credit_bytes, pulls, blocks).hash(state);
    if !spent {
        (fresh, ring, unresolved).hash(state);
    }
}
