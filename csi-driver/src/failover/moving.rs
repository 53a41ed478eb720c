//! One node that is suspected, and its pods.

use super::Failover;
use crate::kubernetes::pods::{Claim, Found};
use lockstep_core::cluster::failover::{Reason, Stays, Used, moves};
use lockstep_core::cluster::locality::{Changes, Labels as Labelled, PlacementId};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

/// How long the copies of a volume may take to be sure that its primary is silent, when its node
/// is; otherwise they are asked once.
const FENCE_WAIT_MS: u64 = 3000;
/// Pods that are moved at a time.
const AT_A_TIME: usize = 16;
/// How long the successor of a pod is watched, how often, and how long its node may take before it
/// is nudged.
const WATCHED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);
const NUDGE: Duration = Duration::from_millis(1500);

/// A node that is suspected.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) node: NodeId,
    pub(super) reason: Reason,
    pub(super) since: Instant,
    silent: bool,
    /// What was said of which pod last.
    told: Mutex<BTreeMap<String, String>>,
}

impl Case {
    pub(super) fn new(node: NodeId, reason: Reason, silent: bool) -> Self {
        Self { node, reason, since: Instant::now(), silent, told: Mutex::default() }
    }

    /// Since it is suspected, for people who add up where the time went.
    pub(super) fn since_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether this is news.
    fn is_new(&self, pod: &Found, what: &str) -> bool {
        // It is changed by single inserts.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.insert(pod.uid.clone(), what.to_owned());
        before.as_deref() != Some(what)
    }
}

impl Failover {
    /// Moves what pods can be moved. Returns whether any was.
    pub(super) async fn empty(&self, case: Arc<Case>) -> bool {
        let pods = match self.pods.on_node(&case.node).await {
            Ok(pods) => pods,
            Err(status) => {
                tracing::warn!(node = %case.node, why = status.message(), "its pods are unknown");
                return false;
            }
        };
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        let mut moving = JoinSet::new();
        for pod in pods {
            let (failover, case, turns) = (self.clone(), Arc::clone(&case), Arc::clone(&turns));
            moving.spawn(async move {
                // It is never closed; if it were, nobody would have to wait.
                let _turn = turns.acquire().await;
                failover.move_away(case, pod).await
            });
        }
        let mut moved = false;
        while let Some(one) = moving.join_next().await {
            moved |= one.unwrap_or_default();
        }
        moved
    }

    /// Moves a pod. Returns whether it did.
    async fn move_away(&self, case: Arc<Case>, pod: Found) -> bool {
        let claims = match self.pods.claims(&pod).await {
            Ok(claims) => claims,
            Err(status) => return self.stays(&case, &pod, status.message()),
        };
        let facts = pod.facts(&claims);
        let volumes = match moves(&facts) {
            Ok(volumes) => volumes,
            Err(Stays::NotOurs) => return false,
            Err(why) => return self.stays(&case, &pod, &why.to_string()),
        };
        let fenced = match self.fence(&case, &pod, &claims, volumes).await {
            Ok(fenced) => fenced,
            Err(status) => return self.stays(&case, &pod, status.message()),
        };
        if !self.leader.acts() {
            return false;
        }
        if let Err(status) = self.take_labels(&case, &fenced).await {
            return self.stays(&case, &pod, status.message());
        }
        match self.pods.delete(&pod).await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(status) => return self.stays(&case, &pod, status.message()),
        }
        let (node, since_ms) = (&case.node, case.since_ms());
        tracing::info!(%node, namespace = pod.namespace, pod = pod.name, since_ms, "pod deleted");
        let note = format!(
            "deleted, so that it runs elsewhere: node {node} is lost ({}), and none of its writes \
             is acknowledged any more",
            case.reason
        );
        self.events.tell(&pod.reference(), true, "FailedOver", note);
        tokio::spawn(self.clone().follow(case, pod));
        true
    }

    /// Has all volumes of a pod fenced.
    async fn fence(
        &self,
        case: &Arc<Case>,
        pod: &Found,
        claims: &[Claim],
        volumes: BTreeSet<&str>,
    ) -> Result<Vec<v1::FenceVolumeResponse>, Status> {
        let wait_ms = if case.silent { FENCE_WAIT_MS } else { 1 };
        let mut asked = JoinSet::new();
        for volume in volumes {
            let (daemons, name) = (Arc::clone(&self.daemons), volume.to_owned());
            let node = case.node.to_string();
            asked.spawn(async move {
                let request = v1::FenceVolumeRequest { name: name.clone(), node, wait_ms };
                daemons.fence(&request).await.map(|told| (name, told))
            });
        }
        let mut fenced = Vec::new();
        while let Some(told) = asked.join_next().await {
            let broken = |error| Status::internal(format!("it broke off: {error}"));
            let (volume, told) = told.map_err(broken)??;
            let (node, epoch, by) = (&case.node, told.epoch, told.by_node.as_str());
            let since_ms = case.since_ms();
            tracing::info!(%node, volume, pod = pod.name, epoch, by, since_ms, "fenced");
            let used = |claim: &&Claim| claim.used == Used::Ours(volume.clone());
            for claim in claims.iter().filter(used) {
                let note = format!(
                    "node {node} is lost ({}): volume {volume} is fenced with epoch {epoch}, no \
                     write of that node is acknowledged any more",
                    case.reason
                );
                self.events.tell(&claim.reference, true, "Fenced", note);
            }
            fenced.push(told);
        }
        Ok(fenced)
    }

    /// Takes the labels of fenced volumes off the node, before a pod could be bound to it again.
    async fn take_labels(
        &self,
        case: &Case,
        fenced: &[v1::FenceVolumeResponse],
    ) -> Result<(), Status> {
        let ids = fenced.iter().filter_map(|told| PlacementId::new(&told.placement_id));
        let take: Labelled = ids.map(|id| (id, BTreeSet::from([case.node.clone()]))).collect();
        self.keeper.apply(&Changes { take, ..Changes::default() }).await
    }

    fn stays(&self, case: &Case, pod: &Found, why: &str) -> bool {
        if case.is_new(pod, why) {
            let (node, name, since_ms) = (&case.node, &pod.name, case.since_ms());
            tracing::info!(%node, namespace = pod.namespace, pod = name, why, since_ms, "stays");
            let note = format!("node {node} may be lost ({}), but {why}", case.reason);
            self.events.tell(&pod.reference(), true, "NotFailedOver", note);
        }
        false
    }

    /// Watches the successor of a pod begin, and helps if its node does not.
    async fn follow(self, case: Arc<Case>, old: Found) {
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
