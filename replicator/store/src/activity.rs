//! Which regions are active and why: pins, users, and who may be cleaned.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use lockstep_core::id::{Gen, RegionIndex, Tick};

use crate::layout::LOG_CAPACITY;
use crate::tuning::Tuning;

/// Where a region is on its way into and out of the activity log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// There is no room for it yet.
    Stalled,
    /// Its set record is not durable yet.
    Setting,
    /// Set on disk: may be written.
    Set,
    /// Its clear record is asked for or being written.
    Clearing {
        /// Set it again afterwards?
        again: bool,
    },
}

/// A region that is in the activity log, or on its way there.
#[derive(Clone, Debug)]
pub(crate) struct Active {
    pub(crate) phase: Phase,
    /// Found active at open, and not resolved: neither content nor tags mean anything yet.
    pub(crate) unresolved: bool,
    /// Its tags on disk may be older than its data: they are not read.
    pub(crate) untrusted: bool,
    /// No block's stamp is lower, see [`lockstep_core::store::StoreNote::RestampUnresolved`].
    pub(crate) floor: Gen,
    /// Operations that are not answered yet.
    pub(crate) users: u32,
    /// Does memory have tags that the disk has not?
    pub(crate) dirty: bool,
    /// Is it in the batch being cleaned?
    pub(crate) cleaning: bool,
    /// Are its tags being read for a snapshot, for which it stays in the log?
    pub(crate) keeping: bool,
    /// When it was last written.
    touched: Tick,
    /// Its entry in `idle`.
    idle_since: Option<Tick>,
}

impl Active {
    fn new(phase: Phase, touched: Tick) -> Self {
        Self {
            phase,
            unresolved: false,
            untrusted: false,
            floor: Gen(0),
            users: 0,
            dirty: false,
            cleaning: false,
            keeping: false,
            touched,
            idle_since: None,
        }
    }

    /// Is its content what it will be, so that its tags can be made from that?
    pub(crate) fn is_readable(&self) -> bool {
        self.phase == Phase::Set && !self.unresolved && self.users == 0
    }
}

/// The active regions.
#[derive(Debug)]
pub(crate) struct Activity {
    entries: BTreeMap<RegionIndex, Active>,
    /// Operations that hold a region, by region: each pins once, until it is released.
    pins: BTreeMap<RegionIndex, u32>,
    /// What may be cleaned, longest unused first.
    idle: BTreeSet<(Tick, RegionIndex)>,
    stalled: VecDeque<RegionIndex>,
    /// Jobs that wait for a region to be set.
    waiters: BTreeMap<RegionIndex, Vec<u64>>,
    unresolved: usize,
    tuning: Tuning,
    /// Planted bug m3.
    ignore_pins: bool,
}

impl Activity {
    pub(crate) fn new(tuning: Tuning, ignore_pins: bool) -> Self {
        Self {
            entries: BTreeMap::new(),
            pins: BTreeMap::new(),
            idle: BTreeSet::new(),
            stalled: VecDeque::new(),
            waiters: BTreeMap::new(),
            unresolved: 0,
            tuning,
            ignore_pins,
        }
    }

    /// A region found in the log at open. Its set record may not be durable yet.
    pub(crate) fn add_unresolved(&mut self, region: RegionIndex, floor: Gen) {
        let mut entry = Active::new(Phase::Setting, Tick(0));
        (entry.unresolved, entry.untrusted, entry.floor, entry.dirty) = (true, true, floor, true);
        self.entries.insert(region, entry);
        self.unresolved += 1;
    }

    pub(crate) fn get(&self, region: RegionIndex) -> Option<&Active> {
        self.entries.get(&region)
    }

    /// Changes an entry, and whether it may be cleaned with it.
    pub(crate) fn update<T>(
        &mut self,
        region: RegionIndex,
        change: impl FnOnce(&mut Active) -> T,
    ) -> Option<T> {
        let entry = self.entries.get_mut(&region)?;
        let changed = change(entry);
        let pinned = self.pins.contains_key(&region) && !self.ignore_pins;
        let may_clean = entry.phase == Phase::Set
            && !entry.unresolved
            && !entry.cleaning
            && !entry.keeping
            && entry.users == 0
            && !pinned;
        let idle_since = may_clean.then_some(entry.touched);
        if idle_since != entry.idle_since {
            if let Some(since) = entry.idle_since {
                self.idle.remove(&(since, region));
            }
            self.idle.extend(idle_since.map(|since| (since, region)));
            entry.idle_since = idle_since;
        }
        Some(changed)
    }

    /// Adds a region that waits for room.
    pub(crate) fn add_stalled(&mut self, region: RegionIndex, now: Tick) {
        let before = self.entries.insert(region, Active::new(Phase::Stalled, now));
        assert!(before.is_none(), "region {region} is active already");
        self.stalled.push_back(region);
    }

    /// Adds a region that is about to be written, without waiting.
    fn add_ahead(&mut self, region: RegionIndex, now: Tick) {
        self.entries.insert(region, Active::new(Phase::Setting, now));
    }

    pub(crate) fn touch(&mut self, region: RegionIndex, now: Tick) {
        self.update(region, |entry| entry.touched = now);
    }

    /// Lets regions that waited for room go on, as far as there is room now; `hopeless` says that
    /// nothing can be cleaned. Returns those that are to be set, with the ones set ahead.
    pub(crate) fn admit(&mut self, now: Tick, hopeless: bool, regions: u32) -> Vec<RegionIndex> {
        let mut admitted = Vec::new();
        while let Some(&region) = self.stalled.front() {
            // With nothing to clean, waiting could be for ever: what holds the log may wait for
            // the very operation that is stalled. Then only the format's limit counts.
            let resolved = self.logged() - self.unresolved;
            if self.logged() >= LOG_CAPACITY || resolved >= self.tuning.active_max && !hopeless {
                break;
            }
            self.stalled.pop_front();
            self.update(region, |entry| entry.phase = Phase::Setting);
            admitted.push(region);
            self.admit_ahead(region, now, regions, &mut admitted);
        }
        admitted
    }

    /// If the region before this one is active, a stream may be passing: the next ones will be
    /// written soon.
    fn admit_ahead(
        &mut self,
        region: RegionIndex,
        now: Tick,
        regions: u32,
        admitted: &mut Vec<RegionIndex>,
    ) {
        let before = region.0.checked_sub(1).and_then(|r| self.get(RegionIndex(r)));
        if !before.is_some_and(|entry| entry.phase == Phase::Set && !entry.unresolved) {
            return;
        }
        let end = region.0.saturating_add(self.tuning.ahead).min(regions.saturating_sub(1));
        for next in (region.0 + 1..=end).map(RegionIndex) {
            if self.entries.contains_key(&next) || self.logged() >= self.tuning.clean_above {
                break;
            }
            self.add_ahead(next, now);
            admitted.push(next);
        }
    }

    /// Regions that are in the log or on their way.
    fn logged(&self) -> usize {
        self.entries.len() - self.stalled.len()
    }

    /// The region's set record is durable. Returns the jobs that waited for it.
    pub(crate) fn set_done(&mut self, region: RegionIndex) -> Vec<u64> {
        self.update(region, |entry| {
            assert_eq!(entry.phase, Phase::Setting, "region {region} was not being set");
            entry.phase = Phase::Set;
        });
        self.waiters.remove(&region).unwrap_or_default()
    }

    /// The region's clear record is durable. Must it be set again at once?
    pub(crate) fn clear_done(&mut self, region: RegionIndex) -> bool {
        let again = self.update(region, |entry| {
            assert!(matches!(entry.phase, Phase::Clearing { .. }), "{region} was not cleared");
            let again = entry.phase == Phase::Clearing { again: true };
            entry.phase = Phase::Setting;
            (entry.cleaning, entry.untrusted, entry.floor) = (false, false, Gen(0));
            again
        });
        if again == Some(false) {
            self.entries.remove(&region);
        }
        again == Some(true)
    }

    pub(crate) fn wait_for(&mut self, region: RegionIndex, job: u64) {
        self.waiters.entry(region).or_default().push(job);
    }

    pub(crate) fn pin(&mut self, region: RegionIndex) {
        *self.pins.entry(region).or_default() += 1;
        self.update(region, |_| ());
    }

    pub(crate) fn unpin(&mut self, region: RegionIndex) {
        let left = self.pins.get_mut(&region).map(|pins| {
            *pins -= 1;
            *pins
        });
        assert!(left.is_some(), "region {region} was released more often than it was pinned");
        if left == Some(0) {
            self.pins.remove(&region);
        }
        self.update(region, |_| ());
    }

    /// The unresolved regions, ascending.
    pub(crate) fn unresolved(&self) -> Vec<RegionIndex> {
        if self.unresolved == 0 {
            return Vec::new();
        }
        self.entries.iter().filter(|(_, e)| e.unresolved).map(|(r, _)| *r).collect()
    }

    pub(crate) fn resolve(&mut self, now: Tick) {
        for region in self.unresolved() {
            self.update(region, |entry| (entry.unresolved, entry.touched) = (false, now));
        }
        self.unresolved = 0;
    }

    /// Forgets everything that waits: the store has failed.
    pub(crate) fn abandon(&mut self) {
        self.waiters.clear();
    }

    /// When the region that has been idle for the longest time may be cleaned.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.idle.first().map(|(since, _)| since.plus_ms(self.patience_ms()))
    }

    /// How long a region must have been idle. If too much is active, what is not quite hot is
    /// cleaned; if something waits for room, anything.
    fn patience_ms(&self) -> u64 {
        if !self.stalled.is_empty() {
            0
        } else if self.logged() - self.unresolved > self.tuning.clean_above {
            self.tuning.idle_ms / 16
        } else {
            self.tuning.idle_ms
        }
    }

    /// What to clean now: everything there is if `all`; else what has been idle for long enough,
    /// together with what soon will have been, so that they share the barriers.
    pub(crate) fn batch(&self, now: Tick, all: bool) -> Vec<RegionIndex> {
        let due = self.deadline().is_some_and(|at| at <= now);
        if !(all || due) {
            return Vec::new();
        }
        let soon_ms = self.patience_ms() / 2;
        let wanted = self.idle.iter().take_while(|(since, _)| all || since.plus_ms(soon_ms) <= now);
        wanted.take(self.tuning.clean_batch).map(|(_, region)| *region).collect()
    }

    /// Regions whose tags in memory the disk has not.
    pub(crate) fn dirty(&self) -> impl Iterator<Item = (RegionIndex, &Active)> {
        self.entries.iter().filter(|(_, entry)| entry.dirty).map(|(region, entry)| (*region, entry))
    }

    /// Does no operation change any block?
    pub(crate) fn is_quiet(&self) -> bool {
        self.entries.values().all(|entry| entry.users == 0)
    }

    pub(crate) fn is_anything_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    pub(crate) fn is_active(&self, region: RegionIndex) -> bool {
        self.entries.contains_key(&region)
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            logged: self.logged(),
            unresolved: self.unresolved,
            stalled: self.stalled.len(),
            pinned: self.pins.len(),
        }
    }

    /// Asserts that what is counted and indexed agrees with the entries.
    pub(crate) fn check(&self) {
        let unresolved = self.entries.values().filter(|e| e.unresolved).count();
        assert_eq!(unresolved, self.unresolved, "unresolved regions are miscounted");
        let stalled = self.entries.values().filter(|e| e.phase == Phase::Stalled).count();
        assert_eq!(stalled, self.stalled.len(), "stalled regions are miscounted");
        assert!(self.logged() <= LOG_CAPACITY, "more regions are active than the log can hold");
        let idle = self.entries.values().filter(|e| e.idle_since.is_some()).count();
        assert_eq!(idle, self.idle.len(), "the idle index is wrong");
        for (region, entry) in &self.entries {
            let pinned = self.pins.contains_key(region) && !self.ignore_pins;
            let comes_back = entry.phase == Phase::Clearing { again: true };
            let leaving = entry.cleaning && !comes_back || entry.idle_since.is_some();
            assert!(!(leaving && pinned), "m3: pinned region {region} may be cleaned");
            assert!(!(leaving && entry.unresolved), "m3: unresolved {region} may be cleaned");
            assert!(!entry.unresolved || entry.untrusted, "unresolved {region} is trusted");
        }
        for region in self.pins.keys() {
            let known = self.entries.contains_key(region) || self.ignore_pins;
            assert!(known, "m3: pinned region {region} is not active");
        }
    }
}

/// Numbers of regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) logged: usize,
    pub(crate) unresolved: usize,
    pub(crate) stalled: usize,
    pub(crate) pinned: usize,
}
