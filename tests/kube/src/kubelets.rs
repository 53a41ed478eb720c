//! A kubelet is killed under a pod, and a Node object is deleted and made anew: the pod writes on,
//! and the labels are back.

use crate::killed::{labelled, wait_until_whole};
use crate::lab::{LIMIT, Lab};
use crate::process::wait_for;
use crate::writers::Writers;
use anyhow::{Context as _, ensure};

const SPACE: &str = "kubelets";
const COPIES: usize = 2;

pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<String> {
    let mut writers = Writers::start(lab, SPACE, 1, "lockstep-2").await?;
    let pod = writers.pods.first().context("there is one")?.clone();
    let before = writers.whereabouts(lab, &pod).await?;
    wait_until_whole(lab, &before.volume, COPIES).await?;
    let number = lab.number_of(&before.node)?;

    restart_kubelet(lab, number).await?;
    writers.wait_for_more(lab, &pod).await?;

    lab.kubectl(&["delete", "node", &before.node]).await?;
    // A kubelet makes the object when it starts.
    restart_kubelet(lab, number).await?;
    lab.wait_until_ready(number).await?;
    wait_until_whole(lab, &before.volume, COPIES).await?;
    let labelled = labelled(lab, &before.volume).await?;
    ensure!(labelled.contains(&before.node), "{} has no label again: {labelled:?}", before.node);

    writers.wait_for_more(lab, &pod).await?;
    let after = writers.whereabouts(lab, &pod).await?;
    ensure!(after.uid == before.uid, "the pod was replaced");
    let found = lab.get(SPACE, "pod", &pod).await?;
    let restarts = found.pointer("/status/containerStatuses/0/restartCount");
    ensure!(restarts.and_then(serde_json::Value::as_u64) == Some(0), "it restarted: {found}");
    let acked = writers.verify(lab).await?;
    writers.end(lab).await?;
    Ok(format!(
        "a kubelet was killed twice, its Node deleted and made anew; the pod wrote on \
         ({acked} writes), and labels are back"
    ))
}

/// Kills a kubelet, starts it, and waits until it has found the driver again.
async fn restart_kubelet(lab: &mut Lab, number: usize) -> anyhow::Result<()> {
    let before = lab.node(number)?.registrations();
    lab.node_mut(number)?.stop("kubelet").await?;
    lab.node_mut(number)?.start("kubelet")?;
    let is_back = async || lab.node(number).is_ok_and(|node| node.registrations() > before);
    ensure!(wait_for(LIMIT, is_back).await, "the kubelet of n{number} does not come back");
    Ok(())
}
