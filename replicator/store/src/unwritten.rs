//! What the disk lacks of tags when a snapshot is kept.
//!
//! It is many tables, and guests wait: so none is copied then. They are shared with the store,
//! which copies the ones that it changes, and become bytes when those are written.

use alloc::vec::Vec;
use bytes::{Bytes, BytesMut};
use lockstep_core::id::{Gen, RegionIndex};

use crate::layout::{File, table_offset};
use crate::regions::Regions;
use crate::tags::Known;

/// Tables that become bytes at once: half a MiB.
const TABLES: usize = 256;

/// Tags and region entries that the disk has not as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unwritten(Vec<Lacking>);

/// Of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lacking {
    region: RegionIndex,
    /// No block of it that is not among the tags had a higher stamp.
    others: Gen,
    tags: Known,
}

/// Bytes to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Into which file: [`File::Tags`] or [`File::Regions`].
    pub file: File,
    /// Where to.
    pub offset: u64,
    /// What.
    pub data: Bytes,
}

impl Unwritten {
    /// Regions come in ascending order.
    pub(crate) fn add(&mut self, region: RegionIndex, others: Gen, tags: Known) {
        self.0.push(Lacking { region, others, tags });
    }

    /// How many regions it is about.
    #[must_use]
    pub fn regions(&self) -> usize {
        self.0.len()
    }

    /// What is to be written, file after file, ascending. Made as it is asked for.
    pub fn patches(&self) -> impl Iterator<Item = Patch> {
        let patch = |file| move |(offset, data)| Patch { file, offset, data };
        let tables = self.0.chunks(TABLES).flat_map(tables).map(patch(File::Tags));
        let entries = |lacking: &Lacking| {
            Regions::entry(lacking.region, lacking.tags.max_stamp(lacking.others))
        };
        let entries = move |some: &[Lacking]| joined(some.iter().map(entries));
        tables.chain(self.0.chunks(TABLES).flat_map(entries).map(patch(File::Regions)))
    }
}

fn tables(some: &[Lacking]) -> Vec<(u64, Bytes)> {
    joined(some.iter().flat_map(|lacking| {
        let at = table_offset(lacking.region);
        lacking.tags.runs().into_iter().map(move |(offset, data)| (at + offset, data))
    }))
}

/// Joins writes that continue one another.
pub(crate) fn joined(writes: impl Iterator<Item = (u64, Bytes)>) -> Vec<(u64, Bytes)> {
    let mut runs: Vec<(u64, BytesMut)> = Vec::new();
    for (offset, data) in writes {
        match runs.last_mut() {
            Some((start, run)) if *start + run.len() as u64 == offset => {
                run.extend_from_slice(&data);
            }
            _ => runs.push((offset, BytesMut::from(&data[..]))),
        }
    }
    runs.into_iter().map(|(offset, run)| (offset, run.freeze())).collect()
}
