//! Moves pods off nodes that are lost: suspected, fenced, label off, pod deleted, in this order.
//!
//! Nothing is remembered that counts. A controller that begins in the midst of it sees the same
//! nodes silent, finds the volumes fenced, and goes on.

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
use lockstep_core::cluster::failover::{Patience, Verdict, Witness, judge};
use lockstep_core::id::NodeId;
use moving::Case;
use silence::Silence;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a node has for its answer. Many of these make it suspect, not one.
const ANSWER: Duration = Duration::from_millis(400);
/// Pause before a node's pods are looked at again: when some were deleted, since their successors
/// may have come to the same node; when some could not be; and when it has been so for long.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(2);
const RARELY: Duration = Duration::from_secs(15);
const LONG: Duration = Duration::from_secs(60);

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
}

/// A node that is suspected, and what is done about it.
struct Suspect {
    case: Arc<Case>,
    running: Option<JoinHandle<bool>>,
    again: Instant,
}

type Suspects = BTreeMap<NodeId, Suspect>;

impl Failover {
    pub(crate) fn new(
        daemons: Arc<Daemons>,
        keeper: Keeper,
        nodes: OnNodes,
        pods: Pods,
        events: Events,
        leader: Leader,
    ) -> Self {
        Self { daemons, keeper, nodes, pods, events, leader }
    }

    /// Watches nodes for ever, while it is this controller that acts.
    pub(crate) async fn keep(mut self, how: Watching) {
        let patience = Patience { silent_ms: how.silent_ms, restart_ms: how.restart_ms };
        let every = Duration::from_millis(how.watch_every_ms);
        let (mut silence, mut suspects) = (Silence::default(), Suspects::new());
        let (mut turn, mut deaf) = (0, false);
        loop {
            if !self.leader.acts() {
                (silence, suspects) = (Silence::default(), Suspects::new());
                self.leader.wait().await;
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
            self.act(
                &silence.witnesses(self.nodes.words(), Instant::now()),
                patience,
                &mut suspects,
            )
            .await;
            tokio::time::sleep_until(begun + every).await;
        }
    }

    /// Begins what is to be done about nodes that are suspected, and ends what is not.
    async fn act(
        &self,
        witnesses: &BTreeMap<NodeId, Witness>,
        patience: Patience,
        suspects: &mut Suspects,
    ) {
        let verdicts = judge(witnesses, patience);
        suspects.retain(|node, suspect| {
            let stays = matches!(verdicts.get(node), Some(Verdict::Suspect(_)));
            if !stays && suspect.running.is_none() {
                tracing::info!(%node, since_ms = suspect.case.since_ms(), "not suspected any more");
            }
            stays || suspect.running.is_some()
        });
        for (node, verdict) in verdicts {
            let Verdict::Suspect(reason) = verdict else { continue };
            let silent_ms = witnesses.get(&node).and_then(|witness| witness.silent_ms);
            let suspect = suspects.entry(node.clone()).or_insert_with(|| {
                tracing::info!(%node, silent_ms, %reason, "suspected");
                let case = Arc::new(Case::new(node, reason, silent_ms.is_some()));
                Suspect { case, running: None, again: Instant::now() }
            });
            suspect.go_on(self).await;
        }
    }
}

impl Suspect {
    /// Looks at the pods of the node once more when it is time to.
    async fn go_on(&mut self, failover: &Failover) {
        if let Some(running) = self.running.take_if(|running| running.is_finished()) {
            let moved = running.await.unwrap_or_default();
            self.again = Instant::now()
                + match moved {
                    true => SOON,
                    false if self.case.since.elapsed() > LONG => RARELY,
                    false => LATER,
                };
        }
        if self.running.is_none() && Instant::now() >= self.again {
            let (failover, case) = (failover.clone(), Arc::clone(&self.case));
            self.running = Some(tokio::spawn(async move { failover.empty(case).await }));
        }
    }
}
