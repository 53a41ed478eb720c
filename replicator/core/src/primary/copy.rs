//! Copying what a target lacks from a source, window by window, digest by digest (rule S4).
//!
//! A window is at most one region. Under its lock the source names the blocks of interest with
//! stamps and digests, the target its digests of the same blocks, and only content that differs
//! is read and sent; the target adopts the source's stamps for all of them. Equal stamps are
//! never a reason to skip (m31, m32), equal digests of what is on the disks are.

mod pull;
mod todo;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use self::todo::Todo;
use super::gaps::without;
use super::heal::Heal;
use super::{Primary, Purpose, ResyncProgress};
use crate::alike::Aside;
use crate::id::{Gen, RegionIndex, ReplicaId, Tick};
use crate::limits;
use crate::lock::{LockId, Mode};
use crate::message::{
    BlockDigest, Digest, Payload, Refusal, Reply, Request, ResyncBlock, ResyncContent,
};
use crate::planted::Bug;
use crate::range::{BLOCK_SIZE, BlockRange, BlockSet};

/// A step of a window, named in the call it waits for.
#[derive(Clone, Debug, Hash)]
pub(super) enum Step {
    /// The source lists regions of interest.
    Scan,
    /// The source's digests of a window.
    SourceDigest(LockId),
    /// The target's digests of a window.
    TargetDigest(LockId),
    /// The content that differs.
    Read(LockId),
    /// Content and stamps arrive at the target.
    Write(LockId),
    /// The target fetches content by itself and takes stamps (S8).
    Pull(LockId),
    /// The source reads one block, to tell whether it is bad.
    Probe(LockId),
    /// Another member reads a block that is bad on the source.
    HealRead(LockId, u64),
    /// The source writes it; durable at once.
    HealWrite(LockId, u64),
    /// The source says whether a block that nobody can give is of interest.
    GapDigest(LockId, u64),
    /// The target notes that its content is lost.
    GapWrite(LockId, u64),
    /// The source writes what may be torn: it does not count as whole there.
    HealCopy(LockId, u64),
    /// The source makes that durable.
    HealFlush(LockId, u64),
    /// The target reads blocks that may be torn on the source and are whole on the target.
    TornRead(LockId),
    /// The source writes them.
    TornWrite(LockId),
    /// The source makes them durable.
    TornFlush(LockId),
}

/// Blocks to bring over under one lock.
#[derive(Clone, Debug, Hash)]
pub(super) struct Window {
    /// Which blocks the source is asked about, and from which stamp on they are of interest.
    pub(super) blocks: BlockSet,
    since: Gen,
    /// The source's answer.
    pub(super) source: Vec<BlockDigest>,
    /// What will be done with each.
    plan: Vec<ResyncBlock>,
    pub(super) heal: Heal,
}

/// One target's copy job.
#[derive(Clone, Debug, Hash)]
pub(super) struct CopyJob {
    source: ReplicaId,
    target: ReplicaId,
    /// What is not started.
    todo: Todo,
    /// Stamps of interest in regions that the scan finds.
    since: Gen,
    /// Where the scan goes on, if it is not at its end.
    scan: Option<RegionIndex>,
    scanning: bool,
    windows: BTreeMap<LockId, Window>,
    /// The target has nothing: no digests of its own are needed.
    fresh: bool,
    /// Does the guest's I/O run meanwhile?
    locked: bool,
    progress: Aside<ResyncProgress>,
    /// Windows whose content the target could not pull.
    pull_failures: u32,
}

impl Step {
    /// The window it belongs to.
    fn lock(&self) -> Option<LockId> {
        match self {
            Self::Scan => None,
            Self::SourceDigest(lock)
            | Self::TargetDigest(lock)
            | Self::Read(lock)
            | Self::Write(lock)
            | Self::Pull(lock)
            | Self::Probe(lock)
            | Self::HealRead(lock, _)
            | Self::HealWrite(lock, _)
            | Self::GapDigest(lock, _)
            | Self::GapWrite(lock, _)
            | Self::HealCopy(lock, _)
            | Self::HealFlush(lock, _)
            | Self::TornRead(lock)
            | Self::TornWrite(lock)
            | Self::TornFlush(lock) => Some(*lock),
        }
    }
}

impl Window {
    pub(super) fn since(&self) -> Gen {
        self.since
    }
}

impl CopyJob {
    /// P5: brings an explicit set of blocks over, with no guest I/O.
    pub(super) fn repair(source: ReplicaId, target: ReplicaId, blocks: BlockSet) -> Self {
        let mut job = Self::new(source, target, false, false);
        job.add_explicit(&blocks);
        job
    }

    /// S4: brings over what was stamped `since` or later, and `missed` besides.
    pub(super) fn delta(
        source: ReplicaId,
        target: ReplicaId,
        since: Gen,
        missed: BlockSet,
        fresh: bool,
        locked: bool,
    ) -> Self {
        let mut job = Self::new(source, target, fresh, locked);
        job.add_explicit(&missed);
        job.since = since.max(Gen(1));
        job.scan = Some(RegionIndex(0));
        job
    }

    fn new(source: ReplicaId, target: ReplicaId, fresh: bool, locked: bool) -> Self {
        Self {
            source,
            target,
            todo: Todo::default(),
            since: Gen(1),
            scan: None,
            scanning: false,
            windows: BTreeMap::new(),
            fresh,
            locked,
            progress: Aside::default(),
            pull_failures: 0,
        }
    }

    fn add_explicit(&mut self, blocks: &BlockSet) {
        for region in blocks.regions() {
            let all = BlockRange::of_region(region, limits::MAX_VOLUME_BLOCKS);
            let inside = all.map(|all| blocks.within(all)).unwrap_or_default();
            self.progress.total_bytes += bytes_of(&inside);
            self.todo.push(inside, Gen(0));
        }
    }

    pub(super) fn window(&mut self, lock: LockId) -> Option<&mut Window> {
        self.windows.get_mut(&lock)
    }

    /// Blocks for which members are waited that may have them.
    pub(super) fn awaiting(&self) -> Vec<(LockId, u64)> {
        let awaited = |(lock, window): (&LockId, &Window)| Some((*lock, window.heal.awaited()?));
        self.windows.iter().filter_map(awaited).collect()
    }

    /// A window goes on without a block; is there another one in it?
    pub(super) fn leave_out(&mut self, lock: LockId, block: u64) -> Option<bool> {
        let window = self.windows.get_mut(&lock)?;
        let before = window.blocks.len();
        window.blocks = without(&window.blocks, block);
        self.progress.done_bytes += (before - window.blocks.len()) * u64::from(BLOCK_SIZE);
        Some(!window.blocks.is_empty())
    }

    pub(super) fn source(&self) -> ReplicaId {
        self.source
    }

    pub(super) fn target(&self) -> ReplicaId {
        self.target
    }

    pub(super) fn progress(&self) -> ResyncProgress {
        *self.progress
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    pub(super) fn is_done(&self) -> bool {
        self.todo.is_empty() && self.windows.is_empty() && self.scan.is_none() && !self.scanning
    }

    /// Is there more to do than what is in flight?
    pub(super) fn has_more(&self) -> bool {
        self.has_todo() || self.scan.is_some() || self.scanning
    }

    /// Is there a window to start?
    fn has_todo(&self) -> bool {
        !self.todo.is_empty()
    }

    /// Without locks, scanned windows wait for the explicit ones that they may overlap.
    fn may_scan(&self) -> bool {
        let apart = self.todo.is_empty() && self.windows.is_empty();
        self.todo.has_room() && !self.scanning && (self.locked || apart)
    }

    /// Windows that have, or wait for, a lock.
    fn locks(&self) -> Vec<LockId> {
        if self.locked { self.windows.keys().copied().collect() } else { Vec::new() }
    }
}

fn bytes_of(blocks: &BlockSet) -> u64 {
    blocks.len() * u64::from(BLOCK_SIZE)
}

impl Primary {
    /// Starts windows and scans as far as limits and pace allow.
    pub(super) fn drive_copy(&mut self) {
        while let Some(job) = self.copy.as_mut() {
            if let Some(from) = job.scan.filter(|_| job.may_scan()) {
                job.scanning = true;
                job.scan = None;
                let (source, since, limit) = (job.source, job.since, limits::SCAN_REGIONS);
                self.copy_call(source, Step::Scan, false, Request::Scan { since, from, limit });
            } else if job.has_todo() && self.may_start_window() {
                self.start_window();
            } else {
                return;
            }
        }
    }

    /// A promotion goes as fast as it can; a resync at its pace.
    fn may_start_window(&mut self) -> bool {
        let Some(job) = &self.copy else { return false };
        let running = job.windows.len();
        if job.locked {
            self.pace.admits(self.now, running)
        } else {
            running < limits::RESYNC_WINDOWS
        }
    }

    /// When the pace lets another window start.
    pub(super) fn window_due(&self) -> Option<Tick> {
        let job = self.copy.as_ref().filter(|job| job.locked && job.has_todo())?;
        let room = job.windows.len() < limits::RESYNC_WINDOWS_GUARDED;
        self.pace.due(self.now).filter(|_| room)
    }

    pub(super) fn copy_call(
        &mut self,
        rid: ReplicaId,
        step: Step,
        mutates: bool,
        request: Request,
    ) {
        self.call(rid, Purpose::Copy(step), mutates, request);
    }

    fn start_window(&mut self) {
        let lock = self.guests_next_lock();
        let held = self.has(Bug::ResyncWithoutLock);
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        let Some(job) = self.copy.as_mut() else { return };
        let Some((blocks, since)) = job.todo.pop(job.since, volume) else { return };
        let (Some(first), Some(last)) = (blocks.ranges().first(), blocks.ranges().last()) else {
            return;
        };
        let count = u32::try_from(last.end() - first.start).unwrap_or(limits::MAX_OP_BLOCKS);
        let range = BlockRange::new(first.start, count);
        let window =
            Window { blocks, since, source: Vec::new(), plan: Vec::new(), heal: Heal::default() };
        job.windows.insert(lock, window);
        let unlocked = !job.locked || held;
        if unlocked || self.locks.acquire(lock, range, Mode::Exclusive) {
            self.window_locked(lock);
        }
    }

    /// The window's lock is held: nothing else touches its blocks until it is released.
    pub(super) fn window_locked(&mut self, lock: LockId) {
        let Some(job) = &self.copy else { return };
        let Some(window) = job.windows.get(&lock) else { return };
        let request = Request::Digest { blocks: window.blocks.clone(), since: window.since };
        let source = job.source;
        self.copy_call(source, Step::SourceDigest(lock), false, request);
    }

    pub(super) fn on_copied(&mut self, rid: ReplicaId, step: Step, reply: Reply) {
        let expected = match (&step, reply) {
            (Step::Scan, Reply::Regions { regions, next }) => self.on_scanned(&regions, next),
            (Step::SourceDigest(lock), Reply::Digests(d)) => self.on_source_digests(*lock, d),
            (Step::TargetDigest(lock), Reply::Digests(d)) => self.on_target_digests(*lock, &d),
            (Step::Read(lock), Reply::Data(payload)) => self.on_content(*lock, payload),
            (Step::Write(lock), Reply::Done) => self.on_written_over(*lock),
            (Step::TornRead(lock), Reply::Data(payload)) => self.on_torn_read(*lock, payload),
            (Step::TornWrite(lock), Reply::Done) => self.on_torn_written(*lock),
            (Step::TornFlush(lock), Reply::Done) => self.on_torn_durable(rid, *lock),
            (Step::GapDigest(lock, block), Reply::Digests(d)) => {
                self.on_gap_digest(*lock, *block, &d)
            }
            (Step::GapWrite(lock, block), Reply::Done) => self.leave_out(*lock, *block),
            (Step::Pull(lock), Reply::Done) => self.on_pulled(*lock),
            (step, reply) => self.on_heal(rid, step, reply),
        };
        if expected.is_none() {
            self.fail_peer(rid);
        }
        self.drive_copy();
    }

    fn on_scanned(&mut self, regions: &[RegionIndex], next: Option<RegionIndex>) -> Option<()> {
        let volume = self.cas.record()?.blocks;
        let job = self.copy.as_mut()?;
        job.scanning = false;
        job.scan = next;
        for region in regions {
            let Some(range) = BlockRange::of_region(*region, volume) else {
                // It was extended, and the volume was not: nobody wrote there.
                continue;
            };
            job.progress.total_bytes += range.bytes();
            job.todo.push_region(*region);
        }
        Some(())
    }

    fn on_source_digests(&mut self, lock: LockId, digests: Vec<BlockDigest>) -> Option<()> {
        let job = self.copy.as_mut()?;
        let (target, fresh) = (job.target, job.fresh);
        let window = job.windows.get_mut(&lock)?;
        if !digests.iter().all(|d| window.blocks.contains(d.block)) {
            return None;
        }
        self.pace.charge(self.now, digests.len() as u64 * u64::from(BLOCK_SIZE));
        window.source = digests;
        if window.source.is_empty() {
            self.finish_window(lock);
        } else if fresh {
            self.plan_window(lock, &[])?;
        } else {
            let blocks = window.source.iter().map(|d| BlockRange::new(d.block, 1)).collect();
            let request = Request::Digest { blocks, since: Gen(0) };
            self.copy_call(target, Step::TargetDigest(lock), false, request);
        }
        Some(())
    }

    fn on_target_digests(&mut self, lock: LockId, digests: &[BlockDigest]) -> Option<()> {
        let window = self.copy.as_ref()?.windows.get(&lock)?;
        let same = window.source.len() == digests.len()
            && window.source.iter().zip(digests).all(|(s, t)| s.block == t.block);
        if !same {
            return None;
        }
        let torn = self.torn_blocks(lock, digests);
        if torn.is_empty() { self.plan_window(lock, digests) } else { self.fetch_torn(lock, torn) }
    }

    /// Decides for each block whether its content has to move. A fresh target has zeroes.
    fn plan_window(&mut self, lock: LockId, target: &[BlockDigest]) -> Option<()> {
        let (equal, older) = (self.has(Bug::SkipEqualStamps), self.has(Bug::SkipOlderStamps));
        let job = self.copy.as_mut()?;
        let source = job.source;
        let window = job.windows.get_mut(&lock)?;
        let trusted = |s: &BlockDigest, t: &BlockDigest| {
            equal && t.stamp == s.stamp || older && t.stamp >= s.stamp
        };
        let decide = |(i, s): (usize, &BlockDigest)| {
            let same = target.get(i).map_or(s.zero, |t| t.digest == s.digest || trusted(s, t));
            let content = match (same, s.zero) {
                (true, _) => ResyncContent::Same,
                (false, true) => ResyncContent::Zero,
                (false, false) => ResyncContent::Data,
            };
            ResyncBlock { block: s.block, stamp: s.stamp, content }
        };
        window.plan = window.source.iter().enumerate().map(decide).collect();
        let moves = window.plan.iter().filter(|b| b.content == ResyncContent::Data);
        let blocks: BlockSet = moves.map(|b| BlockRange::new(b.block, 1)).collect();
        if blocks.is_empty() {
            self.write_window(lock, Payload::default())
        } else if self.may_pull() {
            self.pull_window(lock)
        } else {
            self.copy_call(source, Step::Read(lock), false, Request::Read { blocks });
            Some(())
        }
    }

    /// The target can't tell what it has in the window: it gets everything.
    fn rewrite_window(&mut self, lock: LockId) -> Option<()> {
        let window = self.copy.as_mut()?.window(lock)?;
        let nothing = Digest([0; 16]);
        let unlike = |s: &BlockDigest| BlockDigest { digest: nothing, ..*s };
        let target: Vec<BlockDigest> = window.source.iter().map(unlike).collect();
        self.plan_window(lock, &target)
    }

    fn on_content(&mut self, lock: LockId, payload: Payload) -> Option<()> {
        let job = self.copy.as_mut()?;
        let window = job.windows.get(&lock)?;
        let moves = window.plan.iter().filter(|b| b.content == ResyncContent::Data).count();
        if payload.blocks() != moves {
            return None;
        }
        job.progress.moved_bytes += moves as u64 * u64::from(BLOCK_SIZE);
        self.write_window(lock, payload)
    }

    fn write_window(&mut self, lock: LockId, payload: Payload) -> Option<()> {
        let target = self.copy.as_ref()?.target;
        let blocks = self.planned(lock)?;
        if blocks.is_empty() {
            self.finish_window(lock);
            return Some(());
        }
        let request = Request::Resync { blocks, payload };
        self.copy_call(target, Step::Write(lock), true, request);
        Some(())
    }

    /// What the target will be told of the window.
    fn planned(&self, lock: LockId) -> Option<Vec<ResyncBlock>> {
        let mut blocks = self.copy.as_ref()?.windows.get(&lock)?.plan.clone();
        if self.has(Bug::NoStampAdoption) {
            blocks.retain(|b| b.content != ResyncContent::Same);
        }
        Some(blocks)
    }

    fn on_written_over(&mut self, lock: LockId) -> Option<()> {
        self.copy.as_ref()?.windows.get(&lock)?;
        self.finish_window(lock);
        Some(())
    }

    pub(super) fn finish_window(&mut self, lock: LockId) {
        let Some(job) = self.copy.as_mut() else { return };
        if let Some(window) = job.windows.remove(&lock) {
            job.progress.done_bytes += bytes_of(&window.blocks);
            if job.locked && !self.has(Bug::ResyncWithoutLock) {
                self.release_lock(lock);
            }
        }
    }

    /// The copy can't go on with this replica.
    pub(super) fn on_copy_refused(&mut self, rid: ReplicaId, step: &Step, refusal: Refusal) {
        if let (Step::Pull(lock), Refusal::NotPulled) = (step, refusal) {
            return self.on_not_pulled(*lock);
        }
        let bad_block = matches!(refusal, Refusal::Io | Refusal::Checksum { .. });
        let (mended, reads) = match *step {
            _ if !bad_block => (None, false),
            Step::SourceDigest(lock) | Step::Read(lock) => (self.heal_source(lock, refusal), true),
            Step::Probe(lock) => (self.on_probed(lock, false), true),
            Step::HealRead(lock, block) => (self.heal_refused(rid, lock, block), true),
            Step::GapDigest(lock, block) => (self.write_gap(lock, block), true),
            Step::TargetDigest(lock) => (self.rewrite_window(lock), true),
            Step::TornRead(lock) => (self.torn_unreadable(lock), true),
            Step::Scan | Step::Write(_) | Step::Pull(_) | Step::HealWrite(..) => (None, false),
            Step::GapWrite(..) | Step::TornWrite(_) | Step::TornFlush(_) => (None, false),
            Step::HealCopy(..) | Step::HealFlush(..) => (None, false),
        };
        match mended {
            Some(()) => {}
            // A block that nobody can give ends this attempt, not the replica.
            None if reads && self.is_open() => self.abort_resync(),
            None => {
                self.on_refused(rid, refusal);
                // Its session ended with this very answer: nobody else tells the window.
                if let Step::HealRead(lock, block) = *step {
                    self.heal_lost(lock, block);
                }
            }
        }
    }

    /// Ends the copy job. A window that waits for an answer keeps its lock until the answer is
    /// there, so that nothing overlaps what a replica may still be doing.
    pub(super) fn abort_copy(&mut self) {
        let Some(job) = self.copy.take() else { return };
        let locks = job.locks();
        let mut busy = Vec::new();
        for call in self.calls.values_mut() {
            let Purpose::Copy(step) = &call.purpose else { continue };
            let lock = step.lock().filter(|lock| locks.contains(lock));
            busy.extend(lock);
            call.purpose = Purpose::Abandoned(lock.unwrap_or_default());
        }
        for lock in locks.into_iter().filter(|lock| !busy.contains(lock)) {
            self.release_lock(lock);
        }
    }
}
