//! The store: what comes in, what goes out, and what each result of the disk leads to.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::id::{Gen, RegionIndex, Tick, Token};
use lockstep_core::planted::{Bug, Planted};
use lockstep_core::store::{StoreError, StoreNote, StoreOp, StoreReply};

use crate::activity::{Activity, Phase};
use crate::ahead::Ahead;
use crate::clean::Cleaner;
use crate::extend::Extends;
use crate::flush::Flushes;
use crate::layout::File;
use crate::log::{Log, Record};
use crate::mutate::Mutation;
use crate::op::{DiskError, DiskOp, DiskOpId, DiskOpKind};
use crate::promise::Promises;
use crate::read::{Digesting, Loader, Reading};
use crate::regions::Regions;
use crate::snapshot::Snapshots;
use crate::superblock::Superblock;
use crate::tags::TagCache;
use crate::tuning::Tuning;

/// The store of one replica whose files are open.
///
/// Call [`Store::submit`], [`Store::note`], [`Store::done`] and [`Store::tick`] as things happen.
/// After each of them, and once after [`Store::open`], poll [`Store::poll_disk`] and
/// [`Store::poll_done`] until both are empty.
///
/// The first write, zeroing or fdatasync that fails latches the store: whatever is under way fails
/// with that error, and whatever is submitted later with [`StoreError::Faulted`]. Such a replica
/// is opened again only after every disk operation handed out has come back. Failed reads do not
/// latch.
#[derive(Debug)]
pub struct Store {
    pub(crate) superblock: Superblock,
    pub(crate) promises: Promises,
    pub(crate) log: Log,
    pub(crate) activity: Activity,
    pub(crate) regions: Regions,
    pub(crate) tags: TagCache,
    /// Tables being read, and who waits for them.
    pub(crate) loads: BTreeMap<RegionIndex, Vec<Loader>>,
    pub(crate) flushes: Flushes,
    pub(crate) cleaner: Cleaner,
    pub(crate) extends: Extends,
    pub(crate) snapshots: Snapshots,
    pub(crate) ahead: Ahead,
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) tuning: Tuning,
    pub(crate) planted: Planted,
    pub(crate) now: Tick,
    last_job: u64,
    last_disk_op: u64,
    /// Not handed out yet.
    disk: VecDeque<DiskOp>,
    /// Handed out or about to be.
    in_flight: BTreeMap<DiskOpId, Purpose>,
    replies: VecDeque<(Token, Result<StoreReply, StoreError>)>,
    faulted: bool,
    /// Did a flush of the data fail, and is that not resolved?
    pub(crate) lost_cache: bool,
    /// In how many places of the superblock that is still to be written.
    pub(crate) marks_left: u8,
    /// Regions whose tags can't be read: when the first of them is in the log, the store latches.
    pub(crate) unreadable: BTreeSet<RegionIndex>,
}

/// What a disk operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// One place of the superblock.
    Superblock,
    /// A record of the activity log.
    Append,
    /// The fdatasync of the data.
    FlushData,
    /// Reading a table of tags.
    LoadTags(RegionIndex),
    /// Reading what the disk has as tags of a region whose tags are not trusted, for a job.
    OldTags(u64, RegionIndex),
    /// A part of a job: which job, which of its parts.
    Part(u64, usize),
    /// Reading a region whose checksums are to be rebuilt.
    Rebuild(RegionIndex),
    /// The cleaner writes tags or region entries.
    CleanWrite,
    /// The cleaner makes them durable.
    CleanSync,
    /// Growing the files.
    Extend,
    /// Something about snapshots.
    Snapshot,
    /// A copy that is made ahead.
    Ahead,
}

/// An operation that takes more than one step.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) token: Token,
    /// Things to happen before the next step.
    pub(crate) waiting: usize,
    /// The first thing that went wrong.
    pub(crate) failed: Option<StoreError>,
    pub(crate) work: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    Mutation(Mutation),
    Reading(Reading),
    Digesting(Digesting),
}

/// A store as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Regions in the activity log, or being set.
    pub active: usize,
    /// Of these, found at open and not resolved.
    pub unresolved: usize,
    /// Is any region unresolved?
    pub unclean: bool,
    /// Regions being cleaned.
    pub cleaning: usize,
    /// Regions that wait for room in the activity log.
    pub stalled: usize,
    /// Regions that some operation holds.
    pub pinned: usize,
    /// Entries of the regions file that were damaged when it was opened.
    pub damaged_regions: u32,
    /// Disk operations whose results are awaited.
    pub disk_ops: usize,
    /// Has the store latched?
    pub faulted: bool,
    /// Did a flush fail? Then it must be said when the files are opened again: what was not
    /// flushed may be gone.
    pub lost_cache: bool,
}

/// What [`Store::open`] found, as parts of a store.
pub(crate) struct Parts {
    pub(crate) superblock: Superblock,
    /// Is it lossy, and does the disk not say so in both places of the superblock?
    pub(crate) unmarked: bool,
    pub(crate) log: Log,
    pub(crate) last_record: Option<Record>,
    pub(crate) activity: Activity,
    pub(crate) regions: Regions,
    pub(crate) tuning: Tuning,
    pub(crate) planted: Planted,
}

impl Store {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { superblock, unmarked, log, last_record, activity, regions, tuning, planted } =
            parts;
        let mut store = Self {
            superblock,
            promises: Promises::default(),
            log,
            activity,
            regions,
            tags: TagCache::new(),
            loads: BTreeMap::new(),
            flushes: Flushes::default(),
            cleaner: Cleaner::default(),
            extends: Extends::default(),
            snapshots: Snapshots::default(),
            ahead: Ahead::default(),
            jobs: BTreeMap::new(),
            tuning,
            planted,
            now: Tick(0),
            last_job: 0,
            last_disk_op: 0,
            disk: VecDeque::new(),
            in_flight: BTreeMap::new(),
            replies: VecDeque::new(),
            faulted: false,
            lost_cache: unmarked,
            marks_left: 0,
            unreadable: BTreeSet::new(),
        };
        // At once: until it is there, only this process knows.
        if unmarked {
            store.persist_superblock();
        }
        if let Some(last) = last_record {
            let (offset, data) = store.log.repeat(&last);
            store.append(offset, data);
        }
        store
    }

    /// Starts an operation; its answer comes out of [`Store::poll_done`] under `token`.
    ///
    /// # Panics
    /// If it reaches beyond the end of the volume, or its payload does not fit: the replica checks
    /// what its peers send.
    pub fn submit(&mut self, now: Tick, token: Token, op: StoreOp) {
        self.now = self.now.max(now);
        if self.faulted {
            self.answer(token, Err(StoreError::Faulted));
            return;
        }
        match op {
            StoreOp::Promise { epoch, attach_seq, member_gen, lineage } => {
                self.superblock.identity.lineage = lineage;
                self.promise(token, epoch, attach_seq, member_gen);
            }
            StoreOp::Read { blocks } => self.read(token, &blocks),
            StoreOp::Write { range, stamp, durable, payload } => {
                self.write(token, range, stamp, durable, payload);
            }
            StoreOp::Zero { range, stamp, durable, deallocate } => {
                self.zero(token, range, stamp, durable, deallocate);
            }
            StoreOp::Resync { blocks, payload } => self.resync(token, &blocks, &payload),
            StoreOp::Mark { blocks } => self.mark(token, &blocks),
            StoreOp::Flush => self.flush(token),
            StoreOp::Complete => self.complete(token),
            StoreOp::Scan { since, from, limit } => self.scan(token, since, from, limit),
            StoreOp::Digest { blocks, since } => self.digest(token, blocks, since),
            StoreOp::CleanAll => self.clean_all(token),
            StoreOp::Extend { blocks } => self.extend(token, blocks),
            StoreOp::Prepare => self.prepare_snapshot(token),
            StoreOp::Snapshot { id } => self.take_snapshot(token, id),
            StoreOp::Seal { id } => self.seal_snapshot(token, id),
            StoreOp::DropSnapshot { id } => self.drop_snapshot(token, id),
        }
        self.settle();
    }

    /// Takes note of a remark.
    ///
    /// # Panics
    /// If it releases what is not pinned.
    pub fn note(&mut self, now: Tick, note: StoreNote) {
        self.now = self.now.max(now);
        if self.faulted {
            return;
        }
        match note {
            StoreNote::Restamp { blocks, stamp } => self.restamp(&blocks, stamp),
            StoreNote::RestampUnresolved { stamp } => self.restamp_unresolved(stamp),
            StoreNote::Release { blocks } => {
                for region in blocks.regions() {
                    self.activity.unpin(region);
                }
            }
            StoreNote::Resolve => self.resolve(),
        }
        self.settle();
    }

    /// Tells the result of a disk operation: what was read, or nothing.
    ///
    /// # Panics
    /// If there is no such operation under way.
    pub fn done(&mut self, now: Tick, id: DiskOpId, result: Result<Bytes, DiskError>) {
        self.now = self.now.max(now);
        let purpose = self.in_flight.remove(&id);
        assert!(purpose.is_some(), "disk operation {id:?} was not under way");
        if self.faulted {
            if purpose == Some(Purpose::FlushData) && result.is_err() {
                (self.lost_cache, self.marks_left) = (true, 2);
            }
            return self.mark_if_quiet();
        }
        match (purpose, result) {
            (Some(Purpose::LoadTags(region)), result) => self.on_tags(region, result),
            (Some(Purpose::Rebuild(region)), result) => self.on_rebuild(region, result),
            (Some(Purpose::OldTags(job, region)), result) => self.on_old_tags(job, region, result),
            (Some(Purpose::Part(job, part)), result) => self.on_part(job, part, result),
            (Some(Purpose::FlushData), Err(_)) if self.planted.has(Bug::IgnoreFlushError) => {
                self.on_data_flushed();
            }
            (Some(Purpose::FlushData), Err(error)) => self.on_flush_failed(error),
            (Some(Purpose::Extend), result) => self.on_extended(result.map(drop)),
            (Some(Purpose::Snapshot), result) => self.on_snapshot(result.map(drop)),
            (Some(Purpose::Ahead), result) => self.on_ahead(result.map(drop)),
            (Some(_), Err(error)) => self.latch(error),
            (Some(Purpose::Superblock), Ok(_)) => self.on_superblock(),
            (Some(Purpose::Append), Ok(_)) => self.on_appended(),
            (Some(Purpose::FlushData), Ok(_)) => self.on_data_flushed(),
            (Some(Purpose::CleanWrite), Ok(_)) => self.on_clean_written(),
            (Some(Purpose::CleanSync), Ok(_)) => self.on_clean_durable(),
            (None, _) => {}
        }
        self.settle();
    }

    /// Time has passed. Call it at [`Store::deadline`] at the latest.
    pub fn tick(&mut self, now: Tick) {
        self.now = self.now.max(now);
        self.settle();
    }

    /// When [`Store::tick`] has something to do. Nothing is due in a store without active regions.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        if self.faulted {
            return None;
        }
        let cleaning = self.activity.deadline().filter(|_| self.cleaner.is_idle());
        cleaning.into_iter().chain(self.ahead.deadline()).min()
    }

    /// The next disk operation to execute.
    pub fn poll_disk(&mut self) -> Option<DiskOp> {
        self.disk.pop_front()
    }

    /// The next answer.
    pub fn poll_done(&mut self) -> Option<(Token, Result<StoreReply, StoreError>)> {
        self.replies.pop_front()
    }

    /// The store as others see it.
    #[must_use]
    pub fn status(&self) -> Status {
        let counts = self.activity.counts();
        Status {
            active: counts.logged,
            unresolved: counts.unresolved,
            unclean: counts.unresolved > 0,
            cleaning: self.cleaner.batch_len(),
            stalled: counts.stalled,
            pinned: counts.pinned,
            damaged_regions: self.regions.damaged(),
            disk_ops: self.in_flight.len(),
            faulted: self.faulted,
            lost_cache: self.lost_cache,
        }
    }

    /// The superblock as it is, or will be when what is under way is durable.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The regions that are in the activity log on disk or are being set, ascending. A crash now
    /// makes exactly these, or some more that are just being cleared, unresolved.
    #[must_use]
    pub fn active_regions(&self) -> Vec<RegionIndex> {
        let mut active: Vec<RegionIndex> = self.log.active().collect();
        active.sort_unstable();
        active
    }

    /// No block of the region has a higher stamp, as far as is known without a look at the disk.
    #[must_use]
    pub fn newest_stamp(&self, region: RegionIndex) -> Gen {
        self.regions.max(region)
    }

    /// Asserts every internal invariant.
    ///
    /// # Panics
    /// If one does not hold.
    pub fn check(&self) {
        self.activity.check();
        self.log.check();
        for region in self.log.active() {
            assert!(self.activity.is_active(region), "the log has inactive region {region}");
        }
        for job in self.jobs.values() {
            assert!(self.faulted || job.waiting > 0, "{:?} waits for nothing", job.token);
        }
        let waiting = self.disk.iter().all(|op| self.in_flight.contains_key(&op.id));
        assert!(waiting, "a disk operation nobody waits for is to be handed out");
    }

    /// Leaves nothing undone that can be done.
    fn settle(&mut self) {
        if self.faulted {
            return;
        }
        let hopeless = !self.can_clean();
        for region in self.activity.admit(self.now, hopeless, self.regions.count()) {
            self.log.set(region);
        }
        self.drive_snapshots();
        self.drive_ahead();
        self.clean_on();
        self.clean_if_due();
        if let Some((offset, data)) = self.log.append() {
            self.append(offset, data);
        }
        self.answer_clean_all();
        let activity = &self.activity;
        let keep = self.tuning.cached_tables + activity.counts().logged;
        self.tags.shrink(keep, |region| !activity.is_active(region));
    }

    fn append(&mut self, offset: u64, data: Bytes) {
        let kind = DiskOpKind::Write { file: File::Meta, offset, data, durable: true };
        self.issue(Purpose::Append, kind);
    }

    fn on_appended(&mut self) {
        let appended = self.log.appended();
        for region in appended.clears {
            self.on_cleared(region);
        }
        for region in appended.sets {
            for job in self.activity.set_done(region) {
                self.countdown(job);
            }
        }
        self.latch_if_unreadable();
    }

    /// The tags of a region can't be read. The region goes into the log, so that the doubt is
    /// remembered; then the store fails. After the next opening the region is unresolved, its tags
    /// are not read, and are written anew once its content is settled.
    pub(crate) fn distrust(&mut self, region: RegionIndex) {
        self.activate(region, None);
        self.unreadable.insert(region);
        self.latch_if_unreadable();
    }

    fn latch_if_unreadable(&mut self) {
        let is_set = |region: &RegionIndex| {
            self.activity.get(*region).is_some_and(|entry| entry.phase == Phase::Set)
        };
        if self.unreadable.iter().any(is_set) {
            self.latch(DiskError::Io);
        }
    }

    /// Sees to it that a region is, or gets, active, and is not being cleaned. Is it set on disk
    /// already? If not, `job` will be woken.
    pub(crate) fn activate(&mut self, region: RegionIndex, job: Option<u64>) -> bool {
        let (now, log, cleaner) = (self.now, &mut self.log, &mut self.cleaner);
        let set = self.activity.update(region, |entry| {
            if core::mem::take(&mut entry.keeping) {
                cleaner.cancel(region);
            }
            if entry.cleaning {
                let too_late = matches!(entry.phase, Phase::Clearing { .. });
                if too_late && !log.cancel_clear(region) {
                    entry.phase = Phase::Clearing { again: true };
                } else {
                    entry.phase = Phase::Set;
                    entry.cleaning = false;
                    cleaner.cancel(region);
                }
            }
            entry.phase == Phase::Set
        });
        if set.is_none() {
            self.activity.add_stalled(region, now);
        }
        self.activity.touch(region, now);
        let set = set == Some(true);
        if let Some(job) = job.filter(|_| !set) {
            self.activity.wait_for(region, job);
        }
        set
    }

    pub(crate) fn new_job(&mut self) -> u64 {
        self.last_job += 1;
        self.last_job
    }

    /// One of the things that a job waits for has happened.
    pub(crate) fn countdown(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        assert!(job.waiting > 0, "job {id} was woken too often");
        job.waiting -= 1;
        if job.waiting > 0 {
            return;
        }
        match job.work {
            Work::Mutation(_) => self.advance_mutation(id),
            Work::Reading(_) => self.advance_reading(id),
            Work::Digesting(_) => self.advance_digesting(id),
        }
    }

    fn on_part(&mut self, id: u64, part: usize, result: Result<Bytes, DiskError>) {
        match (self.jobs.get_mut(&id).map(|job| (&mut job.work, &mut job.failed)), result) {
            (Some((Work::Mutation(_), _)), Err(error)) => return self.latch(error),
            (Some((_, failed)), Err(error)) => *failed = failed.or(Some(error.into())),
            (Some((Work::Reading(reading), _)), Ok(data)) => reading.data[part] = data,
            (Some((Work::Digesting(digesting), _)), Ok(data)) => digesting.data[part] = data,
            (Some((Work::Mutation(_), _)) | None, Ok(_)) | (None, Err(_)) => {}
        }
        self.countdown(id);
    }

    /// After a failed flush the system may have dropped what was written, and reports success for
    /// the next one (R6). That this replica may lack what it answered is its last word.
    fn on_flush_failed(&mut self, error: DiskError) {
        if self.planted.has(Bug::RetryFailedFlush) {
            return self.issue(Purpose::FlushData, DiskOpKind::Sync { file: File::Data });
        }
        (self.lost_cache, self.marks_left) = (true, 2);
        self.latch(error);
    }

    /// Notes in the superblock that un-flushed data may be gone, if nothing is being written there:
    /// in both places, since one may rot before the files are opened again.
    fn mark_if_quiet(&mut self) {
        let busy = self.in_flight.values().any(|purpose| *purpose == Purpose::Superblock);
        if self.marks_left > 0 && !busy {
            self.marks_left -= 1;
            self.superblock.lossy = true;
            self.write_superblock();
        }
    }

    /// Nothing can be trusted to be on the disk from now on.
    pub(crate) fn latch(&mut self, error: DiskError) {
        self.faulted = true;
        let error = StoreError::from(error);
        let mut tokens = Vec::new();
        for job in core::mem::take(&mut self.jobs).into_values() {
            match job.work {
                Work::Mutation(_) => tokens.push(job.token),
                // These would succeed, but for what failed.
                Work::Reading(_) | Work::Digesting(_) => {
                    self.answer(job.token, Err(StoreError::Faulted));
                }
            }
        }
        tokens.extend(self.flushes.abandon());
        tokens.extend(self.promises.abandon());
        tokens.extend(self.cleaner.abandon());
        tokens.extend(self.extends.abandon());
        tokens.extend(self.snapshots.abandon());
        self.loads.clear();
        self.activity.abandon();
        for op in self.disk.drain(..) {
            self.in_flight.remove(&op.id);
        }
        for token in tokens {
            self.answer(token, Err(error));
        }
        self.mark_if_quiet();
    }

    pub(crate) fn issue(&mut self, purpose: Purpose, kind: DiskOpKind) {
        self.last_disk_op += 1;
        let id = DiskOpId(self.last_disk_op);
        self.in_flight.insert(id, purpose);
        self.disk.push_back(DiskOp { id, kind });
    }

    pub(crate) fn answer(&mut self, token: Token, result: Result<StoreReply, StoreError>) {
        self.replies.push_back((token, result));
    }

    pub(crate) fn done_with(&mut self, token: Token) {
        self.answer(token, Ok(StoreReply::Done));
    }
}
