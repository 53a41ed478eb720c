//! `lockstep snapshot …` and `lockstep volume resize`

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::args::SnapshotCommand;
use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use crate::config::size::Size;

/// `snapshot …`
pub(super) async fn run(
    server: &Server,
    out: &Output,
    command: SnapshotCommand,
) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create { volume, name } => create(server, out, volume, name).await,
        SnapshotCommand::List { volume } => list(server, out, volume.unwrap_or_default()).await,
        SnapshotCommand::Show { name } => show(server, out, name).await,
        SnapshotCommand::Delete { name } => delete(server, out, name).await,
    }
}

async fn create(
    server: &Server,
    out: &Output,
    volume: String,
    name: String,
) -> Result<(), Failure> {
    let request = v1::CreateSnapshotRequest { volume, name, made_for: String::new() };
    let snapshot = server.control().await?.create_snapshot(request).await?.into_inner();
    out.answer(&told(&snapshot), || {
        format!(
            "snapshot {} of volume {} is there, {} on {}; writes waited for {}.{} ms\n\
             next: lockstep volume create NAME --from-snapshot {}\n",
            snapshot.name,
            snapshot.volume,
            Size(snapshot.size_bytes),
            snapshot.nodes.join(", "),
            snapshot.pause_us / 1000,
            snapshot.pause_us % 1000 / 100,
            snapshot.name
        )
    })
}

async fn list(server: &Server, out: &Output, volume: String) -> Result<(), Failure> {
    let request = v1::ListSnapshotsRequest { volume, name: String::new() };
    let answer = server.control().await?.list_snapshots(request).await?.into_inner();
    let all = answer.snapshots;
    let value = json!({ "snapshots": all.iter().map(told).collect::<Vec<_>>() });
    out.answer(&value, || {
        let mut table = Table::new(&["SNAPSHOT", "VOLUME", "SIZE", "NODES", "STATE"]);
        for snapshot in &all {
            let state = if snapshot.ready { "ready" } else { "being taken" };
            table.row(vec![
                snapshot.name.clone(),
                snapshot.volume.clone(),
                Size(snapshot.size_bytes).to_string(),
                snapshot.nodes.join(","),
                state.to_owned(),
            ]);
        }
        match table.is_empty() {
            true => "no snapshots\n".to_owned(),
            false => table.render(""),
        }
    })
}

async fn show(server: &Server, out: &Output, name: String) -> Result<(), Failure> {
    let request = v1::GetSnapshotRequest { name };
    let answer = server.control().await?.get_snapshot(request).await?.into_inner();
    let snapshot = answer.snapshot.clone().unwrap_or_default();
    let mut value = told(&snapshot);
    value["wanted"] = json!(answer.wanted);
    value["lost_blocks"] = json!(answer.lost_blocks);
    value["copies"] = answer.copies.iter().map(told_copy).collect();
    out.answer(&value, || {
        let mut text = format!(
            "snapshot {} of volume {}, {}: {} of {} copies\n",
            snapshot.name,
            snapshot.volume,
            Size(snapshot.size_bytes),
            answer.copies.iter().filter(|c| c.state == present()).count(),
            answer.wanted
        );
        for copy in &answer.copies {
            text.push_str(&format!("  {}  {}\n", copy.node, copy_words(copy)));
        }
        if answer.lost_blocks > 0 {
            text.push_str(&format!("  {} blocks are lost on all of them\n", answer.lost_blocks));
        }
        text
    })
}

fn present() -> i32 {
    v1::SnapshotCopyState::Present.into()
}

/// How a copy is, in words.
fn copy_words(copy: &v1::SnapshotCopy) -> String {
    match (copy.state(), &copy.remake) {
        (v1::SnapshotCopyState::Present, _) => "has it".to_owned(),
        (v1::SnapshotCopyState::Silent, _) => "does not answer".to_owned(),
        (v1::SnapshotCopyState::Missing, _) => "has lost it".to_owned(),
        (v1::SnapshotCopyState::Making, None) => "is to make it anew".to_owned(),
        (v1::SnapshotCopyState::Making, Some(remake)) => {
            let part = u128::from(remake.done_bytes) * 100;
            let percent = part.checked_div(u128::from(remake.total_bytes)).unwrap_or(0);
            let moved = Size(remake.moved_bytes);
            let trouble = match remake.trouble.as_str() {
                "" => String::new(),
                trouble => format!("; the last attempt failed: {trouble}"),
            };
            format!("makes it anew, {} %, {moved} moved{trouble}", percent.min(100))
        }
        (v1::SnapshotCopyState::Unspecified, _) => "unknown".to_owned(),
    }
}

fn told_copy(copy: &v1::SnapshotCopy) -> Value {
    let state = match copy.state() {
        v1::SnapshotCopyState::Present => "present",
        v1::SnapshotCopyState::Silent => "silent",
        v1::SnapshotCopyState::Missing => "missing",
        v1::SnapshotCopyState::Making => "making",
        v1::SnapshotCopyState::Unspecified => "unknown",
    };
    let remake = copy.remake.as_ref().map(|remake| {
        json!({
            "done_bytes": remake.done_bytes,
            "total_bytes": remake.total_bytes,
            "moved_bytes": remake.moved_bytes,
            "trouble": remake.trouble,
        })
    });
    json!({ "node": copy.node, "state": state, "remake": remake })
}

async fn delete(server: &Server, out: &Output, name: String) -> Result<(), Failure> {
    let request = v1::DeleteSnapshotRequest { name: name.clone() };
    let answer = server.control().await?.delete_snapshot(request).await?.into_inner();
    let value = json!({ "name": name, "existed": answer.existed });
    out.answer(&value, || match answer.existed {
        true => format!("snapshot {name} is deleted\n"),
        false => format!("there was no snapshot {name}\n"),
    })
}

/// `volume resize`
pub(super) async fn resize(
    server: &Server,
    out: &Output,
    name: String,
    size_bytes: u64,
) -> Result<(), Failure> {
    let request = v1::ResizeVolumeRequest { name: name.clone(), size_bytes };
    let answer = server.control().await?.resize_volume(request).await?.into_inner();
    let value = json!({ "name": name, "size_bytes": answer.size_bytes, "note": answer.note });
    out.answer(&value, || {
        let now = format!("volume {name} has {}\n", Size(answer.size_bytes));
        if answer.note.is_empty() { now } else { format!("{now}but: {}\n", answer.note) }
    })
}

fn told(snapshot: &v1::Snapshot) -> Value {
    json!({
        "uid": snapshot.uid,
        "name": snapshot.name,
        "volume": snapshot.volume,
        "volume_uid": snapshot.volume_uid,
        "size_bytes": snapshot.size_bytes,
        "created_unix_ms": snapshot.created_unix_ms,
        "ready": snapshot.ready,
        "nodes": snapshot.nodes,
        "pool": snapshot.pool,
        "pause_us": snapshot.pause_us,
    })
}
