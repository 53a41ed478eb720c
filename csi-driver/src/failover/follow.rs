//! The successor of a pod that was moved.

use super::Failover;
use super::moving::Case;
use crate::kubernetes::pods::Found;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long the successor of a pod is watched, how often, and how long its node may take before it
/// is nudged.
const WATCHED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);
const NUDGE: Duration = Duration::from_millis(1500);

impl Failover {
    /// Watches the successor of a pod begin, and helps if its node does not.
    pub(super) async fn follow(self, case: Arc<Case>, old: Found) {
        let begin = Instant::now();
        let mut bound: Option<(Found, Instant)> = None;
        while begin.elapsed() < WATCHED {
            tokio::time::sleep(LOOK).await;
            let Ok(pending) = self.pods.pending(&old.namespace).await else { continue };
            let successor = |pod: &Found| {
                let is_like = pod.owner == old.owner && pod.claims == old.claims;
                is_like && pod.uid != old.uid && pod.node.is_some()
            };
            if let Some(pod) = pending.into_iter().find(|pod| successor(pod)) {
                self.mind(&case, pod, &mut bound).await;
                continue;
            }
            let Some((pod, _)) = &bound else { continue };
            if let Ok(Some(now)) = self.pods.same(pod).await
                && !now.pending
            {
                let (pod, since_ms) = (&now.name, case.since_ms());
                tracing::info!(pod, to = now.node, since_ms, "the successor runs");
                return;
            }
        }
    }

    /// A successor that was given a node, and does not run yet.
    async fn mind(&self, case: &Case, pod: Found, bound: &mut Option<(Found, Instant)>) {
        match bound {
            Some((before, at)) if before.uid == pod.uid => {
                if at.elapsed() < NUDGE {
                    return;
                }
                *at = Instant::now();
                let nudged = self.pods.nudge(&pod).await;
                let why = nudged.err().map(|status| status.message().to_owned());
                tracing::info!(pod = pod.name, why, since_ms = case.since_ms(), "nudged");
            }
            _ => {
                let to = pod.node.as_deref().unwrap_or_default();
                // If it is the lost one, the next look at that moves it on.
                let on_lost = to == case.node.as_str();
                let since_ms = case.since_ms();
                tracing::info!(pod = pod.name, to, on_lost, since_ms, "the successor is bound");
                *bound = Some((pod, Instant::now()));
            }
        }
    }
}
