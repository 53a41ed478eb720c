//! Damage to what a copy keeps beside the content: superblock, activity log, regions.
//!
//! What is kept twice is damaged once, and then the copy opens as if nothing had happened. If both
//! are damaged, or what is there is something else, it has to be refused, and is replaced like one
//! whose files are gone.

use bytes::Bytes;
use lockstep_core::id::{Lineage, ReplicaId, VolumeId};
use lockstep_core::message::Payload;
use lockstep_store::layout::{
    File, LOG_OFFSET, LOG_RECORDS, LOG_SLOT_BYTES, file_bytes, region_count,
};
use lockstep_store::{DiskOpKind, Identity, OpenParams, Store};

use super::World;
use super::host::{apply, formatted};
use crate::content::BLOCK;
use crate::disk::{Damage, Disk};
use crate::fault::Fault;
use crate::node::Flight;

/// The pages of the meta file that hold the superblock.
const SUPERBLOCKS: [u64; 2] = [0, 1];
/// Records that are needed, at most: one less than there are slots.
const WINDOW: u64 = LOG_RECORDS as u64 - 1;
/// Where the CRC of a superblock and of a record of the log is, in its page.
const SUPERBLOCK_CRC: usize = 12;
const RECORD_CRC: usize = 16;

/// A page of the log, with the number of the record in it.
struct Place {
    page: u64,
    seq: u64,
}

/// The slots of the log in which there is a record.
fn records(disk: &Disk) -> Vec<Place> {
    let slot = |slot: u64| {
        let offset = u64::from(LOG_OFFSET) + slot * u64::from(LOG_SLOT_BYTES);
        let bytes = disk.read(File::Meta, offset + 8, 8);
        let seq = u64::from_le_bytes(bytes.as_ref().try_into().unwrap_or_default());
        (seq > 0).then_some(Place { page: offset / BLOCK as u64, seq })
    };
    (0..u64::from(LOG_RECORDS)).filter_map(slot).collect()
}

/// The other page that holds the same.
fn twin(page: u64) -> u64 {
    page ^ 1
}

impl World {
    /// A bit flips in something that is kept twice, or that has a checksum of its own; or the next
    /// write to something that is kept twice reaches one of the two places only.
    pub(super) fn rot_books(&mut self, node: usize) -> bool {
        let Some(copy) = self.nodes[node].copy.as_mut().filter(|c| c.host.is_some()) else {
            return false;
        };
        let places = records(&copy.disk);
        match self.rng.below(4) {
            0 => {
                let page = self.rng.below(2);
                self.flip(node, File::Meta, page, BLOCK)
            }
            1 => {
                let page = self.rng.pick(&places.iter().map(|p| p.page).collect::<Vec<_>>());
                let twin = self.rng.below(2);
                page.is_some_and(|page| self.flip(node, File::Meta, page + twin, BLOCK))
            }
            2 => {
                let used = region_count(self.plan.habits.blocks) as usize * 8;
                self.flip(node, File::Regions, 0, used)
            }
            _ => {
                // Counted when it hits a write.
                copy.mishap.get_or_insert(Fault::BookRot);
                false
            }
        }
    }

    /// Flips a bit in the first `used` bytes of a page, unless that or its twin is bad already.
    fn flip(&mut self, node: usize, file: File, page: u64, used: usize) -> bool {
        let (at, bit) = (self.rng.index(used.min(BLOCK)), self.rng.below(8));
        let Some(copy) = self.nodes[node].copy.as_mut() else { return false };
        let bad = |page| copy.disk.is_harmed(file, page);
        if bad(page) || file == File::Meta && bad(twin(page)) {
            return false;
        }
        let mut bytes = copy.disk.read(file, page * BLOCK as u64, BLOCK as u64).to_vec();
        bytes[at] ^= 1 << bit;
        copy.disk.harm(file, page, Damage::Shows(Bytes::from(bytes)));
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: a bit flips in file {file}, byte {at} of page {page}"));
        true
    }

    /// A write to the meta file, of which one page is not where the disk says it is.
    pub(super) fn half_write(&mut self, node: usize, flight: Flight) {
        let DiskOpKind::Write { offset, ref data, .. } = flight.kind else { return };
        let pages = (data.len() / BLOCK) as u64;
        let page = offset / BLOCK as u64 + self.rng.below(pages.max(1));
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let before = copy.disk.given(File::Meta, page * BLOCK as u64, BLOCK as u64);
        apply(&mut copy.disk, flight);
        let Some(before) = before.filter(|_| !copy.disk.is_harmed(File::Meta, twin(page))) else {
            return;
        };
        copy.disk.harm(File::Meta, page, Damage::Shows(before));
        let name = self.nodes[node].name.clone();
        self.say(|| format!("{name}: what is written to page {page} of file meta is lost"));
        self.count(Fault::BookRot);
    }

    /// When a copy is to be opened its books are damaged in both places, or are not its own: it is
    /// refused.
    pub(super) fn ruin(&mut self, node: usize) -> bool {
        let Some(rid) = self.dispensable(node) else { return false };
        self.lose_files(node, rid);
        let what = self.rng.below(8);
        let Some(mut copy) = self.nodes[node].copy.take() else { return false };
        let short = match what {
            0 => self.swap_files(&mut copy.disk, rid),
            1 => self.misstate(&mut copy.disk),
            2 => self.name_what_is_not_there(&mut copy.disk),
            3 => Some(self.rng.pick(&[File::Meta, File::Regions]).unwrap_or(File::Meta)),
            _ => self.spoil_both(&mut copy.disk),
        };
        let refused = self.open_ruined(&copy.disk, rid, short);
        let name = self.nodes[node].name.clone();
        match refused {
            Some(why) => self.say(|| format!("{name}: its copy is refused: {why}")),
            None => self.fail("open", format!("{name} opens a copy whose files are damaged")),
        }
        true
    }

    /// Both superblocks, or both copies of a record that is needed.
    fn spoil_both(&mut self, disk: &mut Disk) -> Option<File> {
        let places = records(disk);
        let last = places.iter().map(|p| p.seq).max().unwrap_or_default();
        // The last one may be torn, and then the one before it is the newest.
        let needed = |p: &&Place| p.seq + 1 < last && p.seq + WINDOW > last + 1;
        let pages: Vec<u64> = places.iter().filter(needed).map(|p| p.page).collect();
        let page = self.rng.pick(&pages).filter(|_| self.rng.chance(700)).unwrap_or(0);
        let wiped = self.rng.chance(200);
        for page in [page, twin(page)] {
            let mut bytes = disk.read(File::Meta, page * BLOCK as u64, BLOCK as u64).to_vec();
            if wiped {
                bytes.fill(0);
            } else {
                bytes[self.rng.index(BLOCK)] ^= 1 << self.rng.below(8);
            }
            disk.write(File::Meta, page * BLOCK as u64, &Bytes::from(bytes), true);
        }
        None
    }

    /// The files of another volume, copy or history are there.
    fn swap_files(&mut self, disk: &mut Disk, rid: ReplicaId) -> Option<File> {
        let other = self.uuid();
        let blocks = self.plan.habits.blocks;
        *disk = match self.rng.below(3) {
            0 => formatted(rid, VolumeId(other), self.lineage, blocks),
            1 => formatted(ReplicaId(other), self.volume, self.lineage, blocks),
            _ => formatted(rid, self.volume, Lineage(other), blocks),
        };
        None
    }

    /// A superblock says what none of this release does, and its checksum is right.
    fn misstate(&mut self, disk: &mut Disk) -> Option<File> {
        let newer = self.rng.chance(500);
        for page in SUPERBLOCKS {
            let mut bytes = disk.read(File::Meta, page * BLOCK as u64, BLOCK as u64).to_vec();
            if newer {
                bytes[8] += 1;
            } else {
                bytes[72..80].fill(0xff);
            }
            seal(&mut bytes, SUPERBLOCK_CRC);
            disk.write(File::Meta, page * BLOCK as u64, &Bytes::from(bytes), true);
        }
        None
    }

    /// A record of the log names a region that the volume does not have, and its checksum is
    /// right.
    fn name_what_is_not_there(&mut self, disk: &mut Disk) -> Option<File> {
        let places = records(disk);
        let Some(newest) = places.iter().max_by_key(|p| p.seq) else {
            return self.spoil_both(disk);
        };
        for page in [newest.page, twin(newest.page)] {
            let mut bytes =
                disk.read(File::Meta, newest.page * BLOCK as u64, BLOCK as u64).to_vec();
            bytes[20..26].copy_from_slice(&[1, 0, 0, 0, 0, 0]);
            bytes[64..68].fill(0xff);
            seal(&mut bytes, RECORD_CRC);
            disk.write(File::Meta, page * BLOCK as u64, &Bytes::from(bytes), true);
        }
        None
    }

    /// Why the files, one of them cut off, are not opened.
    fn open_ruined(&self, disk: &Disk, replica: ReplicaId, short: Option<File>) -> Option<String> {
        let whole = |file| {
            let len = file_bytes(file, self.plan.habits.blocks);
            let cut = if short == Some(file) { len / 4096 / 2 * 4096 } else { len };
            disk.given(file, 0, cut).unwrap_or_default()
        };
        let expect = Identity { volume: self.volume, replica, lineage: self.lineage };
        let opened = Store::open(OpenParams {
            meta: &whole(File::Meta),
            regions: &whole(File::Regions),
            expect: Some(expect),
            boot_id: [0; 16],
            lost_cache: false,
            tuning: self.plan.tuning,
            planted: self.planted,
        });
        opened.err().map(|why| why.to_string())
    }

    /// A superblock that is being written may be torn: the other one is good then. Damage to one
    /// and a write to the other that is cut short are two faults at once.
    pub(super) fn spare_superblock(&mut self, node: usize) {
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        if SUPERBLOCKS.iter().any(|page| copy.disk.is_dirty(File::Meta, *page)) {
            SUPERBLOCKS.iter().for_each(|page| copy.disk.heal(File::Meta, *page));
        }
    }
}

/// Makes the checksum of a page right, which is that of the page with the checksum as zero.
fn seal(page: &mut [u8], at: usize) {
    page[at..at + 4].fill(0);
    let crcs = Payload::checksummed(Bytes::copy_from_slice(page)).crcs;
    let crc = crcs.first().copied().unwrap_or_default();
    page[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}
