//! Why the copies of a volume are where they are, where pods may run, and what happens next.

use std::collections::{BTreeMap, BTreeSet};

use lockstep_core::cluster::locality::PlacementId;
use lockstep_core::cluster::placement::{Candidate, Misfit, Want, fits};
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use tonic::Status;

use super::catalog::VolumeObject;
use super::survey::{Survey, candidates, evacuated, room, zone_of};
use super::{Admin, names, refuse, view};

#[cfg(test)]
mod tests;

impl Admin {
    /// Explains a volume.
    pub(super) async fn explain_volume(
        &self,
        name: &str,
    ) -> Result<v1::ExplainVolumeResponse, Status> {
        let name = names::volume_name(name)?;
        let found = self.inner.catalog.volume(name).await?;
        let object = found.ok_or_else(|| refuse::no_volume(name))?.value;
        let record = self.inner.catalog.record(object.uid).await?.map(|stored| stored.value);
        let mut survey = self.survey_all().await?;
        self.mark_labels(&mut survey).await?;
        let grace_ms = self.inner.rebuild_after_ms;
        let status = view::volume(&object, record.as_ref(), &survey, grace_ms);
        Ok(Scene { object: &object, status: &status, survey: &survey }.explained())
    }
}

/// What is known of a volume and of the nodes.
#[derive(Clone, Copy, Debug)]
struct Scene<'a> {
    object: &'a VolumeObject,
    status: &'a v1::VolumeStatus,
    survey: &'a Survey,
}

impl Scene<'_> {
    fn explained(&self) -> v1::ExplainVolumeResponse {
        let (next, next_ms) = self.next();
        v1::ExplainVolumeResponse {
            volume: Some(self.status.clone()),
            nodes: self.nodes(),
            placement: self.placement(),
            label: self.label().unwrap_or_default(),
            next,
            next_ms,
        }
    }

    fn copy_on(&self, node: &str) -> Option<&v1::VolumeReplica> {
        self.status.replicas.iter().find(|replica| replica.node == node)
    }

    fn label(&self) -> Option<String> {
        self.object.placement_id.as_ref().map(PlacementId::label)
    }

    fn is_preferred(&self, node: &str) -> bool {
        self.object.preferred.iter().any(|preferred| preferred.as_str() == node)
    }

    fn serves(&self, node: &str) -> bool {
        self.status.primary_node.as_deref() == Some(node)
    }

    /// The label over which copies are spread: its values on nodes that could have a copy or have
    /// one, with whether they have.
    fn zones(&self, nodes: &[v1::ExplainedNode]) -> BTreeMap<String, bool> {
        let mut zones = BTreeMap::new();
        for node in nodes.iter().filter(|node| !node.zone.is_empty()) {
            if node.has_copy || node.fits {
                *zones.entry(node.zone.clone()).or_default() |= node.has_copy;
            }
        }
        zones
    }

    fn nodes(&self) -> Vec<v1::ExplainedNode> {
        let pool = &self.object.pool;
        let all: Vec<Candidate> = candidates(self.survey, pool, &self.object.spread);
        let node = |replica: &v1::VolumeReplica| NodeId::new(&replica.node);
        let want = Want {
            bytes: self.status.size_bytes,
            copies: 1,
            pool: pool.clone(),
            beside: self.status.replicas.iter().filter_map(node).collect(),
            exclude: evacuated(self.survey),
            ..Want::default()
        };
        let misfits: BTreeMap<String, Option<Misfit>> =
            fits(&want, &all).into_iter().map(|(node, why)| (node.to_string(), why)).collect();
        let label = self.label();
        let explained = |(name, status): (&String, &v1::NodeStatus)| {
            let copy = self.copy_on(name);
            let info = status.info.as_ref().filter(|info| info.ready);
            let found = info.and_then(|info| info.pools.iter().find(|p| p.name == *pool));
            let misfit = misfits.get(name).cloned().flatten();
            let room_bytes = found.map_or(0, room);
            v1::ExplainedNode {
                node: name.clone(),
                zone: zone_of(status, &self.object.spread).unwrap_or_default().to_owned(),
                has_copy: copy.is_some(),
                state: copy.map_or(0, |copy| copy.state),
                room_bytes,
                fits: copy.is_none() && misfit.is_none() && misfits.contains_key(name),
                why: self.why(name, copy, misfit.as_ref()),
                labelled: label.as_ref().is_some_and(|key| status.labels.contains_key(key)),
                preferred: self.is_preferred(name),
                serves: self.serves(name),
            }
        };
        self.survey.iter().map(explained).collect()
    }

    /// Why a node has a copy, could get one, or could not.
    fn why(&self, node: &str, copy: Option<&v1::VolumeReplica>, misfit: Option<&Misfit>) -> String {
        let mut parts = Vec::new();
        match copy {
            Some(copy) => parts.push(state_of(copy)),
            None => parts.push(match misfit {
                None if self.survey.get(node).is_some_and(|status| status.cordoned) => {
                    "could get a copy if no other node can: it is cordoned".to_owned()
                }
                None => "could get a copy".to_owned(),
                Some(Misfit::Excluded) => "gets none: it is being emptied".to_owned(),
                Some(other) => format!("gets none: {other}"),
            }),
        }
        let named = self.object.asked_nodes.iter().any(|asked| asked.as_str() == node);
        if named {
            parts.push("its owner named the node".to_owned());
        }
        if self.is_preferred(node) {
            parts.push("its owner preferred the node".to_owned());
        }
        if self.serves(node) {
            parts.push(match copy {
                Some(_) => "serves the volume".to_owned(),
                None => "serves the volume, over the network".to_owned(),
            });
        }
        parts.join("; ")
    }

    /// How the copies were placed.
    fn placement(&self) -> Vec<String> {
        let nodes = self.nodes();
        let wanted = match self.status.repl {
            1 => format!("1 copy is wanted, in pool {}", self.object.pool),
            n => format!("{n} copies are wanted, on as many nodes, in pool {}", self.object.pool),
        };
        let mut all = vec![wanted, self.spread(&nodes)];
        let preferred: Vec<&str> = self.object.preferred.iter().map(NodeId::as_str).collect();
        if !preferred.is_empty() {
            let first = preferred.iter().find(|node| self.copy_on(node).is_some());
            all.push(match first {
                Some(node) => format!(
                    "of the nodes that its owner preferred ({}), {node} has a copy",
                    preferred.join(", ")
                ),
                None => format!(
                    "none of the nodes that its owner preferred ({}) has a copy: there was no \
                     room, or it has moved since",
                    preferred.join(", ")
                ),
            });
        }
        all
    }

    fn spread(&self, nodes: &[v1::ExplainedNode]) -> String {
        let key = &self.object.spread;
        let zones = self.zones(nodes);
        let used: Vec<&str> =
            zones.iter().filter(|(_, used)| **used).map(|(zone, _)| zone.as_str()).collect();
        let free: Vec<&str> =
            zones.iter().filter(|(_, used)| !**used).map(|(zone, _)| zone.as_str()).collect();
        let copies = nodes.iter().filter(|node| node.has_copy).count();
        if zones.is_empty() {
            return format!("no node here has the label {key}: nodes are alike");
        }
        let spread = format!("copies are spread over the label {key}, now on {}", used.join(", "));
        if used.len() >= copies {
            spread
        } else if free.is_empty() {
            format!("{spread}; no node elsewhere could have one")
        } else {
            format!("{spread}; new ones go to {} first", free.join(", "))
        }
    }

    /// What happens next with its copies, and in how many milliseconds if that is known.
    fn next(&self) -> (String, Option<u64>) {
        let building = self.status.replicas.iter().find_map(|r| Some((r, r.resync.as_ref()?)));
        if let Some((copy, resync)) = building {
            let what = format!(
                "the copy on {} gets what it lacks: {} of {} bytes are compared",
                copy.node, resync.done_bytes, resync.total_bytes
            );
            return (what, resync.eta_ms);
        }
        let by_itself: BTreeSet<&str> =
            self.status.findings.iter().map(|f| f.by_itself.as_str()).collect();
        let by_itself: Vec<&str> = by_itself.into_iter().filter(|text| !text.is_empty()).collect();
        let Some(node) = self.status.primary_node.as_deref() else {
            let name = &self.status.name;
            return match self.status.findings.is_empty() {
                true => ("nothing: all copies are there and in sync".to_owned(), None),
                false => (
                    format!(
                        "nothing while it is detached; copies are built, moved and removed while \
                         it is attached: lockstep attach {name}"
                    ),
                    None,
                ),
            };
        };
        let info = self.survey.get(node).and_then(|status| status.info.as_ref());
        let primary =
            info.and_then(|info| info.primaries.iter().find(|p| p.uid == self.status.uid));
        match primary.map(|primary| (primary.copies_reason.as_str(), primary.copies_wait_ms)) {
            Some((reason, wait_ms)) if !reason.is_empty() => (reason.to_owned(), wait_ms),
            _ if !by_itself.is_empty() => (by_itself.join("; "), None),
            _ if self.status.findings.is_empty() => {
                ("nothing: all copies are there and in sync".to_owned(), None)
            }
            _ => (format!("nothing is known: {node}, which serves it, does not tell"), None),
        }
    }
}

fn state_of(copy: &v1::VolumeReplica) -> String {
    let state = match v1::ReplicaState::try_from(copy.state) {
        Ok(v1::ReplicaState::New) => "has a copy that is being built",
        Ok(v1::ReplicaState::InSync) => "has a copy in sync",
        Ok(v1::ReplicaState::Out) => "has a copy that missed something",
        Ok(v1::ReplicaState::Leaving) => "has a copy that is to be removed",
        Ok(v1::ReplicaState::Unspecified) | Err(_) => "has a copy",
    };
    let reached = if copy.connected { "" } else { ", which is not reached" };
    format!("{state}{reached}")
}
