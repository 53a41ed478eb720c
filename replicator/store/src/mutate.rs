//! What changes blocks: write, zero, resync and mark.

use alloc::vec::Vec;
use lockstep_core::block::ZERO_CRC;
use lockstep_core::id::{Gen, RegionIndex, Token};
use lockstep_core::message::{Payload, ResyncBlock, ResyncContent};
use lockstep_core::planted::Bug;
use lockstep_core::range::{BlockRange, BlockSet, region_of};

use crate::flush::Flusher;
use crate::layout::{File, data_offset};
use crate::op::DiskOpKind;
use crate::stamps::by_region;
use crate::store::{Job, Purpose, Store, Work};
use crate::tags::slot;

/// A mutation under way.
#[derive(Debug)]
pub(crate) struct Mutation {
    regions: Vec<RegionIndex>,
    /// Blocks that are whole once it is done: those that are written, by a guest or to be mended.
    /// What a resync or a repair brings, or finds equal, is as torn as it is on the other copy.
    settles: Option<BlockRange>,
    parts: Vec<Part>,
    durable: Durable,
    stage: Stage,
}

/// New content of adjacent blocks.
#[derive(Clone, Debug)]
enum Part {
    Data { range: BlockRange, payload: Payload },
    Zero { range: BlockRange, deallocate: bool },
}

/// How a mutation gets durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durable {
    /// With the next flush.
    No,
    /// Each disk write is durable by itself.
    Writes,
    /// By a flush before the answer.
    Flush,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Until its regions are set in the activity log.
    Activating,
    /// Until its parts are written.
    Writing,
    /// Until they are durable.
    Flushing,
}

impl Store {
    pub(crate) fn write(
        &mut self,
        token: Token,
        range: BlockRange,
        stamp: Gen,
        durable: bool,
        payload: Payload,
    ) {
        assert_eq!(payload.blocks() as u64, u64::from(range.count), "payload of {range:?}");
        assert_eq!(payload.data.len() as u64, range.bytes(), "data of {range:?}");
        let durable = durable && !self.planted.has(Bug::VolatileFua);
        let durable = if durable { Durable::Writes } else { Durable::No };
        let parts = Vec::from([Part::Data { range, payload }]);
        let (set, stamps) = (BlockSet::from(range), [(range, stamp)]);
        self.mutate(token, &set, &stamps, parts, durable, Some(range));
    }

    pub(crate) fn zero(
        &mut self,
        token: Token,
        range: BlockRange,
        stamp: Gen,
        durable: bool,
        deallocate: bool,
    ) {
        let durable = durable && !self.planted.has(Bug::VolatileFua);
        let durable = if durable { Durable::Flush } else { Durable::No };
        let parts = Vec::from([Part::Zero { range, deallocate }]);
        let (set, stamps) = (BlockSet::from(range), [(range, stamp)]);
        self.mutate(token, &set, &stamps, parts, durable, Some(range));
    }

    pub(crate) fn resync(&mut self, token: Token, blocks: &[ResyncBlock], payload: &Payload) {
        let one = |b: &ResyncBlock| BlockRange::new(b.block, 1);
        let set: BlockSet = blocks.iter().map(one).collect();
        let stamps: Vec<_> = blocks.iter().map(|b| (one(b), b.stamp)).collect();
        let parts = resync_parts(blocks, payload);
        self.mutate(token, &set, &stamps, parts, Durable::No, None);
    }

    pub(crate) fn mark(&mut self, token: Token, blocks: &BlockSet) {
        self.mutate(token, blocks, &[], Vec::new(), Durable::No, None);
    }

    fn mutate(
        &mut self,
        token: Token,
        blocks: &BlockSet,
        stamps: &[(BlockRange, Gen)],
        parts: Vec<Part>,
        durable: Durable,
        settles: Option<BlockRange>,
    ) {
        self.assert_inside(blocks);
        let id = self.new_job();
        let regions = blocks.regions();
        let data_first = self.planted.has(Bug::DataBeforeLog);
        let mut waiting = 0;
        for region in &regions {
            let set = self.activate(*region, (!data_first).then_some(id));
            waiting += usize::from(!set && !data_first);
            self.activity.update(*region, |entry| entry.users += 1);
            self.activity.pin(*region);
        }
        // The stamps are in force from now on, so that a later Restamp is not lost when the write
        // is done; the checksums are those of the disk until then.
        for (range, stamp) in stamps {
            for part in by_region(*range) {
                let region = region_of(part.start);
                let table = self.table_to_change(region);
                part.blocks().for_each(|block| table.set_stamp(slot(block), *stamp));
                self.regions.raise(region, *stamp);
            }
        }
        let mutation = Mutation { regions, settles, parts, durable, stage: Stage::Activating };
        let work = Work::Mutation(mutation);
        self.jobs.insert(id, Job { token, waiting, failed: None, work });
        if waiting == 0 {
            self.advance_mutation(id);
        }
    }

    pub(crate) fn assert_inside(&self, blocks: &BlockSet) {
        let end = blocks.ranges().last().map_or(0, |range| range.end());
        assert!(end <= self.superblock.blocks, "{blocks:?} reach beyond the end of the volume");
    }

    pub(crate) fn advance_mutation(&mut self, id: u64) {
        let Some(Job { work: Work::Mutation(mutation), .. }) = self.jobs.get(&id) else { return };
        match (mutation.stage, mutation.durable) {
            (Stage::Activating, _) if !mutation.parts.is_empty() => self.issue_parts(id),
            (Stage::Writing, Durable::Flush) => {
                self.learn_checksums(id);
                self.enter(id, Stage::Flushing, 1);
                self.flush_data(Flusher::Job(id));
            }
            (Stage::Writing, Durable::No | Durable::Writes) => {
                self.learn_checksums(id);
                self.finish_mutation(id);
            }
            (Stage::Activating | Stage::Flushing, _) => self.finish_mutation(id),
        }
    }

    fn enter(&mut self, id: u64, stage: Stage, waiting: usize) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.waiting = waiting;
        if let Work::Mutation(mutation) = &mut job.work {
            mutation.stage = stage;
        }
    }

    fn issue_parts(&mut self, id: u64) {
        let Some(Job { work: Work::Mutation(mutation), .. }) = self.jobs.get(&id) else { return };
        let durable = mutation.durable == Durable::Writes;
        let (parts, regions) = (mutation.parts.clone(), mutation.regions.clone());
        self.note_change(&regions);
        self.enter(id, Stage::Writing, parts.len());
        for (index, part) in parts.into_iter().enumerate() {
            let file = File::Data;
            let kind = match part {
                Part::Data { range, payload } => {
                    let offset = data_offset(range.start);
                    DiskOpKind::Write { file, offset, data: payload.data, durable }
                }
                Part::Zero { range, deallocate } => {
                    let (offset, len) = (data_offset(range.start), range.bytes());
                    DiskOpKind::Zero { file, offset, len, deallocate }
                }
            };
            self.issue(Purpose::Part(id, index), kind);
        }
    }

    /// The content of these regions changes, or just has: a read under way may see either.
    fn note_change(&mut self, regions: &[RegionIndex]) {
        let change = self.tags.next_change();
        for region in regions {
            if let Some(table) = self.tags.get_mut(*region) {
                table.changed = change;
            }
        }
    }

    fn learn_checksums(&mut self, id: u64) {
        let Some(Job { work: Work::Mutation(mutation), .. }) = self.jobs.get_mut(&id) else {
            return;
        };
        let parts = core::mem::take(&mut mutation.parts);
        let regions = mutation.regions.clone();
        self.note_change(&regions);
        for part in parts {
            let (range, crcs) = match part {
                Part::Data { range, payload } => (range, payload.crcs),
                Part::Zero { range, .. } => (range, Vec::new()),
            };
            self.note_content(range);
            let mut crcs = crcs.into_iter();
            for part in by_region(range) {
                let table = self.tags.get_or_blank(region_of(part.start));
                for block in part.blocks() {
                    table.set_crc(slot(block), crcs.next().unwrap_or(ZERO_CRC));
                }
            }
        }
    }

    /// The mutation is done: its regions have one user less.
    pub(crate) fn finish_mutation(&mut self, id: u64) {
        let Some(Job { token, work: Work::Mutation(mutation), .. }) = self.jobs.remove(&id) else {
            return;
        };
        for part in mutation.settles.into_iter().flat_map(by_region) {
            let table = self.tags.get_or_blank(region_of(part.start));
            part.blocks().for_each(|block| table.settle(slot(block)));
        }
        for region in mutation.regions {
            self.activity.update(region, |entry| entry.users -= 1);
            self.activity.touch(region, self.now);
        }
        self.done_with(token);
    }
}

/// Cuts a resync into parts of adjacent blocks with the same kind of content.
fn resync_parts(blocks: &[ResyncBlock], payload: &Payload) -> Vec<Part> {
    let mut parts: Vec<(BlockRange, ResyncContent, usize)> = Vec::new();
    let mut used = 0;
    for block in blocks {
        if block.content != ResyncContent::Same {
            match parts.last_mut() {
                Some((range, content, _))
                    if *content == block.content && range.end() == block.block =>
                {
                    range.count += 1;
                }
                _ => parts.push((BlockRange::new(block.block, 1), block.content, used)),
            }
        }
        used += usize::from(block.content == ResyncContent::Data);
    }
    assert_eq!(used, payload.blocks(), "payload of a resync");
    let part = |(range, content, from): (BlockRange, ResyncContent, usize)| match content {
        ResyncContent::Data => {
            let count = crate::codec::index(u64::from(range.count));
            Part::Data { range, payload: payload.slice(from, count) }
        }
        ResyncContent::Zero | ResyncContent::Same => Part::Zero { range, deallocate: true },
    };
    parts.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use bytes::Bytes;

    #[test]
    fn a_resync_is_cut_where_blocks_are_not_adjacent_or_differ_in_kind() {
        use ResyncContent::{Data, Same, Zero};
        let block = |block, content| ResyncBlock { block, stamp: Gen(1), content };
        let blocks = [
            block(5, Data),
            block(6, Data),
            block(8, Data),
            block(9, Same),
            block(10, Zero),
            block(11, Zero),
            block(12, Data),
        ];
        let payload = Payload::checksummed(Bytes::from(vec![7; 4 * 4096]));
        let parts: Vec<_> = resync_parts(&blocks, &payload)
            .into_iter()
            .map(|part| match part {
                Part::Data { range, payload } => (range, payload.blocks()),
                Part::Zero { range, .. } => (range, 0),
            })
            .collect();
        let range = BlockRange::new;
        let expected = [(range(5, 2), 2), (range(8, 1), 1), (range(10, 2), 0), (range(12, 1), 1)];
        assert_eq!(parts, expected);
    }
}
