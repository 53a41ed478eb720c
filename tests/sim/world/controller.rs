//! What a controller does to a volume's copies besides adding and forgetting some: other numbers
//! of them are wanted, a healthy one is to leave, one that left is forgotten.

use lockstep_core::cluster::trim::Wanted;
use lockstep_core::id::ReplicaId;
use lockstep_core::primary::{Event as PrimaryEvent, Phase};
use lockstep_core::record::{Record, ReplicaState};

use super::World;
use crate::content::Value;

impl World {
    /// Other numbers of copies are wanted of a live volume.
    pub(crate) fn want_copies(&mut self) -> bool {
        let record = self.meta.record().clone();
        if self.cluster.keeping.is_some() {
            let most = u64::try_from(self.nodes.len()).unwrap_or(1).min(5);
            let repl = self.rng.between(1, most);
            let min = self.rng.between(1, repl.min(3));
            return self.want(repl, min);
        }
        let members = u64::try_from(record.in_sync().count()).unwrap_or(1);
        let copies = u64::try_from(record.replicas.len()).unwrap_or(1).min(5);
        let min = self.rng.between(1, members.min(copies));
        let repl = self.rng.between(min.max(copies.saturating_sub(1)), copies);
        self.want(repl, min)
    }

    fn want(&mut self, repl: u64, min: u64) -> bool {
        let (Ok(repl), Ok(min)) = (u8::try_from(repl), u8::try_from(min)) else { return false };
        if self.cluster.keeping.is_some() {
            // The controllers put it in force as soon as it can be.
            let wanted = Wanted { repl, min_in_sync: min };
            let changes = self.cluster.wanted != wanted;
            self.cluster.wanted = wanted;
            self.cluster.stir();
            return changes;
        }
        let record = self.meta.record().clone();
        // A member without files counts for nobody who looks.
        if self.in_sync_now(&record).len() < record.in_sync().count() {
            return false;
        }
        let txn = self.uuid();
        let Ok(next) = record.want(repl, min, txn) else { return false };
        let changes = (record.repl, record.min_in_sync) != (repl, min);
        if changes {
            self.controller_writes(next);
        }
        changes
    }

    /// A healthy member is to leave; if need be, one copy fewer is wanted first.
    pub(crate) fn remove_member(&mut self) -> bool {
        let record = self.meta.record().clone();
        let members: Vec<ReplicaId> = record.in_sync().map(|r| r.rid).collect();
        let active = |node: &crate::node::Node| {
            let seat = node.seat.as_ref()?;
            (!seat.closing && seat.phase == Phase::Active).then_some(seat.id)
        };
        let seat = self.nodes.iter().enumerate().find_map(|(n, node)| Some((n, active(node)?)));
        let (Some((node, seat)), Some(rid)) = (seat, self.rng.pick(&members)) else { return false };
        if members.len() <= usize::from(record.repl) {
            let repl = u64::try_from(members.len() - 1).unwrap_or(1);
            let min = u64::from(record.min_in_sync).min(repl);
            if repl == 0 || !self.want(repl, min) {
                return false;
            }
        }
        self.tell_primary(node, seat, PrimaryEvent::Release(rid));
        // The news of fewer copies wanted may come later than this; then it is asked for again.
        let late = self.rng.latency(20 * super::MS);
        let event = Box::new(PrimaryEvent::Release(rid));
        self.schedule.after(late, super::Event::Primary { node, seat, event });
        true
    }

    /// Copies that left in good order are forgotten.
    pub(crate) fn forget_leaving(&mut self) {
        if self.keeping().is_some() {
            return;
        }
        let leaving = |r: &&lockstep_core::record::ReplicaEntry| r.state == ReplicaState::Leaving;
        while let Some(entry) = self.meta.record().replicas.iter().find(leaving).cloned() {
            self.forget_entry(&entry);
        }
    }

    /// A member that leaves although it is healthy takes nothing with it: what was acknowledged is
    /// durable on every member that stays.
    pub(crate) fn check_released(&mut self, old: &Record, new: &Record) {
        let left = |r: &&lockstep_core::record::ReplicaEntry| {
            r.state == ReplicaState::Leaving && old.is_in_sync(r.rid)
        };
        if !new.replicas.iter().any(|r| left(&r)) {
            return;
        }
        self.outcome.coverage.releases += 1;
        let mut found = Ok(());
        for (node, copy) in self.in_sync_now(new) {
            for block in self.oracle.blocks() {
                let durable = self.durable(copy, block);
                if durable != Value::GAP && !self.oracle.is_readable(block, durable) {
                    let name = &self.nodes[node].name;
                    found = Err(format!(
                        "a member leaves, but of block {block} {name} has only {durable:?} durable"
                    ));
                }
            }
        }
        self.judge("release", found);
    }
}
