//! Answers as JSON objects. Keys are those of the `.proto` files; what is absent is null.

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::words;

/// A node as the daemon that was asked sees it.
pub(super) fn node_status(node: &v1::NodeStatus) -> Value {
    json!({
        "name": node.name,
        "live": node.live,
        "unreachable_reason": node.unreachable_reason,
        "evacuating": node.evacuating,
        "cordoned": node.cordoned,
        "zone": node.zone,
        "labels": node.labels,
        "peer_address": node.peer_address,
        "admin_address": node.admin_address,
        "info": node.info.as_ref().map(node_info),
    })
}

/// A node as it tells itself.
pub(super) fn node_info(node: &v1::Node) -> Value {
    json!({
        "name": node.name,
        "version": node.version,
        "uptime_ms": node.uptime_ms,
        "zone": node.zone,
        "labels": node.labels,
        "peer_address": node.peer_address,
        "admin_address": node.admin_address,
        "ready": node.ready,
        "not_ready_reason": node.not_ready_reason,
        "pools": node.pools.iter().map(pool).collect::<Vec<_>>(),
        "replicas": node.replicas.iter().map(local_replica).collect::<Vec<_>>(),
        "primaries": node.primaries.iter().map(local_primary).collect::<Vec<_>>(),
        "doors": node.doors.iter().map(door).collect::<Vec<_>>(),
    })
}

fn door(door: &v1::Door) -> Value {
    json!({
        "kind": door.kind,
        "usable": door.usable,
        "chosen": door.chosen,
        "reason": door.reason,
        "restartable": door.restartable,
    })
}

/// A block device.
pub(super) fn device(device: &v1::Device) -> Value {
    json!({
        "path": device.path,
        "kernel_path": device.kernel_path,
        "door": device.door,
        "read_only": device.read_only,
        "mount_dir": device.mount_dir,
    })
}

fn pool(pool: &v1::Pool) -> Value {
    json!({
        "name": pool.name,
        "dir": pool.dir,
        "capacity_bytes": pool.capacity_bytes,
        "free_bytes": pool.free_bytes,
        "reserved_bytes": pool.reserved_bytes,
        "room_bytes": pool.room_bytes,
        "uuid": pool.uuid,
    })
}

fn local_replica(replica: &v1::LocalReplica) -> Value {
    json!({
        "uid": replica.uid,
        "rid": replica.rid,
        "volume_name": replica.volume_name,
        "pool": replica.pool,
        "size_bytes": replica.size_bytes,
        "role": words::role(replica.role),
        "promised_epoch": replica.promised_epoch,
        "gen": replica.r#gen,
        "primary_heard_ms": replica.primary_heard_ms,
        "primary_node": replica.primary_node,
        "unclean": replica.unclean,
        "lossy": replica.lossy,
        "activity_log_regions": replica.activity_log_regions,
        "ring_entries": replica.ring_entries,
        "ring_bytes": replica.ring_bytes,
        "bytes_used": replica.bytes_used,
        "fault": replica.fault,
        "lineage": replica.lineage,
    })
}

fn local_primary(primary: &v1::LocalPrimary) -> Value {
    let resyncs: Vec<Value> = primary
        .resyncs
        .iter()
        .map(|r| json!({ "rid": r.rid, "progress": r.progress.as_ref().map(resync) }))
        .collect();
    json!({
        "uid": primary.uid,
        "volume_name": primary.volume_name,
        "phase": words::phase(primary.phase),
        "phase_reason": primary.phase_reason,
        "copies_reason": primary.copies_reason,
        "copies_wait_ms": primary.copies_wait_ms,
        "copies_blocked": primary.copies_blocked,
        "epoch": primary.epoch,
        "gen": primary.r#gen,
        "inflight_ops": primary.inflight_ops,
        "clients": primary.clients,
        "counters": primary.counters.as_ref().map(counters),
        "resyncs": resyncs,
        "connected_rids": primary.connected_rids,
        "nbd_uri": primary.nbd_uri,
        "nbd_uri_tcp": primary.nbd_uri_tcp,
        "device": primary.device.as_ref().map(device),
    })
}

fn finding(finding: &v1::Finding) -> Value {
    json!({ "what": finding.what, "by_itself": finding.by_itself, "to_do": finding.to_do })
}

fn resync(resync: &v1::Resync) -> Value {
    json!({
        "done_bytes": resync.done_bytes,
        "total_bytes": resync.total_bytes,
        "moved_bytes": resync.moved_bytes,
        "eta_ms": resync.eta_ms,
        "bytes_per_s": resync.bytes_per_s,
    })
}

fn counters(counters: &v1::Counters) -> Value {
    json!({
        "acked_writes": counters.acked_writes,
        "acked_write_bytes": counters.acked_write_bytes,
        "acked_flushes": counters.acked_flushes,
        "reads": counters.reads,
        "read_bytes": counters.read_bytes,
        "resync_bytes": counters.resync_bytes,
        "rebuild_bytes": counters.rebuild_bytes,
        "repair_bytes": counters.repair_bytes,
        "direct_bytes": counters.direct_bytes,
        "mended_blocks": counters.mended_blocks,
        "unreadable_blocks": counters.unreadable_blocks,
        "diverged_blocks": counters.diverged_blocks,
    })
}

fn scrub(scrub: &v1::Scrub) -> Value {
    json!({
        "done_bytes": scrub.done_bytes,
        "total_bytes": scrub.total_bytes,
        "mended_blocks": scrub.mended_blocks,
        "unreadable_blocks": scrub.unreadable_blocks,
        "diverged_blocks": scrub.diverged_blocks,
        "took_ms": scrub.took_ms,
        "ended_ms": scrub.ended_ms,
    })
}

/// A volume.
pub(super) fn volume(volume: &v1::VolumeStatus) -> Value {
    json!({
        "name": volume.name,
        "uid": volume.uid,
        "size_bytes": volume.size_bytes,
        "repl": volume.repl,
        "min_in_sync": volume.min_in_sync,
        "epoch": volume.epoch,
        "gen": volume.r#gen,
        "primary_node": volume.primary_node,
        "phase": words::phase(volume.phase),
        "health": words::health(volume.health),
        "health_reason": volume.health_reason,
        "findings": volume.findings.iter().map(finding).collect::<Vec<_>>(),
        "clean": volume.clean,
        "lineage": volume.lineage,
        "counters": volume.counters.as_ref().map(counters),
        "nbd_uri": volume.nbd_uri,
        "nbd_uri_tcp": volume.nbd_uri_tcp,
        "device": volume.device.as_ref().map(device),
        "door": volume.door,
        "write_cache": volume.write_cache,
        "spread": volume.spread,
        "follow": volume.follow,
        "thick": volume.thick,
        "max_iops": volume.max_iops,
        "max_bytes_per_s": volume.max_bytes_per_s,
        "placement_id": volume.placement_id,
        "scrub": volume.scrub.as_ref().map(scrub),
        "replicas": volume.replicas.iter().map(replica).collect::<Vec<_>>(),
    })
}

fn replica(replica: &v1::VolumeReplica) -> Value {
    json!({
        "rid": replica.rid,
        "node": replica.node,
        "pool": replica.pool,
        "state": words::state(replica.state),
        "since": replica.since,
        "connected": replica.connected,
        "bytes_used": replica.bytes_used,
        "mended_blocks": replica.mended_blocks,
        "resync": replica.resync.as_ref().map(resync),
        "live": replica.live.as_ref().map(local_replica),
    })
}

/// Nodes and volumes.
pub(super) fn status(status: &v1::StatusResponse) -> Value {
    json!({
        "node": status.node,
        "nodes": status.nodes.iter().map(node_status).collect::<Vec<_>>(),
        "volumes": status.volumes.iter().map(volume).collect::<Vec<_>>(),
    })
}
