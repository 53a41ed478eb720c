//! Which nodes are looked at since pods there may have lost a volume, and how often.

use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// Looks at a node. Its daemon finds out only by and by what it has lost.
const LOOKS: u32 = 5;
/// For how long it is tried if nobody can tell.
const GIVE_UP: Duration = Duration::from_secs(600);

/// The nodes that are looked at, or were.
#[derive(Debug, Default)]
pub(super) struct Mends {
    nodes: Mutex<BTreeMap<NodeId, Mend>>,
}

#[derive(Debug)]
struct Mend {
    /// When somebody wanted it last, and how often it was looked at since.
    begun: Instant,
    looks: u32,
    is_running: bool,
    /// The pods there of which people were told, by uid.
    told: BTreeSet<String>,
}

impl Mends {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Mend>> {
        // Each change of it is whole.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a node looked at from now on. Returns whether nobody is at it who would go on.
    pub(super) fn begin(&self, node: &NodeId, now: Instant) -> bool {
        let mut nodes = self.nodes();
        let new = Mend { begun: now, looks: 0, is_running: false, told: BTreeSet::new() };
        let mend = nodes.entry(node.clone()).or_insert(new);
        (mend.begun, mend.looks) = (now, 0);
        !std::mem::replace(&mut mend.is_running, true)
    }

    /// A look is over, in which the node could be looked at or not. Returns whether there is to be
    /// another one.
    pub(super) fn looked(&self, node: &NodeId, is_known: bool, now: Instant) -> bool {
        let mut nodes = self.nodes();
        let Some(mend) = nodes.get_mut(node) else { return false };
        mend.looks += u32::from(is_known);
        let lasts = now.saturating_duration_since(mend.begun) < GIVE_UP;
        mend.is_running = lasts && mend.looks < LOOKS;
        mend.is_running
    }

    /// Nobody looks at it any more.
    pub(super) fn end(&self, node: &NodeId) {
        if let Some(mend) = self.nodes().get_mut(node) {
            mend.is_running = false;
        }
    }

    /// Keeps in mind only pods that are still there.
    pub(super) fn keep_told(&self, node: &NodeId, there: &BTreeSet<&str>) {
        if let Some(mend) = self.nodes().get_mut(node) {
            mend.told.retain(|pod| there.contains(pod.as_str()));
        }
    }

    /// Whether people were not told of a pod yet. They are now.
    pub(super) fn is_news(&self, node: &NodeId, pod: &str) -> bool {
        let mut nodes = self.nodes();
        nodes.get_mut(node).is_some_and(|mend| mend.told.insert(pod.to_owned()))
    }
}

/// How often daemons are asked what was taken from their nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// As long as it is news that this controller acts, or while none can tell.
    pub(super) soon: Duration,
    /// Afterwards.
    pub(super) rarely: Duration,
}

/// Finds the nodes whose daemons say that a volume was taken from them, while this controller acts.
/// One may be away just now, or not have found out yet.
pub(super) async fn look_back<Asked>(
    pace: Pace,
    acts: impl Fn() -> bool,
    ask: impl Fn() -> Asked,
    found: impl Fn(NodeId),
) where
    Asked: Future<Output = Result<Vec<v1::NodeStatus>, Status>>,
{
    let mut looks = 0_u32;
    while acts() {
        match ask().await {
            Ok(nodes) => {
                looks = looks.saturating_add(1);
                let lost = nodes.iter().filter(|status| has_lost(status, None));
                lost.filter_map(|status| NodeId::new(&status.name)).for_each(&found);
            }
            Err(status) => {
                tracing::debug!(why = status.message(), "what was lost before is not known");
            }
        }
        tokio::time::sleep(if looks < LOOKS { pace.soon } else { pace.rarely }).await;
    }
}

/// Whether the daemon of a node says that a volume, or this one, was taken from it.
pub(super) fn has_lost(node: &v1::NodeStatus, uid: Option<&str>) -> bool {
    let fenced = i32::from(v1::AttachPhase::Fenced);
    let is_it = |primary: &v1::LocalPrimary| {
        primary.phase == fenced && uid.is_none_or(|uid| primary.uid == uid)
    };
    node.live && node.info.as_ref().is_some_and(|info| info.primaries.iter().any(is_it))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    fn name(text: &str) -> NodeId {
        NodeId::new(text).unwrap()
    }

    fn fenced(node: &str) -> v1::NodeStatus {
        let phase = i32::from(v1::AttachPhase::Fenced);
        let info = v1::Node {
            primaries: vec![v1::LocalPrimary { phase, ..Default::default() }],
            ..Default::default()
        };
        v1::NodeStatus { name: node.to_owned(), live: true, info: Some(info), ..Default::default() }
    }

    #[tokio::test]
    async fn a_node_that_finds_out_late_what_it_has_lost_is_found() {
        let (asked, found) = (Cell::new(0), RefCell::new(Vec::new()));
        let pace = Pace { soon: Duration::ZERO, rarely: Duration::ZERO };
        let acts = || asked.get() < 2 * LOOKS + 2;
        let ask = async || {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(Status::unavailable("nobody answers")),
                n if n <= LOOKS => Ok(Vec::new()),
                n if n <= 2 * LOOKS => Ok(vec![fenced("a")]),
                _ => Ok(vec![fenced("b")]),
            }
        };
        look_back(pace, acts, ask, |node| found.borrow_mut().push(node)).await;
        let found: BTreeSet<NodeId> = found.into_inner().into_iter().collect();
        assert_eq!(found, BTreeSet::from([name("a"), name("b")]));
    }

    #[test]
    fn one_at_a_time_looks_at_a_node_and_begins_again_when_it_is_wanted_again() {
        let (mends, a, now) = (Mends::default(), name("a"), Instant::now());
        assert!(mends.begin(&a, now));
        for _ in 1..LOOKS {
            assert!(mends.looked(&a, true, now));
        }
        assert!(mends.looked(&a, false, now), "it could not be looked at");
        assert!(!mends.begin(&a, now), "somebody is at it");
        for _ in 1..LOOKS {
            assert!(mends.looked(&a, true, now), "it was wanted again");
        }
        assert!(!mends.looked(&a, true, now));
        assert!(mends.begin(&a, now), "nobody looks at it any more");
        assert!(!mends.looked(&a, false, now + GIVE_UP), "it is given up");
        assert!(mends.begin(&a, now));
        mends.end(&a);
        assert!(mends.begin(&a, now));
    }

    #[test]
    fn people_are_told_once_of_a_pod_as_long_as_it_is_there() {
        let (mends, a, now) = (Mends::default(), name("a"), Instant::now());
        mends.begin(&a, now);
        assert!(mends.is_news(&a, "p") && !mends.is_news(&a, "p"));
        mends.end(&a);
        mends.begin(&a, now);
        mends.keep_told(&a, &BTreeSet::from(["p", "q"]));
        assert!(!mends.is_news(&a, "p"), "however often its node is looked at");
        mends.keep_told(&a, &BTreeSet::from(["q"]));
        assert!(mends.is_news(&a, "p"));
    }
}
