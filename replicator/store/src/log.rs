//! The activity log: which regions are active, as the disk knows it. Appends are made one at a
//! time; what is asked for meanwhile goes into the next one together.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;
use lockstep_core::id::{RegionIndex, ReplicaId};
use uuid::Uuid;

use crate::codec::{array_at, checksum_without, put, u16_at, u32_at, u64_at};
use crate::layout::{
    LOG_CHANGES, LOG_HEAD_BYTES, LOG_RECORD_BYTES, LOG_RECORDS, LOG_SLICE, record_offset,
};

const MAGIC: [u8; 8] = *b"LKSTLOG1";
const CRC_AT: usize = 16;

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) replica: ReplicaId,
    /// Counts the records of this replica from 1.
    pub(crate) seq: u64,
    /// Regions that become active.
    pub(crate) sets: Vec<RegionIndex>,
    /// Regions that cease to be.
    pub(crate) clears: Vec<RegionIndex>,
    /// Regions that are active and were named long ago.
    pub(crate) slice: Vec<RegionIndex>,
}

impl Record {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = vec![0; LOG_RECORD_BYTES as usize];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &self.seq.to_le_bytes());
        let lists = [&self.sets, &self.clears, &self.slice];
        let mut at = LOG_HEAD_BYTES;
        for (list, count_at) in lists.into_iter().zip([20, 22, 24]) {
            let count = u16::try_from(list.len()).unwrap_or(u16::MAX);
            put(&mut out, count_at, &count.to_le_bytes());
            for region in list {
                put(&mut out, at, &region.0.to_le_bytes());
                at += 4;
            }
        }
        put(&mut out, 32, self.replica.0.as_bytes());
        let crc = checksum_without(&out, CRC_AT);
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        Bytes::from(out)
    }

    /// `None` if these bytes are not a good record.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes[..8] != MAGIC || checksum_without(bytes, CRC_AT) != u32_at(bytes, CRC_AT) {
            return None;
        }
        let mut at = LOG_HEAD_BYTES;
        let mut lists = [20, 22, 24].map(|count_at| {
            let count = usize::from(u16_at(bytes, count_at));
            let list = bytes.get(at..at + 4 * count).unwrap_or_default();
            at += 4 * count;
            list.chunks_exact(4).map(|c| RegionIndex(u32_at(c, 0))).collect::<Vec<_>>()
        });
        Some(Self {
            replica: ReplicaId(Uuid::from_bytes(array_at(bytes, 32))),
            seq: u64_at(bytes, 8),
            sets: core::mem::take(&mut lists[0]),
            clears: core::mem::take(&mut lists[1]),
            slice: core::mem::take(&mut lists[2]),
        })
    }
}

/// What became durable with a record.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) sets: Vec<RegionIndex>,
    pub(crate) clears: Vec<RegionIndex>,
}

/// The writing end of the log.
#[derive(Debug)]
pub(crate) struct Log {
    replica: ReplicaId,
    /// Number of the last record written or being written.
    seq: u64,
    /// Active on disk: the last record that named each region, as set or in its slice.
    named: BTreeMap<RegionIndex, u64>,
    /// The same in the order of those numbers; entries that `named` contradicts are void.
    queue: VecDeque<(u64, RegionIndex)>,
    sets: BTreeSet<RegionIndex>,
    clears: BTreeSet<RegionIndex>,
    in_flight: Option<Appended>,
}

impl Log {
    /// Goes on after record `seq`, with these regions active.
    pub(crate) fn new(replica: ReplicaId, seq: u64, named: BTreeMap<RegionIndex, u64>) -> Self {
        let mut queue: Vec<(u64, RegionIndex)> = named.iter().map(|(r, s)| (*s, *r)).collect();
        queue.sort_unstable();
        Self {
            replica,
            seq,
            named,
            queue: queue.into(),
            sets: BTreeSet::new(),
            clears: BTreeSet::new(),
            in_flight: None,
        }
    }

    pub(crate) fn set(&mut self, region: RegionIndex) {
        assert!(!self.named.contains_key(&region), "region {region} is in the log already");
        self.sets.insert(region);
    }

    pub(crate) fn clear(&mut self, region: RegionIndex) {
        assert!(self.named.contains_key(&region), "region {region} is not in the log");
        self.clears.insert(region);
    }

    /// Takes back a clear whose record is not being written yet.
    pub(crate) fn cancel_clear(&mut self, region: RegionIndex) -> bool {
        self.clears.remove(&region)
    }

    /// Is there anything written or waiting to be?
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.is_some() || !self.sets.is_empty() || !self.clears.is_empty()
    }

    /// The next record, twice, and its place, if one is asked for and none is being written.
    pub(crate) fn append(&mut self) -> Option<(u64, Bytes)> {
        if self.in_flight.is_some() || self.sets.is_empty() && self.clears.is_empty() {
            return None;
        }
        self.seq += 1;
        let sets = take_first(&mut self.sets, LOG_CHANGES);
        let clears = take_first(&mut self.clears, LOG_CHANGES - sets.len());
        clears.iter().for_each(|region| {
            self.named.remove(region);
        });
        for region in &sets {
            self.named.insert(*region, self.seq);
        }
        let slice = self.take_slice();
        for region in slice.iter().chain(&sets) {
            self.named.insert(*region, self.seq);
            self.queue.push_back((self.seq, *region));
        }
        let record = Record { replica: self.replica, seq: self.seq, sets, clears, slice };
        let bytes = Bytes::from(record.encode().repeat(2));
        self.in_flight = Some(Appended { sets: record.sets, clears: record.clears });
        Some((record_offset(self.seq), bytes))
    }

    /// Writes the last record found at open again. Its write may have failed, or its process been
    /// killed, after it was visible and before it was durable; nothing may build on it until then.
    pub(crate) fn repeat(&mut self, last: &Record) -> (u64, Bytes) {
        let sets = self.named.keys().copied().collect();
        self.in_flight = Some(Appended { sets, clears: Vec::new() });
        (record_offset(last.seq), Bytes::from(last.encode().repeat(2)))
    }

    /// The record being written is durable.
    pub(crate) fn appended(&mut self) -> Appended {
        assert!(self.in_flight.is_some(), "no record is being written");
        self.in_flight.take().unwrap_or_default()
    }

    /// Regions that the next record has to name again, so that none falls out of the window. What
    /// is not old yet can wait, as long as all that are active could still be named in time, one
    /// full slice per record: the argument is in `docs/ondisk.md`.
    fn take_slice(&mut self) -> Vec<RegionIndex> {
        let laps = self.named.len().div_ceil(LOG_SLICE) as u64;
        let patience = u64::from(LOG_RECORDS) - 2 - laps;
        let mut slice = Vec::new();
        while let Some(&(seq, region)) = self.queue.front() {
            let named = self.named.get(&region) == Some(&seq);
            if named && (seq + patience >= self.seq || slice.len() == LOG_SLICE) {
                break;
            }
            self.queue.pop_front();
            slice.extend(named.then_some(region));
        }
        slice
    }

    /// Regions that the disk has, or will soon have, as active.
    pub(crate) fn active(&self) -> impl Iterator<Item = RegionIndex> + '_ {
        self.named.keys().chain(&self.sets).copied()
    }

    /// Asserts that the last records rebuild the active set.
    pub(crate) fn check(&self) {
        let window = u64::from(LOG_RECORDS) - 1;
        for (region, seq) in &self.named {
            assert!(seq + window > self.seq, "region {region} fell out of the log's window");
        }
        assert!(self.queue.len() >= self.named.len(), "an active region is not queued");
        let both = self.sets.intersection(&self.clears).next();
        assert!(both.is_none(), "{both:?} is to be set and cleared");
    }
}

fn take_first(from: &mut BTreeSet<RegionIndex>, count: usize) -> Vec<RegionIndex> {
    let mut taken = Vec::new();
    while taken.len() < count
        && let Some(region) = from.pop_first()
    {
        taken.push(region);
    }
    taken
}
