//! Cleaning: regions that are not written any more leave the activity log.
//!
//! A batch of regions goes through these stages, each after the one before is done for all:
//! tags that are missing in memory are read, or rebuilt from the data; the data is made durable;
//! tags and region entries are written; both are made durable; the regions are cleared in the
//! activity log. A region that is touched meanwhile drops out.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::id::{RegionIndex, Token};
use lockstep_core::planted::Bug;
use lockstep_core::range::{BLOCK_SIZE, BlockRange};
use lockstep_core::store::StoreError;

use crate::activity::{Active, Phase};
use crate::flush::Flusher;
use crate::layout::{File, data_offset, table_offset};
use crate::op::{DiskError, DiskOpKind};
use crate::read::Loader;
use crate::regions::Regions;
use crate::store::{Purpose, Store};
use crate::tags::Table;
use crate::unwritten::joined;

/// Tables and regions read at once: cleaning is not urgent, and guests use the same disk.
const CLEAN_READS: usize = 2;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Reading {
        left: VecDeque<RegionIndex>,
        under_way: usize,
    },
    Flushing,
    /// Tags may be written when they have been copied for a snapshot.
    Held,
    Writing {
        left: usize,
    },
    Durable {
        left: usize,
    },
    Clearing,
}

/// The batch being cleaned, and who waits for the log to be empty.
#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    stage: Stage,
    batch: BTreeSet<RegionIndex>,
    clean_all: Vec<Token>,
    /// Did a region of a batch drop out because it could not be read?
    failed: bool,
    /// Does the batch stay in the log?
    keeps: bool,
}

impl Cleaner {
    pub(crate) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Did a region of the last batch drop out because it could not be read?
    pub(crate) fn take_failed(&mut self) -> bool {
        core::mem::take(&mut self.failed)
    }

    pub(crate) fn batch_len(&self) -> usize {
        self.batch.len()
    }

    /// The region drops out of the batch.
    pub(crate) fn cancel(&mut self, region: RegionIndex) {
        self.batch.remove(&region);
        if self.batch.is_empty() && self.stage == Stage::Clearing {
            self.stage = Stage::Idle;
        }
    }

    pub(crate) fn abandon(&mut self) -> Vec<Token> {
        core::mem::take(&mut self.clean_all)
    }
}

impl Store {
    pub(crate) fn clean_all(&mut self, token: Token) {
        self.cleaner.clean_all.push(token);
        // What could not be read before may be readable now.
        self.cleaner.failed = false;
    }

    /// Answers those that wait for the log to be empty, if nothing more can be cleaned.
    pub(crate) fn answer_clean_all(&mut self) {
        let busy = !self.cleaner.is_idle() || self.log.is_busy();
        let failed = self.cleaner.failed;
        if busy || self.cleaner.clean_all.is_empty() {
            return;
        }
        if self.activity.is_anything_idle() && !failed {
            return;
        }
        for token in self.cleaner.abandon() {
            if failed {
                self.answer(token, Err(StoreError::Io));
            } else {
                self.done_with(token);
            }
        }
        self.cleaner.failed = false;
    }

    /// Is something being cleaned, or may it be? Not if what was tried last could not be read: to
    /// try that again and again would keep the disk busy, and whoever waits for room waiting.
    pub(crate) fn can_clean(&self) -> bool {
        !self.cleaner.is_idle() || self.activity.is_anything_idle() && !self.cleaner.failed
    }

    pub(crate) fn clean_if_due(&mut self) {
        let waited_for = !self.cleaner.clean_all.is_empty();
        if !self.cleaner.is_idle() || waited_for && self.cleaner.failed {
            return;
        }
        let batch = self.activity.batch(self.now, waited_for);
        if batch.is_empty() {
            return;
        }
        for region in &batch {
            self.activity.update(*region, |entry| entry.cleaning = true);
        }
        self.cleaner.keeps = false;
        self.start_batch(batch);
    }

    /// Reads what memory lacks of the tags of regions that nobody writes; they stay in the log. Is
    /// there any?
    pub(crate) fn read_tags(&mut self) -> bool {
        if !self.cleaner.is_idle() {
            return false;
        }
        let batch = self.unknown().filter(|(_, entry)| entry.is_readable());
        let batch: Vec<RegionIndex> = batch.map(|(region, _)| region).collect();
        if batch.is_empty() {
            return false;
        }
        for region in &batch {
            self.activity.update(*region, |entry| entry.keeping = true);
        }
        self.cleaner.keeps = true;
        self.start_batch(batch);
        true
    }

    /// Regions of whose tags neither the disk nor memory has all.
    pub(crate) fn unknown(&self) -> impl Iterator<Item = (RegionIndex, &Active)> {
        self.activity.dirty().filter(|(region, entry)| {
            let known = |table: &Table| table.is_loaded() || !entry.untrusted && table.is_whole();
            !self.tags.get(*region).is_some_and(known)
        })
    }

    fn start_batch(&mut self, batch: Vec<RegionIndex>) {
        self.cleaner.failed = false;
        self.cleaner.stage = Stage::Reading { left: batch.iter().copied().collect(), under_way: 0 };
        self.cleaner.batch = batch.into_iter().collect();
        self.read_for_cleaning();
    }

    fn read_for_cleaning(&mut self) {
        while let Some(region) = self.next_to_read() {
            if !self.cleaner.batch.contains(&region) || !self.needs_tags(region) {
                continue;
            }
            if let Stage::Reading { under_way, .. } = &mut self.cleaner.stage {
                *under_way += 1;
            }
            if self.is_untrusted(region) {
                self.rebuild(region);
            } else {
                self.load_tags(region, Some(Loader::Cleaner));
            }
        }
        if self.cleaner.stage == (Stage::Reading { left: VecDeque::new(), under_way: 0 }) {
            self.flush_for_cleaning();
        }
    }

    fn next_to_read(&mut self) -> Option<RegionIndex> {
        match &mut self.cleaner.stage {
            Stage::Reading { left, under_way } if *under_way < CLEAN_READS => left.pop_front(),
            _ => None,
        }
    }

    /// Are there tags to be written that are not all in memory?
    fn needs_tags(&self, region: RegionIndex) -> bool {
        self.is_dirty(region) && !self.tags.get(region).is_some_and(|table| table.is_loaded())
    }

    fn is_dirty(&self, region: RegionIndex) -> bool {
        self.activity.get(region).is_some_and(|entry| entry.dirty)
    }

    fn rebuild(&mut self, region: RegionIndex) {
        let range = BlockRange::of_region(region, self.superblock.blocks);
        let range = range.unwrap_or(BlockRange { start: 0, count: 0 });
        assert!(range.count > 0, "region {region} lies beyond the end of the volume");
        let (offset, len) = (data_offset(range.start), range.count * BLOCK_SIZE);
        let kind = DiskOpKind::Read { file: File::Data, offset, len };
        self.issue(Purpose::Rebuild(region), kind);
    }

    pub(crate) fn on_rebuild(&mut self, region: RegionIndex, result: Result<Bytes, DiskError>) {
        let range = BlockRange::of_region(region, self.superblock.blocks);
        // What it has grown by since is not written.
        let fits = |data: &Bytes| {
            let whole = !data.is_empty() && data.len().is_multiple_of(BLOCK_SIZE as usize);
            whole && range.is_some_and(|range| data.len() as u64 <= range.bytes())
        };
        let data = result.ok().filter(fits);
        let failed = data.is_none();
        // If it was written meanwhile, the data may be of before: rebuild it another time.
        if let Some(data) = data.filter(|_| self.cleaner.batch.contains(&region)) {
            let floor = self.activity.get(region).map(|entry| entry.floor).unwrap_or_default();
            self.tags.get_or_blank(region).rebuild(floor, &data);
        }
        self.on_clean_loaded(region, failed);
    }

    pub(crate) fn on_clean_loaded(&mut self, region: RegionIndex, failed: bool) {
        if failed && self.cleaner.batch.remove(&region) {
            self.cleaner.failed = true;
            self.activity.update(region, |entry| (entry.cleaning, entry.keeping) = (false, false));
            self.activity.touch(region, self.now);
        }
        if let Stage::Reading { under_way, .. } = &mut self.cleaner.stage {
            *under_way -= 1;
        }
        self.read_for_cleaning();
    }

    fn flush_for_cleaning(&mut self) {
        if self.cleaner.keeps {
            self.keep_batch();
        } else if self.cleaner.batch.is_empty() {
            self.cleaner.stage = Stage::Idle;
        } else if self.cleaner.batch.iter().any(|region| self.is_dirty(*region)) {
            self.cleaner.stage = Stage::Flushing;
            if self.planted.has(Bug::CleanWithoutFlush) {
                return self.on_clean_flushed();
            }
            self.flush_data(Flusher::Cleaner);
        } else {
            self.clear_batch();
        }
    }

    pub(crate) fn on_clean_flushed(&mut self) {
        assert_eq!(self.cleaner.stage, Stage::Flushing, "the cleaner did not wait for a flush");
        if self.snapshots.needs_tags() {
            self.cleaner.stage = Stage::Held;
            return;
        }
        self.write_batch();
    }

    /// Goes on with what was held.
    pub(crate) fn clean_on(&mut self) {
        if self.cleaner.stage == Stage::Held && !self.snapshots.needs_tags() {
            self.write_batch();
        }
    }

    fn write_batch(&mut self) {
        let dirty: Vec<RegionIndex> =
            self.cleaner.batch.iter().copied().filter(|region| self.is_dirty(*region)).collect();
        if dirty.is_empty() {
            self.clear_batch();
            return;
        }
        let mut pages = BTreeSet::new();
        let mut tables = Vec::new();
        for region in dirty {
            let table = self.tags.get_or_blank(region);
            let (max, bytes) = (table.max_stamp(), table.encode());
            self.regions.set(region, max);
            pages.insert(Regions::page_of(region));
            tables.push((table_offset(region), bytes));
        }
        let tables = joined(tables.into_iter());
        self.cleaner.stage = Stage::Writing { left: pages.len() + tables.len() };
        let pages = pages.into_iter().map(|page| self.regions.page(page)).collect::<Vec<_>>();
        let tables = tables.into_iter().map(|write| (File::Tags, write));
        for (file, (offset, data)) in tables.chain(pages.into_iter().map(|p| (File::Regions, p))) {
            let kind = DiskOpKind::Write { file, offset, data, durable: false };
            self.issue(Purpose::CleanWrite, kind);
        }
    }

    pub(crate) fn on_clean_written(&mut self) {
        let Stage::Writing { left } = &mut self.cleaner.stage else { return };
        *left -= 1;
        if *left == 0 && self.planted.has(Bug::ClearBeforeTags) {
            return self.clear_batch();
        }
        if *left == 0 {
            self.cleaner.stage = Stage::Durable { left: 2 };
            self.issue(Purpose::CleanSync, DiskOpKind::Sync { file: File::Tags });
            self.issue(Purpose::CleanSync, DiskOpKind::Sync { file: File::Regions });
        }
    }

    pub(crate) fn on_clean_durable(&mut self) {
        let Stage::Durable { left } = &mut self.cleaner.stage else { return };
        *left -= 1;
        if *left == 0 {
            self.clear_batch();
        }
    }

    fn clear_batch(&mut self) {
        let batch = self.cleaner.batch.clone();
        self.cleaner.stage = if batch.is_empty() { Stage::Idle } else { Stage::Clearing };
        for region in batch {
            self.activity.update(region, |entry| entry.phase = Phase::Clearing { again: false });
            self.log.clear(region);
        }
    }

    /// Memory has what it is to have of the batch.
    fn keep_batch(&mut self) {
        self.cleaner.stage = Stage::Idle;
        for region in core::mem::take(&mut self.cleaner.batch) {
            self.activity.update(region, |entry| entry.keeping = false);
        }
    }

    /// The region's clear record is durable.
    pub(crate) fn on_cleared(&mut self, region: RegionIndex) {
        if self.activity.clear_done(region) {
            self.log.set(region);
        }
        self.cleaner.cancel(region);
    }
}
