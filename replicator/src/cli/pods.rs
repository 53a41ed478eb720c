//! Pods of a Kubernetes cluster, and which of our volumes they use.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::{Client, Config};
use lockstep_core::cluster::locality::LABEL_VALUE;

use super::failure::Failure;

/// The name by which Kubernetes knows our driver.
const DRIVER: &str = "csi.lockstep.dev";
const ANSWER: Duration = Duration::from_secs(10);
/// Most events that are told of an object.
const EVENTS: usize = 3;

/// A claim of a pod, and what it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Its name.
    pub(super) name: String,
    pub(super) bound: Bound,
}

/// What a claim is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// A volume of ours.
    Volume(String),
    /// Something else, in words.
    Foreign(String),
    /// Nothing yet; what Kubernetes says about it.
    Nothing(Vec<String>),
}

/// A pod, as far as volumes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) namespace: String,
    pub(super) name: String,
    /// `Running` and the like.
    pub(super) phase: String,
    /// Where it is.
    pub(super) node: Option<String>,
    pub(super) claims: Vec<Claim>,
    /// The newest warnings.
    pub(super) warnings: Vec<String>,
}

/// A cluster that can be asked.
pub(super) struct Cluster {
    client: Client,
}

impl Cluster {
    /// The one that this runs in, or that `KUBECONFIG` leads to; nothing if there is none.
    pub(super) async fn infer() -> Option<Self> {
        let mut config = Config::infer().await.ok()?;
        config.connect_timeout = Some(ANSWER);
        config.read_timeout = Some(ANSWER);
        let client = Client::try_from(config).ok()?;
        Some(Self { client })
    }

    /// A pod by its name.
    pub(super) async fn pod(&self, namespace: Option<&str>, name: &str) -> Result<Found, Failure> {
        let namespace = namespace.unwrap_or(self.client.default_namespace());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = pods.get_opt(name).await.map_err(|error| refused(&error))?;
        let pod = pod.ok_or_else(|| {
            Failure::not_found(format!("there is no pod `{name}` in namespace `{namespace}`"))
        })?;
        let warnings = self.warnings(namespace, "Pod", name).await?;
        Ok(Found { warnings, ..self.found(&pod).await? })
    }

    /// All pods on a node that use volumes of ours.
    pub(super) async fn pods_on(&self, node: &str) -> Result<Vec<Found>, Failure> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let there = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let mut all = Vec::new();
        for pod in pods.list(&there).await.map_err(|error| refused(&error))? {
            let found = self.found(&pod).await?;
            if found.claims.iter().any(|claim| matches!(claim.bound, Bound::Volume(_))) {
                all.push(found);
            }
        }
        Ok(all)
    }

    /// The nodes that have a label of ours, which leads pods there.
    pub(super) async fn labelled(&self, label: &str) -> Result<BTreeSet<String>, Failure> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let wanted = ListParams::default().labels(&format!("{label}={LABEL_VALUE}"));
        let found = nodes.list_metadata(&wanted).await.map_err(|error| refused(&error))?;
        Ok(found.items.into_iter().filter_map(|node| node.metadata.name).collect())
    }

    /// Why pods can't be placed on a node, if so.
    pub(super) async fn not_for_pods(&self, node: &str) -> Result<Option<&'static str>, Failure> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.get_opt(node).await.map_err(|error| refused(&error))?;
        Ok(closed(node.as_ref()))
    }

    async fn found(&self, pod: &Pod) -> Result<Found, Failure> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let mut claims = Vec::new();
        for name in claim_names(pod) {
            let bound = self.bound(&namespace, &name).await?;
            claims.push(Claim { name, bound });
        }
        let status = pod.status.as_ref();
        Ok(Found {
            namespace,
            name: pod.metadata.name.clone().unwrap_or_default(),
            phase: status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Unknown".to_owned()),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            claims,
            warnings: Vec::new(),
        })
    }

    async fn bound(&self, namespace: &str, claim: &str) -> Result<Bound, Failure> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = claims.get_opt(claim).await.map_err(|error| refused(&error))?;
        let Some(found) = found else {
            return Ok(Bound::Nothing(vec!["there is no such claim".to_owned()]));
        };
        let volume = found.spec.and_then(|spec| spec.volume_name).filter(|name| !name.is_empty());
        let Some(volume) = volume else {
            let warnings = self.warnings(namespace, "PersistentVolumeClaim", claim).await?;
            return Ok(Bound::Nothing(warnings));
        };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = volumes.get_opt(&volume).await.map_err(|error| refused(&error))?;
        Ok(of_volume(&volume, found.as_ref()))
    }

    /// The newest warnings about an object, the newest last.
    async fn warnings(
        &self,
        namespace: &str,
        kind: &str,
        name: &str,
    ) -> Result<Vec<String>, Failure> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let fields = format!("involvedObject.kind={kind},involvedObject.name={name},type=Warning");
        let list = ListParams::default().fields(&fields);
        let mut found = events.list(&list).await.map_err(|error| refused(&error))?.items;
        found.sort_by_key(when);
        let newest = found.iter().rev().take(EVENTS).rev();
        Ok(newest.map(told).collect())
    }
}

/// When an event was last seen, as far as it says so.
fn when(event: &Event) -> Option<Timestamp> {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    last.or(event.event_time.as_ref().map(|time| time.0))
}

fn told(event: &Event) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}: {}", text(&event.reason), text(&event.message))
}

/// Why pods can't be placed on a node, if so.
fn closed(node: Option<&Node>) -> Option<&'static str> {
    let Some(node) = node else { return Some("Kubernetes knows no such node") };
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable);
    if unschedulable == Some(true) {
        return Some("it is cordoned");
    }
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_ready =
        |c: &k8s_openapi::api::core::v1::NodeCondition| c.type_ == "Ready" && c.status == "True";
    (!conditions.into_iter().flatten().any(is_ready)).then_some("it is not ready")
}

/// What a volume of Kubernetes is to us.
fn of_volume(name: &str, volume: Option<&PersistentVolume>) -> Bound {
    let Some(volume) = volume else {
        return Bound::Nothing(vec![format!("its volume {name} is gone")]);
    };
    match volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) {
        Some(csi) if csi.driver == DRIVER => Bound::Volume(csi.volume_handle.clone()),
        Some(csi) => Bound::Foreign(format!("volume {name} of {}", csi.driver)),
        None => Bound::Foreign(format!("volume {name}, which is of no CSI driver")),
    }
}

/// The claims that a pod uses.
fn claim_names(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{own}-{}", volume.name)))
    };
    volumes.into_iter().flatten().filter_map(claim).collect()
}

fn refused(error: &kube::Error) -> Failure {
    Failure::unavailable(format!("Kubernetes does not tell: {error}; see KUBECONFIG"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_uses_the_claims_that_it_names_or_has_made() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "db-0"},
            "spec": {"containers": [], "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                {"name": "settings", "configMap": {"name": "settings"}},
            ]},
        }))
        .unwrap();
        assert_eq!(claim_names(&pod), ["data-db-0", "db-0-scratch"]);
    }

    #[test]
    fn the_newest_of_events_is_the_one_that_was_last_seen() {
        let event = |name: &str, times: serde_json::Value| -> Event {
            let mut event = json!({"metadata": {"name": name}, "involvedObject": {}});
            event.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
            serde_json::from_value(event).unwrap()
        };
        let mut events = [
            event("third", json!({"eventTime": "2030-01-01T00:00:07.500000Z"})),
            event("first", json!({})),
            event(
                "second",
                json!({"lastTimestamp": "2030-01-01T00:00:07Z",
                "eventTime": "2030-01-01T00:00:09.000000Z"}),
            ),
        ];
        events.sort_by_key(when);
        let names: Vec<_> = events.iter().filter_map(|e| e.metadata.name.as_deref()).collect();
        assert_eq!(names, ["first", "second", "third"]);
    }

    #[test]
    fn a_volume_is_ours_by_its_driver() {
        let volume = |driver: &str| -> PersistentVolume {
            let csi = json!({"driver": driver, "volumeHandle": "pvc-1"});
            serde_json::from_value(json!({"spec": {"csi": csi}})).unwrap()
        };
        let ours = of_volume("pvc-1", Some(&volume(DRIVER)));
        assert_eq!(ours, Bound::Volume("pvc-1".to_owned()));
        assert!(matches!(of_volume("x", Some(&volume("other"))), Bound::Foreign(_)));
        assert!(matches!(of_volume("x", None), Bound::Nothing(_)));
    }

    #[test]
    fn a_node_takes_pods_if_it_is_ready_and_not_cordoned() {
        let node = |ready: &str, cordoned: bool| -> Node {
            serde_json::from_value(json!({
                "spec": {"unschedulable": cordoned},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        assert_eq!(closed(Some(&node("True", false))), None);
        assert_eq!(closed(Some(&node("True", true))), Some("it is cordoned"));
        assert_eq!(closed(Some(&node("Unknown", false))), Some("it is not ready"));
        assert!(closed(None).is_some());
    }
}
