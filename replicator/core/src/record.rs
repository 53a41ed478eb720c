//! The record: one small object per volume, changed only by compare-and-swap, that says which
//! primary and which replicas are in force. `docs/protocol.md` §Record.

mod force;
mod transition;

pub use force::Chosen;
pub use transition::NewVolume;

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::hash::{Hash, Hasher};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::{Epoch, Gen, InstanceId, Lineage, NodeId, ReplicaId, VolumeId};
use crate::limits;

/// Version of the record's format that this build writes. A higher one is refused.
pub const RECORD_VERSION: u32 = 2;

/// Who may write a volume and who has its data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    /// The volume.
    pub uid: VolumeId,
    /// Its unbroken history.
    pub lineage: Lineage,
    /// Size in 4 KiB blocks.
    pub blocks: u64,
    /// Copies wanted.
    pub repl: u8,
    /// Fewest copies that an acknowledged write may have.
    pub min_in_sync: u8,
    /// Counts claims.
    pub epoch: Epoch,
    /// Counts changes of epoch or in-sync set.
    pub r#gen: Gen,
    /// The last epoch that opened.
    pub open_epoch: Epoch,
    /// Where the volume is meant to be attached.
    pub attach: Option<Attach>,
    /// Who claimed it.
    pub primary: Option<PrimaryRef>,
    /// Closed in good order: all copies are identical and durable.
    pub clean: bool,
    /// The copies.
    pub replicas: Vec<ReplicaEntry>,
    /// The record store was put back to an older state: this epoch was in force, and the record
    /// has not reached it. Nobody may claim the volume before somebody has decided what is true.
    /// 0 if all is well.
    #[serde(default, skip_serializing_if = "is_none")]
    pub put_back: Epoch,
    /// The forced recovery that this history began with, if it did (T11): acknowledged writes may
    /// be missing from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<Box<Forced>>,
    /// Snapshots; none in this version.
    pub snapshots: Vec<String>,
    /// Random per change: makes a change with an unknown outcome decidable.
    pub txn: Uuid,
}

/// `txn` only tells changes apart.
impl Hash for Record {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Without `..`, so that a new field is not forgotten here.
        let Self {
            version,
            uid,
            lineage,
            blocks,
            repl,
            min_in_sync,
            epoch,
            r#gen,
            open_epoch,
            attach,
            primary,
            clean,
            replicas,
            put_back,
            forced,
            snapshots,
            txn: _,
        } = self;
        (version, uid, lineage, blocks, repl, min_in_sync, epoch, r#gen).hash(state);
        (open_epoch, attach, primary, clean, replicas, put_back, forced, snapshots).hash(state);
    }
}

/// A forced recovery (T11): what it went on from, for whoever has to know what may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forced {
    /// The history before it; the chosen copy still belongs to that until it promises.
    pub parent: Lineage,
    /// The copy that was chosen.
    pub replica: ReplicaId,
    /// The first generation of which it lacks writes; 0 if it is not known to lack any.
    pub since: Gen,
    /// The copies that were listed in sync and are dropped, with their nodes.
    pub lost: Vec<(ReplicaId, NodeId)>,
    /// Somebody said that he knows: it is not shown any more.
    pub acknowledged: bool,
}

/// An attachment that was asked for (T2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// On which node.
    pub node: NodeId,
    /// Counts attachments.
    pub seq: u64,
    /// The epoch of the first claim of this node since which no other node has claimed the volume.
    /// 0 if it is not known, as in what an older build wrote.
    #[serde(default)]
    pub since: Epoch,
}

/// `since` decides nothing here: it is for whoever has something that outlives a primary.
impl Hash for Attach {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { node, seq, since: _ } = self;
        (node, seq).hash(state);
    }
}

/// A claim that was in force, as its node notes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// In which history.
    pub lineage: Lineage,
    /// Which one.
    pub epoch: Epoch,
}

/// The claim in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PrimaryRef {
    /// On which node.
    pub node: NodeId,
    /// Which claim.
    pub instance: InstanceId,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplicaEntry {
    /// Its id.
    pub rid: ReplicaId,
    /// Where it is.
    pub node: NodeId,
    /// In which pool there.
    pub pool: String,
    /// What it is good for.
    pub state: ReplicaState,
}

/// What a copy is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplicaState {
    /// Empty, to be filled.
    New,
    /// Holds every acknowledged write.
    InSync,
    /// Missed writes since `since`, the first generation that excluded it.
    Out {
        /// That generation; never raised while the copy stays out (m22).
        since: Gen,
        /// An epoch that it promised while it was in sync: one that promised less was put back to
        /// an older image since (R7). Not known from records of version 1.
        #[serde(default)]
        promised: Epoch,
    },
    /// On its way out of the record.
    Leaving,
}

impl ReplicaState {
    /// The lowest stamp of what the copy may have missed (rule S4); 0 is everything.
    #[must_use]
    pub fn since(self) -> Gen {
        match self {
            Self::Out { since, .. } => since,
            Self::New | Self::InSync | Self::Leaving => Gen(0),
        }
    }
}

/// Why bytes are not a usable record, or a transition may not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The bytes are no record.
    Garbled(String),
    /// Written by a newer version of Lockstep.
    FromTheFuture(u32),
    /// It breaks an invariant of records.
    Invalid(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Garbled(why) => write!(f, "not a volume record: {why}"),
            Self::FromTheFuture(v) => write!(
                f,
                "volume record of version {v}; this build knows {RECORD_VERSION}: upgrade this node"
            ),
            Self::Invalid(why) => write!(f, "invalid volume record: {why}"),
        }
    }
}

impl core::error::Error for RecordError {}

/// Is it no epoch at all? (The form that serde asks for.)
fn is_none(epoch: &Epoch) -> bool {
    *epoch == Epoch(0)
}

impl Record {
    /// Reads a record from its stored form.
    ///
    /// # Errors
    /// If the bytes are no record, come from a newer version, or break an invariant.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let garbled = |e: serde_json::Error| RecordError::Garbled(alloc::format!("{e}"));
        let version = serde_json::from_slice::<Versioned>(bytes).map_err(garbled)?.version;
        if version > RECORD_VERSION {
            return Err(RecordError::FromTheFuture(version));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(garbled)?;
        record.validate()?;
        Ok(record)
    }

    /// The stored form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // Serialising plain structs to memory has no failing path; an empty value would be
        // refused by `from_bytes`.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Checks what every record must satisfy.
    ///
    /// # Errors
    /// Names the invariant that is broken.
    pub fn validate(&self) -> Result<(), RecordError> {
        let rids: BTreeSet<_> = self.replicas.iter().map(|r| r.rid).collect();
        let nodes: BTreeSet<_> = self.replicas.iter().map(|r| &r.node).collect();
        let rules = [
            (self.in_sync().next().is_some(), "no replica is in sync"),
            (
                self.in_sync().count() >= usize::from(self.min_in_sync),
                "fewer replicas are in sync than min_in_sync",
            ),
            (rids.len() == self.replicas.len(), "a replica id occurs twice"),
            (nodes.len() == self.replicas.len(), "a node has two replicas"),
            (self.replicas.len() <= limits::MAX_REPLICA_ENTRIES, "too many replicas"),
            ((1..=limits::MAX_REPL).contains(&self.repl), "repl is out of range"),
            ((1..=self.repl).contains(&self.min_in_sync), "min_in_sync is out of range"),
            ((1..=limits::MAX_VOLUME_BLOCKS).contains(&self.blocks), "size is out of range"),
            (self.r#gen.0 < u32::MAX, "the generation space is used up: a new lineage is needed"),
            (self.epoch.0 <= limits::MAX_CLAIMS, "the epoch is out of range"),
            (
                self.attach.as_ref().is_none_or(|a| a.seq <= limits::MAX_CLAIMS),
                "the attachment number is out of range",
            ),
            (self.open_epoch <= self.epoch, "opened in an epoch that was never claimed"),
            (!(self.clean && self.primary.is_some()), "clean although it has a primary"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(RecordError::Invalid(broken)),
            None => Ok(()),
        }
    }

    /// The copies that hold every acknowledged write.
    pub fn in_sync(&self) -> impl Iterator<Item = &ReplicaEntry> {
        self.replicas.iter().filter(|r| r.state == ReplicaState::InSync)
    }

    /// Is `rid` one of them?
    #[must_use]
    pub fn is_in_sync(&self, rid: ReplicaId) -> bool {
        self.in_sync().any(|r| r.rid == rid)
    }

    /// The claim in force, or the last one.
    #[must_use]
    pub fn claimed(&self) -> Claimed {
        Claimed { lineage: self.lineage, epoch: self.epoch }
    }

    /// Whether nobody but `node` can have written the volume since this claim of it. If it is not
    /// known which claim it was, only the last one counts.
    #[must_use]
    pub fn is_kept_by(&self, node: &NodeId, claimed: Option<Claimed>) -> bool {
        let kept = |attach: &Attach| {
            let since = |c: Claimed| c.lineage == self.lineage && attach.since <= c.epoch;
            attach.node == *node && claimed.is_none_or(since)
        };
        self.attach.as_ref().is_some_and(kept)
    }

    /// An epoch that `rid` must have promised, or a later one (R7).
    #[must_use]
    pub fn promised_by(&self, rid: ReplicaId) -> Epoch {
        match self.replica(rid).map(|r| r.state) {
            Some(ReplicaState::InSync) => self.open_epoch,
            Some(ReplicaState::Out { promised, .. }) => promised,
            Some(ReplicaState::New | ReplicaState::Leaving) | None => Epoch(0),
        }
    }

    /// The entry of `rid`.
    #[must_use]
    pub fn replica(&self, rid: ReplicaId) -> Option<&ReplicaEntry> {
        self.replicas.iter().find(|r| r.rid == rid)
    }
}

#[cfg(test)]
mod tests;
