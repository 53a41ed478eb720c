//! When a node counts as lost, so that pods that use volumes there go elsewhere, and which do.
//!
//! Nothing is taken from a node for what is decided here: that takes an in-sync copy elsewhere that
//! promises a newer epoch, which no copy does while it hears its primary. A node that is suspected
//! wrongly costs a question.

mod plan;
#[cfg(test)]
mod tests;

pub use plan::{Leaving, Plan, begins_anew, plan};

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::id::NodeId;

/// What the orchestrator says of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// Nothing that would matter.
    #[default]
    Well,
    /// Its agent is not heard, or says that it cannot work.
    NotReady,
    /// A person has declared that it is shut down.
    OutOfService,
    /// The node was deleted.
    Deleted,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// For how long no other daemon has had an answer from its daemon, in milliseconds.
    pub silent_ms: Option<u64>,
    /// Its machine answers that no daemon listens there.
    pub refused: bool,
    /// What the orchestrator says.
    pub word: Word,
    /// Only the orchestrator knows it: no daemon was asked for it yet.
    pub unasked: bool,
}

/// How long nodes may be silent before they are suspected, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Machines that say nothing.
    pub silent_ms: u64,
    /// Machines whose daemon is being restarted, or replaced by a newer one: pods wait for it,
    /// since their devices do.
    pub restart_ms: u64,
}

/// Why a node is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is silent.
    Silent,
    /// Its daemon does not come back.
    NoDaemon,
    /// The orchestrator has a word against it.
    Said(Word),
}

/// What to think of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong with it, or it is too early to tell.
    Well,
    /// Too many nodes are silent: the network is more likely to be broken than they are, and to
    /// move everything at once would make it worse. The orchestrator's word would help.
    Braked {
        /// Nodes that do not answer.
        silent: usize,
        /// Nodes in all that are not known to be gone.
        nodes: usize,
    },
    /// It may be lost: its volumes are fenced, if their copies agree.
    Suspect(Reason),
}

/// What to think of each node.
///
/// One node alone that is silent is always suspected: which side of a broken network may go on is
/// not decided here but by the copies, and by who reaches the record store. Nodes that are known to
/// be gone are not counted, so that the next one that is lost is one alone.
#[must_use]
pub fn judge(nodes: &BTreeMap<NodeId, Witness>, patience: Patience) -> BTreeMap<NodeId, Verdict> {
    let is_gone = |witness: &Witness| matches!(witness.word, Word::OutOfService | Word::Deleted);
    let counted = || nodes.values().filter(|witness| !is_gone(witness) && !witness.unasked);
    let mute = |witness: &&Witness| witness.silent_ms.is_some() && !witness.refused;
    let (silent, all) = (counted().filter(mute).count(), counted().count());
    let braked = silent > 1 && silent * 3 > all;
    // Its agent may be late for the same reason. Only who says that it is gone knows better.
    let is_awaited = |witness: &Witness| {
        witness.refused && witness.silent_ms.is_none_or(|ms| ms < patience.restart_ms)
    };
    let verdict = |witness: &Witness| match witness {
        Witness { word: Word::NotReady, .. } if is_awaited(witness) => Verdict::Well,
        Witness { word: Word::NotReady | Word::OutOfService | Word::Deleted, .. } => {
            Verdict::Suspect(Reason::Said(witness.word))
        }
        Witness { silent_ms: Some(ms), refused: true, .. } if *ms >= patience.restart_ms => {
            Verdict::Suspect(Reason::NoDaemon)
        }
        Witness { silent_ms: Some(ms), refused: false, .. } if *ms >= patience.silent_ms => {
            if braked {
                Verdict::Braked { silent, nodes: all }
            } else {
                Verdict::Suspect(Reason::Silent)
            }
        }
        Witness { .. } => Verdict::Well,
    };
    nodes.iter().map(|(node, witness)| (node.clone(), verdict(witness))).collect()
}

/// Who makes a pod again once it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// Nobody: it would be lost.
    Nobody,
    /// The node itself, and only there.
    Node,
    /// A controller, wherever it fits.
    Controller,
}

/// A volume that a pod uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Used {
    /// One of ours, by its name.
    Ours(String),
    /// Somebody else's, that several nodes may use at once.
    Shared(String),
    /// Somebody else's, that the lost node may still be writing to, as people call it.
    Foreign(String),
    /// One that is not known, by its claim.
    Unknown(String),
}

/// A pod on a node that is suspected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its owner wants it left alone.
    pub ignored: bool,
    /// It has ended, or was given up before: it uses nothing any more.
    pub ended: bool,
    /// Who makes it again.
    pub maker: Maker,
    /// What it uses by claims.
    pub volumes: Vec<Used>,
}

/// Why a pod is not moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// Its owner wants it so.
    Ignored,
    /// See [`Maker::Nobody`].
    NoMaker,
    /// See [`Maker::Node`].
    OfNode,
    /// It uses another volume that cannot be fenced, as people call it.
    Foreign(String),
    /// It uses another volume of which nothing is known, by its claim.
    Unknown(String),
    /// It shares a volume with one that stays.
    Beside,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "it does not answer",
            Self::NoDaemon => "its daemon does not come back",
            Self::Said(Word::OutOfService) => "it is said to be out of service",
            Self::Said(Word::Deleted) => "its Node object is gone",
            Self::Said(Word::NotReady | Word::Well) => "it is said to be not ready",
        })
    }
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignored => write!(f, "it is annotated to be left alone"),
            Self::NoMaker => write!(f, "no controller would make it again"),
            Self::OfNode => write!(f, "it belongs to its node"),
            Self::Foreign(volume) => write!(
                f,
                "{volume} is of another storage system, to which the lost node may still be \
                 writing"
            ),
            Self::Unknown(claim) => {
                write!(f, "claim {claim} is not bound to a volume, or cannot be read now")
            }
            Self::Beside => write!(f, "it shares a volume with a pod of its node that stays"),
        }
    }
}
