//! Guards: pods that stand on nodes and do nothing. A PodDisruptionBudget allows no eviction of
//! them, so whoever drains a node by evictions, and so asks for leave, waits for its guard.

use super::{CHUNK, is_conflict, is_not_found, refused};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use lockstep_core::cluster::drain::Guard;
use lockstep_core::id::NodeId;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tonic::Status;

/// Label of guards, by which the budget finds them; its value says when the guard came.
const GUARD: &str = "lockstep.dev/drain-guard";
const STANDS: &str = "stands";
/// The node was cordoned already.
const LATE: &str = "late";
/// Annotation of a guard: why its node may not go.
const HELD: &str = "lockstep.dev/held";
/// The group and version of budgets.
const POLICY: &str = "policy/v1";
/// Longest name of a pod, in bytes.
const LONGEST: usize = 253;

/// Makes guards, and takes them away.
#[derive(Clone)]
pub(crate) struct Guards {
    pods: Api<Pod>,
    budgets: Api<PodDisruptionBudget>,
    pub(crate) namespace: String,
    /// What all of them are like. Its name is the budget's as well.
    like: Pod,
    name: String,
}

/// A guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    uid: String,
    pub(crate) node: NodeId,
    pub(crate) late: bool,
    /// It runs. What does not may be evicted, whatever a budget says.
    pub(crate) runs: bool,
    /// It holds up nobody: it has ended, or belongs to an installation that is gone.
    pub(crate) stale: bool,
    /// It has ended, for this reason.
    pub(crate) failed: Option<String>,
    leaving: bool,
    held: String,
}

/// The budget, by its id.
#[derive(Clone, Debug)]
pub(crate) struct Budget(String);

impl Guards {
    /// Guards in a namespace that are all like a pod, told as JSON.
    ///
    /// # Errors
    /// If that is no pod with a name and a specification.
    pub(crate) fn new(client: &Client, namespace: &str, like: &str) -> anyhow::Result<Self> {
        let (like, name) = read(like)?;
        Ok(Self {
            pods: Api::namespaced(client.clone(), namespace),
            budgets: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            like,
            name,
        })
    }

    /// The budget, which is made when Lockstep is installed; none if somebody has deleted it.
    pub(crate) async fn budget(&self) -> Result<Option<Budget>, Status> {
        let what = || format!("{} cannot be read", self.budget_name());
        let found = self.budgets.get_opt(&self.name).await.map_err(|e| refused(&what(), &e))?;
        let stays = found.filter(|found| found.metadata.deletion_timestamp.is_none());
        Ok(stays.map(|found| Budget(found.metadata.uid.unwrap_or_default())))
    }

    /// Makes the budget again.
    pub(crate) async fn put_budget(&self) -> Result<(), Status> {
        match self.budgets.create(&PostParams::default(), &budget_named(&self.name)).await {
            // Somebody else was first; or it is still about to go.
            Err(error) if !is_conflict(&error) => {
                Err(refused(&format!("{} cannot be made", self.budget_name()), &error))
            }
            _ => Ok(()),
        }
    }

    /// What the budget is called in messages.
    pub(crate) fn budget_name(&self) -> String {
        format!("the PodDisruptionBudget {}/{}", self.namespace, self.name)
    }

    /// How events name the budget.
    pub(crate) fn budget_reference(&self) -> ObjectReference {
        let named = super::pods::named("PodDisruptionBudget", &self.namespace, &self.name, None);
        ObjectReference { api_version: Some(POLICY.to_owned()), ..named }
    }

    /// All guards.
    pub(crate) async fn all(&self, budget: &Budget) -> Result<Vec<Found>, Status> {
        let mut all = Vec::new();
        let mut wanted = ListParams::default().labels(GUARD).limit(CHUNK);
        loop {
            let chunk = self.pods.list(&wanted).await;
            let chunk = chunk.map_err(|e| refused("guards cannot be listed", &e))?;
            all.extend(chunk.items.into_iter().filter_map(|pod| found(pod, budget)));
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(all);
            }
        }
    }

    /// Puts a guard on a node. Returns it, if it is new.
    pub(crate) async fn put(
        &self,
        budget: &Budget,
        node: &NodeId,
        late: bool,
    ) -> Result<Option<Found>, Status> {
        let pod = guard(&self.like, &self.name, budget, node, late);
        match self.pods.create(&PostParams::default(), &pod).await {
            Ok(pod) => Ok(found(pod, budget)),
            // It is there already, or one is that is about to go.
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(refused(&format!("no guard can be put on node {node}"), &error)),
        }
    }

    /// Takes a guard away. Returns whether it was there.
    pub(crate) async fn take(&self, guard: &Found) -> Result<bool, Status> {
        if guard.leaving {
            return Ok(false);
        }
        let preconditions = Preconditions { uid: Some(guard.uid.clone()), resource_version: None };
        let how = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match self.pods.delete(&guard.name, &how).await {
            Ok(_) => Ok(true),
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(false),
            Err(error) => Err(refused(&format!("the guard {} stays", guard.name), &error)),
        }
    }

    /// Notes on a guard why its node may not go; nothing: it may.
    pub(crate) async fn note(&self, guard: &Found, why: &str) -> Result<(), Status> {
        if guard.held == why {
            return Ok(());
        }
        let value = Some(why).filter(|why| !why.is_empty());
        let patch = json!({ "metadata": { "uid": guard.uid, "annotations": { HELD: value } } });
        let how = PatchParams::default();
        match self.pods.patch_metadata(&guard.name, &how, &Patch::Merge(patch)).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => {
                Err(refused(&format!("the guard {} cannot be annotated", guard.name), &error))
            }
            _ => Ok(()),
        }
    }

    /// How events name a guard.
    pub(crate) fn reference(&self, guard: &Found) -> ObjectReference {
        super::pods::named("Pod", &self.namespace, &guard.name, Some(guard.uid.clone()))
    }
}

impl Found {
    /// One that is about to run.
    #[cfg(test)]
    pub(crate) fn on(node: &NodeId) -> Self {
        Self {
            name: name_on("guard", node),
            uid: format!("u-{node}"),
            node: node.clone(),
            late: false,
            runs: false,
            stale: false,
            failed: None,
            leaving: false,
            held: String::new(),
        }
    }

    /// What a decision makes of one that is not stale.
    pub(crate) fn counts_as(&self) -> Guard {
        match (self.late, self.runs) {
            (true, _) => Guard::Late,
            (false, false) => Guard::Pending,
            (false, true) => Guard::Stands,
        }
    }
}

fn read(like: &str) -> anyhow::Result<(Pod, String)> {
    let what = "--drain-guard is the JSON of a Pod with a name and a specification";
    let pod: Pod = serde_json::from_str(like).context(what)?;
    let has_containers = pod.spec.as_ref().is_some_and(|spec| !spec.containers.is_empty());
    let name = pod.metadata.name.clone().filter(|_| has_containers).context(what)?;
    Ok((pod, name))
}

/// Names of nodes may be as long as those of pods.
fn name_on(name: &str, node: &NodeId) -> String {
    let full = format!("{name}-{node}");
    if full.len() <= LONGEST {
        return full;
    }
    let sum = Sha256::digest(node.as_str().as_bytes());
    let sum: String = sum.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{sum}")
}

fn found(pod: Pod, budget: &Budget) -> Option<Found> {
    let (meta, spec) = (pod.metadata, pod.spec?);
    let status = pod.status.unwrap_or_default();
    let phase = status.phase.as_deref().unwrap_or_default();
    let failed = matches!(phase, "Succeeded" | "Failed").then(|| ended(&status));
    let label = meta.labels.as_ref().and_then(|labels| labels.get(GUARD));
    let note = meta.annotations.as_ref().and_then(|notes| notes.get(HELD));
    let owned = meta.owner_references.iter().flatten().any(|owner| owner.uid == budget.0);
    let leaving = meta.deletion_timestamp.is_some();
    Some(Found {
        late: label.is_some_and(|value| value == LATE),
        runs: phase == "Running",
        failed: failed.clone().filter(|_| owned && !leaving),
        stale: leaving || !owned || failed.is_some(),
        held: note.cloned().unwrap_or_default(),
        node: NodeId::new(spec.node_name.as_deref()?)?,
        name: meta.name?,
        uid: meta.uid?,
        leaving,
    })
}

/// What the chart makes, but for labels: those are Helm's to change.
fn budget_named(name: &str) -> PodDisruptionBudget {
    let guards = LabelSelectorRequirement {
        key: GUARD.to_owned(),
        operator: "Exists".to_owned(),
        values: None,
    };
    let selector =
        LabelSelector { match_expressions: Some(vec![guards]), ..LabelSelector::default() };
    PodDisruptionBudget {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        // No number: no eviction is allowed, however many guards there are.
        spec: Some(PodDisruptionBudgetSpec {
            selector: Some(selector),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

/// Why a pod has ended.
fn ended(status: &PodStatus) -> String {
    let parts = [&status.reason, &status.message].into_iter().flatten();
    let said: Vec<&str> = parts.map(String::as_str).filter(|part| !part.is_empty()).collect();
    if said.is_empty() { "it has ended".to_owned() } else { said.join(": ") }
}

/// A guard for a node. It goes with the budget, so that none stays after an uninstall.
fn guard(like: &Pod, name: &str, budget: &Budget, node: &NodeId, late: bool) -> Pod {
    let mut pod = like.clone();
    let when = if late { LATE } else { STANDS };
    pod.metadata.labels.get_or_insert_default().insert(GUARD.to_owned(), when.to_owned());
    pod.metadata.name = Some(name_on(name, node));
    pod.metadata.owner_references = Some(vec![OwnerReference {
        api_version: POLICY.to_owned(),
        kind: "PodDisruptionBudget".to_owned(),
        name: name.to_owned(),
        uid: budget.0.clone(),
        // Who drains leaves pods alone that nobody would make again.
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node.to_string());
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIKE: &str = r#"{"metadata": {"name": "guard", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "guard", "image": "i"}]}}"#;

    fn budget(uid: &str) -> Budget {
        Budget(uid.to_owned())
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn a_guard_is_found_again() {
        let (like, name) = read(LIKE).unwrap();
        let mut pod = guard(&like, &name, &budget("b1"), &node("n1"), true);
        pod.metadata.uid = Some("u1".to_owned());
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["a"], "b");
        let seen = found(pod.clone(), &budget("b1")).unwrap();
        assert_eq!((seen.name.as_str(), seen.node.as_str()), ("guard-n1", "n1"));
        assert!(seen.late && !seen.stale && !seen.leaving && !seen.runs);
        assert!(found(pod.clone(), &budget("b2")).unwrap().stale, "of another installation");
        pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
        let seen = found(pod.clone(), &budget("b1")).unwrap();
        assert_eq!((seen.stale, seen.failed.as_deref()), (true, Some("it has ended")));
        let status = pod.status.get_or_insert_default();
        status.reason = Some("OutOfpods".to_owned());
        status.message = Some("Pod was rejected".to_owned());
        let seen = found(pod.clone(), &budget("b1")).unwrap();
        assert_eq!(seen.failed.as_deref(), Some("OutOfpods: Pod was rejected"));
        assert_eq!(found(pod.clone(), &budget("b2")).unwrap().failed, None, "it is not waited for");
        pod.spec.as_mut().unwrap().node_name = None;
        assert_eq!(found(pod, &budget("b1")), None);
    }

    /// What the chart says guards are like.
    fn of_the_chart() -> Pod {
        let manifests = include_str!("../../../deploy/manifests/lockstep.yaml");
        let mut lines = manifests.lines().skip_while(|line| !line.ends_with("- name: DRAIN_GUARD"));
        let value = lines.nth(1).and_then(|line| line.trim().strip_prefix("value: ")).unwrap();
        // Of YAML in double quotes it has nothing that JSON has not.
        read(&serde_json::from_str::<String>(value).unwrap()).unwrap().0
    }

    #[test]
    fn no_pod_is_killed_to_make_room_for_a_guard() {
        let containers = of_the_chart().spec.unwrap().containers;
        assert!(containers.iter().all(|container| container.resources.is_none()));
    }

    #[test]
    fn a_guard_is_waited_for_by_those_who_look_at_what_pods_tolerate() {
        let tolerations = of_the_chart().spec.unwrap().tolerations.unwrap();
        let effects: Vec<_> = tolerations.iter().map(|t| t.effect.as_deref()).collect();
        assert_eq!(effects, [Some("NoExecute")], "no taint has it scheduled, or evicts it");
    }

    #[test]
    fn a_guard_counts_once_it_runs() {
        let (like, name) = read(LIKE).unwrap();
        let as_in = |phase: &str, late| {
            let mut pod = guard(&like, &name, &budget("b1"), &node("n1"), late);
            pod.metadata.uid = Some("u1".to_owned());
            pod.status.get_or_insert_default().phase = Some(phase.to_owned());
            found(pod, &budget("b1")).unwrap().counts_as()
        };
        assert_eq!(
            ["", "Pending", "Unknown"].map(|phase| as_in(phase, false)),
            [Guard::Pending; 3]
        );
        assert_eq!(as_in("Running", false), Guard::Stands);
        assert_eq!(["Pending", "Running"].map(|phase| as_in(phase, true)), [Guard::Late; 2]);
    }

    #[test]
    fn a_guard_of_a_node_with_a_long_name_has_a_shorter_one() {
        let long = |last: &str| node(&format!("{}.{last}", ["a"; 30].join(".")));
        assert_eq!(name_on("guard", &node("n1.zone")), "guard-n1.zone");
        let prefix = "g".repeat(220);
        let names = [long("a"), long("b")].map(|node| name_on(&prefix, &node));
        assert!(names.iter().all(|name| name.len() <= LONGEST) && names[0] != names[1]);
    }

    #[test]
    fn the_budget_is_made_again_as_the_chart_has_it() {
        let chart = include_str!("../../../deploy/chart/templates/drain.yaml");
        let made = serde_json::to_value(budget_named("lockstep-drain-guard")).unwrap();
        let selector = json!({ "matchExpressions": [{ "key": GUARD, "operator": "Exists" }] });
        let spec = json!({ "selector": selector });
        assert_eq!(made["spec"], spec);
        assert_eq!(made["metadata"], json!({ "name": "lockstep-drain-guard" }));
        let part = |from: &str, to: &str| {
            let rest = chart.split_once(from).unwrap().1;
            let lines = rest.split_once(to).unwrap().0.lines().map(str::trim);
            lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>()
        };
        let wanted = [
            "selector:",
            "matchExpressions:",
            "- {key: lockstep.dev/drain-guard, operator: Exists}",
        ];
        assert_eq!(part("\nspec:", "{{- end }}"), wanted, "both change together");
        assert!(part("kind: PodDisruptionBudget", "spec:").contains(&"name: lockstep-drain-guard"));
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        for bad in ["", "{}", r#"{"metadata": {"name": "x"}}"#, r#"{"spec": {"containers": []}}"#] {
            let refused = read(bad).unwrap_err().to_string();
            assert!(refused.contains("--drain-guard"), "{refused}");
        }
    }
}
