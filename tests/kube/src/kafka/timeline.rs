//! What happens when a broker's node dies, and when: seconds since its power went.

use super::brokers;
use super::load::{Load, events, number};
use crate::lab::Lab;
use crate::process::wait_a_moment;
use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a broker may be away.
const LIMIT: Duration = Duration::from_secs(300);
/// What the controller logs of the steps of a failover.
const STEPS: [(&str, &str); 3] =
    [("detected", " suspected "), ("fenced", " fenced "), ("pod deleted", " pod deleted ")];

/// The moments, in the order in which they were seen.
#[derive(Debug)]
pub(crate) struct Timeline {
    begin: Instant,
    begin_ms: u64,
    seen: Vec<(&'static str, f64)>,
}

/// Milliseconds since 1970, as the brokers and the load program tell times.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Timeline {
    /// Begins now.
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), begin_ms: now_ms(), seen: Vec::new() }
    }

    /// Notes that something is so, when it is seen for the first time.
    pub(crate) fn note(&mut self, what: &'static str) {
        let seconds = self.begin.elapsed().as_secs_f64();
        self.note_at(what, seconds);
    }

    fn note_at(&mut self, what: &'static str, seconds: f64) {
        if self.at(what).is_none() {
            self.seen.push((what, seconds));
        }
    }

    /// The same, of a time that was told.
    fn note_told(&mut self, what: &'static str, at_ms: u64) {
        let millis = at_ms.saturating_sub(self.begin_ms);
        self.note_at(what, Duration::from_millis(millis).as_secs_f64());
    }

    /// When something was.
    pub(crate) fn at(&self, what: &str) -> Option<f64> {
        self.seen.iter().find(|(name, _)| *name == what).map(|(_, seconds)| *seconds)
    }

    pub(crate) fn to_json(&self) -> Value {
        let all = self.seen.iter().map(|(name, at)| ((*name).to_owned(), json!(round(*at))));
        Value::Object(all.collect())
    }

    pub(crate) fn told(&self) -> String {
        let mut seen = self.seen.clone();
        seen.sort_by(|one, other| one.1.total_cmp(&other.1));
        let each = seen.iter().map(|(name, at)| format!("{name} {at:.1}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// To the millisecond.
pub(crate) fn round(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// A broker that is about to lose its node.
#[derive(Debug)]
pub(crate) struct Lost {
    pods: Api<Pod>,
    space: String,
    broker: usize,
    uid: String,
    /// Where in the controller's log what follows begins.
    from: usize,
    log: PathBuf,
}

/// How a broker came back.
#[derive(Debug)]
pub(crate) struct Back {
    pub(crate) node: String,
    /// Bytes of its log that it began with.
    pub(crate) held_bytes: u64,
    log: PathBuf,
}

impl Lost {
    pub(crate) async fn new(lab: &Lab, space: &str, broker: usize) -> anyhow::Result<Self> {
        let pods: Api<Pod> = Api::namespaced(lab.cluster.client().await?, space);
        let uid = pods.get(&brokers::pod(broker)).await?.metadata.uid.context("a pod has a uid")?;
        let log = lab.cluster.dir().join("csi.log");
        let from = fs::read_to_string(&log).map_or(0, |said| said.len());
        Ok(Self { pods, space: space.to_owned(), broker, uid, from, log })
    }

    /// Notes what happens until the broker leads or follows all its partitions in sync again.
    pub(crate) async fn wait_until_back(
        &self,
        lab: &Lab,
        load: &Load,
        line: &mut Timeline,
    ) -> anyhow::Result<Back> {
        while line.begin.elapsed() < LIMIT {
            self.note_steps(line);
            self.note_kafka(load, line);
            if let Some(back) = self.look(lab, line).await?
                && line.at("begun").is_some()
                && line.at("missed by Kafka").is_some()
                && self.is_serving(load, line)
            {
                return Ok(back);
            }
            wait_a_moment().await;
        }
        ensure!(false, "the broker does not come back: {}", line.told());
        unreachable!("it was refused")
    }

    /// What the controller says that it did.
    fn note_steps(&self, line: &mut Timeline) {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let said = said.get(self.from..).unwrap_or_default();
        for (what, words) in STEPS {
            if said.contains(words) {
                line.note(what);
            }
        }
    }

    fn note_kafka(&self, load: &Load, line: &mut Timeline) {
        if let Some((at_ms, false)) = load.last_word(self.broker)
            && at_ms >= line.begin_ms
        {
            line.note_told("missed by Kafka", at_ms);
        }
    }

    fn is_serving(&self, load: &Load, line: &mut Timeline) -> bool {
        let Some((at_ms, true)) = load.last_word(self.broker) else { return false };
        if at_ms < line.begin_ms {
            return false;
        }
        line.note_told("serving", at_ms);
        true
    }

    /// Its pod's successor, once it runs on a node.
    async fn look(&self, lab: &Lab, line: &mut Timeline) -> anyhow::Result<Option<Back>> {
        let Some(pod) = self.pods.get_opt(&brokers::pod(self.broker)).await? else {
            return Ok(None);
        };
        let uid = pod.metadata.uid.unwrap_or_default();
        let Some(node) = pod.spec.and_then(|spec| spec.node_name) else { return Ok(None) };
        if uid == self.uid {
            return Ok(None);
        }
        line.note("scheduled");
        let logs = lab.node(lab.number_of(&node)?)?.logs();
        let name = brokers::pod(self.broker);
        let log = logs.join(format!("pods/{}_{name}_{uid}/main/0.log", self.space));
        let said = fs::read_to_string(&log).unwrap_or_default();
        let Some(began) = events(&said).into_iter().find(|e| e["event"] == "began") else {
            return Ok(None);
        };
        line.note_told("begun", number(&began, "at_ms").unwrap_or_default());
        let held_bytes = number(&began, "held_bytes").unwrap_or_default();
        Ok(Some(Back { node, held_bytes, log }))
    }
}

impl Back {
    /// Bytes that it took from other brokers.
    pub(crate) fn taken_bytes(&self) -> u64 {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let taken = events(&said).into_iter().filter(|e| e["event"] == "replicated");
        taken.filter_map(|e| number(&e, "bytes")).max().unwrap_or_default()
    }
}
