//! Refusals, in the codes that CSI asks for.

use tonic::{Code, Response, Status};

/// A required field is not there.
pub(crate) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is required and missing"))
}

/// A field has a value that is not allowed; says what is.
pub(crate) fn bad(field: &str, value: &str, allowed: &str) -> Status {
    Status::invalid_argument(format!("{field} = {value:?}: {allowed}"))
}

/// There is no such volume.
pub(crate) fn no_volume(id: &str) -> Status {
    let id = crate::names::shown(id);
    Status::not_found(format!("there is no volume {id:?}; `lockstep volume list` shows them"))
}

/// There is no such snapshot.
pub(crate) fn no_snapshot(id: &str) -> Status {
    let id = crate::names::shown(id);
    Status::not_found(format!("there is no snapshot {id:?}; `lockstep snapshot list` shows them"))
}

/// The answer to a call; a refusal is logged once, here.
pub(crate) fn told<T>(call: &str, outcome: Result<T, Status>) -> Result<Response<T>, Status> {
    if let Err(status) = &outcome {
        match status.code() {
            Code::Internal | Code::Unknown => {
                tracing::error!(call, code = ?status.code(), why = status.message(), "failed");
            }
            _ => tracing::info!(call, code = ?status.code(), why = status.message(), "refused"),
        }
    }
    outcome.map(Response::new)
}
