//! Puts guards where they are missing.

use super::failed::{Failed, unguarded};
use super::told::Reason;
use super::{Drains, Look, Seen};
use crate::kubernetes::guards::{Budget, Found, Guards};
use crate::kubernetes::nodes::Known;
use lockstep_core::cluster::drain::{Guard, Node, Verdict};
use lockstep_core::id::NodeId;
use std::collections::BTreeMap;
use tokio::time::Instant;
use tonic::Status;

/// What there is to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan<'a> {
    /// Guards that hold up nobody.
    takes: Vec<&'a Found>,
    /// Where guards are missing, and whether they come late.
    puts: Vec<(&'a NodeId, bool)>,
    /// Those of them whose guards have failed.
    anew: Vec<&'a NodeId>,
    /// Where they have failed again, so that they are not put now, and why.
    fails: Vec<(&'a NodeId, &'a str)>,
}

/// What is to be done after these verdicts.
pub(super) fn plan<'a>(
    nodes: &'a BTreeMap<NodeId, Node>,
    verdicts: &BTreeMap<NodeId, Verdict>,
    found: &'a [Found],
    failed: &Failed,
    now: Instant,
) -> Plan<'a> {
    let mut plan = Plan::default();
    let lacks = |node: &Node, verdict: &Verdict| match verdict {
        Verdict::InService => node.guard == Guard::None,
        Verdict::Held(_) => node.guard == Guard::None && !node.silent,
        Verdict::Free | Verdict::MayGo => false,
    };
    for (name, node) in nodes {
        if !verdicts.get(name).is_some_and(|verdict| lacks(node, verdict)) {
            continue;
        }
        let ended = found.iter().filter(|guard| guard.node == *name);
        let ended = ended.filter_map(|guard| guard.failed.as_deref()).next();
        if failed.is_due(name, now) {
            plan.puts.push((name, node.cordoned));
            plan.anew.extend(ended.map(|_| name));
        } else {
            plan.fails.extend(ended.map(|why| (name, why)));
        }
    }
    let stays = |guard: &Found| {
        guard.failed.is_some() && plan.fails.iter().any(|(node, _)| **node == guard.node)
    };
    let is_useless = |guard: &&Found| guard.stale || !nodes.contains_key(&guard.node);
    plan.takes = found.iter().filter(is_useless).filter(|guard| !stays(guard)).collect();
    plan
}

/// The guards whose nodes are cordoned by now; all, if nobody can say.
fn overtaken<'a>(
    stand: &'a [Found],
    known: Option<&BTreeMap<NodeId, Known>>,
) -> impl Iterator<Item = &'a Found> {
    let is_cordoned = move |guard: &&Found| {
        known.is_none_or(|known| known.get(&guard.node).is_some_and(|node| node.cordoned))
    };
    stand.iter().filter(is_cordoned)
}

impl Drains {
    /// Does that. One node that gives trouble does not keep others from being drained.
    pub(super) async fn follow(
        &self,
        plan: Plan<'_>,
        seen: &mut Seen,
        look: &Look,
        guards: &Guards,
        budget: &Budget,
    ) -> Result<(), Status> {
        let (mut first, mut stand) = (Ok(()), Vec::new());
        for (node, why) in plan.fails {
            self.tell(seen, look, node, Reason::NoGuard, unguarded(why));
        }
        for guard in plan.takes {
            first = first.and(guards.take(guard).await.map(drop));
        }
        for node in plan.anew {
            seen.failed.note(node, Instant::now());
        }
        for (node, late) in plan.puts {
            // Whoever is slow must not say what another controller knows better.
            if !self.leader.acts() {
                break;
            }
            tracing::info!(%node, late, "a guard is put");
            match guards.put(budget, node, late).await {
                Ok(guard) => stand.extend(guard.filter(|_| !late)),
                Err(status) => {
                    seen.failed.note(node, Instant::now());
                    self.tell(seen, look, node, Reason::NoGuard, unguarded(status.message()));
                }
            }
        }
        if stand.is_empty() { first } else { first.and(self.check(stand, guards, budget).await) }
    }

    /// Sees that guards that say that they stand came before their nodes were cordoned: that was
    /// looked at before they were put, and a drain may have ended in between.
    async fn check(
        &self,
        stand: Vec<Found>,
        guards: &Guards,
        budget: &Budget,
    ) -> Result<(), Status> {
        let known = self.nodes.known().await;
        let mut first = Ok(());
        for guard in overtaken(&stand, known.as_ref().ok()) {
            first = first.and(guards.take(guard).await.map(drop));
            if known.is_ok() && self.leader.acts() {
                first = first.and(guards.put(budget, &guard.node, true).await.map(drop));
            }
        }
        known.and(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::nodes::Wish;
    use std::time::Duration;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn failing(on: &str) -> Found {
        let mut guard = Found::on(&node(on));
        guard.stale = true;
        guard.failed = Some("OutOfpods: no room".to_owned());
        guard
    }

    #[test]
    fn a_guard_that_the_kubelet_refuses_is_not_put_again_and_again() {
        let nodes = BTreeMap::from([(node("a"), Node::default()), (node("b"), Node::default())]);
        let verdicts = nodes.keys().map(|name| (name.clone(), Verdict::InService)).collect();
        let (mut failed, now) = (Failed::default(), Instant::now());
        let found = [failing("a")];
        let first = plan(&nodes, &verdicts, &found, &failed, now);
        assert_eq!(first.puts, [(&node("a"), false), (&node("b"), false)]);
        assert_eq!((first.takes, first.anew), (vec![&found[0]], vec![&node("a")]));
        assert!(first.fails.is_empty());

        failed.note(&node("a"), now);
        let again = plan(&nodes, &verdicts, &found, &failed, now + Duration::from_secs(5));
        assert_eq!(again.puts, [(&node("b"), false)], "others are not concerned");
        assert_eq!(again.fails, [(&node("a"), "OutOfpods: no room")]);
        assert!(again.takes.is_empty() && again.anew.is_empty(), "it shows why: {again:?}");
        let refused = plan(&nodes, &verdicts, &[], &failed, now + Duration::from_secs(5));
        assert_eq!(refused.puts, [(&node("b"), false)], "the API server refused it");

        let later = plan(&nodes, &verdicts, &found, &failed, now + Duration::from_secs(60));
        assert_eq!((later.puts.len(), later.anew), (2, vec![&node("a")]));
    }

    #[test]
    fn a_guard_does_not_stand_whose_node_was_cordoned_before_it_came() {
        let known = |cordoned| Known { uid: "u".to_owned(), cordoned, wish: Wish::None };
        let put = ["a", "b", "gone"].map(|name| Found::on(&node(name)));
        let now = BTreeMap::from([(node("a"), known(false)), (node("b"), known(true))]);
        assert_eq!(overtaken(&put, Some(&now)).collect::<Vec<_>>(), [&put[1]]);
        assert_eq!(overtaken(&put, None).count(), 3, "who knows");
    }

    #[test]
    fn guards_come_where_they_are_missed_only() {
        let cordoned = Node { cordoned: true, ..Node::default() };
        let silent = Node { silent: true, ..cordoned };
        let held = || Verdict::Held(Vec::new());
        let all = [
            ("a", cordoned, held()),
            ("b", silent, held()),
            ("c", cordoned, Verdict::MayGo),
            ("d", Node::default(), Verdict::Free),
            ("e", Node { guard: Guard::Stands, ..Node::default() }, Verdict::InService),
        ];
        let nodes = all.iter().map(|(name, facts, _)| (node(name), *facts)).collect();
        let verdicts = all.iter().map(|(name, _, said)| (node(name), said.clone())).collect();
        let found = [Found::on(&node("e")), failing("d"), Found::on(&node("gone"))];
        let seen = plan(&nodes, &verdicts, &found, &Failed::default(), Instant::now());
        assert_eq!(seen.puts, [(&node("a"), true)]);
        assert_eq!(seen.takes, [&found[1], &found[2]]);
    }
}
