//! What an error of the API says about the change that met it.

use kube::core::Status;
use std::error::Error;
use std::time::Duration;

/// How much of what a server says is told: it repeats what it was sent.
const MAX_TOLD_BYTES: usize = 600;

/// How long to wait when the server is too busy and does not say.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no answer, by what may have become of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The object was not in the state that the change asked for.
    OtherState,
    /// There is no such object.
    NoObject,
    /// Nothing was done; worth another try after this long.
    Busy(Duration, String),
    /// The moment that a list goes on in is too long ago.
    Expired,
    /// Nothing was done.
    NotDone(String),
    /// It was done, or it was not, or it will be.
    Undecided(String),
}

impl Refusal {
    /// Reads an error that a request for the object `name` met.
    pub(super) fn of(error: &kube::Error, name: &str) -> Self {
        let told = tell(error);
        match error {
            kube::Error::Api(status) => Self::of_status(status, name),
            kube::Error::BuildRequest(_)
            | kube::Error::HttpError(_)
            | kube::Error::Auth(_)
            | kube::Error::TlsRequired => Self::NotDone(told),
            _ if never_connected(error) => Self::NotDone(told),
            _ => Self::Undecided(told),
        }
    }

    fn of_status(status: &Status, name: &str) -> Self {
        let told = format!("{} ({} {})", shorten(&status.message), status.code, status.reason);
        match status.code {
            404 if is_about(status, name) => Self::NoObject,
            404 => Self::NotDone(format!(
                "{told}; do the namespace and the CustomResourceDefinition \
                 records.lockstep.dev exist?"
            )),
            409 if is_about(status, name) => Self::OtherState,
            // Two were counted against a quota at once, or a webhook said so: nothing was done.
            409 => Self::Busy(pause(status), told),
            // The server takes these from its queue before anything is done with them.
            429 => Self::Busy(pause(status), told),
            401 | 403 => Self::NotDone(format!(
                "{told}; the service account needs get, list, create, update and delete of \
                 records.lockstep.dev"
            )),
            408 => Self::Undecided(told),
            410 => Self::Expired,
            400..=499 => Self::NotDone(told),
            _ => Self::Undecided(told),
        }
    }
}

/// A server that does not know of our kind of object, or not yet, says "not found" as well: only
/// the one that names the object has looked for it.
fn is_about(status: &Status, name: &str) -> bool {
    status.details.as_ref().is_some_and(|details| details.name == name)
}

fn pause(status: &Status) -> Duration {
    match status.details.as_ref().map_or(0, |details| details.retry_after_seconds) {
        0 => DEFAULT_PAUSE,
        seconds => Duration::from_secs(u64::from(seconds)),
    }
}

/// Whether there was no connection that the request could have been sent over.
pub(super) fn never_connected(error: &kube::Error) -> bool {
    causes(error).any(|cause| {
        let client = cause.downcast_ref::<hyper_util::client::legacy::Error>();
        client.is_some_and(hyper_util::client::legacy::Error::is_connect)
    })
}

/// Whether the connection failed, rather than the server answered.
pub(super) fn broke(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_)) && !never_connected(error)
}

/// An error and what caused it, each said once.
pub(super) fn tell(error: &kube::Error) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let said = cause.to_string();
        if text.is_empty() {
            text = said;
        } else if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
    }
    text
}

fn shorten(said: &str) -> String {
    if said.len() <= MAX_TOLD_BYTES {
        return said.to_owned();
    }
    // The reason stands at the end.
    let part: Vec<char> = said.chars().collect();
    let half = MAX_TOLD_BYTES / 2;
    let begin: String = part.iter().take(half).collect();
    let end: String = part.iter().skip(part.len().saturating_sub(half)).collect();
    format!("{begin} … {end}")
}

fn causes<'a>(error: &'a kube::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |cause| (*cause).source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::response::StatusDetails;

    fn status(code: u16, name: &str, retry_after_seconds: u32) -> Status {
        let details = StatusDetails {
            name: name.to_owned(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds,
        };
        Status::failure("why", "Reason").with_code(code).with_details(details)
    }

    #[test]
    fn only_who_looked_for_the_object_says_that_it_is_not_there() {
        assert_eq!(Refusal::of_status(&status(404, "o", 0), "o"), Refusal::NoObject);
        for other in [status(404, "", 0), Status::failure("404 page not found", "").with_code(404)]
        {
            let Refusal::NotDone(told) = Refusal::of_status(&other, "o") else {
                panic!("{other:?} is taken for an absent object")
            };
            assert!(told.contains("CustomResourceDefinition"), "{told}");
        }
    }

    #[test]
    fn what_the_server_failed_at_stays_undecided() {
        for code in [0, 100, 200, 302, 408, 500, 502, 503, 504, 599] {
            let refusal = Refusal::of_status(&status(code, "o", 0), "o");
            assert!(matches!(refusal, Refusal::Undecided(_)), "{code}: {refusal:?}");
        }
        for code in [400, 401, 403, 405, 413, 422] {
            let refusal = Refusal::of_status(&status(code, "o", 0), "o");
            assert!(matches!(refusal, Refusal::NotDone(_)), "{code}: {refusal:?}");
        }
    }

    #[test]
    fn only_a_conflict_over_the_object_is_its_other_state() {
        assert_eq!(Refusal::of_status(&status(409, "o", 0), "o"), Refusal::OtherState);
        for other in [status(409, "quota", 0), Status::failure("no", "Conflict").with_code(409)] {
            let refusal = Refusal::of_status(&other, "o");
            assert!(matches!(refusal, Refusal::Busy(..)), "{other:?}: {refusal:?}");
        }
    }

    #[test]
    fn what_a_server_repeats_is_cut_out_of_what_it_says() {
        let said = format!("record is invalid: {}: too long", "é".repeat(5000));
        let Refusal::NotDone(told) =
            Refusal::of_status(&Status::failure(&said, "Invalid").with_code(422), "o")
        else {
            panic!("an invalid object is not refused")
        };
        assert!(told.starts_with("record is invalid") && told.contains(": too long"), "{told}");
        assert!(told.chars().count() < MAX_TOLD_BYTES + 50, "{}", told.len());
    }

    #[test]
    fn a_busy_server_says_how_long_to_wait() {
        for (said, waits) in [(0, DEFAULT_PAUSE), (7, Duration::from_secs(7))] {
            let refusal = Refusal::of_status(&status(429, "o", said), "o");
            assert!(matches!(refusal, Refusal::Busy(pause, _) if pause == waits), "{refusal:?}");
        }
    }
}
