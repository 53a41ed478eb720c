//! Moves pods off nodes that are lost: suspected, fenced, label off, pod deleted, in this order.
//!
//! Nothing is remembered that counts. A controller that begins in the midst of it sees the same
//! nodes silent, finds the volumes fenced, and goes on.

mod anew;
mod follow;
mod mends;
mod moving;
mod silence;
#[cfg(test)]
mod tests;

use crate::daemon::Daemons;
use crate::keeper::Keeper;
use crate::kubernetes::events::Events;
use crate::kubernetes::nodes::OnNodes;
use crate::kubernetes::pods::Pods;
use crate::leader::Leader;
use follow::Follows;
use lockstep_core::cluster::failover::{Patience, Reason, Verdict, Witness, judge};
use lockstep_core::id::NodeId;
use mends::Mends;
use moving::Case;
use silence::Silence;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a node has for its answer. Many of these make it suspect, not one.
const ANSWER: Duration = Duration::from_millis(400);
/// Pause before a node's pods are looked at again: when some were deleted, since their successors
/// may have come to the same node; when some could not be, or only those that came back; and when
/// it has been so for long.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(2);
const RARELY: Duration = Duration::from_secs(15);
const LONG: Duration = Duration::from_secs(60);
/// A node that is suspected again within this time is in the same trouble: nothing is told twice.
/// If it was well for `LONG`, its pods are looked at as often as those of any other.
const FORGET: Duration = Duration::from_secs(600);

/// How nodes are watched.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Watching {
    /// How often the controller asks which nodes answer, in milliseconds.
    #[arg(long, env = "WATCH_EVERY_MS", default_value_t = 500,
        value_parser = clap::value_parser!(u64).range(50..=60_000))]
    watch_every_ms: u64,

    /// A node that is silent for so long, in milliseconds, is suspected: its volumes are taken from
    /// it if their other copies have not heard it for 2 s either.
    #[arg(long, env = "SILENT_MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    silent_ms: u64,

    /// The same for a node whose machine answers that no daemon runs there, as during an upgrade.
    #[arg(long, env = "RESTART_MS", default_value_t = 30_000,
        value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    restart_ms: u64,
}

/// Moves pods.
#[derive(Clone)]
pub(crate) struct Failover {
    daemons: Arc<Daemons>,
    keeper: Keeper,
    nodes: OnNodes,
    pods: Pods,
    events: Events,
    leader: Leader,
    mends: Arc<Mends>,
    follows: Arc<Follows>,
}

/// What is under way.
#[derive(Default)]
struct Watch {
    suspects: BTreeMap<NodeId, Suspect>,
    /// The last cases of nodes that are not suspected any more, and since when.
    past: BTreeMap<NodeId, (Arc<Case>, Instant)>,
    /// Nodes that were suspected, so that volumes may have been taken from them, and have not been
    /// well since.
    away: BTreeSet<NodeId>,
    is_braked: bool,
}

/// A node that is suspected, and what is done about it.
struct Suspect {
    case: Arc<Case>,
    /// The look under way, and the case that it is about: there may be a new one by now.
    running: Option<(Arc<Case>, JoinHandle<bool>)>,
    again: Instant,
}

impl Failover {
    pub(crate) fn new(
        daemons: Arc<Daemons>,
        keeper: Keeper,
        nodes: OnNodes,
        pods: Pods,
        events: Events,
        leader: Leader,
    ) -> Self {
        let (mends, follows) = (Arc::default(), Arc::default());
        Self { daemons, keeper, nodes, pods, events, leader, mends, follows }
    }

    /// Watches nodes for ever, while it is this controller that acts.
    pub(crate) async fn keep(mut self, how: Watching) {
        let patience = Patience { silent_ms: how.silent_ms, restart_ms: how.restart_ms };
        let every = Duration::from_millis(how.watch_every_ms);
        let (mut silence, mut watch) = (Silence::default(), Watch::default());
        let (mut turn, mut deaf, mut is_first) = (0, false, true);
        let mut looking_back: Option<JoinHandle<()>> = None;
        loop {
            if !self.leader.acts() {
                (silence, watch) = (Silence::default(), Watch::default());
                self.leader.wait().await;
                is_first = true;
            }
            if std::mem::take(&mut is_first) {
                let before = looking_back.replace(tokio::spawn(self.clone().look_back()));
                // It may not have noticed that there was another controller in between.
                before.inspect(JoinHandle::abort);
            }
            let begun = Instant::now();
            match self.daemons.who_answers(turn, ANSWER).await {
                Ok(answers) => {
                    silence.note(&answers, begun);
                    deaf = false;
                }
                Err(status) if !deaf => {
                    tracing::warn!(why = status.message(), "no daemon can be asked for nodes");
                    deaf = true;
                }
                Err(_) => {}
            }
            turn = turn.wrapping_add(1);
            let witnesses = silence.witnesses(self.nodes.words(), Instant::now());
            self.act(&witnesses, patience, &mut watch).await;
            tokio::time::sleep_until(begun + every).await;
        }
    }

    /// Begins what is to be done about nodes that are suspected, and ends what is not.
    async fn act(
        &self,
        witnesses: &BTreeMap<NodeId, Witness>,
        patience: Patience,
        watch: &mut Watch,
    ) {
        let verdicts = judge(witnesses, patience);
        for node in watch.returned(&verdicts, witnesses) {
            self.mend(node);
        }
        watch.note_brake(&verdicts);
        watch.clear(&verdicts, Instant::now());
        for (node, verdict) in verdicts {
            let Verdict::Suspect(reason) = verdict else { continue };
            let silent_ms = witnesses.get(&node).and_then(|witness| witness.silent_ms);
            watch.suspect(node, reason, silent_ms).go_on(self).await;
        }
    }
}

impl Watch {
    /// The nodes that answer and are not suspected any more. One that answered all the time may
    /// have been cut off from the copies only.
    fn returned(
        &mut self,
        verdicts: &BTreeMap<NodeId, Verdict>,
        witnesses: &BTreeMap<NodeId, Witness>,
    ) -> Vec<NodeId> {
        let answers = |node: &NodeId| {
            witnesses.get(node).is_some_and(|w| w.silent_ms.is_none() && !w.refused)
        };
        let is_well = |node: &NodeId| verdicts.get(node) == Some(&Verdict::Well);
        self.away.extract_if(.., |node| is_well(node) && answers(node)).collect()
    }

    /// Ends what is done about nodes that are not suspected any more, and forgets it by and by.
    fn clear(&mut self, verdicts: &BTreeMap<NodeId, Verdict>, now: Instant) {
        let Self { suspects, past, .. } = self;
        past.retain(|_, (case, at)| {
            let well = now.saturating_duration_since(*at);
            if well > LONG {
                case.was_well();
            }
            well < FORGET
        });
        let is_over = |node: &NodeId, suspect: &mut Suspect| {
            let stays = matches!(verdicts.get(node), Some(Verdict::Suspect(_)));
            !stays && !suspect.is_running()
        };
        for (node, suspect) in suspects.extract_if(.., is_over) {
            tracing::info!(%node, since_ms = suspect.case.since_ms(), "not suspected any more");
            past.insert(node, (suspect.case, now));
        }
    }

    /// Says once that too many nodes are silent.
    fn note_brake(&mut self, verdicts: &BTreeMap<NodeId, Verdict>) {
        let braked = verdicts.values().find_map(|verdict| match verdict {
            Verdict::Braked { silent, nodes } => Some((silent, nodes)),
            Verdict::Well | Verdict::Suspect(_) => None,
        });
        match braked {
            Some((silent, nodes)) if !self.is_braked => tracing::warn!(
                silent,
                nodes,
                "so many nodes are silent that the network is more likely to be broken: only what \
                 Kubernetes says of them counts now"
            ),
            None if self.is_braked => tracing::info!("silence counts again"),
            _ => {}
        }
        self.is_braked = braked.is_some();
    }

    /// What is done about a node. If what is known of it has changed, it is looked at now: what was
    /// in vain may not be any more.
    fn suspect(&mut self, node: NodeId, reason: Reason, silent_ms: Option<u64>) -> &mut Suspect {
        self.away.insert(node.clone());
        let is_silent = silent_ms.is_some();
        let begin = |case: Case| {
            tracing::info!(node = %case.node, silent_ms, %reason, "suspected");
            Arc::new(case)
        };
        match self.suspects.entry(node) {
            Entry::Vacant(new) => {
                let case = match self.past.remove(new.key()) {
                    Some((past, _)) => past.again(reason, is_silent),
                    None => Case::new(new.key().clone(), reason, is_silent),
                };
                new.insert(Suspect { case: begin(case), running: None, again: Instant::now() })
            }
            Entry::Occupied(there) => {
                let suspect = there.into_mut();
                if !suspect.case.is_of(reason, is_silent) {
                    suspect.case = begin(suspect.case.again(reason, is_silent));
                    suspect.again = Instant::now();
                }
                suspect
            }
        }
    }
}

impl Suspect {
    /// Looks at the pods of the node once more when it is time to.
    async fn go_on(&mut self, failover: &Failover) {
        if let Some((case, running)) = self.running.take_if(|(_, running)| running.is_finished()) {
            let moved = running.await.unwrap_or_default();
            let pause = match moved {
                _ if !Arc::ptr_eq(&case, &self.case) => Duration::ZERO,
                true => SOON,
                false if self.case.lasts(Instant::now()) > LONG => RARELY,
                false => LATER,
            };
            self.again = Instant::now() + pause;
        }
        if self.running.is_none() && Instant::now() >= self.again {
            let (failover, case) = (failover.clone(), Arc::clone(&self.case));
            let look = tokio::spawn(async move { failover.empty(case).await });
            self.running = Some((Arc::clone(&self.case), look));
        }
    }

    fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|(_, running)| !running.is_finished())
    }
}
