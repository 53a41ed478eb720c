//! What a scrub has found, while it runs and afterwards.

use alloc::collections::BTreeSet;

use super::{Counters, Effect, Notice, Primary, ScrubProgress};
use crate::id::Tick;
use crate::limits;
use crate::range::BLOCK_SIZE;

/// A scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubReport {
    /// How far it is, or was when it ended: less than all if it was broken off.
    pub progress: ScrubProgress,
    /// When it began.
    pub began: Tick,
    /// When it ended, if it has.
    pub ended: Option<Tick>,
    /// Bad blocks that were mended since it began.
    pub mended_blocks: u64,
    /// Blocks that no member could give; at most [`limits::SCRUB_BLOCKS`] are counted.
    pub unreadable_blocks: u64,
    /// Blocks in which members differ.
    pub diverged_blocks: u64,
}

/// The scrub under way, or the last one.
#[derive(Clone, Debug)]
pub(super) struct Scrub {
    report: ScrubReport,
    /// Counters when it began.
    before: Counters,
    /// Blocks that no member could give: each is met on every member.
    unreadable: BTreeSet<u64>,
}

impl Primary {
    /// Keeps the report of a scrub; called after everything that a scrub does.
    pub(super) fn note_scrub(&mut self) {
        let (now, counters) = (self.now, self.counters);
        let running = self.is_scrubbing();
        let total_bytes = self.cas.record().map_or(0, |r| r.blocks * u64::from(BLOCK_SIZE));
        let progress = self.scrub_progress();
        let whole = ScrubProgress { done_bytes: total_bytes, total_bytes };
        let closing = self.closing.is_some();
        if running && self.scrub.as_ref().is_none_or(|s| s.report.ended.is_some()) {
            let progress = ScrubProgress { done_bytes: 0, total_bytes };
            let (began, ended) = (now, None);
            let report = ScrubReport {
                progress,
                began,
                ended,
                mended_blocks: 0,
                unreadable_blocks: 0,
                diverged_blocks: 0,
            };
            self.scrub = Some(Scrub { report, before: counters, unreadable: BTreeSet::new() });
        }
        let Some(Scrub { report, before, unreadable }) = self.scrub.as_mut() else { return };
        if report.ended.is_some() {
            return;
        }
        report.mended_blocks = counters.mended_blocks - before.mended_blocks;
        report.unreadable_blocks = unreadable.len() as u64;
        report.diverged_blocks = counters.diverged_blocks - before.diverged_blocks;
        report.progress = match (progress, closing) {
            (Some(progress), _) => progress,
            (None, true) => report.progress,
            (None, false) => whole,
        };
        if !running {
            report.ended = Some(now);
        }
    }

    /// No member can give a block.
    pub(super) fn note_unreadable(&mut self, block: u64) {
        self.counters.unreadable_blocks += 1;
        self.out.push(Effect::Notice(Notice::Unreadable { block }));
        let running = self.scrub.as_mut().filter(|scrub| scrub.report.ended.is_none());
        if let Some(scrub) = running
            && scrub.unreadable.len() < limits::SCRUB_BLOCKS
        {
            scrub.unreadable.insert(block);
        }
    }

    /// The scrub under way, or the last one since the claim.
    pub(super) fn scrub_report(&self) -> Option<ScrubReport> {
        self.scrub.as_ref().map(|scrub| scrub.report)
    }
}
