//! Forced recovery (T11): going on from a copy that a person chooses, when the copies with all
//! data are lost for good, or the record store was put back to an older state.

use std::collections::BTreeSet;

use lockstep_core::id::{Epoch, Gen, Lineage, NodeId};
use lockstep_core::record::{Chosen, Record, ReplicaEntry, ReplicaState};
use lockstep_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use super::catalog::{Stored, VolumeObject};
use super::peers::{DO_LIMIT, at, pass_on, within};
use super::survey::Survey;
use super::{Admin, names, refuse};

impl Admin {
    /// Says what a forced recovery would lose and, if asked to, does it. Returns what it loses,
    /// sentence by sentence.
    pub(super) async fn recover_volume(
        &self,
        request: &v1::RecoverVolumeRequest,
        passed_on: bool,
    ) -> Result<Vec<String>, Status> {
        let name = names::volume_name(&request.name)?;
        let found = self.inner.catalog.volume(name).await?;
        let volume = found.ok_or_else(|| refuse::no_volume(name))?.value;
        let stored = self.inner.catalog.record(volume.uid).await?;
        let lost = || Status::failed_precondition(format!("volume {name} has no record"));
        let stored = stored.ok_or_else(lost)?;
        if !passed_on && let Some(losses) = self.recover_there(&stored.value, request).await? {
            return Ok(losses);
        }
        if request.acknowledge {
            return self.acknowledge(&volume, &stored).await;
        }
        let record = &stored.value;
        let nodes: BTreeSet<NodeId> = record.replicas.iter().map(|r| r.node.clone()).collect();
        let survey = self.survey_some(&nodes).await?;
        refuse_if_needless(name, record, &survey)?;
        let (entry, live) = choose(name, record, &survey, &request.replica)?;
        let losses = losses(record, &entry, &live);
        if request.force {
            let chosen = Chosen {
                replica: entry.rid,
                lineage: names::lineage(&live.lineage)?,
                promised: Epoch(live.promised_epoch),
                r#gen: Gen(live.r#gen),
            };
            self.force(&volume, &stored, chosen).await?;
        }
        Ok(losses)
    }

    /// Lets the node that tries to serve the volume do it, so that its primary learns at once that
    /// its claim is over. `None` if no other node does, or that one cannot be reached.
    async fn recover_there(
        &self,
        record: &Record,
        request: &v1::RecoverVolumeRequest,
    ) -> Result<Option<Vec<String>>, Status> {
        let primary = record.primary.as_ref().filter(|p| p.node != self.inner.node);
        let Some(primary) = primary else { return Ok(None) };
        let Some(node) = self.inner.catalog.node(&primary.node).await? else { return Ok(None) };
        let answer = within(DO_LIMIT, async {
            let mut client = self.inner.peers.client(&node)?;
            Ok(client.recover_volume(pass_on(request.clone(), DO_LIMIT)).await?.into_inner())
        });
        match answer.await {
            Ok(answer) => Ok(Some(answer.losses)),
            Err(status) if status.code() == Code::Unavailable => Ok(None),
            Err(status) => Err(at(&primary.node, &status)),
        }
    }

    /// The owner knows what may be missing.
    async fn acknowledge(
        &self,
        volume: &VolumeObject,
        stored: &Stored<Record>,
    ) -> Result<Vec<String>, Status> {
        let next = stored.value.acknowledge_loss(Uuid::new_v4());
        self.inner.catalog.put_record(Some(stored.revision), &next).await?;
        self.inner.engine.record_changed(volume.uid);
        Ok(Vec::new())
    }

    async fn force(
        &self,
        volume: &VolumeObject,
        stored: &Stored<Record>,
        chosen: Chosen,
    ) -> Result<(), Status> {
        let record = &stored.value;
        let lineage = Lineage(Uuid::new_v4());
        let next = record.force(chosen, lineage, Uuid::new_v4()).map_err(|e| refuse::record(&e))?;
        // Their files go when their nodes are back: nobody may take them for copies again.
        for entry in record.replicas.iter().filter(|r| r.rid != chosen.replica) {
            let (uid, name) = (volume.uid, &volume.name);
            self.inner.catalog.put_gone(&entry.node, uid, entry.rid, name).await?;
        }
        self.inner.catalog.put_record(Some(stored.revision), &next).await?;
        tracing::warn!(
            volume = volume.name, replica = %chosen.replica, %lineage,
            "recovered by force: acknowledged writes may be missing"
        );
        self.inner.engine.record_changed(volume.uid);
        Ok(())
    }
}

/// What the node of a copy says of it, if it can be used.
fn usable<'a>(entry: &ReplicaEntry, survey: &'a Survey) -> Option<&'a v1::LocalReplica> {
    let info = survey.get(entry.node.as_str())?.info.as_ref()?;
    let faulted = i32::from(v1::ReplicaRole::Faulted);
    info.replicas.iter().find(|r| r.rid == entry.rid.to_string() && r.role != faulted)
}

/// A copy with all data that answers is better than any choice, unless nobody knows any more which
/// copies those are.
fn refuse_if_needless(name: &str, record: &Record, survey: &Survey) -> Result<(), Status> {
    let whole = |entry: &&ReplicaEntry| {
        let promised = usable(entry, survey).map(|live| live.promised_epoch);
        promised.is_some_and(|promised| promised >= record.open_epoch.0)
    };
    let mut whole = record.in_sync().filter(whole);
    match whole.next().filter(|_| record.put_back == Epoch(0)) {
        None => Ok(()),
        Some(entry) => Err(Status::failed_precondition(format!(
            "the copy of volume {name} on {} has all data and answers: nothing needs to be given \
             up; attach the volume: lockstep attach {name} --node {}",
            entry.node, entry.node
        ))),
    }
}

/// The copy that was named, by its id or its node.
fn choose(
    name: &str,
    record: &Record,
    survey: &Survey,
    wanted: &str,
) -> Result<(ReplicaEntry, v1::LocalReplica), Status> {
    let named = |r: &&ReplicaEntry| r.node.as_str() == wanted || r.rid.to_string() == wanted;
    let Some(entry) = record.replicas.iter().find(named) else {
        let usable: Vec<&str> = record
            .replicas
            .iter()
            .filter(|r| usable(r, survey).is_some())
            .map(|r| r.node.as_str())
            .collect();
        return Err(Status::not_found(format!(
            "volume {name} has no copy `{wanted}`; copies that answer are on: {}",
            if usable.is_empty() { "no node".to_owned() } else { usable.join(", ") }
        )));
    };
    if entry.state == ReplicaState::New {
        let why = format!("the copy on {} was never filled: choose another one", entry.node);
        return Err(Status::failed_precondition(why));
    }
    match usable(entry, survey) {
        Some(live) => Ok((entry.clone(), live.clone())),
        None => Err(Status::failed_precondition(format!(
            "the copy on {} does not answer or has failed; start its daemon, or choose another one",
            entry.node
        ))),
    }
}

/// What going on from `entry` gives up.
fn losses(record: &Record, entry: &ReplicaEntry, live: &v1::LocalReplica) -> Vec<String> {
    let mut losses = Vec::new();
    let others: Vec<String> = record
        .in_sync()
        .filter(|r| r.rid != entry.rid)
        .map(|r| format!("{} ({})", r.node, r.rid))
        .collect();
    if !others.is_empty() {
        losses.push(format!(
            "the copies with all data are given up for good, also if they come back: {}",
            others.join(", ")
        ));
    }
    losses.push(match entry.state {
        ReplicaState::Out { since, .. } => format!(
            "the copy on {} was left out in generation {since} of {}: acknowledged writes since \
             then are lost",
            entry.node, record.r#gen
        ),
        ReplicaState::Leaving => {
            format!("the copy on {} was on its way out: acknowledged writes are lost", entry.node)
        }
        ReplicaState::InSync | ReplicaState::New => format!(
            "the copy on {} was in sync as far as the record knows: writes that it did not get \
             are lost",
            entry.node
        ),
    });
    if live.unclean {
        losses.push(format!(
            "it was not closed in good order: {} MiB of it may be a mixture of older and newer \
             writes; check the file system on it",
            live.activity_log_regions
        ));
    }
    losses
}

/// Why somebody has to decide, or what a decision has meant; shown until it is acknowledged.
pub(super) fn warning(name: &str, record: &Record) -> Option<String> {
    if record.put_back > Epoch(0) {
        return Some(format!(
            "the record store was put back to an older state: epoch {} was in force, the record \
             says {}; nobody may attach the volume; restore a newer state of the record store, or \
             go on from a copy of your choice: lockstep volume recover {name} --replica NODE",
            record.put_back, record.epoch
        ));
    }
    let forced = record.forced.as_ref().filter(|forced| !forced.acknowledged)?;
    Some(format!(
        "recovered by force from copy {}: acknowledged writes may be missing; if you know what \
         that means: lockstep volume recover {name} --acknowledge",
        forced.replica
    ))
}
