//! What can go wrong, told so that the caller knows what to do.

use crate::{MAX_VALUE_BYTES, Revision};
use thiserror::Error;

/// Why a read gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MetaError {
    /// The key, prefix or starting point breaks the rules of [`crate::key`].
    #[error("bad key {key:?}: {reason}")]
    BadKey {
        /// What was given, shortened if it was long.
        key: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The store could not be asked; try again later.
    #[error("record store unavailable: {0}")]
    Unavailable(String),
}

/// Why a change was not made, or is not known to be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PutError {
    /// Not made: the key was in another state. Read it, decide anew.
    #[error("the key changed meanwhile ({}); read it again", state(*.current))]
    Conflict {
        /// The revision it had; `None`: it did not exist.
        current: Option<Revision>,
    },
    /// Undecided: the change was made, or will be, or never will. Read the key and look for
    /// something only this change would have written.
    #[error("the outcome of the change is unknown ({0}); read the key again")]
    Unknown(String),
    /// Not made: the store could not be asked; try again later.
    #[error("record store unavailable: {0}")]
    Unavailable(String),
    /// Not made: the value is over the limit.
    #[error("a value of {bytes} bytes is too large; at most {MAX_VALUE_BYTES} are stored")]
    TooLarge {
        /// How large the value was.
        bytes: usize,
    },
    /// Not made: the key breaks the rules of [`crate::key`].
    #[error("bad key {key:?}: {reason}")]
    BadKey {
        /// What was given, shortened if it was long.
        key: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
}

impl From<MetaError> for PutError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::BadKey { key, reason } => Self::BadKey { key, reason },
            MetaError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

fn state(current: Option<Revision>) -> String {
    current.map_or_else(|| "it does not exist".to_owned(), |r| format!("now at revision {}", r.0))
}
