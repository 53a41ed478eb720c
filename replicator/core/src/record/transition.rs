//! The record's transitions T1 to T10 (T11: [`super::force`]), each a function from the record in
//! force to the next. Every one takes a fresh `txn` and leaves the rest to the caller's
//! compare-and-swap.

use alloc::string::String;
use alloc::vec::Vec;
use uuid::Uuid;

use super::{Attach, PrimaryRef, RECORD_VERSION, Record, RecordError, ReplicaEntry, ReplicaState};
use crate::id::{Epoch, Gen, Lineage, NodeId, ReplicaId, VolumeId};

/// What a new volume is made of (T1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its id.
    pub uid: VolumeId,
    /// Its history.
    pub lineage: Lineage,
    /// Size in blocks.
    pub blocks: u64,
    /// Copies wanted.
    pub repl: u8,
    /// Fewest copies that an acknowledged write may have.
    pub min_in_sync: u8,
    /// The copies: created empty, superblocks durable.
    pub replicas: Vec<(ReplicaId, NodeId, String)>,
}

impl Record {
    /// T1: a new volume; all copies are in sync since all are empty.
    ///
    /// # Errors
    /// If the volume would break an invariant of records.
    pub fn create(new: NewVolume, txn: Uuid) -> Result<Self, RecordError> {
        let entry =
            |(rid, node, pool)| ReplicaEntry { rid, node, pool, state: ReplicaState::InSync };
        let record = Self {
            version: RECORD_VERSION,
            uid: new.uid,
            lineage: new.lineage,
            blocks: new.blocks,
            repl: new.repl,
            min_in_sync: new.min_in_sync,
            epoch: Epoch(0),
            r#gen: Gen(1),
            open_epoch: Epoch(0),
            attach: None,
            primary: None,
            clean: true,
            replicas: new.replicas.into_iter().map(entry).collect(),
            put_back: Epoch(0),
            forced: None,
            snapshots: Vec::new(),
            txn,
        };
        record.validate()?;
        Ok(record)
    }

    /// T1 for a volume that begins with a snapshot in which no block has a higher stamp than
    /// `stamp`: its generations go on from there, so that what it began with is older than all
    /// that a copy may miss.
    #[must_use]
    pub fn begun_after(self, stamp: Gen) -> Self {
        Self { r#gen: self.r#gen.max(stamp.next()), ..self }
    }

    /// T2 and T3 in one: `primary` claims the volume for its node. Whether it may is decided
    /// before (never over a live primary); that it is safe follows from the epoch alone.
    #[must_use]
    pub fn claim(&self, primary: PrimaryRef, txn: Uuid) -> Self {
        let (last, epoch) = (self.attach.as_ref(), self.epoch.next());
        let seq = last.map_or(0, |a| a.seq) + 1;
        let again = last.filter(|a| a.node == primary.node);
        let since = again.map_or(epoch, |a| a.since);
        Self {
            version: RECORD_VERSION,
            epoch,
            r#gen: self.r#gen.next(),
            attach: Some(Attach { node: primary.node.clone(), seq, since }),
            primary: Some(primary),
            clean: false,
            txn,
            ..self.clone()
        }
    }

    /// T4: the primary opens with exactly `members` in sync; every other former member is out
    /// from this generation on (m9, m22).
    #[must_use]
    pub fn open(&self, members: &[ReplicaId], txn: Uuid) -> Self {
        let r#gen = self.r#gen.next();
        let mut next = Self { r#gen, open_epoch: self.epoch, txn, ..self.clone() };
        for replica in &mut next.replicas {
            if members.contains(&replica.rid) {
                replica.state = ReplicaState::InSync;
            } else if replica.state == ReplicaState::InSync {
                replica.state = ReplicaState::Out { since: r#gen, promised: self.open_epoch };
            }
        }
        next
    }

    /// T5: `rid` failed. `None` if fewer than `min_in_sync` members would be left: then the
    /// member stays listed, and the volume is suspended.
    #[must_use]
    pub fn remove(&self, rid: ReplicaId, txn: Uuid) -> Option<Self> {
        let left = self.in_sync().filter(|r| r.rid != rid).count();
        if !self.is_in_sync(rid) || left < usize::from(self.min_in_sync.max(1)) {
            return None;
        }
        let r#gen = self.r#gen.next();
        let mut next = Self { r#gen, txn, ..self.clone() };
        next.set_state(rid, ReplicaState::Out { since: r#gen, promised: self.open_epoch });
        Some(next)
    }

    /// T5 for a member that is healthy: it leaves for good, to be forgotten (T9). `None` if fewer
    /// than `min_in_sync` members would be left.
    #[must_use]
    pub fn release(&self, rid: ReplicaId, txn: Uuid) -> Option<Self> {
        let mut next = self.remove(rid, txn)?;
        next.set_state(rid, ReplicaState::Leaving);
        Some(next)
    }

    /// Other numbers of copies are wanted. The generation stays: the members are the same.
    ///
    /// # Errors
    /// If a number is out of range, or fewer members are in sync than would be needed.
    pub fn want(&self, repl: u8, min_in_sync: u8, txn: Uuid) -> Result<Self, RecordError> {
        let next = Self { repl, min_in_sync, txn, ..self.clone() };
        next.validate()?;
        Ok(next)
    }

    /// T6: `rid` caught up and is already required for acknowledgements.
    #[must_use]
    pub fn add(&self, rid: ReplicaId, txn: Uuid) -> Self {
        let mut next = Self { r#gen: self.r#gen.next(), txn, ..self.clone() };
        next.set_state(rid, ReplicaState::InSync);
        next
    }

    /// T7: `joins` caught up and replaces the failed `leaves` in one step.
    #[must_use]
    pub fn swap(&self, leaves: ReplicaId, joins: ReplicaId, txn: Uuid) -> Self {
        let r#gen = self.r#gen.next();
        let mut next = Self { r#gen, txn, ..self.clone() };
        next.set_state(leaves, ReplicaState::Out { since: r#gen, promised: self.open_epoch });
        next.set_state(joins, ReplicaState::InSync);
        next
    }

    /// T8: the primary leaves in good order.
    #[must_use]
    pub fn close(&self, txn: Uuid) -> Self {
        Self { primary: None, attach: self.attach.clone(), clean: true, txn, ..self.clone() }
    }

    /// T10: every copy in sync has `blocks` blocks, durably. The generation rises, so that a
    /// record store that was put back to the old size is found out.
    #[must_use]
    pub fn expand(&self, blocks: u64, txn: Uuid) -> Self {
        Self { blocks: blocks.max(self.blocks), r#gen: self.r#gen.next(), txn, ..self.clone() }
    }

    /// T9, first half: a new empty copy is to be filled.
    ///
    /// # Errors
    /// If the record would break an invariant, such as two copies on one node.
    pub fn add_new(
        &self,
        rid: ReplicaId,
        node: NodeId,
        pool: String,
        txn: Uuid,
    ) -> Result<Self, RecordError> {
        let mut next = Self { txn, ..self.clone() };
        next.replicas.push(ReplicaEntry { rid, node, pool, state: ReplicaState::New });
        next.validate()?;
        Ok(next)
    }

    /// T9, second half: a copy that is not in sync is forgotten.
    ///
    /// # Errors
    /// If it is in sync or unknown.
    pub fn forget(&self, rid: ReplicaId, txn: Uuid) -> Result<Self, RecordError> {
        match self.replica(rid).map(|r| r.state) {
            None => Err(RecordError::Invalid("no such replica")),
            Some(ReplicaState::InSync) => Err(RecordError::Invalid("the replica is in sync")),
            Some(ReplicaState::New | ReplicaState::Out { .. } | ReplicaState::Leaving) => {
                let mut next = Self { txn, ..self.clone() };
                next.replicas.retain(|r| r.rid != rid);
                Ok(next)
            }
        }
    }

    /// The record store was put back: `epoch` was in force before.
    #[must_use]
    pub fn mark_put_back(&self, epoch: Epoch, txn: Uuid) -> Self {
        let put_back = self.put_back.max(epoch);
        Self { version: RECORD_VERSION, put_back, txn, ..self.clone() }
    }

    fn set_state(&mut self, rid: ReplicaId, state: ReplicaState) {
        for replica in self.replicas.iter_mut().filter(|r| r.rid == rid) {
            replica.state = state;
        }
    }
}
