//! Who wrote what, and what must therefore be read: every write and flush that was acknowledged.
//!
//! Time is a count of things that happened. A write has a moment of issue, which is also its
//! version, and a moment of settlement: when it was acknowledged, or when it was known that it
//! never will be. Of two writes to a block the earlier one counts no more if it had settled before
//! the later one was issued and the later one was acknowledged. What still counts may be read.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::content::{BLOCK, Content, Version};

/// A moment: how many things had happened.
type Moment = u64;

/// Consecutive blocks of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Span {
    /// The blocks.
    pub fn blocks(self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }

    fn holds(self, block: u64) -> bool {
        self.blocks().contains(&block)
    }
}

/// A write whose effect may be in its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Settled {
    version: Version,
    at: Moment,
    /// It was acknowledged; else it was under way when its server was lost.
    acked: bool,
}

#[derive(Clone, Debug)]
struct Block {
    /// What may be read once no write is under way. Never empty.
    settled: Vec<Settled>,
    /// The newest version that a flush covered, of those that count no more.
    flushed: Version,
    /// Left alone from now on: it has to stay as it was read.
    frozen: bool,
    /// Written since [`Ledger::mark_absence`].
    missed: bool,
}

/// A read that was issued.
#[derive(Debug)]
pub struct Reading {
    span: Span,
    issued: Moment,
    /// What may be read, for each block, if nothing is written meanwhile.
    allowed: Vec<Vec<Version>>,
}

/// What was found wrong in blocks that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Blocks that were looked at.
    pub blocks: u64,
    /// Acknowledged writes that are not to be seen where they must be.
    pub lost: BTreeSet<Version>,
    /// Of those blocks, how many miss even what a flush covered.
    pub lost_flushed_blocks: u64,
    /// Blocks with content that nobody wrote there.
    pub corrupt: BTreeSet<u64>,
    /// The first few, in words.
    pub words: Vec<String>,
}

impl Findings {
    const WORDS_MAX: usize = 8;

    /// Adds what another look found.
    pub fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.lost.extend(other.lost);
        self.lost_flushed_blocks += other.lost_flushed_blocks;
        self.corrupt.extend(other.corrupt);
        self.words.extend(other.words);
        self.words.truncate(Self::WORDS_MAX);
    }

    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.corrupt.is_empty() && self.lost_flushed_blocks == 0
    }

    fn say(&mut self, words: impl FnOnce() -> String) {
        if self.words.len() < Self::WORDS_MAX {
            self.words.push(words());
        }
    }
}

/// The ledger of one volume's test area.
#[derive(Debug)]
pub struct Ledger {
    content: Content,
    area: Span,
    blocks: Vec<Block>,
    now: Moment,
    pending: BTreeMap<Version, Span>,
    /// What had settled by then is covered by an acknowledged flush.
    flushed_until: Moment,
    absent: bool,
}

impl Ledger {
    /// A ledger of an area in which nothing was written yet.
    pub fn new(content: Content, area: Span) -> Self {
        let settled = vec![Settled { version: 0, at: 0, acked: true }];
        let block = Block { settled, flushed: 0, frozen: false, missed: false };
        let blocks = area.blocks().map(|_| block.clone()).collect();
        let pending = BTreeMap::new();
        Self { content, area, blocks, now: 0, pending, flushed_until: 0, absent: false }
    }

    /// The blocks it is about.
    pub fn area(&self) -> Span {
        self.area
    }

    /// Writes under way: version and place.
    pub fn pending(&self) -> impl Iterator<Item = (Version, Span)> {
        self.pending.iter().map(|(version, span)| (*version, *span))
    }

    /// Whether a block of the span must be left alone.
    pub fn is_frozen(&self, span: Span) -> bool {
        span.blocks().any(|b| self.at(b).frozen)
    }

    /// A write is issued; returns its version and its data.
    pub fn write(&mut self, span: Span) -> (Version, Vec<u8>) {
        let version = self.tick();
        self.pending.insert(version, span);
        let mut data = vec![0; usize::try_from(span.count).unwrap_or(0) * BLOCK];
        for (block, bytes) in span.blocks().zip(data.chunks_exact_mut(BLOCK)) {
            self.content.fill(block, version, bytes);
            if self.absent {
                self.at_mut(block).missed = true;
            }
        }
        (version, data)
    }

    /// The write was acknowledged; with `fua`, as durable.
    pub fn acked(&mut self, version: Version, fua: bool) {
        let at = self.tick();
        let flushed_until = self.flushed_until;
        for block in self.settle(version).blocks() {
            let block = self.at_mut(block);
            let over = |s: &Settled| s.at < version;
            let flushed = block.settled.iter().filter(|s| over(s) && s.acked);
            let flushed = flushed.filter(|s| s.at <= flushed_until).map(|s| s.version).max();
            block.flushed = block.flushed.max(flushed.unwrap_or(0));
            block.settled.retain(|s| !over(s));
            block.settled.push(Settled { version, at, acked: true });
            if fua {
                block.flushed = block.flushed.max(version);
            }
        }
    }

    /// The server was lost before it answered: the write is done or not, block by block.
    pub fn unanswered(&mut self, version: Version) {
        let at = self.tick();
        let absent = self.absent;
        for block in self.settle(version).blocks() {
            let block = self.at_mut(block);
            block.settled.push(Settled { version, at, acked: false });
            block.missed |= absent;
        }
    }

    /// A flush is issued.
    pub fn flush(&mut self) -> Moment {
        self.tick()
    }

    /// The flush that was issued at `issued` was acknowledged.
    pub fn flushed(&mut self, issued: Moment) {
        self.flushed_until = self.flushed_until.max(issued);
    }

    /// A read is issued.
    pub fn read(&mut self, span: Span) -> Reading {
        let allowed = span.blocks().map(|block| {
            let settled = self.at(block).settled.iter().map(|s| s.version);
            let pending = self.pending.iter().filter(|(_, p)| p.holds(block));
            settled.chain(pending.map(|(version, _)| *version)).collect()
        });
        let allowed = allowed.collect();
        Reading { span, issued: self.tick(), allowed }
    }

    /// Judges what a read found.
    pub fn judge(&self, reading: &Reading, data: &[u8]) -> Findings {
        let mut findings = Findings::default();
        let pairs = reading.span.blocks().zip(data.chunks(BLOCK));
        for ((block, bytes), allowed) in pairs.zip(&reading.allowed) {
            findings.blocks += 1;
            match self.content.recognise(block, bytes) {
                Some(version) if version <= self.now => {
                    let legal = allowed.contains(&version) || version > reading.issued;
                    if !legal {
                        self.note_lost(block, version, &mut findings);
                    }
                }
                _ => {
                    findings.corrupt.insert(block);
                    findings.say(|| format!("block {block} holds what nobody wrote there"));
                }
            }
        }
        assert_eq!(findings.blocks, reading.span.count, "a read returns what was asked for");
        findings
    }

    fn note_lost(&self, block: u64, found: Version, findings: &mut Findings) {
        let state = self.at(block);
        let acked = state.settled.iter().filter(|s| s.acked && s.version != found);
        let newest = acked.clone().map(|s| s.version).max().unwrap_or(found);
        findings.lost.insert(newest);
        let covered = acked.filter(|s| s.at <= self.flushed_until).map(|s| s.version).max();
        if found < covered.unwrap_or(0).max(state.flushed) {
            findings.lost_flushed_blocks += 1;
        }
        findings.say(|| {
            format!("block {block} holds write {found}; write {newest} was acknowledged after it")
        });
    }

    /// Runs of blocks of which it is not known what they hold.
    pub fn uncertain(&self) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        for (block, _) in self.area.blocks().zip(&self.blocks).filter(|(_, b)| b.settled.len() > 1)
        {
            match spans.last_mut() {
                Some(span) if span.blocks().end == block => span.count += 1,
                _ => spans.push(Span { first: block, count: 1 }),
            }
        }
        spans
    }

    /// Blocks of which it was not known what they hold were read: from now on they hold that, for
    /// good. Returns for how many the write whose answer was lost is there, and for how many not.
    pub fn decide(&mut self, reading: &Reading, data: &[u8]) -> (u64, u64) {
        let (mut done, mut not_done) = (0, 0);
        for (block, bytes) in reading.span.blocks().zip(data.chunks(BLOCK)) {
            let found = self.content.recognise(block, bytes);
            let state = self.at_mut(block);
            let unanswered = state.settled.iter().any(|s| !s.acked);
            let Some(found) = state.settled.iter().find(|s| Some(s.version) == found).copied()
            else {
                continue;
            };
            done += u64::from(unanswered && !found.acked);
            not_done += u64::from(unanswered && found.acked);
            // Both sides of this choice were legal; having been read, only one is.
            state.settled = vec![Settled { acked: true, ..found }];
            state.frozen = true;
        }
        (done, not_done)
    }

    /// What had to stay as it was read may be written again.
    pub fn thaw(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.frozen = false);
    }

    /// From now on a copy is absent: what is under way or will be written is missed by it.
    pub fn mark_absence(&mut self) {
        self.absent = true;
        let pending: Vec<Span> = self.pending.values().copied().collect();
        for block in pending.into_iter().flat_map(Span::blocks) {
            self.at_mut(block).missed = true;
        }
    }

    /// The absent copy gets all writes again.
    pub fn end_absence(&mut self) {
        self.absent = false;
    }

    /// How many blocks the absent copy missed.
    pub fn missed_blocks(&self) -> u64 {
        self.blocks.iter().map(|b| u64::from(b.missed)).sum()
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    fn settle(&mut self, version: Version) -> Span {
        let span = self.pending.remove(&version);
        assert!(span.is_some(), "write {version} was answered twice or never issued");
        span.unwrap_or(Span { first: self.area.first, count: 0 })
    }

    fn index(&self, block: u64) -> usize {
        assert!(self.area.holds(block), "block {block} is not in the test area");
        usize::try_from(block - self.area.first).unwrap_or(usize::MAX)
    }

    fn at(&self, block: u64) -> &Block {
        &self.blocks[self.index(block)]
    }

    fn at_mut(&mut self, block: u64) -> &mut Block {
        let index = self.index(block);
        &mut self.blocks[index]
    }
}
