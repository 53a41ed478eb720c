//! Snapshots. Their ids are their names, as those of volumes are.

use super::Controller;
use crate::pages::Page;
use crate::size::signed;
use crate::{names, parameters, refuse};
use lockstep_proto::csi::list_snapshots_response::Entry;
use lockstep_proto::{Timestamp, csi, v1};
use std::sync::Arc;
use tonic::Status;

/// Whose turn it is at a snapshot: no volume is called so.
fn turn_of(name: &str) -> String {
    format!("snapshot {name}")
}

fn moment(unix_ms: u64) -> Timestamp {
    let nanos = i32::try_from(unix_ms % 1000).unwrap_or_default() * 1_000_000;
    Timestamp { seconds: signed(unix_ms / 1000), nanos }
}

/// A snapshot, as told to callers.
fn described(snapshot: &v1::Snapshot) -> csi::Snapshot {
    csi::Snapshot {
        size_bytes: signed(snapshot.size_bytes),
        snapshot_id: snapshot.name.clone(),
        source_volume_id: snapshot.volume.clone(),
        creation_time: Some(moment(snapshot.created_unix_ms)),
        ready_to_use: snapshot.ready,
        ..Default::default()
    }
}

/// Checks an id that need not be there.
fn optional<'a>(field: &str, id: &'a str) -> Result<&'a str, Status> {
    if id.is_empty() { Ok(id) } else { names::required(field, id) }
}

impl Controller {
    pub(super) async fn take_snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::Snapshot, Status> {
        let name = names::from_csi(names::required("name", &request.name)?);
        let volume = names::required("source_volume_id", &request.source_volume_id)?.to_owned();
        parameters::of_snapshot(&request.parameters)?;
        if !names::is_volume_name(&volume) {
            return Err(refuse::no_volume(&volume));
        }
        let (daemons, turn) = (Arc::clone(&self.daemons), turn_of(&name));
        let taken = async move { daemons.take_snapshot(&name, &volume).await };
        let taken = self.turns.run(&turn, taken).await?;
        let (snapshot, volume, pause_us) = (&taken.name, &taken.volume, taken.pause_us);
        tracing::info!(snapshot, volume, pause_us, "snapshot: writes waited for so long");
        Ok(described(&taken))
    }

    pub(super) async fn remove_snapshot(&self, id: &str) -> Result<(), Status> {
        let name = names::required("snapshot_id", id)?.to_owned();
        let (daemons, turn) = (Arc::clone(&self.daemons), turn_of(&name));
        self.turns.run(&turn, async move { daemons.delete_snapshot(&name).await }).await
    }

    pub(super) async fn snapshots(
        &self,
        request: &csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse, Status> {
        let page = Page::new(request.max_entries, &request.starting_token)?;
        let volume = optional("source_volume_id", &request.source_volume_id)?;
        let name = optional("snapshot_id", &request.snapshot_id)?;
        let snapshots = self.daemons.snapshots(volume, name).await?;
        let (snapshots, next_token) = page.cut(snapshots, |snapshot| &snapshot.name);
        let entry = |snapshot| Entry { snapshot: Some(described(snapshot)) };
        let entries = snapshots.iter().map(entry).collect();
        Ok(csi::ListSnapshotsResponse { entries, next_token })
    }

    pub(super) async fn snapshot(&self, id: &str) -> Result<csi::Snapshot, Status> {
        let name = names::required("snapshot_id", id)?;
        let found = self.daemons.snapshot(name).await?;
        found.map(|found| described(&found)).ok_or_else(|| refuse::no_snapshot(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_to_the_millisecond() {
        let told = moment(1_700_000_000_123);
        assert_eq!((told.seconds, told.nanos), (1_700_000_000, 123_000_000));
    }
}
