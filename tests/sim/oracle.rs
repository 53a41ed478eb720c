//! What each block may hold: the reference against which reads, openings and disks are judged.
//!
//! Per block the oracle keeps the writes that may still be its content. A write **precedes**
//! another if it was acknowledged before the other was submitted; writes that overlap in time are
//! not ordered. While a volume is attached, whatever precedes an acknowledged write is gone (G1).
//! At an opening, whatever precedes a write that must have survived is gone: a durable one always
//! (G2), any acknowledged one unless power was lost (G3).

use lockstep_core::id::{Epoch, InstanceId, RequestId};
use lockstep_core::range::BlockRange;
use std::collections::BTreeMap;

use crate::content::Value;

/// One write to one block.
#[derive(Clone, Copy, Debug)]
struct Write {
    value: Value,
    submitted: u64,
    acked: Option<u64>,
    /// In microseconds, to be compared with power losses.
    submitted_at: u64,
    /// Covered by an acknowledged flush, or written with FUA.
    durable: bool,
    /// When it was first seen by a read that is done.
    seen: Option<u64>,
    /// When it was submitted, or the last of the reads that saw it.
    asked: u64,
    /// Preceded by an acknowledged write, or by one that was read.
    overwritten: bool,
}

impl Write {
    /// By when it had certainly taken effect, if it is known to.
    fn took_effect_by(&self) -> Option<u64> {
        self.acked.into_iter().chain(self.seen).min()
    }

    fn precedes(&self, other: &Self) -> bool {
        self.took_effect_by().is_some_and(|at| at < other.submitted)
    }
}

/// The writes that a block may show.
#[derive(Clone, Debug)]
struct Block {
    writes: Vec<Write>,
}

impl Block {
    fn opened_with(value: Value) -> Self {
        let write = Write {
            value,
            submitted: 0,
            acked: Some(0),
            submitted_at: 0,
            durable: true,
            seen: None,
            asked: 0,
            overwritten: false,
        };
        Self { writes: vec![write] }
    }

    /// Two writes, each with the reads that saw it, of which each has to come before the other:
    /// something of it was done before something of the other was asked.
    fn contradicts(&self, value: Value) -> Option<Value> {
        let seen = self.writes.iter().find(|w| w.value == value && w.seen.is_some())?;
        let before = |a: &Write, b: &Write| a.took_effect_by().is_some_and(|at| at < b.asked);
        let others = self.writes.iter().filter(|w| w.value != value);
        others.filter(|w| before(w, seen) && before(seen, w)).map(|w| w.value).next()
    }

    fn readable(&self) -> impl Iterator<Item = Value> + '_ {
        self.writes.iter().filter(|w| !w.overwritten).map(|w| w.value)
    }

    /// Does content `value` show that `write` is missing?
    fn lacks(&self, value: Value, write: &Write) -> bool {
        self.writes.iter().filter(|w| w.value == value).all(|w| w.precedes(write))
    }

    fn acked(&mut self, submitted: u64, now: u64, fua: bool) {
        let Some(index) = self.writes.iter().position(|w| w.submitted == submitted) else {
            return;
        };
        let write = &mut self.writes[index];
        (write.acked, write.durable) = (Some(now), fua);
        let write = *write;
        for other in &mut self.writes {
            other.overwritten |= other.precedes(&write);
        }
        if fua {
            self.forget_before(&write);
        }
    }

    fn forget_before(&mut self, durable: &Write) {
        self.writes.retain(|w| !w.precedes(durable));
    }

    /// What may be found at an opening, if writes submitted at or before `lost_until` may be lost
    /// unless durable.
    fn legal(&self, lost_until: Option<u64>) -> Vec<Value> {
        let survives = |w: &&Write| {
            w.durable || w.acked.is_some() && lost_until.is_none_or(|lost| w.submitted_at > lost)
        };
        let surviving: Vec<&Write> = self.writes.iter().filter(survives).collect();
        let possible = |w: &&Write| {
            let gone = surviving.iter().any(|s| w.precedes(s));
            !(gone || lost_until.is_none() && w.overwritten)
        };
        self.writes.iter().filter(possible).map(|w| w.value).collect()
    }

    /// A block may be found torn if nobody kept its power who could be reached, and something was
    /// written to it that was not durable then.
    fn may_be_torn(&self, lost_until: Option<u64>) -> bool {
        let doubtful = |lost: u64| self.writes.iter().any(|w| !w.durable && w.submitted_at <= lost);
        lost_until.is_some_and(doubtful)
    }
}

/// A request without its answer.
#[derive(Clone, Debug)]
enum Pending {
    Read { range: BlockRange, submitted: u64, readable: Vec<Vec<Value>> },
    Write { range: BlockRange, submitted: u64, fua: bool },
    Flush { submitted: u64 },
}

/// What was opened and has been written since.
#[derive(Clone, Debug)]
struct Attachment {
    epoch: Epoch,
    opened_at: u64,
    blocks: BTreeMap<u64, Block>,
    pending: BTreeMap<RequestId, Pending>,
    /// What the next attachment opened with, and whether power was lost before.
    successor: Option<(BTreeMap<u64, Value>, bool)>,
}

impl Attachment {
    /// May `epoch` open with `contents`?
    fn check_opening(
        &self,
        epoch: Epoch,
        contents: &BTreeMap<u64, Value>,
        lost_until: Option<u64>,
    ) -> Result<(), String> {
        if self.epoch >= epoch {
            return Err(format!("epoch {epoch} opens after epoch {}", self.epoch));
        }
        for (block, known) in &self.blocks {
            let found = contents.get(block).copied().unwrap_or(Value::ZERO);
            let legal = known.legal(lost_until);
            let torn = found.is_torn() && known.may_be_torn(lost_until);
            if !torn && !legal.contains(&found) {
                return Err(format!(
                    "epoch {epoch} opens with {found:?} in block {block}; legal are {legal:?}"
                ));
            }
        }
        Ok(())
    }

    fn block(&mut self, block: u64) -> &mut Block {
        self.blocks.entry(block).or_insert_with(|| Block::opened_with(Value::ZERO))
    }
}

/// An acknowledgement to be checked against the disks.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// Blocks that were written, with the number of the write.
    pub applied: Vec<(u64, u64)>,
    /// Blocks whose content was declared durable.
    pub durable: Vec<u64>,
}

/// The reference.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    clock: u64,
    attachments: BTreeMap<InstanceId, Attachment>,
    current: Option<InstanceId>,
    /// Clocks may have jumped: a deposed primary may believe in its lease.
    leases_may_lie: bool,
    /// What the copy held from which somebody goes on by force; the next opening begins with that.
    forced: Option<BTreeMap<u64, Value>>,
}

impl Oracle {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Clocks jump: no lease means anything from now on.
    pub fn distrust_leases(&mut self) {
        self.leases_may_lie = true;
    }

    /// Somebody goes on from a copy with these contents: acknowledged writes may be lost, and
    /// nothing else may take their place.
    pub fn force(&mut self, contents: BTreeMap<u64, Value>) {
        self.forced = Some(contents);
    }

    /// Does somebody go on from a copy with this content of a block?
    #[must_use]
    pub fn is_kept(&self, block: u64, value: Value) -> bool {
        self.forced.as_ref().is_some_and(|kept| kept.get(&block) == Some(&value))
    }

    /// After a forced recovery each block is as the chosen copy had it then.
    fn check_forced(
        last: &Attachment,
        kept: &BTreeMap<u64, Value>,
        contents: &BTreeMap<u64, Value>,
    ) -> Result<(), String> {
        for block in kept.keys().chain(contents.keys()).chain(last.blocks.keys()) {
            let found = contents.get(block).copied().unwrap_or(Value::ZERO);
            let held = kept.get(block).copied().unwrap_or(Value::ZERO);
            if found != held {
                return Err(format!(
                    "block {block} is {found:?}, but the copy that was gone on from had {held:?}"
                ));
            }
        }
        Ok(())
    }

    /// The attachment that opened last.
    #[must_use]
    pub fn current(&self) -> Option<InstanceId> {
        self.current
    }

    /// Has it opened?
    #[must_use]
    pub fn has_opened(&self, instance: InstanceId) -> bool {
        self.attachments.contains_key(&instance)
    }

    /// When the attachment that opened last did so; 0 if none has.
    #[must_use]
    pub fn opened_at(&self) -> u64 {
        self.current.and_then(|c| self.attachments.get(&c)).map_or(0, |a| a.opened_at)
    }

    /// `instance` opens with the given contents. Un-flushed writes submitted up to
    /// `lost_until` may be lost.
    ///
    /// # Errors
    /// Tells the block whose content is not legal.
    pub fn open(
        &mut self,
        instance: InstanceId,
        epoch: Epoch,
        now: u64,
        contents: &BTreeMap<u64, Value>,
        lost_until: Option<u64>,
    ) -> Result<(), String> {
        if self.current == Some(instance) {
            return self.reopen(instance, epoch, contents);
        }
        let forced = self.forced.take();
        let last = self.current.and_then(|c| self.attachments.get_mut(&c));
        if let (Some(last), Some(kept)) = (last, forced) {
            Self::check_forced(last, &kept, contents)?;
            last.successor = Some((contents.clone(), true));
        } else if let Some(last) = self.current.and_then(|c| self.attachments.get_mut(&c)) {
            last.check_opening(epoch, contents, lost_until)?;
            last.successor = Some((contents.clone(), lost_until.is_some()));
        } else if let Some((block, value)) = contents.iter().find(|(_, v)| **v != Value::ZERO) {
            return Err(format!("the first opening finds {value:?} in block {block}"));
        }
        let blocks = contents.iter().map(|(b, v)| (*b, Block::opened_with(*v))).collect();
        let attachment =
            Attachment { epoch, opened_at: now, blocks, pending: BTreeMap::new(), successor: None };
        self.attachments.insert(instance, attachment);
        self.current = Some(instance);
        Ok(())
    }

    /// Where an open read of a guest is.
    #[must_use]
    pub fn range_of(&self, instance: InstanceId, request: RequestId) -> Option<BlockRange> {
        match self.attachments.get(&instance)?.pending.get(&request)? {
            Pending::Read { range, .. } | Pending::Write { range, .. } => Some(*range),
            Pending::Flush { .. } => None,
        }
    }

    /// The same primary opens again for the same device: nothing acknowledged may be missing
    /// (G4), and what is under way will be done again.
    fn reopen(
        &mut self,
        instance: InstanceId,
        epoch: Epoch,
        contents: &BTreeMap<u64, Value>,
    ) -> Result<(), String> {
        let Some(a) = self.attachments.get_mut(&instance) else { return Ok(()) };
        a.check_opening(epoch, contents, None)?;
        a.epoch = epoch;
        for (block, known) in &mut a.blocks {
            let found = contents.get(block).copied().unwrap_or(Value::ZERO);
            for write in known.writes.iter_mut().filter(|w| w.value != found) {
                write.overwritten |= write.acked.is_some();
            }
        }
        Ok(())
    }

    /// A guest asks to read.
    pub fn read(&mut self, instance: InstanceId, request: RequestId, range: BlockRange) {
        let submitted = self.tick();
        // Whoever reads from a deposed primary may still see only what is current (G1).
        let deposed = self.attachments.get(&instance).is_some_and(|a| a.successor.is_some());
        let deposed = deposed && !self.leases_may_lie;
        let source = if deposed { self.current } else { Some(instance) };
        let Some(a) = source.and_then(|s| self.attachments.get_mut(&s)) else { return };
        let readable = range.blocks().map(|b| a.block(b).readable().collect()).collect();
        let Some(a) = self.attachments.get_mut(&instance) else { return };
        a.pending.insert(request, Pending::Read { range, submitted, readable });
    }

    /// A guest asks to write (zeroes are a write of [`Value::ZERO`]), at this time in
    /// microseconds.
    pub fn write(
        &mut self,
        instance: InstanceId,
        request: RequestId,
        range: BlockRange,
        value: Value,
        fua: bool,
        at: u64,
    ) {
        let submitted = self.tick();
        let Some(a) = self.attachments.get_mut(&instance) else { return };
        for block in range.blocks() {
            let write = Write {
                value,
                submitted,
                acked: None,
                submitted_at: at,
                durable: false,
                seen: None,
                asked: submitted,
                overwritten: false,
            };
            a.block(block).writes.push(write);
            for pending in a.pending.values_mut() {
                if let Pending::Read { range, readable, .. } = pending
                    && range.blocks().contains(&block)
                {
                    let index = usize::try_from(block - range.start).unwrap_or(0);
                    readable[index].push(value);
                }
            }
        }
        a.pending.insert(request, Pending::Write { range, submitted, fua });
    }

    /// A guest asks for a flush.
    pub fn flush(&mut self, instance: InstanceId, request: RequestId) {
        let submitted = self.tick();
        let Some(a) = self.attachments.get_mut(&instance) else { return };
        a.pending.insert(request, Pending::Flush { submitted });
    }

    /// A read was answered with these contents.
    ///
    /// # Errors
    /// Tells the block that is not what it must be.
    pub fn was_read(
        &mut self,
        instance: InstanceId,
        request: RequestId,
        found: &[Value],
    ) -> Result<(), String> {
        let Some(a) = self.attachments.get_mut(&instance) else { return Ok(()) };
        let Some(Pending::Read { range, submitted, readable }) = a.pending.remove(&request) else {
            return Err(format!("request {request} is answered with data but is no read"));
        };
        if found.len() != range.count as usize {
            return Err(format!("a read of {range:?} is answered with {} blocks", found.len()));
        }
        self.clock += 1;
        let now = self.clock;
        for ((block, value), legal) in range.blocks().zip(found).zip(readable) {
            if !legal.contains(value) {
                return Err(format!(
                    "epoch {} reads {value:?} from block {block}; legal are {legal:?}",
                    a.epoch
                ));
            }
            let done = |w: &Write| w.took_effect_by().is_some_and(|at| at < submitted);
            let known = a.block(block);
            // If two writes wrote the same, nobody knows which one was seen.
            let once = known.writes.iter().filter(|w| w.value == *value).count() == 1;
            for write in &mut known.writes {
                write.overwritten |= write.value != *value && done(write);
                if once && write.value == *value {
                    write.seen = write.seen.or(Some(now));
                    write.asked = write.asked.max(submitted);
                }
            }
            if let Some(other) = known.contradicts(*value) {
                return Err(format!(
                    "epoch {} reads {value:?} from block {block}, which has to be older than \
                     {other:?} and newer",
                    a.epoch
                ));
            }
        }
        Ok(())
    }

    /// A write or a flush was acknowledged.
    ///
    /// # Errors
    /// If a deposed primary acknowledges what its successor did not open with (G5).
    pub fn acked(&mut self, instance: InstanceId, request: RequestId) -> Result<Claimed, String> {
        let now = self.tick();
        let Some(a) = self.attachments.get_mut(&instance) else { return Ok(Claimed::default()) };
        let claimed = match a.pending.remove(&request) {
            Some(Pending::Write { range, submitted, fua }) => {
                late_ack(a, range, submitted)?;
                let blocks: Vec<u64> = range.blocks().collect();
                blocks.iter().for_each(|b| a.block(*b).acked(submitted, now, fua));
                let applied = blocks.iter().map(|b| (*b, submitted)).collect();
                Claimed { applied, durable: if fua { blocks } else { Vec::new() } }
            }
            Some(Pending::Flush { submitted }) => {
                let durable = flushed(a, submitted)?;
                Claimed { applied: Vec::new(), durable }
            }
            Some(Pending::Read { .. }) => return Err(format!("read {request} has no data")),
            None => return Err(format!("request {request} is answered twice or was never asked")),
        };
        let deposed = a.successor.is_some();
        Ok(if deposed { Claimed::default() } else { claimed })
    }

    /// A request failed; a write may or may not have happened.
    ///
    /// # Errors
    /// If it was answered before.
    pub fn failed(&mut self, instance: InstanceId, request: RequestId) -> Result<(), String> {
        let Some(a) = self.attachments.get_mut(&instance) else { return Ok(()) };
        let known = a.pending.remove(&request);
        known.map(|_| ()).ok_or_else(|| format!("request {request} fails but was not asked"))
    }

    /// Does content `value` of `block` show that write number `write` is missing?
    #[must_use]
    pub fn lacks(&self, block: u64, value: Value, write: u64) -> bool {
        let Some(known) = self.known(block) else { return false };
        let found = known.writes.iter().find(|w| w.submitted == write);
        found.is_some_and(|w| known.lacks(value, w))
    }

    /// Does content `value` of `block` show that a durable write is missing?
    #[must_use]
    pub fn lacks_durable(&self, block: u64, value: Value) -> bool {
        let Some(known) = self.known(block) else { return value != Value::ZERO };
        known.writes.iter().any(|w| w.durable && known.lacks(value, w))
    }

    /// What a block may hold, as far as is known.
    pub fn known_values(&self, block: u64) -> impl Iterator<Item = Value> + '_ {
        self.known(block).into_iter().flat_map(|known| known.writes.iter().map(|w| w.value))
    }

    /// May a member show `value` in `block` now?
    #[must_use]
    pub fn is_readable(&self, block: u64, value: Value) -> bool {
        self.known(block).map_or(value == Value::ZERO, |k| k.readable().any(|v| v == value))
    }

    /// What may be the content of each block that was written, for whoever reads in this
    /// attachment now, be it the last one or not.
    #[must_use]
    pub fn readable_in(&self, instance: InstanceId) -> Option<BTreeMap<u64, Vec<Value>>> {
        let blocks = &self.attachments.get(&instance)?.blocks;
        Some(blocks.iter().map(|(block, known)| (*block, known.readable().collect())).collect())
    }

    /// Blocks that were written, in any attachment.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.current
            .and_then(|c| self.attachments.get(&c))
            .into_iter()
            .flat_map(|a| a.blocks.keys().copied())
    }

    fn known(&self, block: u64) -> Option<&Block> {
        self.attachments.get(&self.current?)?.blocks.get(&block)
    }
}

/// G5: a primary whose successor has opened acknowledges only what that one opened with.
fn late_ack(a: &mut Attachment, range: BlockRange, submitted: u64) -> Result<(), String> {
    let Some((opened, power_lost)) = a.successor.take() else { return Ok(()) };
    let mut result = Ok(());
    for block in range.blocks() {
        let found = opened.get(&block).copied().unwrap_or(Value::ZERO);
        let known = a.block(block);
        let acked = known.writes.iter().find(|w| w.submitted == submitted).copied();
        if let Some(w) = acked.filter(|w| !power_lost && known.lacks(found, w)) {
            result = Err(format!(
                "deposed epoch {} acknowledges {:?} in block {block}, \
                 but its successor opened with {found:?}",
                a.epoch, w.value
            ));
        }
    }
    a.successor = Some((opened, power_lost));
    result
}

fn flushed(a: &mut Attachment, submitted: u64) -> Result<Vec<u64>, String> {
    let mut durable = Vec::new();
    for (block, known) in &mut a.blocks {
        let done = |w: &Write| !w.durable && w.acked.is_some_and(|acked| acked < submitted);
        let covered: Vec<Write> = known.writes.iter().filter(|w| done(w)).copied().collect();
        if covered.is_empty() {
            continue;
        }
        if let Some((opened, false)) = &a.successor {
            let found = opened.get(block).copied().unwrap_or(Value::ZERO);
            if let Some(w) = covered.iter().find(|w| known.lacks(found, w)) {
                return Err(format!(
                    "deposed epoch {} acknowledges a flush of {:?} in block {block}, \
                     but its successor opened with {found:?}",
                    a.epoch, w.value
                ));
            }
        }
        for write in known.writes.iter_mut().filter(|w| done(w)) {
            write.durable = true;
        }
        for write in &covered {
            known.forget_before(write);
        }
        durable.push(*block);
    }
    Ok(durable)
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
