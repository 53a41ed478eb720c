//! What looks at blocks: read, digest and scan, and the loading of tags.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use bytes::{Bytes, BytesMut};
use lockstep_core::block::{self, ZERO_CRC};
use lockstep_core::gap;
use lockstep_core::id::{Gen, RegionIndex, Token};
use lockstep_core::message::{BlockDigest, Digest, Payload, Wholeness};
use lockstep_core::planted::Bug;
use lockstep_core::range::{BLOCK_SIZE, BlockRange, BlockSet, region_of};
use lockstep_core::store::{StoreError, StoreReply};

use crate::layout::{File, TABLE_BYTES, data_offset, table_offset};
use crate::op::{DiskError, DiskOpKind};
use crate::stamps::by_region;
use crate::store::{Job, Purpose, Store, Work};
use crate::tags::{Table, slot};

/// Largest single read: 4 MiB.
const READ_BLOCKS: u32 = 1024;
/// How often a read that ran into a write is tried again.
const READ_TRIES: u32 = 16;

/// Digest of a block of zeroes.
pub(crate) const OF_ZEROES: Digest =
    Digest(0xb6fb_73fc_4693_8c98_1e2b_0b4b_1ef2_82ad_u128.to_be_bytes());

/// Who waits for a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    Job(u64),
    Cleaner,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct Reading {
    pieces: Vec<BlockRange>,
    /// What was read of each piece.
    pub(crate) data: Vec<Bytes>,
    /// Tables that must stay in memory until the end.
    held: Vec<RegionIndex>,
    /// Number of mutations when it began.
    began: u64,
    tries: u32,
}

/// A digest under way.
#[derive(Debug)]
pub(crate) struct Digesting {
    blocks: BlockSet,
    since: Gen,
    held: Vec<RegionIndex>,
    /// What the disk has as tags of regions that are unresolved.
    old: BTreeMap<RegionIndex, Table>,
    /// Once the tags are known.
    picked: Option<Vec<Pick>>,
    pieces: Vec<BlockRange>,
    /// What was read of each piece.
    pub(crate) data: Vec<Bytes>,
    /// Number of mutations when it was read.
    began: u64,
    tries: u32,
}

impl Digesting {
    /// Every block that was read, with its content.
    fn contents(&self) -> impl Iterator<Item = (&Pick, &[u8])> {
        let contents = self.data.iter().flat_map(|data| data.chunks_exact(BLOCK_SIZE as usize));
        self.picked.iter().flatten().filter(|pick| pick.read).zip(contents)
    }
}

/// A block to be digested.
#[derive(Clone, Copy, Debug)]
struct Pick {
    block: u64,
    stamp: Gen,
    /// Is its content unknown without a read?
    read: bool,
}

impl Store {
    pub(crate) fn read(&mut self, token: Token, blocks: &BlockSet) {
        self.assert_inside(blocks);
        let id = self.new_job();
        let (held, loads) = self.hold_tables(blocks, id);
        let pieces = pieces(blocks);
        let (began, tries) = (self.tags.changes(), 1);
        let data = vec![Bytes::new(); pieces.len()];
        let waiting = loads + self.issue_reads(id, &pieces);
        let work = Work::Reading(Reading { pieces, data, held, began, tries });
        self.jobs.insert(id, Job { token, waiting, failed: None, work });
        if waiting == 0 {
            self.advance_reading(id);
        }
    }

    pub(crate) fn advance_reading(&mut self, id: u64) {
        let Some(Job { token, failed, work: Work::Reading(mut reading), .. }) =
            self.jobs.remove(&id)
        else {
            return;
        };
        let result = match failed {
            Some(error) => Err(error),
            None => self.checked(&mut reading),
        };
        let again = match result {
            Err(StoreError::Checksum { block }) => {
                reading.tries <= READ_TRIES && self.may_have_changed(block, reading.began)
            }
            _ => false,
        };
        if again {
            reading.tries += 1;
            reading.began = self.tags.changes();
            let waiting = self.issue_reads(id, &reading.pieces);
            let work = Work::Reading(reading);
            self.jobs.insert(id, Job { token, waiting, failed: None, work });
            return;
        }
        self.release_tables(&reading.held);
        self.answer(token, result.map(StoreReply::Data));
    }

    /// What was read, if it matches its tags.
    fn checked(&self, reading: &mut Reading) -> Result<Payload, StoreError> {
        let mut crcs = Vec::new();
        for (piece, data) in reading.pieces.iter().zip(&reading.data) {
            if data.len() as u64 != piece.bytes() {
                return Err(StoreError::Io);
            }
            let mut contents = data.chunks_exact(BLOCK_SIZE as usize);
            for part in by_region(*piece) {
                let expected = self.expected_crcs(region_of(part.start));
                for (block, content) in part.blocks().zip(&mut contents) {
                    let crc = block::crc(content);
                    if self.is_lost(content)
                        || expected(block).is_some_and(|expected| expected != crc)
                    {
                        return Err(StoreError::Checksum { block });
                    }
                    crcs.push(crc);
                }
            }
        }
        Ok(Payload { data: joined(&mut reading.data), crcs })
    }

    /// Does it say that the content of its block is lost?
    fn is_lost(&self, content: &[u8]) -> bool {
        gap::is_gap(self.superblock.identity.volume, content)
            || self.superblock.clone && gap::is_any_gap(content)
    }

    /// The checksums that the blocks of a region must have, as far as they are known.
    fn expected_crcs(&self, region: RegionIndex) -> impl Fn(u64) -> Option<u32> {
        let checks = !self.planted.has(Bug::NoChecksumCheck);
        let table = self.tags.get(region);
        let untouched = self.is_untouched(region).then_some(ZERO_CRC);
        move |block| {
            let known = table.map_or(untouched, |table| table.crc(slot(block)));
            known.filter(|_| checks)
        }
    }

    /// Was the block's region written since, or is it being written?
    fn may_have_changed(&self, block: u64, since: u64) -> bool {
        let region = region_of(block);
        let users = self.activity.get(region).map_or(0, |entry| entry.users);
        users > 0 || self.tags.get(region).is_some_and(|table| table.changed > since)
    }

    fn issue_reads(&mut self, id: u64, pieces: &[BlockRange]) -> usize {
        for (part, piece) in pieces.iter().enumerate() {
            let (offset, len) = (data_offset(piece.start), piece.count * BLOCK_SIZE);
            let kind = DiskOpKind::Read { file: File::Data, offset, len };
            self.issue(Purpose::Part(id, part), kind);
        }
        pieces.len()
    }

    /// Keeps the tables that these blocks need in memory, and loads those that are missing for
    /// the job. Returns which, and how many loads the job has to wait for.
    fn hold_tables(&mut self, blocks: &BlockSet, job: u64) -> (Vec<RegionIndex>, usize) {
        let mut held = Vec::new();
        let mut loads = 0;
        for region in blocks.regions() {
            let trusted = !self.is_untrusted(region);
            let unknown = !trusted && self.tags.get(region).is_none();
            if unknown || self.is_untouched(region) {
                continue;
            }
            let table = self.tags.get_or_blank(region);
            table.readers += 1;
            held.push(region);
            if trusted && !table.is_loaded() {
                self.load_tags(region, Some(Loader::Job(job)));
                loads += 1;
            }
        }
        (held, loads)
    }

    fn release_tables(&mut self, held: &[RegionIndex]) {
        for region in held {
            self.tags.get_or_blank(*region).readers -= 1;
        }
    }

    pub(crate) fn load_tags(&mut self, region: RegionIndex, loader: Option<Loader>) {
        let under_way = self.loads.contains_key(&region);
        self.loads.entry(region).or_default().extend(loader);
        if !under_way {
            let (offset, len) = (table_offset(region), TABLE_BYTES);
            let kind = DiskOpKind::Read { file: File::Tags, offset, len };
            self.issue(Purpose::LoadTags(region), kind);
        }
    }

    pub(crate) fn on_tags(&mut self, region: RegionIndex, result: Result<Bytes, DiskError>) {
        let loaders = self.loads.remove(&region).unwrap_or_default();
        let good = result.ok().filter(|disk| disk.len() == TABLE_BYTES as usize);
        let failed = good.is_none();
        if let (Some(table), Some(disk)) = (self.tags.get_mut(region), good) {
            table.merge(&disk);
        }
        if failed {
            self.distrust(region);
        }
        for loader in loaders {
            match loader {
                Loader::Cleaner => self.on_clean_loaded(region, failed),
                // Answered when the store latches: another copy is asked then.
                Loader::Job(_) if failed => {}
                Loader::Job(id) => self.countdown(id),
            }
        }
    }

    pub(crate) fn digest(&mut self, token: Token, blocks: BlockSet, since: Gen) {
        self.assert_inside(&blocks);
        let id = self.new_job();
        let (held, loads) = self.hold_tables(&blocks, id);
        let waiting = loads + self.load_old_tags(&blocks, id);
        let (pieces, data, old) = (Vec::new(), Vec::new(), BTreeMap::new());
        let (picked, began, tries) = (None, self.tags.changes(), 1);
        let digesting = Digesting { blocks, since, held, old, picked, pieces, data, began, tries };
        let work = Work::Digesting(digesting);
        self.jobs.insert(id, Job { token, waiting, failed: None, work });
        if waiting == 0 {
            self.advance_digesting(id);
        }
    }

    /// Reads what the disk has as tags of unresolved regions. They may be older than the data, so
    /// nothing is concluded from a block that does not match; but one that does is whole.
    fn load_old_tags(&mut self, blocks: &BlockSet, job: u64) -> usize {
        let mut loads = 0;
        for region in blocks.regions() {
            if self.activity.get(region).is_some_and(|entry| entry.unresolved) {
                let (offset, len) = (table_offset(region), TABLE_BYTES);
                let kind = DiskOpKind::Read { file: File::Tags, offset, len };
                self.issue(Purpose::OldTags(job, region), kind);
                loads += 1;
            }
        }
        loads
    }

    /// If they can't be read, no block of the region can be told to be whole.
    pub(crate) fn on_old_tags(
        &mut self,
        job: u64,
        region: RegionIndex,
        result: Result<Bytes, DiskError>,
    ) {
        let good = result.ok().filter(|disk| disk.len() == TABLE_BYTES as usize);
        let work = self.jobs.get_mut(&job).map(|job| &mut job.work);
        if let (Some(Work::Digesting(digesting)), Some(disk)) = (work, good) {
            let mut table = Table::blank();
            table.merge(&disk);
            digesting.old.insert(region, table);
        }
        self.countdown(job);
    }

    pub(crate) fn advance_digesting(&mut self, id: u64) {
        let Some(Job { token, failed, work: Work::Digesting(mut digesting), .. }) =
            self.jobs.remove(&id)
        else {
            return;
        };
        if failed.is_none() && digesting.picked.is_none() {
            let picked = self.pick(&digesting.blocks, digesting.since);
            let one = |pick: &Pick| BlockRange::new(pick.block, 1);
            let to_read: BlockSet = picked.iter().filter(|pick| pick.read).map(one).collect();
            digesting.pieces = pieces(&to_read);
            digesting.data = vec![Bytes::new(); digesting.pieces.len()];
            digesting.picked = Some(picked);
            let waiting = self.issue_reads(id, &digesting.pieces);
            if waiting > 0 {
                let work = Work::Digesting(digesting);
                self.jobs.insert(id, Job { token, waiting, failed, work });
                return;
            }
        }
        let result = match failed {
            Some(error) => Err(error),
            None => self.digests(&digesting),
        };
        if let Err(StoreError::Checksum { block }) = result
            && digesting.tries <= READ_TRIES
            && self.may_have_changed(block, digesting.began)
        {
            digesting.tries += 1;
            digesting.began = self.tags.changes();
            let waiting = self.issue_reads(id, &digesting.pieces);
            let work = Work::Digesting(digesting);
            self.jobs.insert(id, Job { token, waiting, failed: None, work });
            return;
        }
        self.release_tables(&digesting.held);
        self.answer(token, result.map(StoreReply::Digests));
    }

    /// What was read, if it is what the tags say: content that a disk lost or spoiled must be
    /// neither compared nor copied.
    fn digests(&mut self, digesting: &Digesting) -> Result<Vec<BlockDigest>, StoreError> {
        for (piece, data) in digesting.pieces.iter().zip(&digesting.data) {
            if data.len() as u64 != piece.bytes() {
                return Err(StoreError::Io);
            }
        }
        let mut crcs = BTreeMap::new();
        for (pick, content) in digesting.contents() {
            let crc = block::crc(content);
            if self.is_lost(content)
                || self.expected_crcs(region_of(pick.block))(pick.block)
                    .is_some_and(|expected| expected != crc)
            {
                return Err(StoreError::Checksum { block: pick.block });
            }
            crcs.insert(pick.block, crc);
        }
        self.learn_what_was_read(&crcs);
        let mut digests = digests(digesting, self.tuning.digest);
        for digest in &mut digests {
            digest.wholeness = self.wholeness(digesting, digest.block, &crcs);
        }
        Ok(digests)
    }

    /// What a power cut tears is in a region that was active then, and that is unresolved now.
    fn wholeness(&self, digesting: &Digesting, block: u64, crcs: &BTreeMap<u64, u32>) -> Wholeness {
        let region = region_of(block);
        if !self.activity.get(region).is_some_and(|entry| entry.unresolved) {
            return Wholeness::Whole;
        }
        if self.tags.get(region).is_some_and(|table| table.is_settled(slot(block))) {
            return Wholeness::Whole;
        }
        let old = digesting.old.get(&region).and_then(|table| table.crc(slot(block)));
        let whole = old.is_some() && crcs.get(&block).copied() == old;
        if whole { Wholeness::Whole } else { Wholeness::Doubtful }
    }

    /// Blocks without a trusted checksum get that of what was just read: it is about to be
    /// compared with another copy, and rot that comes later will be seen.
    fn learn_what_was_read(&mut self, crcs: &BTreeMap<u64, u32>) {
        for (block, crc) in crcs {
            let region = region_of(*block);
            if !self.is_untrusted(region) {
                continue;
            }
            let table = self.tags.get_or_blank(region);
            if table.crc(slot(*block)).is_none() {
                table.set_crc(slot(*block), *crc);
            }
        }
    }

    /// The blocks of interest.
    fn pick(&self, blocks: &BlockSet, since: Gen) -> Vec<Pick> {
        let mut picked = Vec::new();
        let ignores_log = self.planted.has(Bug::IgnoreSourceLog) && since > Gen(0);
        for range in blocks.ranges().iter().copied().flat_map(by_region) {
            let region = region_of(range.start);
            let entry = self.activity.get(region).filter(|_| !ignores_log);
            let unresolved = entry.is_some_and(|entry| entry.unresolved);
            let floor = entry.map(|entry| entry.floor).unwrap_or_default();
            let table = self.tags.get(region);
            let untrusted = self.is_untrusted(region);
            for block in range.blocks() {
                let stamp = table.and_then(|table| table.stamp(slot(block)));
                let stamp = stamp.unwrap_or_default().max(floor);
                if stamp >= since || unresolved {
                    picked.push(Pick { block, stamp, read: stamp > Gen(0) || untrusted });
                }
            }
        }
        picked
    }

    pub(crate) fn scan(&mut self, token: Token, since: Gen, from: RegionIndex, limit: u32) {
        let since = since.max(Gen(1));
        let unresolved = self.activity.unresolved();
        let mut regions = Vec::new();
        let mut next = None;
        for region in (from.0..self.regions.count()).map(RegionIndex) {
            let old = self.regions.max(region) < since;
            if old && (unresolved.is_empty() || unresolved.binary_search(&region).is_err()) {
                continue;
            }
            if regions.len() as u64 >= u64::from(limit.max(1)) {
                next = Some(region);
                break;
            }
            regions.push(region);
        }
        self.answer(token, Ok(StoreReply::Regions { regions, next }));
    }
}

/// The set in pieces of bounded size.
fn pieces(blocks: &BlockSet) -> Vec<BlockRange> {
    let mut out = Vec::new();
    for range in blocks.ranges() {
        let mut start = range.start;
        while start < range.end() {
            let left = range.end() - start;
            let count = u32::try_from(left).unwrap_or(READ_BLOCKS).min(READ_BLOCKS);
            out.push(BlockRange::new(start, count));
            start += u64::from(count);
        }
    }
    out
}

/// One buffer; without a copy if it was one before.
fn joined(data: &mut [Bytes]) -> Bytes {
    if let [one] = data {
        return core::mem::take(one);
    }
    let mut all = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
    data.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}

fn digests(digesting: &Digesting, hash: fn(&[u8]) -> Digest) -> Vec<BlockDigest> {
    let mut contents =
        digesting.data.iter().flat_map(|data| data.chunks_exact(BLOCK_SIZE as usize));
    let digest = |pick: &Pick| {
        let Pick { block, stamp, .. } = *pick;
        let content = if pick.read { contents.next() } else { None };
        let (zero, digest) = match content {
            Some(content) if !block::is_zero(content) => (false, hash(content)),
            Some(_) | None => (true, OF_ZEROES),
        };
        BlockDigest { block, stamp, zero, digest, wholeness: Wholeness::Unknown }
    };
    digesting.picked.iter().flatten().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_zeroes_is_what_it_is_said_to_be() {
        assert_eq!(crate::blake3_digest(&[0; BLOCK_SIZE as usize]), OF_ZEROES);
    }
}
