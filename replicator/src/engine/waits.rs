//! What an attachment waits for, in words.

use lockstep_core::primary::{Phase, Status};
use lockstep_core::record::{Record, ReplicaState};

use crate::net::Peers;

/// What a primary that is not active waits for; empty if it waits for nothing.
pub(super) fn waits_for(status: &Status, peers: &Peers) -> String {
    match (status.phase, &status.record) {
        (Phase::Claiming, _) | (Phase::Recovering, None) => {
            "the record store: it has to read and claim the volume's record".into()
        }
        (Phase::Recovering, Some(record)) => missing(status, record, peers)
            .map_or_else(|| "recovery to finish".into(), |missing| format!("promises: {missing}")),
        (Phase::Suspended, Some(record)) => missing(status, record, peers).map_or_else(
            || "the record store: it has to take a change of members".into(),
            |missing| format!("at least {} copies: {missing}", record.min_in_sync),
        ),
        (Phase::Draining, _) => "requests in flight and a last flush".into(),
        (Phase::Suspended, None) | (Phase::Active | Phase::Closed | Phase::Fenced, _) => {
            String::new()
        }
    }
}

/// The in-sync copies that can't be reached, and why.
fn missing(status: &Status, record: &Record, peers: &Peers) -> Option<String> {
    let lost = record.replicas.iter().filter(|entry| {
        entry.state == ReplicaState::InSync
            && !status.replicas.get(&entry.rid).is_some_and(|r| r.connected)
    });
    let lost: Vec<String> = lost
        .map(|entry| match peers.trouble(&entry.node) {
            Some(why) => format!("the copy on {} is not reached ({why})", entry.node),
            None => format!("the copy on {} has not answered", entry.node),
        })
        .collect();
    (!lost.is_empty()).then(|| lost.join("; "))
}
