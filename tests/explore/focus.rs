//! Which orders of steps need not be gone through.
//!
//! Two steps that touch nothing in common can be taken in either order with the same effect. What
//! a replica does touches that replica alone until its answer is heard, and what the record store
//! does touches the record alone until somebody reads or writes it again. So such a step is taken
//! as late as possible: directly before the first step that touches the same replica or the
//! record, or that hears its answer. Every other order leads to the same acknowledgements with the
//! same contents. There is always such an order, since each step has at most one of these steps
//! directly before it on which it depends: it touches one replica, or the record, never two of
//! them.
//!
//! For the same reason a primary starts directly before its claim is made: had the record changed
//! in between, it would only have to read it again.
//!
//! A step that was taken early is the **focus**: only steps that depend on it may follow.

use lockstep_core::id::Conn;

use crate::act::Action;
use crate::world::State;

/// The step that the next one must depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Focus {
    /// None: anything may follow.
    #[default]
    Free,
    /// A replica's answer is on its way on this connection; `many` if there was an earlier one
    /// that nobody has heard, so that the two together wait for something else to happen there.
    Answer { conn: Conn, many: bool },
    /// A replica changed, and nobody is told.
    Quiet(u8),
    /// A replica was started anew.
    Restarted(u8),
    /// The record store did something.
    Record,
    /// A primary read the record, to claim it as it was then.
    Claim(u8),
}

impl State {
    fn copy_behind(&self, conn: Conn) -> Option<u8> {
        self.links.iter().find(|l| l.conn == conn).map(|l| l.copy)
    }

    /// Leaves only what has to be gone through.
    pub(crate) fn choose(&self, actions: &mut Vec<Action>) {
        if self.focus == Focus::Free && self.trusting {
            // Nobody else is touched by what a deposed primary hears.
            let deposed = |seat: &u8| self.is_deposed(*seat) && self.has_replies(*seat);
            if let Some(seat) = (0u8..).take(self.seats.len()).find(deposed) {
                return actions.retain(|a| match a {
                    Action::Reply(conn) => crate::world::seat_of(conn.0) == seat,
                    Action::Answer(of) => *of == seat,
                    _ => false,
                });
            }
        }
        actions.retain(|action| self.may_follow(*action));
    }

    /// May `action` follow?
    pub(crate) fn may_follow(&self, action: Action) -> bool {
        match self.focus {
            Focus::Free => true,
            Focus::Answer { conn, many } => {
                let heard = action == Action::Reply(conn) && !many;
                heard || self.copy_behind(conn).is_some_and(|copy| self.touches(action, copy))
            }
            Focus::Quiet(copy) => self.touches(action, copy),
            Focus::Restarted(copy) => {
                let told = match action {
                    Action::Reply(conn) | Action::TellSeat(conn) => self.copy_behind(conn),
                    Action::Connect(_, copy) => Some(copy),
                    _ => None,
                };
                told == Some(copy) || self.touches(action, copy)
            }
            Focus::Claim(seat) => {
                [Action::Apply(seat), Action::Unknown(seat), Action::Die(seat)].contains(&action)
            }
            Focus::Record => matches!(
                action,
                Action::Start(_)
                    | Action::Apply(_)
                    | Action::ApplyLate(..)
                    | Action::Answer(_)
                    | Action::Unknown(_)
            ),
        }
    }

    fn touches(&self, action: Action, copy: u8) -> bool {
        match action {
            Action::Request(conn) | Action::TellCopy(conn) | Action::Break(conn) => {
                self.copy_behind(conn) == Some(copy)
            }
            Action::Kill(c) | Action::Power(c, _) | Action::Clean(c) => c == copy,
            _ => false,
        }
    }

    /// Answers on the way on the connection of `action`.
    pub(crate) fn answers_of(&self, action: Action) -> usize {
        let Action::Request(conn) = action else { return 0 };
        self.links.iter().find(|l| l.conn == conn).map_or(0, |l| l.replies.len())
    }

    /// What depends on `action`, which was just taken; before, `answers` were on their way.
    pub(crate) fn focus_after(&self, action: Action, answers: usize) -> Focus {
        match action {
            Action::Request(conn) => {
                let Some(link) = self.links.iter().find(|l| l.conn == conn) else {
                    return Focus::Free;
                };
                let answered = link.seat_open && link.replies.len() > answers;
                let many = matches!(self.focus, Focus::Answer { conn: c, .. } if c == conn);
                match answered {
                    true => Focus::Answer { conn, many },
                    false => Focus::Quiet(link.copy),
                }
            }
            Action::TellCopy(conn) => self.copy_behind(conn).map_or(Focus::Free, Focus::Quiet),
            Action::Clean(copy) => Focus::Quiet(copy),
            Action::Kill(copy) | Action::Power(copy, _) => Focus::Restarted(copy),
            Action::Start(seat) => Focus::Claim(seat),
            Action::Apply(_) | Action::ApplyLate(..) => Focus::Record,
            _ => Focus::Free,
        }
    }
}
