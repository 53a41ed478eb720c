//! Nodes on which no guard comes to stand: the kubelet or the API server refuses it.

use lockstep_core::id::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Pause between tries. The first comes at once: a node that is shut down ends its guard too.
const RARELY: Duration = Duration::from_secs(60);

/// When it was tried last.
#[derive(Debug, Default)]
pub(super) struct Failed(BTreeMap<NodeId, Instant>);

impl Failed {
    /// Whether a guard may be put on a node now.
    pub(super) fn is_due(&self, node: &NodeId, now: Instant) -> bool {
        self.0.get(node).is_none_or(|tried| now - *tried >= RARELY)
    }

    /// Notes that one is put instead of one that failed, or that it could not be put.
    pub(super) fn note(&mut self, node: &NodeId, now: Instant) {
        self.0.insert(node.clone(), now);
    }

    /// Forgets all nodes that are not there.
    pub(super) fn retain(&mut self, is_there: impl Fn(&NodeId) -> bool) {
        self.0.retain(|node, _| is_there(node));
    }
}

/// What is said of such a node.
pub(super) fn unguarded(why: &str) -> String {
    format!(
        "no guard stands here, and so nothing holds up a drain of this node: {why}. It is tried \
         again every {} s",
        RARELY.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_fails_again_is_put_rarely() {
        let (mut failed, begin) = (Failed::default(), Instant::now());
        let (n1, n2) = (NodeId::new("n1").unwrap(), NodeId::new("n2").unwrap());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert!(failed.is_due(&n1, at(0)));
        failed.note(&n1, at(0));
        assert!(!failed.is_due(&n1, at(1)) && !failed.is_due(&n1, at(59)));
        assert!(failed.is_due(&n2, at(1)), "another node");
        assert!(failed.is_due(&n1, at(60)));
        failed.note(&n1, at(60));
        assert!(!failed.is_due(&n1, at(119)));
        failed.retain(|node| *node != n1);
        assert!(failed.is_due(&n1, at(119)));
    }
}
