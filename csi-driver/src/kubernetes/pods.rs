//! Pods that use volumes of Lockstep, as far as they are to be moved off a node that is lost.

use super::{CHUNK, is_conflict, is_not_found, refused};
use crate::identity::DRIVER_NAME;
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use lockstep_core::cluster::failover::{self, Maker, Used};
use lockstep_core::id::NodeId;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tonic::Status;

/// Pods with this annotation are left alone, unless its value is `false`.
const IGNORE: &str = "lockstep.dev/ignore-failover";
/// An annotation that only makes a kubelet look at its pod again.
const NUDGED: &str = "lockstep.dev/nudged";
/// What a kubelet marks the pods with that it makes by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Claims that are read at a time.
const READS: usize = 16;

/// Reads pods and what they use, and deletes them.
#[derive(Clone)]
pub(crate) struct Pods {
    client: Client,
}

/// A pod that uses volumes by claims.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// The controller that makes it again.
    pub(crate) owner: Option<String>,
    /// The node that it was given, and whether it is not there yet.
    pub(crate) node: Option<String>,
    pub(crate) pending: bool,
    /// Names of the claims that it uses.
    pub(crate) claims: Vec<String>,
    /// Names of volumes of other storage systems that it names itself, without a claim.
    foreign: Vec<String>,
    /// It is being deleted: how many seconds its node has, at most, to end it.
    grace_seconds: Option<i64>,
    /// What keeps it although it is deleted.
    pub(crate) finalizers: Vec<String>,
    ignored: bool,
    ended: bool,
    maker: Maker,
}

/// A claim that a pod uses, and what is behind it.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) reference: ObjectReference,
    pub(crate) used: Used,
}

impl Found {
    pub(crate) fn new(pod: Pod) -> Option<Self> {
        let meta = pod.metadata;
        let (spec, name) = (pod.spec?, meta.name?);
        let claims: Vec<String> = spec
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
                (Some(claim), _) => Some(claim.claim_name.clone()),
                (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
                (None, None) => None,
            })
            .collect();
        let volumes = spec.volumes.iter().flatten();
        let foreign = volumes.filter(|volume| is_foreign(volume)).map(|v| v.name.clone()).collect();
        let note = |key| meta.annotations.as_ref().and_then(|all| all.get(key));
        let owners = meta.owner_references.as_deref().unwrap_or_default();
        let owner = owners.iter().find(|owner| owner.controller == Some(true));
        let maker = if note(MIRROR).is_some() { Maker::Node } else { maker(owner) };
        let phase = pod.status.and_then(|status| status.phase).unwrap_or_default();
        Some(Self {
            ignored: note(IGNORE).is_some_and(|value| value != "false"),
            ended: matches!(phase.as_str(), "Succeeded" | "Failed"),
            pending: phase == "Pending",
            owner: owner.map(|owner| owner.uid.clone()),
            maker,
            node: spec.node_name,
            namespace: meta.namespace?,
            uid: meta.uid?,
            grace_seconds: meta
                .deletion_timestamp
                .map(|_| meta.deletion_grace_period_seconds.unwrap_or_default()),
            finalizers: meta.finalizers.unwrap_or_default(),
            name,
            claims,
            foreign,
        })
    }

    /// The same with what it uses, for a decision.
    pub(crate) fn facts(&self, claims: &[Arc<Claim>]) -> failover::Pod {
        let foreign = self.foreign.iter().map(|name| Used::Foreign(format!("volume {name}")));
        failover::Pod {
            ignored: self.ignored,
            ended: self.ended || self.is_given_up(),
            maker: self.maker,
            volumes: claims.iter().map(|claim| claim.used.clone()).chain(foreign).collect(),
        }
    }

    /// Whether its node is not waited for any more: if it is still there, a finalizer keeps it.
    pub(crate) fn is_given_up(&self) -> bool {
        self.grace_seconds == Some(0)
    }

    /// Whether it is being deleted.
    pub(crate) fn is_ending(&self) -> bool {
        self.grace_seconds.is_some()
    }

    /// How events name it.
    pub(crate) fn reference(&self) -> ObjectReference {
        named("Pod", &self.namespace, &self.name, Some(self.uid.clone()))
    }
}

pub(super) fn named(
    kind: &str,
    namespace: &str,
    name: &str,
    uid: Option<String>,
) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid,
        ..ObjectReference::default()
    }
}

fn maker(owner: Option<&OwnerReference>) -> Maker {
    match owner.map(|owner| owner.kind.as_str()) {
        None => Maker::Nobody,
        Some("DaemonSet" | "Node") => Maker::Node,
        Some(_) => Maker::Controller,
    }
}

impl Pods {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The pods on a node that use volumes by claims and have not ended.
    pub(crate) async fn on_node(&self, node: &NodeId) -> Result<Vec<Found>, Status> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let found = self.list(&pods, &format!("spec.nodeName={node}")).await?;
        Ok(found.into_iter().filter(|pod| !pod.claims.is_empty() && !pod.ended).collect())
    }

    /// The pods of a namespace that are not running yet.
    pub(crate) async fn pending(&self, namespace: &str) -> Result<Vec<Found>, Status> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        self.list(&pods, "status.phase=Pending").await
    }

    async fn list(&self, pods: &Api<Pod>, fields: &str) -> Result<Vec<Found>, Status> {
        let mut found = Vec::new();
        let mut wanted = ListParams::default().fields(fields).limit(CHUNK);
        loop {
            let chunk = pods.list(&wanted).await;
            let chunk = chunk.map_err(|e| refused("pods cannot be listed", &e))?;
            found.extend(chunk.items.into_iter().filter_map(Found::new));
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(found);
            }
        }
    }

    /// One pod, if it is still the same.
    pub(crate) async fn same(&self, pod: &Found) -> Result<Option<Found>, Status> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = pods.get_opt(&pod.name).await;
        let found = found.map_err(|e| refused(&format!("pod {} cannot be read", pod.name), &e))?;
        Ok(found.and_then(Found::new).filter(|found| found.uid == pod.uid))
    }

    /// What is behind the claims of pods, in their order. Of one that cannot be read nothing is
    /// known.
    pub(crate) async fn claims(&self, pods: &[Found]) -> Vec<Vec<Arc<Claim>>> {
        let keys = pods.iter().flat_map(|pod| {
            let of = |name: &String| (pod.namespace.clone(), name.clone());
            pod.claims.iter().map(of)
        });
        let keys: BTreeSet<(String, String)> = keys.collect();
        let read: BTreeMap<_, _> = stream::iter(keys)
            .map(|(namespace, name)| async move {
                let claim = Arc::new(self.claim(&namespace, &name).await);
                ((namespace, name), claim)
            })
            .buffer_unordered(READS)
            .collect()
            .await;
        let of = |pod: &Found| {
            let key = |name: &String| (pod.namespace.clone(), name.clone());
            pod.claims.iter().filter_map(|name| read.get(&key(name)).cloned()).collect()
        };
        pods.iter().map(of).collect()
    }

    async fn claim(&self, namespace: &str, name: &str) -> Claim {
        let (uid, used) = self.behind(namespace, name).await.unwrap_or_else(|error| {
            tracing::warn!(namespace, claim = name, %error, "what is behind it cannot be read");
            (None, Used::Unknown(name.to_owned()))
        });
        Claim { reference: named("PersistentVolumeClaim", namespace, name, uid), used }
    }

    async fn behind(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<(Option<String>, Used), kube::Error> {
        let unknown = Used::Unknown(name.to_owned());
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let Some(claim) = claims.get_opt(name).await? else { return Ok((None, unknown)) };
        let uid = claim.metadata.uid.clone();
        let Some(volume) = claim.spec.and_then(|spec| spec.volume_name) else {
            return Ok((uid, unknown));
        };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let used = volumes.get_opt(&volume).await?.map_or(unknown, |volume| used(name, volume));
        Ok((uid, used))
    }

    /// The claim of a volume of ours, which the persistent volume of this name tells.
    pub(super) async fn claim_of(
        &self,
        volume: &str,
    ) -> Result<Option<ObjectReference>, kube::Error> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        Ok(volumes.get_opt(volume).await?.and_then(|found| claim_of(volume, found)))
    }

    /// Deletes a pod, unless another one has its name by now; `grace_seconds`: 0 does not wait for
    /// its node, none gives it what the pod asks for.
    pub(crate) async fn delete(
        &self,
        pod: &Found,
        grace_seconds: Option<u32>,
    ) -> Result<bool, Status> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let preconditions = Preconditions { uid: Some(pod.uid.clone()), resource_version: None };
        let how = DeleteParams {
            grace_period_seconds: grace_seconds,
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match pods.delete(&pod.name, &how).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(false),
            Err(error) => Err(refused(&format!("pod {} cannot be deleted", pod.name), &error)),
        }
    }

    /// Makes the kubelet of a pod look at it again: one that was told of the pod before the API
    /// server knew that it may read the pod's claim tries again only seconds later.
    pub(crate) async fn nudge(&self, pod: &Found) -> Result<(), Status> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let now = Timestamp::now().to_string();
        let patch = json!({ "metadata": { "uid": pod.uid, "annotations": { NUDGED: now } } });
        let how = PatchParams::default();
        match pods.patch_metadata(&pod.name, &how, &Patch::Merge(patch)).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                Err(refused(&format!("pod {} cannot be nudged", pod.name), &error))
            }
            _ => Ok(()),
        }
    }
}

/// The claim of a persistent volume, if that is this volume, and the claim is not gone.
fn claim_of(volume: &str, found: PersistentVolume) -> Option<ObjectReference> {
    let is_released = found.status.and_then(|status| status.phase).as_deref() == Some("Released");
    let spec = found.spec.filter(|_| !is_released)?;
    spec.csi.filter(|csi| csi.driver == DRIVER_NAME && csi.volume_handle == volume)?;
    let claim = spec.claim_ref?;
    Some(named("PersistentVolumeClaim", &claim.namespace?, &claim.name?, claim.uid))
}

/// Whether a volume that a pod names without a claim is of a storage system outside of its node, to
/// which one node at a time should write. Of a kind that is not known it may be.
fn is_foreign(volume: &Volume) -> bool {
    let by_claim = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
    let of_node = volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some()
        || volume.git_repo.is_some()
        // Made for the pod, and gone with it.
        || volume.csi.is_some();
    let told = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    let for_many = volume.nfs.is_some();
    !(by_claim || of_node || told || for_many)
}

/// What a claim's volume is to a failover.
fn used(claim: &str, volume: PersistentVolume) -> Used {
    let spec = volume.spec.unwrap_or_default();
    if let Some(csi) = spec.csi.as_ref().filter(|csi| csi.driver == DRIVER_NAME) {
        return Used::Ours(csi.volume_handle.clone());
    }
    let modes = spec.access_modes.unwrap_or_default();
    let is_written = modes.iter().any(|mode| mode == "ReadWriteMany");
    // It may be read by many and written by one as well.
    let is_read = !modes.is_empty() && modes.iter().all(|mode| mode == "ReadOnlyMany");
    if spec.node_affinity.is_none() && (is_written || is_read) {
        Used::Shared(claim.to_owned())
    } else {
        Used::Foreign(format!("claim {claim}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(changes: serde_json::Value) -> Found {
        let mut pod = json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u1", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "o1",
                    "controller": true}]},
            "spec": {"nodeName": "a", "containers": [], "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}},
                {"name": "tmp", "ephemeral": {}}, {"name": "none", "emptyDir": {}}]},
            "status": {"phase": "Running"},
        });
        for (path, value) in changes.as_object().unwrap() {
            let (parent, key) = path.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[key] = value.clone();
        }
        Found::new(serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_is_known_by_its_claims_and_who_makes_it() {
        let seen = pod(json!({}));
        assert_eq!(seen.claims, ["data-web-0", "web-0-tmp"]);
        assert_eq!((seen.owner.as_deref(), seen.maker), (Some("o1"), Maker::Controller));
        assert!(!seen.ignored && !seen.ended && !seen.pending);
        let of = |changes| pod(changes).maker;
        assert_eq!(of(json!({"/metadata/ownerReferences/0/kind": "DaemonSet"})), Maker::Node);
        assert_eq!(of(json!({"/metadata/ownerReferences/0/controller": false})), Maker::Nobody);
        let mirror = json!({"/metadata/annotations": {MIRROR: "x"}});
        assert_eq!(of(mirror), Maker::Node);
        let noted = |value: &str| pod(json!({"/metadata/annotations": {IGNORE: value}})).ignored;
        assert!(noted("") && noted("true") && !noted("false"));
        assert!(pod(json!({"/status/phase": "Failed"})).ended);
    }

    #[test]
    fn a_volume_leads_to_its_claim_if_it_is_ours() {
        let volume = |changes: serde_json::Value| {
            let mut volume = json!({
                "metadata": {"name": "pvc-1"},
                "spec": {"csi": {"driver": DRIVER_NAME, "volumeHandle": "pvc-1"},
                    "claimRef": {"namespace": "shop", "name": "data", "uid": "u1"}},
                "status": {"phase": "Bound"},
            });
            for (path, value) in changes.as_object().unwrap() {
                *volume.pointer_mut(path).unwrap() = value.clone();
            }
            claim_of("pvc-1", serde_json::from_value(volume).unwrap())
        };
        let claim = named("PersistentVolumeClaim", "shop", "data", Some("u1".to_owned()));
        assert_eq!(volume(json!({})), Some(claim));
        for (path, value) in [
            ("/spec/csi/driver", json!("other")),
            ("/spec/csi/volumeHandle", json!("pvc-2")),
            ("/spec/csi", json!(null)),
            ("/spec/claimRef", json!(null)),
            ("/status/phase", json!("Released")),
        ] {
            assert_eq!(volume(json!({ path: value })), None, "{path}");
        }
    }

    #[test]
    fn one_that_was_given_up_uses_nothing_though_a_finalizer_keeps_it() {
        let deleted = |seconds: i64| {
            pod(json!({
                "/metadata/deletionTimestamp": "2026-01-01T00:00:00Z",
                "/metadata/deletionGracePeriodSeconds": seconds,
                "/metadata/finalizers": ["example.com/job"],
            }))
        };
        assert!(!pod(json!({})).is_given_up() && !deleted(30).is_given_up());
        assert!(!deleted(30).facts(&[]).ended, "its node is waited for");
        assert!(deleted(0).facts(&[]).ended);
        assert_eq!(deleted(0).finalizers, ["example.com/job"]);
    }

    #[test]
    fn a_volume_that_a_pod_names_itself_is_not_overlooked() {
        let holds = |source: serde_json::Value| {
            let mut volume = json!({"name": "disk"});
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            let seen = pod(json!({"/spec/volumes": [volume]})).facts(&[]).volumes;
            seen == [Used::Foreign("volume disk".to_owned())]
        };
        for source in [
            json!({"iscsi": {"iqn": "i", "lun": 0, "targetPortal": "p"}}),
            json!({"fc": {"lun": 0}}),
            json!({"rbd": {"image": "i", "monitors": []}}),
            json!({"cephfs": {"monitors": []}}),
            json!({"awsElasticBlockStore": {"volumeID": "v"}}),
            json!({"flexVolume": {"driver": "d"}}),
            json!({"ofALaterVersion": {}}),
        ] {
            assert!(holds(source.clone()), "{source}");
        }
        for source in [
            json!({"emptyDir": {}}),
            json!({"hostPath": {"path": "/"}}),
            json!({"configMap": {"name": "c"}}),
            json!({"secret": {"secretName": "s"}}),
            json!({"projected": {"sources": []}}),
            json!({"downwardAPI": {}}),
            json!({"image": {"reference": "r"}}),
            json!({"nfs": {"path": "/", "server": "s"}}),
            json!({"csi": {"driver": "secrets.example"}}),
            json!({"persistentVolumeClaim": {"claimName": "c"}}),
            json!({"ephemeral": {}}),
        ] {
            assert!(!holds(source.clone()), "{source}");
        }
    }

    #[test]
    fn a_volume_of_others_holds_a_pod_unless_many_nodes_may_use_it() {
        let volume = |spec| serde_json::from_value(json!({"spec": spec})).unwrap();
        let seen = |spec| used("data", volume(spec));
        let (shared, foreign) = (Used::Shared("data".into()), Used::Foreign("claim data".into()));
        let csi = |driver: &str| json!({"driver": driver, "volumeHandle": "v"});
        assert_eq!(seen(json!({"csi": csi(DRIVER_NAME)})), Used::Ours("v".to_owned()));
        let many = json!({"csi": csi("other"), "accessModes": ["ReadWriteMany"]});
        assert_eq!(seen(many.clone()), shared);
        assert_eq!(seen(json!({"csi": csi("other"), "accessModes": ["ReadWriteOnce"]})), foreign);
        let modes = |modes: &[&str]| json!({"csi": csi("other"), "accessModes": modes});
        assert_eq!(seen(modes(&["ReadOnlyMany"])), shared);
        assert_eq!(seen(modes(&["ReadWriteOnce", "ReadOnlyMany"])), foreign, "it may be written");
        assert_eq!(seen(modes(&[])), foreign);
        let mut tied = many;
        tied["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": []}});
        assert_eq!(seen(tied), foreign);
    }
}
