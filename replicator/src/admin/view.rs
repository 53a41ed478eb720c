//! A volume as people see it: what its record says, joined with what the nodes say of it.

use lockstep_core::record::{Record, ReplicaEntry, ReplicaState};
use lockstep_proto::v1;

use super::catalog::{Stage, VolumeObject};
use super::explain::{Facts, Finding, Unfinished, sentence};
use super::survey::Survey;

/// Joins all that is known of a volume.
pub(super) fn volume(
    object: &VolumeObject,
    record: Option<&Record>,
    survey: &Survey,
    rebuild_after_ms: u64,
) -> v1::VolumeStatus {
    let mut status = v1::VolumeStatus {
        name: object.name.clone(),
        uid: object.uid.to_string(),
        size_bytes: object.size_bytes,
        repl: u32::from(object.repl),
        min_in_sync: u32::from(object.min_in_sync),
        phase: i32::from(v1::AttachPhase::Detached),
        health: i32::from(v1::Health::Unavailable),
        lineage: object.lineage.to_string(),
        door: object.door.clone(),
        write_cache: object.write_cache.clone(),
        pool: object.pool.clone(),
        annotations: object.annotations.clone(),
        spread: object.spread.clone(),
        follow: object.follow,
        thick: object.thick,
        max_iops: object.limits.iops,
        max_bytes_per_s: object.limits.bytes_per_s,
        placement_id: object.placement_id.as_ref().map(ToString::to_string).unwrap_or_default(),
        stage: i32::from(match object.stage {
            Stage::Creating => v1::VolumeStage::Creating,
            Stage::Ready => v1::VolumeStage::Ready,
            Stage::Deleting => v1::VolumeStage::Deleting,
        }),
        ..Default::default()
    };
    let unfinished = match object.stage {
        Stage::Creating => Some(Unfinished::Creating),
        Stage::Deleting => Some(Unfinished::Deleting),
        Stage::Ready => None,
    };
    let emptied = survey.values().filter(|node| node.evacuating).map(|node| node.name.clone());
    let emptied: Vec<String> = emptied.collect();
    let mut primary_told = None;
    if let Some(record) = record {
        primary_told = primary(record, survey);
        join(&mut status, record, primary_told, survey);
    }
    let facts = Facts {
        status: &status,
        primary: primary_told,
        unfinished,
        recorded: record.is_some(),
        wanted_min: u32::from(object.min_in_sync),
        emptied: &emptied,
        warning: record.and_then(|record| super::recover::warning(&object.name, record)),
        barred: record.is_some_and(|record| record.put_back.0 > 0),
        rebuild_after_ms,
    };
    let (health, findings) = facts.explain();
    status.health = i32::from(health);
    status.health_reason = match findings.as_slice() {
        [] => "all copies are in sync".to_owned(),
        some => sentence(some),
    };
    let told = |f: Finding| v1::Finding { what: f.what, by_itself: f.by_itself, to_do: f.to_do };
    status.findings = findings.into_iter().map(told).collect();
    status
}

/// Joins what the record says with what the nodes say.
fn join(
    status: &mut v1::VolumeStatus,
    record: &Record,
    primary: Option<&v1::LocalPrimary>,
    survey: &Survey,
) {
    status.size_bytes = super::names::bytes(record.blocks);
    status.repl = u32::from(record.repl);
    status.min_in_sync = u32::from(record.min_in_sync);
    status.epoch = record.epoch.0;
    status.r#gen = record.r#gen.0;
    status.clean = record.clean;
    status.lineage = record.lineage.to_string();
    status.primary_node = record.primary.as_ref().map(|p| p.node.to_string());
    status.phase = match (&record.primary, primary) {
        (None, _) => i32::from(v1::AttachPhase::Detached),
        (Some(_), Some(primary)) => primary.phase,
        (Some(_), None) => i32::from(v1::AttachPhase::Unspecified),
    };
    let replicas = record.replicas.iter();
    status.replicas = replicas.map(|r| replica(&status.uid, r, primary, survey)).collect();
    if let Some(primary) = primary {
        status.counters = primary.counters;
        status.scrub = primary.scrub;
        status.copies_blocked = primary.copies_blocked;
        status.device.clone_from(&primary.device);
        status.nbd_uri = Some(primary.nbd_uri.clone()).filter(|uri| !uri.is_empty());
        status.nbd_uri_tcp.clone_from(&primary.nbd_uri_tcp);
    }
}

/// What the primary in force says, if its daemon answers and has it.
fn primary<'a>(record: &Record, survey: &'a Survey) -> Option<&'a v1::LocalPrimary> {
    let node = survey.get(record.primary.as_ref()?.node.as_str())?.info.as_ref()?;
    let uid = record.uid.to_string();
    node.primaries.iter().find(|p| p.uid == uid)
}

fn replica(
    uid: &str,
    entry: &ReplicaEntry,
    primary: Option<&v1::LocalPrimary>,
    survey: &Survey,
) -> v1::VolumeReplica {
    let rid = entry.rid.to_string();
    let info = survey.get(entry.node.as_str()).and_then(|node| node.info.as_ref());
    // A damaged replica cannot tell its id; a node has one of a volume at most.
    let same = |r: &&v1::LocalReplica| r.rid == rid || (r.rid.is_empty() && r.uid == uid);
    let live = info.and_then(|info| info.replicas.iter().find(same)).cloned();
    // One that has not joined yet may have its disks elsewhere.
    let gone = info.is_some_and(|info| info.ready) && live.is_none();
    let faulted = |r: &v1::LocalReplica| r.role == i32::from(v1::ReplicaRole::Faulted);
    let connected = match primary {
        Some(primary) => primary.connected_rids.contains(&rid),
        None => live.as_ref().is_some_and(|live| !faulted(live)),
    };
    let resync = primary.and_then(|p| p.resyncs.iter().find(|r| r.rid == rid));
    let missing = primary.and_then(|p| p.missing.iter().find(|r| r.rid == rid));
    let silent = survey.get(entry.node.as_str()).map(|node| node.unreachable_reason.clone());
    let state = match entry.state {
        ReplicaState::New => v1::ReplicaState::New,
        ReplicaState::InSync => v1::ReplicaState::InSync,
        ReplicaState::Out { .. } => v1::ReplicaState::Out,
        ReplicaState::Leaving => v1::ReplicaState::Leaving,
    };
    let mended = primary.and_then(|p| p.mended.iter().find(|m| m.rid == rid));
    v1::VolumeReplica {
        rid,
        node: entry.node.to_string(),
        pool: entry.pool.clone(),
        state: i32::from(state),
        since: match entry.state {
            ReplicaState::Out { since, .. } => since.0,
            ReplicaState::New | ReplicaState::InSync | ReplicaState::Leaving => 0,
        },
        connected,
        resync: resync.and_then(|r| r.progress),
        bytes_used: live.as_ref().map_or(0, |live| live.bytes_used),
        live,
        gone,
        mended_blocks: mended.map_or(0, |m| m.blocks),
        put_back: missing.is_some_and(|m| m.put_back),
        missing_ms: missing.map(|m| m.missing_ms),
        missing_reason: match missing.map(|m| m.reason.as_str()) {
            Some("") | None => silent.unwrap_or_default(),
            Some(reason) => reason.to_owned(),
        },
    }
}

#[cfg(test)]
pub(super) mod tests;
