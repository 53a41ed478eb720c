//! Gaps: what stands on a copy in place of a block that nobody could give (S9). To the checkers a
//! gap is like damage: it has to be noticed, and mended as long as another member has the block.

use lockstep_core::record::Record;
use std::collections::BTreeMap;

use super::{MS, Stage, World};
use crate::content::{BLOCK, Value, value_of};
use crate::node::Copy;

/// Who has had a session for so long was asked.
const ASKED: u64 = 5000 * MS;

impl World {
    /// Somebody writes to a copy's data: if it is a gap, nobody who is reached has the block.
    pub(super) fn note_gaps(&mut self, node: usize, offset: u64, data: &[u8]) {
        for (block, content) in (offset / BLOCK as u64..).zip(data.chunks(BLOCK)) {
            if value_of(block, content) == Value::GAP {
                self.note_gap(node, block);
            }
        }
    }

    fn note_gap(&mut self, node: usize, block: u64) {
        self.outcome.coverage.gaps += 1;
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: gets a gap as block {block}"));
        let record = self.meta.record();
        let seat = record.primary.as_ref().and_then(|primary| {
            let seats = self.nodes.iter().filter_map(|n| n.seat.as_ref());
            seats.into_iter().find(|seat| seat.instance == primary.instance)
        });
        let Some(seat) = seat else { return };
        let status = seat.primary.status();
        let now = self.now();
        let asked = |n: usize, c: &Copy| {
            let early = seat.answered.get(&n).is_some_and(|at| at + ASKED < now);
            early && status.replicas.get(&c.rid).is_some_and(|r| r.connected)
        };
        let members = self.in_sync_now(record);
        let has = members
            .iter()
            .find(|(n, c)| *n != node && asked(*n, c) && c.host.is_some() && is_sound(c, block));
        if let Some((other, _)) = has {
            let other = self.nodes[*other].name.clone();
            self.check_readable(&format!("{name} gets a gap as block {block}, which {other} has"));
        }
    }

    /// The members have changed: of a block that is a gap on one of them, another has the content.
    /// Else it is lost, with whoever had it last, and nothing is promised of it.
    pub(super) fn give_up_if_gap(&mut self) {
        if self.outcome.coverage.gaps == 0 {
            return;
        }
        let members = self.in_sync_now(self.meta.record());
        let gaps = members.iter().flat_map(|(_, c)| c.disk.shown());
        let gaps = gaps.filter(|(_, value)| *value == Value::GAP);
        let lost = gaps.map(|(block, _)| block);
        let lost = lost.filter(|block| !members.iter().any(|(_, c)| is_sound(c, *block)));
        if let Some(block) = lost.min() {
            self.say(|| format!("nobody has block {block} any more: beyond repair"));
            self.outcome.coverage.beyond_repair += 1;
            self.stage = Stage::Done;
        }
    }

    /// Has no member a gap?
    pub(super) fn is_without_gaps(&self) -> bool {
        let members = self.in_sync_now(self.meta.record());
        let none = |c: &Copy| c.disk.shown().all(|(_, value)| value != Value::GAP);
        self.outcome.coverage.gaps == 0 || members.iter().all(|(_, c)| none(c))
    }

    /// What the members of a record hold, as their first shows it, or another where it has a gap.
    pub(super) fn contents_of(&self, record: &Record) -> BTreeMap<u64, Value> {
        let members = self.in_sync(record);
        let written = members.iter().flat_map(|(_, c)| c.disk.blocks());
        let blocks = written.chain(self.oracle.blocks());
        let shown = |block: u64| {
            let mut all = members.iter().map(|(_, c)| c.disk.visible(block));
            let first = all.next().unwrap_or(Value::ZERO);
            if first == Value::GAP {
                all.find(|v| *v != Value::GAP).unwrap_or(first)
            } else {
                first
            }
        };
        blocks.map(|block| (block, shown(block))).collect()
    }
}

/// Has the copy this block, whatever it should hold?
fn is_sound(copy: &Copy, block: u64) -> bool {
    !copy.disk.is_harmed(lockstep_store::layout::File::Data, block)
        && copy.disk.visible(block) != Value::GAP
}
