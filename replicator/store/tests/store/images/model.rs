//! What an image of a crashed replica must hold, by what the store had answered.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::id::{Epoch, Gen, RegionIndex};
use lockstep_core::range::{BlockSet, region_of};
use lockstep_core::store::Recovered;
use lockstep_store::File;

use super::medium::Image;
use crate::twin::{Value, content, value_of};

/// One block, as the store's answers have it.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The content of the last answered flush, then what was answered later, oldest first.
    values: Vec<Value>,
    flying: Option<(Value, Gen)>,
    stamp: Gen,
}

impl Default for Block {
    fn default() -> Self {
        Self { values: vec![0], flying: None, stamp: Gen(0) }
    }
}

/// What the store has answered, and what it was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    blocks: BTreeMap<u64, Block>,
    /// Answered mutations that are not released.
    pinned: Vec<BlockSet>,
    /// Epochs answered and asked.
    promised: (Epoch, Epoch),
    written: bool,
}

impl Model {
    pub(crate) fn begin(&mut self, block: u64, value: Option<Value>, stamp: Gen) {
        let entry = self.blocks.entry(block).or_default();
        let value = value.unwrap_or_else(|| *entry.values.last().expect("never empty"));
        entry.flying = Some((value, stamp));
        self.written = true;
    }

    pub(crate) fn end(&mut self, block: u64, durable: bool) {
        let entry = self.blocks.entry(block).or_default();
        let Some((value, stamp)) = entry.flying.take() else { return };
        entry.values.push(value);
        entry.stamp = stamp;
        if durable {
            entry.values.drain(..entry.values.len() - 1);
        }
    }

    pub(crate) fn pin(&mut self, blocks: BlockSet) {
        self.pinned.push(blocks);
    }

    pub(crate) fn pins(&self) -> Vec<BlockSet> {
        self.pinned.clone()
    }

    pub(crate) fn release_all(&mut self) {
        self.pinned.clear();
    }

    /// How many answered contents each block has now; for [`Self::flushed`].
    pub(crate) fn answered(&self) -> BTreeMap<u64, Value> {
        let last = |block: &Block| *block.values.last().expect("never empty");
        self.blocks.iter().map(|(number, block)| (*number, last(block))).collect()
    }

    /// A flush that was asked for when this had been answered is done.
    pub(crate) fn flushed(&mut self, answered: &BTreeMap<u64, Value>) {
        for (number, value) in answered {
            let values = &mut self.blocks.entry(*number).or_default().values;
            if let Some(at) = values.iter().rposition(|v| v == value) {
                values.drain(..at);
            }
        }
    }

    pub(crate) fn ask_promise(&mut self) -> Epoch {
        self.promised.1 = self.promised.1.next();
        self.promised.1
    }

    pub(crate) fn promise_done(&mut self) {
        self.promised.0 = self.promised.1;
    }

    /// Is this what may be found?
    pub(crate) fn check(
        &self,
        image: &Image,
        found: &Recovered,
        power_cut: bool,
    ) -> Result<(), String> {
        let (answered, asked) = self.promised;
        if found.promised < answered || found.promised > asked {
            return Err(format!("promised {answered}, asked {asked}, found {}", found.promised));
        }
        let unresolved: BTreeSet<RegionIndex> = found.unresolved.iter().copied().collect();
        let mut pinned = self.pinned.iter().flat_map(BlockSet::regions);
        if let Some(region) = pinned.find(|region| !unresolved.contains(region)) {
            return Err(format!("pinned region {region} is not in the log (m3)"));
        }
        if found.fresh && self.blocks.values().any(|block| block.values.len() > 1) {
            return Err("called fresh although it was written".to_owned());
        }
        if found.lossy != (power_cut && !unresolved.is_empty()) {
            return Err(format!("lossy is {}", found.lossy));
        }
        for (number, block) in &self.blocks {
            let doubtful = unresolved.contains(&region_of(*number));
            check_block(*number, block, image, doubtful, power_cut)?;
        }
        Ok(())
    }
}

fn check_block(
    number: u64,
    block: &Block,
    image: &Image,
    doubtful: bool,
    power_cut: bool,
) -> Result<(), String> {
    let data = image.read(File::Data, number * 4096, 4096);
    let last = *block.values.last().expect("never empty");
    let Ok(value) = value_of(&data) else {
        // Torn: only what was being written may be, or what is not durable and the power was cut,
        // and only where nobody trusts it.
        let volatile = power_cut && block.values.len() > 1;
        let may = doubtful && (block.flying.is_some() || volatile);
        return if may { Ok(()) } else { Err(format!("block {number} is torn")) };
    };
    let flying = block.flying.map(|(value, _)| value);
    let legal =
        flying == Some(value) || block.values.contains(&value) && power_cut || value == last;
    if !legal {
        return Err(format!("block {number} is {value}, not of {block:?} (G2)"));
    }
    if doubtful {
        return Ok(());
    }
    if value != last {
        return Err(format!("block {number} is {value}, not {last}, outside the log (I4)"));
    }
    let tag = image.read(File::Tags, number * 8, 8);
    let crc = u32::from_le_bytes([tag[0], tag[1], tag[2], tag[3]]);
    let stamp = Gen(u32::from_le_bytes([tag[4], tag[5], tag[6], tag[7]]));
    let never_written = value == 0 && tag == [0; 8];
    if !never_written && crc != crc32c::crc32c(&content(value)) {
        return Err(format!("the tag of block {number} is wrong outside the log (I12)"));
    }
    if stamp < block.stamp {
        return Err(format!("block {number} has stamp {stamp}, not {} (I5)", block.stamp));
    }
    Ok(())
}
