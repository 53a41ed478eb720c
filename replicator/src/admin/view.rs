//! A volume as people see it: what its record says, joined with what the nodes say of it.

use lockstep_core::record::{Record, ReplicaEntry, ReplicaState};
use lockstep_proto::v1;

use super::catalog::{Stage, VolumeObject};
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
        ..Default::default()
    };
    let unfinished = match object.stage {
        Stage::Creating => Some(
            "it is still being made; if that does not end, create it again with the same values \
             or delete it",
        ),
        Stage::Deleting => Some("it is being deleted; delete it again if that does not end"),
        Stage::Ready => None,
    };
    let Some(record) = record else {
        let lost = "its record is missing from the record store; restore the store from a backup";
        status.health_reason = unfinished.unwrap_or(lost).to_owned();
        return status;
    };
    let primary = primary(record, survey);
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
        status.nbd_uri = Some(primary.nbd_uri.clone()).filter(|uri| !uri.is_empty());
        status.nbd_uri_tcp.clone_from(&primary.nbd_uri_tcp);
    }
    let (health, reason) = match unfinished {
        Some(reason) => (v1::Health::Unavailable, reason.to_owned()),
        None => health(&status, primary, rebuild_after_ms),
    };
    let (health, reason) = match super::recover::warning(&status.name, record) {
        Some(warning) if record.put_back.0 > 0 => (v1::Health::Unavailable, warning),
        Some(warning) => (health, format!("{reason}; {warning}")),
        None => (health, reason),
    };
    status.health = i32::from(health);
    status.health_reason = reason;
    status
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
    let faulted = |r: &v1::LocalReplica| r.role == i32::from(v1::ReplicaRole::Faulted);
    let connected = match primary {
        Some(primary) => primary.connected_rids.contains(&rid),
        None => live.as_ref().is_some_and(|live| !faulted(live)),
    };
    let resync = primary.and_then(|p| p.resyncs.iter().find(|r| r.rid == rid));
    let state = match entry.state {
        ReplicaState::New => v1::ReplicaState::New,
        ReplicaState::InSync => v1::ReplicaState::InSync,
        ReplicaState::Out { .. } => v1::ReplicaState::Out,
        ReplicaState::Leaving => v1::ReplicaState::Leaving,
    };
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
    }
}

/// The nodes of copies, each with what is broken there, if that is known.
fn list<'a>(replicas: impl Iterator<Item = &'a v1::VolumeReplica>) -> String {
    let fault = |r: &'a v1::VolumeReplica| r.live.as_ref().map_or("", |live| &live.fault);
    let name = |r: &'a v1::VolumeReplica| match fault(r) {
        "" => r.node.clone(),
        fault => format!("{}: {fault}", r.node),
    };
    replicas.map(name).collect::<Vec<_>>().join(", ")
}

/// How the volume is, why, and what will happen or is to be done.
fn health(
    status: &v1::VolumeStatus,
    primary: Option<&v1::LocalPrimary>,
    rebuild_after_ms: u64,
) -> (v1::Health, String) {
    let in_sync =
        || status.replicas.iter().filter(|r| r.state == i32::from(v1::ReplicaState::InSync));
    let reachable = in_sync().filter(|r| r.connected).count();
    let fewest = usize::try_from(status.min_in_sync).unwrap_or(usize::MAX);
    let name = &status.name;
    if let Some(primary) = primary
        && primary.phase == i32::from(v1::AttachPhase::Fenced)
    {
        let node = status.primary_node.clone().unwrap_or_default();
        let reason = format!(
            "its primary on {node} stopped: {}; all its I/O fails; run `lockstep detach {name}`, \
             then attach it again",
            or(&primary.phase_reason, "another one took over")
        );
        return (v1::Health::Unavailable, reason);
    }
    if reachable == 0 {
        let reason = format!(
            "no copy with all data can be used (they are on {}); bring one of these back; if they \
             are lost for good, go on from another copy: lockstep volume recover {name} --replica \
             NODE",
            list(in_sync())
        );
        return (v1::Health::Unavailable, reason);
    }
    if reachable < fewest {
        let reason = format!(
            "{reachable} of the {fewest} copies that each write needs can be reached (not: {}); \
             writes wait until more are back, nothing is lost",
            list(in_sync().filter(|r| !r.connected))
        );
        return (v1::Health::BelowMin, reason);
    }
    if let (Some(node), None) = (&status.primary_node, primary) {
        let reason = format!(
            "{node}, which served it, does not; its data is safe on {}; attach it elsewhere: \
             lockstep attach {name} --node NODE",
            list(in_sync().filter(|r| r.connected))
        );
        return (v1::Health::Degraded, reason);
    }
    let whole = in_sync().filter(|r| r.connected).count() == status.replicas.len();
    if whole && status.replicas.len() >= usize::try_from(status.repl).unwrap_or(usize::MAX) {
        return (v1::Health::Healthy, "all copies are in sync".to_owned());
    }
    (v1::Health::Degraded, degraded(status, primary, rebuild_after_ms))
}

/// Which copies are not as they should be, and what happens about it.
fn degraded(
    status: &v1::VolumeStatus,
    primary: Option<&v1::LocalPrimary>,
    rebuild_after_ms: u64,
) -> String {
    let mut parts = Vec::new();
    for replica in &status.replicas {
        let is = |state: v1::ReplicaState| replica.state == i32::from(state);
        let node = &replica.node;
        if replica.resync.is_some() {
            let what = if is(v1::ReplicaState::New) { "built" } else { "brought up to date" };
            parts.push(format!("the copy on {node} is being {what}"));
        } else if !replica.connected {
            let fault = replica.live.as_ref().map_or("", |live| &live.fault);
            parts.push(match fault {
                "" => format!("the copy on {node} cannot be reached"),
                fault => format!("the copy on {node} cannot be used: {fault}"),
            });
        } else if is(v1::ReplicaState::New) {
            parts.push(format!("the copy on {node} waits to be built"));
        } else if is(v1::ReplicaState::Out) {
            parts.push(format!("the copy on {node} waits to be brought up to date"));
        } else if is(v1::ReplicaState::Leaving) {
            parts.push(format!("the copy on {node} is on its way out"));
        }
    }
    let copies = u32::try_from(status.replicas.len()).unwrap_or(u32::MAX);
    if copies < status.repl {
        parts.push(format!("it has {copies} of {} copies", status.repl));
    }
    let next = if primary.is_none() {
        format!("copies are mended while it is attached: lockstep attach {}", status.name)
    } else if status.replicas.iter().any(|r| !r.connected) {
        format!(
            "a copy whose node stays away for {} s is built anew on another node",
            rebuild_after_ms.div_ceil(1000)
        )
    } else {
        "no action is needed".to_owned()
    };
    format!("{}; {next}", parts.join(", "))
}

fn or<'a>(text: &'a str, other: &'a str) -> &'a str {
    if text.is_empty() { other } else { text }
}

#[cfg(test)]
mod tests;
