//! What may happen next, and what comes of it.

use lockstep_core::guest::{GuestOp, GuestReply};
use lockstep_core::id::{Conn, Epoch, RequestId, Revision, Tick};
use lockstep_core::limits::STANDSTILL_MS;
use lockstep_core::message::{Message, Reply};
use lockstep_core::primary::{self, MetaOp, MetaResult, Phase, Reason};
use lockstep_core::range::BlockRange;
use lockstep_core::record::Record;
use lockstep_core::replica;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::disk::{Value, payload};
use crate::world::{Put, State};

/// After it an idle commit is due, and nothing else that was not before.
const SHORT_MS: u64 = 10;
/// After it everything is due that a machine waits for, but for lossy answers.
const LONG_MS: u64 = 3_100;
/// Steps in which it passes while a machine does not say when it wants to be woken.
const STEP_MS: u64 = STANDSTILL_MS / 2;
/// Requests of a guest: writes by their value, then these.
const FLUSH: RequestId = RequestId(100);
const READ: RequestId = RequestId(101);

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A primary is made, and reads the record.
    Start(u8),
    /// Its process is killed.
    Die(u8),
    /// It connects to a copy once more.
    Connect(u8, u8),
    /// The record store does what it was asked.
    Apply(u8),
    /// The same, for a change that nobody waits for.
    ApplyLate(u8, u8),
    /// The record store's answer arrives.
    Answer(u8),
    /// No answer arrives; the change may have been made, or be made later.
    Unknown(u8),
    /// An idle commit is due.
    Short(u8),
    /// Everything is due.
    Long(u8),
    /// Guests' requests.
    Write(u8),
    Flush(u8),
    Read(u8),
    /// A detach is asked for.
    Close(u8),
    /// The next request of a connection arrives.
    Request(Conn),
    /// The next answer of a connection arrives.
    Reply(Conn),
    /// A connection breaks.
    Break(Conn),
    /// Its primary learns that; answers on their way are lost.
    TellSeat(Conn),
    /// Its replica learns that; requests on their way are lost.
    TellCopy(Conn),
    /// A replica's process is killed and started again.
    Kill(u8),
    /// A replica's node loses power; its block holds this afterwards.
    Power(u8, Value),
    /// A replica cleans its activity log.
    Clean(u8),
}

type Done = Result<(), String>;

impl State {
    /// Everything that may happen next, without orders that lead to nothing new.
    pub(crate) fn actions(&self, out: &mut Vec<Action>) {
        self.all_actions(out);
        if !self.full {
            self.choose(out);
        }
    }

    fn all_actions(&self, out: &mut Vec<Action>) {
        for link in &self.links {
            if link.copy_open && !link.requests.is_empty() {
                out.push(Action::Request(link.conn));
            }
            if link.seat_open && !link.replies.is_empty() {
                out.push(Action::Reply(link.conn));
            }
            if link.broken && link.seat_open {
                out.push(Action::TellSeat(link.conn));
            }
            if link.broken && link.copy_open {
                out.push(Action::TellCopy(link.conn));
            }
            if !link.broken && self.left.breaks > 0 {
                out.push(Action::Break(link.conn));
            }
        }
        for index in (0u8..).take(self.seats.len()) {
            self.seat_actions(index, out);
        }
        for (index, copy) in (0u8..).zip(&self.copies) {
            if self.left.kills > 0 {
                out.push(Action::Kill(index));
            }
            if self.left.powers > 0 {
                out.extend(copy.disk.outcomes().iter().map(|v| Action::Power(index, *v)));
            }
            if self.left.cleans > 0 && copy.disk.can_clean() {
                out.push(Action::Clean(index));
            }
        }
    }

    fn seat_actions(&self, index: u8, out: &mut Vec<Action>) {
        let seat = &self.seats[usize::from(index)];
        let late = (0u8..).zip(&seat.ghosts).map(|(g, _)| Action::ApplyLate(index, g));
        out.extend(late);
        let Some(machine) = &seat.machine else {
            // They start in order: which is the first makes no difference.
            let first = index == 0 || self.seats[usize::from(index) - 1].started;
            if !seat.started && first {
                out.push(Action::Start(index));
            }
            return;
        };
        if let Some(put) = &seat.put {
            let apply = Action::Apply(index);
            out.push(if put.done.is_none() { apply } else { Action::Answer(index) });
            if self.left.unknowns > 0 {
                out.push(Action::Unknown(index));
            }
        }
        match machine.deadline() {
            Some((_, Reason::CommitIdle)) if self.left.commits > 0 => {
                out.push(Action::Short(index));
            }
            Some(_) if self.left.waits > 0 => out.push(Action::Long(index)),
            Some(_) | None => {}
        }
        let unconnected = |copy: &u8| seat.wants >> copy & 1 == 1;
        let copies = (0u8..).take(self.copies.len()).filter(unconnected);
        let missing = copies.filter(|copy| self.link_of(index, *copy).is_none());
        out.extend(missing.map(|copy| Action::Connect(index, copy)));
        if self.left.deaths > 0 {
            out.push(Action::Die(index));
        }
        if seat.is_open() {
            let left = [
                (self.left.writes > 0 && seat.write.is_none(), Action::Write(index)),
                (self.left.flushes > 0 && seat.flush.is_none(), Action::Flush(index)),
                (self.left.reads > 0 && seat.read.is_none(), Action::Read(index)),
                (self.left.closes > 0, Action::Close(index)),
            ];
            out.extend(left.iter().filter(|(may, _)| *may).map(|(_, action)| *action));
        }
    }

    /// The state after `action`.
    pub(crate) fn act(&mut self, action: Action) -> Done {
        let (answers, promised) = (self.answers_of(action), self.promises());
        self.perform(action)?;
        let falls = |(was, is): (&Epoch, &Epoch)| is < was;
        if promised.iter().zip(&self.promises()).any(falls) {
            return Err("a replica forgets a promise (I3)".to_owned());
        }
        if !self.full {
            self.focus = self.focus_after(action, answers);
        }
        self.tidy()?;
        self.judge()
    }

    fn perform(&mut self, action: Action) -> Done {
        match action {
            Action::Start(seat) => {
                let planted = self.planted;
                self.seat(seat).start(seat, planted);
                self.tell(seat, primary::Event::Wake)
            }
            Action::Die(seat) => {
                self.left.deaths -= 1;
                self.end_seat(seat);
                Ok(())
            }
            Action::Connect(seat, copy) => {
                let conn = self.connect(seat, copy);
                let node = crate::world::copy_node(copy);
                self.tell(seat, primary::Event::Connected { node, conn })
            }
            Action::Apply(seat) => self.apply(seat),
            Action::ApplyLate(seat, which) => {
                let put = self.seat(seat).ghosts.remove(usize::from(which));
                self.put(seat, &put).map(|_| ())
            }
            Action::Answer(seat) => self.answer(seat),
            Action::Unknown(seat) => self.unknown(seat),
            Action::Short(seat) => {
                self.left.commits -= 1;
                self.wake(seat, SHORT_MS)
            }
            Action::Long(seat) => {
                self.left.waits -= 1;
                self.wait(seat)
            }
            Action::Write(_) | Action::Flush(_) | Action::Read(_) | Action::Close(_) => {
                self.guest(action)
            }
            Action::Request(conn) => self.deliver_request(conn),
            Action::Reply(conn) => self.deliver_reply(conn),
            Action::Break(_) | Action::TellSeat(_) | Action::TellCopy(_) => self.breaks(action),
            Action::Kill(copy) => {
                self.left.kills -= 1;
                self.restart(copy);
                Ok(())
            }
            Action::Power(copy, value) => {
                self.left.powers -= 1;
                self.judge.lose_power(copy);
                self.copy(copy).disk.lose_power(value);
                self.restart(copy);
                Ok(())
            }
            Action::Clean(copy) => {
                self.left.cleans -= 1;
                self.copy(copy).disk.clean();
                Ok(())
            }
        }
    }

    fn breaks(&mut self, action: Action) -> Done {
        match action {
            Action::Break(conn) => {
                self.left.breaks -= 1;
                if let Some(link) = self.link(conn) {
                    link.broken = true;
                }
                Ok(())
            }
            Action::TellSeat(conn) => {
                self.close_seat_end(conn);
                self.tell(crate::world::seat_of(conn.0), primary::Event::Disconnected(conn))
            }
            Action::TellCopy(conn) => {
                let Some(link) = self.link(conn) else { return Ok(()) };
                link.copy_open = false;
                link.requests.clear();
                let copy = link.copy;
                self.tell_copy(copy, replica::Event::Disconnected(conn));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn restart(&mut self, copy: u8) {
        let planted = self.planted;
        self.close_copy_ends(copy);
        self.copy(copy).restart(copy, planted);
    }

    /// Promises are kept through a restart.
    fn promises(&self) -> Vec<Epoch> {
        self.copies.iter().map(|c| c.machine.status().promised).collect()
    }

    fn wake(&mut self, seat: u8, ms: u64) -> Done {
        let now = self.seat(seat).now;
        self.seat(seat).now = Tick(now.0).plus_ms(ms);
        self.tell(seat, primary::Event::Wake)
    }

    /// A long time passes, and the primary is woken whenever it wants to be.
    fn wait(&mut self, seat: u8) -> Done {
        let mut left_ms = LONG_MS;
        while left_ms > 0 {
            let s = &self.seats[usize::from(seat)];
            let due = s.machine.as_ref().and_then(|m| m.deadline());
            let ahead_ms = due.map_or(0, |(at, _)| at.ms_since(s.now));
            // Later than it asked for would look like a standstill of its process.
            let ms = if ahead_ms == 0 { STEP_MS } else { ahead_ms }.min(left_ms);
            left_ms -= ms;
            self.wake(seat, ms)?;
        }
        Ok(())
    }

    fn guest(&mut self, action: Action) -> Done {
        let range = BlockRange::new(0, 1);
        match action {
            Action::Write(seat) => {
                self.left.writes -= 1;
                let value = self.judge.write(seat);
                let s = self.seat(seat);
                s.write = Some(value);
                s.read = s.read.map(|legal| legal | 1 << value);
                let op = GuestOp::Write { range, fua: false, payload: payload(value) };
                self.tell(seat, primary::Event::Guest { request: RequestId(value.into()), op })
            }
            Action::Flush(seat) => {
                self.left.flushes -= 1;
                let covers = self.judge.last[usize::from(seat)];
                self.seat(seat).flush = Some(covers);
                self.tell(seat, primary::Event::Guest { request: FLUSH, op: GuestOp::Flush })
            }
            Action::Read(seat) => {
                self.left.reads -= 1;
                let legal = self.judge.readable;
                self.seat(seat).read = Some(legal);
                let op = GuestOp::Read { range };
                self.tell(seat, primary::Event::Guest { request: READ, op })
            }
            Action::Close(seat) => {
                self.left.closes -= 1;
                self.tell(seat, primary::Event::Close)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn deliver_request(&mut self, conn: Conn) -> Done {
        let Some(link) = self.link(conn) else { return Ok(()) };
        let copy = link.copy;
        if let Some(message) = link.requests.pop_front() {
            let message = Message::clone(&message);
            self.tell_copy(copy, replica::Event::Request { conn, message });
        }
        Ok(())
    }

    pub(crate) fn deliver_reply(&mut self, conn: Conn) -> Done {
        let Some(link) = self.link(conn) else { return Ok(()) };
        let seat = link.seat;
        match link.replies.pop_front() {
            Some(message) => {
                let message = Message::clone(&message);
                self.tell(seat, primary::Event::Reply { conn, message })
            }
            None => Ok(()),
        }
    }

    /// A replica takes a step; its store answers at once.
    pub(crate) fn tell_copy(&mut self, copy: u8, event: replica::Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut out = Vec::new();
            let c = self.copy(copy);
            c.machine.step(Tick(0), event, &mut out);
            c.machine.check();
            for effect in out {
                match effect {
                    replica::Effect::Store { token, op } => {
                        let result = Ok(self.copy(copy).disk.run(op));
                        events.push_back(replica::Event::Stored { token, result });
                    }
                    replica::Effect::Note(note) => self.copy(copy).disk.note(&note),
                    replica::Effect::Fetch { .. } => unreachable!("no copy here is told to pull"),
                    replica::Effect::Entry(_) => unreachable!("no copy here is counted"),
                    replica::Effect::Send { conn, message } => self.reply(copy, conn, message),
                }
            }
        }
        let c = self.copy(copy);
        if !c.machine.status().connected {
            c.session = None;
        }
    }

    fn reply(&mut self, copy: u8, conn: Conn, message: Message<Reply>) {
        if matches!(message.body, Reply::Promised(_)) {
            self.copy(copy).session = Some(conn);
        }
        if let Some(link) = self.link(conn).filter(|l| !l.broken) {
            link.replies.push_back(Arc::new(message));
        }
    }

    /// A primary takes a step.
    pub(crate) fn tell(&mut self, seat: u8, event: primary::Event) -> Done {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let mut out = Vec::new();
            let s = self.seat(seat);
            let now = s.now;
            let Some(machine) = &mut s.machine else { return Ok(()) };
            machine.step(now, event, &mut out);
            machine.check();
            for effect in out {
                self.effect(seat, effect, &mut events)?;
            }
        }
        if matches!(self.seats[usize::from(seat)].phase, Phase::Fenced | Phase::Closed) {
            let s = &self.seats[usize::from(seat)];
            if (s.write, s.flush, s.read) != (None, None, None) {
                return Err(format!("p{seat} is over, but requests are unanswered"));
            }
            self.end_seat(seat);
        }
        Ok(())
    }

    pub(crate) fn end_seat(&mut self, seat: u8) {
        self.seat(seat).end();
        let conns: Vec<Conn> =
            self.links.iter().filter(|l| l.seat == seat).map(|l| l.conn).collect();
        conns.into_iter().for_each(|conn| self.close_seat_end(conn));
    }

    fn effect(
        &mut self,
        seat: u8,
        effect: primary::Effect,
        events: &mut VecDeque<primary::Event>,
    ) -> Done {
        match effect {
            primary::Effect::Connect(node) => {
                let copies = (0u8..).take(self.copies.len());
                let found = copies.into_iter().find(|c| crate::world::copy_node(*c) == node);
                let copy = found.ok_or("a connection to an unknown node")?;
                self.seat(seat).wants |= 1 << copy;
                if self.link_of(seat, copy).is_none() {
                    let conn = self.connect(seat, copy);
                    events.push_back(primary::Event::Connected { node, conn });
                }
            }
            primary::Effect::Disconnect(node) => {
                let copies = (0u8..).take(self.copies.len());
                for copy in copies.filter(|c| crate::world::copy_node(*c) == node) {
                    self.seat(seat).wants &= !(1 << copy);
                    if let Some(conn) = self.link_of(seat, copy).map(|l| l.conn) {
                        self.close_seat_end(conn);
                    }
                }
            }
            primary::Effect::Reset(conn) => self.close_seat_end(conn),
            primary::Effect::Task { .. } => return Err("a task that nobody asked for".into()),
            primary::Effect::Send { conn, message } => {
                if let Some(link) = self.link(conn).filter(|l| !l.broken) {
                    link.requests.push_back(Arc::new(message));
                }
            }
            primary::Effect::Meta { token, op } => match op {
                // When it is read makes no difference that a later answer, or a conflict, does
                // not make as well.
                MetaOp::Get => {
                    let read = Some((Record::clone(&self.record), self.revision));
                    let result = MetaResult::Read(read);
                    events.push_back(primary::Event::Meta { token, result });
                }
                MetaOp::PutIf { record, .. } if record.put_back != Epoch(0) => {
                    return Err(format!("p{seat} holds that the record was put back"));
                }
                MetaOp::PutIf { expected, record } => {
                    let s = self.seat(seat);
                    s.abandon_put();
                    s.put = Some(Put { token, expected, record: Arc::new(record), done: None });
                }
            },
            primary::Effect::Reply { request, result } => {
                return self.guest_answered(seat, request, result.ok());
            }
            primary::Effect::Phase(phase) => self.seat(seat).phase = phase,
            primary::Effect::Notice(_) => {}
        }
        Ok(())
    }

    fn guest_answered(&mut self, seat: u8, request: RequestId, result: Option<GuestReply>) -> Done {
        let s = self.seat(seat);
        let asked = match request {
            FLUSH => s.flush.take().map(u64::from),
            READ => s.read.take().map(u64::from),
            _ => s.write.take().map(u64::from),
        };
        let asked = asked.ok_or(format!("p{seat} answers a request twice"))?;
        let Some(reply) = result else { return Ok(()) };
        let value = |v: u64| Value::try_from(v).map_err(|e| e.to_string());
        match (request, reply) {
            (FLUSH, _) => self.judge_flush(seat, value(asked)?),
            (READ, GuestReply::Data(data)) => {
                let found = data.first().and_then(|d| d.first()).copied().unwrap_or_default();
                self.judge_read(seat, u16::try_from(asked).unwrap_or(0), found)
            }
            (READ, GuestReply::Done) => Err("a read is answered without data".to_owned()),
            _ => self.judge_ack(seat, value(asked)?),
        }
    }

    fn apply(&mut self, seat: u8) -> Done {
        let Some(put) = self.seat(seat).put.clone() else { return Ok(()) };
        let done = self.put(seat, &put)?;
        self.seat(seat).put = Some(Put { done: Some(done), ..put });
        Ok(())
    }

    /// The record store compares and swaps.
    fn put(&mut self, seat: u8, put: &Put) -> Result<bool, String> {
        if put.expected != self.revision {
            return Ok(false);
        }
        let old = std::mem::replace(&mut self.record, Arc::clone(&put.record));
        self.revision = Revision(self.revision.0 + 1);
        self.judge_change(seat, &old, &put.record)?;
        Ok(true)
    }

    pub(crate) fn answer(&mut self, seat: u8) -> Done {
        let Some(put) = self.seat(seat).put.take() else { return Ok(()) };
        let written = MetaResult::Written(Revision(put.expected.0 + 1));
        let result = if put.done == Some(true) { written } else { MetaResult::Conflict };
        self.tell(seat, primary::Event::Meta { token: put.token, result })
    }

    fn unknown(&mut self, seat: u8) -> Done {
        self.left.unknowns -= 1;
        let Some(put) = &self.seat(seat).put else { return Ok(()) };
        let token = put.token;
        self.seat(seat).abandon_put();
        self.tell(seat, primary::Event::Meta { token, result: MetaResult::Unknown })
    }
}
