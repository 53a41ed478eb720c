//! `lockstep volume …`

use lockstep_proto::v1;
use serde_json::json;

use super::args::Create;
use super::connect::Server;
use super::failure::Failure;
use super::output::Output;
use super::table::Table;
use super::{json, scrub, words};
use crate::config::size::Size;

/// `volume create`
pub(super) async fn create(server: &Server, out: &Output, wanted: Create) -> Result<(), Failure> {
    let request = v1::CreateVolumeRequest {
        name: wanted.name,
        size_bytes: wanted.size.unwrap_or_default(),
        repl: wanted.repl,
        min_in_sync: wanted.min_in_sync,
        pool: wanted.pool.unwrap_or_default(),
        nodes: wanted.nodes,
        allow_degraded: wanted.allow_degraded,
        door: wanted.door.unwrap_or_default(),
        write_cache: wanted.write_cache.unwrap_or_default(),
        prefer_nodes: wanted.prefer,
        spread: wanted.spread.unwrap_or_default(),
        follow: wanted.follow,
        thick: wanted.thick,
        max_iops: wanted.max_iops,
        max_bytes_per_s: wanted.max_bandwidth,
        source_snapshot: wanted.from_snapshot.unwrap_or_default(),
        source_volume: wanted.from_volume.unwrap_or_default(),
        ..Default::default()
    };
    if request.repl == 0 {
        return Err(Failure::usage("--repl 0: a volume has 1 to 5 copies"));
    }
    let answer = server.control().await?.create_volume(request).await?.into_inner();
    let volume = told(answer.volume)?;
    out.answer(&json::volume(&volume), || {
        let nodes: Vec<_> = volume.replicas.iter().map(|r| r.node.as_str()).collect();
        format!(
            "volume {} of {} is there, with {} {} on {}\nnext: lockstep attach {}\n",
            volume.name,
            Size(volume.size_bytes),
            nodes.len(),
            if nodes.len() == 1 { "copy" } else { "copies" },
            nodes.join(", "),
            volume.name
        )
    })
}

/// `volume list`
pub(super) async fn list(server: &Server, out: &Output) -> Result<(), Failure> {
    let answer = server.control().await?.list_volumes(v1::ListVolumesRequest {}).await?;
    let volumes = answer.into_inner().volumes;
    let value = json!({ "volumes": volumes.iter().map(json::volume).collect::<Vec<_>>() });
    out.answer(&value, || table(&volumes))
}

/// `volume show`
pub(super) async fn show(server: &Server, out: &Output, name: String) -> Result<(), Failure> {
    let answer = server.control().await?.get_volume(v1::GetVolumeRequest { name }).await?;
    let volume = told(answer.into_inner().volume)?;
    out.answer(&json::volume(&volume), || details(&volume))
}

/// `volume delete`
pub(super) async fn delete(server: &Server, out: &Output, name: String) -> Result<(), Failure> {
    let request = v1::DeleteVolumeRequest { name: name.clone() };
    let answer = server.control().await?.delete_volume(request).await?.into_inner();
    let value = json!({
        "name": name,
        "existed": answer.existed,
        "pending_nodes": answer.pending_nodes,
    });
    out.answer(&value, || {
        let mut text = match answer.existed {
            true => format!("volume {name} is deleted\n"),
            false => format!("there was no volume {name}\n"),
        };
        if !answer.pending_nodes.is_empty() {
            text.push_str(&format!(
                "not reached: {}; they drop their copies when they are back\n",
                answer.pending_nodes.join(", ")
            ));
        }
        text
    })
}

/// `volume set`
pub(super) async fn set(
    server: &Server,
    out: &Output,
    request: v1::SetVolumeRequest,
) -> Result<(), Failure> {
    let limits = [request.max_iops, request.max_bytes_per_s];
    let copies_asked = request.repl.or(request.min_in_sync);
    if copies_asked.is_none() && limits.iter().all(Option::is_none) {
        let why = "nothing to set: give --repl, --min-in-sync, --max-iops or --max-bandwidth";
        return Err(Failure::usage(why));
    }
    let answer = server.control().await?.set_volume(request).await?.into_inner();
    let volume = told(answer.volume)?;
    let value = json!({ "pending": answer.pending, "volume": json::volume(&volume) });
    out.answer(&value, || {
        let now = format!(
            "volume {} is to have {}, at least {} for each write{}\n",
            volume.name,
            copies(volume.repl),
            volume.min_in_sync,
            limits_of(&volume)
        );
        match answer.pending.as_str() {
            "" => now,
            pending => {
                format!("{now}{pending}\nnext: lockstep volume show {}\n", volume.name)
            }
        }
    })
}

/// How fast it may be used; empty if there is no limit.
fn limits_of(volume: &v1::VolumeStatus) -> String {
    let mut limits = String::new();
    if volume.max_iops > 0 {
        limits.push_str(&format!(", at most {} requests in a second", volume.max_iops));
    }
    if volume.max_bytes_per_s > 0 {
        limits.push_str(&format!(", at most {} in a second", Size(volume.max_bytes_per_s)));
    }
    limits
}

fn copies(number: u32) -> String {
    if number == 1 { "1 copy".to_owned() } else { format!("{number} copies") }
}

/// `volume add-replica`
pub(super) async fn add_replica(
    server: &Server,
    out: &Output,
    name: String,
    node: Option<String>,
) -> Result<(), Failure> {
    let request = v1::AddReplicaRequest { name, node };
    let answer = server.control().await?.add_replica(request).await?.into_inner();
    let volume = told(answer.volume)?;
    let value = json!({ "rid": answer.rid, "volume": json::volume(&volume) });
    out.answer(&value, || {
        let place = volume.replicas.iter().find(|r| r.rid == answer.rid);
        let place = place.map_or("a node", |r| r.node.as_str());
        format!(
            "volume {} gets a copy on {place}; it is filled while the volume is attached\n\
             next: lockstep status --watch\n",
            volume.name
        )
    })
}

fn told(volume: Option<v1::VolumeStatus>) -> Result<v1::VolumeStatus, Failure> {
    volume.ok_or_else(|| Failure::local("the daemon did not tell the volume's status"))
}

/// One line per volume.
pub(super) fn table(volumes: &[v1::VolumeStatus]) -> String {
    let mut table =
        Table::new(&["VOLUME", "SIZE", "IN SYNC", "ATTACHED", "PHASE", "HEALTH", "RESYNC"]);
    for volume in volumes {
        let in_sync = volume.replicas.iter().filter(|r| words::state(r.state) == "in_sync").count();
        let resyncs: Vec<_> = volume
            .replicas
            .iter()
            .filter_map(|r| Some(format!("{} {}", r.node, progress(r.resync.as_ref()?))))
            .collect();
        table.row(vec![
            volume.name.clone(),
            Size(volume.size_bytes).to_string(),
            format!("{in_sync}/{}", volume.repl),
            volume.primary_node.clone().unwrap_or_else(|| "-".to_owned()),
            words::phase(volume.phase).to_owned(),
            words::health(volume.health).to_owned(),
            if resyncs.is_empty() { "-".to_owned() } else { resyncs.join(", ") },
        ]);
    }
    table.render("")
}

/// `62 % of 1.2 GiB at 410 MiB/s, 3 s left`
fn progress(resync: &v1::Resync) -> String {
    let percent = match u128::from(resync.total_bytes) {
        0 => 0,
        total => (u128::from(resync.done_bytes) * 100 / total).min(100),
    };
    let mut text = format!("{percent} % of {}", Size(resync.total_bytes));
    if resync.bytes_per_s > 0 {
        text.push_str(&format!(" at {} MiB/s", resync.bytes_per_s.div_ceil(1 << 20)));
    }
    if let Some(ms) = resync.eta_ms {
        text.push_str(&format!(", {} s left", ms.div_ceil(1000)));
    }
    text
}

fn details(volume: &v1::VolumeStatus) -> String {
    let mut text = format!(
        "volume {}: {}, {} wanted, at least {} for each write{}\n  uid {}\n  {}{}\n",
        volume.name,
        Size(volume.size_bytes),
        copies(volume.repl),
        volume.min_in_sync,
        limits_of(volume),
        volume.uid,
        match &volume.primary_node {
            Some(node) => format!("attached on {node}, {}", words::phase(volume.phase)),
            None => "not attached".to_owned(),
        },
        match volume.epoch {
            0 => String::new(),
            epoch => format!(" (epoch {epoch}, generation {})", volume.r#gen),
        },
    );
    for uri in volume.nbd_uri.iter().chain(&volume.nbd_uri_tcp) {
        text.push_str(&format!("  {uri}\n"));
    }
    if let Some(device) = &volume.device {
        text.push_str(&format!("  {}\n", words::device(device)));
    }
    text.push_str(&reasons(volume));
    let mut table =
        Table::new(&["COPY ON", "POOL", "STATE", "REACHED", "USED", "RESYNC", "REMARK"]);
    for replica in &volume.replicas {
        table.row(vec![
            replica.node.clone(),
            replica.pool.clone(),
            words::state(replica.state).replace('_', " "),
            if replica.connected { "yes" } else { "no" }.to_owned(),
            Size(replica.bytes_used).to_string(),
            replica.resync.as_ref().map_or_else(|| "-".to_owned(), progress),
            remark(replica),
        ]);
    }
    text.push_str(&table.render("  "));
    if let Some(scrub) = &volume.scrub {
        text.push_str(&format!("\n  {}\n", scrub::words(scrub)));
    }
    if let Some(counters) = &volume.counters {
        text.push_str(&format!(
            "\n  since it was attached: {} writes and {} flushes acknowledged, \
             resync moved {}, rebuild {} ({} of both from copy to copy), repair {}\n",
            counters.acked_writes,
            counters.acked_flushes,
            Size(counters.resync_bytes),
            Size(counters.rebuild_bytes),
            Size(counters.direct_bytes),
            Size(counters.repair_bytes)
        ));
        if counters.mended_blocks + counters.unreadable_blocks > 0 {
            text.push_str(&format!(
                "  bad blocks: {} mended, {} times one was met that no copy can give\n",
                counters.mended_blocks, counters.unreadable_blocks
            ));
        }
    }
    text
}

/// The health, and each reason with what comes of it.
fn reasons(volume: &v1::VolumeStatus) -> String {
    let health = words::health(volume.health).replace('_', " ");
    if volume.findings.is_empty() {
        return format!("  {health}: {}\n\n", volume.health_reason);
    }
    let mut text = format!("  {health}:\n");
    for finding in &volume.findings {
        text.push_str(&format!("  - {}\n", finding.what));
        if !finding.by_itself.is_empty() {
            text.push_str(&format!("      by itself: {}\n", finding.by_itself));
        }
        if !finding.to_do.is_empty() {
            text.push_str(&format!("      next: {}\n", finding.to_do));
        }
    }
    text.push('\n');
    text
}

fn remark(replica: &v1::VolumeReplica) -> String {
    let mended = match replica.mended_blocks {
        0 => None,
        n => Some(format!("{n} bad blocks mended")),
    };
    let Some(live) = &replica.live else {
        let remark = match (replica.connected, replica.gone) {
            (true, _) => "",
            (false, true) => "its node has no files of it",
            (false, false) => "its node does not answer",
        };
        return remark.to_owned();
    };
    let mut remarks: Vec<String> = mended.into_iter().collect();
    if !live.fault.is_empty() {
        remarks.push(live.fault.clone());
    }
    if live.unclean {
        remarks.push("not closed cleanly".to_owned());
    }
    if live.lossy {
        remarks.push("may lack un-flushed writes".to_owned());
    }
    remarks.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> v1::VolumeStatus {
        let replica = |node: &str, state| v1::VolumeReplica {
            rid: node.to_owned(),
            node: node.to_owned(),
            state: i32::from(state),
            connected: true,
            ..Default::default()
        };
        let mut target = replica("n3", v1::ReplicaState::New);
        target.resync = Some(v1::Resync {
            done_bytes: 1 << 20,
            total_bytes: 4 << 20,
            moved_bytes: 0,
            eta_ms: Some(1500),
            bytes_per_s: (2 << 20) - 7,
        });
        v1::VolumeStatus {
            name: "vol".to_owned(),
            size_bytes: 1 << 30,
            repl: 2,
            min_in_sync: 1,
            epoch: 4,
            primary_node: Some("n1".to_owned()),
            phase: i32::from(v1::AttachPhase::Active),
            health: i32::from(v1::Health::Degraded),
            health_reason: "a copy is being built".to_owned(),
            replicas: vec![replica("n1", v1::ReplicaState::InSync), target],
            ..Default::default()
        }
    }

    #[test]
    fn a_volume_is_one_line() {
        let text = table(&[sample()]);
        let line = text.lines().nth(1).unwrap_or_default();
        for part in
            ["vol", "1 GiB", "1/2", "n1", "active", "degraded", "n3 25 % of 4 MiB at 2 MiB/s, 2 s"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
    }

    #[test]
    fn details_say_what_is_wrong() {
        let text = details(&sample());
        for part in ["2 copies", "attached on n1, active", "degraded: a copy is being built"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn each_reason_stands_on_its_own() {
        let finding = |what: &str, by_itself: &str, to_do: &str| v1::Finding {
            what: what.to_owned(),
            by_itself: by_itself.to_owned(),
            to_do: to_do.to_owned(),
        };
        let findings = vec![finding("n2 is lost", "", "bring it back"), finding("b", "c", "")];
        let text = details(&v1::VolumeStatus { findings, ..sample() });
        for part in ["- n2 is lost\n      next: bring it back\n", "- b\n      by itself: c\n"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn progress_of_nothing_is_no_division_by_zero() {
        assert_eq!(progress(&v1::Resync::default()), "0 % of 0 B");
    }
}
