//! A node that was suspected and answers again, while its pods had volumes taken from them: what
//! they write there fails for good. They are deleted in good order, so that they begin anew.

use super::mends::{Pace, has_lost, look_back};
use super::{Failover, LATER, LONG};
use crate::controller::READERS;
use crate::kubernetes::pods::Found;
use lockstep_core::cluster::failover::{Used, begins_anew};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use std::collections::BTreeMap;
use tokio::time::Instant;
use tonic::Status;

/// What is known of a volume of a pod.
type Known = BTreeMap<String, Option<v1::VolumeStatus>>;

impl Failover {
    /// Has the controllers before this one finish, and overlooks no volume in the long run: looks
    /// at nodes whose daemons say that one was taken from them.
    pub(super) async fn look_back(self) {
        let pace = Pace { soon: LATER, rarely: LONG };
        let ask = || self.daemons.nodes();
        look_back(pace, || self.leader.acts(), ask, |node| self.mend(node)).await;
    }

    /// Has the pods of a node looked at that answers again, for a while.
    pub(super) fn mend(&self, node: NodeId) {
        if self.mends.begin(&node, Instant::now()) {
            tokio::spawn(self.clone().keep_mending(node));
        }
    }

    async fn keep_mending(self, node: NodeId) {
        while self.leader.acts() {
            let outcome = self.begin_anew(&node).await;
            if let Err(status) = &outcome {
                // The API server may have been on the same node.
                tracing::debug!(%node, why = status.message(), "what it lost is not known yet");
            }
            if !self.mends.looked(&node, outcome.is_ok(), Instant::now()) {
                return;
            }
            tokio::time::sleep(LATER).await;
        }
        self.mends.end(&node);
    }

    async fn begin_anew(&self, node: &NodeId) -> Result<(), Status> {
        let mut users = self.users(node).await?;
        users.retain(|user| !user.pod.is_ending() && !user.pod.pending);
        let there = users.iter().map(|user| user.pod.uid.as_str()).collect();
        self.mends.keep_told(node, &there);
        if users.is_empty() {
            return Ok(());
        }
        let nodes = self.daemons.nodes().await?;
        let Some(status) = nodes.iter().find(|it| it.live && it.name == node.as_str()) else {
            return Err(Status::unavailable("its daemon does not answer"));
        };
        let mut known = Known::new();
        for user in &users {
            for claim in &user.claims {
                let Used::Ours(volume) = &claim.used else { continue };
                if !known.contains_key(volume) {
                    known.insert(volume.clone(), self.daemons.volume(volume).await?);
                }
            }
        }
        let lost = |volume: &&String| {
            let volume = known.get(*volume).and_then(Option::as_ref);
            volume.is_some_and(|volume| is_lost(volume, status))
        };
        for user in users {
            let ours = user.claims.iter().filter_map(|claim| match &claim.used {
                Used::Ours(volume) => Some(volume),
                Used::Shared(_) | Used::Foreign(_) | Used::Unknown(_) => None,
            });
            let Some(volume) = ours.into_iter().find(lost) else { continue };
            self.begins(node, &user.pod, volume, begins_anew(&user.facts)).await?;
        }
        Ok(())
    }

    /// Deletes a pod that has lost a volume, if somebody makes it again, or tells people to.
    async fn begins(
        &self,
        node: &NodeId,
        pod: &Found,
        volume: &str,
        is_deleted: bool,
    ) -> Result<(), Status> {
        let what = if is_deleted { "deleted" } else { "delete it" };
        let note = format!(
            "volume {volume} was taken from node {node} while that did not answer, and all that \
             the pod writes to it there fails: {what}, so that it begins anew"
        );
        if is_deleted && !self.pods.delete(pod, None).await? {
            return Ok(());
        }
        if self.mends.is_news(node, &pod.uid) {
            tracing::info!(%node, namespace = pod.namespace, pod = pod.name, volume, what, "lost");
            self.events.tell(&pod.reference(), true, "VolumeTaken", note);
        }
        Ok(())
    }
}

/// Whether what a pod of a node uses by this volume was taken from the node. The record alone does
/// not tell if nobody has it now: the node's next daemon may be about to serve it.
fn is_lost(volume: &v1::VolumeStatus, node: &v1::NodeStatus) -> bool {
    if volume.annotations.contains_key(READERS) {
        // What they use is a view, which is never taken.
        return false;
    }
    let elsewhere = volume.primary_node.as_ref().is_some_and(|primary| *primary != node.name);
    elsewhere || has_lost(node, Some(&volume.uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(primaries: &[(&str, v1::AttachPhase)]) -> v1::NodeStatus {
        let primary = |(uid, phase): &(&str, v1::AttachPhase)| v1::LocalPrimary {
            uid: (*uid).to_owned(),
            phase: i32::from(*phase),
            ..Default::default()
        };
        let primaries = primaries.iter().map(primary).collect();
        let info = Some(v1::Node { primaries, ..Default::default() });
        v1::NodeStatus { name: "a".to_owned(), live: true, info, ..Default::default() }
    }

    fn volume(primary: Option<&str>) -> v1::VolumeStatus {
        let primary_node = primary.map(str::to_owned);
        v1::VolumeStatus { uid: "u".to_owned(), primary_node, ..Default::default() }
    }

    #[test]
    fn a_volume_is_lost_that_another_node_has_or_the_nodes_own_daemon_says_so() {
        let (well, none) = (node(&[("u", v1::AttachPhase::Active)]), node(&[]));
        assert!(!is_lost(&volume(Some("a")), &well));
        assert!(is_lost(&volume(Some("b")), &well), "it may not know yet");
        assert!(!is_lost(&volume(None), &none), "its next daemon may be about to serve it");
        let fenced = node(&[("other", v1::AttachPhase::Active), ("u", v1::AttachPhase::Fenced)]);
        assert!(is_lost(&volume(None), &fenced));
        assert!(has_lost(&fenced, None) && !has_lost(&fenced, Some("other")));
        let gone = v1::NodeStatus { live: false, ..fenced };
        assert!(!has_lost(&gone, None));
        let mut shown = volume(Some("b"));
        shown.annotations.insert(READERS.to_owned(), "many".to_owned());
        assert!(!is_lost(&shown, &well), "its readers have views");
    }
}
