//! Events on pods and claims: what people see of a failover with `kubectl describe`.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

const CONTROLLER: &str = "lockstep.dev/controller";
/// What happens to the object.
const ACTION: &str = "FailOver";
/// Longest note, in bytes.
const LONGEST: usize = 1000;

/// Tells events.
#[derive(Clone)]
pub(crate) struct Events {
    client: Client,
    me: String,
}

impl Events {
    pub(crate) fn new(client: Client, me: String) -> Self {
        Self { client, me }
    }

    /// Tells one, without waiting for it.
    pub(crate) fn tell(&self, of: &ObjectReference, is_bad: bool, reason: &str, note: String) {
        let namespace = of.namespace.clone().unwrap_or_default();
        let event = self.event(of, is_bad, reason, note);
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        tokio::spawn(async move {
            if let Err(error) = events.create(&PostParams::default(), &event).await {
                tracing::debug!(%error, "an event is lost");
            }
        });
    }

    fn event(&self, of: &ObjectReference, is_bad: bool, reason: &str, mut note: String) -> Event {
        let end = (0..=LONGEST).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or_default());
        Event {
            metadata: ObjectMeta {
                generate_name: Some("lockstep-".to_owned()),
                namespace: of.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some(ACTION.to_owned()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(note),
            reason: Some(reason.to_owned()),
            regarding: Some(of.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.me.clone()),
            type_: Some(if is_bad { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}
