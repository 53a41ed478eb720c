//! Small writers in pods: each appends numbers to a file on its volume, and says a number once it
//! is durable. What they said is read from the logs of containers, which outlive pods and nodes.

use crate::lab::{LIMIT, Lab, pods};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Goes on after the last number that is on the volume.
const SCRIPT: &str = r#"
file=/data/log
touch $file
echo >>$file
n=$(grep -E '^[0-9]+ [.]$' $file | tail -n 1 | cut -d' ' -f1)
n=${n:-0}
while :; do
    n=$((n + 1))
    echo "$n ." | dd of=$file oflag=append conv=notrunc,fsync 2>/dev/null || exit 1
    echo "ack $n"
    sleep 0.02
done
"#;

/// A number that a writer said is durable.
#[derive(Clone, Debug)]
pub(crate) struct Ack {
    pub(crate) at: Timestamp,
    pub(crate) number: u64,
    /// Which pod of that name said it.
    pub(crate) uid: String,
}

/// A stateful set of writers.
#[derive(Debug)]
pub(crate) struct Writers {
    pub(crate) space: &'static str,
    pub(crate) pods: Vec<String>,
    /// What was ever said, by pod.
    acked: BTreeMap<String, BTreeSet<u64>>,
}

impl Writers {
    /// Makes them, and waits until each has written.
    pub(crate) async fn start(
        lab: &Lab,
        space: &'static str,
        count: usize,
        class: &str,
    ) -> anyhow::Result<Self> {
        lab.make_namespace(space).await?;
        lab.apply(&pods::stateful_set(space, "writer", count, class, SCRIPT)).await?;
        let pods: Vec<String> = (0..count).map(|number| format!("writer-{number}")).collect();
        let writers = Self { space, pods, acked: BTreeMap::new() };
        for pod in &writers.pods {
            lab.wait_until_runs(space, pod).await?;
            writers.wait_for_more(lab, pod).await?;
        }
        Ok(writers)
    }

    /// The node that a pod is on, its uid, and its volume.
    pub(crate) async fn whereabouts(&self, lab: &Lab, pod: &str) -> anyhow::Result<Whereabouts> {
        let found = lab.get(self.space, "pod", pod).await?;
        let part = |path| found.pointer(path).and_then(Value::as_str).map(str::to_owned);
        Ok(Whereabouts {
            node: part("/spec/nodeName").context("it is on no node")?,
            uid: part("/metadata/uid").context("an object has a uid")?,
            volume: lab.volume_of(self.space, &format!("data-{pod}")).await?,
        })
    }

    /// All that the pods of a name said, as far as nodes have it on their disks.
    pub(crate) fn acks(&self, lab: &Lab, pod: &str) -> Vec<Ack> {
        let begin = format!("{}_{pod}_", self.space);
        let mut all = Vec::new();
        for node in lab.nodes() {
            for entry in fs::read_dir(node.logs().join("pods")).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(uid) = name.strip_prefix(&begin) {
                    all.extend(acks_in(&entry.path().join("main"), uid));
                }
            }
        }
        all
    }

    /// Notes what was said so far: a node that boots again removes the logs of pods that are gone.
    pub(crate) fn note(&mut self, lab: &Lab) {
        for pod in self.pods.clone() {
            let numbers = self.acks(lab, &pod).into_iter().map(|ack| ack.number);
            self.acked.entry(pod).or_default().extend(numbers);
        }
    }

    /// Waits until a pod says something new.
    pub(crate) async fn wait_for_more(&self, lab: &Lab, pod: &str) -> anyhow::Result<()> {
        let before = self.acks(lab, pod).len();
        let has_more = async || self.acks(lab, pod).len() > before;
        ensure!(wait_for(LIMIT, has_more).await, "{pod} acknowledges nothing");
        Ok(())
    }

    /// Looks whether all that was ever said is on the volumes; returns how much.
    pub(crate) async fn verify(&mut self, lab: &Lab) -> anyhow::Result<usize> {
        self.note(lab);
        let mut count = 0;
        for (pod, acked) in &self.acked {
            lab.wait_until_runs(self.space, pod).await?;
            let file = lab.in_pod(self.space, pod, "cat /data/log").await?;
            let lines = file.lines().filter_map(|line| line.strip_suffix(" ."));
            let kept: BTreeSet<u64> = lines.filter_map(|line| line.parse().ok()).collect();
            let lost: Vec<&u64> = acked.difference(&kept).collect();
            ensure!(lost.is_empty(), "{pod} acknowledged what is lost: {lost:?}");
            count += acked.len();
        }
        Ok(count)
    }

    /// Removes them.
    pub(crate) async fn end(self, lab: &Lab) -> anyhow::Result<()> {
        lab.kubectl(&["delete", "namespace", self.space]).await.map(drop)
    }
}

/// Where a pod is.
#[derive(Clone, Debug)]
pub(crate) struct Whereabouts {
    pub(crate) node: String,
    pub(crate) uid: String,
    pub(crate) volume: String,
}

/// What a container's logs have, as containerd writes them: a time, a stream, a tag, the line.
fn acks_in(dir: &Path, uid: &str) -> Vec<Ack> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        all.extend(text.lines().filter_map(|line| {
            let (at, said) = line.split_once(" stdout F ack ")?;
            let (at, number) = (at.parse().ok()?, said.parse().ok()?);
            Some(Ack { at, number, uid: uid.to_owned() })
        }));
    }
    all
}
