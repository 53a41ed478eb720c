//! A disk in memory that loses what was not made durable.

use std::collections::BTreeMap;

use bytes::Bytes;
use lockstep_core::id::SnapshotId;
use lockstep_core::range::BlockRange;
use lockstep_store::{DiskError, DiskOp, DiskOpId, DiskOpKind, File, file_bytes};

pub(crate) const PAGE: u64 = 4096;

/// Splitmix64: small, seeded, good enough to choose faults.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A page: what is on the medium, and what was written since.
#[derive(Clone, Debug)]
struct Page {
    durable: Vec<u8>,
    /// Later contents, each with the number of its write, oldest first.
    later: Vec<(u64, Vec<u8>)>,
}

impl Page {
    fn visible(&self) -> &[u8] {
        self.later.last().map_or(&self.durable, |(_, content)| content)
    }
}

/// The four files of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    blocks: u64,
    pages: BTreeMap<(File, u64), Page>,
    /// Handed out by the store and not executed, with the number of writes done by then.
    pub(crate) flying: Vec<(DiskOp, u64)>,
    writes: u64,
    kept: BTreeMap<SnapshotId, Box<Disk>>,
    unsealed: Option<(SnapshotId, Box<Disk>)>,
    pub(crate) ahead: Option<Box<Disk>>,
}

impl Disk {
    /// New files with these durable writes.
    pub(crate) fn new(blocks: u64, format: Vec<(File, u64, Bytes)>) -> Self {
        let mut disk = Self {
            blocks,
            pages: BTreeMap::new(),
            flying: Vec::new(),
            writes: 0,
            kept: BTreeMap::new(),
            unsealed: None,
            ahead: None,
        };
        for (file, offset, data) in format {
            disk.write(file, offset, &data, true);
        }
        disk
    }

    /// A snapshot that was taken.
    pub(crate) fn kept(&self, id: SnapshotId) -> Option<&Self> {
        self.kept.get(&id).map(AsRef::as_ref)
    }

    /// The files of a clone of this snapshot.
    pub(crate) fn clone_of(&self, blocks: u64, format: Vec<(File, u64, Bytes)>) -> Self {
        let mut disk = Self { blocks, ..self.clone() };
        for (file, offset, data) in format {
            disk.write(file, offset, &data, true);
        }
        disk
    }

    /// The whole file as a process sees it.
    pub(crate) fn file(&self, file: File) -> Vec<u8> {
        let len = usize::try_from(file_bytes(file, self.blocks)).expect("a small file");
        let mut out = vec![0; len];
        for ((_, page), content) in self.pages.range((file, 0)..=(file, u64::MAX)) {
            let at = usize::try_from(page * PAGE).expect("a small file");
            let end = len.min(at + 4096);
            out[at..end].copy_from_slice(&content.visible()[..end - at]);
        }
        out
    }

    /// A part of a file as a process sees it.
    pub(crate) fn read(&self, file: File, offset: u64, len: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let from = usize::try_from(at % PAGE).expect("small");
            let count = usize::try_from((end - at).min(PAGE - at % PAGE)).expect("small");
            match self.pages.get(&(file, at / PAGE)) {
                Some(page) => out.extend_from_slice(&page.visible()[from..from + count]),
                None => out.resize(out.len() + count, 0),
            }
            at += count as u64;
        }
        out
    }

    /// Damages one byte, on the medium and in every cache.
    pub(crate) fn flip(&mut self, file: File, offset: u64) {
        let mut data = self.read(file, offset, 1);
        data[0] ^= 0x10;
        self.put(file, offset, &data);
    }

    /// Puts bytes onto the medium, behind everybody's back.
    pub(crate) fn put(&mut self, file: File, offset: u64, data: &[u8]) {
        self.write(file, offset, data, true);
    }

    pub(crate) fn take(&mut self, op: DiskOp) {
        self.flying.push((op, self.writes));
    }

    /// Executes one of the operations handed out.
    pub(crate) fn run(&mut self, index: usize) -> (DiskOpId, Result<Bytes, DiskError>) {
        let (op, begun) = self.flying.remove(index);
        let mut read = Vec::new();
        match op.kind {
            DiskOpKind::Read { file, offset, len } => {
                read = self.read(file, offset, u64::from(len));
            }
            DiskOpKind::Write { file, offset, data, durable } => {
                self.write(file, offset, &data, durable);
            }
            DiskOpKind::Zero { file, offset, len, .. } => {
                let zeroes = vec![0; usize::try_from(len).expect("small")];
                self.write(file, offset, &zeroes, false);
            }
            DiskOpKind::Sync { file } => self.persist(file, begun),
            DiskOpKind::Extend { blocks } => self.blocks = self.blocks.max(blocks),
            DiskOpKind::TrySnapshot => {}
            DiskOpKind::CopyAhead { fresh, ranges } => {
                if fresh {
                    self.ahead = Some(Box::new(Self::new(self.blocks, Vec::new())));
                }
                self.copy_ahead(&ranges);
            }
            DiskOpKind::DropAhead => self.ahead = None,
            DiskOpKind::Snapshot { id, ahead: Some(ranges) } => {
                self.copy_ahead(&ranges);
                let Some(kept) = self.ahead.take() else { return (op.id, Err(DiskError::Io)) };
                self.unsealed = Some((id, kept));
            }
            DiskOpKind::Snapshot { id, ahead: None } => {
                let mut kept = Self { flying: Vec::new(), kept: BTreeMap::new(), ..self.clone() };
                kept.pages.retain(|(file, _), _| *file == File::Data);
                self.unsealed = Some((id, Box::new(kept)));
            }
            DiskOpKind::KeepTags { id, unwritten } => {
                let Some((_, kept)) = self.unsealed.as_mut().filter(|(kept, _)| *kept == id) else {
                    return (op.id, Err(DiskError::Io));
                };
                let tags = [File::Tags, File::Regions];
                let pages = self.pages.iter().filter(|((file, _), _)| tags.contains(file));
                kept.pages.extend(pages.map(|(at, page)| (*at, page.clone())));
                for patch in unwritten.patches() {
                    kept.write(patch.file, patch.offset, &patch.data, true);
                }
            }
            DiskOpKind::SealSnapshot { id, .. } => {
                let sealed = self.unsealed.take().filter(|(kept, _)| *kept == id);
                let Some((_, kept)) = sealed else { return (op.id, Err(DiskError::Io)) };
                self.kept.insert(id, kept);
            }
            DiskOpKind::DropSnapshot { id } => {
                self.kept.remove(&id);
            }
        }
        (op.id, Ok(Bytes::from(read)))
    }

    fn copy_ahead(&mut self, ranges: &[BlockRange]) {
        let Some(mut ahead) = self.ahead.take() else { return };
        for block in ranges.iter().flat_map(|range| range.blocks()) {
            let at = (File::Data, block);
            ahead.pages.remove(&at);
            ahead.pages.extend(self.pages.get(&at).map(|page| (at, page.clone())));
        }
        self.ahead = Some(ahead);
    }

    fn write(&mut self, file: File, offset: u64, data: &[u8], durable: bool) {
        let end = offset + data.len() as u64;
        assert!(end <= file_bytes(file, self.blocks), "write beyond the end of {file}");
        self.writes += 1;
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let from = usize::try_from(at % PAGE).expect("small");
            let count = rest.len().min(4096 - from);
            let blank = || Page { durable: vec![0; 4096], later: Vec::new() };
            let page = self.pages.entry((file, at / PAGE)).or_insert_with(blank);
            let mut content = page.visible().to_vec();
            content[from..from + count].copy_from_slice(&rest[..count]);
            if durable {
                *page = Page { durable: content, later: Vec::new() };
            } else {
                page.later.push((self.writes, content));
            }
            rest = &rest[count..];
            at += count as u64;
        }
    }

    /// What was written before write number `until` is durable now; no promise for the rest.
    fn persist(&mut self, file: File, until: u64) {
        for (_, page) in self.pages.range_mut((file, 0)..=(file, u64::MAX)) {
            while page.later.first().is_some_and(|(number, _)| *number <= until) {
                page.durable = page.later.remove(0).1;
            }
        }
    }

    /// The process ends: what it had under way is done, or not, or in part.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        while !self.flying.is_empty() {
            self.fail(0, rng);
        }
    }

    /// One of the operations handed out is done, or not, or in part, and nothing is durable.
    pub(crate) fn fail(&mut self, index: usize, rng: &mut Rng) -> DiskOp {
        let (op, _) = self.flying.remove(index);
        match &op.kind {
            DiskOpKind::Write { file, offset, data, .. } => {
                let atom = if *file == File::Meta { 512 } else { 4096 };
                for (index, part) in data.chunks(atom).enumerate() {
                    if rng.one_in(2) {
                        self.write(*file, offset + (index * atom) as u64, part, false);
                    }
                }
            }
            DiskOpKind::Zero { file, offset, len, .. } => {
                for at in (*offset..offset + len).step_by(4096) {
                    if rng.one_in(2) {
                        self.write(*file, at, &[0; 4096], false);
                    }
                }
            }
            _ => {}
        }
        op
    }

    /// Power is lost: of what was written and is not durable, any part may be gone.
    pub(crate) fn power_loss(&mut self, rng: &mut Rng) {
        self.kill(rng);
        for page in self.pages.values_mut() {
            let kept = rng.below(page.later.len() as u64 + 1);
            if let Some(index) = kept.checked_sub(1) {
                page.durable = page.later.remove(usize::try_from(index).expect("small")).1;
            }
            page.later.clear();
        }
    }
}
