//! Nodes that Kubernetes has no more.

use super::{Drains, Look, Seen};
use lockstep_core::id::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Pause before what was refused is tried again.
const RARELY: Duration = Duration::from_secs(60);

/// The nodes that have no Node object and do not answer.
#[derive(Debug, Default)]
pub(super) struct Gone(BTreeMap<NodeId, Case>);

#[derive(Debug)]
struct Case {
    since: Instant,
    /// When it was tried to forget it, and why not.
    refused: Option<(Instant, String)>,
}

impl Gone {
    /// Notes which nodes are gone now. Returns those that are for long enough.
    fn note(&mut self, gone: Vec<NodeId>, forget: Duration, now: Instant) -> Vec<NodeId> {
        self.0.retain(|node, _| gone.contains(node));
        let mut due = Vec::new();
        for node in gone {
            let new = Case { since: now, refused: None };
            let case = self.0.entry(node.clone()).or_insert(new);
            let tried = case.refused.as_ref().is_some_and(|(at, _)| now - *at < RARELY);
            if now - case.since >= forget && !tried {
                due.push(node);
            }
        }
        due
    }

    /// Notes that it was refused to forget a node. Returns whether the reason is a new one.
    fn refused(&mut self, node: &NodeId, why: &str, now: Instant) -> bool {
        let Some(case) = self.0.get_mut(node) else { return false };
        let before = case.refused.replace((now, why.to_owned()));
        before.is_none_or(|(_, before)| before != why)
    }
}

impl Drains {
    /// Forgets nodes whose objects were deleted and whose daemons are silent.
    pub(super) async fn forget(&self, seen: &mut Seen, look: &Look) {
        let gone = look.nodes.iter().filter(|status| status.info.is_none());
        let gone = gone.filter_map(|status| NodeId::new(&status.name));
        let gone: Vec<NodeId> = gone.filter(|node| !look.known.contains_key(node)).collect();
        for node in seen.gone.note(gone, self.forget, Instant::now()) {
            if !self.leader.acts() {
                return;
            }
            let (is_bad, reason, what) = match self.daemons.remove_node(&node).await {
                Ok(volumes) => {
                    tracing::info!(%node, ?volumes, "its Node object is gone, so it is forgotten");
                    let what = "its Node object is gone, and its daemon is silent: it is forgotten";
                    (false, "Forgotten", format!("{what}, and its copies are made elsewhere"))
                }
                Err(status) => {
                    let why = status.message();
                    if !seen.gone.refused(&node, why, Instant::now()) {
                        continue;
                    }
                    tracing::warn!(%node, why, "its Node object is gone, but it is not forgotten");
                    (true, "NotForgotten", format!("its Node object is gone, but {why}"))
                }
            };
            self.events.tell(&look.reference(&node), is_bad, reason, what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_gone_when_it_is_for_long_and_what_is_refused_is_tried_rarely() {
        let (mut gone, begin) = (Gone::default(), Instant::now());
        let a = NodeId::new("a").unwrap();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let forget = Duration::from_secs(30);
        let due = |gone: &mut Gone, is_gone: bool, seconds| {
            !gone
                .note(is_gone.then(|| a.clone()).into_iter().collect(), forget, at(seconds))
                .is_empty()
        };
        assert!(!due(&mut gone, true, 0) && !due(&mut gone, true, 29));
        assert!(!due(&mut gone, false, 30), "it answers, or has an object");
        assert!(!due(&mut gone, true, 31) && due(&mut gone, true, 61));
        assert!(gone.refused(&a, "its last copy", at(61)));
        assert!(!due(&mut gone, true, 120) && due(&mut gone, true, 121));
        assert!(!gone.refused(&a, "its last copy", at(121)), "said already");
        assert!(gone.refused(&a, "another reason", at(181)));
    }
}
