//! Holds up whoever drains a node until all volumes with a copy there can lose it; empties nodes
//! that people want emptied, and forgets those that Kubernetes has no more.
//!
//! The core decides. What it decides from is read anew at each look: a guard that stands on each
//! node with copies, and on a node that is cordoned its absence says that the node may be down at
//! any moment. So the next controller goes on where the one before it was.

mod facts;
mod failed;
mod gone;
mod missing;
mod pace;
mod puts;
mod told;

use crate::daemon::Daemons;
use crate::kubernetes::events::Events;
use crate::kubernetes::guards::{Budget, Found, Guards};
use crate::kubernetes::nodes::{Known, OnNodes, Wish};
use crate::leader::Leader;
use facts::Uses;
use failed::Failed;
use gone::Gone;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use lockstep_core::cluster::drain::{Hold, Node, Verdict, Volume, decide};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use missing::{Guarded, Missing};
use pace::Pace;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use told::{About, Reason, Told};
use tonic::{Code, Status};

/// Reasons that are told of a node.
const TOLD: usize = 3;
/// How long a look lets nodes go: longer than daemons may take to answer, but not for long.
const FRESH: Duration = Duration::from_secs(20);

/// What is done about nodes that go.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Draining {
    /// What the guards are like that hold up whoever drains a node while a volume would suffer: the
    /// JSON of a Pod. The PodDisruptionBudget of the same name, in the namespace of the lease, is
    /// for these. Without it drains are not held up.
    #[arg(long, env = "DRAIN_GUARD")]
    drain_guard: Option<String>,

    /// A node whose Node object was deleted is forgotten once its daemon is silent for so long, in
    /// milliseconds, so that its copies are made elsewhere.
    #[arg(long, env = "FORGET_MS", default_value_t = 30_000,
        value_parser = clap::value_parser!(u64).range(1000..=86_400_000))]
    forget_ms: u64,
}

impl Draining {
    /// Who makes guards in a namespace, if they are wanted.
    ///
    /// # Errors
    /// If what they are to be like is no pod.
    pub(crate) fn guards(&self, client: &Client, space: &str) -> anyhow::Result<Option<Guards>> {
        self.drain_guard.as_deref().map(|like| Guards::new(client, space, like)).transpose()
    }
}

/// Who does it.
pub(crate) struct Drains {
    daemons: Arc<Daemons>,
    nodes: OnNodes,
    guards: Option<Guards>,
    events: Events,
    leader: Leader,
    forget: Duration,
}

/// What looks have left for the next; nothing of it counts for long.
#[derive(Debug, Default)]
struct Seen {
    told: Told,
    /// What nodes are held for.
    held: String,
    uses: Uses,
    failed: Failed,
    gone: Gone,
    missing: Missing,
}

/// What a look found.
struct Look {
    begun: Instant,
    known: BTreeMap<NodeId, Known>,
    nodes: Vec<v1::NodeStatus>,
    volumes: Vec<Volume>,
    snapshots: BTreeMap<NodeId, usize>,
}

impl Drains {
    pub(crate) fn new(
        daemons: Arc<Daemons>,
        nodes: OnNodes,
        events: Events,
        leader: Leader,
        how: &Draining,
        guards: Option<Guards>,
    ) -> Self {
        let forget = Duration::from_millis(how.forget_ms);
        Self { daemons, nodes, guards, events, leader, forget }
    }

    /// Looks again and again, for ever, while it is this controller that acts.
    pub(crate) async fn keep(mut self, every: Duration) {
        let (mut seen, mut pace, mut told) = (Seen::default(), Pace::default(), None);
        loop {
            if !self.leader.acts() {
                seen = Seen::default();
                self.leader.wait().await;
            }
            let outcome = self.look(&mut seen).await;
            let waits = match &outcome {
                Ok(waits) => waits.then(|| seen.held.clone()),
                Err(status) => Some(status.message().to_owned()),
            };
            let pause = pace.pause(waits, Instant::now(), every);
            let why = outcome.err().map(|status| status.message().to_owned());
            // Once for each reason: it is tried again and again.
            match &why {
                Some(why) if told.as_ref() != Some(why) => {
                    tracing::warn!(why, "drains cannot be looked after now, and wait");
                }
                None if told.is_some() => tracing::info!("drains are looked after again"),
                _ => {}
            }
            told = why;
            // Whichever is first.
            let _ = timeout(pause, self.nodes.changed()).await;
        }
    }

    /// Does what is to be done now. Returns whether somebody waits.
    async fn look(&self, seen: &mut Seen) -> Result<bool, Status> {
        let begun = Instant::now();
        let known = self.nodes.known().await?;
        // Before what daemons say. What is wrong with guards keeps nothing else from being done.
        let guards = self.guarded(seen).await;
        let (nodes, volumes) = self.daemons.cluster().await?;
        let volumes = facts::volumes(&volumes, &nodes, &mut seen.uses, Instant::now());
        let mut look = Look { begun, known, nodes, volumes, snapshots: BTreeMap::new() };
        let evacuated = self.evacuate(&look, seen).await.and(self.cordon(&look).await);
        if look.nodes.iter().any(|node| look.is_emptied(node)) {
            look.snapshots = facts::snapshots(&self.daemons.snapshots("", "").await?);
        }
        let waits = match guards {
            Ok(Guarded::By(guards, budget, found)) => {
                self.guard(seen, &look, guards, &budget, &found).await
            }
            Ok(Guarded::Missing) => Ok(true),
            Ok(Guarded::Unwanted) => Ok(false),
            Err(status) => Err(status),
        };
        self.forget(seen, &look).await;
        evacuated.and(waits)
    }

    /// Begins and ends to empty nodes, as their annotation says.
    async fn evacuate(&self, look: &Look, seen: &mut Seen) -> Result<(), Status> {
        let mut first = Ok(());
        for (status, node, known) in look.both() {
            let undo = match &known.wish {
                Wish::Evacuate if !status.evacuating => false,
                Wish::Stay if status.evacuating => true,
                Wish::Unclear(value) => {
                    let why = format!(
                        "the annotation lockstep.dev/evacuate is {value:?}; it may be `true`, to \
                         have all copies moved elsewhere, or `false`, to stop that"
                    );
                    self.tell(seen, look, &node, Reason::BadAnnotation, why);
                    continue;
                }
                _ => {
                    seen.told.forget(&node, About::Annotation);
                    continue;
                }
            };
            if let Err(status) = self.daemons.evacuate(&node, undo).await {
                first = first.and(Err(status));
                continue;
            }
            let (reason, what) = match undo {
                false => ("Evacuating", "its copies are moved elsewhere"),
                true => ("Stays", "its copies are not moved elsewhere any more"),
            };
            tracing::info!(%node, undo, "{what}");
            self.events.tell(&look.reference(&node), false, reason, what.to_owned());
        }
        first
    }

    /// Has daemons know which nodes are cordoned, so that new copies go elsewhere.
    async fn cordon(&self, look: &Look) -> Result<(), Status> {
        let mut first = Ok(());
        for (node, undo) in look.cordons() {
            match self.daemons.cordon(&node, undo).await {
                Ok(()) => tracing::info!(%node, undo, "daemons know that it is cordoned"),
                // Daemons are upgraded after the controller.
                Err(status) if status.code() == Code::Unimplemented => {}
                Err(status) => first = first.and(Err(status)),
            }
        }
        first
    }

    /// Puts guards where they should be, and takes others away. Returns whether somebody waits.
    async fn guard(
        &self,
        seen: &mut Seen,
        look: &Look,
        guards: &Guards,
        budget: &Budget,
        found: &[Found],
    ) -> Result<bool, Status> {
        let standing: BTreeMap<&NodeId, &Found> =
            found.iter().filter(|guard| !guard.stale).map(|guard| (&guard.node, guard)).collect();
        let nodes = look.facts(&standing);
        let verdicts = decide(&look.volumes, &nodes);
        seen.held = format!("{verdicts:?}");
        let plan = puts::plan(&nodes, &verdicts, found, &seen.failed, Instant::now());
        let mut first = self.follow(plan, seen, look, guards, budget).await;
        let mut waits = false;
        for (name, verdict) in &verdicts {
            let guard = standing.get(name).copied();
            waits |= matches!(verdict, Verdict::Held(_));
            if guard.is_some_and(|guard| guard.runs) {
                seen.told.forget(name, About::Guard);
            }
            first = first.and(self.carry_out(seen, look, guards, name, verdict, guard).await);
        }
        seen.told.retain(|node| nodes.contains_key(node));
        seen.failed.retain(|node| nodes.contains_key(node));
        first.map(|()| waits)
    }

    /// Does what a verdict says about a guard that stands, and tells it.
    async fn carry_out(
        &self,
        seen: &mut Seen,
        look: &Look,
        guards: &Guards,
        node: &NodeId,
        verdict: &Verdict,
        guard: Option<&Found>,
    ) -> Result<(), Status> {
        match (verdict, guard) {
            (Verdict::MayGo | Verdict::Free, Some(guard)) => {
                // Whoever is slow must not let a node go after another controller did.
                let in_time = self.leader.acts() && look.is_fresh(Instant::now());
                if !in_time || !guards.take(guard).await? {
                    return Ok(());
                }
                let why = match verdict {
                    Verdict::Free => "no copy is left here: its guard is taken away",
                    _ => "every volume can do without this node now: its guard is taken away",
                };
                self.tell(seen, look, node, Reason::MayGo, why.to_owned());
            }
            (Verdict::InService, Some(guard)) => {
                // One that came late is replaced.
                if guard.late {
                    guards.take(guard).await?;
                } else {
                    guards.note(guard, "").await?;
                }
                seen.told.forget(node, About::Drain);
            }
            (Verdict::Held(holds), guard) => {
                let why = told(holds);
                if let Some(guard) = guard {
                    guards.note(guard, &why).await?;
                }
                let (reason, why) = match guard {
                    Some(guard) if guard.runs => {
                        (Reason::Waits, waits(&guards.namespace, &guard.name, &why))
                    }
                    _ => (Reason::NotHeld, unheld(&why)),
                };
                if self.tell(seen, look, node, reason, why.clone())
                    && let Some(guard) = guard
                {
                    self.events.tell(&guards.reference(guard), true, reason.word(), why);
                }
            }
            (Verdict::MayGo | Verdict::Free | Verdict::InService, None) => {}
        }
        Ok(())
    }

    /// Tells something of a node, if it is news.
    fn tell(
        &self,
        seen: &mut Seen,
        look: &Look,
        node: &NodeId,
        reason: Reason,
        what: String,
    ) -> bool {
        if !seen.told.is_news(node, reason, &what) {
            return false;
        }
        tracing::info!(%node, reason = reason.word(), what);
        self.events.tell(&look.reference(node), reason.is_bad(), reason.word(), what);
        true
    }
}

/// What is said of a node that its guard holds up.
fn waits(space: &str, guard: &str, why: &str) -> String {
    format!(
        "a drain of this node waits: {why}. To have it go all the same: kubectl -n {space} delete \
         pod {guard}"
    )
}

/// What is said of a node that should be held up, and is not.
fn unheld(why: &str) -> String {
    format!("a drain of this node should wait, but nothing holds it up: no guard runs here. {why}")
}

/// The first reasons, in words.
fn told(holds: &[Hold]) -> String {
    let first: Vec<String> = holds.iter().take(TOLD).map(ToString::to_string).collect();
    let more = match holds.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!("{}{more}", first.join("; "))
}

impl Look {
    /// Whether what it found still says that a node may go.
    fn is_fresh(&self, now: Instant) -> bool {
        now - self.begun < FRESH
    }

    /// The nodes that both Lockstep and Kubernetes have.
    fn both(&self) -> impl Iterator<Item = (&v1::NodeStatus, NodeId, &Known)> {
        self.nodes.iter().filter_map(|status| {
            let node = NodeId::new(&status.name)?;
            let known = self.known.get(&node)?;
            Some((status, node, known))
        })
    }

    /// The nodes of which daemons should know something else: that they are cordoned, or not any
    /// more.
    fn cordons(&self) -> Vec<(NodeId, bool)> {
        let news = self.both().filter(|(status, _, known)| status.cordoned != known.cordoned);
        news.map(|(_, node, known)| (node, !known.cordoned)).collect()
    }

    fn is_emptied(&self, status: &v1::NodeStatus) -> bool {
        let known = NodeId::new(&status.name).and_then(|node| self.known.get(&node));
        match known.map(|known| &known.wish) {
            Some(Wish::Evacuate) => true,
            Some(Wish::Stay) => false,
            Some(Wish::None | Wish::Unclear(_)) | None => status.evacuating,
        }
    }

    /// The nodes, for a decision.
    fn facts(&self, standing: &BTreeMap<&NodeId, &Found>) -> BTreeMap<NodeId, Node> {
        let node = |(status, name, known): (&v1::NodeStatus, NodeId, &Known)| {
            let guard = standing.get(&name).map(|guard| guard.counts_as()).unwrap_or_default();
            let node = Node {
                cordoned: known.cordoned,
                guard,
                silent: status.info.is_none(),
                emptied: self.is_emptied(status),
                snapshots: self.snapshots.get(&name).copied().unwrap_or_default(),
            };
            (name, node)
        };
        self.both().map(node).collect()
    }

    /// How events name a node.
    fn reference(&self, node: &NodeId) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_string()),
            uid: self.known.get(node).map(|known| known.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_reasons_are_told_of_many() {
        let copy = |of: &str| Hold::Copy { volume: of.to_owned(), idle: false };
        let holds: Vec<Hold> = ["a", "b", "c", "d", "e"].map(copy).into();
        let said = told(&holds);
        assert!(said.contains("volume c is") && said.ends_with("; and 2 more"), "{said}");
        assert!(!said.contains("volume d"));
        assert_eq!(told(&holds[..1]), "a copy of volume a is still there");
    }

    #[test]
    fn nobody_is_told_that_a_drain_waits_which_does_not() {
        let held = waits("lockstep", "guard-n1", "volume v has no other copy");
        assert!(held.starts_with("a drain of this node waits: volume v has no other copy."));
        assert!(held.ends_with("kubectl -n lockstep delete pod guard-n1"), "{held}");
        let open = unheld("volume v has no other copy");
        assert!(open.contains("nothing holds it up") && !open.contains("waits"), "{open}");
        assert!(open.ends_with("volume v has no other copy"), "{open}");
    }

    #[test]
    fn an_annotation_is_followed_before_daemons_say_so() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let known = |wish| Known { uid: "u".to_owned(), cordoned: true, wish };
        let status = |name: &str, evacuating| v1::NodeStatus {
            name: name.to_owned(),
            evacuating,
            info: Some(v1::Node::default()),
            ..Default::default()
        };
        let look = Look {
            begun: Instant::now(),
            known: BTreeMap::from([
                (node("a"), known(Wish::Evacuate)),
                (node("b"), known(Wish::Stay)),
                (node("c"), known(Wish::None)),
                (node("x"), known(Wish::None)),
            ]),
            nodes: vec![status("a", false), status("b", true), status("c", true)],
            volumes: Vec::new(),
            snapshots: BTreeMap::from([(node("c"), 3)]),
        };
        assert!(look.is_fresh(look.begun) && !look.is_fresh(look.begun + FRESH));
        let facts = look.facts(&BTreeMap::new());
        let emptied: Vec<bool> = facts.values().map(|node| node.emptied).collect();
        assert_eq!(emptied, [true, false, true], "and x is none of ours");
        assert_eq!(facts[&node("c")].snapshots, 3);
        assert!(facts.values().all(|node| node.cordoned && !node.silent));
    }

    #[test]
    fn daemons_are_told_only_what_is_news_of_cordons() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let known = |cordoned| Known { uid: "u".to_owned(), cordoned, wish: Wish::None };
        let status = |name: &str, cordoned| v1::NodeStatus {
            name: name.to_owned(),
            cordoned,
            ..Default::default()
        };
        let look = Look {
            begun: Instant::now(),
            known: ["a", "b", "c", "d", "x"].map(|n| (node(n), known(n < "c"))).into(),
            nodes: [("a", true), ("b", false), ("c", true), ("d", false), ("y", true)]
                .map(|(name, cordoned)| status(name, cordoned))
                .into(),
            volumes: Vec::new(),
            snapshots: BTreeMap::new(),
        };
        assert_eq!(look.cordons(), [(node("b"), false), (node("c"), true)]);
    }
}
