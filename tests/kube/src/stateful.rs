//! A stateful set: every pod begins on a node with a copy, and writes to it.

use crate::lab::{Lab, pods};
use anyhow::ensure;

const SPACE: &str = "stateful";
const SCRIPT: &str = "echo $HOSTNAME >/data/name; sync; while :; do sleep 3600; done";
const PODS: usize = 3;

pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<String> {
    lab.make_namespace(SPACE).await?;
    let mut begun = 0;
    for (set, class) in [("three", "lockstep-3"), ("two", "lockstep-2")] {
        lab.apply(&pods::stateful_set(SPACE, set, PODS, class, SCRIPT)).await?;
        for number in 0..PODS {
            let pod = format!("{set}-{number}");
            let node = lab.wait_until_runs(SPACE, &pod).await?;
            let volume = lab.volume_of(SPACE, &format!("data-{pod}")).await?;
            let copies = lab.in_sync(&volume).await?;
            ensure!(copies.contains(&node), "{pod} is on {node}, copies are on {copies:?}");
            let said = lab.in_pod(SPACE, &pod, "cat /data/name").await?;
            ensure!(said.trim() == pod, "{pod} read {said:?}");
            begun += 1;
        }
    }
    lab.kubectl(&["delete", "namespace", SPACE]).await?;
    Ok(format!("{begun} of {begun} pods began on a node with a copy in sync, wrote and read"))
}
