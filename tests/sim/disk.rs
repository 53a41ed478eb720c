//! The disk under one replica: four files whose writes are visible at once and durable later.
//!
//! A process that is killed loses nothing that was applied. A power loss leaves each 4 KiB page at
//! its durable content or at any later one, page by page, which is every subset of un-flushed
//! writes; the newest un-flushed write of the meta file may also be torn at 512 bytes. On some
//! disks any page may be torn that has content which is not durable.

use bytes::Bytes;
use lockstep_core::block::ZEROES;
use lockstep_core::id::SnapshotId;
use lockstep_core::range::BlockRange;
use lockstep_store::Unwritten;
use lockstep_store::layout::File;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::content::{BLOCK, Value, value_of};
use crate::rng::Rng;

const PAGE: u64 = BLOCK as u64;
const SECTOR: usize = 512;

/// One content that a page had.
#[derive(Clone, Debug)]
struct Version {
    /// Counts the disk's writes.
    order: u64,
    /// `None` is zeroes.
    bytes: Option<Bytes>,
    /// Of a page of the data file: which write it comes from.
    value: Value,
    /// If it is torn, the older of the two writes it is made of; else `value`.
    older: Value,
}

const NEVER: Version = Version { order: 0, bytes: None, value: Value::ZERO, older: Value::ZERO };

/// The contents of a page: first the durable one, last the visible one.
#[derive(Clone, Debug)]
struct Page {
    versions: Vec<Version>,
}

impl Page {
    fn visible(&self) -> &Version {
        self.versions.last().unwrap_or(&NEVER)
    }

    fn durable(&self) -> &Version {
        self.versions.first().unwrap_or(&NEVER)
    }

    /// A mixture of two contents, the older of which is durable or not.
    fn tear(&self, key: Key, rng: &mut Rng) -> Version {
        let newer = rng.index(self.versions.len());
        let older = rng.index(newer + 1);
        let (older, newer) = (&self.versions[older], &self.versions[newer]);
        let bytes = torn(older, newer, rng);
        let value = if key.0 == 1 { value_of(key.1, &bytes) } else { Value::ZERO };
        let older = if value.is_torn() { older.older } else { value };
        Version { order: newer.order, bytes: Some(bytes), value, older }
    }
}

type Key = (u8, u64);

fn number(file: File) -> u8 {
    match file {
        File::Meta => 0,
        File::Data => 1,
        File::Tags => 2,
        File::Regions => 3,
    }
}

/// Four files.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pages: BTreeMap<Key, Page>,
    /// Pages with more than one version.
    dirty: BTreeSet<Key>,
    /// Pages that do not read as they were written last, until they are written again. What the
    /// checkers look at is what was written.
    damage: BTreeMap<Key, Damage>,
    order: u64,
    /// Snapshots that were taken of it.
    kept: BTreeMap<SnapshotId, Kept>,
    /// What was copied ahead for the next one.
    ahead: Option<Box<Disk>>,
}

/// A snapshot: what data, tags and regions read as.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The files; the fourth, with the superblock, is empty.
    pub disk: Box<Disk>,
    /// Size in blocks, told when it was made durable; until then it goes with the process.
    pub blocks: Option<u64>,
}

/// What is wrong with a page.
#[derive(Clone, Debug)]
pub enum Damage {
    /// It reads as something else.
    Shows(Bytes),
    /// It can't be read.
    Fails,
}

impl Disk {
    /// Writes `data` at `offset`; with `durable` it also survives a power loss from now on.
    pub fn write(&mut self, file: File, offset: u64, data: &Bytes, durable: bool) {
        for (page, start, part) in pieces(offset, data) {
            let bytes = if part.len() == BLOCK {
                part
            } else {
                let mut whole = self.page(file, page).to_vec();
                whole[start..start + part.len()].copy_from_slice(&part);
                Bytes::from(whole)
            };
            self.put(file, page, Some(bytes), durable);
        }
    }

    /// Keeps the content of a snapshot.
    pub fn keep(&mut self, id: SnapshotId, ahead: Option<&[BlockRange]>) {
        let disk = if let Some(ranges) = ahead {
            self.copy_ahead(false, ranges);
            self.ahead.take().unwrap_or_default()
        } else {
            let mut disk = Box::<Self>::default();
            disk.copy(self, File::Data, 0..u64::MAX);
            disk
        };
        self.kept.insert(id, Kept { disk, blocks: None });
    }

    /// Copies content ahead of a snapshot.
    pub fn copy_ahead(&mut self, fresh: bool, ranges: &[BlockRange]) {
        let mut ahead = self.ahead.take().filter(|_| !fresh).unwrap_or_default();
        for range in ranges {
            ahead.copy(self, File::Data, range.start..range.end());
        }
        self.ahead = Some(ahead);
    }

    /// Drops what was copied ahead.
    pub fn drop_ahead(&mut self) {
        self.ahead = None;
    }

    /// Keeps its tags too.
    pub fn keep_tags(&mut self, id: SnapshotId, unwritten: &Unwritten) {
        let Some(mut kept) = self.kept.remove(&id) else { return };
        kept.disk.copy(self, File::Tags, 0..u64::MAX);
        kept.disk.copy(self, File::Regions, 0..u64::MAX);
        for patch in unwritten.patches() {
            kept.disk.write(patch.file, patch.offset, &patch.data, true);
        }
        self.kept.insert(id, kept);
    }

    /// Makes a snapshot durable.
    pub fn seal(&mut self, id: SnapshotId, blocks: u64) {
        let kept = self.kept.get_mut(&id);
        kept.into_iter().for_each(|kept| kept.blocks = Some(blocks));
    }

    /// Whoever opens the files takes nothing for a snapshot that was not made durable.
    pub fn drop_unsealed(&mut self) {
        self.kept.retain(|_, kept| kept.blocks.is_some());
        self.ahead = None;
    }

    /// Makes these pages what they are there.
    fn copy(&mut self, from: &Self, file: File, pages: Range<u64>) {
        let all = (number(file), pages.start)..(number(file), pages.end);
        self.pages.retain(|key, _| !all.contains(key));
        self.damage.retain(|key, _| !all.contains(key));
        for (key, page) in from.pages.range(all.clone()) {
            self.pages.insert(*key, Page { versions: vec![page.visible().clone()] });
        }
        let damage = from.damage.range(all);
        self.damage.extend(damage.map(|(key, damage)| (*key, damage.clone())));
    }

    /// Drops a snapshot.
    pub fn drop_kept(&mut self, id: SnapshotId) {
        self.kept.remove(&id);
    }

    /// A snapshot.
    #[must_use]
    pub fn kept(&self, id: SnapshotId) -> Option<&Kept> {
        self.kept.get(&id)
    }

    /// Zeroes `len` bytes from `offset`, which are whole pages.
    pub fn zero(&mut self, file: File, offset: u64, len: u64, durable: bool) {
        assert!(offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE), "zeroing parts of pages");
        for page in offset / PAGE..(offset + len) / PAGE {
            if durable || self.pages.contains_key(&(number(file), page)) {
                self.put(file, page, None, durable);
            }
        }
    }

    /// What is read from there: as [`Self::read`], but for damage. `None` if it can't be read.
    #[must_use]
    pub fn given(&self, file: File, offset: u64, len: u64) -> Option<Bytes> {
        let whole = self.read(file, offset, len);
        let keys = (number(file), offset / PAGE)..(number(file), (offset + len).div_ceil(PAGE));
        if self.damage.range(keys.clone()).next().is_none() {
            return Some(whole);
        }
        let mut out = whole.to_vec();
        for ((_, page), damage) in self.damage.range(keys) {
            let Damage::Shows(bytes) = damage else { return None };
            let from = (page * PAGE).max(offset);
            let to = ((page + 1) * PAGE).min(offset + len);
            let part = &bytes[index(from - page * PAGE)..index(to - page * PAGE)];
            out[index(from - offset)..index(to - offset)].copy_from_slice(part);
        }
        Some(Bytes::from(out))
    }

    /// Damages a page.
    pub fn harm(&mut self, file: File, page: u64, damage: Damage) {
        self.damage.insert((number(file), page), damage);
    }

    /// Takes the damage back.
    pub fn heal(&mut self, file: File, page: u64) {
        self.damage.remove(&(number(file), page));
    }

    /// Is the page damaged?
    #[must_use]
    pub fn is_harmed(&self, file: File, page: u64) -> bool {
        self.damage.contains_key(&(number(file), page))
    }

    /// Has the page content that is not durable?
    #[must_use]
    pub fn is_dirty(&self, file: File, page: u64) -> bool {
        self.dirty.contains(&(number(file), page))
    }

    /// Damaged blocks of the data file.
    pub fn harmed_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.damage.range((1, 0)..=(1, u64::MAX)).map(|((_, block), _)| *block)
    }

    /// Blocks of the data file with content that is not durable.
    pub fn dirty_blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.dirty.range((1, 0)..=(1, u64::MAX)).map(|(_, block)| *block)
    }

    /// A flush of the data that started at `mark` fails: some of what it should have made durable
    /// is gone, and the system forgets that it was not. Answers how many pages lost something.
    pub fn flush_failed(&mut self, mark: u64, rng: &mut Rng) -> u64 {
        let mut lost = 0;
        let dirty: Vec<Key> = self.dirty.range((1, 0)..=(1, u64::MAX)).copied().collect();
        for key in dirty {
            let Some(page) = self.pages.get_mut(&key) else { continue };
            let newest = page.visible().order <= mark;
            if newest && page.versions.len() > 1 && rng.chance(500) {
                page.versions.truncate(page.versions.len() - 1);
                lost += 1;
            }
            if page.versions.len() <= 1 {
                self.dirty.remove(&key);
            }
        }
        lost
    }

    /// The `len` bytes from `offset`, as they were written.
    #[must_use]
    pub fn read(&self, file: File, offset: u64, len: u64) -> Bytes {
        let whole = offset.is_multiple_of(PAGE) && len == PAGE;
        if whole {
            return self.page(file, offset / PAGE);
        }
        // Only what was ever written is copied: files are mostly holes.
        let (first, end) = (offset / PAGE, (offset + len).div_ceil(PAGE));
        let keys = (number(file), first)..(number(file), end);
        let mut written = self.pages.range(keys.clone()).map(|(_, page)| page.visible());
        if len <= ZEROES.len() as u64 && written.all(|version| version.bytes.is_none()) {
            return Bytes::from_static(&ZEROES[..index(len)]);
        }
        let mut out = Vec::with_capacity(index(len));
        for ((_, page), found) in self.pages.range(keys) {
            let Some(bytes) = &found.visible().bytes else { continue };
            let from = (page * PAGE).max(offset);
            let to = ((page + 1) * PAGE).min(offset + len);
            out.resize(index(from - offset), 0);
            out.extend_from_slice(&bytes[index(from - page * PAGE)..index(to - page * PAGE)]);
        }
        out.resize(index(len), 0);
        Bytes::from(out)
    }

    /// What a flush that starts now will make durable: to be given to [`Self::flushed`].
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.order
    }

    /// A flush of `file` that started at `mark` is done.
    pub fn flushed(&mut self, file: File, mark: u64) {
        let keys: Vec<Key> =
            self.dirty.range((number(file), 0)..=(number(file), u64::MAX)).copied().collect();
        for key in keys {
            let Some(page) = self.pages.get_mut(&key) else { continue };
            let covered = page.versions.iter().rposition(|v| v.order <= mark).unwrap_or(0);
            page.versions.drain(..covered);
            if page.versions.len() <= 1 {
                self.dirty.remove(&key);
            }
        }
    }

    /// The power fails; so many in a thousand pages that are not durable are torn. Answers how
    /// many pages lost something, and how many of them are torn blocks of the data.
    pub fn power_loss(&mut self, rng: &mut Rng, tears: u64) -> (u64, u64) {
        let (mut lost, mut torn_blocks) = (0, 0);
        for key in std::mem::take(&mut self.dirty) {
            let Some(page) = self.pages.get_mut(&key) else { continue };
            let keep = match rng.below(4) {
                0 => 0,
                1 => page.versions.len() - 1,
                _ => rng.index(page.versions.len()),
            };
            lost += u64::from(keep + 1 < page.versions.len());
            if tears > 0 && key.0 != number(File::Meta) && rng.chance(tears) {
                let kept = page.tear(key, rng);
                torn_blocks += u64::from(kept.value.is_torn());
                page.versions = vec![kept];
                continue;
            }
            let mut kept = page.versions.swap_remove(keep);
            if key.0 == number(File::Meta) && rng.chance(300) {
                kept.bytes = Some(torn(page.durable(), &kept, rng));
            }
            page.versions = vec![kept];
        }
        (lost, torn_blocks)
    }

    /// Which write the block shows.
    #[must_use]
    pub fn visible(&self, block: u64) -> Value {
        self.pages.get(&(1, block)).map_or(Value::ZERO, |p| p.visible().value)
    }

    /// Which write the block shows at least after a power loss.
    #[must_use]
    pub fn durable(&self, block: u64) -> Value {
        self.pages.get(&(1, block)).map_or(Value::ZERO, |p| p.durable().value)
    }

    /// As [`Self::durable`]; of a torn block, the older of the two writes it is made of.
    #[must_use]
    pub fn durable_at_least(&self, block: u64) -> Value {
        self.pages.get(&(1, block)).map_or(Value::ZERO, |p| p.durable().older)
    }

    /// Blocks of the data file that were ever written, with what they show, in ascending order.
    pub fn shown(&self) -> impl Iterator<Item = (u64, Value)> + '_ {
        self.pages
            .range((1, 0)..=(1, u64::MAX))
            .map(|((_, block), page)| (*block, page.visible().value))
    }

    /// Blocks of the data file that were ever written.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.range((1, 0)..=(1, u64::MAX)).map(|((_, block), _)| *block)
    }

    fn page(&self, file: File, page: u64) -> Bytes {
        let found = self.pages.get(&(number(file), page));
        found
            .and_then(|p| p.visible().bytes.clone())
            .unwrap_or(Bytes::from_static(&ZEROES[..BLOCK]))
    }

    fn put(&mut self, file: File, page: u64, bytes: Option<Bytes>, durable: bool) {
        self.order += 1;
        let value = match (file, &bytes) {
            (File::Data, Some(bytes)) => value_of(page, bytes),
            _ => Value::ZERO,
        };
        let version = Version { order: self.order, bytes, value, older: value };
        let key = (number(file), page);
        self.damage.remove(&key);
        let page = self.pages.entry(key).or_insert_with(|| Page { versions: vec![NEVER] });
        if durable {
            page.versions.clear();
            self.dirty.remove(&key);
        } else {
            self.dirty.insert(key);
        }
        page.versions.push(version);
    }
}

/// A write cut into pages: page, offset in it, bytes.
pub fn pieces(offset: u64, data: &Bytes) -> Vec<(u64, usize, Bytes)> {
    let mut out = Vec::new();
    let mut from = 0;
    while from < data.len() {
        let at = offset + from as u64;
        let start = index(at % PAGE);
        let count = (BLOCK - start).min(data.len() - from);
        out.push((at / PAGE, start, data.slice(from..from + count)));
        from += count;
    }
    out
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn torn(old: &Version, new: &Version, rng: &mut Rng) -> Bytes {
    let mut out = vec![0; BLOCK];
    for sector in (0..BLOCK).step_by(SECTOR) {
        let from = if rng.chance(500) { old } else { new };
        if let Some(bytes) = &from.bytes {
            out[sector..sector + SECTOR].copy_from_slice(&bytes[sector..sector + SECTOR]);
        }
    }
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::payload;

    fn put(disk: &mut Disk, value: u64, durable: bool) {
        disk.write(File::Data, 3 * PAGE, &payload(Value(value), 3, 1), durable);
    }

    #[test]
    fn a_flush_covers_what_was_written_before_it_started() {
        let mut disk = Disk::default();
        put(&mut disk, 1, false);
        let mark = disk.mark();
        put(&mut disk, 2, false);
        assert_eq!((disk.durable(3), disk.visible(3)), (Value::ZERO, Value(2)));
        disk.flushed(File::Data, mark);
        assert_eq!((disk.durable(3), disk.visible(3)), (Value(1), Value(2)));
        disk.flushed(File::Data, disk.mark());
        assert_eq!((disk.durable(3), disk.visible(3)), (Value(2), Value(2)));
    }

    #[test]
    fn a_power_loss_leaves_the_durable_content_or_a_later_one() {
        let mut seen = BTreeSet::new();
        for seed in 0..64 {
            let mut disk = Disk::default();
            put(&mut disk, 1, true);
            put(&mut disk, 2, false);
            put(&mut disk, 3, false);
            disk.power_loss(&mut Rng::new(seed), 0);
            assert_eq!(disk.visible(3), disk.durable(3));
            seen.insert(disk.visible(3));
        }
        assert_eq!(seen, BTreeSet::from([Value(1), Value(2), Value(3)]));
    }

    #[test]
    fn a_torn_block_is_made_of_what_was_written_and_never_of_what_is_durable_alone() {
        let mut torn = 0;
        for seed in 0..64 {
            let mut disk = Disk::default();
            put(&mut disk, 1, true);
            disk.write(File::Data, 4 * PAGE, &payload(Value(9), 4, 1), true);
            put(&mut disk, 2, false);
            torn += disk.power_loss(&mut Rng::new(seed), 1000).1;
            assert_eq!(disk.visible(4), Value(9), "nobody was writing it");
            let shown = disk.visible(3);
            assert!(shown.is_torn() || shown == Value(1) || shown == Value(2));
            assert_eq!(shown.is_torn(), disk.durable_at_least(3) != shown);
            assert_eq!(shown, value_of(3, &disk.read(File::Data, 3 * PAGE, PAGE)));
        }
        assert!((10..64).contains(&torn), "{torn} blocks are torn");
    }

    #[test]
    fn parts_of_pages_are_read_back_as_written() {
        let mut disk = Disk::default();
        let data = Bytes::from((0..=255_u8).cycle().take(9000).collect::<Vec<_>>());
        disk.write(File::Tags, 4000, &data, false);
        assert_eq!(disk.read(File::Tags, 4000, 9000), data);
        assert_eq!(disk.read(File::Tags, 3992, 16)[..8], [0; 8]);
        disk.zero(File::Tags, 4096, 4096, false);
        assert_eq!(disk.read(File::Tags, 4095, 3)[..], [95, 0, 0]);
    }
}
