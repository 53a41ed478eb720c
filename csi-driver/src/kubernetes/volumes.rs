//! An object for each volume, so that `kubectl get volumes.lockstep.dev` tells how it is. People
//! look at them; Lockstep reads them only to know what it has said already.

use super::events::Events;
use super::news::{News, Patience, in_sync};
use super::pods::Pods;
use super::{CHUNK, is_conflict, is_not_found, refused};
use crate::daemon::Daemons;
use crate::leader::Leader;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, ListParams, Object, ObjectMeta, Patch, PatchParams, PostParams,
    Preconditions,
};
use kube::core::GroupVersionKind;
use lockstep_proto::v1;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

type Volume = Object<Spec, Shown>;

/// Which volume it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Spec {
    volume: String,
    uid: String,
}

/// How it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Shown {
    size: String,
    copies: String,
    nodes: Vec<String>,
    /// Said also if there is none: a merge takes away only what is named.
    primary: Option<String>,
    state: String,
    message: String,
    conditions: Vec<Condition>,
}

/// Keeps the objects.
pub(crate) struct Publisher {
    daemons: Arc<Daemons>,
    objects: Api<Volume>,
    resource: ApiResource,
    pods: Pods,
    events: Events,
    patience: Patience,
}

impl Publisher {
    pub(crate) fn new(daemons: Arc<Daemons>, client: Client, pods: Pods, events: Events) -> Self {
        let kind = GroupVersionKind::gvk("lockstep.dev", "v1alpha1", "Volume");
        let resource = ApiResource::from_gvk_with_plural(&kind, "volumes");
        let objects = Api::all_with(client, &resource);
        Self { daemons, objects, resource, pods, events, patience: Patience::default() }
    }

    /// Says what has changed, again and again, for ever, while it is this controller that acts.
    pub(crate) async fn keep(mut self, every: Duration, mut leader: Leader) {
        let mut told = None;
        loop {
            leader.wait().await;
            let why = self.look().await.err().map(|status| status.message().to_owned());
            // Once for each reason: it is tried again and again.
            match &why {
                Some(why) if told.as_ref() != Some(why) => {
                    tracing::warn!(why, "volumes cannot be shown now");
                }
                None if told.is_some() => tracing::info!("volumes are shown again"),
                _ => {}
            }
            told = why;
            tokio::time::sleep(every).await;
        }
    }

    async fn look(&mut self) -> Result<(), Status> {
        let mut there = self.there().await?;
        let (_, volumes) = self.daemons.cluster().await?;
        self.patience.keep(&volumes.iter().map(|volume| volume.uid.as_str()).collect());
        // One that fails does not keep the others from being shown.
        let mut first = Ok(());
        let mut note = |outcome: Result<(), kube::Error>, what: String| {
            if let (Err(error), Ok(())) = (outcome, &first) {
                first = Err(refused(&what, &error));
            }
        };
        for volume in &volumes {
            let name = object_name(volume);
            let said = there.remove(&name);
            let outcome = self.say(&name, volume, said).await;
            note(outcome, format!("volume {} cannot be shown", volume.name));
        }
        for (name, object) in there {
            let outcome = self.take_away(&name, &object).await;
            note(outcome, format!("the object of {name}, which is gone, stays"));
        }
        first
    }

    /// The objects that there are, by name.
    async fn there(&self) -> Result<BTreeMap<String, Volume>, Status> {
        let mut all = BTreeMap::new();
        let mut wanted = ListParams::default().limit(CHUNK);
        loop {
            let chunk = self.objects.list(&wanted).await;
            let chunk = chunk.map_err(|e| refused("shown volumes cannot be listed", &e))?;
            for object in chunk.items {
                all.insert(object.metadata.name.clone().unwrap_or_default(), object);
            }
            wanted.continue_token = chunk.metadata.continue_.filter(|token| !token.is_empty());
            if wanted.continue_token.is_none() {
                return Ok(all);
            }
        }
    }

    async fn say(
        &mut self,
        name: &str,
        volume: &v1::VolumeStatus,
        mut said: Option<Volume>,
    ) -> Result<(), kube::Error> {
        let spec = Spec { volume: volume.name.clone(), uid: volume.uid.clone() };
        // One of the same name that was removed and made again is another volume.
        if let Some(old) = said.take_if(|object| object.spec != spec) {
            self.take_away(name, &old).await?;
        }
        let object = match said {
            Some(object) => object,
            None => {
                let object = Volume::new(name, &self.resource, spec);
                self.objects.create(&PostParams::default(), &object).await?
            }
        };
        let before = object.status.unwrap_or_default();
        let time = Timestamp::now();
        let mut now = shown(volume, &before.conditions, time);
        let (told, news) = self.patience.news(volume, &before.conditions, (time, Instant::now()));
        now.conditions.extend(told);
        if now == before {
            return Ok(());
        }
        self.tell(volume, &object.metadata, news).await?;
        // Not over what another controller has shown, and told, since.
        let seen = json!({ "resourceVersion": object.metadata.resource_version });
        let patch = Patch::Merge(json!({ "metadata": seen, "status": now }));
        match self.objects.patch_status(name, &PatchParams::default(), &patch).await {
            Err(error) if !is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Tells news of a volume, whose object is as it is before it says that they are told: so they
    /// are told again if it comes not to that, under the same names.
    async fn tell(
        &self,
        volume: &v1::VolumeStatus,
        object: &ObjectMeta,
        news: Vec<News>,
    ) -> Result<(), kube::Error> {
        if news.is_empty() {
            return Ok(());
        }
        let Some(claim) = self.pods.claim_of(&volume.name).await? else { return Ok(()) };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (uid, version) = (text(&object.uid), text(&object.resource_version));
        for news in news {
            let name = format!("lockstep-{uid}-{version}-{}", news.reason.to_lowercase());
            tracing::info!(volume = volume.name, note = news.note, "told");
            self.events.tell_once(&claim, name, news).await?;
        }
        Ok(())
    }

    async fn take_away(&self, name: &str, object: &Volume) -> Result<(), kube::Error> {
        let preconditions = object
            .metadata
            .uid
            .clone()
            .map(|uid| Preconditions { uid: Some(uid), resource_version: None });
        let how = DeleteParams { preconditions, ..DeleteParams::default() };
        match self.objects.delete(name, &how).await {
            Err(error) if !is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The volume's name if an object may be called so, otherwise its UUID.
fn object_name(volume: &v1::VolumeStatus) -> String {
    let is_inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_part = |part: &str| {
        let is_edge_fine = !part.starts_with('-') && !part.ends_with('-');
        !part.is_empty() && is_edge_fine && part.bytes().all(is_inside)
    };
    let is_name = volume.name.len() <= 253 && volume.name.split('.').all(is_part);
    if is_name { volume.name.clone() } else { volume.uid.clone() }
}

/// What people are told of a volume. A condition that stays as it was keeps its time.
fn shown(volume: &v1::VolumeStatus, before: &[Condition], now: Timestamp) -> Shown {
    let in_sync: Vec<_> = in_sync(volume).collect();
    let state = state(volume);
    let is_served = matches!(state, "Healthy" | "Degraded");
    let condition = |kind: &str, is_so: bool| {
        let status = if is_so { "True" } else { "False" }.to_owned();
        let same = before.iter().find(|c| c.type_ == kind && c.status == status);
        Condition {
            type_: kind.to_owned(),
            last_transition_time: same.map_or(Time(now), |c| c.last_transition_time.clone()),
            message: volume.health_reason.clone(),
            observed_generation: None,
            reason: state.to_owned(),
            status,
        }
    };
    Shown {
        size: quantity(volume.size_bytes),
        copies: format!("{}/{}", in_sync.len(), volume.repl),
        nodes: in_sync.iter().map(|copy| copy.node.clone()).collect(),
        primary: volume.primary_node.clone(),
        state: state.to_owned(),
        message: volume.health_reason.clone(),
        conditions: vec![
            condition("Available", is_served),
            condition("Redundant", state == "Healthy"),
        ],
    }
}

/// As Kubernetes writes sizes: in the largest unit of which it is a whole number.
fn quantity(bytes: u64) -> String {
    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let whole = units.iter().find(|(_, bits)| bytes > 0 && bytes.is_multiple_of(1 << bits));
    whole.map_or_else(|| bytes.to_string(), |(unit, bits)| format!("{}{unit}", bytes >> bits))
}

fn state(volume: &v1::VolumeStatus) -> &'static str {
    match (volume.stage(), volume.health()) {
        (v1::VolumeStage::Creating, _) => "Creating",
        (v1::VolumeStage::Deleting, _) => "Deleting",
        (_, v1::Health::Healthy) => "Healthy",
        (_, v1::Health::Degraded) => "Degraded",
        (_, v1::Health::BelowMin) => "Waiting",
        (_, v1::Health::Unavailable) => "Unavailable",
        (_, v1::Health::Unspecified) => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(node: &str, connected: bool) -> v1::VolumeReplica {
        let (node, state) = (node.to_owned(), i32::from(v1::ReplicaState::InSync));
        v1::VolumeReplica { node, state, connected, ..Default::default() }
    }

    fn volume(health: v1::Health) -> v1::VolumeStatus {
        v1::VolumeStatus {
            name: "pvc-1".to_owned(),
            uid: "5b1f0d8e-0000-4000-8000-000000000001".to_owned(),
            size_bytes: 64 << 20,
            repl: 3,
            health: health.into(),
            stage: v1::VolumeStage::Ready.into(),
            primary_node: Some("a".to_owned()),
            replicas: vec![copy("a", true), copy("b", true), copy("c", false)],
            ..Default::default()
        }
    }

    #[test]
    fn a_volume_is_told_in_columns() {
        let shown = shown(&volume(v1::Health::Degraded), &[], Timestamp::UNIX_EPOCH);
        assert_eq!((shown.size.as_str(), shown.copies.as_str()), ("64Mi", "2/3"));
        assert_eq!(shown.nodes, ["a", "b"]);
        assert_eq!(shown.state, "Degraded");
        assert_eq!(shown.primary.as_deref(), Some("a"));
    }

    #[test]
    fn sizes_are_written_as_kubernetes_does() {
        let sizes = [0, 1, 1024, 1536, 64 << 20, 1 << 30, (1 << 30) + (1 << 20), 3 << 40];
        let written: Vec<_> = sizes.into_iter().map(quantity).collect();
        assert_eq!(written, ["0", "1", "1Ki", "1536", "64Mi", "1Gi", "1025Mi", "3Ti"]);
    }

    #[test]
    fn a_condition_keeps_the_time_since_when_it_is_so() {
        let first = Timestamp::UNIX_EPOCH;
        let later = Timestamp::from_second(60).unwrap();
        let before = shown(&volume(v1::Health::Healthy), &[], first).conditions;
        let after = shown(&volume(v1::Health::Degraded), &before, later).conditions;
        let times = |all: &[Condition]| -> Vec<_> {
            all.iter()
                .map(|c| (c.type_.clone(), c.status.clone(), c.last_transition_time.0))
                .collect()
        };
        let wanted = |redundant: &str, since| {
            vec![
                ("Available".to_owned(), "True".to_owned(), first),
                ("Redundant".to_owned(), redundant.to_owned(), since),
            ]
        };
        assert_eq!(times(&before), wanted("True", first));
        assert_eq!(times(&after), wanted("False", later));
    }

    #[test]
    fn what_an_object_cannot_be_called_is_called_by_its_uuid() {
        let named = |name: &str| {
            object_name(&v1::VolumeStatus {
                name: name.to_owned(),
                uid: "u".to_owned(),
                ..Default::default()
            })
        };
        assert_eq!(named("pvc-1.a"), "pvc-1.a");
        for bad in ["Pvc", "a_b", "-a", "a.", ""] {
            assert_eq!(named(bad), "u", "{bad}");
        }
    }
}
