//! What somebody asked of the volume as a whole: another size (T10), a snapshot (D1). One at a
//! time, and each is answered once.

mod resize;
mod snapshot;

use super::{Effect, Phase, Primary, Purpose};
use crate::id::{Gen, ReplicaId, RequestId, SnapshotId, Tick};
use crate::limits;
use crate::message::{Refusal, Request};
use resize::Resize;
use snapshot::Taking;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// At least this many blocks, on every member (T10).
    Resize {
        /// Size of the volume.
        blocks: u64,
    },
    /// The same copy of all blocks on every member, under an id that was never used (D1).
    Snapshot {
        /// Its id.
        id: SnapshotId,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TaskDone {
    /// The volume has this many blocks: those asked for, or more.
    Resized {
        /// Size of the volume.
        blocks: u64,
    },
    /// A snapshot was taken.
    Snapshot(Snapshot),
}

/// A snapshot that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Size in blocks.
    pub blocks: u64,
    /// No block in it has a higher stamp.
    pub r#gen: Gen,
    /// Who has it.
    pub replicas: alloc::vec::Vec<ReplicaId>,
    /// For how long writes waited, microseconds.
    pub pause_us: u64,
    /// How much of that was for what was under way before.
    pub drain_us: u64,
}

/// Why something was not done. Nothing is left of it, but for copies of a snapshot on members that
/// could not be told to drop them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskError {
    /// The volume is not being served, or not any more.
    NotServed,
    /// Another task is under way.
    Busy,
    /// A volume does not get smaller, nor larger than a volume may be.
    BadSize,
    /// This copy's pool has no room for it.
    NoRoom(ReplicaId),
    /// The file system of this copy's pool can't share blocks between files.
    NoReflink(ReplicaId),
    /// The node of this copy runs a version that does not know of it.
    TooOld(ReplicaId),
    /// This copy did not do it, or not in time.
    Missing(ReplicaId),
    /// The members changed meanwhile.
    Interrupted,
    /// Writes would have waited for too long.
    TooSlow,
}

/// The task under way.
#[derive(Clone, Debug, Hash)]
pub(super) struct Doing {
    request: RequestId,
    due: Tick,
    kind: Kind,
}

#[derive(Clone, Debug, Hash)]
enum Kind {
    Resize(Resize),
    Snapshot(Taking),
}

/// The task under way, if there is one.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Tasks(Option<Doing>);

impl Primary {
    pub(super) fn on_task(&mut self, request: RequestId, task: Task) {
        let serves = matches!(self.phase, Phase::Active | Phase::Suspended);
        let refused = match self.tasks.0 {
            _ if !serves => Some(TaskError::NotServed),
            Some(_) => Some(TaskError::Busy),
            None => None,
        };
        if let Some(error) = refused {
            return self.out.push(Effect::Task { request, result: Err(error) });
        }
        let (kind, most_ms) = match task {
            Task::Resize { blocks } => (Kind::Resize(Resize { blocks }), limits::TASK_MS),
            Task::Snapshot { id } => (Kind::Snapshot(Taking::new(id)), limits::SNAPSHOT_PREPARE_MS),
        };
        self.tasks.0 = Some(Doing { request, due: self.now.plus_ms(most_ms), kind });
        if let Task::Snapshot { .. } = task {
            self.prepare_snapshot();
        }
    }

    /// When the task under way is given up.
    pub(super) fn task_due(&self) -> Option<Tick> {
        let doing = self.tasks.0.as_ref()?;
        // Nobody can say now that it was not done.
        let undecided = matches!(doing.kind, Kind::Resize(_)) && self.is_expanding();
        (!undecided).then_some(doing.due)
    }

    pub(super) fn drive_tasks(&mut self) {
        let late = self.task_due().is_some_and(|at| at <= self.now);
        match self.tasks.0.as_ref().map(|doing| &doing.kind) {
            Some(Kind::Resize(_)) => self.drive_resize(late),
            Some(Kind::Snapshot(_)) => self.drive_snapshot(late),
            None => {}
        }
    }

    fn end_task(&mut self, result: Result<TaskDone, TaskError>) {
        if let Some(Doing { request, .. }) = self.tasks.0.take() {
            self.out.push(Effect::Task { request, result });
        }
    }

    /// It will be served no more, or not for long enough.
    pub(super) fn drop_tasks(&mut self) {
        self.abort_snapshot(TaskError::NotServed);
        self.end_task(Err(TaskError::NotServed));
    }

    /// The first of these that has no session, if any.
    fn absent(&self, of: &[ReplicaId]) -> Option<ReplicaId> {
        of.iter().copied().find(|rid| !self.is_serving(*rid))
    }

    /// Is it one that can be extended and asked for snapshots?
    fn is_of_today(&self, rid: ReplicaId) -> bool {
        self.size_of(rid).is_some()
    }

    /// A favour asked of a replica, which takes as long as it takes: nobody waits for it but who
    /// asked for the task.
    pub(super) fn ask(&mut self, rid: ReplicaId, purpose: Purpose, request: Request) {
        // One that came back in an older version does not know of it.
        if !self.is_serving(rid) || !self.is_of_today(rid) {
            return;
        }
        let seq = self.take_seq();
        self.calls.insert(seq, super::Call { rid, purpose, mutates: false });
        self.send(rid, seq, request, false);
    }

    /// A replica will not do a favour. `false` if it is its end as well.
    pub(super) fn on_favour_refused(
        &mut self,
        rid: ReplicaId,
        purpose: &Purpose,
        why: Refusal,
    ) -> bool {
        let error = match why {
            Refusal::NoRoom => TaskError::NoRoom(rid),
            Refusal::NoReflink => TaskError::NoReflink(rid),
            _ => TaskError::Missing(rid),
        };
        match purpose {
            Purpose::Extend(_) => self.on_not_extended(rid, error),
            Purpose::Prepare(id) | Purpose::Snapshot(id) | Purpose::Seal(id) => {
                self.on_no_snapshot(*id, error);
            }
            Purpose::DropSnapshot => {}
            _ => return false,
        }
        !matches!(why, Refusal::NoSession | Refusal::Faulted | Refusal::NoSuchReplica)
    }
}
