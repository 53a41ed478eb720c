//! Other numbers of copies for a volume that lives.

use lockstep_core::cluster::trim::{Wanted, settle};
use lockstep_core::record::Record;
use lockstep_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use super::catalog::{Limits, Stage, VolumeObject};
use super::peers::{DO_LIMIT, at, pass_on, within};
use super::survey::Survey;
use super::{Admin, names, refuse};

/// Attempts against others who change the same volume.
const ATTEMPTS: usize = 10;

impl Admin {
    /// Wants other numbers of copies of a volume. Returns what is not in force yet, in words.
    pub(super) async fn set_volume(
        &self,
        request: v1::SetVolumeRequest,
        passed_on: bool,
    ) -> Result<String, Status> {
        let name = names::volume_name(&request.name)?.to_owned();
        let volume = self.want_copies(&name, &request).await?;
        let wanted = Wanted { repl: volume.repl, min_in_sync: volume.min_in_sync };
        self.limit_here(&volume);
        if !passed_on && let Some(pending) = self.set_there(&volume, &request).await? {
            return Ok(pending);
        }
        let left = self.settle(&volume, wanted, None).await?;
        tracing::info!(volume = name, ?wanted, "other numbers of copies are wanted");
        Ok(left)
    }

    /// Puts the limits of a volume in force, if it is attached here.
    pub(super) fn limit_here(&self, volume: &VolumeObject) {
        if let Some(handle) = self.inner.engine.attached(volume.uid) {
            handle.set_limits(volume.limits.into());
        }
    }

    /// Writes down what the owner wants.
    async fn want_copies(
        &self,
        name: &str,
        request: &v1::SetVolumeRequest,
    ) -> Result<VolumeObject, Status> {
        for _ in 0..ATTEMPTS {
            let found = self.inner.catalog.volume(name).await?;
            let found = found.ok_or_else(|| refuse::no_volume(name))?;
            let volume = found.value;
            if volume.stage != Stage::Ready {
                let why = format!("volume {name} is being made or deleted; wait until it is done");
                return Err(Status::failed_precondition(why));
            }
            let wanted = names::copies(request, volume.repl, volume.min_in_sync)?;
            let (repl, min_in_sync) = wanted;
            let limits = Limits {
                iops: request.max_iops.unwrap_or(volume.limits.iops),
                bytes_per_s: request.max_bytes_per_s.unwrap_or(volume.limits.bytes_per_s),
            };
            if wanted == (volume.repl, volume.min_in_sync) && limits == volume.limits {
                return Ok(volume);
            }
            let next = volume.wanting(repl, min_in_sync, limits);
            match self.inner.catalog.put_volume(Some(found.revision), &next).await {
                Ok(()) => return Ok(next),
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::aborted(format!("others keep changing volume {name}; try again")))
    }

    /// Lets the node that has the volume attached do it, so that its primary knows at once.
    /// `None` if no other node has it, or that one cannot be reached.
    async fn set_there(
        &self,
        volume: &VolumeObject,
        request: &v1::SetVolumeRequest,
    ) -> Result<Option<String>, Status> {
        let Some(record) = self.inner.catalog.record(volume.uid).await? else { return Ok(None) };
        let Some(primary) = record.value.primary.filter(|p| p.node != self.inner.node) else {
            return Ok(None);
        };
        let Some(node) = self.inner.catalog.node(&primary.node).await? else { return Ok(None) };
        let answer = within(DO_LIMIT, async {
            let mut client = self.inner.peers.client(&node)?;
            Ok(client.set_volume(pass_on(request.clone(), DO_LIMIT)).await?.into_inner())
        });
        match answer.await {
            Ok(answer) => Ok(Some(answer.pending)),
            Err(status) if status.code() == Code::Unavailable => Ok(None),
            Err(status) => Err(at(&primary.node, &status)),
        }
    }

    /// Puts in force what can be by now. `at_hand` is the number of in-sync copies that can be
    /// reached; if it is not known, the nodes are asked. Returns what is left to do, in words.
    pub(super) async fn settle(
        &self,
        volume: &VolumeObject,
        wanted: Wanted,
        at_hand: Option<usize>,
    ) -> Result<String, Status> {
        for _ in 0..ATTEMPTS {
            let Some(stored) = self.inner.catalog.record(volume.uid).await? else {
                let why = format!("volume {} has no record", volume.name);
                return Err(Status::failed_precondition(why));
            };
            let record = stored.value;
            let at_hand = match at_hand {
                Some(number) => number,
                None => self.count_at_hand(&record).await?,
            };
            let Some(next) = settle(&record, wanted, at_hand) else {
                return Ok(pending(volume, &record, wanted, at_hand));
            };
            let changed = record.want(next.repl, next.min_in_sync, Uuid::new_v4());
            let changed = changed.map_err(|e| refuse::record(&e))?;
            match self.inner.catalog.put_record(Some(stored.revision), &changed).await {
                Ok(()) => {
                    self.inner.engine.record_changed(volume.uid);
                    tracing::info!(volume = volume.name, ?next, "copies wanted from now on");
                }
                // Changed by others, or undecided: the next look tells.
                Err(status) if status.code() == Code::Aborted => {}
                Err(status) => return Err(status),
            }
        }
        Err(Status::aborted(format!("others keep changing volume {}; try again", volume.name)))
    }

    async fn count_at_hand(&self, record: &Record) -> Result<usize, Status> {
        let nodes = record.in_sync().map(|r| r.node.clone()).collect();
        let survey: Survey = self.survey_some(&nodes).await?;
        let live = |node: &str| survey.get(node).is_some_and(|status| status.live);
        Ok(record.in_sync().filter(|r| live(r.node.as_str())).count())
    }
}

/// What is not as wanted yet, and what it takes.
fn pending(volume: &VolumeObject, record: &Record, wanted: Wanted, at_hand: usize) -> String {
    let mut parts = Vec::new();
    let copies = record.replicas.len();
    let repl = usize::from(wanted.repl);
    let attached = record.primary.is_some();
    if copies < repl {
        parts.push(format!("it has {copies} of {repl} copies; the others are built"));
    } else if copies > repl {
        parts.push(format!("it has {copies} copies, {repl} are wanted; the others are removed"));
    }
    if wanted.min_in_sync > record.min_in_sync {
        parts.push(format!(
            "each write has at least {} once so many are in sync and reached ({at_hand} are)",
            wanted.min_in_sync
        ));
    }
    if !parts.is_empty() && !attached {
        let name = &volume.name;
        parts.push(format!("this is done while it is attached: lockstep attach {name}"));
    }
    parts.join("; ")
}
