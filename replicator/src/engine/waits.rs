//! What an attachment waits for, or why it stopped, in words.

use lockstep_core::id::Tick;
use lockstep_core::message::Refusal;
use lockstep_core::primary::{Phase, Status, Stop, Unfit};
use lockstep_core::record::{Record, ReplicaEntry, ReplicaState};

use super::status::Missing;
use crate::net::Peers;

/// What a primary that is not active waits for, or why it stopped; empty if there is nothing to
/// say.
pub(super) fn waits_for(status: &Status, peers: &Peers) -> String {
    match (status.phase, &status.record) {
        (Phase::Claiming, _) | (Phase::Recovering, None) => {
            "the record store: it has to read and claim the volume's record".into()
        }
        (Phase::Recovering, Some(record)) => missing(status, record, peers).map_or_else(
            || "recovery to finish".into(),
            |missing| format!("promises: {missing}{}", way_out(status, record)),
        ),
        (Phase::Suspended, Some(record)) => missing(status, record, peers).map_or_else(
            || "the record store: it has to take a change of members".into(),
            |missing| format!("at least {} copies: {missing}", record.min_in_sync),
        ),
        (Phase::Draining, _) => "requests in flight and a last flush".into(),
        (Phase::Fenced, _) => status.stopped.map(stopped).unwrap_or_default(),
        (Phase::Suspended, None) | (Phase::Active | Phase::Closed, _) => String::new(),
    }
}

fn stopped(why: Stop) -> String {
    match why {
        Stop::TakenOver => "another one took over".into(),
        Stop::Deleted => "the volume was deleted".into(),
        Stop::DataLost => "every copy that answers lost power while the volume was in use, so \
                           writes that were not flushed may be gone"
            .into(),
        Stop::UsedUp => {
            "the volume's generations are used up; copy its data to a new volume".into()
        }
        Stop::RecordPutBack { epoch, .. } => format!(
            "the record store was put back to an older state (epoch {epoch} was in force, the \
             volume's record says less); nothing was changed: restore a newer state of the \
             record store, or choose the copy to go on from: lockstep volume recover"
        ),
    }
}

/// The replicas that a primary does not reach, or leaves out for a while.
pub(super) fn missing_replicas(status: &Status, peers: &Peers, now: Tick) -> Vec<Missing> {
    let entries = status.record.iter().flat_map(|record| &record.replicas);
    let lost = entries.filter_map(|entry| {
        let seen = status.replicas.get(&entry.rid)?;
        if let Some((why, until)) = seen.unfit.filter(|_| seen.connected) {
            let left_s = until.ms_since(now).div_ceil(1000);
            let reason = format!("left out for {left_s} s more, since {}", unfit(why));
            return Some(Missing { replica: entry.rid, ms: 0, reason, put_back: false });
        }
        if seen.too_short {
            let reason = format!(
                "left out: it is shorter than the volume, and the lockstepd of {} is too old to \
                 make it longer; upgrade that",
                entry.node
            );
            return Some(Missing { replica: entry.rid, ms: 0, reason, put_back: false });
        }
        let since = seen.lost_at?;
        Some(Missing {
            replica: entry.rid,
            ms: now.ms_since(since),
            reason: peers.trouble(&entry.node).unwrap_or_default(),
            put_back: is_put_back(status, entry),
        })
    });
    lost.collect()
}

/// Why a copy that answers is left out.
pub(super) fn unfit(why: Unfit) -> &'static str {
    match why {
        Unfit::Slow => "it is many times slower than the others",
        Unfit::Rotten => "it has ever more bad blocks",
    }
}

/// What is left to do if no copy with all data answers.
fn way_out(status: &Status, record: &Record) -> &'static str {
    let answers =
        |entry: &ReplicaEntry| status.replicas.get(&entry.rid).is_some_and(|r| r.connected);
    if record.in_sync().any(answers) {
        return "";
    }
    "; bring one of these back, or, if they are lost for good, go on from another copy: lockstep \
     volume recover"
}

/// The in-sync copies that can't be reached, and why.
fn missing(status: &Status, record: &Record, peers: &Peers) -> Option<String> {
    let lost = record.replicas.iter().filter(|entry| {
        entry.state == ReplicaState::InSync
            && !status.replicas.get(&entry.rid).is_some_and(|r| r.connected)
    });
    let lost: Vec<String> = lost
        .map(|entry| match peers.trouble(&entry.node) {
            _ if is_put_back(status, entry) => format!(
                "the copy on {} was put back to an older image and is not used: let it be replaced",
                entry.node
            ),
            Some(why) => format!("the copy on {} is not reached ({why})", entry.node),
            None => format!("the copy on {} has not answered", entry.node),
        })
        .collect();
    (!lost.is_empty()).then(|| lost.join("; "))
}

/// R7: it promised less than the record proves.
fn is_put_back(status: &Status, entry: &ReplicaEntry) -> bool {
    let refused = status.replicas.get(&entry.rid).and_then(|r| r.refused);
    matches!(refused, Some(Refusal::PutBack { .. }))
}
