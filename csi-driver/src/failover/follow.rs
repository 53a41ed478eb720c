//! The successors of pods that were moved.

use super::Failover;
use super::moving::Case;
use crate::kubernetes::pods::Found;
use futures::stream::{self, StreamExt as _};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long the successor of a pod is watched, how often, and how long its node may take before it
/// is nudged.
const WATCHED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(250);
const NUDGE: Duration = Duration::from_millis(1500);
/// Pods that are nudged or read at a time.
const AT_A_TIME: usize = 8;

/// The pods whose successors are watched, by namespace. However many there are, one watcher lists
/// the pods of a namespace: just then the API server has much to do.
#[derive(Debug, Default)]
pub(super) struct Follows {
    namespaces: Mutex<BTreeMap<String, Vec<Followed>>>,
}

#[derive(Debug)]
struct Followed {
    case: Arc<Case>,
    old: Found,
    since: Instant,
    /// The successor, and when it was given its node, or was nudged last.
    bound: Option<(Found, Instant)>,
}

/// What to do for a successor.
#[derive(Debug)]
enum Help {
    /// Its node does not begin.
    Nudge(Arc<Case>, Found),
    /// It does not wait for its node any more.
    Read(Arc<Case>, Found),
}

impl Follows {
    fn namespaces(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Followed>>> {
        // Each change of it is whole.
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the successor of a pod watched. Returns whether nobody watches its namespace yet.
    fn add(&self, case: Arc<Case>, old: Found, now: Instant) -> bool {
        let mut namespaces = self.namespaces();
        let is_first = !namespaces.contains_key(&old.namespace);
        let followed = namespaces.entry(old.namespace.clone()).or_default();
        // It may have been a successor itself.
        followed.retain(|before| !is_like(&before.old, &old));
        followed.push(Followed { case, old, since: now, bound: None });
        is_first
    }

    /// Whether there is still somebody to watch; otherwise the watcher has to end.
    fn lasts(&self, namespace: &str, now: Instant) -> bool {
        let mut namespaces = self.namespaces();
        let Some(followed) = namespaces.get_mut(namespace) else { return false };
        followed.retain(|one| now.saturating_duration_since(one.since) < WATCHED);
        let lasts = !followed.is_empty();
        if !lasts {
            namespaces.remove(namespace);
        }
        lasts
    }

    /// What to do now that these pods do not run yet.
    fn look(&self, namespace: &str, pending: &[Found], now: Instant) -> Vec<Help> {
        let mut namespaces = self.namespaces();
        let followed = namespaces.get_mut(namespace);
        followed.into_iter().flatten().filter_map(|one| one.look(pending, now)).collect()
    }

    /// A successor runs, or is gone.
    fn is_over(&self, pod: &Found, runs: bool) {
        let mut namespaces = self.namespaces();
        let Some(followed) = namespaces.get_mut(&pod.namespace) else { return };
        let is_it =
            |one: &Followed| one.bound.as_ref().is_some_and(|(bound, _)| bound.uid == pod.uid);
        if runs {
            followed.retain(|one| !is_it(one));
        }
        for one in followed.iter_mut().filter(|one| is_it(one)) {
            one.bound = None;
        }
    }

    fn end(&self, namespace: &str) {
        self.namespaces().remove(namespace);
    }
}

impl Followed {
    fn look(&mut self, pending: &[Found], now: Instant) -> Option<Help> {
        let is_successor =
            |pod: &&Found| is_like(pod, &self.old) && pod.uid != self.old.uid && pod.node.is_some();
        let Some(pod) = pending.iter().find(is_successor) else {
            let (pod, _) = self.bound.as_ref()?;
            return Some(Help::Read(Arc::clone(&self.case), pod.clone()));
        };
        match &mut self.bound {
            Some((before, at)) if before.uid == pod.uid => {
                if now.saturating_duration_since(*at) < NUDGE {
                    return None;
                }
                *at = now;
                Some(Help::Nudge(Arc::clone(&self.case), pod.clone()))
            }
            _ => {
                let to = pod.node.as_deref().unwrap_or_default();
                // If it is the lost one, the next look at that moves it on.
                let on_lost = to == self.case.node.as_str();
                let since_ms = self.case.since_ms();
                tracing::info!(pod = pod.name, to, on_lost, since_ms, "the successor is bound");
                self.bound = Some((pod.clone(), now));
                None
            }
        }
    }
}

/// Whether one of two pods may be the successor of the other.
fn is_like(one: &Found, other: &Found) -> bool {
    one.owner == other.owner && one.claims == other.claims
}

impl Failover {
    /// Watches the successor of a pod begin, and helps if its node does not.
    pub(super) fn follow(&self, case: Arc<Case>, old: Found) {
        let namespace = old.namespace.clone();
        if self.follows.add(case, old, Instant::now()) {
            tokio::spawn(self.clone().watch_successors(namespace));
        }
    }

    async fn watch_successors(self, namespace: String) {
        loop {
            tokio::time::sleep(LOOK).await;
            if !self.leader.acts() {
                self.follows.end(&namespace);
                return;
            }
            if !self.follows.lasts(&namespace, Instant::now()) {
                return;
            }
            let Ok(pending) = self.pods.pending(&namespace).await else { continue };
            let help = self.follows.look(&namespace, &pending, Instant::now());
            stream::iter(help).for_each_concurrent(AT_A_TIME, |help| self.help(help)).await;
        }
    }

    async fn help(&self, help: Help) {
        match help {
            Help::Nudge(case, pod) => {
                let nudged = self.pods.nudge(&pod).await;
                let why = nudged.err().map(|status| status.message().to_owned());
                tracing::info!(pod = pod.name, why, since_ms = case.since_ms(), "nudged");
            }
            Help::Read(case, pod) => match self.pods.same(&pod).await {
                Ok(Some(now)) if now.pending => {}
                Ok(Some(now)) => {
                    let (name, since_ms) = (&now.name, case.since_ms());
                    tracing::info!(pod = name, to = now.node, since_ms, "the successor runs");
                    self.follows.is_over(&pod, true);
                }
                Ok(None) => self.follows.is_over(&pod, false),
                Err(status) => tracing::debug!(why = status.message(), "a successor is unknown"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::cluster::failover::Reason;
    use lockstep_core::id::NodeId;
    use serde_json::json;

    fn pod(name: &str, uid: &str, node: Option<&str>) -> Found {
        let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": name,
            "uid": name, "controller": true});
        let claim = json!({"name": "d", "persistentVolumeClaim": {"claimName": name}});
        let pod = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": uid,
                "ownerReferences": [owner]},
            "spec": {"nodeName": node, "containers": [], "volumes": [claim]},
            "status": {"phase": "Pending"},
        });
        Found::new(serde_json::from_value(pod).unwrap()).unwrap()
    }

    fn case() -> Arc<Case> {
        Arc::new(Case::new(NodeId::new("a").unwrap(), Reason::Silent, true))
    }

    #[test]
    fn one_watcher_is_enough_for_a_namespace_and_ends_with_the_last_pod() {
        let (follows, now) = (Follows::default(), Instant::now());
        assert!(follows.add(case(), pod("p", "1", Some("a")), now));
        let later = now + WATCHED / 2;
        assert!(!follows.add(case(), pod("q", "1", Some("a")), later));
        assert!(follows.lasts("shop", later));
        assert!(follows.lasts("shop", now + WATCHED), "the second one's time is not over");
        assert!(!follows.lasts("shop", later + WATCHED));
        assert!(follows.add(case(), pod("p", "1", Some("a")), now), "nobody watches any more");
        follows.end("shop");
        assert!(!follows.lasts("shop", now));
    }

    #[test]
    fn a_successor_that_does_not_begin_is_nudged_and_one_that_does_is_left_alone() {
        let (follows, now) = (Follows::default(), Instant::now());
        follows.add(case(), pod("p", "1", Some("a")), now);
        let look = |pending: &[Found], at| follows.look("shop", pending, at);
        assert!(look(&[pod("p", "2", None), pod("q", "3", Some("b"))], now).is_empty());
        let bound = [pod("p", "2", Some("b"))];
        assert!(look(&bound, now).is_empty());
        assert!(look(&bound, now + NUDGE / 2).is_empty());
        let help = look(&bound, now + NUDGE);
        assert!(matches!(&help[..], [Help::Nudge(_, pod)] if pod.uid == "2"), "{help:?}");
        assert!(look(&bound, now + NUDGE).is_empty(), "it was nudged just now");
        let help = look(&[], now + NUDGE);
        assert!(matches!(&help[..], [Help::Read(_, pod)] if pod.uid == "2"), "{help:?}");
        follows.is_over(&bound[0], true);
        assert!(!follows.lasts("shop", now), "it runs");
    }

    #[test]
    fn a_successor_that_is_moved_as_well_takes_the_place_of_the_first() {
        let (follows, now) = (Follows::default(), Instant::now());
        follows.add(case(), pod("p", "1", Some("a")), now);
        let second = pod("p", "2", Some("a"));
        follows.look("shop", std::slice::from_ref(&second), now);
        follows.add(case(), second.clone(), now);
        let help = follows.look("shop", &[second], now + NUDGE);
        assert!(help.is_empty(), "it is deleted: {help:?}");
        let third = [pod("p", "3", Some("b"))];
        follows.look("shop", &third, now);
        follows.is_over(&third[0], false);
        assert!(follows.look("shop", &[], now).is_empty(), "it is gone");
        assert!(follows.lasts("shop", now), "another one may come");
        assert_eq!(follows.look("shop", &third, now + NUDGE).len(), 0);
        assert_eq!(follows.look("shop", &third, now + 2 * NUDGE).len(), 1, "one for all");
    }
}
