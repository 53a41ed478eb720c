//! What this node tells of itself, and what it does with its own replicas.

use lockstep_core::id::{ReplicaId, Tick, VolumeId};
use lockstep_core::primary::{self, Phase, ScrubReport, Stop};
use lockstep_core::replica::Role;
use lockstep_proto::v1;
use tonic::Status;

use super::{Admin, names, refuse};
use crate::engine::{Missing, NewReplica, PoolInfo, PrimaryInfo, ReplicaInfo, ReplicaState};

impl Admin {
    /// This node, as it tells others.
    pub(super) async fn own_node(&self) -> v1::Node {
        let (ready, not_ready_reason) = self.readiness();
        // Before all else: what waits no more is among the primaries then.
        let waiting_devices = self.waiting_devices();
        let primaries = self.inner.engine.list_primaries().await;
        let mut pools = self.inner.engine.pools().await;
        if !self.is_introduced() {
            // Nobody may take what is missing in them for lost.
            pools.clear();
        }
        v1::Node {
            name: self.inner.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: self.uptime_ms(),
            peer_address: self.inner.addresses.peer.clone(),
            admin_address: self.inner.addresses.admin.clone(),
            pools: pools.iter().map(pool).collect(),
            ready,
            zone: self.inner.zone.clone().unwrap_or_default(),
            not_ready_reason,
            replicas: self.inner.engine.list_replicas().await.iter().map(replica).collect(),
            primaries: primaries.iter().map(|info| self.own_primary(info)).collect(),
            doors: self.own_doors(),
            waiting_devices,
            labels: self.inner.labels.clone(),
            snapshots: Some(self.own_snapshots().await),
        }
    }

    /// A volume that is attached here.
    fn own_primary(&self, info: &PrimaryInfo) -> v1::LocalPrimary {
        let volume = info.volume;
        let door = self.inner.doors.find(volume);
        let core = &info.core;
        let running = core.replicas.iter().filter_map(|(rid, r)| Some((rid, r.resync?)));
        let resyncs = running.map(|(rid, progress)| {
            let progress = v1::Resync {
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes,
                moved_bytes: progress.moved_bytes,
                eta_ms: progress.eta_ms,
                bytes_per_s: progress.bytes_per_s,
            };
            v1::ReplicaResync { rid: rid.to_string(), progress: Some(progress) }
        });
        let told = self.told().get(&volume).cloned();
        let now = self.inner.clock.now();
        let connected = core.replicas.iter().filter(|(_, r)| r.connected);
        v1::LocalPrimary {
            uid: volume.to_string(),
            volume_name: self.attached_name(volume).unwrap_or_default(),
            phase: i32::from(phase(core.phase)),
            epoch: core.epoch.0,
            r#gen: core.r#gen.0,
            inflight_ops: u64::try_from(core.pending_requests).unwrap_or(u64::MAX),
            clients: door.as_ref().map_or(0, |d| d.clients),
            counters: Some(v1::Counters {
                acked_writes: core.counters.acked_writes,
                acked_write_bytes: core.counters.acked_write_bytes,
                reads: core.counters.reads,
                read_bytes: core.counters.read_bytes,
                acked_flushes: core.counters.acked_flushes,
                resync_bytes: core.counters.resync_bytes,
                rebuild_bytes: core.counters.rebuild_bytes,
                repair_bytes: core.counters.repair_bytes,
                direct_bytes: core.counters.direct_bytes,
                mended_blocks: core.counters.mended_blocks,
                unreadable_blocks: core.counters.unreadable_blocks,
                diverged_blocks: core.counters.diverged_blocks,
            }),
            resyncs: resyncs.collect(),
            connected_rids: connected.map(|(rid, _)| rid.to_string()).collect(),
            nbd_uri: door.as_ref().map(|d| d.uri.clone()).unwrap_or_default(),
            nbd_uri_tcp: door.and_then(|d| d.uri_tcp),
            phase_reason: info.waits_for.clone(),
            copies_wait_ms: told.as_ref().and_then(|t| t.until).map(|at| at.ms_since(now)),
            missing: info.missing.iter().map(missing).collect(),
            record_put_back: matches!(core.stopped, Some(Stop::RecordPutBack { .. })),
            scrub: core.scrubbed.as_ref().map(|report| scrub(report, now)),
            mended: mended(&info.core),
            device: self.device(volume),
            // A recovery that is broken off has to be done again, with the waits that belong to it.
            spare: core.phase == Phase::Active && self.is_spare(volume),
            copies_blocked: told.as_ref().is_some_and(|t| t.blocked),
            copies_reason: told.map(|t| t.what).unwrap_or_default(),
        }
    }

    /// Makes a replica here.
    pub(super) async fn create_own_replica(
        &self,
        request: v1::CreateReplicaRequest,
    ) -> Result<v1::LocalReplica, Status> {
        if !self.is_introduced() {
            let (_, why) = self.readiness();
            return Err(Status::unavailable(format!("no copies are made here yet: {why}")));
        }
        let new = NewReplica {
            volume: names::uid(&request.uid)?,
            replica: names::rid(&request.rid)?,
            lineage: names::lineage(&request.lineage)?,
            blocks: names::blocks(names::size(request.size_bytes)?),
            pool: names::pool(&request.pool),
            volume_name: request.volume_name,
            source: names::source(&request.snapshot_uid)?,
            thick: request.thick,
        };
        let made = self.inner.engine.create_replica(new).await;
        made.map(|info| replica(&info)).map_err(|e| refuse::engine(&e))
    }

    /// Removes a replica here. Returns whether there was one.
    pub(super) async fn delete_own_replica(
        &self,
        request: &v1::DeleteReplicaRequest,
    ) -> Result<bool, Status> {
        let (uid, rid) = (names::uid(&request.uid)?, names::rid(&request.rid)?);
        let here = self.inner.engine.replica_status(uid).await;
        let damaged = here.is_some_and(|info| matches!(info.state, ReplicaState::Damaged(_)));
        if damaged || !request.force {
            let record = self.inner.catalog.record(uid).await?.map(|stored| stored.value);
            let replicas = record.iter().flat_map(|record| &record.replicas);
            let own = replicas.clone().find(|r| r.node == self.inner.node && r.rid != rid);
            // It cannot tell its id: it may be the one that counts.
            if let Some(own) = own.filter(|_| damaged) {
                return Err(Status::failed_precondition(format!(
                    "the copy of volume {uid} here is damaged, and the record names {} here, not \
                     {rid}: it is kept",
                    own.rid
                )));
            }
            if !request.force && replicas.clone().any(|r| r.rid == rid) {
                return Err(Status::failed_precondition(format!(
                    "the record of volume {uid} names replica {rid}; removing it may lose data; \
                     delete the volume, or force it"
                )));
            }
        }
        let deleted = self.inner.engine.delete_replica(uid, rid).await;
        deleted.map_err(|e| refuse::engine(&e))
    }

    /// The replica of a volume that this node holds.
    pub(super) async fn own_replica(&self, uid: VolumeId) -> Result<v1::LocalReplica, Status> {
        let found = self.inner.engine.replica_status(uid).await;
        let missing = || {
            Status::not_found(format!("node {} has no replica of volume {uid}", self.inner.node))
        };
        found.map(|info| replica(&info)).ok_or_else(missing)
    }
}

fn scrub(report: &ScrubReport, now: Tick) -> v1::Scrub {
    v1::Scrub {
        done_bytes: report.progress.done_bytes,
        total_bytes: report.progress.total_bytes,
        mended_blocks: report.mended_blocks,
        unreadable_blocks: report.unreadable_blocks,
        diverged_blocks: report.diverged_blocks,
        took_ms: report.ended.unwrap_or(now).ms_since(report.began),
        ended_ms: report.ended.map(|at| now.ms_since(at)),
    }
}

fn mended(core: &primary::Status) -> Vec<v1::ReplicaMended> {
    let had_any = core.replicas.iter().filter(|(_, replica)| replica.mended_blocks > 0);
    let told = |(rid, replica): (&ReplicaId, &primary::ReplicaStatus)| v1::ReplicaMended {
        rid: rid.to_string(),
        blocks: replica.mended_blocks,
    };
    had_any.map(told).collect()
}

fn missing(missing: &Missing) -> v1::MissingReplica {
    v1::MissingReplica {
        rid: missing.replica.to_string(),
        missing_ms: missing.ms,
        reason: missing.reason.clone(),
        put_back: missing.put_back,
    }
}

fn pool(pool: &PoolInfo) -> v1::Pool {
    v1::Pool {
        name: pool.name.clone(),
        dir: pool.dir.display().to_string(),
        capacity_bytes: pool.capacity_bytes,
        free_bytes: pool.free_bytes,
        reserved_bytes: pool.reserved_bytes,
        room_bytes: pool.room_bytes,
        uuid: pool.uuid.to_string(),
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn replica(info: &ReplicaInfo) -> v1::LocalReplica {
    let common = v1::LocalReplica {
        uid: info.volume.to_string(),
        volume_name: info.volume_name.clone(),
        pool: info.pool.clone(),
        bytes_used: info.bytes_used,
        ..Default::default()
    };
    match &info.state {
        ReplicaState::Damaged(why) => v1::LocalReplica {
            role: i32::from(v1::ReplicaRole::Faulted),
            fault: why.clone(),
            ..common
        },
        ReplicaState::Open(open) => v1::LocalReplica {
            rid: open.replica.to_string(),
            size_bytes: names::bytes(open.blocks),
            role: i32::from(role(open.core.role)),
            promised_epoch: open.core.promised.0,
            r#gen: open.core.r#gen.0,
            primary_heard_ms: open.primary_heard_ms,
            primary_node: open.primary_node.as_ref().map(ToString::to_string),
            unclean: open.core.unclean,
            lossy: open.lossy,
            activity_log_regions: count(open.activity_log_regions),
            ring_entries: count(open.core.ring),
            ring_bytes: names::bytes(open.core.ring_blocks),
            fault: open.fault.clone().unwrap_or_default(),
            lineage: open.lineage.to_string(),
            ..common
        },
    }
}

fn role(role: Role) -> v1::ReplicaRole {
    match role {
        Role::Idle => v1::ReplicaRole::Idle,
        Role::Promised => v1::ReplicaRole::Promised,
        Role::Member => v1::ReplicaRole::Member,
        Role::Faulted => v1::ReplicaRole::Faulted,
    }
}

/// A primary's phase in the words of the API.
pub(super) fn phase(phase: Phase) -> v1::AttachPhase {
    match phase {
        Phase::Claiming => v1::AttachPhase::Claiming,
        Phase::Recovering => v1::AttachPhase::Recovering,
        Phase::Active => v1::AttachPhase::Active,
        Phase::Suspended => v1::AttachPhase::Suspended,
        Phase::Draining => v1::AttachPhase::Draining,
        Phase::Closed => v1::AttachPhase::Detached,
        Phase::Fenced => v1::AttachPhase::Fenced,
    }
}
