//! What must hold in every state: the guarantees for one block, and the invariants behind them.
//!
//! Values are numbered in the order in which they are written, so a set of values that the block
//! may have is a set of bits, and everything from a value on is everything written later.

use lockstep_core::primary::Phase;
use lockstep_core::record::{Record, ReplicaState};

use crate::disk::Value;
use crate::world::{State, copy_of, members};

/// Most primaries of a run.
pub(crate) const SEATS: usize = 3;

/// What is known about the block from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Judge {
    /// The next value to be written.
    pub(crate) next: Value,
    /// The primary that opened last.
    pub(crate) opened: Option<u8>,
    /// What may be found: the last acknowledged write or a later one (G1, G3).
    pub(crate) readable: u16,
    /// What may be found where power was lost: the last flushed write or a later one (G2).
    pub(crate) surviving: u16,
    /// Copies that lost power since then, as bits.
    pub(crate) lost: u8,
    /// With what the successor of each primary opened, and whether power had been lost.
    succeeded: [Option<(Value, bool)>; SEATS],
    /// The last value acknowledged by, or opened with, each primary.
    pub(crate) last: [Value; SEATS],
}

type Found = Result<(), String>;

fn bit(value: Value) -> u16 {
    1 << value
}

/// `value` and everything later.
fn from(value: Value) -> u16 {
    !(bit(value) - 1)
}

impl Judge {
    pub(crate) fn new() -> Self {
        Self {
            next: 1,
            opened: None,
            readable: bit(0),
            surviving: bit(0),
            lost: 0,
            succeeded: [None; SEATS],
            last: [0; SEATS],
        }
    }

    /// A guest asks to write; returns the value.
    pub(crate) fn write(&mut self, seat: u8) -> Value {
        let value = self.next;
        self.next += 1;
        if self.opened == Some(seat) {
            self.readable |= bit(value);
            self.surviving |= bit(value);
        }
        value
    }

    pub(crate) fn lose_power(&mut self, copy: u8) {
        self.lost |= 1 << copy;
    }

    /// G5: a primary whose successor has opened acknowledges only what that one opened with.
    fn late(&self, seat: u8, what: &str, good: impl Fn(Value, bool) -> bool) -> Found {
        match self.succeeded[usize::from(seat)] {
            None => Err(format!("p{seat} acknowledges {what} without having opened")),
            Some((value, lost)) if good(value, lost) => Ok(()),
            Some((value, _)) => Err(format!(
                "deposed p{seat} acknowledges {what}, but its successor opened with w{value}"
            )),
        }
    }
}

impl State {
    /// A write is acknowledged: I1, and G5 for a deposed primary.
    pub(crate) fn judge_ack(&mut self, seat: u8, value: Value) -> Found {
        if self.judge.opened != Some(seat) {
            return self.judge.late(seat, &format!("w{value}"), |v, lost| v == value || lost);
        }
        self.judge.readable &= from(value);
        self.judge.last[usize::from(seat)] = value;
        Ok(())
    }

    /// A flush is acknowledged; it covers `value`.
    pub(crate) fn judge_flush(&mut self, seat: u8, value: Value) -> Found {
        if self.judge.opened != Some(seat) {
            return self.judge.late(seat, &format!("a flush of w{value}"), |v, _| v >= value);
        }
        self.judge.surviving &= from(value);
        Ok(())
    }

    /// A read is answered (G1). A primary that was deposed may not know it yet: how long it may
    /// read is a matter of time, which is not explored.
    pub(crate) fn judge_read(&self, seat: u8, legal: u16, found: Value) -> Found {
        if self.judge.opened == Some(seat) && legal & bit(found) == 0 {
            return Err(format!("p{seat} reads w{found}; legal are {}", words(legal)));
        }
        Ok(())
    }

    /// The record changed.
    pub(crate) fn judge_change(&mut self, seat: u8, old: &Record, new: &Record) -> Found {
        legal_change(old, new)?;
        new.validate().map_err(|e| e.to_string())?;
        if new.epoch > old.epoch {
            let place = usize::try_from(new.epoch.0).ok().and_then(|e| self.claimed.get_mut(e));
            *place.ok_or("more claims than are provided for")? = seat;
        } else if new.open_epoch > old.open_epoch {
            self.judge_opening(seat, old, new)?;
        } else {
            // Whoever joins holds what a member must. While a write is under way it may have done
            // that, and have lost it since: then nothing is known yet.
            for copy in (0u8..).zip(&self.copies) {
                let joins = members(new) & !members(old) & 1 << copy.0 != 0;
                if joins && self.judge.readable == bit(copy.1.disk.content) {
                    self.judge.lost &= !(1 << copy.0);
                }
            }
        }
        Ok(())
    }

    /// I6: all members identical and durable. I7: with a value that may be found now.
    fn judge_opening(&mut self, seat: u8, old: &Record, new: &Record) -> Found {
        let content = |c: u8| self.copies[usize::from(c)].disk.content;
        let durable = |c: u8| self.copies[usize::from(c)].disk.durable;
        let all: Vec<u8> = new.in_sync().map(|r| copy_of(r.rid)).collect();
        let value = content(all[0]);
        for copy in &all {
            if content(*copy) != value || durable(*copy) != value {
                return Err(format!(
                    "p{seat} opens with w{value} on r{}, but r{copy} has w{}, of which w{} is \
                     durable",
                    all[0],
                    content(*copy),
                    durable(*copy)
                ));
            }
        }
        let again = self.judge.opened == Some(seat);
        let sources = members(old) & members(new);
        let all_lost = sources != 0 && sources & !self.judge.lost == 0;
        let judge = &mut self.judge;
        let legal = if all_lost && !again { judge.surviving } else { judge.readable };
        if legal & bit(value) == 0 {
            return Err(format!("p{seat} opens with w{value}; legal are {}", words(legal)));
        }
        if let Some(before) = judge.opened.filter(|before| *before != seat) {
            let alive = self.seats[usize::from(before)].machine.is_some();
            judge.succeeded[usize::from(before)] = alive.then_some((value, judge.lost != 0));
        }
        let pending = self.seats[usize::from(seat)].write.map_or(0, bit);
        judge.opened = Some(seat);
        judge.readable = bit(value) | pending;
        judge.surviving = judge.readable;
        judge.last[usize::from(seat)] = value;
        judge.lost = 0;
        Ok(())
    }

    /// What holds in every state.
    pub(crate) fn judge(&self) -> Found {
        let listed = members(&self.record);
        for (index, copy) in (0u8..).zip(&self.copies) {
            let promised = copy.machine.status().promised;
            if promised > self.record.epoch {
                return Err(format!("r{index} promised epoch {promised}, which nobody claimed"));
            }
            if listed & 1 << index != 0 {
                self.judge_member(index)?;
            }
        }
        for (a, one) in (0u8..).zip(&self.copies) {
            for (b, other) in (0u8..).zip(&self.copies) {
                let both = one.disk.content != other.disk.content && listed & 1 << a != 0;
                if !both || a == b {
                    continue;
                }
                if listed & 1 << b == 0 {
                    self.judge_superset(a, b)?;
                } else if !one.disk.logged && !other.disk.logged {
                    return Err(format!("r{a} and r{b} differ, but in no activity log (I4)"));
                }
            }
        }
        self.judge_honesty()
    }

    /// Every member holds what was acknowledged, durably what was flushed (G1 to G3, I1).
    fn judge_member(&self, index: u8) -> Found {
        let disk = &self.copies[usize::from(index)].disk;
        let judge = &self.judge;
        if judge.surviving & bit(disk.durable) == 0 {
            return Err(format!(
                "member r{index} has only w{} durable; legal are {}",
                disk.durable,
                words(judge.surviving)
            ));
        }
        let lost = judge.lost & 1 << index != 0;
        let legal = if lost { judge.surviving } else { judge.readable };
        if legal & bit(disk.content) == 0 {
            return Err(format!(
                "member r{index} holds w{}; legal are {}",
                disk.content,
                words(legal)
            ));
        }
        Ok(())
    }

    /// I5: where `out` differs from a member, D of a resync covers it.
    fn judge_superset(&self, member: u8, out: u8) -> Found {
        let (s, t) = (&self.copies[usize::from(member)], &self.copies[usize::from(out)]);
        let state = self.record.replica(crate::world::rid_of(out)).map(|r| r.state);
        let since = state.map_or_else(Default::default, ReplicaState::since);
        let uncertain = |c: &crate::world::Copy| {
            let status = c.machine.status();
            status.unclean || status.ring > 0
        };
        if s.disk.stamp() >= since || uncertain(s) || uncertain(t) {
            return Ok(());
        }
        Err(format!(
            "r{out}, out since {since}, holds w{}, but member r{member} holds w{} stamped {}, \
             and neither is in doubt about it (I5)",
            t.disk.content,
            s.disk.content,
            s.disk.stamp()
        ))
    }

    /// A primary that is over has answered everything; one that serves holds a claim.
    fn judge_honesty(&self) -> Found {
        for (index, seat) in (0u8..).zip(&self.seats) {
            let open = (seat.write, seat.flush, seat.read) != (None, None, None);
            if open && seat.machine.is_none() {
                return Err(format!("p{index} is over, but requests are unanswered"));
            }
            let judge = &self.judge;
            let opened = judge.opened == Some(index);
            let never = !opened && judge.succeeded[usize::from(index)].is_none();
            if seat.machine.is_some() && seat.phase == Phase::Active && never {
                return Err(format!("p{index} serves without having opened"));
            }
        }
        Ok(())
    }
}

fn words(values: u16) -> String {
    let all = (0..crate::disk::VALUES).filter(|v| values >> v & 1 == 1);
    all.map(|v| format!("w{v}")).collect::<Vec<_>>().join(", ")
}

/// What a primary may do to a record: T3 to T8.
fn legal_change(old: &Record, new: &Record) -> Found {
    let claims = new.epoch.0 == old.epoch.0 + 1;
    let opens = new.open_epoch > old.open_epoch;
    let changes = claims || opens || members(old) != members(new);
    let raised = old.replicas.iter().any(|r| {
        let (ReplicaState::Out { since: was, .. }, Some(n)) = (r.state, new.replica(r.rid)) else {
            return false;
        };
        matches!(n.state, ReplicaState::Out { since, .. } if since > was)
    });
    let newly_out = new.replicas.iter().any(|r| {
        let ReplicaState::Out { since, .. } = r.state else { return false };
        old.is_in_sync(r.rid) && since != new.r#gen
    });
    let rules = [
        (claims || new.epoch == old.epoch, "the epoch jumps"),
        (claims || new.clean || new.primary == old.primary, "another primary's record changes"),
        (!claims || members(old) == members(new), "a claim changes the members"),
        (!opens || new.open_epoch == new.epoch, "an epoch opens that is not claimed"),
        (!changes || new.r#gen.0 == old.r#gen.0 + 1, "the generation does not rise by one"),
        (!raised, "a copy that is out has its since raised (m22)"),
        (!newly_out, "a copy that goes out has another since than the new generation (m9)"),
        (opens || claims || new.clean || old.open_epoch == old.epoch, "members change before T4"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, broken)) => Err(format!("illegal change of the record: {broken}")),
        None => Ok(()),
    }
}
