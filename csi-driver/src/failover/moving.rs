//! One node that is suspected, and its pods.

use super::Failover;
use crate::kubernetes::pods::{Claim, Found};
use k8s_openapi::api::core::v1::ObjectReference;
use lockstep_core::cluster::failover::{Leaving, Pod, Reason, Used, plan};
use lockstep_core::cluster::locality::{Changes, Labels as Labelled, PlacementId};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::Status;

/// How long the copies of a volume may take to be sure that its primary is silent, when its node
/// is; otherwise they are asked once.
const FENCE_WAIT_MS: u64 = 3000;
/// Sets of pods that are moved at a time.
const AT_A_TIME: usize = 16;

/// A node that is suspected.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) node: NodeId,
    pub(super) reason: Reason,
    pub(super) since: Instant,
    silent: bool,
    /// When it was suspected so first, with moments in between when it was well, or worse.
    first: Instant,
    past: Arc<Mutex<Past>>,
    /// Owners and claims of the pods that were moved.
    moved: Mutex<BTreeSet<String>>,
}

/// What is remembered of a node that is suspected again and again.
#[derive(Debug, Default)]
struct Past {
    /// When it was suspected first, by reason and whether it was silent.
    first: BTreeMap<(Reason, bool), Instant>,
    /// What was said of which object last.
    told: BTreeMap<String, String>,
}

/// A pod and what it uses.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) pod: Found,
    pub(super) claims: Vec<Arc<Claim>>,
    pub(super) facts: Pod,
}

impl Case {
    pub(super) fn new(node: NodeId, reason: Reason, silent: bool) -> Self {
        Self::begun(node, reason, silent, Arc::default())
    }

    /// A new case of the same node, of which people were told what they were told.
    pub(super) fn again(&self, reason: Reason, silent: bool) -> Self {
        Self::begun(self.node.clone(), reason, silent, Arc::clone(&self.past))
    }

    fn begun(node: NodeId, reason: Reason, silent: bool, past: Arc<Mutex<Past>>) -> Self {
        let since = Instant::now();
        let first = *lock(&past).first.entry((reason, silent)).or_insert(since);
        Self { node, reason, since, silent, first, past, moved: Mutex::default() }
    }

    /// For how long it is known, with all that was in between.
    pub(super) fn lasts(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.first)
    }

    /// Its node was well for so long that the next time is another one.
    pub(super) fn was_well(&self) {
        lock(&self.past).first.clear();
    }

    /// Since it is suspected, for people who add up where the time went.
    pub(super) fn since_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it was begun for that.
    pub(super) fn is_of(&self, reason: Reason, silent: bool) -> bool {
        (self.reason, self.silent) == (reason, silent)
    }

    /// Whether this is news of an object.
    pub(super) fn is_new(&self, of: &ObjectReference, what: &str) -> bool {
        let key = format!("{:?} {:?} {:?} {:?}", of.kind, of.namespace, of.name, of.uid);
        let before = lock(&self.past).told.insert(key, what.to_owned());
        before.as_deref() != Some(what)
    }

    /// Whether no pod was moved before that this one may be the successor of.
    fn is_first(&self, pod: &Found) -> bool {
        let key = format!("{} {:?} {:?}", pod.namespace, pod.owner, pod.claims);
        lock(&self.moved).insert(key)
    }
}

/// What is said without its numbers: that a node was heard so many milliseconds ago is no news.
pub(super) fn without_numbers(why: &str) -> String {
    let words = why.split(' ').filter(|word| word.parse::<u64>().is_err());
    words.collect::<Vec<_>>().join(" ")
}

/// What these have is changed by single inserts.
fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Failover {
    /// The pods of a node that use volumes by claims.
    pub(super) async fn users(&self, node: &NodeId) -> Result<Vec<User>, Status> {
        let pods = self.pods.on_node(node).await?;
        let claims = self.pods.claims(&pods).await;
        let user = |(pod, claims): (Found, Vec<Arc<Claim>>)| {
            let facts = pod.facts(&claims);
            User { pod, claims, facts }
        };
        Ok(pods.into_iter().zip(claims).map(user).collect())
    }

    /// Moves what pods can be moved. Returns whether one was that has not come back since.
    pub(super) async fn empty(&self, case: Arc<Case>) -> bool {
        let users = match self.users(&case.node).await {
            Ok(users) => users,
            Err(status) => {
                tracing::warn!(node = %case.node, why = status.message(), "its pods are unknown");
                return false;
            }
        };
        for user in users.iter().filter(|user| user.pod.is_given_up()) {
            self.is_kept(&case, &user.pod);
        }
        let facts: Vec<Pod> = users.iter().map(|user| user.facts.clone()).collect();
        let plan = plan(&facts);
        for (at, why) in &plan.stay {
            if let Some(user) = users.get(*at) {
                self.stays(&case, &user.pod, &why.to_string());
            }
        }
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        let mut moving = JoinSet::new();
        for set in plan.leave {
            let (failover, case, turns) = (self.clone(), Arc::clone(&case), Arc::clone(&turns));
            let users = set.pods.iter().filter_map(|at| users.get(*at).cloned()).collect();
            moving.spawn(async move {
                // It is never closed; if it were, nobody would have to wait.
                let _turn = turns.acquire().await;
                failover.move_away(case, users, set).await
            });
        }
        let mut moved = false;
        while let Some(one) = moving.join_next().await {
            moved |= one.unwrap_or_default();
        }
        moved
    }

    /// Moves pods that share volumes. Returns the same.
    async fn move_away(&self, case: Arc<Case>, users: Vec<User>, set: Leaving) -> bool {
        let taken = async {
            let fenced = self.fence(&case, &users, &set.volumes).await?;
            if !self.leader.acts() {
                return Ok(false);
            }
            self.take_labels(&case, &fenced).await.map(|()| true)
        };
        match taken.await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(status) => {
                for user in &users {
                    self.stays(&case, &user.pod, status.message());
                }
                return false;
            }
        }
        let mut moved = false;
        for user in users {
            moved |= self.delete(&case, user.pod).await;
        }
        moved
    }

    /// Deletes a pod whose volumes are fenced. Returns the same.
    async fn delete(&self, case: &Arc<Case>, pod: Found) -> bool {
        match self.pods.delete(&pod, Some(0)).await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(status) => {
                self.stays(case, &pod, status.message());
                return false;
            }
        }
        let (node, since_ms) = (&case.node, case.since_ms());
        tracing::info!(%node, namespace = pod.namespace, pod = pod.name, since_ms, "pod deleted");
        let note = format!(
            "deleted, so that it runs elsewhere: node {node} is lost ({}), and none of its writes \
             is acknowledged any more",
            case.reason
        );
        self.events.tell(&pod.reference(), true, "FailedOver", note);
        let is_first = case.is_first(&pod);
        self.follow(Arc::clone(case), pod);
        is_first
    }

    /// Has all volumes of some pods fenced: none of them, if one cannot be.
    async fn fence(
        &self,
        case: &Arc<Case>,
        users: &[User],
        volumes: &BTreeSet<String>,
    ) -> Result<Vec<v1::FenceVolumeResponse>, Status> {
        // One alone is fenced or not.
        let could = volumes.len() > 1;
        if could {
            let request = v1::FenceVolumeRequest { dry_run: true, ..Default::default() };
            self.fence_all(case, volumes, request).await?;
        }
        let request = v1::FenceVolumeRequest { could, ..Default::default() };
        let mut fenced = Vec::new();
        for (volume, told) in self.fence_all(case, volumes, request).await? {
            self.is_fenced(case, users, &volume, &told);
            fenced.push(told);
        }
        Ok(fenced)
    }

    /// Asks for the same of several volumes at once.
    async fn fence_all(
        &self,
        case: &Case,
        volumes: &BTreeSet<String>,
        request: v1::FenceVolumeRequest,
    ) -> Result<Vec<(String, v1::FenceVolumeResponse)>, Status> {
        let wait_ms = if case.silent { FENCE_WAIT_MS } else { 1 };
        let mut asked = JoinSet::new();
        for name in volumes {
            let (daemons, name, node) =
                (Arc::clone(&self.daemons), name.clone(), case.node.to_string());
            let request = v1::FenceVolumeRequest { name: name.clone(), node, wait_ms, ..request };
            asked.spawn(async move { daemons.fence(&request).await.map(|told| (name, told)) });
        }
        let mut all = Vec::new();
        while let Some(told) = asked.join_next().await {
            all.push(told.map_err(|error| Status::internal(format!("it broke off: {error}")))??);
        }
        Ok(all)
    }

    /// Tells of a volume that was fenced.
    fn is_fenced(&self, case: &Case, users: &[User], volume: &str, told: &v1::FenceVolumeResponse) {
        let (node, epoch, by) = (&case.node, told.epoch, told.by_node.as_str());
        let since_ms = case.since_ms();
        tracing::info!(%node, volume, epoch, by, since_ms, "fenced");
        let note = format!(
            "node {node} is lost ({}): volume {volume} is fenced with epoch {epoch}, no write of \
             that node is acknowledged any more",
            case.reason
        );
        let claims = users.iter().flat_map(|user| &user.claims);
        for claim in claims.filter(|claim| claim.used == Used::Ours(volume.to_owned())) {
            if case.is_new(&claim.reference, &note) {
                self.events.tell(&claim.reference, true, "Fenced", note.clone());
            }
        }
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

    /// Tells why a pod is not moved.
    fn stays(&self, case: &Case, pod: &Found, why: &str) {
        if case.is_new(&pod.reference(), &without_numbers(why)) {
            let (node, name, since_ms) = (&case.node, &pod.name, case.since_ms());
            tracing::info!(%node, namespace = pod.namespace, pod = name, why, since_ms, "stays");
            let note = format!("node {node} may be lost ({}), but {why}", case.reason);
            self.events.tell(&pod.reference(), true, "NotFailedOver", note);
        }
    }

    /// Tells what keeps a pod that was deleted.
    fn is_kept(&self, case: &Case, pod: &Found) {
        if !pod.finalizers.is_empty() {
            let why = format!(
                "it is deleted already, and its successor is made once nothing keeps it: \
                 whoever has set finalizer {} has to take it off",
                pod.finalizers.join(", ")
            );
            self.stays(case, pod, &why);
        }
    }
}
