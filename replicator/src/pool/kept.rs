//! Snapshots of a pool, read by nodes that make copies of them anew (D4). Whatever does not match
//! its checksum is not given out.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use bytes::{Bytes, BytesMut};
use lockstep_core::id::{RegionIndex, SnapshotId};
use lockstep_core::message::{BlockDigest, Payload, Refusal};
use lockstep_core::range::{BLOCK_SIZE, BlockRange, BlockSet};
use lockstep_store::layout::{File as Which, TABLE_BYTES, data_offset, table_offset};
use lockstep_store::{KeptTags, written_regions};
use nix::libc::{EINVAL, O_DIRECT};
use uuid::Uuid;

use super::{Pool, SnapshotAbout};
use crate::buf::AlignedBuf;

/// The files of a snapshot.
#[derive(Debug)]
pub(crate) struct Kept {
    about: SnapshotAbout,
    data: File,
    tags: File,
    regions: File,
}

impl Pool {
    /// The snapshots that it has.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn list_kept(&self) -> io::Result<Vec<SnapshotId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.snapshots_dir())? {
            let name = entry?.file_name();
            // One that is being made has a prefix.
            found.extend(name.to_str().and_then(|n| Uuid::try_parse(n).ok()).map(SnapshotId));
        }
        Ok(found)
    }

    /// Opens a snapshot; `None` if there is no such one.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn open_kept(&self, id: SnapshotId) -> io::Result<Option<Kept>> {
        let Some(about) = self.snapshot(id) else { return Ok(None) };
        let path = |which: Which| self.snapshot_dir(id).join(which.name());
        Ok(Some(Kept {
            about,
            data: open_data(&path(Which::Data), false)?,
            tags: File::open(path(Which::Tags))?,
            regions: File::open(path(Which::Regions))?,
        }))
    }
}

impl Kept {
    /// Regions that were ever written, at most `limit` of them, and where to go on.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn written(
        &self,
        from: RegionIndex,
        limit: u32,
    ) -> io::Result<(Vec<RegionIndex>, Option<RegionIndex>)> {
        let len = usize::try_from(self.regions.metadata()?.len()).map_err(io::Error::other)?;
        let mut disk = vec![0; len];
        self.regions.read_exact_at(&mut disk, 0)?;
        let all = written_regions(&disk, self.about.blocks);
        let mut all = all.ok_or(io::ErrorKind::UnexpectedEof)?;
        all.retain(|region| *region >= from);
        let limit = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
        let next = all.get(limit).copied();
        all.truncate(limit);
        Ok((all, next))
    }

    /// Stamps and digests of those blocks that can be given out.
    pub(crate) fn digests(&self, blocks: &BlockSet) -> Vec<BlockDigest> {
        let mut found = Vec::new();
        self.each(blocks, |tags, block, content| {
            found.extend(tags.digest(self.about.volume, block, content));
        });
        found
    }

    /// Content of blocks, with checksums.
    ///
    /// # Errors
    /// [`Refusal::Checksum`] names the first block that can't be given out.
    pub(crate) fn read(&self, blocks: &BlockSet) -> Result<Payload, Refusal> {
        let mut data = BytesMut::new();
        let mut next = blocks.blocks();
        let mut bad = None;
        self.each(blocks, |tags, block, content| {
            let expected = next.next();
            let good = tags.digest(self.about.volume, block, content).is_some();
            if bad.is_none() && (expected != Some(block) || !good) {
                bad = expected;
            }
            data.extend_from_slice(content);
        });
        match bad.or(next.next()) {
            Some(block) => Err(Refusal::Checksum { block }),
            None => Ok(Payload::checksummed(data.freeze())),
        }
    }

    /// Does it have all these blocks?
    pub(crate) fn holds(&self, blocks: &BlockSet) -> bool {
        blocks.ranges().last().is_some_and(|last| last.end() <= self.about.blocks)
    }

    /// Looks at every block that can be read, in order, with the tags of its region.
    fn each(&self, blocks: &BlockSet, mut look: impl FnMut(&KeptTags, u64, &[u8])) {
        for region in blocks.regions() {
            let Some(range) = BlockRange::of_region(region, self.about.blocks) else { continue };
            let Some(tags) = self.tags_of(region) else { continue };
            for part in blocks.within(range).ranges() {
                for (block, content) in blocks_of(&self.data, *part) {
                    look(&tags, block, &content);
                }
            }
        }
    }

    fn tags_of(&self, region: RegionIndex) -> Option<KeptTags> {
        let mut table = [0; TABLE_BYTES as usize];
        self.tags.read_exact_at(&mut table, table_offset(region)).ok()?;
        KeptTags::read(&table)
    }
}

/// Opens a file of data, past the page cache if the file system lets that be.
pub(super) fn open_data(path: &Path, write: bool) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(write);
    match options.clone().custom_flags(O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(EINVAL) => options.open(path),
        opened => opened,
    }
}

/// Reads a range as one. One with a block that the disk can't read is read block by block, without
/// those.
pub(super) fn blocks_of(data: &File, range: BlockRange) -> Vec<(u64, Bytes)> {
    let block = BLOCK_SIZE as usize;
    if let Ok(all) = read_range(data, range) {
        let cut = |(at, number)| (number, all.slice(at * block..(at + 1) * block));
        return range.blocks().enumerate().map(cut).collect();
    }
    let one = |number| Some((number, read_range(data, BlockRange::new(number, 1)).ok()?));
    range.blocks().filter_map(one).collect()
}

fn read_range(data: &File, range: BlockRange) -> io::Result<Bytes> {
    let len = usize::try_from(range.bytes()).map_err(io::Error::other)?;
    let mut buf = AlignedBuf::zeroed(len);
    data.read_exact_at(buf.as_mut(), data_offset(range.start))?;
    Ok(buf.freeze())
}
