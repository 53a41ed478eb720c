//! Nodes lose their power under writers: each goes on elsewhere, on a node with a copy, and has all
//! that it acknowledged.

use crate::lab::{LIMIT, Lab};
use crate::process::wait_for;
use crate::writers::{Whereabouts, Writers};
use anyhow::{Context as _, ensure};
use k8s_openapi::jiff::Timestamp;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use std::collections::{BTreeMap, BTreeSet};

const SPACE: &str = "killed";
const COPIES: usize = 3;
/// Kubernetes alone would need 40 s to notice anything: the first write comes well before that, on
/// a busy machine as well.
const WITHOUT_US: f64 = 20.0;
const LABEL: &str = "lockstep.node-restriction.kubernetes.io/";

pub(crate) async fn run(lab: &mut Lab, rounds: usize, seed: u64) -> anyhow::Result<String> {
    let mut choice = StdRng::seed_from_u64(seed);
    let mut writers = Writers::start(lab, SPACE, 3, "lockstep-3").await?;
    let mut times = Vec::new();
    for round in 0..rounds {
        for pod in &writers.pods {
            writers.wait_for_more(lab, pod).await?;
        }
        let mut places = BTreeMap::new();
        for pod in &writers.pods {
            let place = writers.whereabouts(lab, pod).await?;
            wait_until_whole(lab, &place.volume, COPIES).await?;
            places.insert(pod.clone(), place);
        }
        let nodes: BTreeSet<String> = places.values().map(|place| place.node.clone()).collect();
        let nodes: Vec<String> = nodes.into_iter().collect();
        let lost = nodes.choose(&mut choice).context("a pod is somewhere")?;
        let number = lab.number_of(lost)?;
        let killed = Timestamp::now();
        lab.kill(number).await?;
        writers.note(lab);
        for (pod, place) in places.iter().filter(|(_, place)| place.node == *lost) {
            let seconds = moved(lab, &writers, pod, place, killed)
                .await
                .with_context(|| format!("round {round}, {lost} killed, seed {seed}"))?;
            times.push(seconds);
        }
        writers.note(lab);
        lab.boot(number).await?;
    }
    let acked = writers.verify(lab).await?;
    writers.end(lab).await?;
    times.sort_by(f64::total_cmp);
    let (median, worst) = (times.get(times.len() / 2), times.last());
    let (median, worst) = (median.context("a pod moved")?, worst.context("a pod moved")?);
    ensure!(median < &WITHOUT_US, "first writes {times:?} s after the kills");
    Ok(format!(
        "{rounds} nodes killed (seed {seed}), {} pods moved, all to nodes with a copy in sync; \
         first write acknowledged {median:.1} s after the kill (median), {worst:.1} s at worst; \
         {acked} writes acknowledged, none lost",
        times.len()
    ))
}

/// Waits until all copies are in sync, and exactly their nodes have the volume's label.
pub(crate) async fn wait_until_whole(lab: &Lab, volume: &str, copies: usize) -> anyhow::Result<()> {
    let is_whole = async || {
        let in_sync = lab.in_sync(volume).await.unwrap_or_default();
        in_sync.len() == copies && labelled(lab, volume).await.is_ok_and(|l| l == in_sync)
    };
    if !wait_for(LIMIT, is_whole).await {
        let (in_sync, labelled) = (lab.in_sync(volume).await, labelled(lab, volume).await);
        anyhow::bail!("{volume}: in sync on {in_sync:?}, labelled {labelled:?}");
    }
    Ok(())
}

/// The nodes that a volume's pods may run on.
pub(crate) async fn labelled(lab: &Lab, volume: &str) -> anyhow::Result<BTreeSet<String>> {
    let found = lab.get("default", "pv", volume).await?;
    let terms = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/key";
    let key = found.pointer(terms).and_then(|key| key.as_str()).context("it names no label")?;
    ensure!(key.starts_with(LABEL), "{key} is none of our labels");
    let selector = format!("{key}=replica");
    let flags = ["get", "nodes", "-l", &selector, "-o", "jsonpath={.items[*].metadata.name}"];
    let said = lab.kubectl(&flags).await?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

/// Waits until a new pod in place of the one that was lost has a write acknowledged; returns how
/// many seconds after the kill that was.
pub(crate) async fn moved(
    lab: &Lab,
    writers: &Writers,
    pod: &str,
    place: &Whereabouts,
    killed: Timestamp,
) -> anyhow::Result<f64> {
    let first = || writers.acks(lab, pod).into_iter().filter(|ack| ack.uid != place.uid);
    let first = || first().filter(|ack| ack.at > killed).map(|ack| ack.at).min();
    if !wait_for(LIMIT, async || first().is_some()).await {
        let told = lab.kubectl(&["-n", writers.space, "describe", "pod", pod]).await;
        anyhow::bail!("{pod} acknowledges nothing: {}", told.unwrap_or_default());
    }
    let first = first().context("it was there")?;
    let now = writers.whereabouts(lab, pod).await?;
    let copies = lab.in_sync(&now.volume).await?;
    ensure!(copies.contains(&now.node), "{pod} is on {}, copies are on {copies:?}", now.node);
    Ok(killed.until(first)?.total(k8s_openapi::jiff::Unit::Second)?)
}
