//! Snapshots (D1): the same copy of all blocks on every member, of a moment at which no write is
//! under way.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::{Doing, Kind, Snapshot, TaskDone, TaskError};
use crate::id::{ReplicaId, Seq, SnapshotId, Tick};
use crate::limits;
use crate::message::Request;
use crate::planted::Bug;
use crate::primary::{Phase, Primary, Purpose};

/// A snapshot that is being taken.
#[derive(Clone, Debug, Hash)]
pub(super) struct Taking {
    id: SnapshotId,
    stage: Stage,
}

#[derive(Clone, Debug, Hash)]
enum Stage {
    /// Members do what can be done beside the guest's writes.
    Preparing { left: BTreeSet<ReplicaId> },
    /// New requests wait; what was issued before is being done.
    Holding { barrier: Seq, since: Tick },
    /// Members take it.
    Keeping { takers: BTreeSet<ReplicaId>, left: BTreeSet<ReplicaId>, waits: Waits },
    /// All have it, and requests go on; they make it durable.
    Sealing { snapshot: Snapshot, left: BTreeSet<ReplicaId> },
}

/// Since when the guest's requests wait, and since when none is under way.
#[derive(Clone, Copy, Debug, Hash)]
struct Waits {
    since: Tick,
    drained: Tick,
}

impl Taking {
    pub(super) fn new(id: SnapshotId) -> Self {
        Self { id, stage: Stage::Preparing { left: BTreeSet::new() } }
    }
}

impl Primary {
    fn taking(&mut self) -> Option<&mut Taking> {
        match self.tasks.0.as_mut() {
            Some(Doing { kind: Kind::Snapshot(taking), .. }) => Some(taking),
            _ => None,
        }
    }

    /// Do the guest's requests wait for a snapshot?
    pub(in crate::primary) fn is_held(&self) -> bool {
        let held = match self.tasks.0.as_ref().map(|t| &t.kind) {
            Some(Kind::Snapshot(taking)) => {
                matches!(taking.stage, Stage::Holding { .. } | Stage::Keeping { .. })
            }
            _ => false,
        };
        held && !self.has(Bug::SnapshotUnheld)
    }

    pub(super) fn prepare_snapshot(&mut self) {
        let required = self.required();
        if let Some(rid) = self.absent(&required) {
            return self.end_task(Err(TaskError::Missing(rid)));
        }
        if let Some(old) = required.iter().find(|rid| !self.is_of_today(**rid)) {
            return self.end_task(Err(TaskError::TooOld(*old)));
        }
        let Some(taking) = self.taking() else { return };
        taking.stage = Stage::Preparing { left: required.iter().copied().collect() };
        let id = taking.id;
        for rid in required {
            self.ask(rid, Purpose::Prepare(id), Request::Prepare);
        }
    }

    pub(in crate::primary) fn on_prepared(&mut self, rid: ReplicaId, id: SnapshotId) {
        if let Some(Taking { stage: Stage::Preparing { left }, .. }) =
            self.taking().filter(|taking| taking.id == id)
        {
            left.remove(&rid);
        }
    }

    pub(super) fn drive_snapshot(&mut self, late: bool) {
        let Some(taking) = self.taking() else { return };
        let (id, stage) = (taking.id, taking.stage.clone());
        if self.phase != Phase::Active {
            return self.abort_snapshot(TaskError::Interrupted);
        }
        match stage {
            Stage::Preparing { left } if left.is_empty() => self.hold(),
            Stage::Sealing { snapshot, left } if left.is_empty() => self.end_snapshot(snapshot),
            Stage::Preparing { left } | Stage::Sealing { left, .. } => {
                let slow = left.first().copied().filter(|_| late);
                let gone = left.into_iter().find(|rid| !self.is_serving(*rid));
                if let Some(rid) = gone.or(slow) {
                    self.abort_snapshot(TaskError::Missing(rid));
                }
            }
            Stage::Holding { .. } | Stage::Keeping { .. } if late => {
                self.abort_snapshot(TaskError::TooSlow);
            }
            Stage::Holding { barrier, since } => {
                if self.is_done_before(barrier) {
                    self.keep(id, Waits { since, drained: self.now });
                }
            }
            Stage::Keeping { takers, left, waits } => {
                let required: BTreeSet<ReplicaId> = self.required().into_iter().collect();
                let hasty = self.has(Bug::SnapshotOfSome) && left.len() < takers.len();
                if takers != required || left.iter().any(|rid| !self.is_serving(*rid)) {
                    self.abort_snapshot(TaskError::Interrupted);
                } else if left.is_empty() || hasty {
                    self.seal(id, &takers, waits);
                }
            }
        }
    }

    fn hold(&mut self) {
        let (barrier, since) = (self.next_seq, self.now);
        if let Some(taking) = self.taking() {
            taking.stage = Stage::Holding { barrier, since };
        }
        if let Some(doing) = self.tasks.0.as_mut() {
            doing.due = since.plus_ms(limits::SNAPSHOT_PAUSE_MS);
        }
        // With nothing in flight it can be taken at once.
        self.drive_snapshot(false);
    }

    /// Has every required replica done all that was issued before, and is nothing else about to
    /// change who is required?
    fn is_done_before(&self, barrier: Seq) -> bool {
        let required = self.required();
        let done = required.iter().all(|rid| self.ops.has_acked_before(*rid, barrier));
        let ready = self.cas.is_free() && self.absent(&required).is_none();
        ready && done
    }

    fn keep(&mut self, id: SnapshotId, waits: Waits) {
        let takers: BTreeSet<ReplicaId> = self.required().into_iter().collect();
        if let Some(taking) = self.taking() {
            taking.stage = Stage::Keeping { left: takers.clone(), takers: takers.clone(), waits };
        }
        for rid in takers {
            self.ask(rid, Purpose::Snapshot(id), Request::Snapshot { id });
        }
    }

    pub(in crate::primary) fn on_kept(&mut self, rid: ReplicaId, id: SnapshotId) {
        if let Some(Taking { stage: Stage::Keeping { left, .. }, .. }) =
            self.taking().filter(|taking| taking.id == id)
        {
            left.remove(&rid);
        }
    }

    /// All have the same now. Whoever loses its copy before it is durable refuses, or is gone.
    fn seal(&mut self, id: SnapshotId, takers: &BTreeSet<ReplicaId>, waits: Waits) {
        let Some(record) = self.cas.record() else { return };
        let snapshot = Snapshot {
            id,
            blocks: record.blocks,
            r#gen: record.r#gen,
            replicas: takers.iter().copied().collect(),
            pause_us: self.now.0 - waits.since.0,
            drain_us: waits.drained.0 - waits.since.0,
        };
        if self.has(Bug::SnapshotUnsealed) {
            return self.end_snapshot(snapshot);
        }
        let left = takers.clone();
        if let Some(taking) = self.taking() {
            taking.stage = Stage::Sealing { snapshot, left };
        }
        if let Some(doing) = self.tasks.0.as_mut() {
            doing.due = self.now.plus_ms(limits::TASK_MS);
        }
        for rid in takers {
            self.ask(*rid, Purpose::Seal(id), Request::Seal { id });
        }
    }

    pub(in crate::primary) fn on_sealed(&mut self, rid: ReplicaId, id: SnapshotId) {
        if let Some(Taking { stage: Stage::Sealing { left, .. }, .. }) =
            self.taking().filter(|taking| taking.id == id)
        {
            left.remove(&rid);
        }
    }

    fn end_snapshot(&mut self, snapshot: Snapshot) {
        self.counters.snapshots += 1;
        self.end_task(Ok(TaskDone::Snapshot(snapshot)));
    }

    /// A replica can't take this one.
    pub(super) fn on_no_snapshot(&mut self, id: SnapshotId, error: TaskError) {
        if self.taking().is_some_and(|taking| taking.id == id) {
            self.abort_snapshot(error);
        }
    }

    /// Whoever may have it is told to drop it; who can't be told drops it when it finds that
    /// nobody knows of it.
    pub(super) fn abort_snapshot(&mut self, error: TaskError) {
        let Some(taking) = self.taking() else { return };
        let id = taking.id;
        let takers: Vec<ReplicaId> = match &taking.stage {
            Stage::Keeping { takers, .. } => takers.iter().copied().collect(),
            Stage::Sealing { snapshot, .. } => snapshot.replicas.clone(),
            Stage::Preparing { .. } | Stage::Holding { .. } => Vec::new(),
        };
        for rid in takers {
            self.ask(rid, Purpose::DropSnapshot, Request::DropSnapshot { id });
        }
        self.end_task(Err(error));
    }
}
