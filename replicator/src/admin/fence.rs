//! Fencing: a node that seems lost gets no more write of a volume acknowledged.
//!
//! Somewhere else an in-sync copy promises a newer epoch: that is all that is needed, and what
//! callers wait for. The primary that asked for the promise goes on with the recovery, and keeps
//! the volume for a moment as a spare: whichever node wants it next takes it without waiting.

use std::time::{Duration, Instant};

use lockstep_core::id::NodeId;
use lockstep_core::limits::SESSION_DEAD_MS;
use lockstep_core::primary::{Phase, Status as Primary};
use lockstep_core::record::Record;
use lockstep_proto::v1;
use tonic::{Code, Status};

use super::attach::{OwnWord, Standing, is_over};
use super::catalog::VolumeObject;
use super::liveness::LOOK_LIMIT;
use super::peers::{ASK_LIMIT, at, pass_on, within};
use super::{Admin, names};
use crate::engine::VolumeHandle;

/// How long a primary's silence is waited for if the caller does not say, and at most: little
/// longer than after which it counts as dead.
const DEFAULT_WAIT: Duration = Duration::from_millis(3000);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long a copy may take to promise, the claim included.
const PROMISE_LIMIT: Duration = Duration::from_secs(5);
const PROMISE_PAUSE: Duration = Duration::from_millis(10);
/// How long the node itself may take to deny that it is lost, once others have not heard of it.
const OWN_WORD_LIMIT: Duration = Duration::from_millis(150);
/// How long a node must be silent of which no copy can tell, and the pause between two questions.
const SILENT_LONG: Duration = Duration::from_millis(SESSION_DEAD_MS);
const SILENCE_PAUSE: Duration = Duration::from_millis(100);
/// How long the recovery may take, and how long the volume is kept afterwards for whoever wants it:
/// longer than a scheduler and a kubelet take.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
const SPARE_TIME: Duration = Duration::from_secs(5);

impl Admin {
    /// Sees to it that no write of `request.node` is acknowledged any more; or finds out, changing
    /// nothing, whether that can be done now.
    pub(super) async fn fence_volume(
        &self,
        request: v1::FenceVolumeRequest,
        passed_on: bool,
    ) -> Result<v1::FenceVolumeResponse, Status> {
        let lost = names::node(&request.node)?;
        let volume = self.ready_volume(names::volume_name(&request.name)?).await?;
        let wish = Wish::new(&request, &lost);
        let record = self.record_of(&volume).await?;
        if is_fenced(&record, &lost) {
            return Ok(answer(&volume, &record));
        }
        if passed_on {
            return self.fence_here(&volume, &record, &wish).await;
        }
        let mut refusal = Status::failed_precondition(format!(
            "no other node than {lost} has all data of volume {}",
            volume.name
        ));
        for node in by(&record, &lost, &self.inner.node) {
            let asked = if node == self.inner.node {
                self.fence_here(&volume, &record, &wish).await
            } else {
                self.fence_there(&node, &request, wish.wait).await
            };
            match asked {
                // Another one may be able to.
                Err(status) if status.code() == Code::Unavailable => refusal = status,
                told => return told,
            }
        }
        Err(refusal)
    }

    async fn fence_there(
        &self,
        node: &NodeId,
        request: &v1::FenceVolumeRequest,
        wait: Duration,
    ) -> Result<v1::FenceVolumeResponse, Status> {
        let object = self.inner.catalog.known_node(node).await?;
        // A node that is gone as well is not waited for that long.
        if !self.ask_briefly(&object, ASK_LIMIT).await.live {
            return Err(Status::unavailable(format!("node {node} does not answer")));
        }
        let limit = wait + PROMISE_LIMIT;
        let answer = within(limit, async {
            let mut client = self.inner.peers.client(&object)?;
            Ok(client.fence_volume(pass_on(request.clone(), limit)).await?.into_inner())
        });
        answer.await.map_err(|status| at(node, &status))
    }

    /// Makes this node the primary, and waits for a promise; or only finds out whether it could be.
    async fn fence_here(
        &self,
        volume: &VolumeObject,
        record: &Record,
        wish: &Wish<'_>,
    ) -> Result<v1::FenceVolumeResponse, Status> {
        let lost = wish.lost;
        if *lost == self.inner.node {
            let why = format!("node {lost} is not lost: it answers");
            return Err(Status::failed_precondition(why));
        }
        let attached = self.inner.engine.attached(volume.uid);
        if attached.is_none_or(|handle| is_over(*handle.phase().borrow())) {
            let deadline = Instant::now() + wish.wait;
            if record.primary.is_none() {
                self.wait_until_silent(volume, wish, deadline).await?;
            }
            self.wait_until_free(volume, deadline, wish.own_word()).await?;
        }
        if wish.dry_run {
            return Ok(answer(volume, record));
        }
        let (handle, _) = self.claim(volume, Standing::Spare)?;
        self.inner.tasks.spawn(self.clone().keep_spare(volume.clone(), handle.clone()));
        let record = wait_for_promise(&volume.name, &handle).await?;
        tracing::info!(volume = volume.name, %lost, epoch = record.epoch.0, "fenced");
        Ok(answer(volume, &record))
    }

    /// Waits until a node has been silent for as long as a primary would have to be. By its record
    /// nobody has the volume, so that no copy can tell of the node: a pod there may only read a
    /// view of it, or wait for the next daemon with its device.
    async fn wait_until_silent(
        &self,
        volume: &VolumeObject,
        wish: &Wish<'_>,
        deadline: Instant,
    ) -> Result<(), Status> {
        let (name, lost, begin) = (&volume.name, wish.lost, Instant::now());
        let Some(object) = self.inner.catalog.node(lost).await? else { return Ok(()) };
        loop {
            if self.ask_briefly(&object, wish.own_word().first).await.live {
                return Err(Status::failed_precondition(format!(
                    "node {lost} answers, and may be about to serve volume {name}"
                )));
            }
            let silent = begin.elapsed();
            if wish.could || silent >= SILENT_LONG {
                return Ok(());
            }
            if Instant::now() + SILENCE_PAUSE >= deadline {
                return Err(Status::unavailable(format!(
                    "node {lost}, which may be about to serve volume {name}, has been silent for \
                     {} ms only",
                    silent.as_millis()
                )));
            }
            tokio::time::sleep(SILENCE_PAUSE).await;
        }
    }

    /// Ends an attachment again that nobody wanted within a while.
    async fn keep_spare(self, volume: VolumeObject, handle: VolumeHandle) {
        let kept = async {
            if handle.served(RECOVERY_LIMIT).await.is_ok() {
                let mut phase = handle.phase();
                // The end of its time is as good as the end of the attachment.
                let _ = tokio::time::timeout(SPARE_TIME, phase.wait_for(|p| is_over(*p))).await;
            }
        };
        tokio::select! {
            biased;
            () = self.inner.stop.cancelled() => return,
            () = kept => {}
        }
        let of_no_use = |standing| (standing == Standing::Spare).then_some(Standing::Withdrawn);
        if self.stand(&handle, of_no_use)
            && let Err(why) = self.detach_here(&volume, false).await
        {
            tracing::warn!(volume = volume.name, why = why.message(), "stays attached here");
            self.stand(&handle, |_| Some(Standing::Spare));
        }
    }
}

/// What is asked for.
struct Wish<'a> {
    lost: &'a NodeId,
    wait: Duration,
    dry_run: bool,
    could: bool,
}

impl<'a> Wish<'a> {
    fn new(request: &v1::FenceVolumeRequest, lost: &'a NodeId) -> Self {
        let wait = match request.wait_ms {
            0 => DEFAULT_WAIT,
            ms => Duration::from_millis(ms).min(LONGEST_WAIT),
        };
        Self { lost, wait, dry_run: request.dry_run, could: request.could }
    }

    fn own_word(&self) -> OwnWord {
        let first = if self.could { OWN_WORD_LIMIT } else { LOOK_LIMIT };
        OwnWord { first, later: OWN_WORD_LIMIT }
    }
}

/// Whether no write of a node can be acknowledged any more, by the record alone: a primary
/// elsewhere has opened the volume since. One that was closed in good order can be opened again by
/// anybody: so a daemon leaves it that is told to stop, and the next one serves what waits.
fn is_fenced(record: &Record, lost: &NodeId) -> bool {
    let opened = record.open_epoch == record.epoch;
    record.primary.as_ref().is_some_and(|primary| primary.node != *lost && opened)
}

/// The nodes that can fence a volume, the best first: one that is at it already, this one, others.
fn by(record: &Record, lost: &NodeId, here: &NodeId) -> Vec<NodeId> {
    let at_it = record.primary.iter().map(|primary| &primary.node);
    let holders = || record.in_sync().map(|entry| &entry.node);
    let own = holders().filter(|node| *node == here);
    let mut nodes: Vec<NodeId> = Vec::new();
    for node in at_it.chain(own).chain(holders()).filter(|node| *node != lost) {
        if !nodes.contains(node) {
            nodes.push(node.clone());
        }
    }
    nodes
}

fn answer(volume: &VolumeObject, record: &Record) -> v1::FenceVolumeResponse {
    v1::FenceVolumeResponse {
        epoch: record.epoch.0,
        by_node: record.primary.as_ref().map(|p| p.node.to_string()).unwrap_or_default(),
        placement_id: volume.placement_id.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Waits until an in-sync copy has promised the epoch of this attachment: from then on nothing of
/// an older one is acknowledged. Returns the record of the claim.
async fn wait_for_promise(name: &str, handle: &VolumeHandle) -> Result<Record, Status> {
    let begin = Instant::now();
    while begin.elapsed() < PROMISE_LIMIT {
        let Some(status) = handle.status().await else { break };
        if is_over(status.phase) {
            break;
        }
        if has_promise(&status)
            && let Some(record) = status.record
        {
            return Ok(record);
        }
        tokio::time::sleep(PROMISE_PAUSE).await;
    }
    Err(Status::unavailable(format!(
        "no copy of volume {name} with all data has promised a newer epoch; bring one of their \
         nodes back"
    )))
}

/// Whether an in-sync copy has promised the epoch that this primary has claimed.
fn has_promise(primary: &Primary) -> bool {
    let claimed = matches!(primary.phase, Phase::Recovering | Phase::Active | Phase::Suspended);
    let promised = |record: &Record| {
        let connected = |rid| primary.replicas.get(rid).is_some_and(|copy| copy.connected);
        record.in_sync().any(|entry| connected(&entry.rid))
    };
    claimed && primary.record.as_ref().is_some_and(promised)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::id::{InstanceId, Lineage, ReplicaId, VolumeId};
    use lockstep_core::record::{NewVolume, PrimaryRef};
    use uuid::Uuid;

    fn name(i: u128) -> NodeId {
        NodeId::new(&format!("n{i}")).unwrap()
    }

    /// A volume with copies on three nodes that the first one serves.
    fn record() -> Record {
        let place = |i: u128| (ReplicaId(Uuid::from_u128(i)), name(i), "default".to_owned());
        let new = NewVolume {
            uid: VolumeId(Uuid::from_u128(9)),
            lineage: Lineage(Uuid::nil()),
            blocks: 256,
            repl: 3,
            min_in_sync: 2,
            replicas: (1..=3).map(place).collect(),
        };
        claimed(&Record::create(new, Uuid::nil()).unwrap(), 1, true)
    }

    fn claimed(record: &Record, node: u128, opened: bool) -> Record {
        let primary = PrimaryRef { node: name(node), instance: InstanceId(Uuid::nil()) };
        let claimed = record.claim(primary, Uuid::nil());
        let all: Vec<_> = claimed.replicas.iter().map(|r| r.rid).collect();
        if opened { claimed.open(&all, Uuid::nil()) } else { claimed }
    }

    #[test]
    fn a_claim_alone_fences_nobody_and_neither_does_a_primary_that_was_taken_out() {
        let served = record();
        assert!(!is_fenced(&served, &name(1)));
        assert!(!is_fenced(&claimed(&served, 2, false), &name(1)), "no copy may have promised");
        assert!(is_fenced(&claimed(&served, 2, true), &name(1)));
        let out = |clean| Record { primary: None, clean, ..served.clone() };
        assert!(!is_fenced(&out(true), &name(1)), "a device may wait for its next daemon");
        assert!(!is_fenced(&out(false), &name(1)), "it may not know");
    }

    #[test]
    fn whoever_is_at_it_goes_on_and_the_lost_node_is_not_asked() {
        let begun = claimed(&record(), 3, false);
        assert_eq!(by(&begun, &name(1), &name(2)), [name(3), name(2)]);
        assert_eq!(by(&record(), &name(1), &name(3)), [name(3), name(2)]);
        assert_eq!(by(&record(), &name(1), &name(7)), [name(2), name(3)], "this one has no copy");
    }
}
