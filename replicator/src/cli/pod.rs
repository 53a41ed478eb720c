//! `lockstep explain pod`

use lockstep_proto::v1;
use serde_json::{Value, json};

use super::connect::Server;
use super::explain;
use super::failure::Failure;
use super::output::Output;
use super::pods::{Bound, Claim, Cluster, Found};

/// What is known of a claim.
struct Explained {
    claim: Claim,
    volume: Option<v1::ExplainVolumeResponse>,
    /// Nodes to which the pod is led, with why they take none.
    nodes: Vec<(String, Option<&'static str>)>,
}

/// `explain pod NAME`
pub(super) async fn explain(
    server: &Server,
    out: &Output,
    namespace: Option<&str>,
    name: &str,
) -> Result<(), Failure> {
    let cluster = Cluster::infer().await.ok_or_else(|| {
        Failure::usage(
            "pods are those of a Kubernetes cluster: name a kubeconfig file in KUBECONFIG, or run \
             this in a pod with a service account",
        )
    })?;
    let pod = cluster.pod(namespace, name).await?;
    let mut claims = Vec::new();
    for claim in &pod.claims {
        claims.push(explained(server, &cluster, claim).await?);
    }
    out.answer(&told(&pod, &claims), || text(&pod, &claims))
}

async fn explained(
    server: &Server,
    cluster: &Cluster,
    claim: &Claim,
) -> Result<Explained, Failure> {
    let (mut volume, mut nodes) = (None, Vec::new());
    if let Bound::Volume(name) = &claim.bound {
        let request = v1::ExplainVolumeRequest { name: name.clone() };
        let mut answer = server.control().await?.explain_volume(request).await?.into_inner();
        if !answer.label.is_empty() {
            let labelled = cluster.labelled(&answer.label).await?;
            explain::mark(&mut answer, &labelled);
        }
        for node in answer.nodes.iter().filter(|node| node.labelled) {
            nodes.push((node.node.clone(), cluster.not_for_pods(&node.node).await?));
        }
        volume = Some(answer);
    }
    Ok(Explained { claim: claim.clone(), volume, nodes })
}

/// Where the pod is or could be, by this volume, in a sentence.
fn place(pod: &Found, nodes: &[(String, Option<&'static str>)]) -> String {
    if let Some(here) = &pod.node {
        return match nodes.iter().any(|(node, _)| node == here) {
            true => format!("the pod is on {here}, where a copy is"),
            false => format!("the pod is on {here}, which has no copy that it is led to"),
        };
    }
    if nodes.is_empty() {
        return "no node has the label that leads pods to the copies: is a controller running?"
            .to_owned();
    }
    let node = |(node, why): &(String, Option<&'static str>)| match why {
        Some(why) => format!("{node} ({why})"),
        None => node.clone(),
    };
    let all: Vec<String> = nodes.iter().map(node).collect();
    match nodes.iter().any(|(_, why)| why.is_none()) {
        true => format!("the pod can run on {}", all.join(", ")),
        false => format!("the pod could run on {}, and can't now", all.join(", ")),
    }
}

fn told(pod: &Found, claims: &[Explained]) -> Value {
    let claim = |explained: &Explained| {
        let (foreign, waits) = match &explained.claim.bound {
            Bound::Volume(_) => (None, None),
            Bound::Foreign(what) => (Some(what), None),
            Bound::Nothing(why) => (None, Some(why)),
        };
        json!({
            "claim": explained.claim.name,
            "explained": explained.volume.as_ref().map(explain::told),
            "place": explained.volume.as_ref().map(|_| place(pod, &explained.nodes)),
            "foreign": foreign,
            "unbound": waits,
        })
    };
    json!({
        "namespace": pod.namespace,
        "pod": pod.name,
        "phase": pod.phase,
        "node": pod.node,
        "warnings": pod.warnings,
        "claims": claims.iter().map(claim).collect::<Vec<_>>(),
    })
}

fn text(pod: &Found, claims: &[Explained]) -> String {
    let place_of = pod.node.as_deref().map_or("on no node".to_owned(), |node| format!("on {node}"));
    let mut text = format!("pod {}/{}: {}, {place_of}\n", pod.namespace, pod.name, pod.phase);
    for warning in &pod.warnings {
        text.push_str(&format!("  {warning}\n"));
    }
    if claims.is_empty() {
        text.push_str("  it uses no volumes that are claimed\n");
    }
    for explained in claims {
        text.push_str(&format!("\nclaim {}: ", explained.claim.name));
        match (&explained.claim.bound, &explained.volume) {
            (Bound::Volume(_), Some(volume)) => {
                text.push_str(&format!("{}\n", place(pod, &explained.nodes)));
                text.push_str(&explain::text(volume));
            }
            (Bound::Volume(name), None) => text.push_str(&format!("volume {name}\n")),
            (Bound::Foreign(what), _) => text.push_str(&format!("not Lockstep's, but {what}\n")),
            (Bound::Nothing(why), _) => {
                text.push_str("it has no volume yet");
                for reason in why {
                    text.push_str(&format!("\n  {reason}"));
                }
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(node: Option<&str>) -> Found {
        Found {
            namespace: "default".to_owned(),
            name: "db-0".to_owned(),
            phase: "Pending".to_owned(),
            node: node.map(str::to_owned),
            claims: Vec::new(),
            warnings: vec!["FailedScheduling: 0/5 nodes are available".to_owned()],
        }
    }

    #[test]
    fn it_says_where_a_pod_can_run_and_why_not() {
        let (n1, n2) = (("n1".to_owned(), None), ("n2".to_owned(), Some("it is cordoned")));
        let said = place(&pod(None), &[n1.clone(), n2.clone()]);
        assert_eq!(said, "the pod can run on n1, n2 (it is cordoned)");
        assert!(place(&pod(None), &[n2]).ends_with("and can't now"));
        assert!(place(&pod(None), &[]).contains("controller"));
        assert_eq!(place(&pod(Some("n1")), &[n1]), "the pod is on n1, where a copy is");
    }

    #[test]
    fn it_is_told_to_people_and_to_programs() {
        let volume = v1::VolumeStatus { name: "pvc-1".to_owned(), ..Default::default() };
        let answer = v1::ExplainVolumeResponse { volume: Some(volume), ..Default::default() };
        let claim = |name: &str, bound: Bound, volume| Explained {
            claim: Claim { name: name.to_owned(), bound },
            volume,
            nodes: vec![("n1".to_owned(), None)],
        };
        let claims = [
            claim("data", Bound::Volume("pvc-1".to_owned()), Some(answer)),
            claim("old", Bound::Foreign("volume x of other".to_owned()), None),
            claim("new", Bound::Nothing(vec!["ProvisioningFailed: no room".to_owned()]), None),
        ];
        let text = text(&pod(None), &claims);
        for part in [
            "pod default/db-0: Pending, on no node\n  FailedScheduling",
            "claim data: the pod can run on n1\nvolume pvc-1",
            "claim old: not Lockstep's, but volume x of other",
            "claim new: it has no volume yet\n  ProvisioningFailed: no room",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let value = told(&pod(None), &claims);
        assert_eq!(value["claims"][0]["place"], "the pod can run on n1");
        assert_eq!(value["claims"][2]["unbound"][0], "ProvisioningFailed: no room");
    }
}
