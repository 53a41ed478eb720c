//! `lockstep-csi-guard`: runs before an uninstall. Ends with 0 if no PersistentVolume of the
//! cluster is Lockstep's, else with 1 and what to do.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::api::{Api, ListParams};
use kube::{Client, Config};

const DRIVER: &str = "csi.lockstep.dev";
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(15);
/// Objects that the API server is asked for at a time.
const CHUNK: u32 = 500;
/// Volumes that are named.
const NAMED: usize = 10;

/// Refuses while a Kubernetes cluster has volumes of Lockstep.
#[derive(Debug, Parser)]
#[command(name = "lockstep-csi-guard", version)]
struct Args {}

#[expect(clippy::print_stderr, reason = "it is a program")]
fn main() -> ExitCode {
    let Args {} = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let volumes = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(volumes()));
    match volumes {
        Ok(volumes) if volumes.is_empty() => ExitCode::SUCCESS,
        Ok(volumes) => {
            eprintln!("{}", refusal(&volumes));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("whether there are volumes cannot be told, so nothing is removed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The volumes of Lockstep, each with the claim that it is bound to.
async fn volumes() -> anyhow::Result<Vec<String>> {
    let mut config = Config::infer().await.context("no Kubernetes cluster is known")?;
    config.read_timeout = Some(ANSWER);
    let all: Api<PersistentVolume> = Api::all(Client::try_from(config)?);
    let mut wanted = ListParams::default().limit(CHUNK);
    let mut found = Vec::new();
    loop {
        let chunk = all.list(&wanted).await.context("PersistentVolumes cannot be listed")?;
        found.extend(chunk.items.iter().filter_map(told));
        wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
        if wanted.continue_token.is_none() {
            return Ok(found);
        }
    }
}

/// A volume in words, if it is one of ours.
fn told(volume: &PersistentVolume) -> Option<String> {
    let spec = volume.spec.as_ref()?;
    spec.csi.as_ref().filter(|csi| csi.driver == DRIVER)?;
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let claim = spec.claim_ref.as_ref();
    Some(claim.map_or_else(
        || name.to_owned(),
        |claim| format!("{name} (claim {}/{})", part(&claim.namespace), part(&claim.name)),
    ))
}

fn refusal(volumes: &[String]) -> String {
    let mut named = volumes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if volumes.len() > NAMED {
        named.push_str(", ...");
    }
    format!(
        "Lockstep has {} volumes in this cluster: {named}. Pods that use them would lose them, so \
         nothing is removed. Delete their claims first; or, to keep the data on the nodes for a \
         later install, stop the pods and run `helm uninstall --no-hooks`. To go on as before, run \
         `helm rollback` with the name of the release: until then Helm refuses to upgrade it.",
        volumes.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(driver: &str, claim: Option<&str>) -> PersistentVolume {
        let claim = claim.map(|name| json!({ "namespace": "shop", "name": name }));
        let csi = json!({ "driver": driver, "volumeHandle": "v" });
        let spec = json!({ "csi": csi, "claimRef": claim });
        serde_json::from_value(json!({ "metadata": { "name": "pv-1" }, "spec": spec })).unwrap()
    }

    #[test]
    fn only_volumes_of_ours_are_told() {
        assert_eq!(told(&volume(DRIVER, Some("db"))).as_deref(), Some("pv-1 (claim shop/db)"));
        assert_eq!(told(&volume(DRIVER, None)).as_deref(), Some("pv-1"));
        assert_eq!(told(&volume("csi.example.com", Some("db"))), None);
        assert_eq!(told(&PersistentVolume::default()), None);
    }

    #[test]
    fn a_refusal_says_what_to_do_and_ends() {
        let many: Vec<String> = (0..30).map(|n| format!("pv-{n}")).collect();
        let said = refusal(&many);
        assert!(
            said.contains("30 volumes") && said.contains("pv-9, ...") && !said.contains("pv-10")
        );
        assert!(said.contains("--no-hooks") && said.contains("helm rollback"));
    }
}
