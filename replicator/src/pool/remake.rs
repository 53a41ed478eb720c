//! A copy of a snapshot that is made anew (D4): what is like something that the pool has shares its
//! blocks, the rest is written. It gets its name as a snapshot that was taken does: when all of it
//! is durable.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use lockstep_core::block;
use lockstep_core::gap;
use lockstep_core::id::{Gen, RegionIndex, SnapshotId, VolumeId};
use lockstep_core::message::BlockDigest;
use lockstep_core::range::{BLOCK_SIZE, BlockRange, BlockSet};
use lockstep_kernel::share;
use lockstep_store::layout::{File as Which, data_offset, table_offset};
use lockstep_store::{KeptTags, blake3_digest, file_bytes};

use super::kept::{blocks_of, open_data};
use super::{Pool, SnapshotAbout};
use crate::buf::AlignedBuf;

/// A copy that is being made.
#[derive(Debug)]
pub(crate) struct NewCopy {
    about: SnapshotAbout,
    data: File,
    tags: File,
    regions: File,
    bases: Vec<Base>,
    /// The entries of its regions, until they are written.
    entries: Mutex<BTreeMap<u64, Bytes>>,
}

/// What it may share blocks with. A volume's own data may change at any time.
#[derive(Debug)]
struct Base {
    data: File,
    blocks: u64,
}

/// A region of the copy, as far as it is there.
#[derive(Debug)]
pub(crate) struct Part {
    region: RegionIndex,
    tags: KeptTags,
    /// Blocks whose content has to be had from elsewhere, with their stamps.
    pub(crate) missing: BTreeMap<u64, BlockDigest>,
}

impl Pool {
    /// Begins a copy; what an earlier attempt has left is removed.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn begin_copy(
        &self,
        id: SnapshotId,
        about: &SnapshotAbout,
        nearest: &[SnapshotId],
    ) -> io::Result<NewCopy> {
        let dir = self.unfinished_dir(id);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir(&dir)?;
        let make = |which: Which| {
            let file = File::create_new(dir.join(which.name()))?;
            file.set_len(file_bytes(which, about.blocks))?;
            Ok::<File, io::Error>(file)
        };
        make(Which::Data)?;
        let (tags, regions) = (make(Which::Tags)?, make(Which::Regions)?);
        let data = open_data(&dir.join(Which::Data.name()), true)?;
        let bases = if self.can_share()? { self.bases(about.volume, nearest) } else { Vec::new() };
        let (about, entries) = (about.clone(), Mutex::default());
        Ok(NewCopy { about, data, tags, regions, bases, entries })
    }

    /// The snapshots that are nearest, and the volume's own data, as far as they are here.
    fn bases(&self, volume: VolumeId, nearest: &[SnapshotId]) -> Vec<Base> {
        let kept = nearest.iter().map(|id| self.snapshot_dir(*id));
        let dirs: Vec<PathBuf> = kept.chain([self.replica_dir(volume)]).collect();
        dirs.iter().filter_map(|dir| Base::open(dir)).collect()
    }

    /// Removes what there is of a copy that was not finished.
    pub(crate) fn abandon_copy(&self, id: SnapshotId) {
        // Best effort; the next start removes what is left.
        let _ = fs::remove_dir_all(self.unfinished_dir(id));
    }
}

impl Base {
    fn open(dir: &Path) -> Option<Self> {
        let data = open_data(&dir.join(Which::Data.name()), false).ok()?;
        let blocks = data.metadata().ok()?.len() / u64::from(BLOCK_SIZE);
        Some(Self { data, blocks })
    }
}

impl NewCopy {
    /// Begins with a region, whose blocks are to be as these digests say: shares what is like
    /// something that is here.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn begin_region(
        &self,
        region: RegionIndex,
        digests: &[BlockDigest],
    ) -> io::Result<Part> {
        let (mut tags, mut missing) = (KeptTags::of_zeroes(), BTreeMap::new());
        for digest in digests {
            if digest.zero {
                tags.set(digest.block, digest.stamp, &block::ZEROES[..BLOCK_SIZE as usize]);
            } else {
                missing.insert(digest.block, *digest);
            }
        }
        let mut part = Part { region, tags, missing };
        for base in &self.bases {
            if !part.missing.is_empty() {
                self.share_with(base, &mut part)?;
            }
        }
        Ok(part)
    }

    /// Shares the blocks of `base` that are as they are to be. Looks at each again afterwards: the
    /// volume's own data may have changed in between.
    fn share_with(&self, base: &Base, part: &mut Part) -> io::Result<()> {
        let Some(range) = BlockRange::of_region(part.region, base.blocks) else { return Ok(()) };
        let alike = self.alike(&base.data, range, part);
        let same: BlockSet = alike.keys().map(|block| BlockRange::new(*block, 1)).collect();
        for run in same.ranges() {
            let (offset, bytes) = (data_offset(run.start), run.bytes());
            match share::clone_range(&base.data, &self.data, offset, bytes) {
                Err(error) if share::is_unsupported(&error) => return Ok(()),
                shared => shared?,
            }
            for (block, content) in self.alike(&self.data, *run, part) {
                if let Some(digest) = part.missing.remove(&block) {
                    part.tags.set(block, digest.stamp, &content);
                }
            }
        }
        Ok(())
    }

    /// The missing blocks in this range of a file that are as they are to be.
    fn alike(&self, data: &File, range: BlockRange, part: &Part) -> BTreeMap<u64, Bytes> {
        let end = range.end().min(self.about.blocks);
        let count = end.saturating_sub(range.start);
        let Ok(count @ 1..) = u32::try_from(count) else { return BTreeMap::new() };
        let read = blocks_of(data, BlockRange::new(range.start, count)).into_iter();
        let alike = |(block, content): &(u64, Bytes)| {
            let wanted = part.missing.get(block).map(|wanted| wanted.digest);
            !block::is_zero(content) && wanted.is_some_and(|w| w == blake3_digest(content))
        };
        read.filter(alike).collect()
    }

    /// Completes a region with content from elsewhere. What is missing then is a gap (S9), as if
    /// the generation had written it. Returns how many blocks are.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn end_region(
        &self,
        mut part: Part,
        contents: &BTreeMap<u64, Bytes>,
        gaps: (&BlockSet, Gen),
    ) -> io::Result<u64> {
        let lost = gap::content(self.about.volume);
        let (lost_blocks, newest) = gaps;
        let range = BlockRange::of_region(part.region, self.about.blocks);
        let lost_blocks = range.map(|range| lost_blocks.within(range)).unwrap_or_default();
        for (block, digest) in &part.missing {
            let content = contents.get(block);
            assert!(content.is_some() || lost_blocks.contains(*block), "block {block} was left");
            if let Some(content) = content {
                self.write(*block, content)?;
                part.tags.set(*block, digest.stamp, content);
            }
        }
        for block in lost_blocks.blocks() {
            self.write(block, &lost)?;
            part.tags.set(block, newest, &lost);
        }
        self.tags.write_all_at(&part.tags.encode(), table_offset(part.region))?;
        let (offset, entry) = part.tags.entry(part.region);
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(offset, entry);
        Ok(lost_blocks.len())
    }

    fn write(&self, block: u64, content: &Bytes) -> io::Result<()> {
        // Memory from a socket need not be as direct I/O wants it.
        self.data.write_all_at(AlignedBuf::copy_of(content).as_ref(), data_offset(block))
    }

    /// Writes what is left; it is to be sealed next.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn end(&self) -> io::Result<()> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().try_for_each(|(offset, entry)| self.regions.write_all_at(entry, *offset))
    }
}
