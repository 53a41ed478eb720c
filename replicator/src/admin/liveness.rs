//! Whether the primary that a record names is alive: rule A4, no live primary is robbed.
//!
//! This is politeness, not safety: epochs alone keep two primaries apart.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use lockstep_core::id::NodeId;
use lockstep_core::limits::SESSION_DEAD_MS;
use lockstep_core::record::{PrimaryRef, Record};
use lockstep_proto::v1;
use tonic::Status;

use super::Admin;
use super::survey::Survey;

/// How long a node may take to say what it knows. One that takes longer is as good as silent: a
/// take-over is under way.
pub(super) const LOOK_LIMIT: Duration = Duration::from_millis(500);

/// What is known of the primary in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    /// There is none.
    None,
    /// It serves the volume, or is about to.
    Live(String),
    /// It is gone, or no copy with all data has heard of it for long enough.
    Gone,
    /// Nobody who would know can be asked.
    Unknown(String),
}

impl Admin {
    /// Asks the primary's own daemon, which has `own_limit` for its answer, and every node with an
    /// in-sync copy.
    pub(super) async fn liveness(
        &self,
        record: &Record,
        own_limit: Duration,
    ) -> Result<Liveness, Status> {
        if let Some(known) = self.liveness_here(record) {
            return Ok(known);
        }
        let Some(primary) = &record.primary else { return Ok(Liveness::None) };
        let limit_of = |node: &NodeId| if *node == primary.node { own_limit } else { LOOK_LIMIT };
        let mut known = Vec::new();
        for node in &witnesses(record) {
            known.extend(self.inner.catalog.node(node).await?);
        }
        let mut answers: FuturesUnordered<_> =
            known.iter().map(|node| self.ask_one(node, limit_of(&node.name))).collect();
        let mut survey = Survey::new();
        while let Some(status) = answers.next().await {
            survey.insert(status.name.clone(), status);
            // One word is enough for these; a node that hangs is not waited for.
            match judge(record, primary, &survey) {
                Liveness::Live(why) => return Ok(Liveness::Live(why)),
                Liveness::Gone if own_word(record, primary, &survey) == Some(false) => break,
                _ => {}
            }
        }
        Ok(judge(record, primary, &survey))
    }

    /// The same of several volumes at once: each node is asked once for all of them. In their
    /// order.
    pub(super) async fn liveness_of_all(
        &self,
        records: &[Record],
    ) -> Result<Vec<Liveness>, Status> {
        let here: Vec<_> = records.iter().map(|record| self.liveness_here(record)).collect();
        let unknown = records.iter().zip(&here).filter(|(_, known)| known.is_none());
        let witnesses: BTreeSet<_> = unknown.flat_map(|(record, _)| witnesses(record)).collect();
        let mut survey = Survey::new();
        if !witnesses.is_empty() {
            let nodes = self.nodes_lately().await?;
            let asked = nodes.iter().filter(|node| witnesses.contains(&node.name));
            let answers = join_all(asked.map(|node| self.ask_one(node, LOOK_LIMIT))).await;
            survey.extend(answers.into_iter().map(|status| (status.name.clone(), status)));
        }
        let all = records.iter().zip(here).map(|(record, known)| match (known, &record.primary) {
            (Some(known), _) => known,
            (None, None) => Liveness::None,
            (None, Some(primary)) => judge(record, primary, &survey),
        });
        Ok(all.collect())
    }

    /// What is known without asking anybody: if there is no primary, or it is here.
    fn liveness_here(&self, record: &Record) -> Option<Liveness> {
        let Some(primary) = &record.primary else { return Some(Liveness::None) };
        if primary.node == self.inner.node {
            let attached = self.inner.engine.attached(record.uid);
            let same = attached.filter(|handle| handle.instance() == primary.instance);
            return Some(match same {
                _ if self.is_spare(record.uid) => Liveness::Gone,
                _ if self.is_waited_for(record.uid) => Liveness::Live(format!(
                    "this node, {}, is about to serve it again",
                    primary.node
                )),
                Some(handle) if !super::attach::is_over(*handle.phase().borrow()) => {
                    Liveness::Live(format!("this node, {}, serves it", primary.node))
                }
                _ => Liveness::Gone,
            });
        }
        None
    }
}

/// Who can tell of the primary in force: its own daemon, and every node with an in-sync copy.
fn witnesses(record: &Record) -> BTreeSet<NodeId> {
    let primary = record.primary.iter().map(|primary| primary.node.clone());
    record.in_sync().map(|entry| entry.node.clone()).chain(primary).collect()
}

/// Whether the primary's own daemon says that it has the volume; `None` if it says nothing.
fn own_word(record: &Record, primary: &PrimaryRef, survey: &Survey) -> Option<bool> {
    let node = survey.get(primary.node.as_str())?.info.as_ref()?;
    let uid = record.uid.to_string();
    let over = [v1::AttachPhase::Fenced, v1::AttachPhase::Detached].map(i32::from);
    let has = |p: &v1::LocalPrimary| {
        p.uid == uid && p.epoch <= record.epoch.0 && !over.contains(&p.phase) && !p.spare
    };
    Some(node.primaries.iter().any(has) || waits(node, &uid))
}

/// Whether somebody on a node waits for the volume: its daemon was replaced, and its device is
/// still in use.
pub(super) fn waits(node: &v1::Node, uid: &str) -> bool {
    node.waiting_devices.iter().any(|waiting| waiting.uid == uid)
}

/// Decides from what the nodes said.
fn judge(record: &Record, primary: &PrimaryRef, survey: &Survey) -> Liveness {
    let info = |node: &str| survey.get(node).and_then(|status| status.info.as_ref());
    let own_word = own_word(record, primary, survey);
    if own_word == Some(false) {
        return Liveness::Gone;
    }
    if info(primary.node.as_str()).is_some_and(|node| waits(node, &record.uid.to_string())) {
        return Liveness::Live(format!("{} is about to serve it again", primary.node));
    }
    let mut asked = 0;
    let (mut silent, mut young) = (Vec::new(), Vec::new());
    for entry in record.in_sync() {
        let Some(node) = info(entry.node.as_str()) else {
            silent.push(entry.node.as_str());
            continue;
        };
        let rid = entry.rid.to_string();
        let Some(replica) = node.replicas.iter().find(|r| r.rid == rid) else { continue };
        if replica.primary_heard_ms.is_none() && node.uptime_ms < SESSION_DEAD_MS {
            // It has just started. The primary may not have found it again yet.
            young.push(entry.node.as_str());
            continue;
        }
        asked += 1;
        let in_force = replica.promised_epoch == record.epoch.0;
        if in_force && replica.primary_heard_ms.is_some_and(|ms| ms < SESSION_DEAD_MS) {
            let ago = replica.primary_heard_ms.unwrap_or_default();
            return Liveness::Live(format!(
                "{} serves it: {} heard it {ago} ms ago",
                primary.node, entry.node
            ));
        }
    }
    // It claimed the volume and has not reached a replica yet, or reaches none any more. Its own
    // word counts only as long as nobody's word is against it.
    if own_word == Some(true) && (record.open_epoch < record.epoch || asked == 0) {
        return Liveness::Live(format!("{} serves it, or is about to", primary.node));
    }
    if asked == 0 && !young.is_empty() {
        return Liveness::Unknown(format!(
            "{} has just started and cannot know yet, and {} cannot be asked",
            young.join(", "),
            primary.node
        ));
    }
    if asked == 0 {
        return Liveness::Unknown(format!(
            "none of the nodes with all its data can be asked ({}), nor can {}",
            silent.join(", "),
            primary.node
        ));
    }
    Liveness::Gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_core::id::{InstanceId, Lineage, NodeId, ReplicaId, VolumeId};
    use lockstep_core::record::NewVolume;
    use uuid::Uuid;

    fn record() -> Record {
        let node = |i: u128| NodeId::new(&format!("n{i}")).unwrap();
        let place = |i: u128| (ReplicaId(Uuid::from_u128(i)), node(i), "default".to_owned());
        let new = NewVolume {
            uid: VolumeId(Uuid::from_u128(9)),
            lineage: Lineage(Uuid::nil()),
            blocks: 256,
            repl: 3,
            min_in_sync: 2,
            replicas: (1..=3).map(place).collect(),
        };
        let primary = PrimaryRef { node: node(1), instance: InstanceId(Uuid::nil()) };
        let claimed = Record::create(new, Uuid::nil()).unwrap().claim(primary, Uuid::nil());
        let all: Vec<_> = claimed.replicas.iter().map(|r| r.rid).collect();
        claimed.open(&all, Uuid::nil())
    }

    /// What each node says: the epoch its replica promised and when it heard the primary.
    fn survey(heard: &[(u128, u64, Option<u64>)], serving: Option<bool>) -> Survey {
        let uid = record().uid.to_string();
        let mut survey = Survey::new();
        for i in 1..=3u128 {
            let said = heard.iter().find(|(node, ..)| *node == i);
            let mut info = said.map(|(_, epoch, ms)| v1::Node {
                uptime_ms: SESSION_DEAD_MS,
                replicas: vec![v1::LocalReplica {
                    uid: uid.clone(),
                    rid: Uuid::from_u128(i).to_string(),
                    promised_epoch: *epoch,
                    primary_heard_ms: *ms,
                    ..Default::default()
                }],
                ..Default::default()
            });
            if i == 1
                && let Some(serving) = serving
            {
                let info = info.get_or_insert_default();
                let phase = i32::from(v1::AttachPhase::Active);
                let primary =
                    v1::LocalPrimary { uid: uid.clone(), epoch: 1, phase, ..Default::default() };
                info.primaries = if serving { vec![primary] } else { Vec::new() };
            }
            let name = format!("n{i}");
            survey.insert(name.clone(), v1::NodeStatus { name, info, ..Default::default() });
        }
        survey
    }

    fn judged(record: &Record, survey: &Survey) -> Liveness {
        judge(record, record.primary.as_ref().unwrap(), survey)
    }

    #[test]
    fn a_primary_that_was_just_heard_is_live() {
        let seen = judged(&record(), &survey(&[(2, 1, Some(100)), (3, 1, None)], None));
        assert!(matches!(&seen, Liveness::Live(why) if why.contains("n2 heard")), "{seen:?}");
    }

    #[test]
    fn a_primary_that_was_silent_for_long_or_is_of_an_older_epoch_is_gone() {
        let long = survey(&[(2, 1, Some(SESSION_DEAD_MS)), (3, 1, None)], None);
        assert_eq!(judged(&record(), &long), Liveness::Gone);
        let older = survey(&[(2, 0, Some(1))], None);
        assert_eq!(judged(&record(), &older), Liveness::Gone);
    }

    #[test]
    fn its_own_daemon_knows_best_that_it_is_gone() {
        let seen = judged(&record(), &survey(&[(2, 1, Some(1))], Some(false)));
        assert_eq!(seen, Liveness::Gone);
    }

    #[test]
    fn one_whose_device_waits_for_its_daemon_is_live() {
        let mut seen = survey(&[(2, 1, Some(SESSION_DEAD_MS))], Some(false));
        let waiting = v1::WaitingDevice { uid: record().uid.to_string(), ..Default::default() };
        let node = seen.get_mut("n1").and_then(|node| node.info.as_mut()).unwrap();
        node.waiting_devices = vec![waiting];
        let judged = judged(&record(), &seen);
        assert!(matches!(&judged, Liveness::Live(why) if why.contains("again")), "{judged:?}");
    }

    #[test]
    fn one_that_has_just_claimed_is_live_though_no_copy_has_heard_it() {
        let mut record = record();
        record.open_epoch = lockstep_core::id::Epoch(0);
        let seen = judged(&record, &survey(&[(2, 0, None), (3, 0, None)], Some(true)));
        assert!(matches!(seen, Liveness::Live(_)), "{seen:?}");
    }

    #[test]
    fn a_copy_whose_daemon_has_just_started_is_no_witness() {
        let young = |seen: &mut Survey, node: &str| {
            seen.get_mut(node).and_then(|node| node.info.as_mut()).unwrap().uptime_ms = 1;
        };
        let mut seen = survey(&[(2, 1, None)], Some(true));
        assert_eq!(judged(&record(), &seen), Liveness::Gone, "its word against another's");
        young(&mut seen, "n2");
        let live = judged(&record(), &seen);
        assert!(matches!(&live, Liveness::Live(why) if why.contains("n1 serves it")), "{live:?}");

        let mut seen = survey(&[(2, 1, None)], None);
        young(&mut seen, "n2");
        let unknown = judged(&record(), &seen);
        let why = "n2 has just started";
        assert!(matches!(&unknown, Liveness::Unknown(w) if w.contains(why)), "{unknown:?}");
        let mut seen = survey(&[(2, 1, None), (3, 1, Some(SESSION_DEAD_MS))], None);
        young(&mut seen, "n2");
        assert_eq!(judged(&record(), &seen), Liveness::Gone, "n3 would know");
    }

    #[test]
    fn if_nobody_can_be_asked_it_is_unknown() {
        let seen = judged(&record(), &survey(&[], None));
        assert!(matches!(&seen, Liveness::Unknown(why) if why.contains("n1, n2, n3")), "{seen:?}");
    }
}
