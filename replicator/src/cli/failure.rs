//! How a command fails: one place that turns errors into exit codes.

use std::process::ExitCode;

use tonic::{Code, Status};

/// Something failed that is none of the others.
pub const EXIT_FAILURE: u8 = 1;
/// A bad command line or a bad value.
pub const EXIT_USAGE: u8 = 2;
/// No such volume, node or replica.
pub const EXIT_NOT_FOUND: u8 = 3;
/// Not in the present state: conflict, precondition, no room.
pub const EXIT_STATE: u8 = 4;
/// Somebody who is needed cannot be reached or did not answer in time.
pub const EXIT_UNAVAILABLE: u8 = 5;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// A stable word for programs.
    pub(super) code: &'static str,
    /// What was wrong and what to do.
    pub(super) message: String,
    exit: u8,
}

impl Failure {
    /// A failure of this program itself.
    pub(super) fn local(message: impl Into<String>) -> Self {
        Self { code: "failure", message: message.into(), exit: EXIT_FAILURE }
    }

    /// A bad value on the command line.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: "invalid_argument", message: message.into(), exit: EXIT_USAGE }
    }

    /// The thing asked for is not there.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self { code: "not_found", message: message.into(), exit: EXIT_NOT_FOUND }
    }

    /// Somebody who is needed does not answer.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: "unavailable", message: message.into(), exit: EXIT_UNAVAILABLE }
    }

    /// The daemon cannot be reached.
    pub(super) fn unreachable(server: &str, why: &str) -> Self {
        let message = format!(
            "no daemon answers at {server}: {why}; is lockstepd running there? \
             Name another one with --server or LOCKSTEP_SERVER"
        );
        Self { code: "unavailable", message, exit: EXIT_UNAVAILABLE }
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }

    /// The exit code as a number.
    pub(super) fn exit(&self) -> u8 {
        self.exit
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let (code, exit) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => ("invalid_argument", EXIT_USAGE),
            Code::NotFound => ("not_found", EXIT_NOT_FOUND),
            Code::AlreadyExists => ("already_exists", EXIT_STATE),
            Code::FailedPrecondition => ("failed_precondition", EXIT_STATE),
            Code::Aborted => ("aborted", EXIT_STATE),
            Code::ResourceExhausted => ("resource_exhausted", EXIT_STATE),
            Code::Unavailable => ("unavailable", EXIT_UNAVAILABLE),
            Code::DeadlineExceeded | Code::Cancelled => ("deadline_exceeded", EXIT_UNAVAILABLE),
            Code::Ok
            | Code::Unknown
            | Code::PermissionDenied
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => ("failure", EXIT_FAILURE),
        };
        let message = match status.message() {
            "" => format!("the daemon answered {}", status.code()),
            message => message.to_owned(),
        };
        Self { code, message, exit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_exit_status() {
        let cases = [
            (Status::invalid_argument("size"), EXIT_USAGE),
            (Status::not_found("volume"), EXIT_NOT_FOUND),
            (Status::already_exists("volume"), EXIT_STATE),
            (Status::failed_precondition("attached"), EXIT_STATE),
            (Status::aborted("again"), EXIT_STATE),
            (Status::resource_exhausted("full"), EXIT_STATE),
            (Status::unavailable("store"), EXIT_UNAVAILABLE),
            (Status::deadline_exceeded("slow"), EXIT_UNAVAILABLE),
            (Status::internal("bug"), EXIT_FAILURE),
        ];
        for (status, exit) in cases {
            let text = status.message().to_owned();
            let failure = Failure::from(status);
            assert_eq!((failure.exit(), &failure.message), (exit, &text));
        }
    }

    #[test]
    fn a_failure_is_never_without_words() {
        assert!(!Failure::from(Status::unknown("")).message.is_empty());
        assert!(Failure::unreachable("unix:///x", "refused").message.contains("--server"));
    }
}
