//! Asks the other daemons how they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use futures::try_join;
use lockstep_core::cluster::copysets::Copysets;
use lockstep_core::cluster::placement::Candidate;
use lockstep_core::id::NodeId;
use lockstep_proto::v1;
use tonic::Status;

use super::catalog::NodeObject;
use super::peers::{ASK_LIMIT, is_refused, plain, within};
use super::{Admin, view};
use crate::config::labels::ZONE_LABEL;

/// What nodes said, by name.
pub(super) type Survey = BTreeMap<String, v1::NodeStatus>;

impl Admin {
    /// Asks every known node.
    pub(super) async fn survey_all(&self) -> Result<Survey, Status> {
        let catalog = &self.inner.catalog;
        let asked = async { Ok(self.ask(catalog.nodes().await?).await) };
        let (mut survey, evacuated, cordoned) =
            try_join!(asked, catalog.evacuations(), catalog.cordons())?;
        super::evacuate::mark(&mut survey, &evacuated);
        super::cordon::mark(&mut survey, &cordoned);
        Ok(survey)
    }

    /// Asks some nodes; one that the record store does not know is told as unreachable.
    pub(super) async fn survey_some(&self, names: &BTreeSet<NodeId>) -> Result<Survey, Status> {
        let mut survey = Survey::new();
        for name in names {
            let unreachable_reason = "the record store does not know this node".to_owned();
            let (name, live) = (name.to_string(), false);
            let unknown = v1::NodeStatus {
                name: name.clone(),
                live,
                unreachable_reason,
                ..Default::default()
            };
            survey.insert(name, unknown);
        }
        let found = join_all(names.iter().map(|name| self.inner.catalog.node(name))).await;
        let known: Result<Vec<_>, Status> =
            found.into_iter().filter_map(Result::transpose).collect();
        survey.extend(self.ask(known?).await);
        super::evacuate::mark(&mut survey, &self.inner.catalog.evacuations().await?);
        Ok(survey)
    }

    async fn ask(&self, nodes: Vec<NodeObject>) -> Survey {
        let answers = join_all(nodes.iter().map(|node| self.ask_one(node, ASK_LIMIT))).await;
        answers.into_iter().map(|status| (status.name.clone(), status)).collect()
    }

    /// Asks one node, and waits no longer than that for it.
    pub(super) async fn ask_one(&self, node: &NodeObject, limit: Duration) -> v1::NodeStatus {
        let status = v1::NodeStatus {
            name: node.name.to_string(),
            peer_address: node.peer_address.clone(),
            admin_address: node.admin_address.clone(),
            zone: node.zone.clone().unwrap_or_default(),
            labels: node.labels.clone(),
            ..Default::default()
        };
        if node.name == self.inner.node {
            let info = Some(self.own_node().await);
            return v1::NodeStatus {
                live: true,
                labels: self.inner.labels.clone(),
                info,
                ..status
            };
        }
        let answer = within(limit, async {
            let mut client = self.inner.peers.client(node)?;
            Ok(client.get_node(v1::GetNodeRequest::default()).await?.into_inner().node)
        });
        match answer.await {
            Ok(Some(info)) if info.name == status.name => {
                let labels = info.labels.clone();
                v1::NodeStatus { live: true, labels, info: Some(info), ..status }
            }
            Ok(Some(info)) => {
                let unreachable_reason = format!("node {} answers at its address", info.name);
                v1::NodeStatus { unreachable_reason, ..status }
            }
            Ok(None) => {
                v1::NodeStatus { unreachable_reason: "it answered nothing".to_owned(), ..status }
            }
            Err(why) => v1::NodeStatus { unreachable_reason: plain(&why), ..status },
        }
    }

    /// Which nodes answer, and nothing else of them.
    pub(super) async fn who_answers(&self, wait_ms: u64) -> Result<Vec<v1::NodeStatus>, Status> {
        let limit = match wait_ms {
            0 => ASK_LIMIT,
            ms => Duration::from_millis(ms).min(ASK_LIMIT),
        };
        let nodes = self.nodes_lately().await?;
        Ok(join_all(nodes.iter().map(|node| self.ask_briefly(node, limit))).await)
    }

    /// Asks one node whether it answers, and waits no longer than that for it.
    pub(super) async fn ask_briefly(&self, node: &NodeObject, limit: Duration) -> v1::NodeStatus {
        let status = v1::NodeStatus { name: node.name.to_string(), ..Default::default() };
        if node.name == self.inner.node {
            return v1::NodeStatus { live: true, ..status };
        }
        let asked = tokio::time::timeout(limit, async {
            let mut client = self.inner.peers.client(node)?;
            let request = v1::GetNodeRequest { brief: true };
            Ok(client.get_node(request).await?.into_inner().node)
        });
        let (live, refused, unreachable_reason) = match asked.await {
            Ok(Ok(Some(info))) if info.name == status.name => (true, false, String::new()),
            Ok(Ok(_)) => (false, false, "another node answers at its address".to_owned()),
            Ok(Err(why)) => (false, is_refused(&why), plain(&why)),
            Err(_) => (false, false, format!("no answer within {} ms", limit.as_millis())),
        };
        v1::NodeStatus { live, refused, unreachable_reason, ..status }
    }

    /// One volume as it is now.
    pub(super) async fn look_at(&self, name: &str) -> Result<v1::VolumeStatus, Status> {
        let found = self.inner.catalog.volume(name).await?;
        let object = found.ok_or_else(|| super::refuse::no_volume(name))?.value;
        let record = self.inner.catalog.record(object.uid).await?.map(|stored| stored.value);
        let mut nodes: BTreeSet<NodeId> = BTreeSet::new();
        if let Some(record) = &record {
            nodes.extend(record.replicas.iter().map(|replica| replica.node.clone()));
            nodes.extend(record.primary.iter().map(|primary| primary.node.clone()));
        }
        let survey = self.survey_some(&nodes).await?;
        Ok(view::volume(&object, record.as_ref(), &survey, self.inner.rebuild_after_ms))
    }

    /// All volumes as they are now, given what the nodes said.
    pub(super) async fn look_at_all(
        &self,
        survey: &Survey,
    ) -> Result<Vec<v1::VolumeStatus>, Status> {
        let objects = self.inner.catalog.volumes().await?;
        let records = join_all(objects.iter().map(|o| self.inner.catalog.record(o.uid))).await;
        let mut volumes = Vec::new();
        for (object, record) in objects.iter().zip(records) {
            let record = record?.map(|stored| stored.value);
            let grace_ms = self.inner.rebuild_after_ms;
            volumes.push(view::volume(object, record.as_ref(), survey, grace_ms));
        }
        Ok(volumes)
    }
}

/// The nodes that are being emptied: they get no copies.
pub(super) fn evacuated(survey: &Survey) -> Vec<NodeId> {
    let leaving = survey.values().filter(|status| status.evacuating);
    leaving.filter_map(|status| NodeId::new(&status.name)).collect()
}

/// Which nodes hold copies together, of all volumes, as far as the nodes tell.
pub(super) fn copysets(survey: &Survey) -> Copysets {
    let mut holders: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for (name, status) in survey {
        let replicas = status.info.iter().flat_map(|info| &info.replicas);
        for replica in replicas {
            holders.entry(&replica.uid).or_default().extend(NodeId::new(name));
        }
    }
    let mut sets = Copysets::default();
    for nodes in holders.values() {
        sets.note(nodes);
    }
    sets
}

/// Every pool of every node, for the placement of copies over the values of the label `spread`. A
/// silent node is a candidate that does not answer, so that a refusal can name it.
pub(super) fn candidates(survey: &Survey, pool: &str, spread: &str) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (name, status) in survey {
        let Some(node) = NodeId::new(name) else { continue };
        let zone = zone_of(status, spread).map(str::to_owned);
        let cordoned = status.cordoned;
        match &status.info {
            // So that a refusal can name it. One that just begins has not told its pools yet.
            Some(info) if info.pools.is_empty() => all.push(Candidate {
                node,
                pool: if info.ready { String::new() } else { pool.to_owned() },
                free_bytes: 0,
                total_bytes: 0,
                zone,
                live: info.ready,
                replicas: 0,
                cordoned,
            }),
            Some(info) => {
                for pool in &info.pools {
                    let replicas = info.replicas.iter().filter(|r| r.pool == pool.name).count();
                    all.push(Candidate {
                        node: node.clone(),
                        pool: pool.name.clone(),
                        free_bytes: room(pool),
                        total_bytes: pool.capacity_bytes,
                        zone: zone.clone(),
                        live: info.ready,
                        replicas: u32::try_from(replicas).unwrap_or(u32::MAX),
                        cordoned,
                    });
                }
            }
            None => all.push(Candidate {
                node,
                pool: pool.to_owned(),
                free_bytes: 0,
                total_bytes: 0,
                zone,
                live: false,
                replicas: 0,
                cordoned,
            }),
        }
    }
    all
}

/// A node's value of the label over which copies are spread: its own word, or else what it said
/// before.
pub(super) fn zone_of<'a>(status: &'a v1::NodeStatus, spread: &str) -> Option<&'a str> {
    let told = status.labels.get(spread).map(String::as_str);
    // A daemon that knows no labels tells its zone.
    let zone = || status.info.as_ref().map_or(&status.zone, |info| &info.zone).as_str();
    let zone = told.or_else(|| (spread == ZONE_LABEL).then(zone));
    zone.filter(|zone| !zone.is_empty())
}

/// What a new copy may be promised in a pool: nothing in one that is full, whatever it may promise.
pub(super) fn room(pool: &v1::Pool) -> u64 {
    if pool.free_bytes == 0 { 0 } else { pool.room_bytes }
}

#[cfg(test)]
mod tests {
    use lockstep_core::cluster::placement::{Misfit, Want, choose};

    use super::*;

    #[test]
    fn a_node_that_begins_has_no_pool_yet_and_another_one_has_none() {
        let misfit = |ready| {
            let info = v1::Node { ready, ..Default::default() };
            let status = v1::NodeStatus { info: Some(info), ..Default::default() };
            let survey = Survey::from([("a".to_owned(), status)]);
            let want = Want { copies: 1, pool: "p".to_owned(), ..Want::default() };
            let all = candidates(&survey, "p", ZONE_LABEL);
            choose(&want, &all, &copysets(&survey)).unwrap_err().misfits.remove(0).1
        };
        assert_eq!(misfit(false), Misfit::Silent);
        assert_eq!(misfit(true), Misfit::NoPool("p".to_owned()));
    }
}
