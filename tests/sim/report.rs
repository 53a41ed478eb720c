//! What came of a seed.

use serde::Serialize;
use std::collections::BTreeMap;

/// How often each protocol path was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Claims (T3).
    pub claims: u64,
    /// Openings (T4).
    pub promotions: u64,
    /// Promotions in place, for a device in use.
    pub in_place: u64,
    /// Openings for which content had to be copied (P5).
    pub repairs: u64,
    /// Resyncs and rebuilds finished.
    pub resyncs: u64,
    /// Blocks that a resync's target fetched from another copy by itself (S8).
    pub pulled_blocks: u64,
    /// Windows of a resync whose content could not be fetched so.
    pub pulls_failed: u64,
    /// Resyncs put off since the target's node had enough of them.
    pub resyncs_refused: u64,
    /// Members removed (T5).
    pub removals: u64,
    /// Healthy members that left.
    pub releases: u64,
    /// Members added (T6).
    pub additions: u64,
    /// Members swapped (T7).
    pub swaps: u64,
    /// Orderly ends (T8).
    pub closes: u64,
    /// Times a primary suspended writes.
    pub suspensions: u64,
    /// Primaries that were fenced.
    pub fenced: u64,
    /// Replicas opened unclean.
    pub unclean_opens: u64,
    /// Replicas opened after un-flushed writes may have been lost.
    pub lossy_opens: u64,
    /// Replicas that faulted.
    pub faulted: u64,
    /// Guest reads answered with data.
    pub reads: u64,
    /// Guest writes, zeroes and flushes acknowledged.
    pub acks: u64,
    /// Acknowledgements given after a successor had opened.
    pub late_acks: u64,
    /// Garbled frames that were noticed.
    pub garbled_frames_noticed: u64,
    /// Worlds that ended since the last member lost its files.
    pub beyond_repair: u64,
    /// Pages that a power loss took back.
    pub pages_lost: u64,
    /// Bad blocks that were rewritten with what another member held.
    pub mended: u64,
    /// Blocks that nobody could give, noted as lost on a copy that was made.
    pub gaps: u64,
    /// Blocks found torn at an opening since no member had them whole, as far as one can know.
    pub torn: u64,
    /// Blocks that might have been torn, taken from a member that had them whole.
    pub untorn: u64,
    /// Copies that controllers made.
    pub copies_made: u64,
    /// Copies that controllers forgot.
    pub copies_forgotten: u64,
    /// Members removed since they were much slower than the others.
    pub slow_removals: u64,
    /// Members removed since they had ever more bad blocks.
    pub rot_removals: u64,
    /// Copies that their node had lost.
    pub copies_vanished: u64,
    /// Healthy members that controllers had leave.
    pub copies_spared: u64,
    /// Times that it was noticed that the record store was put back.
    pub put_back_noticed: u64,
    /// Volumes recovered by force (T11).
    pub forced: u64,
    /// Times that a volume became larger (T10).
    pub expansions: u64,
    /// Snapshots taken (D1).
    pub snapshots: u64,
    /// Tasks that were not done.
    pub tasks_failed: u64,
}

impl Coverage {
    /// Adds another seed's.
    pub fn add(&mut self, other: &Self) {
        /// Without `..`, so that a new field is not forgotten here.
        macro_rules! add {
            ($($field:ident),*) => {
                let Self { $($field),* } = other;
                $(self.$field += $field;)*
            };
        }
        add!(
            claims,
            promotions,
            in_place,
            repairs,
            resyncs,
            pulled_blocks,
            pulls_failed,
            resyncs_refused,
            removals,
            releases,
            additions,
            swaps,
            closes,
            suspensions,
            fenced,
            unclean_opens,
            lossy_opens,
            faulted,
            reads,
            acks,
            late_acks,
            garbled_frames_noticed,
            beyond_repair,
            pages_lost,
            mended,
            gaps,
            torn,
            untorn,
            copies_made,
            copies_forgotten,
            slow_removals,
            rot_removals,
            copies_vanished,
            copies_spared,
            put_back_noticed,
            forced,
            expansions,
            snapshots,
            tasks_failed
        );
    }
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Virtual time, microseconds.
    pub at_us: u64,
    /// Which checker found it.
    pub checker: &'static str,
    /// What is wrong.
    pub what: String,
}

/// What came of a seed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The first broken invariant, if any.
    pub violation: Option<Violation>,
    /// Events handled.
    pub steps: u64,
    /// Virtual time, microseconds.
    pub virtual_us: u64,
    /// Faults that happened, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Protocol paths taken.
    pub coverage: Coverage,
    /// How often a primary was seen in each phase, with how many members.
    pub states: BTreeMap<String, u64>,
}
