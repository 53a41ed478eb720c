//! The one place where errors become gRPC codes.

use lockstep_meta::{MetaError, PutError};
use tonic::{Code, Status};

use crate::engine::EngineError;
use crate::pool::PoolError;

/// A read of the record store failed.
pub(super) fn unread(error: &MetaError) -> Status {
    match error {
        MetaError::BadKey { .. } => Status::invalid_argument(error.to_string()),
        MetaError::Unavailable(_) => Status::unavailable(format!("{error}; try again later")),
    }
}

/// A change of the record store failed or is undecided. All calls are idempotent, so an undecided
/// one is simply to be repeated.
pub(super) fn unwritten(error: &PutError) -> Status {
    match error {
        PutError::Conflict { .. } => {
            Status::aborted("somebody else changed it at the same time; try again")
        }
        PutError::Unknown(_) => Status::unavailable(format!(
            "{error}; the same call again finds out and goes on from there"
        )),
        PutError::Unavailable(_) => Status::unavailable(format!("{error}; try again later")),
        PutError::TooLarge { .. } | PutError::BadKey { .. } => {
            Status::invalid_argument(error.to_string())
        }
    }
}

/// The engine refused.
pub(super) fn engine(error: &EngineError) -> Status {
    let code = match error {
        EngineError::NoSuchPool { .. } | EngineError::NoSuchSnapshot { .. } => Code::NotFound,
        EngineError::BadSize { .. } => Code::InvalidArgument,
        EngineError::ReplicaExists { .. } => Code::AlreadyExists,
        EngineError::NotAttached(_) | EngineError::Fenced { .. } => Code::FailedPrecondition,
        EngineError::AttachTimeout { .. } | EngineError::DetachTimeout { .. } => {
            Code::DeadlineExceeded
        }
        EngineError::Stopped => Code::Unavailable,
        EngineError::Listen { .. } => Code::Internal,
        EngineError::Pool(pool) => return self::pool(pool),
        #[expect(unreachable_patterns, reason = "the engine may learn to refuse for more reasons")]
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn pool(error: &PoolError) -> Status {
    let code = match error {
        PoolError::Full { .. } => Code::ResourceExhausted,
        PoolError::Exists { .. } => Code::AlreadyExists,
        PoolError::ReadOnly { .. } | PoolError::Damaged { .. } => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// A record would break a rule of records.
pub(super) fn record(error: &lockstep_core::record::RecordError) -> Status {
    Status::failed_precondition(error.to_string())
}

/// No such volume.
pub(super) fn no_volume(name: &str) -> Status {
    Status::not_found(format!("there is no volume `{name}`; `lockstep volume list` shows them"))
}

/// Whether a call failed for good: the same call again would fail again.
pub(super) fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::ResourceExhausted
            | Code::Internal
    )
}
