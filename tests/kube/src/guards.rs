//! What the API server refuses, and what people do to records by hand.

use crate::cluster::{Cluster, PATIENT, User};
use crate::process::wait_for;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use lockstep_meta::{Expect, Meta, MetaError, PutError, Revision, list_all};
use std::time::Duration;

const NAMESPACE: &str = "guards";
const KEY: &str = "volume/pvc-1";
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.make_namespace(NAMESPACE).await?;
    rights(cluster).await?;
    no_namespace(cluster).await?;
    by_hand(cluster).await?;
    strange(cluster).await?;
    no_definition(cluster).await?;
    Ok("rights, edits by hand, finalizers, strange objects, no definition".to_owned())
}

fn value() -> Bytes {
    Bytes::from_static(br#"{"epoch":1}"#)
}

fn says<T: std::fmt::Debug>(outcome: &Result<T, PutError>, word: &str) -> anyhow::Result<()> {
    let told = matches!(outcome, Err(PutError::Unavailable(told)) if told.contains(word));
    ensure!(told, "not refused with a word of {word}: {outcome:?}");
    Ok(())
}

fn read_says<T: std::fmt::Debug>(outcome: &Result<T, MetaError>, word: &str) -> anyhow::Result<()> {
    let told = matches!(outcome, Err(MetaError::Unavailable(told)) if told.contains(word));
    ensure!(told, "not refused with a word of {word}: {outcome:?}");
    Ok(())
}

/// Without a role nothing is done or read; with ours, all that a store does.
async fn rights(cluster: &Cluster) -> anyhow::Result<()> {
    let store = cluster.store(User::Lockstep, NAMESPACE, PATIENT).await?;
    says(&store.put_if(KEY, Expect::Absent, value()).await, "service account")?;
    says(&store.delete_if(KEY, Revision(1)).await, "service account")?;
    read_says(&store.get(KEY).await, "service account")?;
    read_says(&store.list("", None, 0).await, "service account")?;
    cluster.grant(NAMESPACE).await?;
    // The API server learns of roles by and by.
    let is_allowed = async || store.get(KEY).await.is_ok();
    ensure!(wait_for(LIMIT, is_allowed).await, "the role allows no read");
    let first = store.put_if(KEY, Expect::Absent, value()).await?;
    let second = store.put_if(KEY, Expect::Revision(first), value()).await?;
    ensure!(list_all(&store, "volume/").await?.len() == 1, "not listed");
    store.delete_if(KEY, second).await?;
    Ok(())
}

async fn no_namespace(cluster: &Cluster) -> anyhow::Result<()> {
    let store = cluster.store(User::Admin, "nowhere", PATIENT).await?;
    says(&store.put_if(KEY, Expect::Absent, value()).await, "namespace")
}

/// People can look, and what they change is seen as a change.
async fn by_hand(cluster: &Cluster) -> anyhow::Result<()> {
    let store = cluster.store(User::Admin, NAMESPACE, PATIENT).await?;
    let first = store.put_if(KEY, Expect::Absent, value()).await?;
    let shown = cluster.kubectl(&["-n", NAMESPACE, "get", "records"], "").await?;
    ensure!(shown.contains("KEY") && shown.contains(KEY), "kubectl get shows: {shown}");
    let flags = ["-n", NAMESPACE, "get", "records", "-o", "name"];
    let name = cluster.kubectl(&flags, "").await?.trim().to_owned();
    let text = cluster.kubectl(&["-n", NAMESPACE, "get", &name, "-o", "yaml"], "").await?;
    ensure!(text.contains(r#"{"epoch":1}"#), "the value cannot be read: {text}");

    cluster.kubectl(&["-n", NAMESPACE, "annotate", &name, "a.person/was=here"], "").await?;
    let outcome = store.put_if(KEY, Expect::Revision(first), value()).await;
    let Err(PutError::Conflict { current: Some(now) }) = outcome else {
        anyhow::bail!("an edit by hand was overwritten: {outcome:?}");
    };
    ensure!(now > first, "an edit by hand has no greater revision");

    for spec in [r#"{"key":"other"}"#, r#"{"base64":"AAAA"}"#, r#"{"text":null}"#] {
        let patch = format!(r#"{{"spec":{spec}}}"#);
        let flags = ["-n", NAMESPACE, "patch", &name, "--type=merge", "-p", &patch];
        ensure!(cluster.kubectl(&flags, "").await.is_err(), "{patch} was taken");
    }

    let hold = r#"{"metadata":{"finalizers":["a.person/holds"]}}"#;
    let flags = ["-n", NAMESPACE, "patch", &name, "--type=merge", "-p", hold];
    cluster.kubectl(&flags, "").await?;
    let held = store.get(KEY).await?.context("the record is gone")?;
    let outcome = store.delete_if(KEY, held.revision).await;
    let told = matches!(&outcome, Err(PutError::Unknown(told)) if told.contains("finalizers"));
    ensure!(told, "the delete of what is held: {outcome:?}");
    let release = r#"{"metadata":{"finalizers":null}}"#;
    let flags = ["-n", NAMESPACE, "patch", &name, "--type=merge", "-p", release];
    cluster.kubectl(&flags, "").await?;
    ensure!(store.get(KEY).await?.is_none(), "not deleted when no longer held");
    Ok(())
}

/// An object where no reader of its key looks is left out of lists.
async fn strange(cluster: &Cluster) -> anyhow::Result<()> {
    let store = cluster.store(User::Admin, NAMESPACE, PATIENT).await?;
    store.put_if(KEY, Expect::Absent, value()).await?;
    let strange = serde_json::json!({
        "apiVersion": "lockstep.dev/v1alpha1",
        "kind": "Record",
        "metadata": {"name": "strange", "labels": {"lockstep.dev/in": "volume"}},
        "spec": {"key": "volume/strange", "text": "", "change": "by hand"},
    });
    let flags = ["-n", NAMESPACE, "create", "-f", "-"];
    cluster.kubectl(&flags, &strange.to_string()).await?;
    let keys: Vec<_> = list_all(&store, "volume/").await?.into_iter().map(|e| e.key).collect();
    ensure!(keys == [KEY], "listed with a strange object: {keys:?}");
    ensure!(store.get("volume/strange").await?.is_none(), "a strange object was read");
    Ok(())
}

/// A server that does not know of records must not be taken for one that has none.
async fn no_definition(cluster: &Cluster) -> anyhow::Result<()> {
    let store = cluster.store(User::Admin, NAMESPACE, PATIENT).await?;
    let definition = cluster.kubectl(&["get", "crd", "records.lockstep.dev", "-o", "json"], "");
    let definition = definition.await?;
    let flags = ["delete", "crd", "records.lockstep.dev", "--wait=true", "--timeout=60s"];
    cluster.kubectl(&flags, "").await?;
    let is_gone = async || store.list("", None, 0).await.is_err();
    ensure!(wait_for(LIMIT, is_gone).await, "records are listed without their definition");
    read_says(&store.get(KEY).await, "CustomResourceDefinition")?;
    read_says(&store.list("", None, 0).await, "CustomResourceDefinition")?;
    says(&store.put_if(KEY, Expect::Absent, value()).await, "CustomResourceDefinition")?;
    says(&store.delete_if(KEY, Revision(1)).await, "CustomResourceDefinition")?;
    let mut definition: serde_json::Value = serde_json::from_str(&definition)?;
    definition["metadata"] = serde_json::json!({"name": "records.lockstep.dev"});
    definition["status"] = serde_json::Value::Null;
    cluster.apply(&definition.to_string()).await?;
    let is_back = async || store.get(KEY).await == Ok(None);
    ensure!(wait_for(LIMIT, is_back).await, "records are not found again with their definition");
    Ok(())
}
