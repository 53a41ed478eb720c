//! What is asked of a volume as a whole: another size, snapshots; and what has to come of it.

use lockstep_core::id::{Gen, Lineage, ReplicaId, RequestId, SnapshotId, Tick, Token, VolumeId};
use lockstep_core::planted::Planted;
use lockstep_core::primary::{Event as PrimaryEvent, Phase, Snapshot, Task, TaskDone, TaskError};
use lockstep_core::range::{BlockRange, BlockSet};
use lockstep_core::record::Record;
use lockstep_core::store::{StoreOp, StoreReply};
use lockstep_store::layout::{File, file_bytes};
use lockstep_store::{DiskOpKind, Identity, OpenParams, Store, Superblock, Tuning, format_clone};
use uuid::Uuid;

use super::World;
use crate::content::{BLOCK, Value, value_of};
use crate::disk::Kept;
use crate::fault::Fault;
use crate::node::Flight;

/// Requests for tasks are numbered apart from a guest's.
const TASKS: u64 = 1 << 48;

impl World {
    /// Somebody wants something of the volume as a whole.
    pub(crate) fn want_task(&mut self, fault: Fault) -> bool {
        if fault == Fault::ControllerResize { self.want_larger() } else { self.want_snapshot() }
    }

    /// Somebody wants the volume to be larger.
    fn want_larger(&mut self) -> bool {
        let (now, most) = (self.meta.record().blocks, self.plan.habits.most_blocks);
        let blocks = (now + self.rng.between(1, 300)).min(most);
        blocks > now && self.ask_task(Task::Resize { blocks })
    }

    /// Somebody wants a snapshot.
    fn want_snapshot(&mut self) -> bool {
        let id = SnapshotId(self.uuid());
        self.ask_task(Task::Snapshot { id })
    }

    /// Asks any primary that thinks that it serves.
    fn ask_task(&mut self, task: Task) -> bool {
        let serves = |n: &usize| {
            let seat = self.nodes[*n].seat.as_ref();
            seat.is_some_and(|s| s.phase == Phase::Active && !s.closing)
        };
        let serving: Vec<usize> = (0..self.nodes.len()).filter(serves).collect();
        let Some(node) = self.rng.pick(&serving) else { return false };
        let Some(seat) = self.nodes[node].seat.as_ref().map(|s| s.id) else { return false };
        let request = RequestId(TASKS + self.fresh_id());
        self.tasks.insert((seat, request), task);
        self.tell_primary(node, seat, PrimaryEvent::Task { request, task });
        true
    }

    pub(crate) fn task_done(
        &mut self,
        node: usize,
        seat: u64,
        request: RequestId,
        result: Result<TaskDone, TaskError>,
    ) {
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: task {request} is answered: {result:?}"));
        let asked = self.tasks.remove(&(seat, request));
        match (asked, result) {
            (None, _) => self.fail("honest", format!("task {request} is answered but not open")),
            (Some(_), Err(_)) => self.outcome.coverage.tasks_failed += 1,
            (Some(Task::Resize { .. }), Ok(TaskDone::Resized { blocks })) => {
                if let Some(seat) = self.nodes[node].seat(seat) {
                    seat.guest.blocks = seat.guest.blocks.max(blocks);
                }
            }
            (Some(Task::Snapshot { .. }), Ok(TaskDone::Snapshot(snapshot))) => {
                self.outcome.coverage.snapshots += 1;
                let judged = self.check_snapshot(&snapshot);
                self.judge("snapshot", judged);
            }
            (Some(task), Ok(done)) => {
                self.fail("honest", format!("{task:?} is answered with {done:?}"));
            }
        }
    }

    /// T10: every member is durably as long as the record says.
    pub(crate) fn check_extent(&self, record: &Record) -> Result<(), String> {
        for (node, copy) in self.in_sync_now(record) {
            let meta = copy.disk.read(File::Meta, 0, 2 * BLOCK as u64);
            // Damaged books are another checker's.
            let Ok(found) = Superblock::read(&meta) else { continue };
            if found.blocks < record.blocks && self.nodes[node].up {
                return Err(format!(
                    "{} has {} blocks, the volume {}",
                    self.nodes[node].name, found.blocks, record.blocks
                ));
            }
        }
        Ok(())
    }

    /// A copy is about to be kept: nothing else may come between this moment and the others of the
    /// same snapshot.
    pub(crate) fn note_moment(&mut self, id: SnapshotId) {
        let asks = |(_, task): &(&(u64, RequestId), &Task)| **task == Task::Snapshot { id };
        let Some(((seat, _), _)) = self.tasks.iter().find(asks) else { return };
        let seats = self.nodes.iter().filter_map(|n| n.seat.as_ref());
        let instance = seats.into_iter().find(|s| s.id == *seat).map(|s| s.instance);
        if let Some(readable) = instance.and_then(|i| self.oracle.readable_in(i)) {
            self.moments.entry(id).or_insert(readable);
        }
    }

    /// D1, D2: the copies are the same, hold what was acknowledged, and can be opened.
    fn check_snapshot(&mut self, taken: &Snapshot) -> Result<(), String> {
        let moment = self.moments.remove(&taken.id);
        for rid in &taken.replicas {
            let copies = self.nodes.iter().filter_map(|n| n.copy.as_ref());
            let Some(copy) = copies.into_iter().find(|copy| copy.rid == *rid) else {
                // Its files were lost since.
                continue;
            };
            let Some(kept) = copy.disk.kept(taken.id) else {
                return if copy.is_old || self.lost_files_lately() {
                    Ok(())
                } else {
                    Err(format!("copy {rid} has not snapshot {}", taken.id))
                };
            };
            let Some(blocks) = kept.blocks else {
                return Err(format!("snapshot {} is not durable on copy {rid}", taken.id));
            };
            if blocks < taken.blocks {
                return Err(format!("copy {rid} has {blocks} of {} blocks", taken.blocks));
            }
            for (block, value) in opened(kept, blocks, *rid, taken.r#gen)? {
                let may_be = moment.as_ref().and_then(|readable| readable.get(&block));
                if may_be.map_or(value != Value::ZERO, |values| !values.contains(&value)) {
                    return Err(format!(
                        "snapshot {} has {value:?} in block {block} on copy {rid}, \
                         which is not what was acknowledged",
                        taken.id
                    ));
                }
            }
        }
        self.check_alike(taken)
    }

    fn check_alike(&self, taken: &Snapshot) -> Result<(), String> {
        let copies = self.nodes.iter().filter_map(|n| n.copy.as_ref());
        let copies = copies.filter(|copy| taken.replicas.contains(&copy.rid));
        let kept: Vec<&Kept> = copies.filter_map(|copy| copy.disk.kept(taken.id)).collect();
        let Some((first, others)) = kept.split_first() else { return Ok(()) };
        for other in others {
            for block in first.disk.blocks().chain(other.disk.blocks()) {
                let (a, b) = (first.disk.visible(block), other.disk.visible(block));
                let lost = [a, b].contains(&Value::GAP);
                if a != b && !lost && block < taken.blocks {
                    return Err(format!("block {block} of a snapshot is {a:?} and {b:?}"));
                }
            }
        }
        Ok(())
    }
}

/// Opens a snapshot as a clone would, and reads all that was ever written through its tags.
fn opened(
    kept: &Kept,
    blocks: u64,
    replica: ReplicaId,
    newest: Gen,
) -> Result<Vec<(u64, Value)>, String> {
    let mut disk = (*kept.disk).clone();
    let id = Identity { volume: VolumeId(Uuid::nil()), replica, lineage: Lineage(Uuid::nil()) };
    for (file, offset, data) in format_clone(id, blocks, [0; 16]) {
        disk.write(file, offset, &data, true);
    }
    let whole = |file| disk.read(file, 0, file_bytes(file, blocks));
    let params = OpenParams {
        meta: &whole(File::Meta),
        regions: &whole(File::Regions),
        expect: Some(id),
        boot_id: [0; 16],
        lost_cache: false,
        tuning: Tuning::default(),
        planted: Planted::NONE,
    };
    let opened = Store::open(params).map_err(|e| format!("a snapshot can't be opened: {e}"))?;
    if !opened.recovered.unresolved.is_empty() {
        return Err("a snapshot has unresolved regions".to_owned());
    }
    let mut store = opened.store;
    let mut found = Vec::new();
    let size = blocks;
    for block in disk.blocks().filter(|block| *block < size).collect::<Vec<_>>() {
        let spoiled = disk.is_harmed(File::Data, block) || disk.visible(block) == Value::GAP;
        if spoiled || disk.is_harmed(File::Tags, crate::node::tag_page(block)) {
            continue;
        }
        let blocks = BlockSet::from(BlockRange::new(block, 1));
        store.submit(Tick(0), Token(block + 1), StoreOp::Read { blocks });
        let mut reply = None;
        while reply.is_none() {
            while let Some(op) = store.poll_disk() {
                let DiskOpKind::Read { .. } = op.kind else {
                    return Err(format!("a read of a snapshot does {:?}", op.kind));
                };
                let flight = Flight { kind: op.kind, mark: 0 };
                let bytes = super::host::apply(&mut disk, flight);
                store.done(Tick(0), op.id, Ok(bytes));
            }
            reply = store.poll_done();
        }
        match reply {
            Some((_, Ok(StoreReply::Data(payload)))) => {
                found.push((block, value_of(block, &payload.data)));
            }
            Some((_, other)) => return Err(format!("block {block} of a snapshot: {other:?}")),
            None => {}
        }
        let region = lockstep_core::range::region_of(block);
        let stamp = store.newest_stamp(region);
        if stamp > newest && !disk.is_harmed(File::Regions, u64::from(region.0) * 8 / 4096) {
            return Err(format!("region {region} of a snapshot has stamp {stamp} after {newest}"));
        }
    }
    Ok(found)
}
