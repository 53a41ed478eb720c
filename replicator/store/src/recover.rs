//! Recovery of the activity log from the bytes of the ring.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use lockstep_core::id::{RegionIndex, ReplicaId};
use lockstep_core::planted::{Bug, Planted};

use crate::codec::index;
use crate::error::OpenError;
use crate::layout::{
    LOG_OFFSET, LOG_RECORD_BYTES, LOG_RECORDS, LOG_SLOT_BYTES, MAX_WRITES, record_slot,
};
use crate::log::Record;

/// A slot that was never written.
const NOTHING: [u8; LOG_SLOT_BYTES as usize] = [0; LOG_SLOT_BYTES as usize];

/// The activity log as found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Number of the last good record; 0 if there is none.
    pub(crate) seq: u64,
    /// The active regions, with the last record that named each.
    pub(crate) named: BTreeMap<RegionIndex, u64>,
    /// The last good record. It may be visible and not durable: then a power loss takes it back.
    pub(crate) last: Option<Record>,
}

/// Reads the ring from the whole of file meta.
///
/// One good copy is enough of each record. The record after the last good one may be cut short in
/// both copies: it was being written. Whatever else is not as it should be is rot.
pub(crate) fn read_log(
    meta: &[u8],
    replica: ReplicaId,
    regions: u32,
    planted: Planted,
) -> Result<Found, OpenError> {
    let slots: Vec<&[u8]> =
        meta[LOG_OFFSET as usize..].chunks_exact(LOG_SLOT_BYTES as usize).collect();
    let mut records: BTreeMap<u64, Record> = BTreeMap::new();
    for (slot, bytes) in (0..u64::from(LOG_RECORDS)).zip(&slots) {
        let copies = bytes.chunks_exact(LOG_RECORD_BYTES as usize);
        let real = 1..=MAX_WRITES;
        let ours = |r: &Record| {
            r.replica == replica && real.contains(&r.seq) && record_slot(r.seq) == slot
        };
        let good = copies.filter_map(Record::decode).filter(ours);
        // A slot written in part may hold an old and a new one.
        records.extend(good.map(|r| (r.seq, r)));
    }
    let last = records.last_key_value().map_or(0, |(seq, _)| *seq);
    if !planted.has(Bug::RotAsTornTail) {
        check_slots(&slots, &records, last)?;
    }
    let mut named = BTreeMap::new();
    let first = oldest_needed(last);
    for (seq, record) in records.range(first..) {
        let lists = [&record.sets, &record.clears, &record.slice];
        if let Some(beyond) = lists.into_iter().flatten().find(|r| r.0 >= regions) {
            return Err(OpenError::LogRegion { seq: *seq, region: beyond.0, regions });
        }
        record.clears.iter().for_each(|region| {
            named.remove(region);
        });
        named.extend(record.sets.iter().chain(&record.slice).map(|region| (*region, *seq)));
    }
    let newest = records.remove(&last);
    Ok(Found { seq: last, named, last: newest })
}

/// The oldest record of the window that rebuilds the active set, if `last` is the newest.
fn oldest_needed(last: u64) -> u64 {
    (last + 2).saturating_sub(u64::from(LOG_RECORDS)).max(1)
}

fn check_slots(
    slots: &[&[u8]],
    records: &BTreeMap<u64, Record>,
    last: u64,
) -> Result<(), OpenError> {
    for seq in oldest_needed(last)..=last {
        if !records.contains_key(&seq) {
            return Err(OpenError::LogDamaged { seq, slot: record_slot(seq) });
        }
    }
    // Before the ring was once around, the slots beyond the next were never written.
    for seq in last + 2..=u64::from(LOG_RECORDS) {
        let slot = record_slot(seq);
        // Compared as a whole: most of a new ring is looked at here, at every open.
        if *slots[index(slot)] != NOTHING {
            return Err(OpenError::LogDamaged { seq: 0, slot });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{LOG_CHANGES, LOG_SLICE, record_offset};
    use crate::log::Log;
    use alloc::collections::BTreeSet;
    use alloc::vec;
    use uuid::Uuid;

    const REGIONS: u32 = 1 << 24;

    fn replica() -> ReplicaId {
        ReplicaId(Uuid::from_u128(5))
    }

    fn empty_meta() -> Vec<u8> {
        vec![0; (LOG_OFFSET + LOG_RECORDS * LOG_SLOT_BYTES) as usize]
    }

    fn append(log: &mut Log, meta: &mut [u8]) -> u64 {
        let (offset, bytes) = log.append().expect("something to append");
        meta[index(offset)..][..bytes.len()].copy_from_slice(&bytes);
        log.appended();
        offset
    }

    fn found(meta: &[u8]) -> BTreeSet<RegionIndex> {
        let found = read_log(meta, replica(), REGIONS, Planted::NONE).expect("a good log");
        found.named.into_keys().collect()
    }

    fn new_log() -> Log {
        Log::new(replica(), 0, BTreeMap::new())
    }

    #[test]
    fn the_window_rebuilds_a_full_log_after_every_append() {
        let mut log = new_log();
        let mut meta = empty_meta();
        let capacity = u32::try_from(crate::layout::LOG_CAPACITY).expect("fits");
        let mut active = BTreeSet::new();
        (0..capacity).for_each(|r| {
            log.set(RegionIndex(r * 3));
            active.insert(RegionIndex(r * 3));
        });
        while log.is_busy() {
            append(&mut log, &mut meta);
        }
        assert_eq!(found(&meta), active);
        // Churn at the cap: the longest set are cleared, others set, far more than a window.
        for round in 0..600_u32 {
            for i in 0..100 {
                let old = RegionIndex((round * 100 + i) * 3);
                let new = RegionIndex((round * 100 + i) * 3 + 1);
                log.clear(old);
                log.set(new);
                active.remove(&old);
                active.insert(new);
            }
            append(&mut log, &mut meta);
            log.check();
            if round % 50 == 49 {
                assert_eq!(found(&meta), active, "after round {round}");
            }
        }
    }

    #[test]
    fn a_few_regions_are_remembered_through_many_appends() {
        let mut log = new_log();
        let mut meta = empty_meta();
        let quiet: BTreeSet<RegionIndex> = (0..700).map(RegionIndex).collect();
        quiet.iter().for_each(|region| log.set(*region));
        while log.is_busy() {
            append(&mut log, &mut meta);
        }
        let busy = RegionIndex(1000);
        let mut repeated = 0;
        for round in 0..1000 {
            if round % 2 == 0 {
                log.set(busy)
            } else {
                log.clear(busy)
            }
            let offset = index(append(&mut log, &mut meta));
            log.check();
            repeated += Record::decode(&meta[offset..offset + 4096]).map_or(0, |r| r.slice.len());
            if round > 1 && round % 37 == 0 {
                let expected = if log.active().any(|r| r == busy) { 701 } else { 700 };
                assert_eq!(found(&meta).len(), expected, "round {round}");
                assert!(found(&meta).is_superset(&quiet));
            }
        }
        // About four times in a thousand records, and not in each of them.
        assert!((2100..3500).contains(&repeated), "{repeated} regions were repeated");
    }

    #[test]
    fn a_record_holds_as_much_as_it_says() {
        let regions =
            |n: usize| (0..n).map(|r| RegionIndex(u32::MAX - u32::try_from(r).expect("fits")));
        let record = Record {
            replica: replica(),
            seq: u64::MAX,
            sets: regions(LOG_CHANGES).collect(),
            clears: Vec::new(),
            slice: regions(LOG_SLICE).collect(),
        };
        assert_eq!(Record::decode(&record.encode()), Some(record));
    }

    #[test]
    fn a_torn_newest_record_is_as_if_it_was_not_written() {
        for rounds in [1_u32, 2, 255, 256, 257, 700] {
            let mut log = new_log();
            let mut meta = empty_meta();
            for round in 0..rounds - 1 {
                (0..200).for_each(|i| log.set(RegionIndex(round * 200 + i)));
                append(&mut log, &mut meta);
                (0..200).for_each(|i| log.clear(RegionIndex(round * 200 + i)));
            }
            let expected = found(&meta);
            let before = meta.clone();
            (0..500).for_each(|i| log.set(RegionIndex(1_000_000 + i)));
            let offset = index(append(&mut log, &mut meta));
            assert_ne!(found(&meta), expected);
            // The record has more than 2000 bytes: none of these cuts leaves it whole.
            for sectors in 1..4 {
                let torn = offset + sectors * 512..offset + 8192;
                let mut cut_short = meta.clone();
                cut_short[torn.clone()].copy_from_slice(&before[torn]);
                assert_eq!(found(&cut_short), expected, "{rounds} rounds, {sectors} sectors");
            }
        }
    }

    #[test]
    fn rot_in_the_newest_record_is_not_taken_for_a_torn_one() {
        let mut log = new_log();
        let mut meta = empty_meta();
        log.set(RegionIndex(1));
        append(&mut log, &mut meta);
        log.set(RegionIndex(2));
        let offset = index(append(&mut log, &mut meta));
        for copy in [offset, offset + 4096] {
            let mut damaged = meta.clone();
            damaged[copy + 9] ^= 1;
            assert_eq!(found(&damaged), BTreeSet::from([RegionIndex(1), RegionIndex(2)]));
        }
    }

    #[test]
    fn rot_in_the_window_is_an_error_and_not_a_torn_tail() {
        for rounds in [2_u64, 200, 256, 300, 512] {
            let mut log = new_log();
            let mut meta = empty_meta();
            for round in 0..rounds {
                log.set(RegionIndex(u32::try_from(round).expect("fits")));
                append(&mut log, &mut meta);
            }
            for seq in (rounds.saturating_sub(254).max(1)..rounds).step_by(7) {
                let mut damaged = meta.clone();
                damaged[index(record_offset(seq)) + 70] ^= 4;
                assert_eq!(found(&damaged), found(&meta), "one good copy is enough");
                damaged[index(record_offset(seq)) + 4096] ^= 4;
                let expected = OpenError::LogDamaged { seq, slot: record_slot(seq) };
                assert_eq!(read_log(&damaged, replica(), REGIONS, Planted::NONE), Err(expected));
            }
        }
    }

    #[test]
    fn bytes_where_nothing_was_written_yet_are_rot() {
        let mut log = new_log();
        let mut meta = empty_meta();
        log.set(RegionIndex(1));
        append(&mut log, &mut meta);
        let next = index(record_offset(2));
        meta[next] = 1;
        assert_eq!(found(&meta), BTreeSet::from([RegionIndex(1)]));
        meta[next + 8192] = 1;
        let damaged = read_log(&meta, replica(), REGIONS, Planted::NONE);
        assert_eq!(damaged, Err(OpenError::LogDamaged { seq: 0, slot: 3 }));
    }

    #[test]
    fn records_of_another_replica_and_regions_beyond_the_end_are_refused() {
        let mut log = Log::new(ReplicaId(Uuid::from_u128(6)), 0, BTreeMap::new());
        let mut meta = empty_meta();
        for region in 1..4 {
            log.set(RegionIndex(region));
            append(&mut log, &mut meta);
        }
        let foreign = read_log(&meta, replica(), REGIONS, Planted::NONE);
        assert_eq!(foreign, Err(OpenError::LogDamaged { seq: 0, slot: 2 }));
        let small = read_log(&meta, ReplicaId(Uuid::from_u128(6)), 3, Planted::NONE);
        assert_eq!(small, Err(OpenError::LogRegion { seq: 3, region: 3, regions: 3 }));
    }
}
