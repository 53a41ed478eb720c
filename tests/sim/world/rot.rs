//! Disks that fail, forget and lie, within what can be recovered.
//!
//! A block is damaged only where its copy would notice, and where another copy in sync is good.
//! Should that cease to be so (the good copy leaves, or the damaged one crashes while the block's
//! checksum is only in memory), the damage is taken back: nothing is promised for it.

use bytes::Bytes;
use lockstep_core::range::BLOCKS_PER_REGION;
use lockstep_core::replica::Role;
use lockstep_store::layout::{File, TABLE_BYTES};
use lockstep_store::{DiskError, DiskOpKind};

use super::host::{apply, apply_in_part};
use super::{Event, MS, World};
use crate::content::{BLOCK, Value};
use crate::disk::Damage;
use crate::fault::Fault;
use crate::node::{Copy, Flight, tag_page};

impl World {
    /// Does a disk operation, with what goes wrong now.
    pub(super) fn execute(&mut self, node: usize, flight: Flight) -> Result<Bytes, DiskError> {
        if let DiskOpKind::Write { file: File::Data, offset, ref data, .. } = flight.kind {
            self.note_gaps(node, offset, data);
        }
        let now = self.now();
        let n = &mut self.nodes[node];
        let (gone, full) = (n.gone_until > now, n.full_until > now);
        let Some(copy) = n.copy.as_mut() else { return Err(DiskError::Io) };
        let data = matches!(flight.kind, DiskOpKind::Write { file: File::Data, .. });
        let takes = matches!(
            flight.kind,
            DiskOpKind::Extend { .. }
                | DiskOpKind::TrySnapshot
                | DiskOpKind::Snapshot { .. }
                | DiskOpKind::KeepTags { .. }
        );
        let flush = matches!(flight.kind, DiskOpKind::Sync { file: File::Data });
        let books = matches!(flight.kind, DiskOpKind::Write { file: File::Meta, .. });
        if gone {
            return Err(DiskError::Io);
        }
        if full && takes {
            return Err(DiskError::NoSpace);
        }
        if full && data {
            apply_in_part(&mut copy.disk, flight.kind, &mut self.rng);
            return Err(DiskError::NoSpace);
        }
        match copy.mishap {
            Some(Fault::FlushError) if flush => {
                copy.mishap = None;
                self.lose_unflushed(node, flight.mark);
                self.count(Fault::FlushError);
                Err(DiskError::Io)
            }
            Some(fault @ (Fault::LostWrite | Fault::MisdirectedWrite)) if data => {
                copy.mishap = None;
                self.go_astray(node, fault, flight);
                Ok(Bytes::new())
            }
            Some(Fault::BookRot) if books => {
                copy.mishap = None;
                self.half_write(node, flight);
                Ok(Bytes::new())
            }
            _ => match flight.kind {
                DiskOpKind::Read { file, offset, len } => {
                    copy.disk.given(file, offset, u64::from(len)).ok_or(DiskError::Io)
                }
                _ => Ok(apply(&mut copy.disk, flight)),
            },
        }
    }

    /// A flush fails and takes data with it: this copy is as after a loss of power.
    fn lose_unflushed(&mut self, node: usize, mark: u64) {
        self.spare_dirty(node);
        let now = self.now();
        let n = &mut self.nodes[node];
        let lost = n.copy.as_mut().map_or(0, |c| c.disk.flush_failed(mark, &mut self.rng));
        n.lost_power = Some(now);
        let name = n.name.clone();
        self.say(|| format!("{name}: a flush fails, {lost} pages are gone"));
    }

    /// A write that its disk says it has done: one of its blocks is not where it should be.
    fn go_astray(&mut self, node: usize, fault: Fault, flight: Flight) {
        let DiskOpKind::Write { offset, ref data, .. } = flight.kind else { return };
        let (first, count) = (offset / BLOCK as u64, data.len() / BLOCK);
        let block = first + self.rng.below(count as u64);
        let Some(copy) = self.nodes[node].copy.as_mut() else { return };
        let before = copy.disk.read(File::Data, block * BLOCK as u64, BLOCK as u64);
        apply(&mut copy.disk, flight);
        let wanted = copy.disk.read(File::Data, block * BLOCK as u64, BLOCK as u64);
        if before == wanted || !self.may_harm(node, block) {
            return;
        }
        if fault == Fault::MisdirectedWrite {
            let victim = self.rng.below(self.plan.habits.blocks);
            if victim == block || !self.harm(node, victim, Damage::Shows(wanted)) {
                return;
            }
        }
        if self.harm(node, block, Damage::Shows(before)) {
            self.count(fault);
        }
    }

    /// Something at rest goes bad.
    pub(super) fn go_bad(&mut self, fault: Fault, node: usize) -> bool {
        if fault == Fault::BitRot { self.rot(node) } else { self.spoil(node) }
    }

    /// A bit flips in a block that was written once.
    fn rot(&mut self, node: usize) -> bool {
        let Some(block) = self.some_block(node) else { return false };
        let Some(copy) = self.nodes[node].copy.as_ref() else { return false };
        let mut bytes = copy.disk.read(File::Data, block * BLOCK as u64, BLOCK as u64).to_vec();
        let at = self.rng.index(BLOCK);
        bytes[at] ^= 1 << self.rng.below(8);
        self.harm(node, block, Damage::Shows(Bytes::from(bytes)))
    }

    /// A block, or the tags of two regions, can't be read any more.
    fn spoil(&mut self, node: usize) -> bool {
        let Some(block) = self.some_block(node) else { return false };
        if self.rng.chance(850) {
            return self.harm(node, block, Damage::Fails);
        }
        // The copy will fail over it, and its content count without checksums.
        let page = tag_page(block);
        let Some(copy) = self.nodes[node].copy.as_mut() else { return false };
        if copy.host.is_none() || copy.disk.harmed_blocks().any(|b| tag_page(b) == page) {
            return false;
        }
        copy.harm(File::Tags, page, Damage::Fails);
        true
    }

    fn some_block(&mut self, node: usize) -> Option<u64> {
        let copy = self.nodes[node].copy.as_ref()?;
        let blocks: Vec<u64> = copy.disk.blocks().collect();
        if self.rng.chance(100) {
            return Some(self.rng.below(self.plan.habits.blocks));
        }
        self.rng.pick(&blocks)
    }

    /// Damages a block if that can be recovered.
    fn harm(&mut self, node: usize, block: u64, damage: Damage) -> bool {
        if !self.may_harm(node, block) {
            return false;
        }
        let name = self.nodes[node].name.clone();
        let Some(copy) = self.nodes[node].copy.as_mut() else { return false };
        if let Damage::Shows(bytes) = &damage
            && *bytes == copy.disk.read(File::Data, block * BLOCK as u64, BLOCK as u64)
        {
            return false;
        }
        self.say(|| match damage {
            Damage::Shows(_) => format!("{name}: block {block} goes bad"),
            Damage::Fails => format!("{name}: block {block} can't be read any more"),
        });
        if let Some(copy) = self.nodes[node].copy.as_mut() {
            copy.harm(File::Data, block, damage);
        }
        true
    }

    fn may_harm(&self, node: usize, block: u64) -> bool {
        let record = self.meta.record();
        let Some(copy) = self.nodes[node].copy.as_ref() else { return false };
        let Some(host) = copy.host.as_ref() else { return false };
        let noticed = host.store.is_guarded(block)
            && !copy.disk.is_harmed(File::Data, block)
            && !copy.disk.is_harmed(File::Tags, tag_page(block));
        let serves =
            |c: &Copy| c.host.as_ref().is_some_and(|h| h.replica.status().role == Role::Member);
        let good = |(n, c): &(usize, &Copy)| *n != node && serves(c) && is_as_good(c, copy, block);
        noticed && (!record.is_in_sync(copy.rid) || self.in_sync_now(record).iter().any(good))
    }

    /// The members have changed: of each block that is bad on one of them, another one has what it
    /// should hold.
    pub(super) fn keep_recoverable(&mut self) {
        let record = self.meta.record();
        let members = self.in_sync_now(record);
        let mut beyond = Vec::new();
        for (node, copy) in &members {
            let lost = |block: &u64| {
                !members.iter().any(|(n, c)| n != node && is_as_good(c, copy, *block))
            };
            beyond.extend(copy.disk.harmed_blocks().filter(lost).map(|block| (*node, block)));
        }
        if !beyond.is_empty() {
            self.spared_at = Some(self.now());
        }
        for (node, block) in beyond {
            if let Some(copy) = self.nodes[node].copy.as_mut() {
                copy.disk.heal(File::Data, block);
            }
        }
        self.give_up_if_gap();
    }

    /// A node is about to lose what is not durable: it may be the good copy of what is bad
    /// elsewhere.
    pub(super) fn spare_dirty(&mut self, node: usize) {
        let Some(copy) = self.nodes[node].copy.as_ref() else { return };
        let dirty: Vec<u64> = copy.disk.dirty_blocks().collect();
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let Some(copy) = self.nodes[other].copy.as_mut() else { continue };
            dirty.iter().for_each(|block| copy.disk.heal(File::Data, *block));
        }
    }

    /// A block could not be read anywhere. Damage leaves a good copy, so that is wrong, unless it
    /// is on a disk that is not there, or the good copy has just left: then the damage is gone, but
    /// was seen before.
    pub(super) fn check_readable(&mut self, what: &str) {
        let now = self.now();
        let spared = self.spared_at.is_some_and(|at| at + 1000 * MS >= now);
        if !spared && self.nodes.iter().all(|n| n.gone_until + 1000 * MS < now) {
            self.fail("readable", what.to_owned());
        }
    }

    /// Is no block of a member bad?
    pub(super) fn is_sound(&self) -> bool {
        let record = self.meta.record();
        let blocks = record.blocks;
        let members = self.in_sync_now(record);
        let sound = members.iter().all(|(_, c)| c.disk.harmed_blocks().all(|b| b >= blocks));
        sound && self.is_without_gaps()
    }

    /// The files are not there: they will be looked for again.
    pub(super) fn open_later(&mut self, node: usize, lost_cache: bool) {
        let process = self.nodes[node].process;
        let at = self.nodes[node].gone_until + self.rng.between(100, 2000) * MS;
        self.schedule.at(at, Event::OpenAgain { node, process, lost_cache });
    }

    pub(super) fn open_again(&mut self, node: usize, process: u64, lost_cache: bool) {
        let n = &self.nodes[node];
        let closed = n.copy.as_ref().is_some_and(|c| c.host.is_none());
        if n.up && n.process == process && closed {
            self.open_copy(node, lost_cache);
            self.reset_acceptors(node);
        }
    }
}

/// Has `good` of the block what `bad` should hold?
fn is_as_good(good: &Copy, bad: &Copy, block: u64) -> bool {
    let same = good.disk.visible(block) == bad.disk.visible(block);
    same && !good.disk.is_harmed(File::Data, block) && good.disk.visible(block) != Value::GAP
}

const _: () = assert!(BLOCKS_PER_REGION as u64 * 8 == TABLE_BYTES as u64);
