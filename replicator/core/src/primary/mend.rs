//! Mending: a block that a member can't read, or that does not match its checksum there, is
//! rewritten on that member with what another one holds.
//!
//! One range is looked at after the other, under the range lock, so that no write overlaps: all
//! members hold the same, but for the damage. The rewrite is a write like any other, to one
//! replica only: it is logged there, has the present generation as its stamp, and is read back.
//! A scrub is the same for every range of the volume and every member, with a comparison of the
//! members at the end of each range.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use super::{Effect, Notice, Phase, Primary, Purpose, ScrubProgress};
use crate::alike::Aside;
use crate::id::{RegionIndex, ReplicaId};
use crate::limits;
use crate::lock::{LockId, Mode};
use crate::message::{BlockDigest, Payload, Refusal, Reply, Request};
use crate::planted::Bug;
use crate::range::{BLOCK_SIZE, BlockRange};

/// How often a block is rewritten that can't be read back.
const REWRITES: u32 = 2;

/// What is being mended, and what will be.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Mending {
    /// Start, member and length of ranges with bad blocks.
    queue: BTreeSet<(u64, ReplicaId, u32)>,
    job: Option<Job>,
    /// The region that a scrub looks at, or will. It stays that one until all of it was looked at.
    scrub: Option<RegionIndex>,
    /// Blocks mended since the claim, by member.
    mended: Aside<BTreeMap<ReplicaId, u64>>,
}

/// A range being looked at.
#[derive(Clone, Debug, Hash)]
struct Job {
    range: BlockRange,
    lock: LockId,
    /// The member looked at.
    rid: ReplicaId,
    /// Members to be looked at after it.
    others: Vec<ReplicaId>,
    /// Parts of the range still to be read from it, the next one last.
    todo: Vec<BlockRange>,
    step: Step,
    /// Members that could not give the bad block at hand.
    tried: BTreeSet<ReplicaId>,
    /// Blocks that other members could not give.
    suspects: BTreeSet<(u64, ReplicaId)>,
    /// How often each bad block was rewritten.
    rewritten: BTreeMap<u64, u32>,
    /// Are the members compared at the end?
    compares: bool,
}

/// What a job waits for.
#[derive(Clone, Debug, Hash)]
enum Step {
    Locking,
    /// The member reads.
    Reading(BlockRange),
    /// Another one reads the first block of the range, which is bad on the member.
    Fetching(BlockRange, ReplicaId),
    /// The member writes that block; then it reads the range again.
    Writing(BlockRange),
    /// Members tell their digests.
    Comparing {
        left: BTreeSet<ReplicaId>,
        first: Option<Vec<BlockDigest>>,
    },
}

impl Mending {
    pub(super) fn is_idle(&self) -> bool {
        self.job.is_none() && self.queue.is_empty()
    }

    /// Is a block known to be bad and not mended yet on another member than this? A scrub that has
    /// found nothing is no reason to think so.
    pub(super) fn knows_bad_beside(&self, rid: ReplicaId) -> bool {
        let job = self.job.as_ref().filter(|job| match job.step {
            _ if job.rid == rid => false,
            _ if !job.compares || !job.suspects.is_empty() => true,
            Step::Reading(_) => !job.todo.is_empty(),
            Step::Fetching(..) | Step::Writing(_) => true,
            Step::Locking | Step::Comparing { .. } => false,
        });
        job.is_some() || self.queue.iter().any(|(_, other, _)| *other != rid)
    }

    /// Is something in this range to be mended?
    pub(super) fn concerns(&self, range: BlockRange) -> bool {
        let queued = self.queue.iter().take_while(|(start, _, _)| *start < range.end());
        let mut queued = queued.map(|(start, _, count)| BlockRange::new(*start, *count));
        self.job.as_ref().is_some_and(|job| job.range.overlaps(range))
            || queued.any(|queued| queued.overlaps(range))
    }

    /// Blocks of `rid` mended since the claim.
    pub(super) fn mended(&self, rid: &ReplicaId) -> u64 {
        self.mended.get(rid).copied().unwrap_or_default()
    }

    fn job(&mut self, lock: LockId) -> Option<&mut Job> {
        self.job.as_mut().filter(|job| job.lock == lock)
    }
}

impl Primary {
    /// A member could not read all of a range.
    pub(super) fn mend_later(&mut self, rid: ReplicaId, range: BlockRange, refusal: Refusal) {
        let known = match refusal {
            Refusal::Checksum { block } if range.contains(block) => BlockRange::new(block, 1),
            _ => range,
        };
        if self.mending.queue.len() < limits::MEND_QUEUE {
            self.mending.queue.insert((known.start, rid, known.count));
        }
    }

    pub(super) fn on_scrub(&mut self) {
        if matches!(self.phase, Phase::Active | Phase::Suspended) {
            self.mending.scrub.get_or_insert(RegionIndex(0));
        }
    }

    /// Is a scrub under way, its last region included?
    pub(super) fn is_scrubbing(&self) -> bool {
        self.mending.scrub.is_some() || self.mending.job.as_ref().is_some_and(|job| job.compares)
    }

    /// How far a scrub is.
    pub(super) fn scrub_progress(&self) -> Option<ScrubProgress> {
        let total_bytes = self.cas.record()?.blocks * u64::from(BLOCK_SIZE);
        let done = BlockRange::of_region(self.mending.scrub?, limits::MAX_VOLUME_BLOCKS)?;
        let done_bytes = total_bytes.min(done.start * u64::from(BLOCK_SIZE));
        Some(ScrubProgress { done_bytes, total_bytes })
    }

    /// Starts the next job when the one before is over.
    pub(super) fn drive_mend(&mut self) {
        if !self.is_open() {
            return;
        }
        loop {
            match self.mending.job.as_ref().map(|job| job.rid) {
                Some(rid) if self.can_serve(rid) => return,
                Some(_) => self.abort_mend(),
                None if !self.begin_mend() => break,
                None => {}
            }
        }
        self.resume_deferred();
    }

    fn can_serve(&self, rid: ReplicaId) -> bool {
        self.is_serving(rid) && self.cas.record().is_some_and(|r| r.is_in_sync(rid))
    }

    /// `false` if there is nothing to do.
    fn begin_mend(&mut self) -> bool {
        while let Some((start, rid, count)) = self.mending.queue.pop_first() {
            if self.can_serve(rid) {
                self.begin_job(BlockRange::new(start, count), vec![rid], false);
                return true;
            }
        }
        let Some(region) = self.mending.scrub else { return false };
        let volume = self.cas.record().map_or(0, |r| r.blocks);
        let range = BlockRange::of_region(region, volume).filter(|range| range.count > 0);
        let (Some(range), false) = (range, self.closing.is_some()) else {
            self.mending.scrub = None;
            return false;
        };
        // A member that is missed is back or removed soon. What it has is looked at as well.
        let members = self.members();
        let complete = members.iter().all(|rid| self.is_serving(*rid));
        if complete {
            self.begin_job(range, members, true);
        }
        complete
    }

    fn begin_job(&mut self, range: BlockRange, mut members: Vec<ReplicaId>, compares: bool) {
        let lock = self.guests_next_lock();
        let Some(rid) = members.pop() else { return };
        self.mending.job = Some(Job {
            range,
            lock,
            rid,
            others: members,
            todo: vec![range],
            step: Step::Locking,
            tried: BTreeSet::new(),
            suspects: BTreeSet::new(),
            rewritten: BTreeMap::new(),
            compares,
        });
        let unlocked = self.params.planted.has(Bug::MendWithoutLock);
        if unlocked || self.locks.acquire(lock, range, Mode::Exclusive) {
            self.mend_next();
        }
    }

    /// Is it the lock of the job? Then it is held from now on.
    pub(super) fn mend_locked(&mut self, lock: LockId) -> bool {
        let mine = self.mending.job(lock).is_some();
        if mine {
            self.mend_next();
        }
        mine
    }

    /// Reads the next part of the range from the member, or goes on to the next member.
    fn mend_next(&mut self) {
        let Some(job) = self.mending.job.as_mut() else { return };
        job.tried.clear();
        if let Some(range) = job.todo.pop() {
            let (rid, lock) = (job.rid, job.lock);
            job.step = Step::Reading(range);
            self.mend_call(rid, lock, false, Request::Read { blocks: range.into() });
        } else if let Some(rid) = job.others.pop() {
            job.rid = rid;
            job.todo.push(job.range);
            self.mend_next();
        } else if job.compares {
            self.compare_members();
        } else {
            self.end_mend();
        }
    }

    fn mend_call(&mut self, rid: ReplicaId, lock: LockId, mutates: bool, request: Request) {
        if self.is_serving(rid) {
            self.call(rid, Purpose::Mend(lock), mutates, request);
        } else {
            self.abort_mend();
        }
    }

    pub(super) fn on_mend(&mut self, rid: ReplicaId, lock: LockId, reply: Reply) {
        let Some(job) = self.mending.job(lock) else { return };
        match (&mut job.step, reply) {
            (Step::Reading(range), Reply::Data(data)) if data.blocks() == range.count as usize => {
                let range = *range;
                self.mend_suspects(range);
                self.mend_next();
            }
            (Step::Reading(range), Reply::Refused(Refusal::Checksum { block }))
                if range.contains(block) =>
            {
                let bad = from(*range, block);
                self.fetch_good(bad);
            }
            (Step::Reading(range), Reply::Refused(Refusal::Io)) => {
                let (range, half) = (*range, range.count / 2);
                if half == 0 {
                    return self.fetch_good(range);
                }
                job.todo.push(from(range, range.start + u64::from(half)));
                job.todo.push(BlockRange::new(range.start, half));
                self.mend_next();
            }
            (Step::Fetching(bad, _), Reply::Data(data)) if data.blocks() == 1 => {
                let bad = *bad;
                self.rewrite(bad, data);
            }
            (Step::Fetching(bad, _), Reply::Refused(Refusal::Io | Refusal::Checksum { .. })) => {
                let bad = *bad;
                job.tried.insert(rid);
                job.suspects.insert((bad.start, rid));
                self.fetch_good(bad);
            }
            (Step::Writing(bad), Reply::Done) => {
                let block = bad.start;
                self.note_mended(rid, block);
                self.mend_next();
            }
            (Step::Comparing { .. }, Reply::Digests(digests)) => self.compared(rid, digests),
            (Step::Comparing { .. }, Reply::Refused(Refusal::Io | Refusal::Checksum { .. })) => {
                self.end_mend();
            }
            // A member that fails says nothing about the block: it may have it when it is back.
            (_, reply) => {
                self.abort_mend();
                match reply {
                    Reply::Refused(refusal) => self.on_refused(rid, refusal),
                    _ => self.fail_peer(rid),
                }
            }
        }
    }

    /// What is good here now can be given to the members that lacked it. Not before: two that lack
    /// the same block would each send the other to be mended, for ever.
    fn mend_suspects(&mut self, good: BlockRange) {
        let Some(job) = self.mending.job.as_mut() else { return };
        let (known, rest) =
            core::mem::take(&mut job.suspects).into_iter().partition(|(b, _)| good.contains(*b));
        job.suspects = rest;
        let known: BTreeSet<(u64, ReplicaId)> = known;
        for (block, rid) in known {
            self.mend_later(rid, BlockRange::new(block, 1), Refusal::Checksum { block });
        }
    }

    pub(super) fn note_mended(&mut self, rid: ReplicaId, block: u64) {
        *self.mending.mended.entry(rid).or_default() += 1;
        self.counters.mended_blocks += 1;
        if self.mending.job.as_ref().is_none_or(|job| !job.compares) {
            self.note_bad(rid);
        }
        self.out.push(Effect::Notice(Notice::Mended { replica: rid, block }));
    }

    /// Asks another member for the first block of `bad`, which the member at hand lacks.
    fn fetch_good(&mut self, bad: BlockRange) {
        let members = self.members();
        let Some(job) = self.mending.job.as_ref() else { return };
        let (rid, lock, block) = (job.rid, job.lock, bad.start);
        let stubborn = job.rewritten.get(&block).is_some_and(|n| *n >= REWRITES);
        let untried = |m: &&ReplicaId| **m != rid && !job.tried.contains(*m);
        let source = members.iter().filter(untried).find(|m| self.is_serving(**m)).copied();
        let none_left = members.iter().find(untried).is_none();
        let Some(job) = self.mending.job.as_mut() else { return };
        match source.filter(|_| !stubborn) {
            Some(source) => {
                job.step = Step::Fetching(bad, source);
                let blocks = BlockRange::new(block, 1).into();
                self.mend_call(source, lock, false, Request::Read { blocks });
            }
            None => {
                // It stays bad. What comes after it is looked at all the same.
                if bad.count > 1 {
                    job.todo.push(from(bad, block + 1));
                }
                if none_left {
                    self.note_unreadable(block);
                }
                self.mend_next();
            }
        }
    }

    fn rewrite(&mut self, bad: BlockRange, payload: Payload) {
        let Some(job) = self.mending.job.as_mut() else { return };
        let (rid, lock, range) = (job.rid, job.lock, BlockRange::new(bad.start, 1));
        *job.rewritten.entry(bad.start).or_default() += 1;
        // Read back: the disk may have lost this write too.
        job.todo.push(bad);
        job.step = Step::Writing(bad);
        // Durable at once: until then a power cut leaves a block whose damage nobody knows of.
        self.mend_call(rid, lock, true, Request::Write { range, fua: true, payload });
    }

    /// Members that serve have to hold the same, as no write is in flight here.
    fn compare_members(&mut self) {
        let members: BTreeSet<_> =
            self.members().into_iter().filter(|rid| self.is_serving(*rid)).collect();
        let Some(job) = self.mending.job.as_mut() else { return };
        let (lock, range) = (job.lock, job.range);
        job.step = Step::Comparing { left: members.clone(), first: None };
        for rid in members {
            let request = Request::Digest { blocks: range.into(), since: Default::default() };
            self.mend_call(rid, lock, false, request);
        }
    }

    fn compared(&mut self, rid: ReplicaId, digests: Vec<BlockDigest>) {
        let Some(Job { step: Step::Comparing { left, first }, .. }) = &mut self.mending.job else {
            return;
        };
        left.remove(&rid);
        let done = left.is_empty();
        let first = first.get_or_insert_with(|| digests.clone());
        let differs = |(a, b): &(&BlockDigest, &BlockDigest)| a.digest != b.digest;
        let differing: Vec<u64> =
            first.iter().zip(&digests).filter(differs).map(|(a, _)| a.block).collect();
        self.counters.diverged_blocks += differing.len() as u64;
        self.out
            .extend(differing.into_iter().map(|block| Effect::Notice(Notice::Diverged { block })));
        if done {
            self.end_mend();
        }
    }

    /// The session on which something was asked for the job is gone.
    pub(super) fn mend_lost(&mut self, lock: LockId) {
        match self.mending.job(lock) {
            Some(_) => {
                if self.has(Bug::SkippingScrub) {
                    self.pass_region();
                }
                // What is left of it will be met again.
                self.abort_mend();
            }
            None => self.release_lock(lock),
        }
    }

    /// The job is done.
    fn end_mend(&mut self) {
        self.pass_region();
        self.abort_mend();
    }

    /// A scrub goes on to the next region.
    fn pass_region(&mut self) {
        let scrubs = self.mending.job.as_ref().is_some_and(|job| job.compares);
        if let Some(region) = self.mending.scrub.as_mut().filter(|_| scrubs) {
            *region = RegionIndex(region.0 + 1);
        }
    }

    /// Gives the job up. If it waits for an answer, its lock is kept until the answer is there.
    pub(super) fn abort_mend(&mut self) {
        let Some(job) = self.mending.job.take() else { return };
        let mut busy = false;
        for call in self.calls.values_mut() {
            if matches!(call.purpose, Purpose::Mend(lock) if lock == job.lock) {
                call.purpose = Purpose::Abandoned(job.lock);
                busy = true;
            }
        }
        if !busy {
            self.release_lock(job.lock);
        }
    }

    /// Forgets what is to be mended: it will be met again. A scrub goes on where it is.
    pub(super) fn forget_mending(&mut self) {
        self.abort_mend();
        self.mending.queue.clear();
    }
}

/// What is left of `range` from `block` on.
fn from(range: BlockRange, block: u64) -> BlockRange {
    let skipped = u32::try_from(block - range.start).unwrap_or(range.count);
    BlockRange::new(block, range.count - skipped)
}
