//! Blocks that a power cut has torn: where they may be found, and where they must not.

use lockstep_core::block::is_zero;
use lockstep_core::message::Payload;
use lockstep_core::range::{BLOCKS_PER_REGION, BlockRange, region_of};
use lockstep_core::record::Record;
use lockstep_core::store::Recovered;
use lockstep_core::wire::MAX_VERSION;
use lockstep_store::layout::{File, TABLE_BYTES};
use std::collections::{BTreeMap, BTreeSet};

use super::World;
use crate::content::{BLOCK, Value};
use crate::node::Copy;

/// Blocks of a lossy copy that are in regions found active, and match their tags on disk.
pub(super) fn whole_blocks(copy: &Copy, recovered: &Recovered) -> BTreeSet<u64> {
    let mut whole = BTreeSet::new();
    for region in recovered.unresolved.iter().filter(|_| recovered.lossy) {
        let table = u64::from(TABLE_BYTES);
        let tags = copy.disk.given(File::Tags, u64::from(region.0) * table, table);
        let Some(range) = BlockRange::of_region(*region, recovered.blocks) else { continue };
        for block in range.blocks() {
            let at = usize::try_from(block % u64::from(BLOCKS_PER_REGION)).unwrap_or(0) * 8;
            let tag = tags.as_ref().and_then(|tags| tags.get(at..at + 8));
            // What is only shown may be taken back.
            let content = Some(copy.disk.read(File::Data, block * BLOCK as u64, BLOCK as u64));
            let content = content.filter(|_| !copy.disk.is_harmed(File::Data, block));
            let (Some(tag), Some(content)) = (tag, content) else { continue };
            let never = tag.iter().all(|byte| *byte == 0) && is_zero(&content);
            let crc = Payload::checksummed(content).crcs.first().map(|crc| crc.to_le_bytes());
            if never || crc.is_some_and(|crc| crc == tag[..4]) {
                whole.insert(block);
            }
        }
    }
    whole
}

impl World {
    /// What a copy has of a block at least after a power cut. Content that is torn counts as the
    /// older of the writes it is made of, until the volume was opened with it.
    pub(super) fn durable(&self, copy: &Copy, block: u64) -> Value {
        let durable = copy.disk.durable(block);
        let known = || self.oracle.known_values(block).any(|known| known == durable);
        if durable.is_torn() && !known() { copy.disk.durable_at_least(block) } else { durable }
    }

    /// An opening finds a block torn only if no member that joined in it could prove that it has
    /// the block whole.
    pub(super) fn check_torn(
        &mut self,
        old: &Record,
        new: &Record,
        contents: &BTreeMap<u64, Value>,
    ) -> Result<(), String> {
        // A primary that speaks an older version is not told.
        let told = self.nodes.iter().all(|n| n.speaks == MAX_VERSION);
        // A copy that somebody goes on from may hold what an opening had to take as it was, and
        // what has its checksum since.
        let fresh = |(block, value): &(&u64, &Value)| {
            let known = self.oracle.known_values(**block).any(|known| known == **value);
            value.is_torn() && !known && !self.oracle.is_kept(**block, **value)
        };
        let torn: Vec<u64> = contents.iter().filter(fresh).map(|(block, _)| *block).collect();
        let mut found = Ok(());
        for block in torn {
            self.outcome.coverage.torn += 1;
            let members = self.in_sync(new).into_iter().filter(|(_, c)| old.is_in_sync(c.rid));
            let whole = members.filter(|(_, c)| c.whole.contains(&block)).map(|(n, _)| n).next();
            if let Some(node) = whole.filter(|_| told) {
                let name = &self.nodes[node].name;
                let region = region_of(block);
                found = Err(format!(
                    "opens with block {block} torn, although {name} had it whole (region {region})"
                ));
            }
        }
        for node in &mut self.nodes {
            node.copy.iter_mut().for_each(|copy| copy.whole.clear());
        }
        found
    }
}
