//! Primaries and their guests.

use lockstep_core::guest::{GuestError, GuestOp, GuestReply};
use lockstep_core::id::{Conn, InstanceId, RequestId};
use lockstep_core::message::{Message, Request};
use lockstep_core::primary::{
    Effect, Event as PrimaryEvent, Notice, Params, Phase, Primary, Stop, Unfit,
};
use lockstep_core::range::BlockRange;
use lockstep_core::wire::Frame;

use super::{Event, World};
use crate::content::{BLOCK, Value, value_of};
use crate::guest::Asked;
use crate::net::DIALER;
use crate::node::Seat;

impl World {
    /// Starts a primary on a node; one that is there already is dropped.
    pub(crate) fn seat_primary(&mut self, node: usize) {
        self.unseat(node);
        let id = self.fresh_id();
        let instance = InstanceId(self.uuid());
        let params = Params {
            volume: self.volume,
            node: self.nodes[node].name.clone(),
            instance,
            planted: self.planted,
        };
        let primary = Primary::new(params);
        // Some nodes have many volumes.
        let busy = self.rng.chance(300);
        let primary = if busy { primary.with_slots() } else { primary };
        self.nodes[node].seat = Some(Seat::new(id, instance, primary));
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: primary {id} starts"));
        self.tell_primary(node, id, PrimaryEvent::Wake);
        self.keep_later(node, id);
    }

    /// Drops the primary of a node, as if its task had been cancelled.
    pub(crate) fn unseat(&mut self, node: usize) {
        if let Some(seat) = self.nodes[node].seat.take() {
            self.note_counters(&seat);
            self.tasks.retain(|(asked, _), _| *asked != seat.id);
            self.nodes[node].slots.leave(self.volume);
            self.drop_wires(seat.wires.into_values());
        }
    }

    /// Adds up what a primary did.
    pub(crate) fn note_counters(&mut self, seat: &Seat) {
        let counters = seat.primary.status().counters;
        self.outcome.coverage.resyncs += counters.resyncs_done;
        self.outcome.coverage.pulled_blocks += counters.direct_bytes / BLOCK as u64;
        self.outcome.coverage.pulls_failed += counters.pulls_failed;
        self.outcome.coverage.resyncs_refused += counters.resyncs_refused;
        self.outcome.coverage.repairs += u64::from(counters.repair_bytes > 0);
    }

    /// An event for a primary, handled as the next thing.
    pub(crate) fn tell_primary(&mut self, node: usize, seat: u64, event: PrimaryEvent) {
        self.schedule.after(0, Event::Primary { node, seat, event: Box::new(event) });
    }

    pub(crate) fn primary_wake(&mut self, node: usize, seat: u64) {
        let now = self.now();
        let Some(s) = self.nodes[node].seat(seat) else { return };
        if s.armed.is_none_or(|at| at > now) {
            return;
        }
        s.armed = None;
        self.primary_event(node, seat, PrimaryEvent::Wake);
    }

    pub(crate) fn primary_event(&mut self, node: usize, seat: u64, event: PrimaryEvent) {
        let tick = self.nodes[node].tick(self.now());
        if self.is_telling() {
            self.tell_primary_story(node, &event);
        }
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let mut out = Vec::new();
        s.primary.step(tick, event, &mut out);
        s.primary.check();
        for effect in out {
            self.primary_effect(node, seat, effect);
        }
        self.ask_for_slot(node, seat);
        self.arm_primary(node, seat);
        self.check_seat(node, seat);
    }

    pub(crate) fn arm_primary(&mut self, node: usize, seat: u64) {
        let (now, clock) = (self.now(), self.nodes[node].clock);
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let Some((tick, _)) = s.primary.deadline() else { return };
        let when = clock.when(tick, now);
        if s.armed != Some(when) {
            s.armed = Some(when);
            self.schedule.at(when, Event::PrimaryWake { node, seat });
        }
    }

    fn primary_effect(&mut self, node: usize, seat: u64, effect: Effect) {
        match effect {
            Effect::Connect(to) => {
                let Some(to) = self.index_of(&to) else { return };
                let Some(s) = self.nodes[node].seat(seat) else { return };
                if s.wanted.insert(to) && !s.wires.contains_key(&to) {
                    self.dial(node, seat, to);
                }
            }
            Effect::Disconnect(to) => {
                let Some(to) = self.index_of(&to) else { return };
                let Some(s) = self.nodes[node].seat(seat) else { return };
                s.wanted.remove(&to);
                if let Some(wire) = s.wires.get(&to).copied() {
                    self.close_end(wire, DIALER, true);
                }
            }
            Effect::Reset(conn) => {
                if let Some((wire, side)) = self.net.find(node, conn) {
                    self.close_end(wire, side, true);
                }
            }
            Effect::Send { conn, message } => self.primary_sends(node, seat, conn, message),
            Effect::Meta { token, op } => {
                let Some(s) = self.nodes[node].seat(seat) else { return };
                if !s.asked.insert(token) {
                    self.fail("honest", format!("a primary uses token {token} twice"));
                    return;
                }
                self.ask_meta(node, seat, token, op);
            }
            Effect::Reply { request, result } => self.guest_reply(node, seat, request, result),
            Effect::Phase(phase) => self.phase(node, seat, phase),
            Effect::Task { request, result } => self.task_done(node, seat, request, result),
            Effect::Notice(notice) => self.notice(node, seat, notice),
        }
    }

    fn primary_sends(&mut self, node: usize, seat: u64, conn: Conn, message: Message<Request>) {
        if self.is_telling() {
            self.tell_request(node, conn, &message);
        }
        let per_mille = self.plan.ambushes;
        let per_mille = match message.body {
            Request::Promise { .. }
            | Request::Mark { .. }
            | Request::Resync { .. }
            | Request::Pull { .. }
            | Request::Scan { .. }
            | Request::Complete
            | Request::Commit { member: true }
            | Request::Enter { .. }
            | Request::Extend { .. }
            | Request::Prepare
            | Request::Snapshot { .. }
            | Request::Seal { .. }
            | Request::DropSnapshot { .. }
            | Request::Close => per_mille,
            Request::Flush | Request::Digest { .. } => per_mille / 4,
            Request::Write { .. } | Request::Zero { .. } => per_mille / 20,
            Request::Commit { member: false }
            | Request::Read { .. }
            | Request::Fetch { .. }
            | Request::ScanKept { .. }
            | Request::DigestKept { .. }
            | Request::ReadKept { .. }
            | Request::Renew => 0,
        };
        if per_mille > 0 {
            let aim = self.other_end(node, conn).map(|other| (node, other));
            self.delicate(per_mille, aim);
        }
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let asked = s.flows.entry(conn).or_default().asks(&message);
        self.judge("limits", asked);
        self.send(node, conn, &Frame::Request(message));
    }

    fn notice(&mut self, node: usize, seat: u64, notice: Notice) {
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: primary {seat} notes {notice:?}"));
        match notice {
            Notice::Mended { .. } => self.outcome.coverage.mended += 1,
            Notice::Torn { blocks, .. } => self.outcome.coverage.untorn += blocks,
            Notice::Unreadable { block } => {
                self.check_readable(&format!("no member can give block {block}"));
            }
            Notice::Diverged { block } => {
                self.fail("identical", format!("a scrub finds that block {block} differs"));
            }
            Notice::Unfit { why: Unfit::Slow, .. } => self.outcome.coverage.slow_removals += 1,
            Notice::Unfit { why: Unfit::Rotten, .. } => self.outcome.coverage.rot_removals += 1,
            Notice::ResyncStalled { .. } | Notice::ResyncLags { .. } => {}
        }
    }

    fn phase(&mut self, node: usize, seat: u64, phase: Phase) {
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: primary {seat} is {phase:?}"));
        let Some(s) = self.nodes[node].seat(seat) else { return };
        if phase == Phase::Claiming {
            s.answered.clear();
            self.outcome.coverage.in_place += 1;
        }
        let first = phase == Phase::Active && s.guest.requests == 0 && !s.guest.running;
        s.phase = phase;
        match phase {
            Phase::Suspended => self.outcome.coverage.suspensions += 1,
            Phase::Fenced => self.fenced(node, seat),
            Phase::Closed => self.check_closed(node, seat),
            Phase::Claiming | Phase::Recovering | Phase::Active | Phase::Draining => {}
        }
        if first {
            self.start_guest(node, seat);
        }
    }

    /// Here no number is used up.
    fn fenced(&mut self, node: usize, seat: u64) {
        self.outcome.coverage.fenced += 1;
        let Some(s) = self.nodes[node].seat(seat) else { return };
        match s.primary.status().stopped {
            Some(Stop::TakenOver | Stop::DataLost) => {}
            Some(Stop::Deleted) if self.meta.is_deleted => {}
            Some(Stop::RecordPutBack { .. }) if self.was_put_back() => {}
            why => self.fail("fencing", format!("primary {seat} stops without a reason: {why:?}")),
        }
    }

    fn start_guest(&mut self, node: usize, seat: u64) {
        let verifies = self.plan.habits.verifies;
        let blocks: Vec<u64> = if verifies { self.oracle.blocks().collect() } else { Vec::new() };
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let instance = s.instance;
        s.guest.running = true;
        s.guest.blocks = s.primary.status().record.map_or(0, |r| r.blocks);
        // A primary that was overtaken may open late, with less than its successor's guest wrote.
        let size = s.guest.blocks;
        let blocks: Vec<u64> = blocks.into_iter().filter(|block| *block < size).collect();
        s.guest.to_verify = runs(&blocks);
        if !self.oracle.has_opened(instance) {
            self.fail("fencing", format!("primary {seat} serves but has not opened"));
        }
        self.schedule.after(0, Event::GuestTurn { node, seat });
    }

    /// The guest asks a burst of requests, then pauses.
    pub(crate) fn guest_turn(&mut self, node: usize, seat: u64) {
        let quiet = self.quiet_until;
        let now = self.now();
        let Some(s) = self.nodes[node].seat(seat) else { return };
        if s.closing || s.is_over() || !s.guest.running && s.guest.to_verify.is_empty() {
            s.guest.running = false;
            return;
        }
        if quiet > now && s.guest.to_verify.is_empty() {
            self.schedule.at(quiet, Event::GuestTurn { node, seat });
            return;
        }
        let mut burst = self.rng.between(1, self.plan.habits.depth as u64 * 2);
        while burst > 0 && self.guest_asks(node, seat) {
            burst -= 1;
        }
        let verifying = self.nodes[node].seat(seat).is_some_and(|s| !s.guest.to_verify.is_empty());
        let pause = if verifying || self.rng.chance(200) {
            self.rng.below(500)
        } else {
            self.rng.latency(self.guest_pause)
        };
        self.schedule.after(pause, Event::GuestTurn { node, seat });
    }

    fn guest_asks(&mut self, node: usize, seat: u64) -> bool {
        let value = Value(self.fresh_value());
        let depth = self.plan.habits.depth;
        let Some(s) = self.nodes[node].seat.as_mut().filter(|s| s.id == seat) else { return false };
        if s.guest.is_reconnecting() || s.guest.pending.len() >= depth || !s.primary.has_room() {
            return false;
        }
        if !s.guest.running && s.guest.to_verify.is_empty() {
            return false;
        }
        let asked = s.guest.ask(&mut self.rng, &self.plan.habits, value);
        let (instance, request) = (s.instance, asked.request);
        if asked.is_valid {
            self.oracle_hears(instance, &asked);
        }
        if self.is_telling() {
            self.tell_guest(node, &asked);
        }
        self.primary_event(node, seat, PrimaryEvent::Guest { request, op: asked.op });
        true
    }

    fn oracle_hears(&mut self, instance: InstanceId, asked: &Asked) {
        let (now, request) = (self.now(), asked.request);
        match &asked.op {
            GuestOp::Read { range } => self.oracle.read(instance, request, *range),
            GuestOp::Write { range, fua, .. } | GuestOp::Zero { range, fua, .. } => {
                self.oracle.write(instance, request, *range, asked.value, *fua, now);
            }
            GuestOp::Flush => self.oracle.flush(instance, request),
        }
    }

    fn guest_reply(
        &mut self,
        node: usize,
        seat: u64,
        request: RequestId,
        result: Result<GuestReply, GuestError>,
    ) {
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let instance = s.instance;
        let unheard = s.guest.unheard.remove(&request);
        if s.guest.pending.remove(&request).is_none() {
            self.fail("honest", format!("guest request {request} is answered but not open"));
            return;
        }
        if s.guest.invalid.remove(&request) {
            if result.is_ok() {
                self.fail("honest", format!("request {request} beyond the end succeeds"));
            }
            return;
        }
        match result {
            Ok(_) if unheard => {
                let judged = self.oracle.failed(instance, request);
                self.judge("honest", judged);
            }
            Ok(GuestReply::Data(pieces)) => {
                let found = self.contents_read(request, &pieces, instance);
                let judged = self.oracle.was_read(instance, request, &found);
                self.outcome.coverage.reads += 1;
                self.judge("register", judged);
            }
            Ok(GuestReply::Done) => match self.oracle.acked(instance, request) {
                Ok(claimed) => self.check_ack(node, seat, &claimed),
                Err(what) => self.fail("fencing", what),
            },
            Err(error) => {
                self.told_failure(node, request, error);
                let judged = self.oracle.failed(instance, request);
                self.judge("honest", judged);
                if error == GuestError::Io {
                    self.check_readable("a read fails");
                }
                if error == GuestError::Invalid {
                    self.fail("honest", "a valid request is called invalid".to_owned());
                }
            }
        }
    }

    fn contents_read(
        &self,
        request: RequestId,
        pieces: &[bytes::Bytes],
        instance: InstanceId,
    ) -> Vec<Value> {
        let start = self.oracle.range_of(instance, request).map_or(0, |r| r.start);
        let blocks = pieces.iter().flat_map(|p| p.chunks(BLOCK));
        (start..).zip(blocks).map(|(block, content)| value_of(block, content)).collect()
    }
}

/// Blocks as ranges of at most 64.
pub(crate) fn runs(blocks: &[u64]) -> Vec<BlockRange> {
    let mut out: Vec<BlockRange> = Vec::new();
    for block in blocks {
        match out.last_mut() {
            Some(last) if last.end() == *block && last.count < 64 => last.count += 1,
            _ => out.push(BlockRange::new(*block, 1)),
        }
    }
    out
}
