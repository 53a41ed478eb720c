//! Nodes are drained by `kubectl drain` under a pod that writes: none before its volumes can lose
//! it, one after the other, one for good; and one is deleted, while another is cordoned.

use crate::cluster::User;
use crate::killed::wait_until_whole;
use crate::lab::{GUARD, LIMIT, Lab, NAMESPACE};
use crate::process::wait_for;
use crate::writers::Writers;
use anyhow::{Context as _, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Instant;
use tokio::process::{Child, Command};

const SPACE: &str = "drained";
const COPIES: usize = 3;
const GUARDS: u64 = 3;
const DAEMON: &str = "lockstepd";
/// What `kubectl drain` says while it waits.
const WAITS: &str = "violate the pod's disruption budget";

pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<String> {
    let mut writers = Writers::start(lab, SPACE, 1, "lockstep-3").await?;
    let pod = writers.pods.first().context("there is one")?.clone();
    let place = writers.whereabouts(lab, &pod).await?;
    wait_until_whole(lab, &place.volume, COPIES).await?;
    let copies = lab.in_sync(&place.volume).await?;
    for node in &copies {
        stands(lab, node).await?;
    }
    allows_none(lab).await?;
    let first = place.node.clone();
    let mut others = copies.into_iter().filter(|node| *node != first);
    let (second, third) = (others.next().context("three")?, others.next().context("three")?);

    one_is_behind(lab, &place.volume, &first, &second).await?;
    let one = one_after_the_other(lab, &place.volume, &first, &third).await?;
    wait_until_whole(lab, &place.volume, COPIES).await?;
    writers.wait_for_more(lab, &pod).await?;
    for_good(lab, &place.volume, &second).await?;

    wait_until_whole(lab, &place.volume, COPIES).await?;
    let now = writers.whereabouts(lab, &pod).await?;
    let copies = lab.in_sync(&place.volume).await?;
    let lost = copies.iter().find(|node| **node != now.node).context("another copy")?;
    writers.note(lab);
    let replaced = deleted(lab, &place.volume, lost).await?;
    let number = lab.number_of(lost)?;
    lab.power(number).await?;
    let acked = writers.verify(lab).await?;
    // It is a new node for Kubernetes, which takes its time, as the end of a namespace does.
    tokio::try_join!(lab.wait_until_back(number), writers.end(lab))?;
    Ok(format!(
        "a drain waits for a copy that is behind, and for a node that is drained already (it goes \
         {one:.1} s after that is back); a node is emptied for good; what a deleted node had is \
         whole elsewhere after {replaced:.1} s, and not on a cordoned one; none of {acked} writes \
         lost"
    ))
}

/// A copy elsewhere is not in sync: the drain waits until it is.
async fn one_is_behind(
    lab: &mut Lab,
    volume: &str,
    first: &str,
    second: &str,
) -> anyhow::Result<()> {
    let number = lab.number_of(second)?;
    lab.node_mut(number)?.stop(DAEMON).await?;
    wait_until_whole(lab, volume, COPIES - 1).await?;
    let mut drain = Drain::begin(lab, first)?;
    told(lab, first, &format!("not in sync on {second}")).await?;
    drain.waits(lab, first).await?;
    lab.node_mut(number)?.start(DAEMON)?;
    drain.ends().await?;
    wait_until_whole(lab, volume, COPIES).await
}

/// The first is drained: the third waits until that is back. Returns how long it takes then.
async fn one_after_the_other(
    lab: &mut Lab,
    volume: &str,
    first: &str,
    third: &str,
) -> anyhow::Result<f64> {
    let mut drain = Drain::begin(lab, third)?;
    let why = format!("since it is cordoned or deleted, on {first}");
    told(lab, third, &why).await?;
    let number = lab.number_of(first)?;
    lab.kill(number).await?;
    lab.boot(number).await?;
    // All copies are well: it is the cordon that the third waits for.
    wait_until_whole(lab, volume, COPIES).await?;
    drain.waits(lab, third).await?;
    lab.kubectl(&["uncordon", first]).await?;
    let begin = Instant::now();
    drain.ends().await?;
    let took = begin.elapsed().as_secs_f64();
    stands(lab, first).await?;
    lab.kubectl(&["uncordon", third]).await?;
    stands(lab, third).await?;
    Ok(took)
}

/// A node is emptied, and may go then.
async fn for_good(lab: &Lab, volume: &str, node: &str) -> anyhow::Result<()> {
    lab.kubectl(&["annotate", "node", node, "lockstep.dev/evacuate=true"]).await?;
    Drain::begin(lab, node)?.ends().await?;
    let copies = lab.in_sync(volume).await?;
    ensure!(copies.len() >= COPIES, "emptied before there were enough copies: {copies:?}");
    ensure!(!copies.contains(node), "{node} may go with a copy on it: {copies:?}");
    lab.kubectl(&["annotate", "--overwrite", "node", node, "lockstep.dev/evacuate=false"]).await?;
    lab.kubectl(&["uncordon", node]).await?;
    let is_back = async || shown(lab, node).await["evacuating"] == Value::Bool(false);
    ensure!(wait_for(LIMIT, is_back).await, "{node} is still being emptied");
    Ok(())
}

/// A node dies and is deleted: its copies are made elsewhere at once, but not on the node where
/// they would be if that were not cordoned. Returns after how long.
async fn deleted(lab: &mut Lab, volume: &str, node: &str) -> anyhow::Result<f64> {
    let number = lab.number_of(node)?;
    let cordoned = rebuilt_on(lab, volume, node).await.context("no node for another copy")?;
    lab.kubectl(&["cordon", &cordoned]).await?;
    let goes_elsewhere =
        async || rebuilt_on(lab, volume, node).await.is_some_and(|now| now != cordoned);
    ensure!(wait_for(LIMIT, goes_elsewhere).await, "copies go to {cordoned}, which is cordoned");
    // Nobody waits for guards now. Nodes are looked after all the same.
    let budget = uid_of_budget(lab).await.context("the budget of guards")?;
    lab.kubectl(&["-n", NAMESPACE, "delete", "pdb", GUARD]).await?;
    lab.kill(number).await?;
    lab.kubectl(&["delete", "node", node, "--wait=false"]).await?;
    let begin = Instant::now();
    let is_whole = async || {
        let copies = lab.in_sync(volume).await.unwrap_or_default();
        copies.len() == COPIES && !copies.contains(node)
    };
    ensure!(wait_for(LIMIT, is_whole).await, "the copy on {node} is not replaced");
    let took = begin.elapsed().as_secs_f64();
    let copies = lab.in_sync(volume).await?;
    ensure!(!copies.contains(&cordoned), "a copy is made on {cordoned}, which is cordoned");
    told(lab, node, "it is forgotten").await?;
    lab.kubectl(&["uncordon", &cordoned]).await?;
    guarded_again(lab, &budget, &copies).await?;
    let undone = async || shown(lab, &cordoned).await["cordoned"] == Value::Bool(false);
    ensure!(wait_for(LIMIT, undone).await, "{cordoned} is still cordoned for daemons");
    Ok(took)
}

/// Waits until the budget that was deleted is made again, and guards of the new one stand.
async fn guarded_again(lab: &Lab, before: &str, nodes: &BTreeSet<String>) -> anyhow::Result<()> {
    let is_new = async || uid_of_budget(lab).await.is_ok_and(|uid| uid != before);
    ensure!(wait_for(LIMIT, is_new).await, "the budget of guards is not made again");
    let budget = uid_of_budget(lab).await?;
    for node in nodes {
        let name = format!("{GUARD}-{node}");
        let is_its = async || {
            let guard = lab.get(NAMESPACE, "pod", &name).await.unwrap_or_default();
            guard.pointer("/metadata/ownerReferences/0/uid").is_some_and(|uid| *uid == budget)
        };
        ensure!(wait_for(LIMIT, is_its).await, "{node} has no guard of the new budget");
        stands(lab, node).await?;
    }
    allows_none(lab).await
}

async fn uid_of_budget(lab: &Lab) -> anyhow::Result<String> {
    let budget = lab.get(NAMESPACE, "pdb", GUARD).await?;
    let uid = budget.pointer("/metadata/uid").and_then(Value::as_str);
    Ok(uid.context("it has no id")?.to_owned())
}

/// Where a volume would get another copy if a node died.
async fn rebuilt_on(lab: &Lab, volume: &str, node: &str) -> Option<String> {
    let said = lab.lockstep(&["--json", "whatif", "node-down", node]).await.ok()?;
    let told: Value = serde_json::from_str(&said).ok()?;
    let found = told["volumes"].as_array()?.iter().find(|found| found["volume"] == volume)?;
    Some(found["rebuilt_on"].as_str()?.to_owned())
}

/// What daemons say of a node.
async fn shown(lab: &Lab, node: &str) -> Value {
    let said = lab.lockstep(&["--json", "node", "show", node]).await.unwrap_or_default();
    serde_json::from_str(&said).unwrap_or_default()
}

/// Waits until a guard runs on a node.
async fn stands(lab: &Lab, node: &str) -> anyhow::Result<()> {
    let stands = async || {
        let guard = lab.get(NAMESPACE, "pod", &format!("{GUARD}-{node}")).await;
        let phase = |guard: &Value| guard.pointer("/status/phase").cloned();
        guard.is_ok_and(|guard| phase(&guard).is_some_and(|phase| phase == "Running"))
    };
    ensure!(wait_for(LIMIT, stands).await, "no guard stands on {node}");
    Ok(())
}

/// Waits until Kubernetes has counted all guards, and allows none of them to be evicted.
async fn allows_none(lab: &Lab) -> anyhow::Result<()> {
    let part = |status: &Value, name| status.get(name).and_then(Value::as_u64);
    let status = async || {
        let budget = lab.get(NAMESPACE, "pdb", GUARD).await.unwrap_or_default();
        budget.get("status").cloned().unwrap_or_default()
    };
    let counted =
        async || part(&status().await, "currentHealthy").is_some_and(|count| count >= GUARDS);
    ensure!(wait_for(LIMIT, counted).await, "guards are not counted: {}", status().await);
    let status = status().await;
    ensure!(part(&status, "disruptionsAllowed") == Some(0), "guards may be evicted: {status}");
    Ok(())
}

/// Waits until an event on a node says so.
async fn told(lab: &Lab, node: &str, note: &str) -> anyhow::Result<()> {
    let seen = Mutex::new(BTreeSet::new());
    let told = async || {
        let of = format!("regarding.kind=Node,regarding.name={node}");
        let flags = ["get", "events.events.k8s.io", "--field-selector", &of, "-o"];
        let notes = r"jsonpath={range .items[*]}{.note}{'\n'}{end}";
        let said = lab.kubectl(&[&flags[..], &[notes]].concat()).await.unwrap_or_default();
        let is_so = said.contains(note);
        if let Ok(mut seen) = seen.lock() {
            seen.extend(said.lines().map(str::to_owned));
        }
        is_so
    };
    ensure!(wait_for(LIMIT, told).await, "{node}: no event says {note:?}, but {seen:?}");
    Ok(())
}

/// `kubectl drain`, while it runs.
struct Drain {
    child: Child,
    log: PathBuf,
}

impl Drain {
    fn begin(lab: &Lab, node: &str) -> anyhow::Result<Self> {
        let log = lab.cluster.dir().join(format!("drain-{node}.log"));
        let said = fs::File::create(&log)?;
        let mut command = Command::new(lab.cluster.programs().join("kubectl"));
        command.arg("--kubeconfig").arg(lab.cluster.kubeconfig(User::Admin));
        command.args(["drain", node, "--ignore-daemonsets", "--delete-emptydir-data"]);
        command.env("HOME", lab.cluster.dir()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        Ok(Self { child: command.spawn().context("starting kubectl drain")?, log })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it is refused an eviction of the node's guard, from now on, and sees that this
    /// holds it up.
    async fn waits(&mut self, lab: &Lab, node: &str) -> anyhow::Result<()> {
        let guard = format!("{GUARD}-{node}");
        let name = format!("\"{guard}\"");
        let before = self.said().len();
        let is_refused = async || {
            let said = self.said();
            let news = said.get(before..).unwrap_or_default();
            news.lines().any(|line| line.contains(&name) && line.contains(WAITS))
        };
        ensure!(wait_for(LIMIT, is_refused).await, "not held up: {}", self.said());
        lab.get(NAMESPACE, "pod", &guard).await.context("the guard is gone")?;
        ensure!(self.child.try_wait()?.is_none(), "it has ended: {}", self.said());
        Ok(())
    }

    async fn ends(mut self) -> anyhow::Result<()> {
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let ended = ended.map_err(|_| anyhow::anyhow!("it does not end: {}", self.said()))?;
        ensure!(ended.is_ok_and(|status: ExitStatus| status.success()), "{}", self.said());
        Ok(())
    }
}
