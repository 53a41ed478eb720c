//! What would become of volumes if a node never came back.

use std::collections::BTreeMap;

use futures::future::join_all;
use lockstep_core::cluster::outage::{Outage, without};
use lockstep_core::cluster::placement::Candidate;
use lockstep_core::cluster::replacement::{NodeState, Verdict, View};
use lockstep_core::id::{NodeId, Tick};
use lockstep_core::record::Record;
use lockstep_proto::v1;
use tonic::Status;

use super::catalog::VolumeObject;
use super::survey::{Survey, candidates, copysets};
use super::{Admin, names};

#[cfg(test)]
mod tests;

impl Admin {
    /// Looks at every volume as if the node were lost.
    pub(super) async fn what_if_node_down(
        &self,
        name: &str,
    ) -> Result<v1::WhatIfNodeDownResponse, Status> {
        let node = names::node(name)?;
        self.inner.catalog.known_node(&node).await?;
        let survey = self.survey_all().await?;
        let objects = self.inner.catalog.volumes().await?;
        let records = join_all(objects.iter().map(|o| self.inner.catalog.record(o.uid))).await;
        let grace_ms = self.inner.rebuild_after_ms;
        let mut scene = Scene { node, survey: &survey, grace_ms, promised: BTreeMap::new() };
        let mut volumes = Vec::new();
        for (object, record) in objects.iter().zip(records) {
            if let Some(record) = record?.map(|stored| stored.value) {
                volumes.extend(scene.volume(object, &record));
            }
        }
        Ok(v1::WhatIfNodeDownResponse { volumes, grace_ms })
    }
}

/// What is known, and which room is promised to copies of volumes that were looked at before.
struct Scene<'a> {
    node: NodeId,
    survey: &'a Survey,
    grace_ms: u64,
    promised: BTreeMap<(NodeId, String), u64>,
}

impl Scene<'_> {
    /// A volume without the node, if it has to do with it.
    fn volume(&mut self, object: &VolumeObject, record: &Record) -> Option<v1::VolumeWithoutNode> {
        let copy_there = record.replicas.iter().any(|entry| entry.node == self.node);
        let served_there = record.primary.as_ref().is_some_and(|p| p.node == self.node);
        if !copy_there && !served_there {
            return None;
        }
        let Outage { left, serves, verdict } = self.outage(object, record);
        let (rebuilt_on, rebuild_bytes) = match &verdict {
            Verdict::Replace(new) => {
                let room = self.promised.entry((new.node.clone(), new.pool.clone())).or_default();
                *room = room.saturating_add(names::bytes(record.blocks));
                (new.node.to_string(), self.used_bytes(record, &left))
            }
            _ => (String::new(), 0),
        };
        Some(v1::VolumeWithoutNode {
            name: object.name.clone(),
            served_there,
            copy_there,
            left: left.iter().map(NodeId::to_string).collect(),
            repl: u32::from(record.repl),
            min_in_sync: u32::from(record.min_in_sync),
            serves,
            next: verdict.to_string(),
            rebuilt_on,
            rebuild_bytes,
        })
    }

    fn outage(&self, object: &VolumeObject, record: &Record) -> Outage {
        let now = Tick(0);
        let state = |(name, status): (&String, &v1::NodeStatus)| {
            let (answers, leaving) = (status.live, status.evacuating);
            let silent_since = (!answers).then_some(now);
            let node = NodeId::new(name)?;
            Some(NodeState { node, silent_since, answers, lacks_copy: false, leaving })
        };
        let nodes: Vec<NodeState> = self.survey.iter().filter_map(state).collect();
        let candidates = self.candidates(&object.pool, &object.spread);
        let view = View {
            record,
            nodes: &nodes,
            candidates: &candidates,
            sets: &copysets(self.survey),
            now,
            grace_ms: self.grace_ms,
            follow: object.follow,
        };
        without(&view, &self.node)
    }

    fn candidates(&self, pool: &str, spread: &str) -> Vec<Candidate> {
        let mut all = candidates(self.survey, pool, spread);
        for candidate in &mut all {
            let place = (candidate.node.clone(), candidate.pool.clone());
            let promised = self.promised.get(&place).copied().unwrap_or_default();
            candidate.free_bytes = candidate.free_bytes.saturating_sub(promised);
        }
        all
    }

    /// What the fullest copy on these nodes takes.
    fn used_bytes(&self, record: &Record, nodes: &[NodeId]) -> u64 {
        let uid = record.uid.to_string();
        let infos = nodes.iter().filter_map(|node| self.survey.get(node.as_str())?.info.as_ref());
        let copies = infos.flat_map(|info| &info.replicas).filter(|copy| copy.uid == uid);
        copies.map(|copy| copy.bytes_used).max().unwrap_or_default()
    }
}
