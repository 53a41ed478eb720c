//! A disk that knows which images a power cut may leave of it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use lockstep_store::{DiskOp, DiskOpId, DiskOpKind, File, file_bytes};

use crate::disk::Rng;

const PAGE: usize = 4096;
/// What a write that is under way may leave is made of such pieces.
const SECTOR: usize = 512;
/// Up to so many doubtful writes, every subset of them is tried.
const EXHAUSTIVE: usize = 6;

/// A write that need not be on the medium.
#[derive(Clone, Debug)]
struct Write {
    file: File,
    offset: u64,
    data: Bytes,
}

impl Write {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn covers(&self, other: &Self) -> bool {
        self.file == other.file && self.offset <= other.offset && other.end() <= self.end()
    }
}

/// An operation handed out and not done.
#[derive(Debug)]
struct Flying {
    op: DiskOp,
    /// How many of the volatile writes were done when it was handed out.
    begun: u64,
}

/// What a file system would show after a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pages: BTreeMap<(File, u64), Vec<u8>>,
}

impl Image {
    fn write(&mut self, file: File, offset: u64, data: &[u8]) {
        let (mut at, mut rest) = (usize::try_from(offset).expect("small"), data);
        while !rest.is_empty() {
            let (from, count) = (at % PAGE, rest.len().min(PAGE - at % PAGE));
            let page = self.pages.entry((file, (at / PAGE) as u64));
            let page = page.or_insert_with(|| vec![0; PAGE]);
            page[from..from + count].copy_from_slice(&rest[..count]);
            (at, rest) = (at + count, &rest[count..]);
        }
    }

    pub(crate) fn file(&self, file: File, blocks: u64) -> Vec<u8> {
        let len = usize::try_from(file_bytes(file, blocks)).expect("small");
        let mut out = vec![0; len];
        for ((_, page), content) in self.pages.range((file, 0)..=(file, u64::MAX)) {
            let at = usize::try_from(*page).expect("small") * PAGE;
            let end = len.min(at + PAGE);
            out[at..end].copy_from_slice(&content[..end - at]);
        }
        out
    }

    pub(crate) fn read(&self, file: File, offset: u64, len: usize) -> Vec<u8> {
        let at = usize::try_from(offset).expect("small");
        let byte = |at: usize| {
            self.pages.get(&(file, (at / PAGE) as u64)).map_or(0, |page| page[at % PAGE])
        };
        if at.is_multiple_of(PAGE) && len == PAGE {
            let page = self.pages.get(&(file, (at / PAGE) as u64));
            return page.cloned().unwrap_or_else(|| vec![0; PAGE]);
        }
        (at..at + len).map(byte).collect()
    }
}

/// The files of one replica, while its process runs.
#[derive(Debug, Default)]
pub(crate) struct Medium {
    durable: Image,
    /// Done and not durable, with the number of each.
    volatile: VecDeque<(u64, Write)>,
    flying: Vec<Flying>,
    writes: u64,
}

impl Medium {
    pub(crate) fn new(format: Vec<(File, u64, Bytes)>) -> Self {
        let mut medium = Self::default();
        for (file, offset, data) in format {
            medium.durable.write(file, offset, &data);
        }
        medium
    }

    /// One on which everything that is there is durable.
    pub(crate) fn of(image: Image) -> Self {
        Self { durable: image, ..Self::default() }
    }

    pub(crate) fn take(&mut self, op: DiskOp) {
        self.flying.push(Flying { op, begun: self.writes });
    }

    pub(crate) fn flying(&self) -> usize {
        self.flying.len()
    }

    /// All that was done, durable or not: what a killed process leaves at least.
    pub(crate) fn visible(&self) -> Image {
        let mut image = self.durable.clone();
        for (_, write) in &self.volatile {
            image.write(write.file, write.offset, &write.data);
        }
        image
    }

    /// Carries out one of the operations handed out.
    pub(crate) fn run(&mut self, index: usize) -> (DiskOpId, Bytes) {
        let Flying { op, begun } = self.flying.remove(index);
        match op.kind {
            DiskOpKind::Read { file, offset, len } => {
                let data = self.visible().read(file, offset, len as usize);
                return (op.id, Bytes::from(data));
            }
            DiskOpKind::Sync { file } => self.persist(file, begun),
            DiskOpKind::Write { file, durable: true, .. } => {
                let write = written(&op.kind).expect("a write");
                self.writes += 1;
                self.durable.write(file, write.offset, &write.data);
                // What was there before is overwritten, durable or not.
                self.volatile.retain(|(_, older)| !write.covers(older));
            }
            DiskOpKind::Write { .. } | DiskOpKind::Zero { .. } => self.done(&op.kind),
            // Not among what these workloads do.
            _ => {}
        }
        (op.id, Bytes::new())
    }

    fn done(&mut self, kind: &DiskOpKind) {
        self.writes += 1;
        let write = written(kind).expect("only writes are done so");
        // A power cut may keep one page of a write and lose the next.
        let first = PAGE - usize::try_from(write.offset).expect("small") % PAGE;
        let (mut from, mut to) = (0, first.min(write.data.len()));
        while from < to {
            let (offset, data) = (write.offset + from as u64, write.data.slice(from..to));
            self.volatile.push_back((self.writes, Write { file: write.file, offset, data }));
            (from, to) = (to, (to + PAGE).min(write.data.len()));
        }
    }

    fn persist(&mut self, file: File, until: u64) {
        let (durable, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.volatile)
            .into_iter()
            .partition(|(number, write)| write.file == file && *number <= until);
        for (_, write) in durable {
            self.durable.write(write.file, write.offset, &write.data);
        }
        self.volatile = rest.into();
    }

    /// What may be found after the process was killed: all that was done, and any part of what was
    /// under way.
    pub(crate) fn after_kill(&self, random: usize, rng: &mut Rng, check: &mut dyn FnMut(&Image)) {
        let under_way: Vec<Write> =
            self.flying.iter().filter_map(|f| written(&f.op.kind)).collect();
        subsets(&self.visible(), &[], &under_way, random, rng, check);
    }

    /// What may be found after the power was cut: any subset of what was done and not durable, in
    /// its order, or parts of it, and any part of what was under way.
    pub(crate) fn after_power_cut(
        &self,
        random: usize,
        rng: &mut Rng,
        check: &mut dyn FnMut(&Image),
    ) {
        let done: Vec<Write> = self.volatile.iter().map(|(_, write)| write.clone()).collect();
        let under_way: Vec<Write> =
            self.flying.iter().filter_map(|f| written(&f.op.kind)).collect();
        subsets(&self.durable, &done, &under_way, random, rng, check);
    }
}

fn written(kind: &DiskOpKind) -> Option<Write> {
    match kind {
        DiskOpKind::Write { file, offset, data, .. } => {
            Some(Write { file: *file, offset: *offset, data: data.clone() })
        }
        DiskOpKind::Zero { file, offset, len, .. } => {
            let data = Bytes::from(vec![0; usize::try_from(*len).expect("small")]);
            Some(Write { file: *file, offset: *offset, data })
        }
        _ => None,
    }
}

/// Every subset of the writes if they are few, else some; then some with torn writes.
fn subsets(
    base: &Image,
    done: &[Write],
    under_way: &[Write],
    random: usize,
    rng: &mut Rng,
    check: &mut dyn FnMut(&Image),
) {
    let all: Vec<&Write> = done.iter().chain(under_way).collect();
    let masks: Vec<u64> = if all.len() <= EXHAUSTIVE {
        (0..1 << all.len()).collect()
    } else {
        (0..random).map(|_| rng.next()).collect()
    };
    for mask in masks {
        let mut image = base.clone();
        for (index, write) in all.iter().enumerate() {
            if mask >> (index % 64) & 1 == 1 {
                image.write(write.file, write.offset, &write.data);
            }
        }
        check(&image);
    }
    if all.is_empty() {
        return;
    }
    for _ in 0..random.div_ceil(8) {
        let mut image = base.clone();
        for write in done {
            match rng.below(3) {
                0 => {}
                1 => tear(&mut image, write, rng),
                _ => image.write(write.file, write.offset, &write.data),
            }
        }
        for write in under_way {
            tear(&mut image, write, rng);
        }
        check(&image);
    }
}

fn tear(image: &mut Image, write: &Write, rng: &mut Rng) {
    let tail = rng.one_in(2);
    let cut = rng.below(write.data.len().div_ceil(SECTOR) as u64 + 1);
    for (index, sector) in write.data.chunks(SECTOR).enumerate() {
        // Cut short, or with holes.
        let there = if tail { (index as u64) < cut } else { rng.one_in(2) };
        if there {
            image.write(write.file, write.offset + (index * SECTOR) as u64, sector);
        }
    }
}
