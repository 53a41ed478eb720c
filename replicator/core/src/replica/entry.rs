//! Being the target of a resync (S1): a node's replicas share its slots for that.

use alloc::vec::Vec;

use super::{Effect, Replica, Role};
use crate::id::{Conn, Tick};
use crate::limits;
use crate::message::{Header, Refusal, Reply};
use crate::slots::Wish;

/// Whether it is the target of a resync.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(super) enum Entry {
    /// The driver counts no targets: it may always be one.
    #[default]
    Free,
    /// No.
    Out,
    /// Its primary waits to be told.
    Asked(Conn, Header),
    /// Yes; said so at that time.
    In(Tick),
}

impl Replica {
    /// The same replica, with a driver that knows [`Effect::Entry`].
    #[must_use]
    pub fn with_entries(mut self) -> Self {
        self.entry = Entry::Out;
        self
    }

    pub(super) fn on_enter(
        &mut self,
        conn: Conn,
        header: Header,
        copies: u32,
        out: &mut Vec<Effect>,
    ) {
        if matches!(self.entry, Entry::Free) || self.role != Role::Promised {
            return self.reply(conn, &header, Reply::Done, out);
        }
        self.entry = Entry::Asked(conn, header);
        let copies = usize::try_from(copies).unwrap_or(usize::MAX);
        out.push(Effect::Entry(Wish::Wants { copies }));
    }

    pub(super) fn on_entered(&mut self, now: Tick, granted: bool, out: &mut Vec<Effect>) {
        match (self.entry, granted) {
            (Entry::Asked(conn, header), true) => {
                self.entry = Entry::In(now);
                self.reply(conn, &header, Reply::Done, out);
            }
            (Entry::Asked(conn, header), false) => {
                self.entry = Entry::Out;
                self.reply(conn, &header, Reply::Refused(Refusal::Busy), out);
            }
            // The session that asked has ended.
            (Entry::Out, true) => out.push(Effect::Entry(Wish::Nothing)),
            (Entry::Out | Entry::In(_) | Entry::Free, _) => {}
        }
    }

    /// Its primary is still there.
    pub(super) fn keep_entry(&mut self, now: Tick, out: &mut Vec<Effect>) {
        if let Entry::In(at) = self.entry
            && now.ms_since(at) >= limits::RESYNC_ENTRY_KEEP_MS
        {
            self.entry = Entry::In(now);
            out.push(Effect::Entry(Wish::Keeps));
        }
    }

    /// It is no target any more when it is a member, and when the session ends.
    pub(super) fn settle_entry(&mut self, out: &mut Vec<Effect>) {
        let over = self.session.is_none() || self.role != Role::Promised;
        if over && matches!(self.entry, Entry::Asked(..) | Entry::In(_)) {
            self.entry = Entry::Out;
            out.push(Effect::Entry(Wish::Nothing));
        }
    }
}
