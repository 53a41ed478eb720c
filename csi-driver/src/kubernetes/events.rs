//! Events on pods, claims and nodes: what people see with `kubectl describe` of a failover, of a
//! drain, and of how their volumes are.

use super::news::News;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};

const CONTROLLER: &str = "lockstep.dev/controller";
/// What happens to the object.
const FAIL_OVER: &str = "FailOver";
const REPLICATE: &str = "Replicate";
const DRAIN: &str = "Drain";
/// Where events on what is in no namespace are.
const NOWHERE: &str = "default";
/// Longest note, in bytes.
const LONGEST: usize = 1000;

/// Tells events.
#[derive(Clone)]
pub(crate) struct Events {
    client: Client,
    me: String,
    action: &'static str,
}

impl Events {
    pub(crate) fn new(client: Client, me: String) -> Self {
        Self { client, me, action: FAIL_OVER }
    }

    /// The same for those of drains.
    pub(crate) fn of_drains(&self) -> Self {
        Self { action: DRAIN, ..self.clone() }
    }

    /// Tells one, without waiting for it.
    pub(crate) fn tell(
        &self,
        of: &ObjectReference,
        is_bad: bool,
        reason: &'static str,
        note: String,
    ) {
        let namespace = of.namespace.clone().unwrap_or_else(|| NOWHERE.to_owned());
        let news = News { is_bad, reason, note };
        let mut event = self.event(of, self.action, news);
        event.metadata.generate_name = Some("lockstep-".to_owned());
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        tokio::spawn(async move {
            if let Err(error) = events.create(&PostParams::default(), &event).await {
                tracing::debug!(%error, "an event is lost");
            }
        });
    }

    /// Tells something of a volume, by an event of this name: whoever tells it again tells nothing.
    ///
    /// # Errors
    /// If it may be told if it is tried again.
    pub(super) async fn tell_once(
        &self,
        of: &ObjectReference,
        name: String,
        news: News,
    ) -> Result<(), kube::Error> {
        let namespace = of.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let mut event = self.event(of, REPLICATE, news);
        event.metadata.name = Some(name);
        match events.create(&PostParams::default(), &event).await {
            // Told already; or its namespace is on its way out, and the like.
            Err(kube::Error::Api(why)) if is_final(why.code) => {
                tracing::debug!(why = why.message, "an event is not made");
                Ok(())
            }
            outcome => outcome.map(drop),
        }
    }

    fn event(&self, of: &ObjectReference, action: &str, news: News) -> Event {
        let News { is_bad, reason, mut note } = news;
        let end = (0..=LONGEST).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or_default());
        Event {
            metadata: ObjectMeta { namespace: of.namespace.clone(), ..ObjectMeta::default() },
            action: Some(action.to_owned()),
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

/// An answer that would be the same another time.
fn is_final(code: u16) -> bool {
    (400..500).contains(&code) && code != 429
}
