//! What is asked of a volume's primary, wherever that is. A volume that is not attached is attached
//! for the moment.

use std::time::{Duration, Instant};

use lockstep_core::id::NodeId;
use lockstep_core::limits::SESSION_DEAD_MS;
use lockstep_core::primary::{Phase, Task, TaskDone, TaskError};
use lockstep_core::record::Record;
use tonic::Status;

use super::Admin;
use super::attach::is_over;
use super::catalog::VolumeObject;
use super::liveness::{LOOK_LIMIT, waits};
use super::peers::ASK_LIMIT;
use crate::engine::VolumeHandle;

/// How long an attachment for the moment is waited for.
const ATTACH_WAIT: Duration = Duration::from_secs(15);
/// How long a volume that is just being recovered is waited for.
const SERVED_WAIT: Duration = Duration::from_secs(10);

/// How long a node must be silent before nothing there is waited for, and the pause between two
/// questions.
const SILENT_LONG: Duration = Duration::from_millis(SESSION_DEAD_MS);
const SILENCE_PAUSE: Duration = Duration::from_millis(100);

/// Where a volume's primary is.
pub(super) enum Seat {
    /// Here.
    Here(VolumeHandle),
    /// On another node.
    There(NodeId),
    /// Nowhere.
    Nowhere,
}

impl Admin {
    /// Where the volume's primary is, by its record.
    pub(super) async fn seat(&self, volume: &VolumeObject) -> Result<Seat, Status> {
        let here = self.inner.engine.attached(volume.uid);
        if let Some(handle) = here.filter(|h| !is_over(*h.phase().borrow())) {
            return Ok(Seat::Here(handle));
        }
        let record = self.record_of(volume).await?;
        let primary = record.primary.map(|primary| primary.node);
        Ok(match primary.filter(|node| *node != self.inner.node) {
            Some(node) => Seat::There(node),
            None => Seat::Nowhere,
        })
    }

    pub(super) async fn record_of(&self, volume: &VolumeObject) -> Result<Record, Status> {
        let stored = self.inner.catalog.record(volume.uid).await?;
        stored.map(|stored| stored.value).ok_or_else(|| {
            let why = format!("volume {} has no record; restore the record store", volume.name);
            Status::failed_precondition(why)
        })
    }

    /// Has the primary here do something; one that is not there yet is attached for as long as that
    /// takes.
    pub(super) async fn task_here(
        &self,
        volume: &VolumeObject,
        seat: Seat,
        task: Task,
    ) -> Result<TaskDone, Status> {
        if let Seat::Here(handle) = seat {
            return self.task_of(volume, &handle, task).await;
        }
        let handle = self.attach_for_moment(volume, ATTACH_WAIT).await?;
        let done = self.task_of(volume, &handle, task).await;
        self.let_go(volume, &handle).await;
        done
    }

    /// Leaves a volume alone whose device waits on another node while the daemon there is being
    /// replaced: that would have to end it if this node had the volume in between. By its record
    /// such a volume was closed in good order, and nobody has it.
    pub(super) async fn leave_to_last_node(&self, volume: &VolumeObject) -> Result<(), Status> {
        let record = self.record_of(volume).await?;
        let last = record.attach.as_ref().map(|attach| &attach.node);
        let Some(last) = last.filter(|node| record.clean && **node != self.inner.node) else {
            return Ok(());
        };
        let Some(object) = self.inner.catalog.node(last).await? else { return Ok(()) };
        let (uid, begin) = (volume.uid.to_string(), Instant::now());
        loop {
            let asked = self.ask_briefly(&object, LOOK_LIMIT).await;
            if asked.refused {
                return Err(Status::unavailable(format!(
                    "volume {} was last attached on node {last}, whose daemon is being replaced: \
                     its device may wait there; try again when it is back, or attach and detach \
                     the volume elsewhere first",
                    volume.name
                )));
            }
            if asked.live {
                let told = self.ask_one(&object, ASK_LIMIT).await.info;
                return match told {
                    Some(info) if !waits(&info, &uid) => Ok(()),
                    _ => Err(Status::unavailable(format!(
                        "node {last} is about to serve volume {} again; try again",
                        volume.name
                    ))),
                };
            }
            if begin.elapsed() >= SILENT_LONG {
                return Ok(());
            }
            tokio::time::sleep(SILENCE_PAUSE).await;
        }
    }

    async fn task_of(
        &self,
        volume: &VolumeObject,
        handle: &VolumeHandle,
        task: Task,
    ) -> Result<TaskDone, Status> {
        let mut phase = handle.phase();
        let settled = |p: &Phase| !matches!(p, Phase::Claiming | Phase::Recovering);
        // If it takes longer, the primary says that it does not serve.
        let _ = tokio::time::timeout(SERVED_WAIT, phase.wait_for(settled)).await;
        match handle.task(task).await {
            Some(Ok(done)) => Ok(done),
            Some(Err(error)) => {
                let record = self.record_of(volume).await?;
                Err(told(&volume.name, &record, error))
            }
            None => Err(Status::aborted("it was detached at the same time; try again")),
        }
    }
}

/// Why a task was not done, in words.
pub(super) fn told(name: &str, record: &Record, error: TaskError) -> Status {
    let place = |rid| {
        let entry = record.replica(rid);
        let node = entry.map_or_else(|| format!("of replica {rid}"), |r| r.node.to_string());
        (node, entry.map_or_else(String::new, |r| r.pool.clone()))
    };
    match error {
        TaskError::NotServed => Status::unavailable(format!(
            "volume {name} is not served just now; look at `lockstep volume show {name}` and try \
             again"
        )),
        TaskError::Busy => Status::aborted(format!(
            "volume {name} is being snapshotted or resized already; try again"
        )),
        TaskError::BadSize => Status::failed_precondition(format!(
            "volume {name} is larger already; a volume does not shrink"
        )),
        TaskError::NoRoom(rid) => {
            let (node, pool) = place(rid);
            Status::resource_exhausted(format!(
                "pool {pool} of node {node} has no room for it; free some there, let the pool \
                 promise more (overcommit=PERCENT of --pool), or move that copy of volume {name}"
            ))
        }
        TaskError::NoReflink(rid) => {
            let (node, pool) = place(rid);
            Status::failed_precondition(format!(
                "pool {pool} of node {node} is on a file system that cannot share blocks between \
                 files (reflink): snapshots need XFS or btrfs; make a pool on one of these and \
                 move that copy of volume {name}"
            ))
        }
        TaskError::TooOld(rid) => Status::failed_precondition(format!(
            "node {} runs an older version that cannot do this; upgrade it",
            place(rid).0
        )),
        // It comes back, or is let go: nobody but time has to do anything.
        TaskError::Missing(rid) => Status::unavailable(format!(
            "the copy of volume {name} on node {} does not answer, or failed to do it; bring it \
             back, or wait until it is replaced, and try again",
            place(rid).0
        )),
        TaskError::Interrupted => Status::aborted(format!(
            "the copies of volume {name} changed at the same time; try again"
        )),
        TaskError::TooSlow => Status::aborted(format!(
            "writes to volume {name} would have waited for more than {} ms; try again",
            lockstep_core::limits::SNAPSHOT_PAUSE_MS
        )),
    }
}
