//! What can have no effect any more, and need not tell states apart or be gone through.
//!
//! Most of it is about a primary whose successor's claim is in the record. A replica that has
//! promised the newer epoch refuses all that the older primary asks, and does not change; the
//! first refusal that is heard ends that primary. What can be reached after that can be reached
//! without it as well: an older primary that has not been told may just as well do nothing, and
//! what it has sent may arrive all the same. So refusals are looked at, and not followed.
//!
//! With a planted bug none of this is sure, and all of it is gone through.

use lockstep_core::id::{Conn, Epoch};
use lockstep_core::message::{Message, Request};
use lockstep_core::primary::Reason;
use lockstep_core::replica::Status;
use std::sync::Arc;

use crate::disk::Disk;
use crate::focus::Focus;
use crate::world::{Link, Put, State};

impl State {
    /// Drops what can have no effect any more, so that it does not tell states apart.
    ///
    /// # Errors
    /// If a replica or a primary does not do what makes it ineffective.
    pub(crate) fn tidy(&mut self) -> Result<(), String> {
        self.tidy_links();
        self.tidy_puts();
        if self.left.powers == 0 {
            for copy in self.copies.iter_mut().filter(|c| c.disk.has_outcomes()) {
                Arc::make_mut(copy).disk.forget_outcomes();
            }
        }
        if self.trusting {
            self.drop_refused()?;
            for seat in (0u8..).take(self.seats.len()) {
                if self.focus == Focus::Free && self.is_deposed(seat) && !self.has_replies(seat) {
                    self.end_seat(seat);
                } else if self.is_inert(seat) {
                    // Nobody notices.
                    self.seat(seat).end();
                    self.links.retain(|l| l.seat != seat || !l.seat_open);
                }
            }
        }
        Ok(())
    }

    fn tidy_links(&mut self) {
        for link in &mut self.links {
            let copy = &self.copies[usize::from(link.copy)];
            let alive = link.seat_open && !link.broken;
            if alive || !link.copy_open || copy.session == Some(link.conn) {
                continue;
            }
            let promised = copy.machine.status().promised;
            // Nobody hears the answer, and the request is refused.
            let idle = |m: &Message<Request>| match m.body {
                Request::Promise { .. } => m.header.epoch < promised,
                _ => m.header.epoch <= promised,
            };
            if self.trusting && link.requests.iter().all(|m| idle(m)) {
                let link = Arc::make_mut(link);
                link.copy_open = false;
                link.requests.clear();
            }
        }
        self.links.retain(|l| l.seat_open || l.copy_open);
    }

    fn tidy_puts(&mut self) {
        let revision = self.revision;
        for seat in &mut self.seats {
            if seat.ghosts.iter().any(|g| g.expected != revision) {
                Arc::make_mut(seat).ghosts.retain(|g| g.expected == revision);
            }
            let late = |p: &Put| p.done.is_none() && p.expected != revision;
            if seat.put.as_ref().is_some_and(late)
                && let Some(put) = &mut Arc::make_mut(seat).put
            {
                put.done = Some(false);
            }
        }
    }

    /// The last epoch that this primary claimed, if a newer one is in the record and no change of
    /// this primary's can be made any more: it is over, whether it knows or not.
    fn superseded(&self, seat: u8) -> Option<Epoch> {
        let s = &self.seats[usize::from(seat)];
        let undecided = |put: &Put| put.done.is_none();
        if s.machine.is_none() || s.put.as_ref().is_some_and(undecided) {
            return None;
        }
        let claims = (0u64..).zip(&self.claimed).filter(|(_, by)| **by == seat);
        let last = claims.map(|(epoch, _)| Epoch(epoch)).last();
        last.filter(|last| self.record.epoch > *last)
    }

    /// Every replica has promised a newer epoch than this primary's, and the record names a newer
    /// one: nothing that it does has an effect any more.
    pub(crate) fn is_deposed(&self, seat: u8) -> bool {
        let promised = |last| self.copies.iter().all(|c| c.machine.status().promised > last);
        self.superseded(seat).is_some_and(promised)
    }

    /// Are there answers on their way to it?
    pub(crate) fn has_replies(&self, seat: u8) -> bool {
        let asked = self.seats[usize::from(seat)].put.is_some();
        asked || self.links.iter().any(|l| l.seat == seat && l.seat_open && !l.replies.is_empty())
    }

    /// A newer epoch is in the record, nothing is on its way from or to this primary, and nothing
    /// will ever make it act.
    fn is_inert(&self, seat: u8) -> bool {
        let left = &self.left;
        let s = &self.seats[usize::from(seat)];
        let Some(machine) = &s.machine else { return false };
        if self.superseded(seat).is_none() || s.put.is_some() {
            return false;
        }
        let idle_commit = matches!(machine.deadline(), Some((_, Reason::CommitIdle)));
        let guest = [left.writes, left.flushes, left.reads, left.closes] != [0; 4];
        let faults = [left.kills, left.powers, left.breaks, left.waits] != [0; 4];
        if faults || (guest && s.is_open()) || (idle_commit && left.commits > 0) {
            return false;
        }
        let mut wanted = (0u8..).take(self.copies.len()).filter(|c| s.wants >> c & 1 == 1);
        let mut links = self.links.iter().filter(|l| l.seat == seat && l.seat_open);
        wanted.all(|copy| self.link_of(seat, copy).is_some())
            && links.all(|l| !l.broken && l.requests.is_empty() && l.replies.is_empty())
    }

    /// Would the replica refuse this primary's next request for its epoch alone?
    fn is_refused(&self, link: &Link) -> bool {
        let promised = self.copies[usize::from(link.copy)].machine.status().promised;
        let by = usize::try_from(promised.0).ok().and_then(|e| self.claimed.get(e)).copied();
        let older = link.requests.front().is_some_and(|m| m.header.epoch < promised);
        older && by != Some(link.seat)
    }

    /// Drops the requests of a primary that was succeeded, once it is seen that they are refused.
    fn drop_refused(&mut self) -> Result<(), String> {
        let refused = |l: &&Arc<Link>| l.copy_open && self.is_refused(l);
        let conns: Vec<Conn> = self.links.iter().filter(refused).map(|l| l.conn).collect();
        for conn in conns {
            self.clone().see_refusal(conn)?;
            if let Some(link) = self.link(conn) {
                link.requests.clear();
            }
        }
        Ok(())
    }

    /// The next request is refused without any other effect, and whoever hears it is over.
    fn see_refusal(mut self, conn: Conn) -> Result<(), String> {
        let Some(link) = self.link(conn) else { return Ok(()) };
        let (seat, copy, open) = (link.seat, link.copy, link.seat_open && !link.broken);
        let before = self.looks_of(copy);
        self.deliver_request(conn)?;
        if self.looks_of(copy) != before {
            return Err(format!("r{copy} changes with a request of an older epoch (R1)"));
        }
        // An earlier answer may make the primary close the connection: then it hears no more.
        let mut told = false;
        while let Some(link) = self.link(conn).filter(|l| open && !l.replies.is_empty()) {
            told = link.replies.len() == 1;
            self.deliver_reply(conn)?;
        }
        if self.seats[usize::from(seat)].put.is_some() {
            self.tidy_puts();
            self.answer(seat)?;
        }
        self.judge()?;
        if told && self.seats[usize::from(seat)].machine.is_some() {
            return Err(format!("p{seat} goes on although r{copy} has promised a newer epoch"));
        }
        Ok(())
    }

    /// What a replica is and has, but for the time of its first event: replicas know no time here.
    fn looks_of(&self, copy: u8) -> (Status, Option<Conn>, Disk) {
        let copy = &self.copies[usize::from(copy)];
        (copy.machine.status(), copy.session, copy.disk.clone())
    }
}
