//! For how long nodes have not answered.

use crate::daemon::Answers;
use crate::kubernetes::nodes::Words;
use lockstep_core::cluster::failover::{Witness, Word};
use lockstep_core::id::NodeId;
use std::collections::BTreeMap;
use tokio::time::Instant;

/// What looks have shown so far.
#[derive(Debug, Default)]
pub(super) struct Silence {
    nodes: BTreeMap<NodeId, Node>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// When the first look began in which it did not answer, if it did not since.
    since: Option<Instant>,
    /// How many looks that were. One that got lost tells nothing.
    looks: u32,
    refused: bool,
}

/// Looks in which a node must be silent before it counts.
const LOOKS: u32 = 2;

impl Silence {
    /// A look that began then.
    pub(super) fn note(&mut self, answers: &Answers, begun: Instant) {
        self.nodes.retain(|node, _| answers.contains_key(node));
        for (name, answer) in answers {
            let node = self.nodes.entry(name.clone()).or_default();
            if answer.live {
                if node.since.is_some_and(|_| node.looks >= LOOKS) {
                    tracing::info!(node = %name, "answers again");
                }
                *node = Node::default();
                continue;
            }
            node.since.get_or_insert(begun);
            node.looks = node.looks.saturating_add(1);
            node.refused = answer.refused;
            if node.looks == LOOKS {
                tracing::info!(node = %name, refused = node.refused, "does not answer");
            }
        }
    }

    /// What is known of each node now. Kubernetes' words are missing before it was heard; of nodes
    /// that nobody could be asked for, they are all there is.
    pub(super) fn witnesses(
        &self,
        words: Option<Words>,
        now: Instant,
    ) -> BTreeMap<NodeId, Witness> {
        let word = |name: &NodeId| match &words {
            Some(words) => words.get(name).copied().unwrap_or(Word::Deleted),
            None => Word::Well,
        };
        let silent = |node: &Node| {
            let since = node.since.filter(|_| node.looks >= LOOKS)?;
            u64::try_from(now.saturating_duration_since(since).as_millis()).ok()
        };
        let witness = |(name, node): (&NodeId, &Node)| {
            let (silent_ms, refused) = (silent(node), node.refused);
            (name.clone(), Witness { silent_ms, refused, word: word(name), unasked: false })
        };
        let unasked = words.iter().flatten().filter(|(_, word)| **word != Word::Well);
        let unasked = unasked.map(|(name, word)| {
            (name.clone(), Witness { word: *word, unasked: true, ..Witness::default() })
        });
        // What daemons tell of a node comes last, and counts.
        unasked.chain(self.nodes.iter().map(witness)).collect()
    }
}
