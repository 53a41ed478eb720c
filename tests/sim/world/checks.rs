//! Checkers that see the whole world: what the record says against what the disks hold.

use lockstep_core::id::{Gen, InstanceId};
use lockstep_core::limits;
use lockstep_core::primary::Phase;
use lockstep_core::range::region_of;
use lockstep_core::record::{Record, ReplicaState};
use lockstep_core::wire::Kind;
use lockstep_store::layout::File;
use std::collections::BTreeSet;

use super::{Event, MS, World};
use crate::content::Value;
use crate::disk::Disk;
use crate::node::Copy;
use crate::oracle::Claimed;

/// Time between two looks at everything.
const LOOK: u64 = 250 * MS;

/// Who promises so soon after the first one is among those from which the source is chosen (P3).
const PROMPT: u64 = limits::CONNECT_WAIT_MS * MS * 3 / 4;

type Found = Result<(), String>;

impl World {
    /// Copies that a record has in sync, with their nodes.
    pub(crate) fn in_sync(&self, record: &Record) -> Vec<(usize, &Copy)> {
        let copy = |(index, node): (usize, &crate::node::Node)| {
            let copy = node.copy.as_ref()?;
            record.is_in_sync(copy.rid).then_some(index)
        };
        let nodes = self.nodes.iter().enumerate().filter_map(copy);
        nodes.filter_map(|n| Some((n, self.nodes[n].copy.as_ref()?))).collect()
    }

    /// As [`Self::in_sync`], without those that were put back to an older image: nobody may take
    /// them for members, but the record may still name them.
    pub(crate) fn in_sync_now(&self, record: &Record) -> Vec<(usize, &Copy)> {
        self.in_sync(record).into_iter().filter(|(_, copy)| !copy.is_old).collect()
    }

    /// A primary's put was applied.
    pub(crate) fn check_put(&mut self, old: &Record, new: &Record) {
        let judged = legal_change(old, new);
        self.judge("fencing", judged);
        let valid = new.validate().map_err(|e| e.to_string());
        self.judge("record", valid);
        let before: BTreeSet<_> = old.in_sync().map(|r| r.rid).collect();
        let after: BTreeSet<_> = new.in_sync().map(|r| r.rid).collect();
        let coverage = &mut self.outcome.coverage;
        if new.epoch > old.epoch {
            coverage.claims += 1;
        } else if new.open_epoch > old.open_epoch {
            coverage.promotions += 1;
            self.check_opening(old, new);
        } else if new.primary.is_none() && old.primary.is_some() {
            coverage.closes += 1;
        } else {
            let joined: Vec<_> = after.difference(&before).collect();
            let left = before.difference(&after).count();
            coverage.swaps += u64::from(!joined.is_empty() && left > 0);
            coverage.additions += u64::from(!joined.is_empty());
            coverage.removals += u64::from(left > 0);
            for rid in joined {
                let judged = self.check_joined(new, *rid);
                self.judge("join", judged);
                // From now on it has what was acknowledged, and was told so before (S5). A primary
                // that speaks an older version can't tell it.
                let told = self.nodes.iter().all(|n| n.speaks >= Kind::Complete.since());
                let copies = self.nodes.iter_mut().filter_map(|n| n.copy.as_mut());
                let joined = copies.filter(|c| told && c.rid == *rid);
                joined.for_each(|c| c.lossy_since = None);
            }
            self.check_released(old, new);
        }
        self.outcome.coverage.expansions += u64::from(new.blocks > old.blocks);
        let judged = self.check_extent(new);
        self.judge("extent", judged);
        let judged = self.check_superset();
        self.judge("superset", judged);
        self.give_up_if_lost(new);
    }

    /// I6: at an opening all members are identical and durable, and what they hold is legal.
    fn check_opening(&mut self, old: &Record, new: &Record) {
        // All members may be lost just when the opening that they made is on its way.
        if self.in_sync(new).is_empty() && self.is_without_members() {
            return;
        }
        let judged = self.check_identical(new);
        self.judge("opening", judged);
        let lost_until = self.lost_until(old, new);
        if self.in_sync(new).is_empty() {
            self.fail("opening", "no member has a disk".to_owned());
            return;
        }
        let contents = self.contents_of(new);
        let judged = self.check_torn(old, new, &contents);
        self.judge("torn", judged);
        let Some(instance) = new.primary.as_ref().map(|p| p.instance) else { return };
        let now = self.now();
        let judged = self.oracle.open(instance, new.epoch, now, &contents, lost_until);
        self.judge("acked", judged);
    }

    /// Un-flushed writes acknowledged up to here may be lost (G3): the last time at which a
    /// member lost power since the volume was last opened. Nothing may be lost if a member that
    /// kept its power could be reached: one that promised before the source can have been chosen.
    fn lost_until(&self, old: &Record, new: &Record) -> Option<u64> {
        let opened = self.oracle.opened_at();
        let instance = new.primary.as_ref().map(|p| p.instance);
        let seats = self.nodes.iter().filter_map(|n| n.seat.as_ref());
        let answered = seats.filter(|s| Some(s.instance) == instance).map(|s| &s.answered).next();
        let first = answered.and_then(|a| a.values().min()).copied().unwrap_or_default();
        let in_time =
            |n: &usize| answered.and_then(|a| a.get(n)).is_some_and(|at| *at < first + PROMPT);
        // One that lost power before the opening that it had prepared was in force is lossy too,
        // until it is told: nothing is acknowledged before.
        let kept = |n: &usize| {
            let node = &self.nodes[*n];
            let untold = |c: &Copy| c.host.as_ref().is_some_and(|h| h.replica.status().unclean);
            let lossy = |c: &Copy| c.lossy_since.is_some() && untold(c);
            node.lost_power.is_none_or(|at| at < opened) && !node.copy.as_ref().is_some_and(lossy)
        };
        let was = |n: &usize| self.in_sync(old).iter().any(|(m, _)| m == n);
        if self.in_sync(new).iter().any(|(n, _)| was(n) && kept(n) && in_time(n)) {
            return None;
        }
        let opened = self.oracle.opened_at();
        let losses = self.in_sync(old).into_iter().filter_map(|(n, _)| self.nodes[n].lost_power);
        losses.filter(|at| *at >= opened).max()
    }

    fn check_identical(&self, record: &Record) -> Found {
        let members = self.in_sync(record);
        let Some((first, model)) = members.first() else { return Ok(()) };
        let blocks: BTreeSet<u64> = members.iter().flat_map(|(_, c)| c.disk.blocks()).collect();
        for block in blocks {
            let expected = model.disk.visible(block);
            for (node, copy) in &members {
                let name = &self.nodes[*node].name;
                let (shown, durable) = (copy.disk.visible(block), copy.disk.durable(block));
                if shown != expected && ![shown, expected].contains(&Value::GAP) {
                    let other = &self.nodes[*first].name;
                    return Err(format!(
                        "block {block} is {shown:?} on {name} but {expected:?} on {other}"
                    ));
                }
                if durable != shown {
                    return Err(format!(
                        "block {block} is {shown:?} on {name}, of which only {durable:?} is durable"
                    ));
                }
            }
        }
        Ok(())
    }

    /// I10: a copy that joins holds what a member must, durably where that is required.
    fn check_joined(&self, record: &Record, rid: lockstep_core::id::ReplicaId) -> Found {
        let Some((node, copy)) = self.in_sync(record).into_iter().find(|(_, c)| c.rid == rid)
        else {
            // Its last answer was under way when its files were lost: it is lost as a member.
            let under_way = self.lost_files_lately();
            return under_way.then_some(()).ok_or("a copy without a disk joins".to_owned());
        };
        let name = &self.nodes[node].name;
        let opened = self.oracle.opened_at();
        let lost = self.nodes[node].lost_power.is_some_and(|at| at >= opened);
        let blocks: BTreeSet<u64> = copy.disk.blocks().chain(self.oracle.blocks()).collect();
        for block in blocks {
            let durable = self.durable(copy, block);
            let shown = copy.disk.visible(block);
            // A put that was given up may add a copy that has lost power since: it is unclean, and
            // its primary never takes it for a member again (m6).
            let bad = shown == Value::GAP;
            if !lost && !bad && !self.oracle.is_readable(block, shown) {
                return Err(format!("{name} joins with {shown:?} in block {block}"));
            }
            if durable != Value::GAP && self.oracle.lacks_durable(block, durable) {
                return Err(format!(
                    "{name} joins with {durable:?} durable in block {block}, older than flushed"
                ));
            }
        }
        Ok(())
    }

    /// I4: a block that differs between two members is in an activity log of one of them.
    fn check_superset(&self) -> Found {
        let record = self.meta.record();
        let members: Vec<_> =
            self.in_sync_now(record).into_iter().filter(|(_, c)| c.host.is_some()).collect();
        let Some(((first, model), rest)) = members.split_first() else { return Ok(()) };
        for (node, copy) in rest {
            for (block, a, b) in differing(&model.disk, &copy.disk) {
                if !is_active(model, block) && !is_active(copy, block) {
                    let (one, other) = (&self.nodes[*first].name, &self.nodes[*node].name);
                    return Err(format!(
                        "block {block} is {a:?} on {one} and {b:?} on {other}, \
                         but in no activity log"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A look at everything, now and then.
    pub(crate) fn look(&mut self) {
        let judged = self.check_superset();
        self.judge("superset", judged);
        let judged = self.check_missed();
        self.judge("missed", judged);
        let judged = self.check_promises();
        self.judge("fencing", judged);
        if (self.now() / LOOK).is_multiple_of(16) {
            let judged = self.check_twice();
            self.judge("twice", judged);
        }
        self.note_states();
        self.schedule.after(LOOK, Event::Look);
    }

    /// I5: a block in which a copy that is out differs from a member is among what a resync would
    /// compare: stamped since then on the member, or active on either.
    fn check_missed(&self) -> Found {
        let record = self.meta.record();
        let members: Vec<_> = self.in_sync_now(record);
        for node in &self.nodes {
            let Some(target) = node.copy.as_ref().filter(|c| !c.is_old) else { continue };
            let entry = record.replica(target.rid).map(|r| r.state);
            let Some(ReplicaState::Out { since, .. }) = entry else { continue };
            for (index, member) in &members {
                let Some(host) = member.host.as_ref() else { continue };
                for (block, a, b) in differing(&member.disk, &target.disk) {
                    let newest = host.store.newest_stamp(region_of(block));
                    let active = is_active(member, block) || is_active(target, block);
                    let lower = newest < since || stamp_of(&member.disk, block) < since;
                    if lower && !active {
                        return Err(format!(
                            "block {block} is {a:?} on {} and {b:?} on {}, which is out since \
                             {since}, but no resync would find it",
                            self.nodes[*index].name, node.name
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// I3: nobody promised an epoch that was not claimed. Copies of a history that somebody has
    /// left behind by force may know a higher one.
    fn check_promises(&self) -> Found {
        let claimed = self.meta.record().epoch.max(self.meta.seen().epoch);
        for node in &self.nodes {
            let Some(host) = node.copy.as_ref().and_then(|c| c.host.as_ref()) else { continue };
            let status = host.replica.status();
            let promised = status.promised;
            if promised > claimed && status.lineage == self.lineage {
                return Err(format!("{} promised {promised}, claimed is {claimed}", node.name));
            }
        }
        Ok(())
    }

    /// Counts the states in which primaries are.
    fn note_states(&mut self) {
        let members = self.meta.record().in_sync().count();
        for seat in self.nodes.iter().filter_map(|n| n.seat.as_ref()) {
            let name = format!("{:?}/{members}", seat.phase).to_lowercase();
            *self.outcome.states.entry(name).or_default() += 1;
        }
    }

    /// I1 and I9: what was acknowledged is on every member, durably where that was promised.
    pub(crate) fn check_ack(&mut self, node: usize, seat: u64, claimed: &Claimed) {
        self.outcome.coverage.acks += 1;
        let Some(instance) = self.nodes[node].seat(seat).map(|s| s.instance) else { return };
        if self.oracle.current() != Some(instance) {
            self.outcome.coverage.late_acks += 1;
            return;
        }
        let judged = self.check_claims(instance, claimed);
        self.judge("ack", judged);
    }

    fn check_claims(&self, instance: InstanceId, claimed: &Claimed) -> Found {
        let record = self.meta.record();
        let members = self.in_sync(record);
        let (listed, min) = (record.in_sync().count(), usize::from(record.min_in_sync));
        if listed < min {
            return Err(format!("acknowledged with {listed} members, {min} needed"));
        }
        let opened = self.oracle.opened_at();
        for (node, copy) in members.into_iter().filter(|(_, copy)| !copy.is_old) {
            let name = &self.nodes[node].name;
            let lost = self.nodes[node].lost_power.is_some_and(|at| at >= opened);
            for (block, write) in claimed.applied.iter().filter(|_| !lost) {
                let shown = copy.disk.visible(*block);
                if self.oracle.lacks(*block, shown, *write) {
                    return Err(format!(
                        "{instance} acknowledges a write of block {block}, \
                         but {name} holds {shown:?}, which is older"
                    ));
                }
            }
            for block in &claimed.durable {
                let durable = self.durable(copy, *block);
                if durable != Value::GAP && self.oracle.lacks_durable(*block, durable) {
                    return Err(format!(
                        "block {block} is declared durable, but on {name} only {durable:?} is"
                    ));
                }
            }
        }
        Ok(())
    }

    /// After every step of a primary.
    pub(crate) fn check_seat(&mut self, node: usize, seat: u64) {
        let now = self.now();
        let Some(s) = self.nodes[node].seat(seat) else { return };
        let waiting = s.guest.pending.len();
        let over = s.is_over();
        let serves = s.phase == Phase::Active;
        if serves {
            self.served_at = now;
        }
        if over && waiting > 0 {
            let what = format!("primary {seat} is done but {waiting} requests are unanswered");
            self.fail("honest", what);
        }
        if waiting > limits::MAX_QUEUED_REQUESTS {
            self.fail("limits", format!("primary {seat} queues {waiting} requests"));
        }
    }

    /// A primary says that it closed in good order.
    pub(crate) fn check_closed(&mut self, node: usize, seat: u64) {
        let record = self.meta.record().clone();
        let Some(instance) = self.nodes[node].seat(seat).map(|s| s.instance) else { return };
        if self.oracle.current() != Some(instance) || record.primary.is_some() {
            return;
        }
        if !record.clean {
            self.fail("close", "closed, but the record is not clean".to_owned());
        }
        let judged = self.check_identical(&record);
        self.judge("close", judged);
        let busy = self
            .in_sync(&record)
            .into_iter()
            .find(|(_, c)| c.host.as_ref().is_some_and(|h| h.store.status().active > 0));
        if let Some((node, _)) = busy {
            let what = format!("closed, but the log of {} is not empty", self.nodes[node].name);
            self.fail("close", what);
        }
    }
}

/// Blocks that two disks do not show alike, with what each shows. A gap is never read, so it is
/// like nothing else, nor unlike it.
fn differing(a: &Disk, b: &Disk) -> Vec<(u64, Value, Value)> {
    let (mut left, mut right) = (a.shown().peekable(), b.shown().peekable());
    let mut out = Vec::new();
    loop {
        let next = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some((l, _)), Some((r, _))) => *l.min(r),
            (Some((block, _)), None) | (None, Some((block, _))) => *block,
        };
        let shown = |found: Option<(u64, Value)>| found.map_or(Value::ZERO, |(_, value)| value);
        let one = shown(left.next_if(|(block, _)| *block == next));
        let other = shown(right.next_if(|(block, _)| *block == next));
        if one != other && one != Value::GAP && other != Value::GAP {
            out.push((next, one, other));
        }
    }
}

/// The stamp of a block as its tag on the disk has it: in a region that is not active, no other is
/// known.
fn stamp_of(disk: &Disk, block: u64) -> Gen {
    let tag = disk.read(File::Tags, block * 8, 8);
    Gen(tag.get(4..8).and_then(|s| s.try_into().ok()).map_or(0, u32::from_le_bytes))
}

fn is_active(copy: &Copy, block: u64) -> bool {
    let region = region_of(block);
    copy.host.as_ref().is_none_or(|host| host.store.active_regions().contains(&region))
}

/// What a primary may do to a record: T3 to T8.
fn legal_change(old: &Record, new: &Record) -> Found {
    let before: BTreeSet<_> = old.in_sync().map(|r| r.rid).collect();
    let after: BTreeSet<_> = new.in_sync().map(|r| r.rid).collect();
    let claims = new.epoch.0 == old.epoch.0 + 1;
    let closes = old.primary.is_some() && new.primary.is_none();
    let opens = new.open_epoch > old.open_epoch;
    let same_primary = new.primary == old.primary;
    let expands = new.blocks > old.blocks;
    let changes = claims || opens || expands || before != after;
    let raised = old.replicas.iter().any(|r| {
        let (ReplicaState::Out { since: was, .. }, Some(n)) = (r.state, new.replica(r.rid)) else {
            return false;
        };
        matches!(n.state, ReplicaState::Out { since, .. } if since > was)
    });
    let newly_out = new.replicas.iter().any(|r| {
        let ReplicaState::Out { since, .. } = r.state else { return false };
        before.contains(&r.rid) && since != new.r#gen
    });
    let rules = [
        (new.blocks >= old.blocks, "the volume shrinks"),
        (claims || new.epoch == old.epoch, "the epoch jumps"),
        (claims || closes || same_primary, "a primary changes a record that another claimed"),
        (!claims || new.primary.is_some(), "claimed by nobody"),
        (!claims || before == after, "a claim changes the members"),
        (!opens || new.open_epoch == new.epoch, "an epoch opens that is not claimed"),
        (new.open_epoch >= old.open_epoch, "the open epoch falls"),
        (!changes || new.r#gen.0 == old.r#gen.0 + 1, "the generation does not rise by one"),
        (changes || new.r#gen == old.r#gen, "the generation rises without a reason"),
        (!raised, "a copy that is out has its since raised (m22)"),
        (!newly_out, "a copy that goes out has another since than the new generation (m9)"),
        (
            claims || before == after || after.len() >= usize::from(new.min_in_sync),
            "too few members",
        ),
        (!closes || new.clean && before == after, "closed but not clean"),
        (old.replicas.len() == new.replicas.len(), "a primary adds or forgets copies"),
        (before == after || opens || old.open_epoch == old.epoch, "members change before T4"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, broken)) => Err(format!("illegal change of the record: {broken}")),
        None => Ok(()),
    }
}
