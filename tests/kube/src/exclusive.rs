//! A volume is used on one node at a time: a second pod elsewhere waits, its events say why, and it
//! runs once the first one's node is dead.

use crate::lab::{LIMIT, Lab, pods};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use serde_json::json;

const SPACE: &str = "exclusive";

pub(crate) async fn run(lab: &mut Lab) -> anyhow::Result<String> {
    lab.make_namespace(SPACE).await?;
    lab.apply(&pods::claim(SPACE, "data", "lockstep-3", "256Mi")).await?;
    let script = "echo first >/data/who; sync; sleep 36000";
    lab.apply(&pods::pod(SPACE, "first", "data", script)).await?;
    let first = lab.wait_until_runs(SPACE, "first").await?;
    let volume = lab.volume_of(SPACE, "data").await?;
    let copies = lab.in_sync(&volume).await?;
    let other = copies.iter().find(|node| **node != first).context("there is another copy")?;

    let mut second = pods::pod(SPACE, "second", "data", "sleep 36000");
    second["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": other});
    lab.apply(&second).await?;
    let about = "involvedObject.name=second,reason=FailedMount";
    let flags = ["-n", SPACE, "get", "events", "--field-selector", about];
    let flags = [&flags[..], &["-o", "jsonpath={.items[*].message}"]].concat();
    let is_told = async || {
        let said = lab.kubectl(&flags).await.unwrap_or_default();
        said.contains("FailedPrecondition") && said.contains(&first)
    };
    ensure!(wait_for(LIMIT, is_told).await, "not told why: {}", lab.kubectl(&flags).await?);
    let told = lab.kubectl(&flags).await?;
    let found = lab.get(SPACE, "pod", "second").await?;
    let phase = found.pointer("/status/phase").and_then(serde_json::Value::as_str);
    ensure!(phase == Some("Pending"), "the second pod is {phase:?} while the first one lives");

    let number = lab.number_of(&first)?;
    lab.kill(number).await?;
    let force = ["--force", "--grace-period=0", "--ignore-not-found"];
    let delete = ["-n", SPACE, "delete", "pod", "first"];
    lab.kubectl(&[&delete[..], &force].concat()).await?;
    lab.wait_until_runs(SPACE, "second").await?;
    let said = lab.in_pod(SPACE, "second", "cat /data/who").await?;
    ensure!(said.trim() == "first", "the second pod read {said:?}");
    lab.boot(number).await?;
    lab.kubectl(&["delete", "namespace", SPACE]).await?;
    let told = told.split("desc = ").nth(1).unwrap_or_default();
    Ok(format!("refused while the first pod lived (\"{}\"), given once it was dead", told.trim()))
}
